"""The training benchmark compares like with like: everybody's settings, losses, clock and evaluation, and its page.

Rivals that are not installed are left out; `pip install "telescope-rl[rivals]"` gets them. Nothing is timed here.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from benchmarks import cleanrl_loop, processes, train, train_report, train_rivals, train_settings
from benchmarks.train_rivals import Job, Watch
from benchmarks.train_settings import CARTPOLE, CHEETAH, REFERENCE, SPEED, THRESHOLD, Contestant, Task

import telescope
from telescope.algorithms.ppo import PPO

SMALL = CARTPOLE._replace(num_envs=2, num_steps=32, minibatch_size=64, epochs=1, every=64, max_grad_norm=1e9)
TASKS = [pytest.param(task, id=str(task)) for task in (*SPEED, *THRESHOLD)]
needs_sb3 = pytest.mark.skipif(find_spec("stable_baselines3") is None, reason="Stable-Baselines3 is not installed")
needs_sbx = pytest.mark.skipif(find_spec("sbx") is None, reason="SBX is not installed")


def model(task: Task, name: str = "stable_baselines3") -> Any:
    kind = pytest.importorskip(name).PPO
    device = {"device": "cpu"} if name == "stable_baselines3" else {}
    return train_rivals.baselines_model(kind, task, 0, train_settings.for_stable_baselines3(task) | device)


# settings


@needs_sb3
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["stable_baselines3", pytest.param("sbx", marks=needs_sbx)])
def test_a_rival_holds_the_settings_that_ours_has(task: Task, name: str) -> None:
    theirs, ours = model(task, name), PPO(**train_settings.for_telescope(task, total_steps=task.batch))
    pairs = {
        "n_envs": ours.num_envs,
        "n_steps": ours.num_steps,
        "batch_size": ours.minibatch_size,
        "n_epochs": ours.epochs,
        "gamma": ours.gamma,
        "gae_lambda": ours.lam,
        "vf_coef": ours.value_coefficient / 2,  # ours is the weight of half the squared error
        "ent_coef": ours.entropy_coefficient,
        "max_grad_norm": ours.max_grad_norm,
        "learning_rate": ours.learning_rate,
        "normalize_advantage": ours.normalise_advantages,
        "clip_range_vf": None,
        "target_kl": ours.target_kl,
    }
    assert {key: getattr(theirs, key) for key in pairs} == pairs
    clip = getattr(theirs, "clip_range_schedule", theirs.clip_range)
    for remaining in (1.0, 0.3):  # nothing is annealed
        assert clip(remaining) == ours.clip
        assert theirs.lr_schedule(remaining) == ours.learning_rate
    assert not ours.anneal_learning_rate
    assert not ours.anneal_clip
    assert ours.value_clip is None
    assert (theirs.get_vec_normalize_env() is not None) == ours.normalise_observations == ours.normalise_rewards


@needs_sb3
@pytest.mark.parametrize("task", SPEED)
def test_everybody_has_as_many_parameters_and_the_same_adam(task: Task) -> None:
    envs = gym.make_vec(task.env, num_envs=1)
    cleanrl = cleanrl_loop.Agent(envs.single_observation_space, envs.single_action_space, task.hidden)
    config = PPO(**train_settings.for_telescope(task._replace(num_steps=64), total_steps=task.batch, compile="off"))
    theirs = model(task).policy
    assert sum(p.numel() for p in cleanrl.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in cleanrl.parameters()) == _parameters(config)
    assert {type(m) for m in theirs.modules() if "activation" in type(m).__module__} == {torch.nn.Tanh}
    assert (config.activation, theirs.optimizer.defaults["eps"]) == ("tanh", config.adam_eps)


def _parameters(config: PPO) -> int:
    from telescope.algorithms.ppo import train as ours

    return int(next(ours(config)).policy["parameters"].shape[1])


@needs_sbx
@pytest.mark.parametrize("task", SPEED)
def test_sbx_has_the_same_networks_and_adam(task: Task) -> None:
    import jax

    policy, reference = model(task, "sbx").policy, model(task).policy
    count = sum(x.size for state in (policy.actor_state, policy.vf_state) for x in jax.tree.leaves(state.params))
    assert count == sum(p.numel() for p in reference.parameters())
    assert policy.optimizer_kwargs["eps"] == task.adam_eps
    assert policy.ortho_init


# CleanRL's loop


@needs_sb3
@pytest.mark.parametrize("clip", [0.2, 1e-3])
@pytest.mark.parametrize("env", [CARTPOLE.env, CHEETAH.env])
def test_cleanrls_gradient_is_that_of_stable_baselines3(env: str, clip: float) -> None:
    """On one buffer and with one set of weights that has moved since the buffer was filled."""
    task = SMALL._replace(env=env, entropy=0.03, clip=clip)
    theirs = model(task)
    theirs.learn(task.batch)
    weights = theirs.policy.state_dict()
    agent = cleanrl_loop.Agent(theirs.observation_space, theirs.action_space, task.hidden)
    agent.load_state_dict(renamed(weights))
    buffer = theirs.rollout_buffer  # flattened by now: column after column, which a mean does not see
    shape = (task.num_steps, task.num_envs)
    actions = buffer.actions[:, 0] if agent.discrete else buffer.actions
    numbers = (buffer.log_probs, buffer.rewards, buffer.episode_starts, buffer.values)
    flat = [torch.tensor(x, dtype=torch.float32) for x in (buffer.observations, actions, *map(np.ravel, numbers))]
    rollout = cleanrl_loop.Rollout(*(x.reshape(shape + x.shape[1:]) for x in flat))
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
    cleanrl_loop.update(task, agent, optimizer, rollout, torch.tensor(buffer.advantages).reshape(shape))
    theirs.train()
    for name, gradient in renamed({name: p.grad for name, p in theirs.policy.named_parameters()}).items():
        found = agent.get_parameter(name).grad
        assert found is not None
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def renamed(theirs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Stable-Baselines3's names of parameters → CleanRL's."""
    names = {"log_std": "log_std"}
    for ours, inner, last in (("actor", "policy_net", "action_net"), ("critic", "value_net", "value_net")):
        for part in ("weight", "bias"):
            names |= {f"mlp_extractor.{inner}.{i}.{part}": f"{ours}.{i}.{part}" for i in (0, 2)}
            names[f"{last}.{part}"] = f"{ours}.4.{part}"
    found = {names[name]: tensor for name, tensor in theirs.items()}
    return {name: tensor.reshape(1, -1) if name == "log_std" else tensor for name, tensor in found.items()}


