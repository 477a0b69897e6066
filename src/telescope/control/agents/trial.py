"""Try a user's own network once when a run begins, so that errors name the shapes that do not fit.

The built-in networks need no trial. `networks.py` says what a network must do.
"""

# S seeds, N observations, D observation size, K policy outputs
from __future__ import annotations

import copy
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from telescope.control.agents.actor import ActorCritic, Agents
from telescope.control.agents.networks import Network
from telescope.control.config import LearnerConfig
from telescope.control.experience.encoding import examples

REPLACED = ("hidden", "activation", "shared_network", "memory", "memory_size", "shared_memory", "log_std", "encoder")
"""Config fields that only the built-in networks use."""


def require_network(network: Any, *, recurrent: bool = True) -> None:
    """Raise a ValueError if it is not a `Network`, with the call that makes one. A memory needs `recurrent`."""
    if isinstance(network, Network):
        if network.memory and not recurrent:
            raise ValueError(
                f"network has a memory of {network.memory} numbers, but this algorithm learns from single steps; "
                "expected a network without `remember` (ppo, a2c, trpo, impala and their kin accept one with it)"
            )
        if bool(network.memory) != (network.remember is not None):
            raise ValueError("network has only one of memory and remember; a policy with a memory needs both")
        return
    is_module = isinstance(network, nn.Module) or (isinstance(network, type) and issubclass(network, nn.Module))
    name = network.__name__ if isinstance(network, type) else type(network).__name__
    fix = f"from_module(lambda: {name}(…))" if is_module else "a Network, an (init, apply) pair"
    raise ValueError(f"network is {name}; expected {fix}, see telescope.control.agents.networks")


def require_no_network(network: Any, reason: str) -> None:
    """Raise a ValueError if there is a network of the user's own."""
    if network is not None:
        raise ValueError(f"network is given, but {reason}; leave it out")


def without_effect(config: LearnerConfig) -> str:
    """A sentence about changed settings that a user's own network replaces; empty if there are none."""
    fields = type(config).__dataclass_fields__
    changed = [name for name in REPLACED if name in fields and getattr(config, name) != fields[name].default]
    return f"{', '.join(changed)} have no effect: network= replaces the built-in networks" if changed else ""


def try_network(agent: ActorCritic, population: Tensor, space: gym.Space, config: LearnerConfig) -> None:
    """Run `agent` on three observations, alone and for all seeds. Raises a ValueError if anything does not fit.

    The critic must return values [N], or [N, Q] with Q = `config.critic_outputs` > 0. Policy and value may have
    parameters in common if `config.may_share`.
    """
    observations = examples(space, shaped=agent.network.shaped).to(population.device)
    memory = torch.zeros((3, agent.network.memory), device=population.device) if agent.network.memory else None
    vector = population[0]
    answers = partial(_answers, agent, vector, config.critic_outputs)
    outputs, values = answers(observations, memory)
    _require_same(
        (outputs, values), answers(observations, memory),
        "gives other outputs for the same observations at a second call; remove dropout and other randomness",
    )  # fmt: skip
    _require_same(
        (outputs[:1], values[:1]),
        answers(observations[:1], None if memory is None else memory[:1]),
        "gives other outputs for an observation alone than in a batch; rows must not depend on each other",
    )
    _require_constant_buffers(agent.network, observations)
    _require_gradient(agent, vector, observations, memory)
    if not config.may_share:
        _require_apart(agent, vector, observations, memory)
    everyone = [None if x is None else x.expand(len(population), *x.shape) for x in (observations, memory)]
    try:
        Agents(agent).value(population, *everyone)  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(f"network cannot be run for all seeds at once by torch.func.vmap: {error}") from error


