"""PPO learns what is known to be best, at every kind of episode end, and resumes bit for bit."""

import copy
import dataclasses
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv

from telescope.algorithms.ppo import (
    PPO,
    Learner,
    minibatch_indices,
    minibatches,
    preset,
    samples,
    train,
    update_agent,
    with_advantages,
)
from telescope.control.agents.lifting import lift
from telescope.control.training import Session, execution
from telescope.policy import Policy
from worlds import Chain, Forever, Masked, Spaces

SMALL = PPO(num_envs=4, num_steps=32, minibatch_size=64, epochs=4, anneal_learning_rate=False, compile="off")


def run(config, **kwargs):
    """The last metrics' rows and state of a whole run."""
    for metrics in train(config, **kwargs):
        state = metrics.state if metrics.finished else None
    return metrics.rows, state


def comparable(rows):
    return [{name: value for name, value in row.items() if not name.startswith("time_")} for row in rows]


def assert_same(a, b, path="state"):
    """Nested states are equal to the last bit, clocks aside."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "elapsed":
                assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, torch.Tensor | np.ndarray):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)
    else:
        assert a == b, path


# Learning


def test_learns_the_optimum_of_a_chain_and_its_values():
    gamma = 0.9
    config = dataclasses.replace(
        SMALL, env=Chain, seeds=2, total_steps=12_800, gamma=gamma, learning_rate=3e-3, entropy_coefficient=0.01
    )
    _, state = run(config)
    policy = Policy(config, state["policy"])
    for seed in config.seed_values:
        assert [int(policy.act(s, seed=seed)) for s in range(4)] == [1, 1, 1, 1]
        values = [policy.value(s, seed=seed) for s in range(4)]
        np.testing.assert_allclose(values, [gamma ** (3 - s) for s in range(4)], atol=0.1)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
def test_where_episodes_only_time_out_the_value_is_that_of_an_endless_one(autoreset):
    # with the time limit taken for an end, the value would be below 1 + γ + … + γ⁴ = 4.1
    config = dataclasses.replace(
        SMALL, env=Forever, total_steps=6400, gamma=0.9, learning_rate=1e-2, autoreset=autoreset, max_grad_norm=10.0
    )
    _, state = run(config)
    assert Policy(config, state["policy"]).value(np.ones(1, np.float32)) == pytest.approx(10.0, abs=0.5)


def test_forbidden_actions_are_never_taken():
    config = dataclasses.replace(SMALL, env=Masked, total_steps=2560, learning_rate=3e-3)
    rows, state = run(config)
    assert rows[0]["return_mean"] > 0  # the environment asserts the rest
    policy, rng = Policy(config, state["policy"]), np.random.default_rng(0)
    for allowed in (np.array([True, False, False]), np.array([False, True, False])):
        for generator in (None, rng):
            assert allowed[policy.act(np.zeros(3, np.float32), action_mask=allowed, rng=generator)]


@pytest.mark.parametrize(
    "action_space",
    [
        gym.spaces.Discrete(3, start=-1),
        gym.spaces.MultiDiscrete([3, 4]),
        gym.spaces.MultiBinary(3),
        gym.spaces.Box(-2.0, 2.0, (2,)),
        gym.spaces.Box(np.array([-1.0, -np.inf], np.float32), np.array([np.inf, 2.0], np.float32)),
    ],
    ids=str,
)
@pytest.mark.parametrize("observation_space", [gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Discrete(4, start=2)], ids=str)
def test_every_supported_space(observation_space, action_space):
    def make():
        return Spaces(observation_space, action_space)

    config = dataclasses.replace(SMALL, env=make, total_steps=2560, learning_rate=1e-2)
    iterations = list(train(config))
    # some of these start near their optimum; none may get worse, and most get better
    assert iterations[-1].rows[0]["return_mean"] >= iterations[0].rows[0]["return_mean"] - 0.5
    policy = Policy(config, iterations[-1].policy)
    observation_space.seed(0)
    assert action_space.contains(policy.act(observation_space.sample()))


# The data that an update sees


def test_advantages_do_not_depend_on_the_autoreset_mode():
    """With one environment and a policy that is a function of the observation, rows differ only by the reset rows."""
    found = {}
    for mode in ("next_step", "same_step", "disabled"):
        config = dataclasses.replace(SMALL, env=Forever, num_envs=1, num_steps=24, minibatch_size=24, autoreset=mode)
        session = Session(config, None, Learner)
        rollout = session.collect()
        batch = with_advantages(config, session, rollout, samples(session, rollout))
        found[mode] = batch.advantages[0][batch.live[0]]
        session.close()
    common = min(map(len, found.values())) - 5  # the last, unfinished episode ends elsewhere in each
    for mode in ("next_step", "disabled"):
        torch.testing.assert_close(found[mode][:common], found["same_step"][:common], rtol=1e-5, atol=1e-6)


def test_advantages_are_the_estimator_on_the_true_successors():
    config = dataclasses.replace(SMALL, env=Forever, num_envs=1, num_steps=12, minibatch_size=12, gamma=0.9, lam=0.8)
    session = Session(config, None, Learner)
    rollout = session.collect()
    batch = with_advantages(config, session, rollout, samples(session, rollout))
    v = float(batch.values[0, 0])  # there is but one state
    delta, wanted = 1 + 0.9 * v - v, []
    for t in range(12):
        left = min(5 - t % 5, 12 - t)  # steps to the time limit, or to the end of the rollout
        wanted.append(sum((0.9 * 0.8) ** k * delta for k in range(left)))
    np.testing.assert_allclose(batch.advantages[0], wanted, rtol=1e-5)
    session.close()


def test_each_epoch_uses_each_sample_once():
    config = dataclasses.replace(SMALL, num_envs=3, num_steps=7, minibatch_size=4, seeds=2)
    for indices in minibatch_indices(config, 0):
        assert indices.shape == (2, 6, 4)
        for row in indices:
            assert sorted(row[row >= 0].tolist()) == list(range(21))


def test_empty_slots_and_masked_rows_leave_no_trace_in_an_update():
    config = dataclasses.replace(SMALL, num_envs=3, num_steps=7, minibatch_size=7, total_steps=21, max_grad_norm=100.0)
    session = Session(config, None, Learner)
    rollout = session.collect()
    batch = with_advantages(config, session, rollout, samples(session, rollout))
    update = lift(update_agent(config, session.agent), (0, 0, 0, None, None), compiled=False)

    def updated(batch, indices):
        schedule = torch.tensor([1e-3, 0.2])
        (minibatch,) = minibatches(batch, indices[:, None])
        agent, updating, row = update(session.learner, torch.ones(1, dtype=torch.bool), minibatch, *schedule)
        assert updating.all(), "a dead minibatch is no reason to stop"
        return agent.parameters, row

    parameters, row = updated(batch, torch.arange(18)[None])
    padded = updated(batch, torch.cat([torch.arange(18), torch.full((6,), -1)])[None])
    dead = batch.live.clone()
    dead[:, 18:] = False
    garbage = batch.advantages.clone()
    garbage[:, 18:] = 1e6
    masked = updated(batch._replace(live=dead, advantages=garbage), torch.arange(21)[None])
    for found in (padded, masked):
        torch.testing.assert_close(found[0], parameters, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[1], row, rtol=1e-4, atol=1e-5)
    nothing, row = updated(batch._replace(live=torch.zeros_like(dead)), torch.arange(21)[None])
    assert torch.equal(nothing, session.learner.parameters)
    assert row[0, -1] == 0
    session.close()


def test_presets_are_found_by_family():
    assert preset("CartPole-v1").minibatch_size == 256
    assert preset("Hopper-v4").normalise_observations
    assert preset("Hopper-v4").env == "Hopper-v4"
    assert preset("MyOwn-v0") == PPO(env="MyOwn-v0")


# Resume


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "MountainCarContinuous-v0"]
)
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(env, autoreset):
    config = dataclasses.replace(
        SMALL,
        env=env,
        env_kwargs={} if env == "CartPole-v1" else {"max_episode_steps": 50},
        seeds=2,
        total_steps=5 * 128,
        autoreset=autoreset,
        normalise_observations=True,
        normalise_rewards=True,
        recompute_advantages=True,
        eval_every=256,
        eval_episodes=2,
    )
    whole, states, rows = [], [], []
    for metrics in train(config):
        states.append(metrics.state)
        whole.append(comparable(metrics.rows))
    for metrics in train(config, resume=states[1]):
        rows.append(comparable(metrics.rows))
        final = metrics.state
    assert rows == whole[2:]
    assert_same(final, states[-1])


@pytest.mark.parametrize("env", ["Ant-v5", "Humanoid-v5", "Hopper-v5"])
def test_mujoco_resumes_bit_for_bit(env):
    small = {"num_envs": 2, "num_steps": 16, "minibatch_size": 16, "epochs": 2, "total_steps": 96, "compile": "off"}
    config = dataclasses.replace(preset(env), **small)
    states = [metrics.state for metrics in train(config)]
    *_, last = train(config, resume=states[0])
    assert_same(last.state, states[-1])


def test_compiled_runs_resume_bit_for_bit_whatever_the_cache_holds(tmp_path):
    config = dataclasses.replace(SMALL, env="CartPole-v1", seeds=2, total_steps=3 * 128, compile="on")
    states = [metrics.state for metrics in train(config)]
    *_, last = train(config, resume=states[0])
    assert last.state["execution"]["compiled"]
    assert_same(last.state, states[-1])
    # and a process that finds nothing in the compiler's cache computes the same bits
    script = (
        "import sys; from telescope.algorithms.ppo import PPO, train; *_, last = train(PPO(**eval(sys.argv[1])));"
        "print(last.state['policy']['parameters'].numpy().tobytes().hex())"
    )
    command = [sys.executable, "-c", script, repr(dataclasses.asdict(config))]
    settings = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    cold = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert bytes.fromhex(cold.stdout) == states[-1]["policy"]["parameters"].numpy().tobytes()


def test_without_a_compiler_auto_runs_eagerly_and_on_says_what_is_missing(monkeypatch):
    work = dataclasses.replace(SMALL, total_steps=10_000_000, compile="auto")
    assert execution(work)["compiled"]
    assert not execution(SMALL)["compiled"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not execution(work)["compiled"]
    with pytest.raises(ValueError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        execution(dataclasses.replace(work, compile="on"))


def test_environments_that_cannot_be_restored_start_other_episodes_than_before():
    class Forgetful(CartPoleVectorEnv):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.opaque = object()

    gym.register("Forgetful-v0", vector_entry_point=Forgetful, entry_point=CartPoleEnv)
    try:
        config = dataclasses.replace(SMALL, env="Forgetful-v0", total_steps=256)
        first = Session(config, None, Learner)
        fresh, state = first.rollouts._observations, next(iter(train(config))).state
        resumed = Session(config, state, Learner)
        assert any("opaque" in note for note in resumed.notes)
        assert not np.array_equal(resumed.rollouts._observations, fresh)
        first.close()
        resumed.close()
    finally:
        del gym.registry["Forgetful-v0"]


def test_resume_refuses_what_does_not_fit():
    config = dataclasses.replace(SMALL, env="CartPole-v1", total_steps=256)
    state = next(iter(train(config))).state
    with pytest.raises(ValueError, match="seeds"):
        next(train(dataclasses.replace(config, seed=1), resume=state))
    with pytest.raises(ValueError, match="parameters per agent"):
        next(train(dataclasses.replace(config, hidden=(32,)), resume=state))
    with pytest.raises(ValueError, match="num_steps 16"):
        next(train(dataclasses.replace(config, num_steps=16), resume=state))


def test_the_last_state_is_there_after_the_loop_also_where_environments_were_processes():
    *_, metrics = train(dataclasses.replace(SMALL, env="CartPole-v1", total_steps=128, vectorization="async"))
    assert metrics.state["step"] == 128


def test_a_resumed_run_leaves_the_state_it_was_given_alone():
    config = dataclasses.replace(SMALL, env="CartPole-v1", total_steps=256, normalise_rewards=True)
    state = next(iter(train(config))).state
    before = copy.deepcopy(state)
    list(train(config, resume=state))
    assert_same(state, before)


def test_a_policy_of_another_network_is_refused():
    config = dataclasses.replace(SMALL, env="CartPole-v1", total_steps=128)
    _, state = run(config)
    with pytest.raises(ValueError, match="pass network="):
        Policy(dataclasses.replace(config, hidden=(32,)), state["policy"])


def test_a_stale_state_is_refused():
    iterations = train(dataclasses.replace(SMALL, env="CartPole-v1", total_steps=512))
    metrics = next(iterations)
    next(iterations)
    with pytest.raises(RuntimeError, match="before requesting the next iteration"):
        _ = metrics.state


# Bad input


def test_a_reward_that_is_not_a_number_stops_the_run_and_says_where():
    def make():
        return Forever(broken_at=50)

    config = dataclasses.replace(SMALL, env=make, num_envs=1, num_steps=32, minibatch_size=32, total_steps=96, seed=7)
    iterations = train(config)
    next(iterations)
    with pytest.raises(FloatingPointError, match=r"reward of seed 7, environment 0 is nan at step 50"):
        next(iterations)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
def test_a_final_observation_that_is_not_a_number_stops_the_run_in_every_mode(autoreset):
    def make():
        return Forever(limit=8, blind_at_the_end=True)

    config = dataclasses.replace(SMALL, env=make, num_envs=2, num_steps=8, minibatch_size=16, autoreset=autoreset)
    with pytest.raises(FloatingPointError, match=r"observation of seed 0, environment 0 is nan at step 16"):
        next(train(config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gamma", 1.5, r"gamma is 1.5; expected a number in \[0, 1\]"),
        ("lam", -0.1, "lam is -0.1"),
        ("num_envs", 0, "num_envs is 0; expected a number > 0"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**63, "expected seeds below"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("minibatch_size", 10_000, "minibatch_size is 10000, more than the 128 samples"),
        ("total_steps", 100, "total_steps is 100, less than one iteration of 128"),
        ("hidden", (64, 0), "hidden is"),
        ("target_kl", 0.0, "target_kl is 0.0"),
    ],
)
def test_bad_settings_are_refused_by_name_and_number(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **{field: value})


# Evaluation


def test_evaluation_runs_whole_episodes_of_every_seed_and_does_not_disturb_training():
    config = dataclasses.replace(SMALL, env="CartPole-v1", seeds=2, total_steps=256)
    _, state = run(config)
    policy = Policy(config, state["policy"])
    result = policy.evaluate(5)
    assert result.returns.shape == (2, 5)
    np.testing.assert_array_equal(result.returns, result.lengths)  # CartPole pays 1 a step
    np.testing.assert_array_equal(result.returns, policy.evaluate(5).returns)
    evaluated, _ = run(dataclasses.replace(config, eval_every=128))
    plain, _ = run(config)
    for with_evaluation, without in zip(comparable(evaluated), comparable(plain), strict=True):
        assert with_evaluation.pop("eval_return_mean") is not None
        without.pop("eval_return_mean")
        assert with_evaluation == without
