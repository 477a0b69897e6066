"""A world of somebody else, whole: it sees a picture, numbers and a word of a Dict, and acts by a choice and a number.

Its reward needs all of them. Trained, evaluated and exported from the command line. Leaves out each space by itself
(`test_spaces.py`, `test_partial.py`) and trust (`test_dressing.py`).
"""

import re
import sys

import pytest

from telescope.cli import main

WORLD = '''
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Workshop(gym.Env):
    """Pull the lever of the bright corner, as far as the dial says, or as far to the other side."""

    def __init__(self):
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (16, 16, 1), np.uint8),
                "dial": spaces.Box(-1, 1, (2,), np.float32),
                "side": spaces.Discrete(2),
            }
        )
        self.action_space = spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (1,), np.float32)))

    def _seen(self):
        rng = self.np_random
        self.corner, self.side, self.dial = rng.integers(4), rng.integers(2), rng.uniform(-1, 1, 2)
        camera = rng.integers(0, 60, (16, 16, 1))
        y, x = 8 * np.array(divmod(self.corner, 2)) + rng.integers(5, size=2)
        camera[y : y + 4, x : x + 4] = 255
        return {"camera": camera.astype(np.uint8), "dial": self.dial.astype(np.float32), "side": int(self.side)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        lever, pull = action
        wanted = self.dial[0] if self.side else -self.dial[0]
        reward = float(lever == self.corner and abs(float(pull[0]) - wanted) < 0.3)
        self.t += 1
        return self._seen(), reward, False, self.t == 20, {}


def make():
    return Workshop()
'''
FLAGS = (
    "--total-steps 122880 --num-envs 8 --num-steps 256 --minibatch-size 256 --learning-rate 1e-3 --gamma 0.5 "
    "--log-std -0.7 --shared-network --eval-every 0"
)


@pytest.mark.slow
def test_a_strangers_world_is_learned_evaluated_and_exported(tmp_path, monkeypatch, capsys):
    """Of 20 rewards the choice alone earns 6 with the best number for all, and the number alone 5."""
    (tmp_path / "workshop_of_a_stranger.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert main(["train", "ppo", "--env", "workshop_of_a_stranger:make", "--out", "run", *FLAGS.split()]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--episodes", "100"]) == 0
    assert float(re.search(r"mean (\S+), worst", capsys.readouterr().out).group(1)) >= 15
    for out in ("policy.onnx", "policy.npz"):
        assert main(["export", "run", "--out", out]) == 0  # compares with the agent
