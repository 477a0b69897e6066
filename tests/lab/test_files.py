"""Rollouts of other libraries: what the real ones compute is right by the doctor, in their own convention."""

import json
import subprocess
import sys

import numpy as np
import pytest
from rollouts import advantages, rollout, world

from telescope import lab
from telescope.lab import files
from telescope.lab.doctor import examine

SEEDS = dict.fromkeys(("sb3", "torchrl", "cleanrl", "trl"), range(40)) | {"rlax": range(6)}  # jax compiles every shape
pytestmark = pytest.mark.filterwarnings("ignore:.*jax:DeprecationWarning")  # rlax calls old names of jax


def stable_baselines(rng):
    """A filled buffer of Stable-Baselines3, as its collect_rollouts fills it, with time limits in the rewards."""
    import gymnasium as gym
    import torch
    from stable_baselines3.common.buffers import RolloutBuffer

    w = world(rng)
    steps, columns = w.rewards.shape
    box = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(steps, box, box, gae_lambda=w.lam, gamma=w.gamma, n_envs=columns)
    ended = w.terminated | w.truncated
    rewards = w.rewards + np.where(w.truncated, w.gamma * w.final, 0.0)
    starts = np.ones(columns)
    for t in range(steps):
        value = torch.as_tensor(w.values[t], dtype=torch.float32)
        buffer.add(np.zeros((columns, 1)), np.zeros((columns, 1)), rewards[t], starts, value, torch.zeros(columns))
        starts = ended[t].astype(float)
    last = torch.as_tensor(w.final[-1], dtype=torch.float32)
    buffer.compute_returns_and_advantage(last_values=last, dones=ended[-1])
    arrays = {name: getattr(buffer, name) for name in ("rewards", "values", "episode_starts", "advantages", "returns")}
    return arrays | {"gamma": w.gamma, "gae_lambda": w.lam, "dones": ended[-1], "last_values": last}


def torchrl(rng):
    import torch
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    w = world(rng)
    names = {"state_value": w.values, "next_state_value": w.final, "reward": w.rewards}
    flags = {"done": w.terminated | w.truncated, "terminated": w.terminated}
    batch = {name: torch.as_tensor(x.T[..., None].copy()) for name, x in (names | flags).items()}
    if rng.random() < 0.3:  # one environment, and no axis for it
        batch = {name: x[0] for name, x in batch.items()}
    advantage, target = generalized_advantage_estimate(w.gamma, w.lam, **batch)
    return batch | {"advantage": advantage, "value_target": target, "gamma": w.gamma, "lmbda": w.lam}


def cleanrl(rng):
    """The loop of CleanRL's ppo.py, whose flags know no time limit."""
    w = world(rng)
    steps, columns = w.rewards.shape
    ended = w.terminated | w.truncated
    dones = np.vstack([np.zeros((1, columns)), ended[:-1]])
    result, later = np.zeros((steps, columns)), 0.0
    for t in reversed(range(steps)):
        goes_on = 1.0 - (ended[-1] if t == steps - 1 else dones[t + 1])
        ahead = w.final[-1] if t == steps - 1 else w.values[t + 1]
        later = w.rewards[t] + w.gamma * ahead * goes_on - w.values[t] + w.gamma * w.lam * goes_on * later
        result[t] = later
    more = {"next_done": ended[-1], "next_value": w.final[-1], "gamma": w.gamma, "gae_lambda": w.lam}
    return {"rewards": w.rewards, "values": w.values, "dones": dones, "advantages": result} | more


def rlax(rng):
    import jax.numpy as jnp
    from rlax import truncated_generalized_advantage_estimation

    w = world(rng)
    discounts = np.where(w.terminated | w.truncated, 0.0, w.gamma)[:, 0]
    values = np.append(w.values[:, 0], w.final[-1, 0])
    numbers = [jnp.asarray(x, jnp.float32) for x in (w.rewards[:, 0], discounts, values)]
    result = truncated_generalized_advantage_estimation(numbers[0], numbers[1], w.lam, numbers[2])
    names = dict(zip(("r_t", "discount_t", "v_t"), numbers, strict=True))
    return names | {"advantages": result, "lambda_": w.lam}


