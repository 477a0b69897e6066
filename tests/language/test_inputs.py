"""A run is made from data, a reward and models: what changed since it began is told, and a resume refuses it.

Leaves out what continues a run bit for bit (`test_language_training.py`).
"""

import json
import re
import shutil

import pytest

from small_tokenizers import kind
from telescope import answers
from telescope.algorithms.grpo import GRPO
from telescope.algorithms.sft import SFT
from telescope.cli import main
from telescope.language.data.inputs import ABSENT, inputs, resolved
from telescope.language.models import causal as models

QUICK = ["--threads", "1", "--eval-prompts", "4", "--prompts", "4", "--group", "2", "--minibatches", "1"]
QUICK += ["--max-tokens", "3", "--eval-every", "0"]
CODE = "from helper import size\ndef score(completions):\n    return [size(c) for c in completions]\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Data, a reward file with a module beside it, and a model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    models.save(models.tiny(3), models.characters(), tmp_path / "base")
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}+1=", "answer": "2"}) + "\n" for i in range(40))
    )
    (tmp_path / "helper.py").write_text("def size(text): return float(len(text))\n")
    (tmp_path / "reward.py").write_text(CODE)
    return tmp_path


CONFIG = {"task": "data.jsonl", "model": "base", "reward": "reward.py:score"}


def append(path, text="\n"):
    path.write_bytes(path.read_bytes() + text.encode())


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("data.jsonl", "task"),
        ("reward.py", "reward"),
        ("helper.py", "reward"),
        ("base/model.safetensors", "model"),
        ("base/config.json", "model"),
        ("base/tokenizer.json", "model"),
    ],
)
def test_each_file_that_decides_a_run_is_known_by_its_bytes(made, file, field):
    before = inputs(GRPO(**CONFIG))
    assert before.keys() == {"task", "model", "reward"}
    append(made / file)
    after = inputs(GRPO(**CONFIG))
    assert [name for name in before if before[name] != after[name]] == [field]


def test_what_does_not_decide_a_run_is_not_known(made):
    before = inputs(GRPO(**CONFIG))
    (made / "base" / "README.md").write_text("hello")
    (made / "other.py").write_text("x = 1\n")
    assert inputs(GRPO(**CONFIG)) == before
    assert inputs(GRPO()) == {}
    assert inputs(SFT(task="lm/sort", model="somebody/model-that-is-not-here")) == {}


def test_what_is_gone_is_absent(made):
    config = resolved(GRPO(**CONFIG))
    for name in ("data.jsonl", "reward.py"):
        (made / name).unlink()
    shutil.rmtree(made / "base")
    assert set(inputs(config).values()) == {ABSENT}


def test_a_reward_model_and_the_base_of_an_adapter_are_known(made):
    (made / "rm" / "model").mkdir(parents=True)
    (made / "rm" / "model" / "head.safetensors").write_text("1")
    (made / "adapter").mkdir()
    (made / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(made / "base")}))
    config = GRPO(task="lm/sort", model="adapter", reward="rm")
    before = inputs(config)
    append(made / "rm" / "model" / "head.safetensors")
    append(made / "base" / "model.safetensors")
    after = inputs(config)
    assert before.keys() == {"model", "reward"}
    assert all(before[name] != after[name] for name in before)


def test_paths_are_whole_and_names_stay(made):
    config = resolved(GRPO(**CONFIG))
    assert (config.task, config.model) == (str(made / "data.jsonl"), str(made / "base"))
    assert config.reward == f"{made / 'reward.py'}:score"
    assert resolved(config) == config
    named = GRPO(task="lm/sort", model="somebody/model")
    assert resolved(named) == named


def test_a_run_goes_on_from_any_directory_and_refuses_what_has_changed(made, monkeypatch, capsys):
    """A changed base, data or reward function went unnoticed, and metrics became those of another run."""
    flags = ["--model", "base", "--reward", "reward.py:score", "--beta", "0.1", "--total-steps", "1", *QUICK]
    assert main(["train", "grpo", "data.jsonl", "--out", "run", *flags]) == 0
    elsewhere = made / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = str(made / "run")
    assert main(["train", "--resume", run, "--total-steps", "2"]) == 0
    assert main(["eval", run, "--json"]) == 0
    capsys.readouterr()
    (made / "data.jsonl").write_text("".join(json.dumps({"prompt": f"{i}=", "answer": "1"}) + "\n" for i in range(40)))
    append(made / "base" / "config.json")
    record = (made / "run" / "run.json").read_bytes()
    assert main(["train", "--resume", run, "--total-steps", "3"]) != 0
    said = capsys.readouterr().err
    assert re.search(r"model \(.*base\) has changed and task \(.*data.jsonl\) has changed", said), said
    assert "--allow-inexact" in said
    assert (made / "run" / "run.json").read_bytes() == record
    with pytest.warns(UserWarning, match="since the run began"):
        answers.load(run)
    assert main(["eval", run, "--json"]) == 0
    assert "has changed since the run began" in capsys.readouterr().err
    assert main(["train", "--resume", run, "--total-steps", "3", "--allow-inexact"]) == 0
    assert main(["train", "--resume", run, "--total-steps", "4"]) == 0  # what was allowed is the run's from then on


def test_an_evaluation_needs_no_base_and_says_what_it_could_not_measure(made, capsys):
    flags = ["--model", "base", "--total-steps", "1", "--batch-size", "4", "--threads", "1", "--eval-prompts", "4"]
    assert main(["train", "sft", "data.jsonl", "--out", "run", *flags]) == 0
    shutil.rmtree(made / "base")
    capsys.readouterr()
    assert main(["eval", "run", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["kl_completion"] is None
    assert re.search(r"model \(.*base\) is gone since the run began", told.err)
    assert main(["eval", "run"]) == 0
    assert re.search(r"kl_completion +-\n", capsys.readouterr().out)
    assert main(["train", "--resume", "run", "--total-steps", "2"]) != 0
    assert "is gone" in capsys.readouterr().err


def test_a_model_that_is_refused_late_leaves_no_folder(made, capsys):
    """The next try found a run in its way, and no checkpoint to go on from."""
    tokenizer = kind("byte level")
    tokenizer.save_pretrained(made / "base")  # of more tokens than the model has
    assert main(["train", "grpo", "data.jsonl", "--out", "run", "--model", "base", "--total-steps", "1", *QUICK]) != 0
    assert "Traceback" not in capsys.readouterr().err
    assert not (made / "run").exists()
