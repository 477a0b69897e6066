"""Action distributions as rows of functions: noise, sample, mode, log-probability, entropy.

There are no distribution objects. Sampling is a deterministic function of the network's outputs and of noise that was
drawn before, so a rollout draws its noise once per seed. Leaves out the bounds of actions (`actions.py`).
"""

# [..., K] policy outputs, [..., A] or [...] actions
from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import arrays
from telescope.arrays import Array
from telescope.control.environments.spaces import PackedActions

Masks = Array | None
LOG_STD = (-20.0, 2.0)
"""The range of log σ of a squashed Gaussian, whose σ depends on the state and could otherwise overflow."""
FORBIDDEN = -1e9
"""The logit of a masked action: exp underflows to exactly 0, and 0 · FORBIDDEN is still 0 (−inf would give NaN)."""


class Distribution(NamedTuple):
    """π(a|s) as functions of the network's policy outputs [..., K]."""

    outputs: int
    """K, the number of policy outputs of the network."""
    continuous: bool
    """Whether the second half of the outputs is log σ. False for a product of several distributions."""
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype
    noise: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    """`noise(rng, shape)` → float32 [*shape, …], the random numbers of one sample per element of shape."""
    sample: Callable[..., Tensor]
    """`sample(outputs, noise, masks=None)` → actions, for tensors or NumPy arrays."""
    mode: Callable[..., Tensor]
    """`mode(outputs, masks=None)` → the most probable actions, for tensors or NumPy arrays."""
    log_prob: Callable[..., Tensor]
    """`log_prob(outputs, actions, masks=None)` → log π(a|s), summed over the components of an action."""
    entropy: Callable[..., Tensor]
    """`entropy(outputs, masks=None)`, summed over the components of an action."""
    kl: Callable[..., Tensor]
    """`kl(outputs, old_outputs, masks=None)`, exactly KL(π_old ‖ π) = Σ π_old (log π_old − log π), in nats."""
    scales: int = 0
    """How many of the outputs, the last ones, are log σ."""

    def probabilities(self, outputs: Tensor, masks: Masks = None) -> Tensor:
        """π(·|s) [..., A] of a Discrete space, by `log_prob` of each action."""
        actions = torch.arange(self.outputs, device=outputs.device).expand(outputs.shape)  # [..., A]
        each = outputs[..., None, :]
        return self.log_prob(each, actions, None if masks is None else masks[..., None, :]).exp()


