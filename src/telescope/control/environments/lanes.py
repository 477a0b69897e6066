"""Lanes: each turns one vector environment, in any autoreset mode, into the same stream of steps.

Leaves out how seeds share lanes and how rows are arranged by seed (`population.py`).
"""

# N rows of a lane (environments side by side), A entries of an action mask

import multiprocessing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from telescope.checks import same_kind
from telescope.control.environments.cartpole import ENTRY_POINT, CartPolePopulation
from telescope.control.environments.checks import flags_fit, mask_fit, observation_fit, rewards_fit
from telescope.control.environments.factory import Factory, check_spaces, explained, unknown_id
from telescope.control.environments.snapshots import (
    copy_state,
    pack,
    paste_state,
    running_statistics,
    uncopyable,
    unpack,
)
from telescope.control.environments.spaces import packed_actions, packed_observations, row_of
from telescope.control.environments.subprocesses import ReportedAsyncVectorEnv
from telescope.control.environments.sync import BriefSyncVectorEnv
from telescope.control.workers.spawning import is_guarded, sent, startable

MODES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}


class Step(NamedTuple):
    """One step of all environments; rows are `[S, B]` (`[N]` within a lane).

    `next_observations` is the state that the step really led to. `observations` is the state that the policy sees next.
    They are the same object unless an environment was reset within this step. `mask` is False in a row that a NEXT_STEP
    autoreset inserted: it is no transition, its reward is 0 and its flags are False. `action_masks` (True = allowed)
    belong to `observations`; None if the environment gives none.
    """

    observations: np.ndarray
    next_observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    action_masks: np.ndarray | None


Reset = tuple[np.ndarray, np.ndarray | None]


