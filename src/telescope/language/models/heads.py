"""Critics and reward models: one number per token from a causal LM's hidden states.

A head's weights lie beside those of its trunk. It leaves out how either is trained.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

from torch import Tensor, nn

from telescope.language.models import pretrained
from telescope.language.models.states import completion_states, output_of, trunk_of

HEAD = "head.safetensors"


class Scalar(nn.Module):
    """One number per token from hidden states, V of the state behind it or a score; the output layer begins at 0.

    With a trunk of its own it is a model; without one it is a head on states that are given.
    """

    def __init__(self, width: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def on(cls, policy: nn.Module) -> Scalar:
        """A network of its own that begins as a copy of a policy's trunk, and learns in what that does (an adapter)."""
        weight = output_of(policy)
        trunk = copy.deepcopy(trunk_of(policy)).eval()
        return cls(weight.shape[1], trunk).to(weight.device, weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] → [...], float32."""
        return self.head(states).squeeze(-1).float()  # type: ignore[no-any-return]

    def along(
        self, prompts: tuple[Tensor, Tensor], completions: tuple[Tensor, Tensor], group: int = 1, *, after: bool = True
    ) -> Tensor:
        """Of the states before each token and, with `after`, behind the last; by its own trunk."""
        assert self.trunk is not None
        states = completion_states(self.trunk, prompts, completions, group=group, after=after)
        return self(states)  # type: ignore[no-any-return]


def save_head(weights: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """The head's weights beside those of the trunk."""
    from safetensors.torch import save_file

    save_file(weights, Path(path) / HEAD)


def load_head(network: Scalar, path: str | os.PathLike[str]) -> None:
    """What `save_head` wrote; ValueError where it is cut, or of a trunk of another width."""
    saved, own = pretrained.weights(Path(path) / HEAD), network.head.state_dict()
    there, expected = ({name: list(x.shape) for name, x in tensors.items()} for tensors in (saved, own))
    if there != expected:
        raise pretrained.ModelError(f"{Path(path) / HEAD} holds {there}; this reward model needs {expected}")
    network.head.load_state_dict(saved)


def require_head(folder: str) -> Path:
    """The transformers folder within the run folder of a reward model; ValueError where it is none."""
    place = Path(folder) / "model"
    if not (place / HEAD).is_file():
        raise ValueError(f"reward is {folder!r}, which holds no reward model ({place / HEAD} is missing)")
    return place
