"""Make one environment from an id or a callable, with an error sentence if that fails.

Leaves out many environments side by side (`lanes.py`).
"""

import inspect
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from telescope.control.environments.checks import observation_fit
from telescope.control.environments.dressing import Dressing
from telescope.control.environments.games import game_spec
from telescope.control.environments.importing import attribute, import_module, similar
from telescope.control.environments.partial import register
from telescope.control.environments.snapshots import Recorder
from telescope.control.environments.spaces import Packed, Rows, check_parts, packed_actions, packed_observations
from telescope.control.environments.subprocesses import Reporting

EnvironmentSource = EnvSpec | Callable[..., gym.Env]


@dataclass(frozen=True)
class Factory:
    """Builds one recorded environment, here or in a worker process (so it must be picklable)."""

    source: EnvironmentSource
    kwargs: Mapping[str, Any]
    creator: int = field(default_factory=os.getpid)
    wrap: Callable[[gym.Env], gym.Env] | None = None
    """A wrapper around the environment, for this row only."""
    dressing: Dressing = Dressing()  # noqa: RUF009
    """What the run puts around every environment."""

    def __call__(self) -> Recorder:
        if os.getpid() != self.creator:
            # Ctrl-C and a scheduler's signals reach the whole process group. The parent stops at its next iteration
            # and then closes its workers; a worker that died at once would break that iteration.
            os.setpgrp()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with explained(self.source, self.kwargs), quiet_mujoco():
            env = self._make()
        if not isinstance(env, gym.Env):
            raise ValueError(
                f"env must return a gymnasium.Env, but {name_of(self.source)} returned a {type(env).__name__}"
            )
        env = self.dressing(env)
        check_spaces(env.observation_space, env.action_space)
        env = in_rows(env)
        if self.wrap is not None:
            env = self.wrap(env)
        return _handed_out(env if os.getpid() == self.creator else Reporting(env), name_of(self.source))

    def _make(self) -> gym.Env:
        if isinstance(self.source, EnvSpec):
            # Gymnasium's checker inspects every observation and action: useful in a test, slow in training.
            return gym.make(self.source, **{"disable_env_checker": True, **self.kwargs})
        return self.source(**self.kwargs)


_RECORDERS: weakref.WeakValueDictionary[int, Recorder] = weakref.WeakValueDictionary()
"""The recorders of this process, by the id of their innermost environment object."""


def _handed_out(env: gym.Env, name: str) -> Recorder:
    """The environment with a recorder. A ValueError if another recorder already steps the same object."""
    base = env.unwrapped
    holder = _RECORDERS.get(id(base))
    if holder is not None and not holder.closed:
        raise ValueError(
            f"env {name} returned the same {type(base).__name__} object twice, but several environments are needed "
            "(num_envs, seeds, and one more for evaluation), each with its own state; make a new one at each call: "
            f"env={type(base).__name__}, or a function that constructs it"
        )
    recorder = _RECORDERS[id(base)] = Recorder(env)
    return recorder


def find_source(env: str | Callable[..., gym.Env]) -> EnvironmentSource:
    """The registered spec of an id (also "module:Id-v0"), or a callable, given directly or as "module:name".

    Workers receive the spec and not the id, so they need not run the code that registered it.
    """
    if not isinstance(env, str):
        if not callable(env):
            raise ValueError(f"env must be an environment id or a callable that returns one; got {env!r}")
        return env
    module, _, name = env.rpartition(":")
    if module and not name:
        raise ValueError(
            f"env is {env!r}: the run began with a function or class of {module} that cannot be imported by name; "
            "continue from Python, where it exists, with train(config, resume=state) and Policy(config, state)"
        )
    if module:
        import_module(module, env, "env")
        if name not in gym.registry and callable(found := attribute(sys.modules[module], name)):
            return found  # type: ignore[no-any-return]
    elif (game := game_spec(name)) is not None:
        return game
    if name.startswith("telescope/"):
        register()
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        if module:
            raise ValueError(
                f"env is {env!r}, but the module {module!r} neither has a class or function {name!r} nor registers "
                f"such an id{similar(name, [*vars(sys.modules[module]), *gym.registry])}"
            ) from error
        raise ValueError(unknown_id(env, gym.registry)) from error


