"""AdamW over the models that a run trains, and functions that save and restore their parameters by name.

Leaves out the loss, and when to make a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from telescope.language import parallel
from telescope.language.config import LanguageConfig

BETAS = (0.9, 0.95)


class Optimiser:
    """AdamW over several models, each with its own learning rate and gradient norm.

    Weights of another dtype than float32 have a float32 copy that is optimised. A step of 1e-6 is lost in a bfloat16
    weight, whose neighbours are 0.4% apart; in the copy such steps add up.
    """

    def __init__(self, config: LanguageConfig, trained: dict[str, nn.Module], rate: float | None = None) -> None:
        self.config, self.updates = config, 0
        rate = config.learning_rate if rate is None else rate
        rates = {"value": getattr(config, "value_learning_rate", rate)}
        self.weights, groups = list[Tensor](), list[dict[str, Any]]()
        for name, model in trained.items():
            weights = [p for p in model.parameters() if p.requires_grad]
            if weights:
                copies = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in weights]
                groups.append({"params": copies, "lr": 0.0, "rate": rates.get(name, rate)})
            self.weights += weights
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=config.weight_decay, fused=True)
        self.parameters: list[Tensor] = [p for group in self.adam.param_groups for p in group["params"]]

    def step(self, progress: float) -> float:
        """Clip gradients, make a step, clear gradients. Return the first model's gradient norm. progress: 0 to 1."""
        norms = []
        for weight, parameter in self._copied():
            parameter.grad = None if weight.grad is None else weight.grad.float()
        parallel.sum_gradients(self.parameters)
        factor = min(1.0, (self.updates + 1) / max(1, self.config.lr_warmup))
        factor *= 1 - (1 - self.config.min_lr_ratio) * progress
        for group in self.adam.param_groups:
            norms.append(parallel.clip_gradients(group["params"], self.config.max_grad_norm))
            group["lr"] = group["rate"] * factor
        if not all(np.isfinite(norms)):
            raise FloatingPointError(
                f"the gradient is no longer finite at optimiser step {self.updates + 1}; a lower learning_rate or "
                "max_grad_norm usually helps"
            )
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, parameter in self._copied():
                weight.grad = None
                weight.copy_(parameter)
        self.updates += 1
        return norms[0]

    def _copied(self) -> list[tuple[Tensor, Tensor]]:
        """Weights with their float32 copies, if they have any."""
        pairs = zip(self.weights, self.parameters, strict=True)
        return [(weight, parameter) for weight, parameter in pairs if weight is not parameter]

    @property
    def learning_rate(self) -> float:
        return float(self.adam.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        moments = [self.adam.state.get(p, {}) for p in self.parameters]
        return {
            "updates": self.updates,
            "moments": [{name: parallel.whole(x.detach()).clone() for name, x in one.items()} for one in moments],
            "copies": [parallel.whole(parameter.detach()).cpu().clone() for _, parameter in self._copied()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        with torch.no_grad():
            for (_, parameter), saved in zip(self._copied(), state.get("copies", []), strict=True):
                parameter.copy_(parallel.like(saved, parameter))
        for parameter, moments in zip(self.parameters, state["moments"], strict=True):
            if any(x.shape != parameter.shape for name, x in moments.items() if name != "step"):
                raise ValueError(
                    f"resume holds moments of other shapes than {tuple(parameter.shape)} for a parameter; pass the "
                    "config of the run"
                )
            # a clone on the parameter's device, so that torch's allocator keeps the alignment
            self.adam.state[parameter] = {
                name: tensor.clone() if name == "step" else parallel.like(tensor, parameter)
                for name, tensor in moments.items()
            }


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters of a model by name (all of them, or its adapter), as copies on the CPU."""
    return {name: parallel.whole(p.detach()).cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All parameters of a model by name, trained or not, as copies on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def put_back(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Write saved parameters into a model of the same shape."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if name not in saved or saved[name].shape != parameter.shape:
                    raise ValueError(f"resume has no parameter {name} of shape {tuple(parameter.shape)}")
                parameter.copy_(saved[name])
