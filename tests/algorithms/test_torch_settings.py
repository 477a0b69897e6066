"""Torch's thread count and default dtype are the caller's before, between, and after the steps of a run."""

import dataclasses

import pytest
import torch

from telescope.algorithms.ppo import PPO, train
from telescope.algorithms.sft import SFT
from telescope.algorithms.sft import train as train_sft
from telescope.threads import own_settings
from worlds import Forever

SMALL = PPO(env=Forever, num_steps=8, minibatch_size=8, epochs=1, total_steps=24, hidden=(4,), threads=1, compile="off")


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
    torch.set_default_dtype(torch.float32)


def broken():
    raise RuntimeError("no such world")


def test_a_run_leaves_the_thread_count_as_it_was_found_at_every_point():
    loop = train(SMALL)
    seen = [torch.get_num_threads() for _ in loop]
    assert [*seen, torch.get_num_threads()] == [3, 3, 3, 3]


@pytest.mark.parametrize("end", ["closed", "broken off", "raised", "never begun"])
def test_however_it_ends(end):
    if end == "raised":
        with pytest.raises(RuntimeError, match="no such world"):
            next(train(dataclasses.replace(SMALL, env=broken)))
    elif end == "never begun":
        train(SMALL).close()
    else:
        loop = train(SMALL)
        for _ in loop:
            break
        if end == "closed":
            loop.close()
    assert torch.get_num_threads() == 3


def test_inside_the_run_has_its_own_and_a_callers_change_is_the_callers():
    inside = []

    @own_settings
    def loop():
        torch.set_num_threads(1)
        for _ in range(2):
            inside.append((torch.get_num_threads(), torch.get_default_dtype()))
            yield
        inside.append((torch.get_num_threads(), torch.get_default_dtype()))

    torch.set_default_dtype(torch.float64)
    for count in zip(loop(), (2, 4), strict=False):
        torch.set_num_threads(count[1])
    assert inside == [(1, torch.float32)] * 3
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (4, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_no_bit(dtype):
    config = dataclasses.replace(SMALL, normalise_rewards=True, normalise_observations=True, autoreset="next_step")
    expected = [metrics.policy["parameters"] for metrics in train(config)]
    torch.set_default_dtype(dtype)
    found = [metrics.policy["parameters"] for metrics in train(config)]
    assert torch.get_default_dtype() == dtype
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].dtype == torch.float32


def test_language_runs_leave_it_too():
    loop = train_sft(SFT(total_steps=1, batch_size=4, eval_prompts=4, threads=1))
    assert {torch.get_num_threads() for _ in loop} | {torch.get_num_threads()} == {3}
