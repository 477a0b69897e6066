"""What a simulator returns, and the one stream of steps that we make of it, as tensors where the simulator has them.

A simulator is a vector environment as Gymnasium describes it (`reset`, `step`, `single_observation_space`,
`single_action_space`), but its arrays are torch or JAX arrays. Leaves out what stands between it and networks
(`experience/device.py`), and libraries of pure functions (`functional.py`).
"""

# N environments side by side, A entries of an action mask

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from telescope import arrays
from telescope.checks import same_kind
from telescope.control.environments.factory import check_spaces, explained, name_of, parameters_of
from telescope.control.environments.lanes import MODES, Step
from telescope.control.environments.spaces import (
    PackedActions,
    PackedObservations,
    packed_actions,
    packed_observations,
    part_of,
)

FINAL_NAMES = ("final_obs", "final_observation")
"""Where infos hold the true final observations [N, …] of SAME_STEP: Gymnasium's name, then an older one (ManiSkill)."""

KNOWN = {"autoreset": (None, *MODES), "finals": ("given", "previous"), "seeding": ("each", "one")}
"""What can be said of a simulator."""


class Vector(NamedTuple):
    """A simulator with what it does not say of itself; `vector` makes one."""

    env: Any
    autoreset: str | None
    finals: str
    part: str | None
    seeding: str


def vector(
    env: Any,
    *,
    autoreset: Literal["same_step", "next_step", "disabled"] | None = None,
    finals: Literal["given", "previous"] = "given",
    part: str | None = None,
    seeding: Literal["each", "one"] = "each",
) -> Vector:
    """A simulator with what it does not say of itself.

    Args:
        env: the vector environment.
        autoreset: its mode, if `metadata["autoreset_mode"]` does not say.
        finals: "previous" for one that resets in the step that ends an episode and keeps the final observation to
            itself, as Isaac Lab does: the observation before this step takes its place. This is an approximation.
        part: the key of a Dict observation that the agents see; the others are dropped.
        seeding: "one" for a simulator that takes one seed for all its environments. It trains one agent at a time.
    """
    return Vector(env, autoreset, finals, part, seeding)


def simulator(source: Callable[..., Any], kwargs: Mapping[str, Any], count: int, device: str) -> Simulator:
    """The simulator that a callable makes, with `count` environments; on `device` if it has such a parameter."""
    given: dict[str, Any] = {"num_envs": count, **kwargs}
    if "device" in parameters_of(source):
        given.setdefault("device", device)
    with explained(source, given):
        made = source(**given)
    return Simulator(described(made, name_of(source), count), count)


def described(made: Any, name: str, count: int) -> Vector:
    """What a callable made, as a simulator. Environments of gymnax and Brax are wrapped."""
    if isinstance(made, Vector):
        return made
    env, parameters = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if hasattr(env, "step_env") and hasattr(env, "reset_env"):
        from telescope.control.simulators.functional import of_gymnax

        return vector(of_gymnax(env, parameters or env.default_params, count))
    if all(hasattr(made, one) for one in ("reset", "step", "single_observation_space", "single_action_space")):
        return vector(made)
    if all(hasattr(made, one) for one in ("reset", "step", "observation_size", "action_size")):
        raise ValueError(
            f"{name} returned a {type(made).__name__}, as Brax has them, which says nothing of its time limit; return "
            "telescope.control.simulators.functional.of_brax(env, num_envs, episode_length)"
        )
    raise ValueError(
        f"{name} has a parameter num_envs, so it makes all environments at once, but it returned a "
        f"{type(made).__name__}; expected a vector environment (reset, step, single_observation_space, "
        "single_action_space), or an environment of gymnax. For a function that makes one environment, rename the "
        "parameter, or set vectorization to 'sync'"
    )