def tokens(rng):
    w = world(rng, padded=True)
    names = {"rewards": w.rewards, "values": w.values, "advantages": advantages(w)}
    arrays = {name: x.T.copy() for name, x in names.items()}
    return arrays | {"padding_mask": ~w.mask.T, "gamma": w.gamma, "lmbda": w.lam}


MAKERS = {"sb3": stable_baselines, "torchrl": torchrl, "cleanrl": cleanrl, "rlax": rlax, "trl": tokens}


@pytest.mark.parametrize("name", MAKERS)
def test_what_other_libraries_compute_is_right(name, tmp_path):
    for seed in SEEDS[name]:
        path = lab.record(tmp_path / "rollout.npz", **MAKERS[name](np.random.default_rng(seed)))
        found = examine(files.read(path, name))
        assert not found.findings, (seed, found)


@pytest.mark.parametrize("name", MAKERS)
def test_a_mistake_is_found_in_every_convention(name):
    """Other advantages than those of γ and λ, and flags that are lost."""
    found = 0
    for seed in SEEDS[name]:
        arrays = MAKERS[name](np.random.default_rng(seed))
        arrays = {key: np.array(files.as_array(x)) for key, x in arrays.items()}
        advantage = "advantage" if name == "torchrl" else "advantages"
        arrays[advantage] = arrays[advantage] * 1.5
        arrays = {key: x for key, x in arrays.items() if key not in ("returns", "value_target")}
        found += bool(examine(files.rollout(arrays, name)).findings or examine(files.rollout(arrays, name)).notes)
    assert found == len(SEEDS[name])


def test_what_is_recorded_is_what_is_read(tmp_path):
    import torch

    w = world(np.random.default_rng(0))
    path = lab.record(
        tmp_path / "r.npz", rewards=torch.tensor(w.rewards, requires_grad=True), values=None, gamma=0.5, lam=w.lam
    )
    found = files.read(path)
    np.testing.assert_array_equal(found.rewards, w.rewards)
    assert (found.values, found.gamma, found.lam) == (None, 0.5, w.lam)
    half = files.read(lab.record(tmp_path / "r.npz", rewards=torch.tensor([1.5], dtype=torch.bfloat16)))
    assert half.rewards.dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "convention", "message"),
    [
        ({"values": np.zeros(3)}, "telescope", "there are values; expected at least rewards"),
        ({"rewards": np.zeros(3)}, "nobody", "convention is 'nobody'; expected telescope, sb3"),
        ({"rewards": np.zeros(3), "gamma": np.zeros(2)}, "telescope", "gamma is"),
    ],
)
def test_what_is_no_rollout_is_said(arrays, convention, message):
    with pytest.raises(ValueError, match=message):
        files.rollout(arrays, convention)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_rollout_is_said(tmp_path, content):
    path = tmp_path / "r.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"r\.npz is no npz file"):
        files.read(path)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "telescope.cli", "doctor", *map(str, arguments)], capture_output=True, text=True
    )


def test_the_command_exits_with_1_if_something_is_wrong(tmp_path):
    rng = np.random.default_rng(1)
    w = world(rng)
    right = rollout(w, advantages(w), rng, given=True)
    wrong = rollout(w, advantages(w, at_truncation=lambda t, b, later: 0.0), rng, given=True)
    paths = [
        lab.record(tmp_path / f"{name}.npz", **r._asdict()) for name, r in {"right": right, "wrong": wrong}.items()
    ]
    done = command(paths[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing wrong was found\n", "")
    done = command(paths[1], "--json")
    assert done.returncode == 1
    finding = json.loads(done.stdout)["findings"][0]
    assert finding["name"] == "truncation_as_termination"
    first = [int(i) for i in np.argwhere(w.truncated.reshape(wrong.rewards.shape))[0]]
    assert finding["row"] == first
    assert f"First at row {', '.join(map(str, first))}" in command(paths[1]).stdout


def test_without_a_file_it_reports_the_installation():
    facts = json.loads(command("--json").stdout)
    assert facts["numpy"] == np.__version__
    assert facts["processors"] >= 1
    assert "telescope" in command().stdout


def test_a_file_that_is_missing_is_an_error():
    done = command("nowhere.npz")
    assert done.returncode == 1
    assert "nowhere.npz" in done.stderr
    assert "Traceback" not in done.stderr
