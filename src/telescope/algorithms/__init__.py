"""One file per algorithm, with its config, its presets and its training loop.

`find` returns the module of a name on the command line. The modules never import each other.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

CONFIGS = {
    "ppo": "PPO",
    "a2c": "A2C",
    "a3c": "A3C",
    "impala": "IMPALA",
    "appo": "APPO",
    "actor_critic": "OneStep",
    "reinforce": "Reinforce",
    "trpo": "TRPO",
    "group_episodes": "GroupEpisodes",
    "bc": "BC",
    "dqn": "DQN",
    "sac": "SAC",
    "pqn": "PQN",
    "td_lambda": "TDLambda",
    "sarsa_lambda": "SarsaLambda",
    "stream_ac": "StreamAC",
    "stream_q": "StreamQ",
    "stream_td": "StreamTD",
    "grpo": "GRPO",
    "rlhf": "RLHF",
    "sft": "SFT",
    "reward_model": "RewardModelling",
}
"""Module name → the name of its config class."""
LANGUAGE = {"grpo", "rlhf", "sft", "reward_model"}
"""Algorithms that train language models; all others act in environments."""
PRESETS = {
    "distributional_ppo": "ppo",
    "npg": "trpo",
    "qr_dqn": "dqn",
    "gradient_ppo": "ppo",
    "crossq": "sac",
    "true_online_td_lambda": "td_lambda",
    "true_online_sarsa_lambda": "sarsa_lambda",
    **dict.fromkeys(("dr_grpo", "dapo", "gspo", "gspo_token", "rloo", "cispo", "reinforce"), "grpo"),
}
"""Presets with a name of their own on the command line → their module. Its `preset` takes the name as `name`."""

FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".feather", ".xlsx", ".gz", ".zst", ".zip")
"""Endings of data files. The first four are supported; the others are listed so that the error message says so."""
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files in a folder that `datasets` saved."""


def meant(name: str, subject: str | None) -> tuple[str, dict[str, str]]:
    """The module for a name on the command line, and further arguments for its `preset`.

    `gspo` is a row of `grpo`. On a language task (`lm/…`, `verifiers:…`, or a data file) `ppo` is `rlhf`, and
    `reinforce` another row of `grpo`. On an environment `grpo` and its rows are `group_episodes`. This imports no
    module.
    """
    text = subject is not None and (
        subject.startswith(("lm/", "verifiers:"))
        or subject.lower().endswith(FILES)
        or any(os.path.isfile(os.path.join(subject, file)) for file in SAVED)
    )
    if name == "reinforce" and not text:
        return name, {}
    if (name == "grpo" or PRESETS.get(name) == "grpo") and subject is not None and not text:
        return "group_episodes", {"name": name}
    if name in PRESETS:
        return PRESETS[name], {"name": name}
    if name == "ppo" and text:
        return "rlhf", {}
    _require_known(name, (*CONFIGS, *PRESETS))
    return name, {}


def find(name: str) -> ModuleType:
    """The module of an algorithm. It has `train(config, resume=None)`, `preset(env)` and the config class."""
    _require_known(name, tuple(CONFIGS))
    try:
        return importlib.import_module(f"telescope.algorithms.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "telescope":
            raise
        extra = "language" if name in LANGUAGE else "control"
        message = f'{name} needs {error.name}: pip install "telescope-rl[{extra}]"'
        raise ImportError(message, name=error.name) from error


def _require_known(name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"algorithm is {name!r}; expected one of {', '.join(known)}{hint}")


def family(name: str) -> ModuleType:
    """The module with `execution(config)` and `try_out(config)` for all algorithms of this kind."""
    return importlib.import_module(f"telescope.{'language' if name in LANGUAGE else 'control'}.execution")


def config_class(name: str) -> Any:
    """The config dataclass of an algorithm."""
    return getattr(find(name), CONFIGS[name])


def algorithm_of(config: Any) -> str:
    """The name of the algorithm that a config belongs to."""
    names = [name for name, cls in CONFIGS.items() if cls == type(config).__name__]
    if not names or type(config) is not config_class(names[0]):
        expected = ", ".join(f"{name}.{cls}" for name, cls in CONFIGS.items())
        raise ValueError(f"config is a {type(config).__name__}; expected one of telescope.algorithms: {expected}")
    return names[0]


def called(config: Any) -> str:
    """The name that a user types: `gspo` for a row of `grpo`, `ppo` for `rlhf`."""
    algorithm = algorithm_of(config)
    return str(getattr(config, "objective", {"rlhf": "ppo"}.get(algorithm, algorithm)))


def subject_field(config: Any) -> str:
    """The field with the subject of a run: `task` for language models, `env` for everything else."""
    return "task" if hasattr(config, "task") else "env"


def __getattr__(name: str) -> ModuleType:
    if name in CONFIGS:
        return find(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
