"""Composite spaces: Dict, Tuple, MultiDiscrete and MultiBinary observations, and actions of several parts."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

import telescope
from telescope.algorithms import a2c, dqn, group_episodes, ppo, pqn, reinforce, sac, sarsa_lambda, stream_ac, td_lambda
from telescope.control.agents.actions import bounding
from telescope.control.agents.distributions import distribution
from telescope.control.agents.networks import from_module
from telescope.control.agents.reading import flat, parted, width
from telescope.control.environments.checks import mask_fit, observation_fit
from telescope.control.environments.lanes import MODES, Lane
from telescope.control.environments.population import Environments
from telescope.control.environments.spaces import in_row, packed_actions, packed_observations
from telescope.control.training import Session
from telescope.optimisers import Learner
from telescope.policy import Policy

BYTES = spaces.Box(0, 200, (2, 3), np.uint8)  # not a picture: its bounds are others
NESTED = spaces.Dict(
    {
        "place": spaces.Discrete(5, start=-2),
        "far": spaces.Discrete(1000),
        "speed": spaces.Box(-1, 1, (2, 2), np.float64),
        "inside": spaces.Tuple((spaces.MultiDiscrete([2, 4, 4]), spaces.MultiBinary((2, 2)), BYTES)),
        "level": spaces.Box(-9, 9, (), np.int32),
        "open": spaces.Box(0, 1, (3,), bool),
    }
)
OBSERVATIONS = [
    NESTED,
    spaces.MultiDiscrete([3, 3, 3]),
    spaces.MultiDiscrete([[2, 300], [4, 5]]),
    spaces.MultiBinary(5),
    spaces.Tuple((spaces.Discrete(3), spaces.Box(-2, 2, (3,), np.float32))),
    spaces.Dict({"only": spaces.Dict({"deep": spaces.Box(0, 1, (1,), np.float32)})}),
]
HYBRID = spaces.Dict(
    {
        "aim": spaces.Box(-1, 1, (2, 2), np.float32),
        "fire": spaces.Discrete(3, start=1),
        "keys": spaces.MultiBinary(2),
        "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-np.inf, np.inf, (), np.float64))),
    }
)


class Both(gym.Env):
    """A step pays only if the number is named and the needle is right, which a picture turns around: 20 an episode."""

    observation_space = spaces.Dict(
        {
            "number": spaces.Discrete(3, start=1),
            "needle": spaces.Box(-1, 1, (1,), np.float64),
            "camera": spaces.Box(0, 255, (3, 4, 1), np.uint8),
        }
    )
    action_space = spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(-1, 1, (1,), np.float32)))

    def __init__(self, length=20):
        self.length = length

    def look(self):
        self.number, self.needle = int(self.np_random.integers(1, 4)), self.np_random.uniform(-1, 1, 1)
        self.dark = bool(self.np_random.random() < 0.5)
        camera = np.full((3, 4, 1), 255 * self.dark, np.uint8)
        return {"number": self.number, "needle": self.needle, "camera": camera}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def step(self, action):
        assert Both.action_space.contains(action), action
        wanted = -self.needle[0] if self.dark else self.needle[0]
        reward = float(action[0] == self.number) * max(0.0, 1 - abs(float(action[1][0]) - wanted))
        self.steps += 1
        return self.look(), reward, False, self.steps >= self.length, {}


class Choosing(Both):
    """The same with one Discrete action, for algorithms of such: it pays to name the number."""

    action_space = spaces.Discrete(3)

    def step(self, action):
        return super().step((action + 1, np.zeros(1, np.float32)))


class Pushing(Both):
    """The same with a Box without bounds."""

    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def step(self, action):
        return super().step((self.number, np.clip(action, -1, 1).astype(np.float32)))


SMALL = {"seeds": 2, "num_envs": 2, "num_steps": 8, "total_steps": 64, "threads": 1, "compile": "off"}
WHOLE = {"num_steps": 100, "total_steps": 400}
"""Of algorithms whose iterations have whole episodes: room for them, and for two iterations at least."""


def rows(space, count=4, seed=0):
    """Some observations, and the same as rows."""
    space.seed(seed)
    packed = packed_observations(space)
    fit = observation_fit(packed)
    found = [space.sample() for _ in range(count)]
    return packed, found, np.stack([fit(one) for one in found])


@pytest.mark.parametrize("space", OBSERVATIONS, ids=str)
def test_a_row_keeps_every_part_and_decodes_to_what_gymnasium_flattens(space):
    packed, found, stored = rows(space)
    assert stored.dtype == np.uint8
    for one, row in zip(found, stored, strict=True):
        again = packed.native(row)
        assert space.contains(again)
        assert np.allclose(spaces.flatten(space, again), spaces.flatten(space, one), rtol=1e-6)
        assert np.allclose(flat(packed, row), spaces.flatten(space, one), rtol=1e-6)
    assert flat(packed, stored).shape == (4, width(packed)) == (4, spaces.flatdim(space))
    assert np.array_equal(flat(packed, torch.from_numpy(stored)).numpy(), flat(packed, stored))


def test_a_batch_is_packed_as_its_observations_one_by_one():
    packed, found, stored = rows(NESTED, 3)
    together = gym.vector.utils.concatenate(NESTED, found, gym.vector.utils.create_empty_array(NESTED, 3))
    assert np.array_equal(observation_fit(packed, (3,))(together), stored)


def test_pictures_stay_bytes_in_a_rollout_and_become_shares_of_one_for_a_network():
    space = spaces.Dict({"camera": spaces.Box(0, 255, (84, 84, 4), np.uint8), "speed": spaces.Box(-1, 1, (3,))})
    packed, found, stored = rows(space, 2)
    assert packed.shape == (84 * 84 * 4 + 3 * 4,), "one byte a pixel, four a float"
    assert np.allclose(flat(packed, stored)[0, :-3], found[0]["camera"].ravel() / 255)
    parts = parted(packed, torch.from_numpy(stored))
    assert parts["camera"].dtype == torch.uint8
    assert np.array_equal(parts["camera"][1].numpy(), found[1]["camera"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"number": 0}, r"\['number'\] at reset holds 0, which is not in"),
        ({"needle": np.zeros(2)}, r"\['needle'\] at reset has shape \(2,\)"),
        ({"camera": None}, r"\['camera'\] at reset is None"),
        ({"more": 1}, "has the part 'more', which its space lacks"),
        ({"number": ...}, "has no part 'number'"),
        ({"needle": np.full(1, np.nan)}, r"\['needle'\] at reset holds nan"),
    ],
)
def test_a_part_that_does_not_fit_is_named(change, complaint):
    class Broken(Both):
        def look(self):
            return {key: x for key, x in (super().look() | change).items() if x is not ...}

    with pytest.raises((ValueError, FloatingPointError), match=complaint):
        next(ppo.train(ppo.PPO(env=Broken, **SMALL, minibatch_size=8)))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Dict({"note": spaces.Text(3)}), r"\['note'\] of the observation space, Text.* no fixed number"),
        (spaces.Tuple((spaces.Sequence(spaces.Discrete(2)),)), r"\[0\] of the observation space, Sequence"),
        (spaces.Text(3), "observation space Text.* no fixed number"),
    ],
)
def test_a_space_without_a_row_is_refused_by_name(space, told):
    class Odd(Both):
        observation_space = space

    with pytest.raises(ValueError, match=told):
        next(ppo.train(ppo.PPO(env=Odd, **SMALL, minibatch_size=8)))


def test_an_action_of_several_parts_has_the_product_of_their_probabilities():
    space, count = packed_actions(HYBRID), 50
    head = distribution(space)
    rng = np.random.default_rng(0)
    outputs = torch.tensor(rng.standard_normal((count, head.outputs)), dtype=torch.float32)
    old = torch.tensor(rng.standard_normal((count, head.outputs)), dtype=torch.float32)
    actions = head.sample(outputs, torch.from_numpy(head.noise(rng, (count,))))
    assert actions.shape == (count, 4 + 1 + 2 + 2 + 1)

    def parts(x):  # logits and means in the order of the space, then log σ in the same order
        means, log_stds = torch.cat([x[:, :4], x[:, 14:15]], 1), x[:, 15:]
        categories = [Categorical(logits=x[:, a:b]) for a, b in ((4, 7), (9, 11), (11, 14))]
        return Normal(means, log_stds.exp()), categories, Bernoulli(logits=x[:, 7:9])

    normal, categories, flips = parts(outputs)
    chosen = [actions[:, 4], actions[:, 7], actions[:, 8]]
    wanted = normal.log_prob(torch.cat([actions[:, :4], actions[:, 9:]], 1)).sum(1) + flips.log_prob(
        actions[:, 5:7]
    ).sum(1)
    wanted = wanted + sum(part.log_prob(x) for part, x in zip(categories, chosen, strict=True))
    assert torch.allclose(head.log_prob(outputs, actions), wanted, atol=1e-4)
    entropy = normal.entropy().sum(1) + flips.entropy().sum(1) + sum(part.entropy() for part in categories)
    assert torch.allclose(head.entropy(outputs), entropy, atol=1e-4)
    normal2, categories2, flips2 = parts(old)
    kl = torch.distributions.kl_divergence
    total = kl(normal2, normal).sum(1) + kl(flips2, flips).sum(1)
    total = total + sum(kl(before, now) for before, now in zip(categories2, categories, strict=True))
    assert torch.allclose(head.kl(outputs, old), total, rtol=1e-4, atol=1e-3)
    mode = head.mode(outputs)
    assert torch.equal(mode[:, 4], outputs[:, 4:7].argmax(1).float())
    assert np.array_equal(head.mode(outputs.numpy()), mode.numpy())


def test_actions_return_to_the_structure_of_their_space():
    space = packed_actions(HYBRID)
    head, rng = distribution(space), np.random.default_rng(0)
    drawn = head.sample(np.zeros((5, head.outputs), np.float32), head.noise(rng, (5,)))
    bounded = bounding(space)(drawn)
    for row in bounded:
        action = space.native(row)
        assert HYBRID.contains(action)
        assert np.allclose(in_row(space, action), row)
    assert space.native(bounded)["pair"][0].shape == (5, 2)


def test_each_part_has_its_own_mask():
    space = packed_actions(HYBRID)
    mask = mask_fit(space, {"fire": [0, 1, 0], "aim": None, "pair": ((True, False, True, True, False), None)})
    assert mask.tolist() == [False, True, False, True, False, True, True, False]
    assert mask_fit(space, {}).all()
    head, rng = distribution(space), np.random.default_rng(0)
    masks = np.tile(mask, (200, 1))
    drawn = head.sample(np.zeros((200, head.outputs), np.float32), head.noise(rng, (200,)), masks)
    assert set(drawn[:, 4]) == {1}
    assert set(drawn[:, 7]) == {0}
    assert set(drawn[:, 8]) == {0, 1}
    with pytest.raises(ValueError, match=r"\['fire'\] allows no action"):
        mask_fit(space, {"fire": [0, 0, 0]})


def test_masks_of_a_hybrid_action_are_kept_in_training():
    class Masking(Both):
        def reset(self, **more):
            observation, _ = super().reset(**more)
            return observation, {"action_mask": self.mask()}

        def mask(self):
            self.allowed = np.arange(3) != self.np_random.integers(3)
            return (self.allowed, None)

        def step(self, action):
            assert self.allowed[action[0] - 1]
            *result, _ = super().step(action)
            return (*result, {"action_mask": self.mask()})

    *_, last = ppo.train(ppo.PPO(env=Masking, **SMALL, minibatch_size=8, eval_every=32, eval_episodes=2))
    assert last.rows[0]["eval_return_mean"] is not None


ALGORITHMS = {
    "ppo": ppo.PPO(env=Both, **SMALL, minibatch_size=8, normalise_observations=True),
    "a2c": a2c.A2C(env=Both, **SMALL),
    "reinforce": reinforce.Reinforce(env=Both, **(SMALL | WHOLE)),
    "group_episodes": group_episodes.GroupEpisodes(env=Both, **(SMALL | WHOLE | {"num_envs": 4}), group=2),
    "stream_ac": stream_ac.StreamAC(env=Both, **(SMALL | {"num_envs": 1})),
    "pqn": pqn.PQN(env=Choosing, **SMALL, minibatch_size=8),
    "dqn": dqn.DQN(env=Choosing, **SMALL, learning_starts=8, minibatch_size=4, normalise_observations=True),
    "sac": sac.SAC(env=Pushing, **SMALL, learning_starts=8, minibatch_size=4, hidden=(8,)),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_and_resumes_bit_for_bit(name):
    config = dataclasses.replace(ALGORITHMS[name], eval_every=32, eval_episodes=2)
    module = getattr(telescope.algorithms, name)
    *_, whole = module.train(config)
    loop = module.train(config)
    state = next(loop).state
    loop.close()
    *_, resumed = module.train(config, state)
    assert torch.equal(whole.policy["parameters"], resumed.policy["parameters"])
    assert whole.rows[0]["eval_return_mean"] == resumed.rows[0]["eval_return_mean"]
    assert np.array_equal(whole.policy["normaliser"]["mean"], resumed.policy["normaliser"]["mean"])


@pytest.mark.parametrize("name", ["td_lambda", "sarsa_lambda"])
def test_linear_values_read_the_parts(name):
    class Few(Choosing):
        observation_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,))))

        def look(self):
            self.number, self.needle, self.dark = 1, self.np_random.uniform(-1, 1, 1), False
            return int(self.np_random.integers(2)), self.needle.astype(np.float32)

    module, cls = (td_lambda, td_lambda.TDLambda) if name == "td_lambda" else (sarsa_lambda, sarsa_lambda.SarsaLambda)
    *_, last = module.train(cls(env=Few, **(SMALL | {"num_envs": 1}), tiles=2, tilings=2))
    assert (last.policy["parameters"] != 0).any()


@pytest.mark.parametrize("how", [{"vectorization": "async"}, {"autoreset": "next_step"}, {"autoreset": "disabled"}])
def test_every_way_to_step_gives_the_same_episodes(how):
    def played(**more):
        environments = Environments(Both, seeds=[3], num_envs=2, env_kwargs={"length": 3}, **more)
        seen = [environments.reset()[0]]
        actions = np.zeros((1, 2, 2))
        for _ in range(7):
            step = environments.step(actions)
            seen += [x for x, live in zip([step.next_observations], [step.mask.all()], strict=True) if live]
        environments.close()
        return np.stack(seen[:7])

    assert np.array_equal(played(), played(**how))


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_a_vector_environment_with_dicts_of_arrays_gives_the_same_rows(mode):
    """An id's own vector environment hands out a dict of arrays and takes a tuple of arrays."""
    makers = [lambda: Both(length=3)] * 2
    own = Lane(gym.vector.SyncVectorEnv(makers, autoreset_mode=MODES[mode]))
    environments = Environments(Both, seeds=[0], num_envs=2, env_kwargs={"length": 3}, autoreset=mode)
    seeds = np.array([[5, 6]])
    assert np.array_equal(own.reset([5, 6])[0], environments.reset(seeds=seeds)[0][0])
    rng = np.random.default_rng(0)
    for _ in range(9):
        actions = np.stack([rng.integers(3, size=2), rng.uniform(-1, 1, 2)], -1)
        ours, theirs = own.step(actions), environments.step(actions[None])
        assert np.array_equal(ours.observations, theirs.observations[0])
        assert np.array_equal(ours.next_observations, theirs.next_observations[0])
        assert np.allclose(ours.rewards, theirs.rewards[0])
    environments.close()


