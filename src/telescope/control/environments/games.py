"""Games whose observations are pictures, found by their ids without an import: MinAtar/… and ALE/….

Their own environments keep random numbers outside Gymnasium's generator, and MinAtar's the last action over a reset;
here an episode follows from its seed, so that a run can be resumed exactly. Leaves out the pictures' networks.
"""

from __future__ import annotations

import copy
import importlib
import logging
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

MINATAR = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
"""The games by their names in ids, and in the package."""


class MinAtar(gym.Env):
    """A game of MinAtar (Young & Tian 2019, arXiv 1903.03176): pictures [10, 10, channels] of bools.

    Actions repeat the last one with probability 0.1 (`sticky_action_prob`), and games become harder with time
    (`difficulty_ramping`). `use_minimal_action_set` leaves out actions that do nothing.
    """

    def __init__(self, game: str, *, use_minimal_action_set: bool = True, **more: Any) -> None:
        self.game = _package("minatar", f"MinAtar/{game}").Environment(game, **more)
        every = self.game.minimal_action_set() if use_minimal_action_set else range(self.game.num_actions())
        self.actions = list(every)
        self.action_space = gym.spaces.Discrete(len(self.actions))
        self.observation_space = gym.spaces.Box(0.0, 1.0, tuple(self.game.state_shape()), np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.game.seed(int(self.np_random.integers(2**32)))
        self.game.last_action = 0
        self.game.reset()
        return self._picture(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward, ended = self.game.act(self.actions[int(action)])
        return self._picture(), float(reward), bool(ended), False, {}

    def _picture(self) -> np.ndarray:
        return np.asarray(self.game.state(), np.bool_)


class Seeded(gym.Wrapper):
    """Seeds the environment at every reset, with numbers of its own generator, of which an episode then follows."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is None:
            seed = int(self.unwrapped.np_random.integers(2**31))
        return self.env.reset(seed=seed, options=options)


def atari(*, preprocessed: bool = False, **more: Any) -> gym.Env:
    """A game of the Arcade Learning Environment, as its id describes it.

    With `preprocessed` observations are grey pictures [84, 84] of the brighter of the last two of four frames, after
    each of which the action is repeated. Nothing else of a game is known to the agent: lives do not end episodes, and
    there are no actions before the first (Machado et al. 2018, arXiv 1709.06009).
    """
    package = _package("ale_py", "ALE")
    package.ALEInterface.setLoggerMode(package.LoggerMode.Error)  # no banner for each game
    made: gym.Env = package.AtariEnv(**(more | {"frameskip": 1} if preprocessed else more))
    if preprocessed:
        made = gym.wrappers.AtariPreprocessing(made, noop_max=0, frame_skip=4)
    return Seeded(made)


def game_spec(name: str) -> EnvSpec | None:
    """The spec of an id of these games; None for other ids. An ImportError names the extra of a missing package."""
    space, _, rest = name.partition("/")
    if space == "ALE":
        gym.register_envs(_package("ale_py", name))
        spec = copy.deepcopy(gym.registry.get(name))
        if spec is not None:
            spec.entry_point = f"{__name__}:atari"
        return spec
    game, _, version = rest.rpartition("-v")
    if space != "MinAtar" or game not in MINATAR or version not in ("0", "1"):
        return None
    _package("minatar", name)
    kwargs = {"game": MINATAR[game], "use_minimal_action_set": version == "1"}
    return EnvSpec(name, entry_point=f"{__name__}:MinAtar", kwargs=kwargs)


def _package(module: str, name: str) -> Any:
    try:
        logging.disable(logging.WARNING)  # about packages that only draw
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{name} needs a package that is not installed: {error}; pip install "telescope-rl[atari]" installs it'
        ) from error
    finally:
        logging.disable(logging.NOTSET)
