"""Simulators on a device: their rollouts equal those of NumPy arrays, stay on the device, and resume bit for bit."""

import csv
import dataclasses
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import telescope
from simulators import MODES, Guarded, Walkers, forgetful, walkers
from telescope.algorithms import a2c, a3c, appo, dqn, impala, ppo, pqn, trpo
from telescope.control.agents.actions import bounding
from telescope.control.environments.population import Environments
from telescope.control.experience.device import DeviceRollouts
from telescope.control.experience.device_statistics import TensorMoments
from telescope.control.experience.normalisation import RunningMoments
from telescope.control.experience.rollout import Rollouts
from telescope.control.simulators import vector
from telescope.control.simulators.protocol import Simulator
from telescope.control.training import Session
from telescope.optimisers import Learner

SMALL = {"seeds": 2, "num_envs": 3, "num_steps": 16, "total_steps": 144}
ON_POLICY = {
    "ppo": (ppo, ppo.PPO(env=walkers, minibatch_size=16, epochs=2, **SMALL)),
    "a2c": (a2c, a2c.A2C(env=walkers, **SMALL)),
    "trpo": (trpo, trpo.TRPO(env=walkers, minibatch_size=16, **SMALL)),
    "a3c": (a3c, a3c.A3C(env=walkers, **SMALL)),
    "impala": (impala, impala.IMPALA(env=walkers, delay=1, **SMALL)),
    "appo": (appo, appo.APPO(env=walkers, minibatch_size=16, **SMALL)),
    "pqn": (pqn, pqn.PQN(env=walkers, minibatch_size=16, **SMALL)),
}
PPO = ON_POLICY["ppo"][1]


def changed(config, **settings):
    kwargs = config.env_kwargs | settings.pop("env_kwargs", {})
    return dataclasses.replace(config, env_kwargs=kwargs, **settings)


def parameters(iterations):
    return list(iterations)[-1].state["policy"]["parameters"]


def collected(config, kind):
    """The rollouts of three iterations of untrained agents, by one of the two ways to collect them."""

    class Ours(Session):
        kind_of_rollouts = kind

    session = Ours(config, None, Learner, recurrent=True)
    assert isinstance(session.rollouts, DeviceRollouts) == (kind is Rollouts)
    found = []
    for iteration in range(3):
        act = session.rollouts.actor(session.agents, session.parameters)
        found.append(session.rollouts.collect(act, iteration))
    state = session.light_state()
    session.close()
    return found, state