UNLIMITED = 2**31 - 1
"""Stands for no time limit in a vector environment, which counts steps in 32 bits and has no other value for it."""


def time_limit(source: EnvironmentSource | str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments, with an id's `max_episode_steps` checked. None, the registered limit, is left out."""
    limit = kwargs.get("max_episode_steps")
    if not isinstance(source, EnvSpec | str):  # a callable may use that name for anything
        return dict(kwargs)
    if limit is None:
        return {name: value for name, value in kwargs.items() if name != "max_episode_steps"}
    steps = int(limit) if isinstance(limit, Integral) and not isinstance(limit, bool) else 0
    if not (steps > 0 or steps == -1):
        raise ValueError(f"max_episode_steps is {limit!r}; expected a whole number > 0, or -1 for no time limit")
    return dict(kwargs) | {"max_episode_steps": steps}


def without_limit(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a vector environment. There −1 would be a limit of one step, not no limit as in gymnasium.make."""
    return dict(kwargs) | ({"max_episode_steps": UNLIMITED} if kwargs.get("max_episode_steps") == -1 else {})


def unknown_id(env: str, known: Any, where: str = "registered with Gymnasium") -> str:
    """The error sentence for an unknown id, with up to three similar ones."""
    hint = similar(env, known) or "; is the package that registers it imported?"
    return f"env {env!r} is not {where}{hint} (an id of another package is written module:Id-v0)"


def makes_batches(source: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a callable makes all environments at once: it has a parameter num_envs that no keyword fills."""
    return callable(source) and "num_envs" in parameters_of(source) and "num_envs" not in kwargs


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a callable; none for a builtin without a signature."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def name_of(source: EnvironmentSource) -> str:
    return source.id if isinstance(source, EnvSpec) else getattr(source, "__name__", repr(source))


@contextmanager
def explained(source: EnvironmentSource, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turn errors of a constructor into sentences that name the environment and the package or argument."""
    name = name_of(source)
    if not isinstance(source, EnvSpec) and (complaint := refused_keywords(source, kwargs)):
        raise ValueError(f"env_kwargs {dict(kwargs)} do not fit {name}: {complaint}")
    try:
        yield
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(
            f"{name} needs a package that is not installed: {error}; "
            'pip install "telescope-rl[control]" installs the usual environments'
        ) from error
    except Exception as error:
        if not isinstance(source, EnvSpec):  # the caller's code: show its traceback
            raise
        told = f" with env_kwargs {dict(kwargs)}" if kwargs else ""
        raise ValueError(f"{name} cannot be made{told}: {type(error).__name__}: {error}") from error


def refused_keywords(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> str:
    """Python's complaint about calling `function(**kwargs)`; empty if the names fit."""
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:  # a builtin without a signature
        pass
    return ""


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep one message of MuJoCo off the terminal and out of MUJOCO_LOG.TXT.

    From MuJoCo 4.0 on, every HalfCheetah reports a deprecated attribute of Gymnasium's own model file, which
    users cannot change. All other messages pass.
    """
    try:
        from mujoco import get_mju_user_warning, set_mju_user_warning
    except ImportError:  # before 4.0, or none: gym.make says what to install, if this environment needs it
        yield
        return
    before = get_mju_user_warning()
    show = before or (lambda message: print(f"MuJoCo: {message}", file=sys.stderr))
    set_mju_user_warning(lambda message: None if "settotalmass" in message else show(message))
    try:
        yield
    finally:
        set_mju_user_warning(before)


def in_rows(env: gym.Env) -> gym.Env:
    """The environment with rows for composite spaces; unchanged if it has none."""
    seen, chosen = packed_observations(env.observation_space), packed_actions(env.action_space)
    if not isinstance(seen, Packed) and not isinstance(chosen, Packed):
        return env
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    return Rows(env, observation_fit(seen, subject=f"the observation that {name} returned"))


def check_spaces(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Raise a ValueError for spaces that the agents do not support.

    Supported are Box, Discrete, MultiDiscrete and MultiBinary, and nested Dicts and Tuples of those.
    """
    check_parts(observation_space, "observation")
    check_parts(action_space, "action")
