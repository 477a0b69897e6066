"""Environments for a population of seeds: built from an id or a callable, stepped together, restored exactly.

Leaves out normalisation (`normalisation.py`), episode statistics and the use of steps (`rollout.py`).
"""

# S seeds, B environments per seed, N = S·B, A entries of an action mask

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

try:
    import gymnasium as gym
except ImportError as error:
    raise ImportError('environments need Gymnasium: pip install "telescope-rl[control]"') from error
from gymnasium.envs.registration import EnvSpec

from telescope.control.environments.dressing import Dressing
from telescope.control.environments.factory import (
    Factory,
    check_spaces,
    find_source,
    makes_batches,
    name_of,
    time_limit,
    without_limit,
)
from telescope.control.environments.lanes import MODES, Lane, Reset, Step, own_vector_lanes, pool_lane, recorded_lane

BACKENDS = ("gymnasium", "envpool")
VECTORIZATIONS = ("auto", "sync", "async", "vector_entry_point", "simulator")

__all__ = ["Environments", "Step", "check_spaces", "environment_seed"]


def environment_seed(seed: int, stream: int, index: int, restarts: int = 0) -> int:
    """The 31-bit seed of environment `index` of `seed`.

    It depends on the seed's value, never on its position in a list. `stream` separates users of one seed, such as
    training and evaluation. `restarts` counts inexact resumes, so that a restart does not repeat old episodes.
    """
    return int(np.random.SeedSequence([seed, stream, index, restarts]).generate_state(1)[0] >> 1)