class HostRollouts(Rollouts):
    """NumPy arrays, also of a simulator."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalise_observations": True, "normalise_rewards": True},
        {"memory": "gru", "memory_size": 4},
        {"memory": "lstm", "memory_size": 4},
        {"env_kwargs": {"masks": True}},
        {"env_kwargs": {"shape": "dict"}, "normalise_observations": True},
    ],
    ids=["plain", "normalised", "gru", "lstm", "masks", "dict"],
)
def test_a_rollout_on_the_device_equals_one_of_numpy_arrays(mode, settings):
    config = changed(PPO, **{**settings, "env_kwargs": {"mode": mode, **settings.get("env_kwargs", {})}})
    config = dataclasses.replace(config, minibatch_size=16)
    (ours, state), (theirs, other) = collected(config, Rollouts), collected(config, HostRollouts)
    for (rollout, episodes), (expected, expected_episodes) in zip(ours, theirs, strict=True):
        assert episodes == expected_episodes
        assert sum(map(len, episodes.returns)) > 4
        for name, x in rollout._asdict().items():
            y = getattr(expected, name)
            if name == "finals":
                assert rollout.finals.places.shape[1] > 0, "an episode is cut"
                torch.testing.assert_close(x.places, torch.as_tensor(y.places))
                torch.testing.assert_close(x.observations, torch.as_tensor(y.observations))
                if x.memory is not None:
                    torch.testing.assert_close(x.memory, torch.as_tensor(y.memory))
            else:
                torch.testing.assert_close(x, y, msg=lambda told, name=name: f"{name}: {told}")
        assert (rollout.mask.all().item()) == (mode != "next_step")
    for name in ("mean", "variance", "count"):
        ours_now, theirs_now = (each["policy"]["normaliser"][name] for each in (state, other))
        np.testing.assert_allclose(ours_now, theirs_now, rtol=1e-12)
        ours_now, theirs_now = (each["rollouts"]["scaler"][name] for each in (state, other))
        np.testing.assert_allclose(ours_now, theirs_now, rtol=1e-12)
    for name in ("episode_return", "episode_length"):
        np.testing.assert_array_equal(state["rollouts"][name], other["rollouts"][name])


@pytest.mark.parametrize("name", ON_POLICY)
def test_no_observation_is_copied_to_the_host_while_an_on_policy_algorithm_trains(name):
    module, config = ON_POLICY[name]
    config = changed(config, env_kwargs={"guarded": True})
    rows = [row for iteration in module.train(config) for row in iteration.rows]
    assert len(rows) == 6
    assert all(row["episodes"] for row in rows)


def test_the_guard_sees_a_copy():
    seen = torch.ones(3).as_subclass(Guarded)
    for copy in (np.asarray, lambda x: x.cpu(), lambda x: x.numpy(), lambda x: (x + 1).tolist()):
        with pytest.raises(AssertionError, match="observation"):
            copy(seen)
    with pytest.raises(AssertionError, match="observation"):  # a single step is a copy
        list(
            dqn.train(
                dqn.DQN(env=walkers, env_kwargs={"guarded": True}, learning_starts=8, num_steps=8, total_steps=32)
            )
        )


@pytest.mark.parametrize("name", ON_POLICY)
def test_resume_is_exact(name):
    module, config = ON_POLICY[name]
    config = changed(config, env_kwargs={"mode": "next_step"})
    states = [iteration.state for iteration in module.train(config)]
    again = list(module.train(config, resume=states[0]))[-1].state
    assert torch.equal(again["policy"]["parameters"], states[-1]["policy"]["parameters"])
    np.testing.assert_equal(again["rollouts"], states[-1]["rollouts"])


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_alone_equals_the_seed_in_company(mode):
    config = changed(PPO, env_kwargs={"mode": mode}, normalise_observations=True)
    both = parameters(ppo.train(config))
    alone = parameters(ppo.train(dataclasses.replace(config, seeds=1, seed=1)))
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-5)  # a population sums in another order


def test_an_agent_learns_on_it_and_is_evaluated_there(tmp_path):
    config = ppo.PPO(
        env=walkers, num_envs=8, num_steps=32, minibatch_size=64, total_steps=8192, learning_rate=3e-3, eval_every=4096
    )
    run = telescope.train(config, tmp_path / "run")
    with (run.path / "metrics.csv").open(newline="") as file:
        returns = [row["eval_return_mean"] for row in csv.DictReader(file) if row["eval_return_mean"]]
    assert float(returns[-1]) == 1.0
    policy = telescope.load(tmp_path / "run", trust=True)
    assert policy.act(np.array([0.0, 0.1], np.float32)) == 1
    assert policy.evaluate(episodes=5).returns.mean() == 1.0


def test_statistics_are_those_of_the_host():
    rng, shape = np.random.default_rng(0), (3, 5, 2)
    host, seen = RunningMoments(3, (2,)), RunningMoments(3, (2,))
    device = TensorMoments(seen, torch.device("cpu"))
    for _ in range(4):
        x, live = rng.normal(3, 2, shape), rng.random(shape[:2]) < 0.5
        live[0] = False  # a seed with no live row
        x[~live] = np.nan
        host.update(x, live)
        device.update(torch.tensor(x), torch.tensor(live))
    device.report()
    for name, expected in host.state().items():
        np.testing.assert_allclose(seen.state()[name], expected, rtol=1e-12)
    np.testing.assert_allclose(seen.scale, host.scale, rtol=1e-12)


BOXES = [
    gym.spaces.Box(np.float32([-1, 0]), np.float32([3, 5])),
    gym.spaces.Box(np.float32([-1, -np.inf]), np.float32([np.inf, 2])),
    gym.spaces.Box(-np.inf, np.inf, (2,)),
    gym.spaces.Box(-3, 3, (2,), np.int64),
]


@pytest.mark.parametrize("space", BOXES, ids=["bounded", "half", "unbounded", "whole"])
@pytest.mark.parametrize("how", ["clip", "rescale", "squash", "stretch"])
def test_bounds_on_a_device_are_those_of_the_host(space, how):
    drawn = np.random.default_rng(0).normal(0, 2, (7, 3, 2)).astype(np.float32)
    if how == "stretch":
        drawn = np.tanh(drawn)
    here, there = bounding(space, how)(drawn), bounding(space, how, "cpu")(torch.tensor(drawn))
    np.testing.assert_allclose(there.numpy(), here, rtol=1e-6, atol=1e-6)


class Told:
    """A vector environment that answers as it is told."""

    num_envs = 2
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    single_observation_space = gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
    single_action_space = gym.spaces.Discrete(2, start=5)

    def __init__(self, **answer):
        self.answer, self.taken = answer, None

    def reset(self, *, seed=None, options=None):
        return torch.zeros((2, 1)), {}

    def step(self, actions):
        self.taken = actions
        usual = {
            "observations": torch.ones((2, 1)),
            "rewards": torch.ones(2),
            "terminated": torch.zeros(2, dtype=torch.bool),
            "truncated": torch.zeros(2, dtype=torch.bool),
            "infos": {},
        }
        return tuple((usual | self.answer).values())


def stepped(env, **how):
    simulator = Simulator(vector(env, **how), 2)
    simulator.reset([0, 1])
    return simulator.step(torch.tensor([0, 1]))


@pytest.mark.parametrize("mode", MODES)
def test_the_world_is_the_same_in_every_mode(mode):
    """A walker told by arithmetic: each transition leads one step on, and the next begins where a reset puts it."""
    count = 5
    simulator = Simulator(vector(Walkers(count, mode=mode)), count)
    place, length = simulator.reset(range(count)).observations[:, 0].clone() * 3, torch.zeros(count)
    rng, ends, rows = np.random.default_rng(0), 0, 0
    for _ in range(60):
        actions = torch.tensor(rng.integers(2, size=count))
        step = simulator.step(actions)
        live, place, length = step.mask, place + 2 * actions - 1, length + 1
        torch.testing.assert_close(step.next_observations[live, 0], place[live] / 3)
        torch.testing.assert_close(step.next_observations[live, 1], length[live] / 10)
        assert torch.equal(step.terminated, live & (place.abs().round() > 2))
        assert torch.equal(step.truncated, live & (length == 7) & ~step.terminated)
        assert torch.equal(step.rewards, (step.terminated & (place > 0)).float())
        over = step.terminated | step.truncated
        begins = over if mode != "next_step" else ~live
        assert torch.equal(step.observations[live & ~over], step.next_observations[live & ~over])
        assert torch.equal(step.observations[begins, 1], torch.zeros(int(begins.sum())))
        place, length = (3 * step.observations[:, 0]).clone(), (10 * step.observations[:, 1]).clone().round()
        ends, rows = ends + int(over.sum()), rows + int((~live).sum())
    assert ends > 30
    assert rows >= ends - count if mode == "next_step" else rows == 0


CUT = torch.tensor([False, True])


@pytest.mark.parametrize("name", ["final_obs", "final_observation"])
def test_the_final_observation_is_found_by_both_names(name):
    step = stepped(Told(truncated=CUT, infos={name: torch.full((2, 1), 7.0)}))
    assert step.observations.tolist() == [[1], [1]]
    assert step.next_observations.tolist() == [[1], [7]]


def test_a_hidden_final_observation_is_an_error_or_the_one_before():
    with pytest.raises(ValueError, match=r"truncates an episode, but infos has no 'final_obs'.*finals='previous'"):
        stepped(Told(truncated=CUT))
    assert stepped(Told(truncated=CUT), finals="previous").next_observations.tolist() == [[1], [0]]
    stepped(Told(terminated=CUT))  # whose final observation nobody reads
    stepped(Told(terminated=CUT, truncated=CUT))


def test_choices_count_from_zero_and_flags_may_be_numbers():
    env = Told(terminated=torch.tensor([0.0, 1.0]))
    assert stepped(env).terminated.tolist() == [False, True]
    assert env.taken.tolist() == [5, 6]


def test_maniskill_declares_its_mode_by_auto_reset():
    class Maniskill(Told):
        metadata, auto_reset = {}, True

    infos = {"final_observation": torch.full((2, 1), 7.0)}
    assert stepped(Maniskill(truncated=CUT, infos=infos)).next_observations.tolist() == [[1], [7]]


def test_isaac_lab_names_its_parts_and_takes_one_seed():
    class Isaac(Told):
        metadata = {}  # noqa: RUF012
        single_observation_space = gym.spaces.Dict({"policy": Told.single_observation_space})

        def reset(self, *, seed=None, options=None):
            assert seed is None or isinstance(seed, int)
            return {"policy": torch.zeros((2, 1))}, {}

    env = Isaac(observations={"policy": torch.ones((2, 1)), "log": None}, truncated=CUT)
    how = {"autoreset": "same_step", "finals": "previous", "part": "policy", "seeding": "one"}
    assert stepped(env, **how).next_observations.tolist() == [[1], [0]]

    def isaac(num_envs):
        return vector(env, **how)

    with pytest.raises(ValueError, match="one seed for all its environments, so it cannot train 2 seeds"):
        Environments(isaac, seeds=[0, 1], num_envs=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"observations": torch.ones(2)}, r"observations that Told returned at a step have shape \(2,\); expected"),
        ({"rewards": torch.ones((2, 1))}, r"rewards that Told returned have shape \(2, 1\); expected \(2,\)"),
        ({"truncated": torch.zeros(3)}, r"flags truncated that Told returned have shape \(3,\)"),
        ({"observations": [1.0, 2.0]}, r"observations .* are a list; expected one torch.Tensor or jax.Array"),
    ],
)
def test_answers_that_do_not_fit_are_errors(answer, message):
    with pytest.raises(ValueError, match=message):
        stepped(Told(**answer))


def test_what_a_function_may_return():
    class Undeclared(Told):
        metadata = {}  # noqa: RUF012

    for made, message in [
        (Undeclared(), r"does not say when it resets.*autoreset='same_step'"),
        (gym.make("CartPole-v1"), r"has a parameter num_envs.*returned a .*vectorization to 'sync'"),
        (Walkers(5), "has 5 environments, but it was asked for num_envs=2"),
    ]:

        def make(num_envs, made=made):
            return made

        with pytest.raises(ValueError, match=message):
            Environments(make, seeds=[0], num_envs=2)
    with pytest.raises(ValueError, match="no function with a parameter num_envs; add it"):
        Environments(lambda: None, seeds=[0], num_envs=2, vectorization="simulator")
    with pytest.raises(ValueError, match="time_limit is set, but walkers makes all environments at once; set it there"):
        list(ppo.train(changed(PPO, time_limit=5)))
    for wrong in ("autoreset", "finals"):
        with pytest.raises(ValueError, match=f"{wrong} is 'odd', expected one of"):
            Simulator(vector(Told(), **{wrong: "odd"}), 2)


def test_a_function_of_one_environment_may_have_num_envs_as_a_setting():
    def one(num_envs):
        return gym.make("CartPole-v1")

    environments = Environments(one, seeds=[0], num_envs=2, env_kwargs={"num_envs": 7})
    assert environments.vectorization == "sync"
    environments.close()


@pytest.mark.parametrize("where", ["observations", "rewards"])
def test_a_number_that_is_not_finite_ends_the_run(where):
    class Broken(Walkers):
        def step(self, actions):
            seen, rewards, *rest = super().step(actions)
            self.count = getattr(self, "count", 0) + 1
            broken = seen if where == "observations" else rewards
            if self.count > 40:
                broken[4] = torch.inf
            return (seen, rewards, *rest)

    def broken(num_envs):
        return Broken(num_envs)

    with pytest.raises(FloatingPointError, match=rf"{where[:-1]} of seed 1, environment 1 is not finite at step"):
        list(ppo.train(changed(PPO, env=broken, normalise_observations=True)))


def test_a_simulator_without_state_begins_anew_and_says_so():
    config = dataclasses.replace(PPO, env=forgetful)
    first = next(iter(ppo.train(config)))
    assert any("Forgetful has no method state(), so a resumed run starts new episodes" in note for note in first.notes)
    resumed = list(ppo.train(config, resume=first.state))
    assert resumed[-1].finished


def test_a_simulator_that_ignores_its_seeds_is_found_out():
    class Stubborn(Walkers):
        drawn = 0

        def reset(self, *, seed=None, options=None):
            self.drawn += 1
            return super().reset(seed=None if seed is None else [one + self.drawn for one in seed], options=options)

    class Careless(Walkers):
        def restore(self, state):
            super().restore({**state, "steps": torch.zeros_like(self.steps)})

    for kind, message in [(Stubborn, "they give another"), (Careless, "restored within an episode, they continue")]:

        def make(num_envs, kind=kind):
            return kind(num_envs)

        notes = next(iter(ppo.train(dataclasses.replace(PPO, env=make)))).notes
        assert any(message in note and "reset(seed=[…])" in note for note in notes), notes


def test_many_processes_are_not_chosen_for_a_simulator():
    from telescope.control.execution import processes_that_pay

    config = dataclasses.replace(PPO, processes=0, seeds=4, total_steps=10_000_000)
    assert processes_that_pay(config) == 1


@pytest.mark.parametrize("path", ["simulators:walkers"])
def test_the_command_line_takes_the_name_of_a_function(path, tmp_path, capsys):
    from telescope.cli import main

    folder = str(tmp_path / "run")
    size = ["--num-envs", "2", "--num-steps", "16", "--minibatch-size", "16", "--total-steps", "64"]
    assert main(["train", "ppo", "--env", path, "--env-kwargs", "limit", "5", *size, "--out", folder]) == 0
    assert main(["eval", folder, "--trust", "--episodes", "3"]) == 0
    assert "return" in capsys.readouterr().out


def test_jax_is_not_loaded_without_need():
    import subprocess

    code = "import sys, telescope.control.simulators, telescope.algorithms.ppo; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