def distribution(space: gym.Space) -> Distribution:
    """The distribution over a Discrete, MultiDiscrete, MultiBinary or Box action space, or a product of those."""
    if isinstance(space, PackedActions):
        from telescope.control.agents.products import product

        return product([distribution(part.space) for part in space.parts], [sum(part.sizes) for part in space.parts])
    if isinstance(space, gym.spaces.Discrete):
        return categorical(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return multi_categorical(tuple(int(n) for n in np.asarray(space.nvec).ravel()), space.shape)
    if isinstance(space, gym.spaces.MultiBinary):
        return bernoulli(space.shape)
    if isinstance(space, gym.spaces.Box):
        return diagonal_gaussian(space.shape)
    known = "Discrete, MultiDiscrete, MultiBinary, Box, or a Dict or Tuple of those"
    raise ValueError(f"action_space is {space}; expected {known}")


def categorical(n: int) -> Distribution:
    """Softmax over n logits. Samples are argmax(logit − log E) with E exponential (the Gumbel trick)."""

    def log_prob(logits: Tensor, actions: Tensor, masks: Masks = None) -> Tensor:
        log_p = torch.log_softmax(allowed(logits, masks), dim=-1)
        chosen = actions[..., None] == torch.arange(n, device=logits.device)  # [..., n]
        return torch.where(chosen, log_p, 0.0).sum(-1)  # a gather's gradient has no fixed order

    def kl(logits: Tensor, old_logits: Tensor, masks: Masks = None) -> Tensor:
        log_p, log_old = (torch.log_softmax(allowed(x, masks), dim=-1) for x in (logits, old_logits))
        return (log_old.exp() * (log_old - log_p)).sum(-1)

    return Distribution(
        outputs=n,
        continuous=False,
        action_shape=(),
        action_dtype=torch.int64,
        noise=lambda rng, shape: _race(rng, (*shape, n)),
        sample=lambda logits, noise, masks=None: (allowed(logits, masks) + noise).argmax(-1),
        mode=lambda logits, masks=None: allowed(logits, masks).argmax(-1),
        log_prob=log_prob,
        entropy=lambda logits, masks=None: _entropy(allowed(logits, masks)),
        kl=kl,
    )


def epsilon_greedy(n: int, epsilon: float = 0.0) -> Distribution:
    """The best of n actions by their Q-values, or a random allowed one where the first number of the noise is below 0.

    `noise` draws that number from [−ε, 1 − ε). To explore with a larger ε, subtract the difference from it. There are
    no log-probabilities, because nothing learns from them.
    """

    def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        numbers = rng.random((*shape, 1 + n), dtype=np.float32)
        numbers[..., 0] -= epsilon
        return numbers

    def mode(q: Array, masks: Masks = None) -> Array:
        return allowed(q, masks).argmax(-1)

    def sample(q: Array, noise: Array, masks: Masks = None) -> Array:
        explores = arrays.library("q", q).where(noise[..., :1] < 0, noise[..., 1:], q)
        return mode(explores, masks)

    def none(*_: Tensor) -> Tensor:
        raise NotImplementedError("an ε-greedy policy has no log-probabilities, entropy or KL")

    return Distribution(n, False, (), torch.int64, noise, sample, mode, log_prob=none, entropy=none, kl=none)


def epsilon_greedy_probabilities(q: Array, masks: Masks, epsilon: float) -> Array:
    """π(·|s) [..., A] of an ε-greedy policy: ε shared among the allowed actions, the rest for the best of them."""
    xp = arrays.library("q", q)
    may = xp.ones_like(q) if masks is None else xp.where(masks, xp.ones_like(q), 0.0)
    best = allowed(q, masks).argmax(-1)[..., None] == xp.arange(q.shape[-1])
    return epsilon * may / may.sum(-1)[..., None] + (1 - epsilon) * (best * may)


def multi_categorical(nvec: tuple[int, ...], shape: tuple[int, ...]) -> Distribution:
    """Independent categorical distributions (MultiDiscrete). Their logits are concatenated, and so are their masks."""
    parts = [categorical(n) for n in nvec]

    ends = list(itertools.accumulate(nvec, initial=0))

    def split(x: Array | None) -> list:
        return [None if x is None else x[..., start:end] for start, end in itertools.pairwise(ends)]

    def stack(actions: list[Array]) -> Array:
        return _shaped(arrays.library("actions", actions[0]).stack(actions, -1), shape)

    def sample(logits: Array, noise: Array, masks: Masks = None) -> Array:
        rows = zip(parts, split(logits), split(noise), split(masks), strict=True)
        return stack([part.sample(x, e, m) for part, x, e, m in rows])

    def mode(logits: Array, masks: Masks = None) -> Array:
        return stack([part.mode(x, m) for part, x, m in zip(parts, split(logits), split(masks), strict=True)])

    def log_prob(logits: Tensor, actions: Tensor, masks: Masks = None) -> Tensor:
        columns = _columns(actions, shape).unbind(-1)
        rows = zip(parts, split(logits), columns, split(masks), strict=True)
        return torch.stack([part.log_prob(x, a, m) for part, x, a, m in rows]).sum(0)

    def entropy(logits: Tensor, masks: Masks = None) -> Tensor:
        rows = zip(parts, split(logits), split(masks), strict=True)
        return torch.stack([part.entropy(x, m) for part, x, m in rows]).sum(0)

    def kl(logits: Tensor, old_logits: Tensor, masks: Masks = None) -> Tensor:
        rows = zip(parts, split(logits), split(old_logits), split(masks), strict=True)
        return torch.stack([part.kl(x, old, m) for part, x, old, m in rows]).sum(0)

    return Distribution(
        outputs=sum(nvec),
        continuous=False,
        action_shape=shape,
        action_dtype=torch.int64,
        noise=lambda rng, batch: _race(rng, (*batch, sum(nvec))),
        sample=sample,
        mode=mode,
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
    )


def bernoulli(shape: tuple[int, ...]) -> Distribution:
    """Independent Bernoulli variables (MultiBinary) from logits. A sample is logit + logistic noise > 0. No masks."""
    size = math.prod(shape)

    def noise(rng: np.random.Generator, batch: tuple[int, ...]) -> np.ndarray:
        return rng.logistic(size=(*batch, size)).astype(np.float32)

    def log_prob(logits: Tensor, actions: Tensor, masks: Masks = None) -> Tensor:
        sign = 2.0 * _columns(actions, shape).to(logits.dtype) - 1.0
        return torch.nn.functional.logsigmoid(sign * logits).sum(-1)

    def entropy(logits: Tensor, masks: Masks = None) -> Tensor:
        log_p = torch.nn.functional.logsigmoid(logits)
        log_q = log_p - logits  # log(1 − p)
        return -(log_p.exp() * log_p + log_q.exp() * log_q).sum(-1)

    def kl(logits: Tensor, old_logits: Tensor, masks: Masks = None) -> Tensor:
        log_p, log_old = (torch.nn.functional.logsigmoid(x) for x in (logits, old_logits))
        log_q, log_old_q = log_p - logits, log_old - old_logits  # log(1 − p)
        return (log_old.exp() * (log_old - log_p) + log_old_q.exp() * (log_old_q - log_q)).sum(-1)

    return Distribution(
        outputs=size,
        continuous=False,
        action_shape=shape,
        action_dtype=torch.int64,
        noise=noise,
        sample=lambda logits, noise, masks=None: _shaped(_whole(logits + noise > 0), shape),
        mode=lambda logits, masks=None: _shaped(_whole(logits > 0), shape),
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
    )


def diagonal_gaussian(shape: tuple[int, ...]) -> Distribution:
    """Independent normal distributions (Box). Outputs are [mean, log σ]. `actions.py` bounds the actions."""
    size = math.prod(shape)

    def sample(outputs: Array, noise: Array, masks: Masks = None) -> Array:
        std = arrays.library("outputs", outputs).exp(outputs[..., size:])
        return _shaped(outputs[..., :size] + std * noise, shape)

    def log_prob(outputs: Tensor, actions: Tensor, masks: Masks = None) -> Tensor:
        mean, log_std = outputs.split(size, dim=-1)
        z = (_columns(actions, shape) - mean) * torch.exp(-log_std)
        return -(0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(outputs: Tensor, old_outputs: Tensor, masks: Masks = None) -> Tensor:
        (mean, log_std), (old_mean, old_log_std) = (x.split(size, dim=-1) for x in (outputs, old_outputs))
        ratio, z = torch.exp(old_log_std - log_std), (old_mean - mean) * torch.exp(-log_std)
        return (log_std - old_log_std + 0.5 * (ratio**2 + z**2 - 1)).sum(-1)

    return Distribution(
        outputs=2 * size,
        continuous=True,
        action_shape=shape,
        action_dtype=torch.float32,
        noise=lambda rng, batch: rng.standard_normal((*batch, size), dtype=np.float32),
        sample=sample,
        mode=lambda outputs, masks=None: _shaped(outputs[..., :size], shape),
        log_prob=log_prob,
        entropy=lambda outputs, masks=None: (outputs[..., size:] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1),
        kl=kl,
        scales=size,
    )


def squashed_gaussian(shape: tuple[int, ...]) -> Distribution:
    """tanh of independent normal distributions: actions in −1 … 1, log-probabilities of these actions and their units.

    Outputs are [mean, log σ], log σ clamped to `LOG_STD`. The KL is that of the normal distributions, because tanh is
    one to one. The entropy has no closed form. To learn from fresh samples use `squashed_sample`, which is exact where
    tanh rounds to ±1.
    """
    size, normal = math.prod(shape), diagonal_gaussian(shape)

    def sample(outputs: Array, noise: Array, masks: Masks = None) -> Array:
        return arrays.library("outputs", outputs).tanh(normal.sample(_within(outputs, size), noise))

    def log_prob(outputs: Tensor, actions: Tensor, masks: Masks = None) -> Tensor:
        inside = 1 - torch.finfo(outputs.dtype).eps / 2  # the last number below 1, whose atanh is finite
        before = torch.atanh(actions.clamp(-inside, inside))
        return normal.log_prob(_within(outputs, size), before) - log_tanh_slope(_columns(before, shape)).sum(-1)

    def none(*_: Tensor) -> Tensor:
        raise NotImplementedError("the entropy of a squashed Gaussian has no closed form; average −log_prob")

    return normal._replace(
        sample=sample,
        mode=lambda outputs, masks=None: arrays.library("outputs", outputs).tanh(normal.mode(outputs)),
        log_prob=log_prob,
        entropy=none,
        kl=lambda outputs, old_outputs, masks=None: normal.kl(_within(outputs, size), _within(old_outputs, size)),
    )


def squashed_sample(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(u) [..., A] with u = mean + σ · noise, and their log π [...]; both differentiable in the outputs.

    log π(tanh u) = Σ log N(u; mean, σ) − Σ log(1 − tanh² u), Haarnoja et al. 2018 (arXiv 1801.01290), equation 21.
    """
    size = noise.shape[-1]
    mean, log_std = _within(outputs, size).split(size, dim=-1)
    before = mean + torch.exp(log_std) * noise
    log_normal = -(0.5 * noise**2 + log_std + 0.5 * math.log(2 * math.pi))
    return torch.tanh(before), (log_normal - log_tanh_slope(before)).sum(-1)


def uniform_actor(distribution: Distribution) -> Callable[..., tuple[np.ndarray, np.ndarray | None]]:
    """An `Act` that draws from all of −1 … 1, or from all allowed actions, by the noise of a policy that is not asked.

    The distribution is a squashed Gaussian or a categorical one: 2Φ(z) − 1 of normal noise is uniform in −1 … 1, and
    Gumbel noise alone is a race of equals.
    """

    def act(observations: np.ndarray, memory: Any, noise: np.ndarray, masks: Any) -> tuple[np.ndarray, Any]:
        if not distribution.continuous:
            return distribution.sample(0 * noise, noise, masks), memory  # type: ignore[return-value]
        numbers = torch.erf(torch.from_numpy(noise) / 2**0.5).numpy()
        return _shaped(numbers, distribution.action_shape), memory  # type: ignore[return-value]

    return act


def log_tanh_slope(x: Tensor) -> Tensor:
    """log(1 − tanh² x) = 2 (log 2 − x − softplus(−2x)), finite for every x; per element."""
    return 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))


def _within(outputs: Array, size: int) -> Array:
    """[mean, log σ] with log σ within `LOG_STD`."""
    xp = arrays.library("outputs", outputs)
    return xp.concatenate([outputs[..., :size], xp.clip(outputs[..., size:], *LOG_STD)], -1)


def log_probabilities(logits: Tensor, masks: Masks = None) -> Tensor:
    """log π(·|s) [..., A] of all discrete actions; `FORBIDDEN` or less, with probability 0, where not allowed."""
    return torch.log_softmax(allowed(logits, masks), dim=-1)


def uniform(space: gym.spaces.Box) -> Distribution:
    """Independent uniform actions within a Box's bounds, whatever the outputs; its mode is the middle."""
    if not space.is_bounded("both"):
        raise ValueError(f"action_space is {space}; uniform actions need bounds on all sides")
    low, width = space.low.astype(np.float32), (space.high - space.low).astype(np.float32)

    def sample(outputs: Array, noise: Array, masks: Masks = None) -> Array:
        if isinstance(noise, Tensor):
            return torch.as_tensor(low, device=noise.device) + torch.as_tensor(width, device=noise.device) * noise
        return low + width * noise

    def mode(outputs: Array, masks: Masks = None) -> Array:
        xp = arrays.library("outputs", outputs)
        return sample(outputs, xp.zeros((*outputs.shape[:-1], *space.shape), dtype=xp.float32) + 0.5)

    def none(*_: Tensor) -> Tensor:
        raise NotImplementedError("nothing learns from the probabilities of a uniform policy")

    def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.random((*shape, *space.shape), dtype=np.float32)

    return Distribution(1, False, space.shape, torch.float32, noise, sample, mode, log_prob=none, entropy=none, kl=none)


def of_action(q: Tensor, actions: Tensor) -> Tensor:
    """Q(s, a) [..., M] from Q(s, ·) [..., M, A] and actions [M].

    A select, because the gradient of a gather is summed in no fixed order.
    """
    return torch.where(actions[..., None] == torch.arange(q.shape[-1], device=q.device), q, 0.0).sum(-1)


def _shaped(columns: Array, shape: tuple[int, ...]) -> Array:
    """[..., A] → [..., *shape]; a scalar space has shape ()."""
    if len(shape) == 1:
        return columns
    return columns.reshape(*columns.shape[:-1], *shape) if shape else columns[..., 0]


def _whole(flips: Array) -> Array:
    return flips.astype(np.int64) if isinstance(flips, np.ndarray) else flips.long()


def _columns(actions: Tensor, shape: tuple[int, ...]) -> Tensor:
    return actions.flatten(-len(shape)) if shape else actions[..., None]


def allowed(logits: Array, masks: Masks) -> Array:
    """Logits or Q-values [..., A], with those of forbidden actions far below all others."""
    return logits if masks is None else arrays.library("logits", logits).where(masks, logits, FORBIDDEN)


def _entropy(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def _race(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard Gumbel noise −log E with E exponential. E = 0 (probability 2⁻²⁴) gives +inf, which always wins."""
    tiny = np.finfo(np.float32).tiny
    return -np.log(np.maximum(rng.standard_exponential(shape, dtype=np.float32), tiny))
