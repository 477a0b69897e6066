"""Where the files of a run lie in its folder. Leaves out what stands in them, and who may write (`folder.py`).

run.json config.toml metrics.csv checkpoint.safetensors best.safetensors curves.png tensorboard/ .lock
of a language model: model/ adapter/ samples.csv health.csv
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from telescope.runs.formats.log import METRICS, TENSORBOARD

CHECKPOINT = "checkpoint.safetensors"


class Layout(ABC):
    """The paths of a run's files, from the folder that they lie in."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The folder."""

    @property
    def config_path(self) -> Path:
        """config.toml."""
        return self.place / "config.toml"

    @property
    def checkpoint_path(self) -> Path:
        """checkpoint.safetensors, the state to resume from."""
        return self.place / CHECKPOINT

    @property
    def best_path(self) -> Path:
        """best.safetensors, the state that evaluated best."""
        return self.place / "best.safetensors"

    @property
    def metrics_path(self) -> Path:
        """metrics.csv, one row per iteration and seed."""
        return self.place / METRICS

    @property
    def samples_path(self) -> Path:
        """samples.csv, some completions of a language model with their scores."""
        return self.place / "samples.csv"

    @property
    def health_path(self) -> Path:
        """health.csv, what looked wrong in the training of a language model."""
        return self.place / "health.csv"

    @property
    def model_path(self) -> Path:
        """The folder of a language model as `from_pretrained` loads it."""
        return self.place / "model"

    @property
    def adapter_path(self) -> Path:
        """The folder of its LoRA adapter as peft loads it."""
        return self.place / "adapter"

    @property
    def curves_path(self) -> Path:
        """curves.png, the learning curve."""
        return self.place / "curves.png"

    @property
    def tensorboard_path(self) -> Path:
        """The folder of TensorBoard event files."""
        return self.place / TENSORBOARD
