"""Simulators written as pure JAX functions (gymnax, Brax, MuJoCo Playground), as vector environments of JAX arrays.

Every environment has a random key of its own, so that a seed's episodes are the same alone as in company. Episodes end
here and not in the library's own autoreset, which hides the final observation and takes a time limit for an end.
"""

# N environments side by side

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode

NO_LIMIT = 2**31 - 1
"""Stands for no time limit: gymnax counts steps in 32 bits."""
Functions = tuple[Callable[..., Any], Callable[..., Any]]
"""reset(key) → (observation, state) and step(key, state, action) → (observation, state, reward, terminated, truncated),
of one environment"""


class Batch(NamedTuple):
    """N environments within their episodes."""

    keys: jax.Array  # [N, 2] uint32
    state: Any  # a tree of arrays [N, …]
    observations: Any  # [N, *obs], or a tree of these


class FunctionalVectorEnv:
    """N environments of two pure functions. One call of a compiled function steps them all."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, functions: Functions, spaces: tuple[gym.Space, gym.Space], num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces
        reset, step = functions
        self._reset, self._step = jax.jit(begun(reset)), jax.jit(stepped(reset, step))
        self._batch: Batch

    def reset(self, *, seed: Sequence[int] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes: with a key for each seed, or with the present keys."""
        keys = self._batch.keys if seed is None else jax.vmap(jax.random.PRNGKey)(jnp.asarray(seed, jnp.uint32))
        self._batch = self._reset(keys)
        return self._batch.observations, {}

    def step(self, actions: jax.Array) -> tuple[Any, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Step every environment, and begin a new episode where one ends."""
        self._batch, rewards, terminated, truncated, finals = self._step(self._batch, actions)
        return self._batch.observations, rewards, terminated, truncated, {"final_obs": finals}

    def state(self) -> dict[str, Any]:
        """The keys, states and observations, leaf by leaf."""
        return {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(_raw(self._batch)))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`, after a reset."""
        leaves = [jnp.asarray(state[str(index)]) for index in range(len(state))]
        raw = jax.tree.unflatten(jax.tree.structure(_raw(self._batch)), leaves)
        self._batch = jax.tree.map(
            lambda old, new: jax.random.wrap_key_data(new) if _is_key(old) else new, self._batch, raw
        )


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(batch: Batch) -> Batch:
    """The batch with random keys as plain numbers."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, batch)  # type: ignore[no-any-return]


def begun(reset: Callable[..., Any]) -> Callable[[jax.Array], Batch]:
    """Return the function that begins N episodes: keys [N, 2] → Batch."""

    def begin(keys: jax.Array) -> Batch:
        pairs = jax.vmap(jax.random.split)(keys)  # [N, 2, 2]
        observations, state = jax.vmap(reset)(pairs[:, 1])
        return Batch(pairs[:, 0], state, observations)

    return begin


def stepped(reset: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that makes one step of N environments, and resets those whose episode ends."""
    begin = begun(reset)

    def move(batch: Batch, actions: jax.Array) -> tuple[Batch, jax.Array, jax.Array, jax.Array, Any]:
        pairs = jax.vmap(jax.random.split)(batch.keys)
        finals, state, rewards, terminated, truncated = jax.vmap(step)(pairs[:, 1], batch.state, actions)
        ended = terminated | truncated

        def renewed(reached: Batch) -> Batch:
            def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(ended.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

            return jax.tree.map(chosen, begin(reached.keys), reached)  # type: ignore[no-any-return]

        # a reset can take longer than a step, so it runs only if an episode ends
        reached = Batch(pairs[:, 0], state, finals)
        return jax.lax.cond(ended.any(), renewed, lambda x: x, reached), rewards, terminated, truncated, finals

    return move


def of_gymnax(env: Any, parameters: Any, num_envs: int) -> FunctionalVectorEnv:
    """Environments of gymnax. A step of the same state without a time limit tells a limit from an end."""
    from gymnax.environments.spaces import gymnax_space_to_gym_space as converted  # type: ignore[import-untyped]

    limited = hasattr(parameters, "max_steps_in_episode")
    unlimited = parameters.replace(max_steps_in_episode=NO_LIMIT) if limited else parameters

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        observation, new, reward, done, _ = env.step_env(key, state, action, parameters)
        terminated = env.step_env(key, state, action, unlimited)[3] if limited else done
        return observation, new, jnp.asarray(reward, jnp.float32), terminated, done & ~terminated

    def reset(key: jax.Array) -> Any:
        return env.reset_env(key, parameters)

    spaces = converted(env.observation_space(parameters)), converted(env.action_space(parameters))
    return FunctionalVectorEnv((reset, step), spaces, num_envs)


def of_brax(env: Any, num_envs: int, episode_length: int) -> FunctionalVectorEnv:
    """Environments with Brax's interface (`reset(key)` and `step(state, action)` return a State), without its wrappers.

    `episode_length` truncates. Actions lie in −1 … 1.
    """

    def reset(key: jax.Array) -> Any:
        state = env.reset(key)
        return state.obs, (state, jnp.int32(0))

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        new, length = env.step(state[0], action), state[1] + 1
        terminated = new.done != 0
        return new.obs, (new, length), new.reward, terminated, (length >= episode_length) & ~terminated

    def box(sizes: Any) -> gym.Space:
        if isinstance(sizes, Mapping):
            return gym.spaces.Dict({name: box(size) for name, size in sizes.items()})
        return gym.spaces.Box(-np.inf, np.inf, tuple(np.atleast_1d(sizes).tolist()), np.float32)

    spaces = box(env.observation_size), gym.spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)
    return FunctionalVectorEnv((reset, step), spaces, num_envs)
