"""Save environments as plain data and restore them bit for bit, by replay or by copying arrays.

Replay is the usual way: it stores the random state at the last reset and the actions since then. Few simulators let you
set all of their state; Ant-v5 and Humanoid-v5, for example, compute rewards from positions that lag behind it. Leaves
out which way to use (`lanes.py`) and where the data is stored (the run folder).
"""

import json
from collections.abc import Sequence
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from telescope.control.environments.checks import flags_fit, mask_fit, mask_sizes, observation_fit, rewards_fit

Outcome = tuple[Any, float, bool, bool, dict[str, Any]]
# built once: a union written at its use is built again at every step
SEQUENCES, FLAGS = (tuple, list), (bool, np.bool_)


class Recorder(gym.Wrapper):
    """Checks the values of an environment, and records how it reached its state.

    It must be the outermost wrapper. It reduces infos to the action mask, because nothing else is used and a vector
    environment spends microseconds per step on merging infos. An environment may have a method `action_masks()`
    instead, as in sb3-contrib.

    Reading `snapshot` gives plain data: the random state at the last reset, and the actions and rewards since then.
    Assigning it replays the episode. The next `step` then ignores its action, does not step, and returns the last
    recorded outcome again. A vector environment that makes this step then holds the right observation and the right
    flags. If the replay gives other rewards, another observation or another random state, `failure` says so (an
    exception would end an async worker).
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.failure = ""
        self.closed = False
        self._base = env.unwrapped
        self._name = env.spec.id if env.spec is not None else type(self._base).__name__
        self._fit = observation_fit(env.observation_space, subject=f"the observation that {self._name} returned")
        method = env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None
        self._method = method if callable(method) else None
        self._mask_size = sum(mask_sizes(env.action_space))
        self._gives_masks = False
        self._seed: int | None = None
        self._random_at_reset: dict[str, Any] | None = None
        self._actions = np.empty((16, *(env.action_space.shape or ())), env.action_space.dtype)
        self._rewards = np.empty(16)
        self._length = 0
        self._armed = False
        self._last: Outcome | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._seed, self._random_at_reset = seed, None
        else:
            self._random_at_reset = random_state(self._base.np_random)
        self._length, self._armed = 0, False
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, SEQUENCES) or len(result) != 2 or not isinstance(result[1], dict):
            raise ValueError(
                f"{self._name}.reset() returned {type(result).__name__}; expected (observation, info) with a dict info"
            )
        observation, info = self._fit(result[0], " at reset"), result[1]
        mask = self._given_mask(info)
        self._gives_masks = mask is not None
        info = {"action_mask": self._mask(mask, "reset")} if self._gives_masks else {}
        self._last = (observation, 0.0, False, False, info)
        return observation, info

    def step(self, action: Any) -> Outcome:
        if self._armed:
            self._armed = False
            assert self._last is not None
            return self._last
        if self._length == len(self._actions):
            self._actions = np.concatenate([self._actions, np.empty_like(self._actions)])
            self._rewards = np.concatenate([self._rewards, np.empty_like(self._rewards)])
        self._actions[self._length] = action
        result = self.env.step(action)
        if not isinstance(result, SEQUENCES) or len(result) != 5 or not isinstance(result[4], dict):
            parts = f"{len(result)} values" if isinstance(result, SEQUENCES) else type(result).__name__
            raise ValueError(
                f"{self._name}.step() returned {parts}; expected Gymnasium's five values: observation, reward, "
                "terminated, truncated and a dict info (Gym before 0.26 had a single `done`)"
            )
        observation, reward, terminated, truncated, info = result
        observation = self._fit(observation, " at a step")
        if not isinstance(reward, float):  # np.float64 is one
            reward = rewards_fit(reward, (), f"the reward that {self._name} returned")
        if not isinstance(terminated, FLAGS):
            terminated = flags_fit(terminated, (), f"the flag terminated that {self._name} returned")
        if not isinstance(truncated, FLAGS):
            truncated = flags_fit(truncated, (), f"the flag truncated that {self._name} returned")
        reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        self._rewards[self._length] = reward
        self._length += 1
        if terminated or truncated:
            # the next autoreset may write into this array
            observation = np.array(observation)
        self._last = (observation, reward, terminated, truncated, self._step_info(info, terminated or truncated))
        return self._last

    def _step_info(self, info: dict[str, Any], ended: bool) -> dict[str, Any]:
        if not self._gives_masks:
            if info.get("action_mask") is not None:
                raise ValueError(f"{self._name} gave infos['action_mask'] at a step but not at reset; give it always")
            return {}
        if ended:  # no action is chosen here; without a legal action the policy would give NaN
            return {"action_mask": np.ones(self._mask_size, bool)}
        mask = self._given_mask(info)
        if mask is None:
            raise ValueError(f"{self._name} gave infos['action_mask'] at reset but not at this step; give it always")
        return {"action_mask": self._mask(mask, "a step")}

    def _given_mask(self, info: dict[str, Any]) -> Any:
        mask = info.get("action_mask")
        return self._method() if mask is None and self._method is not None else mask

    def _mask(self, mask: Any, where: str) -> np.ndarray:
        return mask_fit(self.env.action_space, mask, subject=f"the action mask that {self._name} gave at {where}")

    @property
    def statistics(self) -> list[str]:
        """See `running_statistics`."""
        return running_statistics(self.env)

    def close(self) -> None:
        self.closed = True
        super().close()

    @property
    def snapshot(self) -> dict[str, Any]:
        """Plain data: seed, random states as text, actions `[n, *act]` and rewards [n] since the reset, observation."""
        if self._last is None:
            raise ValueError("there is no state to save before the first reset(); call reset() first")
        return {
            "seed": self._seed,
            "random_at_reset": encode(self._random_at_reset),
            "random_now": encode(random_state(self._base.np_random)),
            "actions": self._actions[: self._length].copy(),
            "rewards": self._rewards[: self._length].copy(),
            "observation": np.array(self._last[0]),
        }

    @snapshot.setter
    def snapshot(self, snapshot: dict[str, Any]) -> None:
        try:
            self._replay(snapshot)
            self.failure = difference(snapshot, self.snapshot)
        except Exception as error:  # the replay reached a state where an action is invalid
            self.failure = f"{_replaying(snapshot)} ends in {type(error).__name__}: {error}"
        self._armed = True

    def _replay(self, snapshot: dict[str, Any]) -> None:
        # The seeded reset comes first, even if another reset follows: an environment may derive other state from its
        # seed.
        self.reset(seed=snapshot["seed"])
        if snapshot["random_at_reset"] is not None:
            set_random_state(self._base.np_random, snapshot["random_at_reset"])
            self.reset()
        for action in snapshot["actions"]:
            self.step(action)


def running_statistics(env: Any) -> list[str]:
    """Names of wrappers (or the environment) that keep running statistics, as NormalizeObservation does."""
    names = []
    while env is not None:
        if any(_is_running_statistic(value) for value in getattr(env, "__dict__", {}).values()):
            names.append(type(env).__name__)
        env = getattr(env, "env", None)
    return names


def _is_running_statistic(value: Any) -> bool:
    """Whether it has a mean, a variance and a count that are numbers or arrays (a data frame has methods)."""
    parts = [getattr(value, name, None) for name in ("mean", "var", "count")]
    return all(isinstance(part, int | float | np.ndarray | np.generic) for part in parts)


def difference(saved: dict[str, Any], replayed: dict[str, Any]) -> str:
    """A clause that says how a replayed snapshot differs from the saved one; empty if they are equal bit for bit."""
    wanted, got = saved["observation"], replayed["observation"]
    replay = _replaying(saved)
    if (wanted.dtype, wanted.shape) != (got.dtype, got.shape):
        return f"its observations are {got.dtype}{got.shape}, the stored ones {wanted.dtype}{wanted.shape}"
    if wanted.tobytes() != got.tobytes():
        return f"{replay} does not lead to the stored observation"
    if saved["rewards"].tobytes() != replayed["rewards"].tobytes():
        return f"{replay} gives other rewards than the stored ones"
    if saved["random_now"] != replayed["random_now"]:
        return f"{replay} leaves its random generator in another state"
    return ""


def _replaying(snapshot: dict[str, Any]) -> str:
    return f"replaying the {len(snapshot['actions'])} actions since its last reset"


def pack(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join snapshots of equal environments into one dict of a few arrays and lists; `unpack` is the inverse."""
    return {
        "seed": [snapshot["seed"] for snapshot in snapshots],
        "random_at_reset": [snapshot["random_at_reset"] for snapshot in snapshots],
        "random_now": [snapshot["random_now"] for snapshot in snapshots],
        "lengths": np.array([len(snapshot["actions"]) for snapshot in snapshots], np.int64),
        "actions": np.concatenate([snapshot["actions"] for snapshot in snapshots]),
        "rewards": np.concatenate([snapshot["rewards"] for snapshot in snapshots]),
        "observations": np.stack([snapshot["observation"] for snapshot in snapshots]),
    }


