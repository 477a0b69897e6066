"""Iterations of whole episodes: what counts, the clock of each seed, and runs in which seeds finish at different times.

`reinforce` stands for all algorithms on whole episodes. Leaves out what they learn (`tests/algorithms`).
"""

import csv
import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import telescope
from telescope.algorithms.reinforce import Reinforce, train
from telescope.cli import main
from telescope.control.experience.episodes import shares
from worlds import Forever

CONFIG = Reinforce(
    env="CartPole-v1",
    seeds=3,
    seed=1,
    total_steps=500,
    num_envs=2,
    episodes=4,
    weight="baselined",
    baseline="value",
    normalise_observations=True,
    normalise_rewards=True,
    learning_rate=1e-2,
    hidden=(8,),
    threads=1,
    compile="off",
)
OTHER = {
    "same_step": {"vectorization": "sync"},
    "next_step": {"vectorization": "sync", "autoreset": "next_step"},
    "disabled": {"vectorization": "sync", "autoreset": "disabled"},
    "own vector environment": {},
}


def run(resume=None, **changes):
    """Rows without their times, states, and what each iteration said."""
    rows, states, steps = [], [], []
    for one in train(dataclasses.replace(CONFIG, **changes), resume):
        rows += [{name: x for name, x in row.items() if not name.startswith("time")} for row in one.rows]
        states.append(one.state)
        steps.append((one.step, one.finished))
    return rows, states, steps


@pytest.fixture(scope="module")
def whole():
    return run()


def of_seed(rows, seed):
    return [row for row in rows if row["seed"] == seed]


def close(rows, others):
    assert len(rows) == len(others)
    for one, other in zip(rows, others, strict=True):
        for name, value in one.items():
            near = other[name] if other[name] is None else pytest.approx(other[name], rel=1e-3, abs=1e-5)
            assert value == near, name


