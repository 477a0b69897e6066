"""Settings under the names that they had before: in Python, in files, as flags, and in the folders of older runs.

Leaves out modules that have moved (`tests/project/test_imports.py`).
"""

import dataclasses
import warnings

import pytest
import tomli_w

from telescope.algorithms import CONFIGS, config_class, ppo
from telescope.commands.train import _train_arguments
from telescope.renamed import FIELDS, current
from telescope.runs import read_config

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
    had = {(name, former) for name in CONFIGS for former, row in FIELDS.items() if row.owner in kinds[name]}
    assert had == {(name, former) for name, settings, *_ in CASES for former in FIELDS.keys() & settings.keys()}


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
    usual = _train_arguments(name, subject, [])[0]
    for words in (flags, ["--config", str(tmp_path / "settings.toml")]):
        assert _train_arguments(name, subject, [*words, "--seed", "3"])[0] == dataclasses.replace(usual, **now, seed=3)
        assert f"note: {next(iter(former))} is" in capsys.readouterr().err


def test_names_of_today_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current(ppo.PPO, {"value_clip": 0.1, "target_kl": 0.2}) == {"value_clip": 0.1, "target_kl": 0.2}
        ppo.PPO(value_clip=0.1, target_kl=0.2)