def unpack(packed: dict[str, Any]) -> list[dict[str, Any]]:
    """The snapshots that `pack` put together, in order."""
    ends = np.cumsum(packed["lengths"])[:-1]
    rows = zip(
        packed["seed"],
        packed["random_at_reset"],
        packed["random_now"],
        np.split(packed["actions"], ends),
        np.split(packed["rewards"], ends),
        packed["observations"],
        strict=True,
    )
    names = ("seed", "random_at_reset", "random_now", "actions", "rewards", "observation")
    return [dict(zip(names, row, strict=True)) for row in rows]


def random_state(generator: Any) -> dict[str, Any] | None:
    """The state of a NumPy generator; None for other generators, which only a seeded reset can restore."""
    return dict(generator.bit_generator.state) if isinstance(generator, np.random.Generator) else None


def encode(state: dict[str, Any] | None) -> str | None:
    """A random state as text, because PCG64 has 128-bit integers, which no array holds."""
    return None if state is None else json.dumps(state, default=np.ndarray.tolist)


def set_random_state(generator: np.random.Generator, text: str) -> None:
    """Set a generator to the state that `encode` wrote, in place, because others may hold a reference to it."""
    generator.bit_generator.state = json.loads(text, object_hook=_lists_to_arrays)


def _lists_to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(value, np.uint64) if isinstance(value, list) else value for name, value in state.items()}