def _answers(
    agent: ActorCritic, vector: Tensor, critic_outputs: int, observations: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Policy outputs [N, K] and the critic's [N] or [N, Q], with their shapes and dtypes checked."""
    rows, wanted = len(observations), agent.distribution.outputs
    before = vector.clone()
    try:
        with torch.no_grad():
            seen = agent.see(vector, observations, memory)
            answer = agent.network.apply(agent.layout.unflatten(vector), seen)
    except Exception as error:
        given = observations if agent.network.read is None else agent.network.read(observations)
        raise ValueError(f"network fails on observations {_shapes(given)}: {error}") from error
    if memory is not None and (seen.shape, seen.dtype) != (memory.shape, memory.dtype):
        raise ValueError(
            f"network's remember gives {seen.dtype} of shape {tuple(seen.shape)}; expected {memory.dtype} of shape "
            f"{tuple(memory.shape)}, as its memory says"
        )
    if not torch.equal(vector, before):
        raise ValueError("network writes into its own parameters or buffers in the forward pass; compute new tensors")
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not all(isinstance(x, Tensor) for x in answer):
        shape = f"[N, {critic_outputs}]" if critic_outputs else "[N]"
        raise ValueError(f"network returned {_described(answer)}; expected (policy outputs [N, K], values {shape})")
    outputs, values = answer
    kind = "mean and log σ of each action component" if agent.distribution.continuous else "a logit for each choice"
    if outputs.shape != (rows, wanted):
        raise ValueError(
            f"network's policy outputs have shape {tuple(outputs.shape)} for {rows} observations; "
            f"expected ({rows}, {wanted}): {kind}"
        )
    wanted_values = (rows, critic_outputs) if critic_outputs else (rows,)
    if values.shape != wanted_values:
        raise ValueError(
            f"network's values have shape {tuple(values.shape)} for {rows} observations; "
            f"expected {wanted_values}{_hint(values, rows, critic_outputs)}"
        )
    for name, x in (("policy outputs", outputs), ("values", values)):
        if x.dtype != torch.float32:
            raise ValueError(f"network's {name} are {x.dtype}; expected torch.float32, as are its observations")
        if not torch.isfinite(x).all():
            raise ValueError(f"network's {name} are not finite for ordinary observations: {x.flatten()[:4].tolist()}")
    return outputs, values


def _shapes(given: Any) -> str:
    """The shape of an observation, or of the parts of a composite one."""
    if isinstance(given, Tensor):
        return f"of shape {tuple(given.shape)}"
    parts = given.items() if isinstance(given, dict) else enumerate(given)
    return "with " + ", ".join(f"{key!r} {_shapes(part)}" for key, part in parts)


def _hint(values: Tensor, rows: int, critic_outputs: int) -> str:
    """How to give values the right shape, if that can be guessed."""
    if critic_outputs:
        return ", one number for each output of the critic that the config asks for"
    if values.shape == (rows, 1) or values.ndim == 0:
        return "; end it with .squeeze(-1)"
    return f"; or set critic to 'quantile' and quantiles to {values.shape[1]}" if values.ndim == 2 else ""


def _described(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return f"one tensor of shape {tuple(answer.shape)}"
    if isinstance(answer, tuple | list):
        return f"{len(answer)} values ({', '.join(type(x).__name__ for x in answer)})"
    return f"a {type(answer).__name__}"


def _require_same(found: tuple[Tensor, ...], again: tuple[Tensor, ...], complaint: str) -> None:
    # products of other sizes may round differently
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, again, strict=True)):
        raise ValueError(f"network {complaint}")


def _require_constant_buffers(network: Network, observations: Tensor) -> None:
    module, read = network.module, network.read
    if module is None:
        return
    tried = copy.deepcopy(module).to(observations.device)
    before = {name: buffer.clone() for name, buffer in tried.named_buffers()}
    with torch.no_grad():
        tried(observations if read is None else read(observations))
    changed = [name for name, buffer in tried.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise ValueError(
            f"network buffer {changed[0]!r} changes in the forward pass, but an update must be pure; "
            "freeze it (.eval()), or use normalise_observations for running statistics"
        )


def _require_apart(agent: ActorCritic, vector: Tensor, observations: Tensor, memory: Tensor | None) -> None:
    named = {name: part.clone().requires_grad_() for name, part in agent.layout.unflatten(vector).items()}
    network, read = agent.network, []
    seen = observations if network.remember is None else network.remember(named, observations, memory)  # type: ignore[arg-type]
    for answer in network.apply(named, seen):
        gradients = torch.autograd.grad(answer.sum(), list(named.values()), allow_unused=True, retain_graph=True)
        read.append({name for name, gradient in zip(named, gradients, strict=True) if gradient is not None})
    if shared := sorted(read[0] & read[1]):
        raise ValueError(
            f"network's policy and value share the parameters {', '.join(shared)}, but this algorithm fits values "
            "after the policy's step, which would move the policy again; give each its own layers (ppo can share)"
        )


def _require_gradient(agent: ActorCritic, vector: Tensor, observations: Tensor, memory: Tensor | None) -> None:
    def total(parameters: Tensor) -> Tensor:
        seen = agent.see(parameters, observations, memory)
        outputs, values = agent.network.apply(agent.layout.unflatten(parameters), seen)
        weights = torch.arange(1, outputs.shape[1] + 1, device=outputs.device)  # a constant sum has no gradient
        return (outputs * weights).sum() + values.sum()

    if not torch.func.grad(total)(vector).any():
        raise ValueError("no gradient reaches the network's parameters; is everything frozen, detached, or in NumPy?")
