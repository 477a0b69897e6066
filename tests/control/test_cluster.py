"""Seeds and actors on the machines of a cluster: the same results, also if a machine leaves in the middle of a run.

The machines are processes of this one, by `ray.cluster_utils`. Leaves out actors on one machine (`test_actors.py`).
"""

import contextlib
import dataclasses

import numpy as np
import psutil
import pytest
from test_spread import same

from telescope.algorithms import impala, ppo
from telescope.control.workers.cluster import connected, processors_of, ray

CONFIG = ppo.PPO(
    env="CartPole-v1",
    seeds=3,
    seed=5,
    total_steps=64 * 6,
    num_envs=2,
    num_steps=32,
    minibatch_size=32,
    epochs=2,
    normalise_observations=True,
    normalise_rewards=True,
    threads=1,
    compile="off",
)
ACTING = impala.IMPALA(
    env="CartPole-v1", num_envs=2, num_steps=16, total_steps=32 * 120, hidden=(8,), threads=1, compile="off"
)


@contextlib.contextmanager
def machines(count):
    """A head without processors, and some machines with one each."""
    ray()
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(count):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)


@pytest.fixture(scope="module")
def cluster():
    with machines(2) as cluster:
        yield cluster


def replaced(cluster, node):
    """A machine leaves, at once, and another comes."""
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000, wait=False)


def rows_of(iterations):
    rows, state = [], None
    for iteration in iterations:
        rows += [{name: x for name, x in row.items() if not name.startswith("time")} for row in iteration.rows]
        state = iteration.state
    return rows, state


def test_seeds_spread_over_machines_as_over_processes(cluster):
    assert processors_of(cluster.address) == 2
    there = dataclasses.replace(CONFIG, processes=0, ray_address=cluster.address)
    rows, state = rows_of(ppo.train(there))
    expected, here = rows_of(ppo.train(dataclasses.replace(CONFIG, processes=2)))
    assert rows == expected
    assert same(state["policy"], here["policy"])
    assert [share["seeds"] for share in state["shares"]] == [[5, 6], [7]]


def test_a_run_resumes_from_a_cluster_on_one_machine(cluster):
    there = dataclasses.replace(CONFIG, processes=2, ray_address=cluster.address)
    loop = ppo.train(there)
    state = next(loop).state
    loop.close()
    rows, _ = rows_of(ppo.train(dataclasses.replace(CONFIG, processes=2), state))
    expected, _ = rows_of(ppo.train(dataclasses.replace(CONFIG, processes=2)))
    assert rows == expected[3:]


def test_an_address_without_a_cluster_is_refused():
    with pytest.raises(ValueError, match=r"no Ray cluster at ray_address '127.0.0.1:1'"), connected("127.0.0.1:1", 1):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_a_machine_that_leaves_costs_time_and_nothing_else(count):
    with machines(count) as cluster:
        there = dataclasses.replace(CONFIG, processes=count, ray_address=cluster.address)
        rows, state = [], None
        for number, iteration in enumerate(ppo.train(there)):
            rows += [{name: x for name, x in row.items() if not name.startswith("time")} for row in iteration.rows]
            if number == 1:
                _ = iteration.state  # the lost share goes on from here
            if number == 3:
                replaced(cluster, next(iter(cluster.worker_nodes)))
            state = iteration.state if iteration.finished else None
        expected, here = rows_of(ppo.train(dataclasses.replace(CONFIG, processes=count)))
        assert rows == expected
        assert same(state["policy"], here["policy"])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_actors_go_on_without_a_machine_that_leaves(count):
    with machines(count) as cluster:
        config, rows = dataclasses.replace(ACTING, ray_address=cluster.address, actors=count), []
        for number, iteration in enumerate(impala.train(config)):
            rows += iteration.rows
            if number == 10:
                replaced(cluster, next(iter(cluster.worker_nodes)))
        assert [row["step"] for row in rows] == list(range(32, 32 * 120 + 1, 32))
        assert rows[-1]["actor_restarts"] >= 1
        assert np.isfinite(rows[-1]["value_loss"])