def test_cleanrls_advantages_are_gae_in_which_every_end_terminates() -> None:
    task, rng = SMALL._replace(num_envs=5), np.random.default_rng(0)
    shape = (task.num_steps, task.num_envs)
    rewards, values, started = (torch.tensor(x) for x in (*rng.normal(size=(2, *shape)), rng.random(shape) < 0.2))
    last, ended = torch.tensor(rng.normal(size=5)), torch.tensor(rng.random(5) < 0.5)
    rollout = cleanrl_loop.Rollout(rewards, rewards, rewards, rewards, started.double(), values)
    found = cleanrl_loop.advantages(task, rollout, last, ended.double())
    done = torch.cat([started[1:], ended[None]])
    ahead = telescope.next_values(values, last, terminated=done, truncated=None)
    right = telescope.gae(rewards, values, ahead, terminated=done, truncated=None, gamma=task.gamma, lam=task.lam)
    torch.testing.assert_close(found, right.advantages, rtol=1e-12, atol=1e-12)


def test_cleanrls_debug_variables_are_zero_before_the_policy_has_moved() -> None:
    torch.manual_seed(0)
    envs = gym.vector.SyncVectorEnv([cleanrl_loop.environment(SMALL)] * 2)
    agent = cleanrl_loop.Agent(envs.single_observation_space, envs.single_action_space, SMALL.hidden)
    observations = torch.randn(SMALL.num_steps, 2, 4)
    with torch.no_grad():
        actions, log_probs, _, values = agent.evaluate(observations.flatten(0, 1))
    shaped = [x.reshape(SMALL.num_steps, 2) for x in (actions, log_probs, torch.ones(64), torch.zeros(64), values)]
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
    found = cleanrl_loop.update(SMALL, agent, optimizer, cleanrl_loop.Rollout(observations, *shaped), torch.rand(32, 2))
    assert found == {"kl": pytest.approx(0, abs=1e-6), "clipped": 0.0}