class Environments:
    """S × B environments that step together, B for each of S seeds.

    Each seed has the same transitions as alone. Discrete actions and observations count from 0, whatever the space's
    own `start` is.

    Args:
        env: a Gymnasium (or EnvPool) id, or a callable that returns a `gymnasium.Env`, or, if it has a parameter
            `num_envs`, a simulator of all environments; see `telescope.control.simulators`.
        seeds: one non-negative integer per independent agent.
        num_envs: environments per seed, B.
        backend: "gymnasium" or "envpool".
        vectorization: "sync" steps one environment after another. "async" gives each its own process, which helps
            slow environments on many cores. "vector_entry_point" uses the id's own vector environment, "simulator"
            one of a callable. "auto" uses these two if there is one, otherwise "sync".
        autoreset: "next_step", "same_step" or "disabled", for sync and async. All give the same transitions;
            "next_step" inserts a row with `mask` False after each episode. A vector entry point and EnvPool use the
            mode that they declare.
        env_kwargs: keyword arguments for the environment.
        stream: separates the random numbers of training, evaluation, … under the same seed.
        dressing: for sync and async, what the run puts around every environment.
        wraps: for sync and async, a wrapper for each of the S·B environments, seed by seed.
        device: what a simulator is made for, if its callable has a parameter `device`.
        single_frames: whether the caller stacks frames itself, where these are pictures (Boxes of two axes or more).

    Attributes:
        observation_space, action_space: of a single environment.
        autoreset, vectorization: the modes in use.
        stack: how many frames the caller stacks; 1 if the environments do so. `frame_space` is then that of a frame.
        exact_resume: whether `restore` continues bit for bit; if not, new episodes start.
        resume_note: a sentence that says why not; empty if it does.
        simulator: the simulator, whose own steps are tensors; None without one.
        began_anew: whether the last `restore` started new episodes.

    If an episode terminates at the step of its time limit, EnvPool reports only that it is truncated.

    Raises:
        ValueError: an unknown id or choice, env_kwargs that do not fit, an unsupported space.
        ImportError: a missing package, with the command that installs it.
    """

    def __init__(
        self,
        env: str | Callable[..., gym.Env],
        *,
        seeds: Sequence[int],
        num_envs: int,
        backend: str = "gymnasium",
        vectorization: str = "auto",
        autoreset: str = "same_step",
        env_kwargs: Mapping[str, Any] | None = None,
        stream: int = 0,
        dressing: Dressing | None = None,
        wraps: Sequence[Callable[[gym.Env], gym.Env]] | None = None,
        device: str = "cpu",
        single_frames: bool = False,
    ) -> None:
        check_choice("backend", backend, BACKENDS)
        check_choice("vectorization", vectorization, VECTORIZATIONS)
        check_choice("autoreset", autoreset, tuple(MODES))
        self.seeds, self.num_envs = check_counts(seeds, num_envs)
        self.backend = backend
        self._env, self._stream, self._restarts = env, stream, 0
        self._source = env if backend == "envpool" else find_source(env)
        self._dressing, kwargs = dressed(dressing or Dressing(), self._source, env_kwargs or {})
        self._kwargs = time_limit(self._source, kwargs)
        self.vectorization = choose_vectorization(self._source, backend, vectorization, self._dressing, kwargs)
        self._wanted_autoreset, self._wraps, self._device = autoreset, wraps, device
        self.own_episodes = wraps is not None
        whole, self.stack = self._dressing, self._dressing.frame_stack if single_frames else 1
        if self.stack > 1:
            self._dressing = whole._replace(frame_stack=1)
        self._open()
        if self.stack > 1 and self.frame_space is self.observation_space:  # no picture: Gymnasium's wrapper stacks
            self.close()
            self._dressing, self.stack = whole, 1
            self._open()

    @classmethod
    def of(cls, config: Any, **more: Any) -> Environments:
        """The environments that a configuration describes, with `more` in the place of its settings."""
        names = ("num_envs", "backend", "vectorization", "autoreset", "env_kwargs", "device")
        settings = {name: getattr(config, name) for name in names} | {"seeds": config.seed_values}
        settings["dressing"] = config.dressing
        return cls(config.env, **(settings | more))

    def _open(self) -> None:
        self._lanes = self._build_lanes()
        lane = self._lanes[0]
        self.observation_space, self.action_space = lane.observation_space, lane.action_space
        self.frame_space = self.observation_space
        if self.stack > 1 and type(self.frame_space) is gym.spaces.Box and len(self.frame_space.shape) > 1:
            self.observation_space = gym.vector.utils.batch_space(self.frame_space, self.stack)
        self.autoreset = next(name for name, mode in MODES.items() if mode is lane.mode)
        self.resume_note = lane.resume_note
        self.exact_resume = not lane.resume_note
        self._started = False
        self.began_anew = False
        self._observation_start = int(getattr(self.observation_space, "start", 0))
        self._action_start = getattr(self.action_space, "start", None)
        self.simulator = getattr(lane, "simulator", None)
        if self.simulator is not None:  # it counts from 0 itself
            self._observation_start, self._action_start = 0, None

    def _build_lanes(self) -> list[Lane]:
        if self.backend == "envpool":
            return [pool_lane(self._env, without_limit(self._kwargs), self._environment_seeds())]  # type: ignore[arg-type]
        if self.vectorization == "simulator":
            from telescope.control.simulators.lane import simulated

            return [simulated(self._source, self._kwargs, self.seeds, self.num_envs, self._device)]
        if self.vectorization == "vector_entry_point":
            shape = len(self.seeds), self.num_envs
            return own_vector_lanes(self._source, without_limit(self._kwargs), *shape)  # type: ignore[arg-type]
        wraps = self._wraps or itertools.repeat(None, len(self.seeds) * self.num_envs)
        factories = [Factory(self._source, self._kwargs, wrap=wrap, dressing=self._dressing) for wrap in wraps]  # type: ignore[arg-type]
        return [recorded_lane(factories, self._wanted_autoreset, self.vectorization == "async")]

    def _environment_seeds(self, first: int = 0) -> list[int]:
        """One seed per environment; a vector entry point has one for all environments of a seed."""
        rows = 1 if self.vectorization == "vector_entry_point" else self.num_envs
        places = [(seed, first + index) for seed in self.seeds for index in range(rows)]
        return [environment_seed(seed, self._stream, index, self._restarts) for seed, index in places]

    def _lanes_and_seeds(self, first: int = 0, given: np.ndarray | None = None) -> list[tuple[Lane, list[int]]]:
        seeds = self._environment_seeds(first)
        if given is not None:
            seeds = given[:, : len(seeds) // len(self.seeds)].ravel().tolist()
        each = len(seeds) // len(self._lanes)
        return [(lane, seeds[index * each : (index + 1) * each]) for index, lane in enumerate(self._lanes)]

    def reset(self, first: int = 0, seeds: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Start every environment from its seed: observations `[S, B, *obs]` and action masks `[S, B, A]`.

        `first` is the index of the first environment, where these are a part of a larger run. `seeds` [S, B] replaces
        the environments' own seeds; a vector entry point takes the first of each row.
        """
        self._started = True
        return self._joined([lane.reset(own) for lane, own in self._lanes_and_seeds(first, seeds)])

    def step(self, actions: np.ndarray) -> Step:
        """Step all environments with valid (clipped) actions `[S, B, *act]` of any dtype.

        Later steps do not change the arrays of the result.
        """
        actions = np.array(actions, self.action_space.dtype)
        if self._action_start is not None:
            actions += self._action_start
        rows = actions.reshape(len(self._lanes), -1, *actions.shape[2:])
        steps = [lane.step(own) for lane, own in zip(self._lanes, rows, strict=True)]
        observations, next_observations, *outcome = zip(*steps, strict=True)
        no_reset = all(after is before for after, before in zip(observations, next_observations, strict=True))
        seen = self._observed(observations)
        successors = seen if no_reset else self._observed(next_observations)
        return Step(seen, successors, *map(self._by_seed, outcome))

    def _by_seed(self, parts: Sequence[Any]) -> Any:
        """Join the lanes' rows `[n, ...]` into one array `[S, B, ...]`; None if there are none."""
        if parts[0] is None:
            return None
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined.reshape(len(self.seeds), self.num_envs, *joined.shape[1:])

    def _observed(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Observations as a new array, because a vector environment may overwrite its own."""
        rows = np.array(self._by_seed(parts))
        return rows - self._observation_start if self._observation_start else rows

    def _joined(self, resets: Sequence[Reset]) -> Reset:
        observations, masks = zip(*resets, strict=True)
        return self._observed(observations), self._by_seed(masks)

    def state(self) -> dict[str, Any]:
        """The state of all environments as plain data: nested dicts of arrays, numbers, strings, None, lists.

        Raises:
            ValueError: before the first reset.
        """
        if not self._started:
            raise ValueError("there is no state to save before the first reset(); call reset() first")
        lanes = {str(index): lane.state() for index, lane in enumerate(self._lanes)} if self.exact_resume else {}
        return {**self.settings(), "restarts": self._restarts, "lanes": lanes}

    def settings(self) -> dict[str, Any]:
        """What a state says about these environments, besides the episodes: settings, and how they can be resumed."""
        return {**self._identity(), "exact_resume": self.exact_resume, "resume_note": self.resume_note}

    def require_same(self, state: dict[str, Any]) -> None:
        """Raise a ValueError if a state has other settings."""
        for name, here in self._identity().items():
            if state[name] != here:
                raise ValueError(
                    f"the state was saved with {name}={state[name]!r} but these environments have "
                    f"{name}={here!r}; make them with the same settings, or begin a new run from these agents "
                    "(telescope train --start RUN, or start=state in Python)"
                )

    def _identity(self) -> dict[str, Any]:
        """Settings that a state and the environments that restore it must share."""
        return {
            "backend": self.backend,
            "vectorization": self.vectorization,
            "autoreset": self.autoreset,
            "seeds": self.seeds,
            "num_envs": self.num_envs,
        }

    def start_anew_on_resume(self, reason: str) -> None:
        """Never restore a state of these environments exactly, for this reason (a whole sentence)."""
        self.exact_resume, self.resume_note = False, reason

    def statistics(self) -> list[str]:
        """Names of wrappers inside that keep running statistics, as NormalizeObservation does."""
        return self._lanes[0].statistics()

    def begin(self, first: int = 0) -> Any:
        """`reset` for a simulator: what the policy sees, as tensors [N, …] on its device."""
        self._started = True
        [(lane, seeds)] = self._lanes_and_seeds(first)
        return lane.simulator.reset(seeds)  # type: ignore[attr-defined]

    def restart(self) -> Reset:
        """Start new episodes without a seed, so that the random generators continue as after an episode's end."""
        return self._joined([lane.restart() for lane in self._lanes])

    def restore(self, state: dict[str, Any], *, allow_inexact: bool = False) -> Reset:
        """Continue from `state()`. Return what the policy sees next, as `reset` does.

        If `exact_resume` was False, new episodes start, with other seeds than at the first start. With `allow_inexact`
        they also start if an environment cannot be restored.

        Raises:
            ValueError: the state has other settings, or the replay of an environment's last episode does not give the
                stored rewards and observation.
        """
        self.require_same(state)
        self._restarts = state["restarts"]
        if not state["exact_resume"]:
            self.start_anew_on_resume(state["resume_note"])
        if not self.exact_resume:
            return self._begin_anew()
        try:
            self._started = True
            lanes = enumerate(self._lanes_and_seeds())
            return self._joined([lane.restore(state["lanes"][str(i)], seeds) for i, (lane, seeds) in lanes])
        except ValueError:
            if not allow_inexact:
                raise
            return self._begin_anew()

    def _begin_anew(self) -> Reset:
        """Start new episodes in all environments, also in those that could have been restored."""
        exact, note = self.exact_resume, self.resume_note
        self._restarts += 1
        if self.simulator is None:  # a process may have room for one simulator only
            self.close()
            self._open()
        self.exact_resume, self.resume_note, self.began_anew = exact, note, True
        return self.reset()

    def close(self) -> None:
        """Close all environments and end their worker processes. A second call does nothing."""
        for lane in self._lanes:
            lane.close()


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of: {', '.join(choices)}")


def check_counts(seeds: Sequence[int], num_envs: int) -> tuple[list[int], int]:
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}, expected at least 1 environment per seed")
    numbers = [operator.index(seed) for seed in seeds]
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds is {list(seeds)}, expected at least one non-negative integer")
    return numbers, operator.index(num_envs)


def dressed(dressing: Dressing, source: Any, kwargs: Mapping[str, Any]) -> tuple[Dressing, Mapping[str, Any]]:
    """The dressing and keyword arguments of this source: an id takes a time limit as an argument."""
    if dressing.time_limit is None or not isinstance(source, EnvSpec | str):
        return dressing, kwargs
    if (other := kwargs.get("max_episode_steps")) not in (None, dressing.time_limit):
        raise ValueError(f"time_limit is {dressing.time_limit}, but env_kwargs has max_episode_steps {other}; give one")
    return dressing._replace(time_limit=None), {**kwargs, "max_episode_steps": dressing.time_limit}


def choose_vectorization(source: Any, backend: str, wanted: str, dressing: Dressing, kwargs: Mapping[str, Any]) -> str:
    """The vectorization to use. Raises a ValueError for one that the source does not support."""
    whole = backend != "envpool" and not isinstance(source, EnvSpec) and makes_batches(source, kwargs)
    if whole and wanted == "auto":
        wanted = "simulator"
    if wanted == "simulator" and (changes := dressing.changes or (dressing.time_limit and "time_limit")):
        raise ValueError(f"{changes} is set, but {name_of(source)} makes all environments at once; set it there")
    if dressing.changes and (backend == "envpool" or wanted == "vector_entry_point"):
        how = "backend is 'envpool'" if backend == "envpool" else "vectorization is 'vector_entry_point'"
        raise ValueError(
            f"{dressing.changes} is set, but {how}, whose environments cannot be wrapped one by one; use backend "
            "'gymnasium' with vectorization 'sync' or 'async'"
        )
    if backend == "envpool":
        if not isinstance(source, str):
            raise ValueError(f'env must be an id for backend "envpool"; got {source!r}')
        return "envpool"
    if wanted == "simulator" and not whole:
        raise ValueError(
            f"vectorization is 'simulator', but {name_of(source)} is no function with a parameter num_envs; add it"
        )
    has_own = getattr(source, "vector_entry_point", None) is not None
    if wanted == "vector_entry_point" and not has_own:
        raise ValueError(f"{name_of(source)} has no vector entry point; use vectorization 'sync' or 'async'")
    if wanted != "auto":
        return wanted
    return "vector_entry_point" if has_own and not dressing.changes else "sync"
