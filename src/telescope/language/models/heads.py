"""Critics and reward models: one number per token from a causal LM's hidden states.

A head's weights are saved beside those of its trunk. Leaves out training.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

from torch import Tensor, nn

from telescope.language.models import pretrained
from telescope.language.models.states import completion_states, output_of, trunk_of

HEAD = "head.safetensors"


class Scalar(nn.Module):
    """One number per token from hidden states: the value of the state, or a score. The output layer begins at 0.

    With a trunk it is a model of its own. Without one it is a head on given hidden states.
    """

    def __init__(self, width: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def on(cls, policy: nn.Module) -> Scalar:
        """A network of its own that begins as a copy of a policy's trunk, and trains the same weights (or adapter)."""
        weight = output_of(policy)
        trunk = copy.deepcopy(trunk_of(policy)).eval()
        return cls(weight.shape[1], trunk).to(weight.device, weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states [..., D] → numbers [...], in float32."""
        return self.head(states).squeeze(-1).float()  # type: ignore[no-any-return]

    def along(
        self,
        prompts: tuple[Tensor, Tensor],
        completions: tuple[Tensor, Tensor],
        group: int = 1,
        *,
        after: bool = True,
        packed: bool | None = False,
    ) -> Tensor:
        """Numbers for the states before each token and, with `after`, after the last one, from its own trunk."""
        assert self.trunk is not None
        states = completion_states(self.trunk, prompts, completions, group=group, after=after, packed=packed)
        return self(states)  # type: ignore[no-any-return]


def save_head(weights: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Save the head's weights beside those of the trunk."""
    from safetensors.torch import save_file

    save_file(weights, Path(path) / HEAD)


def load_head(network: Scalar, path: str | os.PathLike[str]) -> None:
    """Load what `save_head` wrote. A ValueError if it is cut, or belongs to a trunk of another width."""
    saved, own = pretrained.weights(Path(path) / HEAD), network.head.state_dict()
    there, expected = ({name: list(x.shape) for name, x in tensors.items()} for tensors in (saved, own))
    if there != expected:
        raise pretrained.ModelError(f"{Path(path) / HEAD} holds {there}; this model needs {expected}")
    network.head.load_state_dict(saved)


def reward_folder(folder: str) -> Path:
    """The folder with a reward model's files: `model` of a run folder, or a transformers folder itself."""
    inner = Path(folder) / "model"
    return inner if inner.is_dir() else Path(folder)


def is_classifier(place: Path) -> bool:
    """Whether it holds a transformers model for sequence classification."""
    try:
        about = json.loads((place / "config.json").read_bytes())
        return any("ForSequenceClassification" in str(name) for name in about.get("architectures") or ())
    except (OSError, ValueError, AttributeError):
        return False


CRITIC = "critic"
"""The folder of a run's critic."""


def critic_folder(folder: str) -> Path:
    """The folder with the files of a run's critic, of a reward model's run, or the folder itself."""
    places = (Path(folder) / CRITIC, Path(folder) / "model")
    return next((place for place in places if (place / HEAD).is_file()), Path(folder))


def require_critic(folder: str, *, own: bool) -> Path:
    """The folder of the critic that a run of PPO left, or of a reward model. own: it must be a whole network."""
    place = critic_folder(folder)
    if not (place / HEAD).is_file():
        raise ValueError(f"value_start is {folder!r}, which holds no critic ({place / HEAD} is missing)")
    if own != (place / "config.json").is_file():
        kind, other = ("a head on its policy", "head") if own else ("a network of its own", "own")
        raise ValueError(f"value_start is {folder!r}, which holds {kind}; use value_model {other}")
    return place


def require_head(folder: str) -> Path:
    """The transformers folder of a reward model: one that a run trained, or one for sequence classification."""
    place = reward_folder(folder)
    if not (place / HEAD).is_file() and not is_classifier(place):
        raise ValueError(
            f"reward is {folder!r}, which holds no reward model ({place / HEAD} is missing, and config.json names no "
            "…ForSequenceClassification)"
        )
    return place