class Counted(gym.Env):
    """Episodes of 1 to 5 steps, as the seed has it; counts the steps that it has really made."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    made = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        type(self).made += 1
        assert self.left >= 0, "an episode is over"
        return np.ones(1, np.float32), 1.0, self.left == 0, False, {}


# What counts


@pytest.mark.parametrize("mode", OTHER)
def test_an_iteration_has_its_episodes_and_its_clock_their_steps(mode):
    rows, _, _ = run(**OTHER[mode])
    for seed in (1, 2, 3):
        clock = 0
        for number, row in enumerate(of_seed(rows, seed), 1):
            clock += row["episodes"] * row["length_mean"]
            assert row["episodes"] == 4
            assert row["step"] == pytest.approx(clock)
            assert row["iteration"] == number
            assert row["return_mean"] == pytest.approx(row["length_mean"]), "CartPole pays 1 a step"


@pytest.mark.parametrize("mode", OTHER)
@pytest.mark.parametrize("episodes", [1, 3, 5])
def test_environments_share_episodes_as_equally_as_can_be(mode, episodes):
    """Known before anything is played, so that short episodes are not counted more often than long ones."""
    rows, *_ = run(num_envs=4, episodes=episodes, total_steps=60, **OTHER[mode])
    assert {row["episodes"] for row in rows} == {episodes}
    for seed in (1, 2, 3):
        steps = np.diff([0, *(row["step"] for row in of_seed(rows, seed))])
        np.testing.assert_allclose(steps, [row["length_mean"] * episodes for row in of_seed(rows, seed)])
    np.testing.assert_array_equal(shares(7, 3), [3, 2, 2])
    np.testing.assert_array_equal(shares(2, 3), [1, 1, 0])


def test_environments_that_have_played_their_share_are_not_stepped():
    made = []
    for one in train(dataclasses.replace(CONFIG, env=Counted, total_steps=100, seeds=1)):
        made.append((one.step, Counted.made))  # the first ones include the steps of a rehearsal
    (first, before), *_, (last, after) = made
    assert last - first == after - before > 0


def test_equal_episodes_whatever_the_autoreset_mode():
    """With one environment per seed: with more, modes take different rows of noise."""
    alone = {"num_envs": 1, "episodes": 1, "normalise_observations": False, "total_steps": 100}
    expected, _, _ = run(vectorization="sync", **alone)
    for autoreset in ("next_step", "disabled"):
        found, _, _ = run(vectorization="sync", autoreset=autoreset, **alone)
        assert found == expected


def test_an_episode_without_an_end_is_an_error_that_names_the_fix():
    with pytest.raises(ValueError, match=r"num_steps 20, .*time limit .*--time-limit 1000"):
        run(env=Forever, env_kwargs={"limit": 10**9}, num_steps=20)


def test_a_seed_begins_each_iteration_with_other_episodes(whole):
    rows = of_seed(whole[0], 1)
    assert len({row["length_mean"] for row in rows}) > 1
    still, _, _ = run(seeds=1, learning_rate=1e-30)
    assert len({row["length_mean"] for row in still}) > 1, "a policy that stays has other episodes, too"


# Clocks


def test_seeds_finish_at_different_times_and_their_rows_end(whole):
    rows, states, steps = whole
    counts = [len(of_seed(rows, seed)) for seed in (1, 2, 3)]
    assert len(set(counts)) > 1, "choose other seeds"
    for seed in (1, 2, 3):
        *before, last = of_seed(rows, seed)
        assert all(row["step"] < 500 for row in before) and last["step"] >= 500  # noqa: PT018
    assert [step for step, _ in steps] == sorted({step for step, _ in steps})
    assert [finished for _, finished in steps] == [False] * (max(counts) - 1) + [True]
    assert states[-1]["clocks"].tolist() == [of_seed(rows, seed)[-1]["step"] for seed in (1, 2, 3)]


def test_a_finished_seed_stays_as_it_is(whole):
    rows, states, _ = whole
    first = min((1, 2, 3), key=lambda seed: len(of_seed(rows, seed)))
    end = len(of_seed(rows, first)) - 1
    then, now = (state["policy"]["parameters"][first - 1] for state in (states[end], states[-1]))
    assert torch.equal(then, now)
    then, now = (state["policy"]["normaliser"] for state in (states[end], states[-1]))
    for name, array in then.items():
        np.testing.assert_allclose(array[first - 1], now[name][first - 1], rtol=1e-12)


@pytest.mark.parametrize("mode", OTHER)
def test_a_seed_alone_is_that_seed_in_company(mode):
    together, states, _ = run(**OTHER[mode])
    for seed in (1, 2, 3):
        alone, its, _ = run(seeds=1, seed=seed, **OTHER[mode])
        close(alone, of_seed(together, seed))
        ours, theirs = its[-1]["policy"]["parameters"][0], states[-1]["policy"]["parameters"][seed - 1]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_schedules_follow_each_seeds_own_clock(whole):
    for seed in (1, 2, 3):
        before = 0
        for row in of_seed(whole[0], seed):
            assert row["learning_rate"] == pytest.approx(1e-2 * (1 - before / 500), rel=1e-5)
            before = row["step"]


def test_a_seed_is_evaluated_where_its_own_clock_crosses():
    rows, _, _ = run(eval_every=150, eval_episodes=2, eval_max_steps=20)
    for seed in (1, 2, 3):
        before = 0
        for row in of_seed(rows, seed):
            assert (row["eval_return_mean"] is not None) == (row["step"] // 150 > before // 150)
            before = row["step"]
    alone, _, _ = run(eval_every=150, eval_episodes=2, eval_max_steps=20, seeds=1)
    close(alone, of_seed(rows, 1))


# Resuming


@pytest.mark.parametrize("at", [0, -2])
def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, at):
    rows, states, _ = whole
    found, later, _ = run(states[at])
    assert found == rows[-len(found) :]
    assert sum(len(row) for row in found) < sum(len(row) for row in rows)
    assert torch.equal(later[-1]["policy"]["parameters"], states[-1]["policy"]["parameters"])
    assert not list(train(CONFIG, states[-1])), "a finished run has nothing left"


def test_seeds_over_processes(whole):
    spread, states, steps = run(processes=2)
    for seed in (1, 2, 3):
        close(of_seed(spread, seed), of_seed(whole[0], seed))
    assert [step for step, _ in steps] == [step for step, _ in whole[2]]
    assert [finished for _, finished in steps] == [finished for _, finished in whole[2]]
    assert states[-1]["clocks"].tolist() == whole[1][-1]["clocks"].tolist()
    found, later, _ = run(states[-2], processes=2)  # when a share may have finished
    assert found == spread[-len(found) :]
    assert torch.equal(later[-1]["policy"]["parameters"], states[-1]["policy"]["parameters"])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_finished_run_can_be_extended_seed_by_seed(processes):
    """Each seed goes on from its own clock and iteration, as it would alone."""
    _, states, _ = run(processes=processes, anneal_learning_rate=False, total_steps=200)
    more, _, _ = run(states[-1], processes=processes, anneal_learning_rate=False, total_steps=500)
    rows, _, _ = run(anneal_learning_rate=False)
    for seed in (1, 2, 3):
        found = of_seed(more, seed)
        close(found, of_seed(rows, seed)[-len(found) :])


@pytest.mark.filterwarnings("ignore:.*evaluation episodes were cut:UserWarning")
def test_a_run_folder_goes_on_seed_by_seed(tmp_path):
    config = dataclasses.replace(CONFIG, eval_every=100, eval_episodes=1, eval_max_steps=20)
    run = telescope.train(dataclasses.replace(config, total_steps=200), tmp_path / "run")
    before = (run.path / "metrics.csv").read_text()
    assert main(["train", "--resume", str(run.path)]) == 0  # finished
    assert main(["train", "--resume", str(run.path), "--total-steps", "500"]) == 0
    with (run.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (run.path / "metrics.csv").read_text().startswith(before)
    best = telescope.load(run.path, best=True).evaluate(1, max_steps=20).returns[:, 0]
    for seed in (1, 2, 3):
        mine = [row for row in rows if int(row["seed"]) == seed]
        assert [int(row["iteration"]) for row in mine] == list(range(1, len(mine) + 1))
        measured = [float(row["eval_return_mean"]) for row in mine if row["eval_return_mean"]]
        assert best[seed - 1] == max(measured)
    assert run.curves_path.exists()