# the watch


@pytest.mark.parametrize(
    "trainer",
    [
        "telescope",
        "cleanrl",
        pytest.param("stable_baselines3", marks=needs_sb3),
        pytest.param("sbx", marks=[needs_sb3, needs_sbx]),
    ],
)
def test_everybody_trains_and_is_evaluated_at_the_same_steps(trainer: str) -> None:
    task = SMALL._replace(every=128, threshold=501)
    job = Job(trainer, task, 3, 1, "gymnasium", 1, 1, steps=4 * 64, compile="off", until_solved=True)
    watch = Watch(job._replace(started=time.monotonic()))
    train_rivals.TRAINERS[trainer](job, watch)
    assert [steps for steps, *_ in watch.laps] == [64, 128, 192, 256]
    assert [steps for steps, *_ in watch.evaluations] == [128, 256]
    assert all(8 <= returns[0] <= 500 for *_, returns in watch.evaluations)


@pytest.mark.parametrize("trainer", ["telescope", "cleanrl", pytest.param("stable_baselines3", marks=needs_sb3)])
def test_training_stops_where_the_threshold_is_reached(trainer: str) -> None:
    task = SMALL._replace(every=64, threshold=1)
    job = Job(trainer, task, 3, 1, "gymnasium", 1, 1, steps=4 * 64, compile="off", until_solved=True)
    watch = Watch(job._replace(started=time.monotonic()))
    train_rivals.TRAINERS[trainer](job, watch)
    assert [steps for steps, *_ in watch.laps] == [64]


def test_the_watch_stands_still_during_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.0, 10.0, 11.0])
    monkeypatch.setattr(train_rivals.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(train_rivals, "evaluate", lambda task, act: 7.0)
    task = SMALL._replace(every=128)
    watch = Watch(Job("telescope", task, 0, 1, "gymnasium", 1, 1, steps=192, until_solved=True))
    watch.lap(128, lambda: [np.zeros_like])  # a lap at 1 s, an evaluation from 2 s to 10 s
    watch.lap(192, lambda: [np.zeros_like])  # no new multiple of 128 steps: only a lap, at 11 s
    assert [(steps, seconds) for steps, seconds, _ in watch.laps] == [(128, 1.0), (192, 3.0)]
    assert watch.evaluations == [(128, 2.0, [7.0])]


def test_an_evaluation_is_the_mean_over_first_episodes() -> None:
    lean = lambda observations: (observations[:, 2] > 0).astype(int)  # noqa: E731
    returns = []
    for i in range(train_rivals.EPISODES):
        env = gym.make(CARTPOLE.env)
        observation, ended, total = env.reset(seed=1_000_000 + i)[0], False, 0.0
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(int(lean(observation[None])[0]))
            ended, total = terminated or truncated, total + float(reward)
        returns.append(total)
    assert len(set(returns)) > 1
    assert train_rivals.evaluate(CARTPOLE, lean) == pytest.approx(np.mean(returns))


def test_a_job_survives_its_file(tmp_path: Any) -> None:
    job = Job("telescope", CHEETAH, 3, 8, "envpool", 1, 2, steps=100)
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**job._asdict(), "task": job.task._asdict()}))
    assert Job.read(str(path)) == job


# numbers


def test_rates_count_all_seeds_and_leave_out_the_first_laps() -> None:
    laps = [(10, 100.0, 7.0), (20, 101.0, 8.0), (30, 103.0, 9.0), (40, 105.0, 14.0)]
    assert train.rates(laps, 8, warm=2) == {"rate": 8 * 20 / 4, "busy": 6 / 4}
    assert train.rates(laps[:1], 1, warm=0) == {"rate": 0.1, "busy": 0.07}
    assert train.parts([[9.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]], 1) == [2.0, 3.0, 4.0, 5.0]


def test_a_seed_has_reached_the_threshold_at_its_first_good_evaluation() -> None:
    evaluations = [[64, 1.0, [400.0, 480.0, 0.0]], [128, 2.0, [475.0, 300.0, 474.9]]]
    assert train.reached(evaluations, 475, 3) == [[128, 2.0], [64, 1.0], None]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="there is no /proc here")
