"""A run folder says what its agents see and do, so that they act where their environment is not installed."""

import json
import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import telescope
from telescope.algorithms import ppo
from telescope.control.environments.described import described, space_of, spaces_of
from telescope.control.environments.spaces import packed_actions, packed_observations
from telescope.policy import Policy

SPACES = [
    spaces.Discrete(5),
    spaces.Discrete(3, start=-7),
    spaces.MultiDiscrete([[2, 300], [4, 5]]),
    spaces.MultiDiscrete([2, 3], start=[1, -1]),
    spaces.MultiBinary((2, 3)),
    spaces.Box(-1, 1, (3,), np.float32),
    spaces.Box(np.array([-np.inf, 0, 0.1]), np.array([1, np.inf, 0.3]), dtype=np.float64),
    spaces.Box(0, 255, (4, 5, 3), np.uint8),
    spaces.Box(-9, 2**62, (), np.int64),
    spaces.Box(0, 1, (2,), bool),
    spaces.Dict({"b": spaces.Box(0, 1, (1,)), "a": spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(3)))}),
]
HIDDEN = """
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {"mujoco", "Box2D", "pygame", "ale_py", "strangers"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_is_what_its_description_says(space):
    plain = json.loads(json.dumps(described(space), allow_nan=False))
    found = space_of(plain)
    assert found == space
    if isinstance(space, spaces.Dict):
        assert list(found.spaces) == list(space.spaces)
    else:
        assert found.dtype == space.dtype
    assert described(packed_observations(space)) == described(packed_actions(space)) == plain
    assert spaces_of({"observation": plain, "action": plain}) == (packed_observations(space), packed_actions(space))


def test_a_space_that_agents_do_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match="is a Text; expected Box, Discrete"):
        described(spaces.Text(3))


def trained(folder, env, **more):
    settings = {"total_steps": 32, "num_steps": 16, "minibatch_size": 16, "epochs": 1, "compile": "off"} | more
    telescope.train(ppo.PPO(env=env, **settings), folder)
    return telescope.load(folder)


def elsewhere(code):
    """What a script prints in a process without simulators."""
    script = textwrap.dedent(HIDDEN) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("env", ["InvertedPendulum-v5", "Pendulum-v1"])
def test_agents_act_without_their_simulator(env, tmp_path):
    here = trained(tmp_path / "run", env, normalise_observations=True)
    seen = np.linspace(-1, 1, here.observation_space.shape[0]).astype(np.float32)
    done = elsewhere(
        f"""
        import numpy as np, telescope
        policy = telescope.load({str(tmp_path / "run")!r})
        print(policy.act(np.array({seen.tolist()!r}, np.float32)).tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here.act(seen).tolist()


def test_agents_act_where_their_environment_is_unknown(tmp_path):
    """Its id is not registered there; evaluating needs it, and says so."""
    gym.register("Nowhere-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=9)
    here = trained(tmp_path / "run", "Nowhere-v0")
    done = elsewhere(
        f"""
        import numpy as np, telescope
        policy = telescope.load({str(tmp_path / "run")!r})
        print(policy.act(np.zeros(4, np.float32)))
        try:
            policy.evaluate(1)
        except ValueError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    action, sentence = done.stdout.splitlines()
    assert int(action) == here.act(np.zeros(4, np.float32))
    assert "env 'Nowhere-v0' is not registered" in sentence


def test_a_run_from_before_asks_its_environment(tmp_path):
    here = trained(tmp_path / "run", "CartPole-v1")
    state = telescope.runs.RunFolder.open(tmp_path / "run").load_checkpoint()["policy"]
    assert Policy(here.config, state).observation_space == here.observation_space


def test_an_environment_with_other_spaces_is_no_place_to_evaluate(tmp_path):
    gym.register("Changing-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=9)
    policy = trained(tmp_path / "run", "Changing-v0")
    assert policy.evaluate(1).returns.shape == (1, 1)
    gym.registry.pop("Changing-v0")
    gym.register("Changing-v0", entry_point="gymnasium.envs.classic_control.acrobot:AcrobotEnv", max_episode_steps=9)
    with pytest.raises(
        ValueError, match=r"env 'Changing-v0' has the observation space Box.*but the agents were trained"
    ):
        policy.evaluate(1)
