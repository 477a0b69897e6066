"""Random initial weights from a seed alone. torch's global generator is neither read nor changed.

Leaves out the random numbers of training, which are NumPy's (`language/randomness.py`).
"""

from __future__ import annotations

from typing import Any

import torch

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # a private class, which may move

    class TorchDispatchMode:  # type: ignore[no-redef]
        """In its place: torch's global generator begins with the seed, and is set back after the block."""

        seed: int

        def __enter__(self) -> None:
            self._forked = torch.random.fork_rng()
            self._forked.__enter__()
            torch.manual_seed(self.seed)

        def __exit__(self, *error: Any) -> None:
            self._forked.__exit__(*error)


class Seeded(TorchDispatchMode):
    """During the block, all random tensor operations of this thread draw from one separate generator."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.generators = seed, dict[str, torch.Generator]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        takes = any(argument.name == "generator" for argument in func._schema.arguments)
        if takes and kwargs.get("generator") is None:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            kwargs["generator"] = self._generator(tensors[0].device if tensors else torch.device("cpu"))
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if device.type == "meta":
            return None
        name = str(device)
        if name not in self.generators:
            self.generators[name] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[name]