class Lane:
    """One vector environment as a stream of `Step`s `[N, ...]`.

    Observations may be the vector environment's own array, which the next step overwrites.
    """

    resume_note = ""

    def __init__(self, vector: VectorEnv) -> None:
        self.vector: Any = vector  # Gymnasium's base class lacks get_attr, and seeds may be lists
        check_spaces(vector.single_observation_space, vector.single_action_space)
        self.observation_space = packed_observations(vector.single_observation_space)
        self.action_space = packed_actions(vector.single_action_space)
        self._takes_rows = self.action_space is vector.single_action_space
        self.mode = vector.metadata.get("autoreset_mode")
        if self.mode not in MODES.values():
            raise ValueError(
                f"{vector} does not declare its autoreset mode: metadata['autoreset_mode'] is {self.mode!r}, "
                "expected a gymnasium.vector.AutoresetMode; use vectorization='sync'"
            )
        self._ended = np.zeros(vector.num_envs, bool)  # [N] where a NEXT_STEP autoreset will insert a row now
        self._gives_masks = False
        self._lead = (vector.num_envs,)
        self._name = type(vector).__name__
        self._fit = observation_fit(self.observation_space, self._lead, self._told("observations"))
        self._rewards, self._flags = self._told("rewards"), self._told("flags terminated or truncated")
        self._fit_final = observation_fit(self.observation_space, (), self._told("final observation"))

    def _told(self, what: str) -> str:
        return f"the {what} that {self._name} returned"

    def reset(self, seeds: Sequence[int]) -> Reset:
        """Reset every environment with its seed."""
        return self._begin(*self.vector.reset(seed=list(seeds)))

    def restart(self) -> Reset:
        """Reset every environment without a seed, so that its generator continues as after an episode's end."""
        return self._begin(*self.vector.reset())

    def step(self, actions: np.ndarray) -> Step:
        """Step with actions `[N, *act]`. Environments whose episode ends are reset as this lane's mode says."""
        taken = actions if self._takes_rows else self.action_space.native(actions)  # type: ignore[attr-defined]
        observations, rewards, terminated, truncated, infos = self.vector.step(taken)
        observations = self._fit(observations, " at a step")
        # our own NumPy arrays: Gymnasium does not say of which kind these are, nor who owns them
        rewards = rewards_fit(rewards, self._lead, self._rewards)
        terminated = flags_fit(terminated, self._lead, self._flags)
        truncated = flags_fit(truncated, self._lead, self._flags)
        mask = ~self._ended
        next_observations = observations
        if self._ended.any():
            rewards[self._ended], terminated[self._ended], truncated[self._ended] = 0.0, False, False
            self._ended[:] = False
        ended = terminated | truncated
        same_step = self.mode is AutoresetMode.SAME_STEP
        masks = self._action_masks(infos, "a step", exempt=False if same_step else ended)
        if ended.any():
            if self.mode is AutoresetMode.NEXT_STEP:
                self._ended = ended
            else:
                observations, next_observations, masks = self._after_end(observations, ended, infos, masks)
        return Step(observations, next_observations, rewards, terminated, truncated, mask, masks)

    def _after_end(
        self, observations: np.ndarray, ended: np.ndarray, infos: dict[str, Any], masks: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return observations after the reset, true successors, and action masks after the reset."""
        next_observations = np.array(observations)
        if self.mode is AutoresetMode.SAME_STEP:
            finals = infos.get("final_obs")
            for row in np.flatnonzero(ended):
                if finals is None or (not isinstance(finals, Mapping) and finals[row] is None):
                    raise ValueError(
                        f"{self._name} resets in the step that ends an episode, but infos['final_obs'] has no final "
                        f"observation of environment {row}; a time limit needs its value, so give it always"
                    )
                next_observations[row] = self._fit_final(row_of(self.observation_space, finals, int(row)))
            return observations, next_observations, masks
        observations, infos = self.vector.reset(options={"reset_mask": ended.copy()})
        observations = self._fit(observations, " at reset")
        if masks is not None:
            after = self._action_masks(infos, "reset", exempt=~ended)
            masks = np.where(ended[:, None], np.asarray(after), masks)
        return observations, next_observations, masks

    def _begin(self, observations: np.ndarray, infos: dict[str, Any]) -> Reset:
        self._ended[:] = False
        observations = self._fit(observations, " at reset")
        self._gives_masks = infos.get("action_mask") is not None
        given = infos.get("_action_mask")  # [N] Gymnasium's note of which environments gave a mask
        if self._gives_masks and given is not None and not np.all(given):
            raise ValueError(
                f"only some environments of {self._name} gave infos['action_mask'] at reset; give it always"
            )
        return observations, self._action_masks(infos, "reset")

    def _action_masks(self, infos: dict[str, Any], where: str, exempt: Any = False) -> np.ndarray | None:
        """Masks [N, A] as bools. `exempt` [N] is True where no action will be chosen."""
        masks = infos.get("action_mask")
        if (masks is not None) != self._gives_masks:
            raise ValueError(
                f"{self._name} gave infos['action_mask'] {'at reset' if self._gives_masks else f'at {where}'} but not "
                f"{f'at {where}' if self._gives_masks else 'at reset'}; give it always"
            )
        if masks is None:
            return None
        subject = f"the action masks that {self._name} gave at {where}"
        return mask_fit(self.action_space, masks, self._lead, subject, exempt)

    def statistics(self) -> list[str]:
        """Names of wrappers in these environments that keep running statistics of observations or rewards."""
        return running_statistics(self.vector)

    def state(self) -> dict[str, Any]:
        """Plain data from which `restore` continues bit for bit."""
        raise ValueError(self.resume_note)

    def restore(self, state: dict[str, Any], seeds: Sequence[int]) -> Reset:
        """Continue from `state`. Return the observations and action masks that the policy sees next."""
        raise ValueError(self.resume_note)

    def close(self) -> None:
        self.vector.close()


class RecordedLane(Lane):
    """Gymnasium's SyncVectorEnv or AsyncVectorEnv over `Recorder`s. Each recorder restores by replay."""

    def statistics(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.vector.get_attr("statistics") for name in names))

    def state(self) -> dict[str, Any]:
        return pack(self.vector.get_attr("snapshot"))

    def restore(self, state: dict[str, Any], seeds: Sequence[int]) -> Reset:
        self.vector.reset(seed=list(seeds))  # also clears the vector environment's record of ended episodes
        self.vector.set_attr("snapshot", unpack(state))
        for row, failure in enumerate(self.vector.get_attr("failure")):
            if failure:
                raise ValueError(
                    f"environment {row} cannot be restored: {failure}. Has the environment changed (code, version, "
                    "env_kwargs), does it use another generator than its np_random, or does some of its state survive "
                    "a reset? --allow-inexact (Python: allow_inexact=True) continues with new episodes; --start "
                    "(start=) begins a new run from these agents"
                )
        return self._rejoin()

    def _rejoin(self) -> Reset:
        """Make a step in which every recorder repeats its last outcome, so that the vector environment records it."""
        space = self.vector.action_space
        ignored = np.zeros(space.shape, space.dtype)
        observations, _, terminated, truncated, infos = self.vector.step(ignored)
        reset = self._begin(observations, infos)
        self._ended = terminated | truncated
        return reset