def test_resident_memory_counts_the_children() -> None:
    code = "import sys; held = b'x' * 100_000_000; print(flush=True); sys.stdin.read()"
    alone = processes.resident(os.getpid())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:  # type: ignore[call-overload]
        child.stdout.readline()
        both = processes.resident(os.getpid())
        assert both - alone > 90e6
        assert 90e6 < processes.resident(child.pid) < 200e6
        child.communicate()


# the page


def record(name: str, env: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        **{"name": name, "task": env, "env": env, "threads": 2, "seed": 0, "seeds": 1, "cold": False, "steps": 100},
        **{"whole": 20.0, "memory": 2.0**30, "rate": rate, "busy": 1.0, "times": [1.0, 2.0, 3.0, 4.0]},
        **{"seconds": 10.0, "evaluations": [], "reached": [None], "final": [500.0], **more},
    }


def test_the_page_says_which_bars_are_met_and_which_are_missed(tmp_path: Any) -> None:
    page = tmp_path / "deep" / "train-here.md"
    rates = {
        "telescope, 1 seed": [490.0, 510.0, 500.0],
        "telescope, 8 seeds": [1100.0],
        REFERENCE: [100.0, 90.0, 110.0],
    }
    speed = [record(name, CARTPOLE.env, rate) for name, each in rates.items() for rate in each]
    speed.append(record("telescope, 1 seed", CARTPOLE.env, 1e9, cold=True))  # an empty cache is no part of a bar
    cold = [
        record("telescope", CARTPOLE.env, 1.0, evaluations=[[1, 12.0, [500.0, 480.0]]]),
        record(REFERENCE, CARTPOLE.env, 1.0, seconds=21.0),
    ]
    facts = {"processor": "a slow one", "date": "never", "command": "none"}
    for measure, records in (("speed", speed), ("cold", cold)):
        section = {"command": f"bench {measure}", "date": "today", "records": records}
        train_report.write(page, facts, measure, section)
    text = page.read_text()
    assert "| CartPole-v1, telescope, 1 seed: × Stable-Baselines3 | ≥ 5 | 5.00 | met |" in text
    assert "| CartPole-v1, telescope, 8 seeds: × Stable-Baselines3 | ≥ 12 | 11.00 | **missed** |" in text
    assert "| HalfCheetah-v5, telescope, 1 seed: × Stable-Baselines3 | ≥ 4 | nan | not measured |" in text
    assert "| CartPole from nothing to 8 solved seeds | < 21.0 s | 12.0 s | met |" in text
    assert "`bench speed`, today" in text
    assert "a slow one" in text
    assert len(json.loads(page.with_suffix(".json").read_text())["measures"]["speed"]["records"]) == len(speed)


def test_a_threshold_that_half_of_the_seeds_miss_has_no_median() -> None:
    task = str(THRESHOLD[0])
    runs = [record("ours", task, 1.0, reached=[[64, 3.0], None]), record("ours", task, 1.0, reached=[None, [64, 5.0]])]
    assert "| ours | 2 | 2 of 4 | not reached | 3.0 – 5.0 s | > 100 |" in train_report.threshold(runs)
    unsolved = record("telescope", task, 1.0, evaluations=[[1, 12.0, [500.0, 474.0]]])
    assert "| telescope | 2 | not solved |" in train_report.cold([unsolved])


def test_every_measure_has_a_plan_and_a_section() -> None:
    chosen = train.parser().parse_args(["--quick", "--select", "telescope", "--threads", "1", "2"])
    assert set(train.MEASURES) == set(train_report.SECTIONS)
    for measure in train.MEASURES:
        planned = list(train.plans(measure, chosen, train.ROOT))
        assert planned
        assert {threads for _, threads in planned} == {1, 2}
        assert all("telescope" in plan[0].name for plan, _ in planned)
        assert all(plan[0].trainer in train_rivals.TRAINERS for plan, _ in planned)
    assert {bar.name for bar in train_report.BARS} <= {one.name for one in train_settings.CONTESTANTS}
    assert all(isinstance(one, Contestant) for one in train_settings.contestants(CARTPOLE))
    assert not any(one.backend == "envpool" for one in train_settings.contestants(CARTPOLE))
