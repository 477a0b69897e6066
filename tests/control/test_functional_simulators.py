"""Simulators of pure JAX functions: gymnax beside Gymnasium, Brax's interface, and tensors without a copy."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope.algorithms import ppo
from telescope.control import simulators
from telescope.control.simulators.protocol import Simulator, vector

jax, gymnax = pytest.importorskip("jax"), pytest.importorskip("gymnax", reason="gymnax is not installed")
jnp, struct = pytest.importorskip("jax.numpy"), pytest.importorskip("flax.struct")
functional = pytest.importorskip("telescope.control.simulators.functional")
of_brax, of_gymnax = functional.of_brax, functional.of_gymnax
environment, spaces = gymnax.environments.environment, gymnax.environments.spaces

SMALL = ppo.PPO(num_envs=3, num_steps=16, minibatch_size=16, epochs=1, seeds=2, total_steps=144)


def cartpole(num_envs):
    return gymnax.make("CartPole-v1")


def begun(env, count):
    simulator = Simulator(vector(env), count)
    simulator.reset(list(range(count)))
    return simulator


def balancing(observations):
    """A controller that balances the pole for at least 500 steps."""
    x, x_dot, theta, theta_dot = observations.T
    return (0.3 * x + 0.6 * x_dot + 8 * theta + 2 * theta_dot > 0).astype(np.int64)


@pytest.mark.parametrize("skill", ["random", "balancing"])
def test_gymnax_cartpole_has_the_boundaries_of_gymnasiums(skill):
    count, rng = 4, np.random.default_rng(0)
    simulator = begun(of_gymnax(*gymnax.make("CartPole-v1"), count), count)
    others = [gym.make("CartPole-v1") for _ in range(count)]
    ends = {"terminated": 0, "truncated": 0}

    def follow(i, state):  # Gymnasium's world i continues from this state
        others[i].reset(seed=0)
        others[i].unwrapped.state = np.array(state, np.float64)

    seen = simulator.seen.observations.numpy().copy()
    for i in range(count):
        follow(i, seen[i])
    for _ in range(510):
        actions = rng.integers(2, size=count) if skill == "random" else balancing(seen)
        step = simulator.step(torch.tensor(actions))
        for i, other in enumerate(others):
            expected, reward, terminated, truncated, _ = other.step(int(actions[i]))
            np.testing.assert_allclose(step.next_observations[i], expected, rtol=1e-3, atol=1e-4)
            assert (step.rewards[i], step.terminated[i], step.truncated[i]) == (reward, terminated, truncated)
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            if terminated or truncated:
                first = step.observations[i].numpy()
                assert (abs(first) <= 0.05).all(), "the policy sees the first state of a new episode"
                follow(i, first)
            else:
                assert torch.equal(step.observations[i], step.next_observations[i])
                other.unwrapped.state = np.array(step.observations[i].numpy(), np.float64)  # rounded as there
        seen = step.observations.numpy().copy()
    assert ends == (
        {"terminated": ends["terminated"], "truncated": 0} if skill == "random" else {**ends, "truncated": 4}
    )
    assert (ends["terminated"] > 50) == (skill == "random")


@struct.dataclass
class WalkState(environment.EnvState):
    place: jax.Array
    over: jax.Array
    time: int


@struct.dataclass
class WalkParameters(environment.EnvParams):
    max_steps_in_episode: int = 5


class Walk(environment.Environment):
    """Remembers in its state that it is over, also because of its time limit, as gymnax's MinAtar games do."""

    @property
    def default_params(self):
        return WalkParameters()

    def step_env(self, key, state, action, params):
        place, time = state.place + 2 * action - 1, state.time + 1
        over = (place >= 3) | (time >= params.max_steps_in_episode)
        state = WalkState(place=place, over=over, time=time)
        return self.get_obs(state), state, jnp.float32(place == 3), state.over, {}

    def reset_env(self, key, params):
        state = WalkState(place=jax.random.randint(key, (), 0, 2), over=jnp.bool_(False), time=0)
        return self.get_obs(state), state

    def get_obs(self, state, params=None, key=None):
        return jnp.stack([state.place, state.time]).astype(jnp.float32)

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(-9.0, 9.0, (2,), jnp.float32)


def test_an_end_is_told_from_a_limit_where_the_state_remembers_both():
    simulator = begun(of_gymnax(Walk(), WalkParameters(), 2), 2)
    starts = simulator.seen.observations[:, 0].tolist()
    assert sorted(starts) in ([0, 0], [0, 1], [1, 1])
    left = [simulator.step(torch.zeros(2, dtype=torch.int64)) for _ in range(5)]
    assert [bool(step.truncated.all()) for step in left] == [False] * 4 + [True]
    assert not any(step.terminated.any() for step in left)
    assert left[-1].next_observations.tolist() == [[start - 5, 5] for start in starts]
    assert left[-1].observations[:, 1].tolist() == [0, 0]
    right = [simulator.step(torch.ones(2, dtype=torch.int64)) for _ in range(3)]
    assert any(step.terminated.any() for step in right)
    assert not any(step.truncated.any() for step in right)


def test_tensors_are_jaxs_memory_and_actions_are_torchs():
    simulator = begun(of_gymnax(*gymnax.make("CartPole-v1"), 8), 8)
    taken = []
    step, simulator.env.step = simulator.env.step, lambda actions: taken.append(actions) or step(actions)
    actions = torch.zeros(8, dtype=torch.int64)
    found = simulator.step(actions)
    memory = simulator.env._batch.observations.unsafe_buffer_pointer()
    assert found.observations.data_ptr() == memory
    assert taken[0].dtype == jnp.int32  # JAX has no 64 bits unless it is told


