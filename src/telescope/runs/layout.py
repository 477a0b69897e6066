"""Where the files of a run lie in its folder. Leaves out what stands in them, and who may write (`folder.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from telescope.runs.formats.log import METRICS, TENSORBOARD

CHECKPOINT = "checkpoint.safetensors"


def _at(name: str, what: str) -> Any:
    """The path of a file or folder within the run's."""
    return property(lambda run: run.place / name, doc=what)


class Layout(ABC):
    """The paths of a run's files, from the folder that they lie in."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The folder."""

    config_path = _at("config.toml", "The settings, for the reader; run.json has them too.")
    checkpoint_path = _at(CHECKPOINT, "The state to resume from.")
    best_path = _at("best.safetensors", "The state that evaluated best.")
    metrics_path = _at(METRICS, "One row per iteration and seed.")
    curves_path = _at("curves.png", "The learning curve.")
    tensorboard_path = _at(TENSORBOARD, "The folder of TensorBoard event files.")
    # of a language model
    samples_path = _at("samples.csv", "Some completions with their scores.")
    health_path = _at("health.csv", "What looked wrong in the training.")
    model_path = _at("model", "The folder of the model as `from_pretrained` loads it.")
    adapter_path = _at("adapter", "The folder of its LoRA adapter as peft loads it.")