@pytest.mark.parametrize("images", [True, False])
def test_the_environments_of_sb3s_multi_input_policy_train(images):
    envs = pytest.importorskip("stable_baselines3.common.envs")
    config = ppo.PPO(
        env=envs.SimpleMultiObsEnv,
        env_kwargs={"random_start": images, "discrete_actions": True},
        **SMALL,
        minibatch_size=8,
    )
    with warnings.catch_warnings(action="ignore"):
        *_, last = ppo.train(config)
    assert torch.isfinite(last.policy["parameters"]).all()


def test_only_floats_are_normalised():
    config = ppo.PPO(env=Both, **SMALL, minibatch_size=8, normalise_observations=True)
    session = Session(config, None, Learner)
    rollout = session.collect()
    session.close()
    space = packed_observations(Both.observation_space)
    numbers = flat(space, rollout.observations)  # camera 12, needle 1, number 3
    assert rollout.observations.dtype == torch.uint8
    assert set(numbers[..., :12].unique().tolist()) <= {0.0, 1.0}
    assert set(numbers[..., 13:].unique().tolist()) == {0.0, 1.0}
    assert numbers[..., 12].abs().max() > 1.2, "a needle within ±1 has been scaled"
    assert session.rollouts.normaliser.moments.mean.shape == (2, 1)


