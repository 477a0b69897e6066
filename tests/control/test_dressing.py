"""What a run puts around an environment: wrappers by name, stacks of observations, time limits; and own networks."""

import dataclasses
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from telescope.algorithms import dqn, ppo, sac, trpo
from telescope.cli import main
from telescope.commands.arguments import known_flags, values
from telescope.commands.train import train_arguments
from telescope.control.environments.dressing import Dressing, wrappers
from telescope.control.environments.population import Environments
from telescope.policy import Policy, load
from telescope.runs.files import RunError
from telescope.runs.identity.trust import code_in

SMALL = {"num_envs": 2, "num_steps": 8, "total_steps": 32, "threads": 1, "compile": "off"}
PACKAGE = """
import gymnasium as gym, numpy as np
from gymnasium import spaces
from torch import nn

class World(gym.Env):
    observation_space = spaces.Dict({
        "number": spaces.Discrete(3), "needle": spaces.Box(-1, 1, (1,), np.float32),
        "camera": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    })
    action_space = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (1,), np.float32)))

    def __init__(self, length): self.length = length
    def look(self):
        return {"number": self.np_random.integers(3), "needle": np.zeros(1, np.float32),
                "camera": np.zeros((4, 4, 1), np.uint8)}
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}
    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.look(), 1.0, self.steps >= self.length, False, {}

def make(length=5): return World(length)

class Twice(gym.RewardWrapper):
    def __init__(self, env, times=2): super().__init__(env); self.times = times
    def reward(self, reward): return self.times * reward

class Net(nn.Module):
    shaped = True
    def __init__(self, observation_space, action_space):
        super().__init__()
        assert isinstance(observation_space, spaces.Dict), observation_space
        self.out, self.value = nn.Linear(3, 5), nn.Linear(16, 1)
    def forward(self, x):
        return self.out(x["number"]), self.value(x["camera"].flatten(1) / 255).squeeze(-1)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stranger's package, in the working directory only."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "envs.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the import of a module in the working directory extends
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield folder
    for name in [name for name in sys.modules if name.startswith("stranger")]:
        del sys.modules[name]


def test_words_become_wrappers_with_their_arguments():
    words = ("a.b:One", "c:Two", "scale=0.5", "name=left", "on=true", "shape=(2, 3)")
    assert wrappers(words) == [("a.b:One", {}), ("c:Two", {"scale": 0.5, "name": "left", "on": True, "shape": (2, 3)})]
    for odd in (("One",), ("scale=1",), ("a:b", "=1")):
        with pytest.raises(ValueError, match=r"wrap has the word .*expected module:Name"):
            wrappers(odd)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("gymnasium.wrappers:Nothing",), "wrap is 'gymnasium.wrappers:Nothing', but the module .* has no 'Nothing'"),
        (("nowhere:X",), "wrap 'nowhere:X' names the module 'nowhere', which cannot be imported"),
        (("gymnasium.wrappers:ClipReward", "lowest=1"), "wrap 'gymnasium.wrappers:ClipReward' with {'lowest': 1} does"),
        (("builtins:id",), "wrap 'builtins:id' returned a int"),
    ],
)
def test_a_wrapper_that_does_not_fit_is_told(words, told):
    with pytest.raises(ValueError, match=told):
        Environments("Pendulum-v1", seeds=[0], num_envs=1, dressing=Dressing(words))


def test_wrappers_stack_and_limit_act_in_training_and_evaluation():
    wrap = ("gymnasium.wrappers:TimeAwareObservation", "gymnasium.wrappers:ClipReward", "min_reward=-1", "max_reward=0")
    config = ppo.PPO(env="Pendulum-v1", **SMALL, wrap=wrap, frame_stack=3, time_limit=6, minibatch_size=8)
    *_, last = ppo.train(config)
    policy = Policy(config, last.policy)
    assert policy.observation_space.shape == (3, 4), "the time beside three numbers, three times"
    result = policy.evaluate(3)
    assert (result.lengths == 6).all()
    assert (result.returns >= -6).all()


def test_a_stack_repeats_nothing_across_episodes_and_its_last_is_the_present():
    environments = Environments("Pendulum-v1", seeds=[0], num_envs=1, dressing=Dressing(frame_stack=2, time_limit=3))
    seen = [environments.reset()[0][0, 0]]
    for _ in range(2):
        seen.append(environments.step(np.ones((1, 1, 1))).observations[0, 0])
    assert np.array_equal(seen[0][0], seen[0][1])
    assert np.array_equal(seen[1][0], seen[0][1])
    assert np.array_equal(seen[2][0], seen[1][1])
    assert not np.array_equal(seen[2][0], seen[2][1])
    environments.close()


@pytest.mark.parametrize(
    "env",
    [
        "Pendulum-v1",
        "CartPole-v1",
        lambda: gym.make("Pendulum-v1", max_episode_steps=2),
        gym.envs.classic_control.PendulumEnv,
    ],
)
def test_a_time_limit_replaces_that_of_an_id_and_of_a_callable(env):
    environments = Environments(env, seeds=[0], num_envs=1, dressing=Dressing(time_limit=4))
    environments.reset()
    actions = np.zeros((1, 1, *environments.action_space.shape))
    steps = [environments.step(actions) for _ in range(4)]
    assert [bool(step.truncated[0, 0]) for step in steps] == [False, False, False, True]
    environments.close()


def test_what_cannot_be_dressed_says_so():
    stacked = Dressing(frame_stack=2)
    with pytest.raises(ValueError, match="frame_stack is set, but vectorization is 'vector_entry_point'"):
        Environments("CartPole-v1", seeds=[0], num_envs=1, vectorization="vector_entry_point", dressing=stacked)
    with pytest.raises(ValueError, match="time_limit is 5, but env_kwargs has max_episode_steps 9"):
        Environments(
            "CartPole-v1", seeds=[0], num_envs=1, env_kwargs={"max_episode_steps": 9}, dressing=Dressing(time_limit=5)
        )
    environments = Environments("CartPole-v1", seeds=[0], num_envs=1, dressing=stacked)
    assert environments.vectorization == "sync"
    environments.close()


def test_the_stack_survives_a_resume_bit_for_bit():
    config = ppo.PPO(env="Pendulum-v1", **SMALL, frame_stack=3, minibatch_size=8)
    *_, whole = ppo.train(config)
    loop = ppo.train(config)
    state = next(loop).state
    loop.close()
    *_, resumed = ppo.train(config, state)
    assert torch.equal(whole.policy["parameters"], resumed.policy["parameters"])


def test_environments_of_an_actor_are_those_of_a_seed():
    config, _ = train_arguments("impala", "CartPole-v1", ["--actors", "2", "--envs-per-actor", "4"])
    assert (config.actors, config.num_envs) == (2, 4)


def test_short_forms_and_repeated_flags():
    found = values(
        ["--wrap", "a:B", "x=1", "--squash", "--network", "m:n", "--wrap", "c:D"], known_flags(ppo.PPO), "train"
    )
    assert found == {"wrap": ("a:B", "x=1", "c:D"), "action-bounds": "squash", "network-module": "m:n"}


def test_a_strangers_package_trains_evaluates_and_asks_for_trust(package, capsys, monkeypatch):
    run = str(package.parent / "run")
    flags = ["--num-envs", "2", "--num-steps", "8", "--total-steps", "32", "--compile", "off", "--seeds", "2"]
    flags += ["--minibatch-size", "8"]
    flags += [
        "--wrap",
        "stranger.envs:Twice",
        "times=3",
        "--network",
        "stranger.envs:Net",
        "--env-kwargs",
        "length",
        "4",
    ]
    assert main(["train", "ppo", "--env", "stranger.envs:make", "--out", run, "--processes", "1", *flags]) == 0
    assert main(["eval", run, "--episodes", "2"]) == 0
    assert "12.0" in capsys.readouterr().out, "four steps, thrice the reward"
    assert main(["train", "--resume", run, "--total-steps", "64"]) == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(package / "somebody-else"))
    with pytest.raises(RunError, match=r"stranger\.envs"):
        load(run)
    for command in (["eval", run], ["train", "--resume", run, "--total-steps", "96"], ["train", "--start", run]):
        capsys.readouterr()
        assert main(command) != 0
        told = capsys.readouterr().err
        assert "stranger.envs" in told
        assert "--trust" in told
    assert load(run, trust=True).evaluate(1).returns.shape == (2, 1)


def test_every_code_that_a_configuration_names_is_listed():
    found = code_in({"env": "CartPole-v1", "wrap": ["a.b:C", "x='d:e'"], "network_module": "f:g"})
    assert list(found) == ["wrap 'a.b:C' imports a.b", "network 'f:g' imports f"]
    assert not code_in({"env": "CartPole-v1", "wrap": [], "network_module": None})


def test_an_own_network_that_does_not_fit_is_told(package):
    (package / "odd.py").write_text("number = 3\ndef build(): return 5\n")
    config = ppo.PPO(env="Pendulum-v1", **SMALL, minibatch_size=8)
    for name, told in (("number", "is a int"), ("build", "returned a int"), ("nothing", "has no 'nothing'")):
        with pytest.raises(ValueError, match=told):
            next(ppo.train(dataclasses.replace(config, network_module=f"stranger.odd:{name}")))


class Unseen(gym.Env):
    """The reward names what only the critic sees."""

    observation_space = spaces.Dict(
        {
            "truth": spaces.Dict({"goal": spaces.Box(-1, 1, (2,), np.float32), "kind": spaces.Discrete(3)}),
            "seen": spaces.Box(-1, 1, (3,), np.float32),
        }
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample(), {}

    def step(self, action):
        observation = self.observation_space.sample()
        return observation, float(observation["truth"]["goal"][0]), False, self.np_random.random() < 0.2, {}


@pytest.mark.parametrize(
    ("module", "config"),
    [
        (ppo, ppo.PPO(env=Unseen, **SMALL, minibatch_size=8, normalise_observations=True)),
        (ppo, ppo.PPO(env=Unseen, **SMALL, minibatch_size=8, critic="quantile")),
        (trpo, trpo.TRPO(env=Unseen, **SMALL, minibatch_size=8)),
        (sac, sac.SAC(env=Unseen, **SMALL, learning_starts=8, minibatch_size=4, hidden=(8,))),
    ],
)
@pytest.mark.parametrize("key", ["truth", "truth.goal"])
def test_what_only_the_critic_sees_moves_values_and_no_action(module, config, key):
    config = dataclasses.replace(config, critic_observations=(key,))
    *_, last = module.train(config)
    policy = Policy(config, last.policy)
    one = Unseen().reset(seed=0)[0]
    other = {"truth": {**one["truth"], "goal": -one["truth"]["goal"]}, "seen": one["seen"]}
    assert np.array_equal(policy.act(one), policy.act(other))
    assert policy.value(one) != policy.value(other)
    blind = {"truth": one["truth"], "seen": -one["seen"]}
    assert not np.array_equal(policy.act(one), policy.act(blind))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"critic_observations": ("trut",)},
            "has 'trut', but the observation's parts are seen, truth.goal",
        ),
        ({"critic_observations": ("truth", "seen")}, "which is everything"),
        ({"critic_observations": ("truth",), "shared_network": True}, "critic_observations is .* but shared_network"),
        (
            {"critic_observations": ("truth",), "memory": "gru", "shared_memory": True},
            "critic_observations is .* but shared_memory is True",
        ),
        ({"critic_observations": ("truth",), "env": "Pendulum-v1"}, "critic_observations is .* has no keys"),
    ],
)
def test_keys_that_cannot_be_kept_from_the_policy_are_told(changed, told):
    config = ppo.PPO(env=Unseen, **SMALL, minibatch_size=8)
    with pytest.raises(ValueError, match=told):
        next(ppo.train(dataclasses.replace(config, **changed)))


def test_dqn_takes_a_network_by_its_name(package):
    (package / "q.py").write_text(
        "from torch import nn\n"
        "class Q(nn.Module):\n"
        "    def __init__(self, seen, acts):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(seen.shape[0], int(acts.n))\n"
        "    def forward(self, x):\n"
        "        q = self.layer(x)\n"
        "        return q, q.amax(-1)\n"
    )
    config = dqn.DQN(env="CartPole-v1", **SMALL, learning_starts=8, minibatch_size=4, network_module="stranger.q:Q")
    *_, last = dqn.train(config)
    assert last.policy["parameters"].shape == (1, 10)