class Simulator:
    """A vector environment as a stream of `Step`s of tensors [N, …], in any autoreset mode.

    Tensors may be the environment's own, which the next step overwrites; whoever keeps one copies it.
    """

    def __init__(self, how: Vector, count: int) -> None:
        for name, known in KNOWN.items():
            if (value := getattr(how, name)) not in known:
                raise ValueError(f"{name} is {value!r}, expected one of: {', '.join(filter(None, known))}")
        self.env, self.how, self.count = how.env, how, count
        self.name = type(how.env).__name__
        if (has := getattr(how.env, "num_envs", count)) != count:
            raise ValueError(f"{self.name} has {has} environments, but it was asked for num_envs={count}")
        space = how.env.single_observation_space
        self._whole = space if how.part is None else space[how.part]
        check_spaces(self._whole, how.env.single_action_space)
        self.observation_space = packed_observations(self._whole)
        self.action_space: Any = packed_actions(how.env.single_action_space)
        if isinstance(self.action_space, PackedActions):
            raise ValueError(f"{self.name} takes actions of {self.action_space}; a simulator's have one part")
        self.mode = autoreset_mode(how, self.name)
        self.resume_note = ""
        for method in ("restore", "state"):
            if not callable(getattr(how.env, method, None)):
                self.resume_note = f"{self.name} has no method {method}(), so a resumed run starts new episodes"
        self._ended: Any = None  # [N] where a NEXT_STEP autoreset will insert a row now
        self._library = "torch"
        self.seen: Seen
        """What the policy sees now."""

    @property
    def device(self) -> torch.device:
        """Where the tensors are; known after the first reset."""
        return self.seen.observations.device

    def reset(self, seeds: Sequence[int]) -> Seen:
        """Reset every environment with its seed, or all with the first one if they take only one."""
        return self._begin(*self.env.reset(seed=int(seeds[0]) if self.how.seeding == "one" else list(map(int, seeds))))

    def restart(self) -> Seen:
        """Reset every environment without a seed, so that its generator continues as after an episode's end."""
        return self._begin(*self.env.reset())

    def _begin(self, observations: Any, infos: Mapping[str, Any]) -> Seen:
        self._library = library_of(observations)
        self.seen = Seen(self._observed(observations, "at reset"), self._masks(infos))
        self._ended = torch.zeros(self.count, dtype=torch.bool, device=self.device)
        return self.seen

    def step(self, actions: Tensor) -> Step:
        """Step with actions [N, *act]. Environments whose episode ends are reset as the simulator's mode says."""
        before = self.seen.observations.clone() if self.how.finals == "previous" else None
        given = (actions + int(getattr(self.action_space, "start", 0))).to(_torch_dtype(self.action_space.dtype))
        observations, rewards, terminated, truncated, infos = self.env.step(self._native(given))
        seen = self._observed(observations, "at a step")
        rewards = self._row(rewards, "rewards")
        terminated, truncated = self._flags(terminated, "terminated"), self._flags(truncated, "truncated")
        mask, masks, reached = ~self._ended, self._masks(infos), seen
        ended = terminated | truncated
        if self.mode is AutoresetMode.NEXT_STEP:
            rewards, terminated, truncated = rewards.where(mask, 0), terminated & mask, truncated & mask
            self._ended = terminated | truncated
        elif self.mode is AutoresetMode.SAME_STEP:
            finals = before if before is not None else self._finals(infos, truncated & ~terminated)
            reached = seen if finals is None else torch.where(_beside(ended, seen), finals, seen)
        elif bool(ended.any()):
            reached = seen.clone()
            again, infos = self.env.reset(options={"reset_mask": self._native(ended)})
            seen, masks = self._observed(again, "at reset"), self._masks(infos) if masks is not None else None
        self.seen = Seen(seen, masks)
        return Step(seen, reached, rewards, terminated, truncated, mask, masks)  # type: ignore[arg-type]

    def _finals(self, infos: Mapping[str, Any], cut: Tensor) -> Tensor | None:
        """The final observations [N, …]; None where none are given, which is an error if a time limit needs one."""
        found = next((infos[name] for name in FINAL_NAMES if infos.get(name) is not None), None)
        if found is not None:
            return self._observed(found, "as final observations")
        if bool(cut.any()):
            raise ValueError(
                f"{self.name} resets in the step that truncates an episode, but infos has no {FINAL_NAMES[0]!r} "
                f"[N, …]; a time limit needs the value of the final observation. Give it, or say "
                "simulators.vector(env, finals='previous') to take the observation before it"
            )
        return None

    def _observed(self, observations: Any, when: str) -> Tensor:
        """Observations as one tensor [N, …]; rows of bytes for a Dict or Tuple. Choices count from 0."""
        found = observations if self.how.part is None else observations[self.how.part]
        subject = f"the observations that {self.name} returned {when}"
        space = self.observation_space
        if isinstance(space, PackedObservations):
            return _packed(space, found, self.count, subject)
        tensor = as_tensor(found, subject)
        require_shape(tensor, (self.count, *(space.shape or ())), subject, space)
        start = int(getattr(space, "start", 0))
        return tensor - start if start else tensor

    def _row(self, x: Any, what: str) -> Tensor:
        tensor = as_tensor(x, subject := f"the {what} that {self.name} returned")
        require_shape(tensor, (self.count,), subject)
        return tensor

    def _flags(self, x: Any, what: str) -> Tensor:
        row = self._row(x, f"flags {what}")
        return row if row.dtype == torch.bool else row != 0

    def _masks(self, infos: Mapping[str, Any]) -> Tensor | None:
        given = infos.get("action_mask") if isinstance(infos, Mapping) else None
        return None if given is None else as_tensor(given, f"the action masks of {self.name}").bool()

    def _native(self, x: Tensor) -> Any:
        """A tensor in the library of the simulator."""
        if self._library == "jax":
            return sys.modules["jax"].dlpack.from_dlpack(x.contiguous())
        return x.numpy() if self._library == "numpy" else x

    def kept(self) -> dict[str, Any]:
        """All that the next steps depend on, on the device."""
        seen = {name: None if x is None else x.as_subclass(Tensor).clone() for name, x in self.seen._asdict().items()}
        return {"simulator": copied(self.env.state()), "ended": self._ended.clone(), **seen}

    def put(self, kept: Mapping[str, Any]) -> Seen:
        """Continue from `kept()`, after a reset."""
        self.env.restore(kept["simulator"])
        self._ended = kept["ended"]
        self.seen = Seen(kept["observations"], kept["action_masks"])
        return self.seen

    def state(self) -> dict[str, Any]:
        """The same as plain data on the host."""
        return copied(self.kept(), on_host=True)  # type: ignore[no-any-return]

    def restore(self, state: Mapping[str, Any], seeds: Sequence[int]) -> Seen:
        """Continue from `state()`."""
        self.reset(seeds)
        same_kind("environments", state, self.state())
        placed = {
            name: x if x is None or name == "simulator" else torch.tensor(x, device=self.device)
            for name, x in state.items()
        }
        return self.put(placed | {"simulator": native(state["simulator"], self._library)})

    def close(self) -> None:
        if callable(close := getattr(self.env, "close", None)):
            close()


