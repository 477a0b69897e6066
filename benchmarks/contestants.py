"""Who takes part on the CPU: telescope, its rivals in their own words and layouts, and the plain copy of the bytes.

Each gets its arrays ready (a rival's own type, contiguous in its own layout, compiled and warm) outside of what is
timed, and computes advantages and returns. Packages are imported where they are needed; one that is missing is listed.
"""

# T steps, B columns
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import telescope
from benchmarks.problem import GAMMA, LAM, Problem

Pair = tuple[np.ndarray, np.ndarray]


class Ready(NamedTuple):
    """What is timed, and how its result is read as advantages and returns [T, B]."""

    call: Callable[[], Any]
    read: Callable[[Any], Pair]


def as_is(result: Any) -> Pair:
    advantages, returns = result
    return np.asarray(advantages), np.asarray(returns)


def turned(result: Any) -> Pair:
    """From [B, T]."""
    advantages, returns = as_is(result)
    return advantages.T, returns.T


def telescope_with(layout: str, *, out: bool = False, tensors: bool = False) -> Callable[[Problem], Ready]:
    """Ours: time-major [T, B] or batch-major [B, T], into new arrays or given ones, NumPy or torch."""

    def prepare(given: Problem) -> Ready:
        axis = 0 if layout == "time-major" else 1
        arrays = {name: getattr(given, name) for name in Problem._fields if name != "last_values"}
        if axis == 1:
            arrays = {name: np.ascontiguousarray(array.T) for name, array in arrays.items()}
        room = tuple(np.empty_like(arrays["values"]) for _ in range(2)) if out else None
        if tensors:
            import torch

            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Ready(
            lambda: telescope.gae(**arrays, gamma=GAMMA, lam=LAM, axis=axis, out=room), turned if axis else as_is
        )

    return prepare


def torch_loop(given: Problem) -> Ready:
    """The loop that most trainers carry with them, on tensors [T, B]."""
    import torch

    rewards, values, ahead = (torch.from_numpy(array) for array in given[:3])
    going = 1.0 - torch.from_numpy(given.terminated).float()

    def call() -> Any:
        advantages, later = torch.empty_like(rewards), torch.zeros_like(rewards[0])
        for t in reversed(range(len(rewards))):
            delta = rewards[t] + GAMMA * ahead[t] * going[t] - values[t]
            advantages[t] = later = delta + GAMMA * LAM * going[t] * later
        return advantages, advantages + values

    return Ready(call, as_is)


def stable_baselines3(given: Problem) -> Ready:
    """RolloutBuffer.compute_returns_and_advantage: a NumPy loop; ends are the next step's episode_starts."""
    import gymnasium
    import torch
    from stable_baselines3.common.buffers import RolloutBuffer

    box = gymnasium.spaces.Box(-1, 1, (1,))
    steps, columns = given.values.shape
    buffer = RolloutBuffer(steps, box, box, gamma=GAMMA, gae_lambda=LAM, n_envs=columns)
    buffer.rewards, buffer.values = given.rewards.copy(), given.values.copy()
    buffer.episode_starts[1:] = given.terminated[:-1]
    last, dones = torch.from_numpy(given.last_values), given.terminated[-1]

    def call() -> Any:
        buffer.compute_returns_and_advantage(last, dones)
        return buffer.advantages, buffer.returns

    return Ready(call, as_is)


def torchrl(name: str) -> Callable[[Problem], Ready]:
    """Its functional estimators, on tensors [B, T, 1]."""

    def prepare(given: Problem) -> Ready:
        import torch
        from torchrl.objectives.value import functional

        function = getattr(functional, name)
        rewards, values, ahead, ended = (torch.from_numpy(array.T.copy())[..., None] for array in given[:4])
        return Ready(
            lambda: function(GAMMA, LAM, values, ahead, rewards, ended, ended),
            lambda result: turned(tensor[..., 0] for tensor in result),
        )

    return prepare


def _flat(given: Problem) -> tuple[np.ndarray, ...]:
    """One column after the other, as Tianshou's buffers hold them: rewards, values, ahead, terminated, last row."""
    last = np.zeros_like(given.terminated)
    last[-1] = True
    return tuple(np.ascontiguousarray(array.T).ravel() for array in (*given[:4], last))


def _unflat(given: Problem) -> Callable[[Any], Pair]:
    steps, columns = given.values.shape
    return lambda result: turned(np.reshape(array, (columns, steps)) for array in result)


def tianshou_kernel(given: Problem) -> Ready:
    """Tianshou's compiled _gae_return alone, flat, and the sum that makes its returns."""
    try:
        from tianshou.algorithm.algorithm_base import _gae_return
    except ImportError:
        from tianshou.policy.base import _gae_return

    rewards, values, ahead, terminated, last = _flat(given)
    ends = terminated | last

    def call() -> Any:
        advantages = _gae_return(values, ahead, rewards, ends, GAMMA, LAM)
        return advantages, advantages + values

    return Ready(call, _unflat(given))