def test_no_array_of_jax_becomes_one_of_numpy_while_ppo_trains(monkeypatch):
    def guarded(convert):
        def guard(x, *rest, **more):
            assert not isinstance(x, jax.Array) or x.shape != (6, 4), "observations of JAX became a NumPy array"
            return convert(x, *rest, **more)

        return guard

    for name in ("asarray", "array", "ascontiguousarray"):
        monkeypatch.setattr(np, name, guarded(getattr(np, name)))
    kind = type(jnp.zeros(1))
    for name in ("__array__", "tolist", "__iter__"):
        monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))
    with pytest.raises(AssertionError, match="became a NumPy array"):
        np.asarray(jnp.zeros((6, 4)))
    iterations = ppo.train(dataclasses.replace(SMALL, env=cartpole))
    assert [next(iterations).step, next(iterations).step] == [48, 96]
    iterations.close()


def test_resume_is_exact():
    config = dataclasses.replace(SMALL, env=cartpole, normalise_observations=True, normalise_rewards=True)
    states = [iteration.state for iteration in ppo.train(config)]
    again = list(ppo.train(config, resume=states[0]))[-1].state
    assert torch.equal(again["policy"]["parameters"], states[-1]["policy"]["parameters"])
    np.testing.assert_equal(again["rollouts"], states[-1]["rollouts"])


def test_a_seed_alone_equals_the_seed_in_company():
    config = dataclasses.replace(SMALL, env=cartpole)
    both, alone = (
        list(ppo.train(one))[-1].state["policy"]["parameters"]
        for one in (config, dataclasses.replace(config, seeds=1, seed=1))
    )
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-5)  # a population sums in another order


def test_a_game_is_named_with_its_parameters():
    config = dataclasses.replace(
        SMALL, env=simulators.gymnax, env_kwargs={"name": "CartPole-v1", "max_steps_in_episode": 5}
    )
    lengths = [row["length_mean"] for iteration in ppo.train(config) for row in iteration.rows]
    assert lengths == [5.0] * len(lengths)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # gymnax's own, in MinAtar
@pytest.mark.parametrize("name", ["Pendulum-v1", "Breakout-MinAtar", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_other_games_of_gymnax_train(name):
    config = dataclasses.replace(SMALL, env=simulators.gymnax, env_kwargs={"name": name}, seeds=1, total_steps=48)
    assert all(iteration.finished for iteration in ppo.train(config))


@struct.dataclass
class State:
    pipeline_state: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class BraxLike:
    """The interface of a Brax environment: push a mass; beyond 1 it falls off."""

    observation_size, action_size = 2, 1

    def reset(self, rng):
        place = jnp.array([jax.random.uniform(rng, minval=-0.5, maxval=0.5), 0.0])
        return State(
            place, place, jnp.float32(0), jnp.float32(0), {}, {"rng": rng, "key": jax.random.wrap_key_data(rng)}
        )

    def step(self, state, action):
        x, v = state.pipeline_state
        new = jnp.stack([x + v, v + 0.1 * action[0]])
        return state.replace(pipeline_state=new, obs=new, reward=-(x**2), done=jnp.float32(abs(new[0]) > 1))


def test_brax_has_ends_limits_and_final_observations():
    simulator = begun(of_brax(BraxLike(), 3, episode_length=20), 3)
    push = torch.tensor([[1.0], [0.0], [-1.0]])
    seen, lengths = simulator.seen.observations.clone(), torch.zeros(3)
    ended = torch.zeros(3, 2)
    for _ in range(60):
        step = simulator.step(push)
        lengths += 1
        x, v = seen[:, 0], seen[:, 1]
        expected = torch.stack([x + v, v + 0.1 * push[:, 0]], 1)
        torch.testing.assert_close(step.next_observations, expected)
        assert step.terminated.tolist() == (expected[:, 0].abs() > 1).tolist()
        assert step.truncated.tolist() == ((lengths >= 20) & ~step.terminated).tolist()
        over = step.terminated | step.truncated
        assert torch.equal(step.observations[~over], step.next_observations[~over])
        assert (step.observations[over][:, 1] == 0).all()
        lengths[over] = 0
        ended += torch.stack([step.terminated, step.truncated], 1)
        seen = step.observations.clone()
    assert ended.tolist() == [[ended[0, 0], 0], [0, 3], [ended[2, 0], 0]]
    assert ended[0, 0] > 3


def test_a_state_with_random_keys_of_jaxs_own_type_is_restored():
    def make(num_envs):
        return of_brax(BraxLike(), num_envs, 20)

    config = dataclasses.replace(SMALL, env=make, action_bounds="squash")
    states = [iteration.state for iteration in ppo.train(config)]
    again = list(ppo.train(config, resume=states[0]))[-1].state
    assert torch.equal(again["policy"]["parameters"], states[-1]["policy"]["parameters"])
    broken = {**states[0]["rollouts"]["environments"]["lanes"]["0"]["simulator"], "0": np.zeros(3, np.uint32)}
    states[0]["rollouts"]["environments"]["lanes"]["0"]["simulator"] = broken
    with pytest.raises(ValueError, match="environments simulator 0 of the state to resume from"):
        list(ppo.train(config, resume=states[0]))


def test_an_environment_of_brax_needs_a_time_limit():
    def make(num_envs):
        return BraxLike()

    with pytest.raises(ValueError, match=r"says nothing of its time limit; return .*of_brax\(env, num_envs"):
        list(ppo.train(dataclasses.replace(SMALL, env=make)))
