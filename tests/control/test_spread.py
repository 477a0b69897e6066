"""Seeds in several processes are the seeds of one: same metrics, same states, the same end when something fails."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

import worlds
from telescope.algorithms.ppo import PPO, train

CONFIG = PPO(
    env="Pendulum-v1",
    seeds=3,
    seed=5,
    processes=2,
    total_steps=256,
    num_envs=2,
    num_steps=32,
    minibatch_size=32,
    epochs=2,
    eval_every=128,
    eval_episodes=1,
    normalise_observations=True,
    normalise_rewards=True,
    threads=1,
)


def run(config, resume=None):
    """Rows without their times, and every state."""
    rows, states, seconds = [], [], 0.0
    for metrics in train(config, resume):
        rows += [{name: x for name, x in row.items() if not name.startswith("time")} for row in metrics.rows]
        states.append(metrics.state)
        times = [
            [row[f"time_{part}"] for part in ("env", "policy", "update", "other", "total")] for row in metrics.rows
        ]
        seconds += sum(times[0][:4])
        assert resume or times == [[*times[0][:4], pytest.approx(seconds)]] * config.seeds
    assert metrics.finished
    return rows, states


def without_clock(state):
    shares = [share | {"elapsed": 0} for share in state["shares"]]
    return state | {"elapsed": 0, "shares": shares}


def same(a, b):
    """Equal structures of equal numbers."""
    (left, shape), (right, other) = tree_flatten(a), tree_flatten(b)
    return shape == other and all(
        np.array_equal(np.asarray(x), np.asarray(y)) if isinstance(x, torch.Tensor | np.ndarray) else x == y
        for x, y in zip(left, right, strict=True)
    )


@pytest.fixture(scope="module")
def spread():
    return run(CONFIG)


def test_they_are_the_seeds_of_one_process(spread):
    # Not bit for bit: a product of three agents' matrices need not round as one of two does.
    rows, states = spread
    alone_rows, alone = run(dataclasses.replace(CONFIG, processes=1))
    assert [(row["seed"], row["step"]) for row in rows] == [(row["seed"], row["step"]) for row in alone_rows]
    for name in ("return_mean", "eval_return_mean", "value_loss", "kl"):
        ours, theirs = (np.array([row[name] for row in table], dtype=float) for table in (rows, alone_rows))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    ours, theirs = states[-1]["policy"], alone[-1]["policy"]
    torch.testing.assert_close(ours["parameters"], theirs["parameters"], rtol=1e-4, atol=1e-6)
    for name, array in theirs["normaliser"].items():
        np.testing.assert_allclose(ours["normaliser"][name], array, rtol=1e-4)


def test_a_resumed_run_is_the_run_that_was_never_stopped(spread):
    rows, states = spread
    later_rows, later = run(CONFIG, states[1])
    assert later_rows == rows[6:]
    assert same(without_clock(later[-1]), without_clock(states[-1]))


def test_each_share_has_its_seeds(spread):
    state = spread[1][0]
    assert [share["seeds"] for share in state["shares"]] == [[5, 6], [7]]
    assert state["seeds"] == [5, 6, 7]
    assert len(state["policy"]["parameters"]) == 3


def test_a_run_continues_in_as_many_processes_as_it_began(spread):
    state = spread[1][0]
    with pytest.raises(ValueError, match=r"2 processes, but the config has seeds .* in 3"):
        next(iter(train(dataclasses.replace(CONFIG, processes=3), state)))
    alone = next(iter(train(dataclasses.replace(CONFIG, processes=1)))).state
    with pytest.raises(ValueError, match="1 processes"):
        next(iter(train(CONFIG, alone)))


def test_what_fails_in_a_process_fails_here():
    broken = dataclasses.replace(CONFIG, env=worlds.Forever, env_kwargs={"broken_at": 40}, eval_every=0)
    with pytest.raises(FloatingPointError, match="reward of seed 5, environment 0 is nan"):
        run(broken)
    assert not multiprocessing.active_children()


def test_what_cannot_be_sent_is_refused():
    lock = threading.Lock()
    with pytest.raises(ValueError, match="processes is 2, but the environment or network cannot be sent"):
        next(iter(train(dataclasses.replace(CONFIG, env=lambda: (lock, worlds.Forever())[1]))))
    with pytest.raises(ValueError, match="processes is 4, but there are 3 seeds"):
        dataclasses.replace(CONFIG, processes=4)


def test_states_are_gone_after_the_next_step_and_a_killed_process_ends_the_run():
    loop = iter(train(CONFIG))
    first = next(loop)
    next(loop)
    with pytest.raises(RuntimeError, match="after step 64 is gone: training has reached step 128"):
        _ = first.state
    os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="exit status -9"):
        list(loop)
    assert not multiprocessing.active_children()


class SlowInOne(worlds.Forever):
    """The first one that a worker makes takes its time for every step; `place` is a folder that all of them see."""

    def __init__(self, place):
        super().__init__()
        self.seconds = 0.0
        if multiprocessing.parent_process() is not None:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.join(place, "taken"))
                self.seconds = 0.02

    def step(self, action):
        time.sleep(self.seconds)
        return super().step(action)


def test_the_times_are_those_of_the_slowest_share(tmp_path):
    """All shares wait for it in every iteration."""
    config = dataclasses.replace(
        CONFIG, env=SlowInOne, env_kwargs={"place": str(tmp_path)}, seeds=2, num_envs=1, total_steps=64, eval_every=0
    )
    for metrics in train(config):
        assert [row["time_env"] >= 32 * 0.02 for row in metrics.rows] == [True, True]
