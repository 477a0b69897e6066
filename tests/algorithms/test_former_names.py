"""Settings under the names that they had before: in Python, in files, as flags, and in the folders of older runs.

Leaves out modules that have moved (`tests/project/test_imports.py`).
"""

import contextlib
import csv
import dataclasses
import warnings

import pytest
import tomli_w
from test_laws import comparable

import telescope
from telescope import runner
from telescope.algorithms import CONFIGS, config_class, find, grpo, ppo, rlhf
from telescope.cli import main
from telescope.commands.train import train_arguments
from telescope.renamed import COLUMNS, FIELDS, PARTS, columns_today, current
from telescope.runs import folder, read_config
from telescope.runs.folder import RunFolder
from telescope.runs.formats.config import to_mapping, write_mapping

SUBJECTS = {"ppo": "CartPole-v1", "rlhf": "lm/taste", "reward_model": "lm/taste"}
CASES = [  # algorithm, former settings, the same as flags, the settings of today
    ("ppo", {"clip_value_loss": True}, ["--clip-value-loss"], {"value_clip": 0.2}),
    (
        "ppo",
        {"clip_value_loss": True, "value_clip": 0.5},
        ["--value-clip", "0.5", "--clip-value-loss"],
        {"value_clip": 0.5},
    ),
    ("ppo", {"clip_value_loss": False, "value_clip": 0.5}, ["--no-clip-value-loss"], {"value_clip": None}),
    (
        "ppo",
        {"gru": 8, "sequence_length": 64},
        ["--gru", "8", "--sequence-length", "64"],
        {"sequence_length": 64, "memory": "gru", "memory_size": 8, "shared_memory": True},
    ),
    ("rlhf", {"target_kl": 6.0}, ["--target-kl", "6"], {"kl_limit": 6.0}),
    ("grpo", {"clip": [0.2, 0.28]}, ["--clip", "0.2", "0.28"], {"clip": 0.2, "clip_high": 0.28}),
    *[
        (name, {"anneal_learning_rate": on}, [f"--{'' if on else 'no-'}anneal-learning-rate"], {"min_lr_ratio": ratio})
        for name in ("grpo", "rlhf", "sft", "reward_model")
        for on, ratio in ((True, 0.1), (False, 1.0))
    ],
]


def test_every_former_name_is_tried_with_every_algorithm_that_had_it():
    kinds = {name: {kind.__name__ for kind in config_class(name).__mro__} for name in CONFIGS}
    owners = {former: row.owner for former, row in FIELDS.items()} | {former: row[0] for former, row in PARTS.items()}
    had = {(name, former) for name in CONFIGS for former, owner in owners.items() if owner in kinds[name]}
    assert had == {(name, former) for name, settings, *_ in CASES for former in owners.keys() & settings.keys()}


@pytest.mark.parametrize(("name", "former", "flags", "now"), CASES)
def test_former_names_of_settings_mean_what_they_meant(name, former, flags, now, tmp_path, capsys):
    cls, subject = config_class(name), SUBJECTS.get(name, "lm/addition")
    wanted = cls(**now)
    with pytest.warns(DeprecationWarning, match=list(now)[-1]) as told:
        assert cls(**former) == wanted
    assert told[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=list(now)[-1]):
        assert dataclasses.replace(cls(), **former) == wanted
    (tmp_path / "settings.toml").write_text(tomli_w.dumps(former))
    with pytest.warns(DeprecationWarning, match=list(now)[-1]):
        assert read_config(tmp_path / "settings.toml", cls) == wanted
    usual = train_arguments(name, subject, [])[0]
    for words in (flags, ["--config", str(tmp_path / "settings.toml")]):
        assert train_arguments(name, subject, [*words, "--seed", "3"])[0] == dataclasses.replace(usual, **now, seed=3)
        assert f"note: {next(iter(former))} is" in capsys.readouterr().err


def test_names_of_today_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current(ppo.PPO, {"value_clip": 0.1, "target_kl": 0.2}) == {"value_clip": 0.1, "target_kl": 0.2}
        ppo.PPO(value_clip=0.1, target_kl=0.2)


# Runs that began before