# attributes of a vector environment that do not change while it runs
_CONSTANTS = (gym.Space, EnvSpec, Enum)
_PLAIN = (int, float, str, bool, np.generic, type(None))


def uncopyable(vector: gym.vector.VectorEnv) -> list[str]:
    """Names of attributes that `copy_state` cannot copy; if there are any, the state cannot be saved."""
    return [name for name, value in vars(vector).items() if name != "metadata" and not _copyable(value)]


def _copyable(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return isinstance(value, (*_CONSTANTS, *_PLAIN)) or bool(_generators(value))


def _generators(value: Any) -> list[np.random.Generator]:
    """The generators in an attribute that is a generator or a list of generators; empty for other attributes."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(entry, np.random.Generator) for entry in values) else []


def copy_state(vector: gym.vector.VectorEnv) -> dict[str, Any]:
    """A vector environment's arrays, numbers and random states as plain data. `uncopyable` must be empty."""
    attributes: dict[str, Any] = {}
    random: dict[str, Any] = {}
    for name, value in vars(vector).items():
        if generators := _generators(value):
            random[name] = [encode(random_state(generator)) for generator in generators]
        elif isinstance(value, (np.ndarray, np.generic)):
            attributes[name] = np.array(value, order="C")
        elif isinstance(value, _PLAIN) and not isinstance(value, _CONSTANTS):
            attributes[name] = value
    return {"attributes": attributes, "random": random}


def paste_state(vector: gym.vector.VectorEnv, state: dict[str, Any]) -> None:
    """Write the data of `copy_state` into a vector environment of the same kind that has been reset."""
    if unknown := sorted((state["attributes"].keys() | state["random"].keys()) - vars(vector).keys()):
        raise ValueError(f"the state to resume from sets {unknown[0]!r}, which {type(vector).__name__} does not have")
    for name, value in state["attributes"].items():
        # [()] turns a zero-dimensional array back into the NumPy scalar it was, and leaves others alone
        setattr(vector, name, value.copy()[()] if isinstance(value, np.ndarray) else value)
    for name, texts in state["random"].items():
        for generator, text in zip(_generators(getattr(vector, name)), texts, strict=True):
            set_random_state(generator, text)
