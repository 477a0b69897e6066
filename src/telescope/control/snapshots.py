"""Takes environments down to plain data and brings them back bit for bit, by replay or by copying arrays.

It knows nothing of vectorization or files: `env_lanes.py` decides which way is used, the run folder stores
the result.

Replay is the rule, because few simulators expose all of their state (Ant-v5 and Humanoid-v5 compute rewards
from positions that lag behind the state one can set): the random state at the last reset, plus the actions
since.
"""

import json
from collections.abc import Sequence
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

Outcome = tuple[Any, float, bool, bool, dict[str, Any]]


class Recorder(gym.Wrapper):
    """Remembers how an environment came to where it is: random state at its last reset, actions since.

    It must be the outermost wrapper. Infos are reduced to the action mask, the only part that is used: a
    vector environment spends microseconds a step on merging the rest.

    Reading `snapshot` gives plain data; assigning it replays the episode, after which the next `step`,
    whatever its action, returns the last recorded outcome again without stepping. A vector environment that
    makes that step then holds the right observation and the right "has ended" flag, wherever it keeps them.
    If the replay does not end in the stored observation and random state, `failure` says so (an exception
    would take an async worker down).
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.failure = ""
        self._base = env.unwrapped
        self._mask_size = mask_size(env.action_space)
        self._gives_masks = False
        self._seed: int | None = None
        self._random_at_reset: dict[str, Any] | None = None
        self._actions = np.empty((16, *(env.action_space.shape or ())), env.action_space.dtype)
        self._length = 0
        self._armed = False
        self._last: Outcome | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._seed, self._random_at_reset = seed, None
        else:
            self._random_at_reset = random_state(self._base.np_random)
        self._length, self._armed = 0, False
        observation, info = self.env.reset(seed=seed, options=options)
        self._gives_masks = "action_mask" in info
        info = {"action_mask": self._flat_mask(info["action_mask"])} if self._gives_masks else {}
        self._last = (observation, 0.0, False, False, info)
        return observation, info

    def step(self, action: Any) -> Outcome:
        if self._armed:
            self._armed = False
            assert self._last is not None
            return self._last
        if self._length == len(self._actions):
            self._actions = np.concatenate([self._actions, np.empty_like(self._actions)])
        self._actions[self._length] = action
        self._length += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            # The autoreset that follows may write into the very array that the environment handed out.
            observation = np.array(observation)
        info = {"action_mask": self._mask(info, bool(terminated or truncated))} if self._gives_masks else {}
        self._last = (observation, float(reward), bool(terminated), bool(truncated), info)
        return self._last

    def _mask(self, info: dict[str, Any], ended: bool) -> np.ndarray:
        if ended:  # nothing is chosen here any more, and a state without a legal action would make NaN of the policy
            return np.ones(self._mask_size or 0, bool)
        if "action_mask" not in info:
            raise ValueError("the environment gave infos['action_mask'] at reset but not at this step; give it always")
        return self._flat_mask(info["action_mask"])

    def _flat_mask(self, mask: Any) -> np.ndarray:
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        if self._mask_size is None or flat.shape != (self._mask_size,):
            raise ValueError(
                f"infos['action_mask'] has {flat.size} entries for the action space {self.env.action_space}; "
                f"expected {self._mask_size or 'no mask at all'} (n of Discrete, sum(nvec) of MultiDiscrete)"
            )
        return flat.astype(bool)

    @property
    def snapshot(self) -> dict[str, Any]:
        """Plain data: seed, random states as text, actions `[n, *act]` since the reset, last observation."""
        if self._last is None:
            raise ValueError("there is nothing to save before the first reset(); call reset() first")
        return {
            "seed": self._seed,
            "random_at_reset": encode(self._random_at_reset),
            "random_now": encode(random_state(self._base.np_random)),
            "actions": self._actions[: self._length].copy(),
            "observation": np.array(self._last[0]),
        }

    @snapshot.setter
    def snapshot(self, snapshot: dict[str, Any]) -> None:
        # The seeded reset comes first even if another reset follows: it also fixes whatever else an
        # environment derives from its seed.
        self.reset(seed=snapshot["seed"])
        if snapshot["random_at_reset"] is not None:
            set_random_state(self._base.np_random, snapshot["random_at_reset"])
            self.reset()
        for action in snapshot["actions"]:
            self.step(action)
        assert self._last is not None
        self.failure = difference(snapshot, self.snapshot)
        self._armed = True


def difference(saved: dict[str, Any], replayed: dict[str, Any]) -> str:
    """A clause on how a replayed snapshot differs from the saved one, bit for bit; empty if it does not."""
    wanted, got = saved["observation"], replayed["observation"]
    replay = f"replaying the {len(saved['actions'])} actions since its last reset"
    if (wanted.dtype, wanted.shape) != (got.dtype, got.shape):
        return f"its observations are {got.dtype}{got.shape}, the stored ones {wanted.dtype}{wanted.shape}"
    if wanted.tobytes() != got.tobytes():
        return f"{replay} does not lead to the stored observation"
    if saved["random_now"] != replayed["random_now"]:
        return f"{replay} leaves its random generator in another state"
    return ""


def pack(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Snapshots of equal environments as one dict of a few arrays and lists; `unpack` is its inverse."""
    return {
        "seed": [snapshot["seed"] for snapshot in snapshots],
        "random_at_reset": [snapshot["random_at_reset"] for snapshot in snapshots],
        "random_now": [snapshot["random_now"] for snapshot in snapshots],
        "lengths": np.array([len(snapshot["actions"]) for snapshot in snapshots], np.int64),
        "actions": np.concatenate([snapshot["actions"] for snapshot in snapshots]),
        "observations": np.stack([snapshot["observation"] for snapshot in snapshots]),
    }


