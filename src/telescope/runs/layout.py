"""The paths of a run's files in its folder. Leaves out their content, and who may write (`folder.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from telescope.runs.formats.log import METRICS, TENSORBOARD

CHECKPOINT = "checkpoint.safetensors"
REPLAY = "replay"


def _at(name: str, what: str) -> Any:
    """A property: the path of a file or folder within the run's folder."""
    return property(lambda run: run.place / name, doc=what)


class Layout(ABC):
    """The paths of a run's files within its folder."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The folder."""

    config_path = _at("config.toml", "The settings, for readers; run.json has them too.")
    checkpoint_path = _at(CHECKPOINT, "The state to resume from.")
    best_path = _at("best.safetensors", "Each seed's agent with the best evaluation.")
    replay_path = _at(REPLAY, "The steps of replay buffers, beside the checkpoint.")
    metrics_path = _at(METRICS, "One row per iteration and seed.")
    curves_path = _at("curves.png", "The learning curve.")
    tensorboard_path = _at(TENSORBOARD, "The folder of TensorBoard event files.")
    # language models only
    samples_path = _at("samples.csv", "Some completions with their scores.")
    health_path = _at("health.csv", "Problems found in training.")
    model_path = _at("model", "The folder of the model, for `from_pretrained`.")
    adapter_path = _at("adapter", "The folder of its LoRA adapter, for peft.")
    critic_path = _at("critic", "The folder of PPO's critic, for another run.")