class CopiedLane(Lane):
    """An id's own vector environment. It is restored by copying its arrays and random states."""

    def __init__(self, vector: VectorEnv) -> None:
        super().__init__(vector)
        vector.reset(seed=0)  # creates some attributes
        if names := uncopyable(vector):
            self.resume_note = (
                f"{type(vector).__name__} has state that cannot be copied ({', '.join(names)}), so a resumed run "
                "starts new episodes; use vectorization='sync' for an exact resume."
            )
        self._last: Reset | None = None

    def reset(self, seeds: Sequence[int]) -> Reset:
        self._last = self._begin(*self.vector.reset(seed=seeds[0] if len(seeds) == 1 else list(seeds)))
        return self._last

    def restart(self) -> Reset:
        self._last = super().restart()
        return self._last

    def step(self, actions: np.ndarray) -> Step:
        step = super().step(actions)
        self._last = step.observations, step.action_masks
        return step

    def state(self) -> dict[str, Any]:
        if self.resume_note or self._last is None:
            raise ValueError(self.resume_note or "there is nothing to save before the first reset()")
        observations, masks = self._last
        state = copy_state(self.vector)
        seen = {"observations": np.array(observations), "action_masks": masks, "ended": self._ended.copy()}
        return {**state, **seen}

    def restore(self, state: dict[str, Any], seeds: Sequence[int]) -> Reset:
        observations, masks = self.reset(seeds)
        if isinstance(self.vector, CartPolePopulation):  # its compiled loop does not check shapes
            same_kind("CartPole", state["attributes"], copy_state(self.vector)["attributes"])
        same_kind("environments", state["ended"], self._ended)
        same_kind("environments", state["observations"], np.array(observations))
        paste_state(self.vector, state)
        masks = state["action_masks"]
        self._ended, self._gives_masks = np.array(state["ended"]), masks is not None
        self._last = np.array(state["observations"]), masks
        return self._last


class PoolLane(Lane):
    """An EnvPool. Its seeds are fixed when it is created."""

    resume_note = "EnvPool cannot save the state of its environments, so a resumed run starts new episodes."

    def __init__(self, build: Callable[[Sequence[int]], VectorEnv], seeds: Sequence[int]) -> None:
        super().__init__(build(seeds))
        self._build = build
        self._fresh: Sequence[int] | None = seeds

    def reset(self, seeds: Sequence[int]) -> Reset:
        if self._fresh != seeds:
            self.vector = self._build(seeds)
        self._fresh = None
        return self._begin(*self.vector.reset())


def recorded_lane(factories: Sequence[Factory], mode: str, workers: bool) -> Lane:
    """Environments stepped one after the other, or each in a worker process."""
    if not workers:
        return RecordedLane(BriefSyncVectorEnv(factories, copy=False, autoreset_mode=MODES[mode]))
    # Not fork: torch and numba have threads in this process, and a forked child that inherits their locks can hang
    # (Python 3.12 warns about it). A fork server has no threads, so its children are safe and still start fast.
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if context == "forkserver":
        multiprocessing.get_context(context).set_forkserver_preload(["__main__"] * is_guarded() + [__name__])
    sent(factories[0], "vectorization is 'async'")
    with startable():
        vector = ReportedAsyncVectorEnv(factories, copy=False, context=context, autoreset_mode=MODES[mode])
    return RecordedLane(vector)


def own_vector_lanes(spec: EnvSpec, kwargs: Mapping[str, Any], seeds: int, count: int) -> list[Lane]:
    """`count` environments for each of `seeds` seeds, from the id's own vector entry point.

    Such an environment draws from one random generator for all its rows. So each seed needs its own vector environment,
    unless we can split the generator.
    """
    shape: dict[str, Any] = {"num_envs": count}
    lanes = seeds
    if spec.vector_entry_point == ENTRY_POINT:
        spec = replace(spec, vector_entry_point=CartPolePopulation)  # type: ignore[arg-type]
        shape = {"num_envs": seeds * count, "num_seeds": seeds}
        lanes = 1
    with explained(spec, kwargs):
        return [
            CopiedLane(gym.make_vec(spec, vectorization_mode="vector_entry_point", **shape, **kwargs))
            for _ in range(lanes)
        ]


def pool_lane(env: str, kwargs: Mapping[str, Any], seeds: Sequence[int]) -> Lane:
    """One EnvPool with an environment per seed. Each draws only from its own seed."""
    try:
        import envpool
    except ImportError as error:
        raise ImportError('backend "envpool" needs EnvPool: pip install "telescope-rl[envpool]"') from error
    known = envpool.list_all_envs()
    if env not in known:
        raise ValueError(unknown_id(env, known, "an id of EnvPool"))

    def build(seeds: Sequence[int]) -> VectorEnv:
        try:
            pool = envpool.make_gymnasium(env, num_envs=len(seeds), seed=list(seeds), **kwargs)
        except (TypeError, AssertionError) as error:
            message = str(error).splitlines()[0]
            raise ValueError(f"env_kwargs {dict(kwargs)} do not fit EnvPool's {env}: {message}") from error
        with warnings.catch_warnings():  # Gymnasium warns about EnvPool's float64 bounds
            warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
            _ = pool.observation_space, pool.action_space
        return cast(VectorEnv, pool)

    return PoolLane(build, seeds)