def test_a_policy_takes_and_gives_the_structures_of_the_spaces():
    config = ppo.PPO(env=Both, **SMALL, minibatch_size=8)
    *_, last = ppo.train(config)
    policy = Policy(config, last.policy)
    assert policy.observation_space == Both.observation_space
    assert policy.action_space == Both.action_space
    env = Both()
    one, other = env.reset(seed=0)[0], env.reset(seed=1)[0]
    batch = {key: np.stack([one[key], other[key]]) for key in one}
    single, both = policy.act(one), policy.act(batch)
    assert env.action_space.contains(single)
    assert both[0].shape == (2,)
    assert both[1].shape == (2, 1)
    assert both[0][0] == single[0]
    assert both[1][0] == pytest.approx(single[1])
    assert policy.value(batch).shape == (2,)
    assert env.action_space.contains(policy.player()(one))
    assert policy.evaluate(2).returns.shape == (2, 2)
    with pytest.raises(ValueError, match="has no part 'camera'"):
        policy.act({"number": 1, "needle": np.zeros(1)})


def test_a_network_of_ones_own_reads_all_numbers_or_the_parts():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 6)

        def forward(self, x):
            y = self.layer(x)
            return y[:, :5], y[:, 5]

    class Parts(Flat):
        def forward(self, x):
            assert x["camera"].dtype == torch.uint8
            assert x["camera"].shape[1:] == (3, 4, 1)
            assert x["number"].shape[1:] == (3,)
            return super().forward(torch.cat([x["camera"].flatten(1) / 255, x["needle"], x["number"]], -1))

    config = ppo.PPO(env=Both, **SMALL, minibatch_size=8)
    *_, flat_one = ppo.train(config, network=from_module(Flat))
    *_, parts_one = ppo.train(config, network=from_module(Parts, shaped=True))
    assert torch.equal(flat_one.policy["parameters"], parts_one.policy["parameters"])
    with pytest.raises(ValueError, match=r"fails on observations with 'camera' of shape \(3, 3, 4, 1\)"):
        next(ppo.train(config, network=from_module(Flat, shaped=True)))


def test_a_memory_reads_the_parts():
    config = ppo.PPO(env=Both, **SMALL, minibatch_size=8, memory="gru", memory_size=4)
    *_, last = ppo.train(config)
    assert np.isfinite(last.rows[0]["loss"] if "loss" in last.rows[0] else last.rows[0]["policy_loss"])


@pytest.mark.parametrize("seed", [0])
def test_ppo_learns_both_parts_of_an_action(seed):
    config = ppo.PPO(
        env=Both,
        seeds=2,
        seed=seed,
        num_envs=16,
        num_steps=32,
        total_steps=100_000,
        minibatch_size=128,
        epochs=10,
        learning_rate=1e-3,
        gamma=0.0,
        log_std=-0.5,
        compile="off",
    )
    for metrics in ppo.train(config):
        best = min(row["return_mean"] or 0 for row in metrics.rows)
        if best > 15:
            break
    assert best > 15