def unpack(packed: dict[str, Any]) -> list[dict[str, Any]]:
    """The snapshots that `pack` put together, in order."""
    actions = np.split(packed["actions"], np.cumsum(packed["lengths"])[:-1])
    rows = zip(
        packed["seed"],
        packed["random_at_reset"],
        packed["random_now"],
        actions,
        packed["observations"],
        strict=True,
    )
    names = ("seed", "random_at_reset", "random_now", "actions", "observation")
    return [dict(zip(names, row, strict=True)) for row in rows]


def random_state(generator: Any) -> dict[str, Any] | None:
    """The state of a NumPy generator; None for any other kind, which only a seeded reset can bring back."""
    return dict(generator.bit_generator.state) if isinstance(generator, np.random.Generator) else None


def encode(state: dict[str, Any] | None) -> str | None:
    """A random state as text: PCG64 counts in 128 bits, which no array holds."""
    return None if state is None else json.dumps(state, default=np.ndarray.tolist)


def set_random_state(generator: np.random.Generator, text: str) -> None:
    """Put a generator into the state that `encode` wrote: in place, as others may hold a reference to it."""
    generator.bit_generator.state = json.loads(text, object_hook=_lists_to_arrays)


def _lists_to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(value, np.uint64) if isinstance(value, list) else value for name, value in state.items()}


def mask_size(space: gym.Space) -> int | None:
    """Entries of an action mask: n for Discrete, the sum of nvec for MultiDiscrete, else None."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, gym.spaces.MultiDiscrete) else None


# Attributes of a vector environment that never change while it runs.
_CONSTANTS = (gym.Space, EnvSpec, Enum)
_PLAIN = (int, float, str, bool, np.generic, type(None))


def uncopyable(vector: gym.vector.VectorEnv) -> list[str]:
    """Names of attributes that `copy_state` cannot copy; while there are any, the state cannot be saved."""
    return [name for name, value in vars(vector).items() if name != "metadata" and not _copyable(value)]


def _copyable(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return isinstance(value, (*_CONSTANTS, *_PLAIN)) or bool(_generators(value))


def _generators(value: Any) -> list[np.random.Generator]:
    """The generators in an attribute that is one, or a list of nothing else; empty for other attributes."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(entry, np.random.Generator) for entry in values) else []


def copy_state(vector: gym.vector.VectorEnv) -> dict[str, Any]:
    """A vector environment's arrays, numbers and random states as plain data; `uncopyable` must be empty."""
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
    """Write what `copy_state` read into a vector environment of the same kind that has been reset."""
    for name, value in state["attributes"].items():
        # [()] turns a zero-dimensional array back into the NumPy scalar it was, and leaves others alone
        setattr(vector, name, value.copy()[()] if isinstance(value, np.ndarray) else value)
    for name, texts in state["random"].items():
        for generator, text in zip(_generators(getattr(vector, name)), texts, strict=True):
            set_random_state(generator, text)