def tianshou_episodic(given: Problem) -> Ready:
    """Tianshou's compute_episodic_return, on the least buffer that it will take."""
    try:
        from tianshou.algorithm import Algorithm as Home
    except ImportError:
        from tianshou.policy import BasePolicy as Home
    from tianshou.data import Batch

    rewards, values, ahead, terminated, last = _flat(given)
    batch = Batch(rew=rewards, terminated=terminated, truncated=np.zeros_like(terminated))
    indices = np.arange(rewards.size)

    class Buffer:
        """What is asked of a ReplayBuffer: which steps are terminal, and which are not finished."""

        def __init__(self) -> None:
            self.terminated = terminated

        def unfinished_index(self) -> np.ndarray:
            return np.flatnonzero(last)

    buffer = Buffer()

    def call() -> Any:
        returns, advantages = Home.compute_episodic_return(batch, buffer, indices, ahead, values, GAMMA, LAM)
        return advantages, returns

    return Ready(call, _unflat(given))


def rlax_scan(given: Problem) -> Ready:
    """rlax's truncated_generalized_advantage_estimation (lax.scan), vmapped over columns, jitted; its values [T+1]."""
    import jax
    import jax.numpy as jnp
    import rlax

    one = lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, LAM, v)  # noqa: E731
    every = jax.vmap(one, in_axes=1, out_axes=1)

    @jax.jit
    def both(r: Any, d: Any, v: Any) -> Any:
        advantages = every(r, d, v)
        return advantages, advantages + v[:-1]

    values = jnp.asarray(np.concatenate([given.values, given.last_values[None]]))
    rewards, discounts = jnp.asarray(given.rewards), jnp.asarray(np.float32(GAMMA) * ~given.terminated)
    return Ready(lambda: jax.block_until_ready(both(rewards, discounts, values)), as_is)


def queued_associative(given: Problem) -> Callable[[], Any]:
    """lax.associative_scan over the pairs (a, δ), jitted; as rlax's pull request 168 has it. Nobody waits for it."""
    import jax
    import jax.numpy as jnp

    def combine(later: Any, sooner: Any) -> Any:
        return later[0] * sooner[0], later[1] * sooner[0] + sooner[1]

    @jax.jit
    def both(r: Any, d: Any, v: Any) -> Any:
        delta = r + d * v[1:] - v[:-1]
        _, advantages = jax.lax.associative_scan(combine, (d * LAM, delta), reverse=True)
        return advantages, advantages + v[:-1]

    values = jnp.asarray(np.concatenate([given.values, given.last_values[None]]))
    rewards, discounts = jnp.asarray(given.rewards), jnp.asarray(np.float32(GAMMA) * ~given.terminated)
    return lambda: both(rewards, discounts, values)


def jax_associative(given: Problem) -> Ready:
    import jax

    call = queued_associative(given)
    return Ready(lambda: jax.block_until_ready(call()), as_is)


def scipy_lfilter(given: Problem) -> Ready:
    """The filter 1 / (1 − γλ z⁻¹) down each episode by itself, as Spinning Up does; arrays [B, T]."""
    from scipy.signal import lfilter

    rewards, values, ahead, terminated = (np.ascontiguousarray(array.T) for array in given[:4])
    numerator, denominator = np.ones(1, np.float32), np.array([1, -GAMMA * LAM], np.float32)

    def call() -> Any:
        delta = rewards + np.float32(GAMMA) * ahead - values  # `ahead` is 0 where terminated
        advantages = np.empty_like(values)
        for column, ends in enumerate(terminated):
            first = 0
            for stop in [*(np.flatnonzero(ends) + 1).tolist(), ends.size]:
                episode = slice(first, stop)
                if stop > first:
                    advantages[column, episode] = lfilter(numerator, denominator, delta[column, episode][::-1])[::-1]
                first = stop
        return advantages, advantages + values

    return Ready(call, turned)


CONTESTANTS: dict[str, Callable[[Problem], Ready]] = {
    "telescope, time-major": telescope_with("time-major"),
    "telescope, time-major, out=": telescope_with("time-major", out=True),
    "telescope, batch-major": telescope_with("batch-major"),
    "telescope, batch-major, out=": telescope_with("batch-major", out=True),
    "telescope, torch tensors": telescope_with("time-major", tensors=True),
    "torch loop": torch_loop,
    "Stable-Baselines3 RolloutBuffer": stable_baselines3,
    "TorchRL vec_generalized_advantage_estimate": torchrl("vec_generalized_advantage_estimate"),
    "TorchRL generalized_advantage_estimate": torchrl("generalized_advantage_estimate"),
    "Tianshou _gae_return (numba)": tianshou_kernel,
    "Tianshou compute_episodic_return": tianshou_episodic,
    "rlax (lax.scan)": rlax_scan,
    "JAX associative_scan": jax_associative,
    "SciPy lfilter": scipy_lfilter,
}


def copies(given: Problem) -> dict[str, Callable[[], Any]]:
    """The limit: a plain copy that reads and writes together as many bytes as GAE reads and writes."""
    read = sum(array.nbytes for array in given[:5])
    source = np.random.default_rng(0).integers(0, 255, (read + 2 * given.values.nbytes) // 2, np.uint8)
    target = np.zeros_like(source)
    return {"copy, out=": lambda: np.copyto(target, source), "copy": lambda: source.copy()}