SMALL = {"prompts": 4, "group": 4, "eval_prompts": 4, "eval_every": 2, "threads": 1, "max_tokens": 4, "total_steps": 4}
SMALL |= {"warm_start": 0.0, "beta": 0.05}
RUNS = {
    "ppo": ppo.PPO(
        num_envs=2, num_steps=8, minibatch_size=8, epochs=1, total_steps=64, value_clip=0.1, threads=1, compile="off"
    ),
    "grpo": grpo.GRPO(clip=0.1, clip_high=0.3, min_lr_ratio=1.0, **SMALL),
    "rlhf": rlhf.RLHF(kl_limit=1.0, kl_horizon=100, **SMALL),
}
SETTINGS = {
    "ppo": {"clip_value_loss": True, "value_clip": 0.1},
    "grpo": {"clip": [0.1, 0.3], "clip_high": None, "anneal_learning_rate": False, "min_lr_ratio": None},
    "rlhf": {"target_kl": 1.0, "kl_limit": None, "anneal_learning_rate": True, "min_lr_ratio": None},
}
"""What their configurations held before; None: nothing of this name."""
COLUMN = {
    "ppo": {},
    "grpo": {"clipped": "clip_fraction"},
    "rlhf": {"clipped": "clip_fraction", "kl_completion": "kl_reference", "kl_reference": None},
}
"""What their columns were called before."""


def train_as_before(name, out, *, stop):
    """A run by today's trainer that writes what it wrote before; with `stop` it is killed soon after a checkpoint."""

    def written(config):
        return {key: value for key, value in (to_mapping(config) | SETTINGS[name]).items() if value is not None}

    def write(self, metrics, real=runner.Writer.write):
        now = {key: COLUMN[name].get(key, key) for key in metrics.rows[0]}
        metrics.rows = [{now[key]: value for key, value in row.items() if now[key]} for row in metrics.rows]
        real(self, metrics)
        if stop and metrics.step == RUNS[name].total_steps // 2:
            self.checkpoint(metrics)
        if stop and metrics.step > RUNS[name].total_steps // 2:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(InterruptedError):
        patch.setattr(folder, "to_mapping", written)
        patch.setattr(folder, "write_config", lambda path, config: write_mapping(path, written(config)))
        patch.setattr(runner.Writer, "write", write)
        telescope.train(RUNS[name], out, checkpoint_seconds=1e9)
    return RunFolder.open(out)


def table(path):
    with (path / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_began_under_former_names_goes_on_bit_for_bit_and_keeps_them(name, tmp_path, capsys):
    whole = train_as_before(name, tmp_path / "whole", stop=False)
    half = train_as_before(name, tmp_path / "half", stop=True)
    assert set(half.config_mapping()) & FIELDS.keys() or name == "grpo"
    assert len(table(half.path)) < len(table(whole.path))
    assert main(["train", "--resume", str(half.path)]) == 0, capsys.readouterr().err
    assert table(half.path) == table(whole.path)
    assert (half.path / "config.toml").read_bytes() == (whole.path / "config.toml").read_bytes()
    found, wanted = (RunFolder.open(run.path).load_checkpoint() for run in (half, whole))
    assert comparable(found) == comparable(wanted)
    assert telescope.load(half.path).config == RUNS[name]
    longer = 2 * RUNS[name].total_steps
    assert main(["train", "--resume", str(half.path), "--total-steps", str(longer)]) == 0
    again = RunFolder.open(half.path)
    assert again.load_config(config_class(name)) == dataclasses.replace(RUNS[name], total_steps=longer)
    assert again.config_mapping().keys() == whole.config_mapping().keys()
    assert table(half.path)[0].keys() == table(whole.path)[0].keys()
    capsys.readouterr()
    for now, former in COLUMN[name].items():
        for metric in filter(None, (now, former)):
            if (now, former) != ("kl_reference", None):
                out = ["--out", str(tmp_path / f"{metric}.svg")]
                assert main(["plot", str(half.path), "--metric", metric, *out]) == 0
        said = capsys.readouterr().err
        assert (f"note: {former} is called {now} now" in said) == bool(former), said


@pytest.mark.parametrize("name", COLUMNS)
def test_former_names_of_columns_are_none_of_today_or_another_quantity(name):
    today = find(name).STATISTICS
    for former, now in COLUMNS[name].items():
        assert now in today
        assert former not in today or former == "kl_reference"
    assert columns_today(COLUMNS[name], today) == {column: column for column in today}


def test_a_checkpoint_of_ppo_from_before_learners_were_trees_goes_on(tmp_path):
    config = dataclasses.replace(RUNS["ppo"], total_steps=48)
    first, *_, last = [(step.rows, step.state) for step in ppo.train(config)]
    state = first[1] | {"optimiser": first[1]["learner"]["adam"]}
    del state["learner"]
    *_, resumed = [(step.rows, step.state) for step in ppo.train(config, state)]
    assert comparable(resumed) == comparable(last)
