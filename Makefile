# One-word verbs. Any of them may be the first command after a clone: git, make and python3 with venv are enough.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# What tests and benchmarks need besides: the other backends, and the libraries we compare with.
COMPLETE := .venv/complete
PAGES := .venv/pages
CLEAN := build/clean
RLLIB := build/rllib
EXTRAS := atari control data envpool export language lora jax ray tune dev
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-latest test-oldest check format wheel docs mutants bench bench-train bench-ladder bench-actors bench-language results clean

help:  ## what the verbs do
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' Makefile | awk -F': +' '{ printf "  make %-14s %s\n", $$1, $$2 }'

demo: $(READY)  ## train eight seeds of PPO on CartPole, or go on with those, evaluate them, draw the curve
	if [ -e $(DEMO)/run.json ]; then $(BIN)/telescope train --resume $(DEMO); \
	else $(BIN)/telescope train ppo CartPole-v1 --seeds 8 --total-steps 100000 --out $(DEMO); fi
	$(BIN)/telescope eval $(DEMO) --episodes 100
	@echo "The learning curve is in $$(ls $(DEMO)/*.png)"

test: $(COMPLETE)  ## run every test (ARGS="-k gae" selects)
	$(BIN)/python -m pytest -q -n 2 $(ARGS)

test-slow: $(COMPLETE)  ## run the tests that take minutes: many kills, many damaged folders, equal commands on a busy machine
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# The rivals stay out: their versions are no promise of ours. An old library may call what its newer dependencies have
# deprecated, and that is no business of ours either.
test-latest test-oldest: test-%:
	@$(PYTHON) tools/check_python.py
	rm -rf build/$*
	$(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip install --quiet uv
	build/$*/bin/uv pip install --quiet --python build/$*/bin/python --resolution $(RESOLUTION) \
		--requirements pyproject.toml $(EXTRAS:%=--extra %)
	build/$*/bin/uv pip install --quiet --python build/$*/bin/python --no-deps --editable .
	build/$*/bin/python -m pytest -q -n 2 $(WARNINGS) $(ARGS)

test-latest: RESOLUTION = highest
test-latest:  ## run every test on the newest versions that pyproject.toml admits (PYTHON=python3.13 names an interpreter)
test-oldest: RESOLUTION = lowest-direct
test-oldest: WARNINGS = -W default::DeprecationWarning
test-oldest:  ## run every test on the oldest versions that pyproject.toml admits, in build/oldest

check: $(COMPLETE)  ## lint, formatting, types, and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/project/test_imports.py

format: $(READY)  ## write the source as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)  ## build the wheel and try it in a clean venv, without extras
	rm -rf dist $(CLEAN)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m venv $(CLEAN)
	$(CLEAN)/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	$(CLEAN)/bin/python -I tools/check_wheel.py

docs: $(PAGES)  ## build the documentation into build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Open build/site/index.html'

mutants: $(COMPLETE)  ## break the source in hundreds of small ways; each must fail the tests (ARGS=training: the training half)
	$(BIN)/python tools/mutants.py $(ARGS)

bench: $(COMPLETE)  ## GAE against its rivals on this machine: docs/benchmarks
	$(BIN)/python -m benchmarks.estimators $(ARGS)

bench-train: $(COMPLETE) $(RLLIB)/ready  ## PPO against its rivals, bench-ladder, bench-actors, for hours (ARGS=--quick tries it out): docs/benchmarks
	$(BIN)/python -m benchmarks.train $(ARGS)
	$(BIN)/python -m benchmarks.ladder $(filter --quick,$(ARGS))
	$(BIN)/python -m benchmarks.actors --rllib $(RLLIB)/bin/python $(filter --quick,$(ARGS))

bench-ladder: $(COMPLETE)  ## the other algorithms on environments against theirs, for ten minutes: docs/benchmarks
	$(BIN)/python -m benchmarks.ladder $(ARGS)

bench-actors: $(COMPLETE) $(RLLIB)/ready  ## IMPALA and APPO with actors against RLlib's, for half an hour: docs/benchmarks
	$(BIN)/python -m benchmarks.actors --rllib $(RLLIB)/bin/python $(ARGS)

bench-language: $(COMPLETE)  ## GRPO against TRL on this machine, for half an hour (ARGS=--quick tries it out): docs/benchmarks
	$(BIN)/python -m benchmarks.language $(ARGS)

results: $(READY)  ## train and evaluate what docs/results.md shows, for days (ARGS="trpo-Hopper a2c" selects; stop and go on at will)
	$(BIN)/python tools/results.py $(ARGS)

clean:  ## remove what make made, the virtual environment too; run folders stay
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# Made anew only when the requirements move; touched last, so that a broken install is tried again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) tools/check_python.py
	@echo 'Installing what training needs into .venv (2.8 GB on disk with a CPU build of PyTorch; a few minutes)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[control,envpool,language,dev]'
	@touch $@

# Triton comes without its own libraries for CUDA here: its interpreter runs our kernels on the CPU.
$(COMPLETE): $(READY)
	@echo 'Installing what tests and benchmarks need besides (4.4 GB in all; a few minutes more)'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[atari,control,data,envpool,export,language,lora,jax,ray,tune,rivals,dev]' \
		'triton; sys_platform == "linux"'
	@touch $@

# RLlib admits one version of Gymnasium only, an older one than ours: it gets that beside it, and all else from .venv.
$(RLLIB)/ready: $(COMPLETE)
	$(PYTHON) -m venv $(RLLIB)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(RLLIB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
	$(RLLIB)/bin/python -m pip install --quiet 'ray[rllib]'
	@touch $@

$(PAGES): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@