class Seen(NamedTuple):
    """What a policy sees of N environments."""

    observations: Tensor  # [N, *obs]
    action_masks: Tensor | None  # [N, A] bool


def autoreset_mode(how: Vector, name: str) -> AutoresetMode:
    """The mode that was said, that the environment declares, or that ManiSkill's `auto_reset` means."""
    declared = (getattr(how.env, "metadata", None) or {}).get("autoreset_mode")
    if how.autoreset is not None:
        return MODES[how.autoreset]
    if declared in MODES.values():
        return AutoresetMode(declared)
    if getattr(how.env, "auto_reset", False) is True:
        return AutoresetMode.SAME_STEP
    raise ValueError(
        f"{name} does not say when it resets: metadata['autoreset_mode'] is {declared!r}, expected a "
        "gymnasium.vector.AutoresetMode; return simulators.vector(env, autoreset='same_step') (or 'next_step', "
        "'disabled') from the function that makes it"
    )


def as_tensor(x: Any, subject: str) -> Tensor:
    """A torch or JAX array (or a NumPy array) as a tensor of the same memory, without gradient."""
    if isinstance(x, Tensor):
        return x.detach()
    if arrays.is_jax(x):
        return torch.from_dlpack(x)
    if isinstance(x, np.ndarray) and x.dtype != object:
        return torch.from_numpy(x)
    raise ValueError(f"{subject} are a {type(x).__name__}; expected one torch.Tensor or jax.Array for all environments")


def require_shape(tensor: Tensor, shape: tuple[int, ...], subject: str, space: Any = None) -> None:
    if tuple(tensor.shape) != shape:
        why = "" if space is None else f", as in the space {space}"
        raise ValueError(f"{subject} have shape {tuple(tensor.shape)}; expected {shape}{why}")


def _packed(space: PackedObservations, found: Any, count: int, subject: str) -> Tensor:
    """Rows of bytes [N, W] of a composite observation; see `environments/spaces.py`."""
    rows: Any = None
    for part in space.parts:
        own = as_tensor(part_of(found, part.path, subject), subject)
        require_shape(own, (count, *(part.space.shape or ())), f"{subject}, part {part.name},", part.space)
        if rows is None:
            rows = torch.zeros((count, *space.shape), dtype=torch.uint8, device=own.device)
        numbers = (own - int(getattr(part.space, "start", 0))).to(_torch_dtype(np.dtype(part.dtype)))
        numbers = numbers.reshape(count, part.entries).contiguous().view(torch.uint8)
        rows[:, part.start : part.start + numbers.shape[1]] = numbers
    return rows  # type: ignore[no-any-return]


def _beside(flags: Tensor, x: Tensor) -> Tensor:
    """Flags [N] as [N, 1, …], to choose rows of x."""
    return flags.reshape(len(flags), *(1,) * (x.ndim - 1))


def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def library_of(observations: Any) -> str:
    """The library of observations, or of the first part of composite ones: torch, jax or numpy."""
    while isinstance(observations, Mapping | tuple | list):
        observations = next(iter(observations.values() if isinstance(observations, Mapping) else observations))
    if isinstance(observations, Tensor):
        return "torch"
    return "jax" if arrays.is_jax(observations) else "numpy"


def copied(state: Any, on_host: bool = False) -> Any:
    """A simulator's state, nested dictionaries of arrays and numbers, as a copy: NumPy arrays if `on_host`."""
    if isinstance(state, Mapping):
        return {str(name): copied(value, on_host) for name, value in state.items()}
    if isinstance(state, Tensor):
        return state.detach().cpu().numpy().copy() if on_host else state.detach().clone()
    if arrays.is_jax(state):  # nobody can change it
        return np.array(state) if on_host else state
    return np.array(state) if isinstance(state, np.ndarray) else state


def native(state: Any, library: str) -> Any:
    """What `copied` put on the host, for a simulator of this library: tensors on the CPU, or NumPy arrays."""
    if isinstance(state, Mapping):
        return {name: native(value, library) for name, value in state.items()}
    if not isinstance(state, np.ndarray):
        return state
    return torch.tensor(state) if library == "torch" else np.array(state)
