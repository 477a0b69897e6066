"""Credit across samples: each group by itself, sample by sample, with what was not scored left out."""

from typing import Any

import numpy as np
import pytest
import torch

import telescope

EXACT = {"rtol": 0, "atol": 1e-12}
BOTH = [np.asarray, torch.as_tensor]


def groups(shape: tuple[int, ...] = (6, 3, 4)) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and which of them were scored; what was not is NaN. All numbers of scored samples occur."""
    random = np.random.default_rng(0)
    mask = random.random(shape) < 0.7
    mask[0] = True
    mask[1, 0], mask[1, 1] = False, np.arange(shape[-1]) == 2  # nothing scored; one alone
    return np.where(mask, random.normal(3.0, 2.0, shape), np.nan), mask


def one_by_one(rewards: np.ndarray, mask: np.ndarray, judge: Any) -> np.ndarray:
    """judge(own reward, rewards of the scored, rewards of the scored others)."""
    result = np.zeros(rewards.shape)
    for group in np.ndindex(rewards.shape[:-1]):
        scored = [i for i in range(rewards.shape[-1]) if mask[group][i]]
        for i in scored if len(scored) > 1 else []:
            every, others = rewards[group][scored], rewards[group][[j for j in scored if j != i]]
            result[group][i] = judge(rewards[group][i], every, others)
    return result


@pytest.mark.parametrize("array", BOTH)
def test_against_the_definitions(array: Any) -> None:
    rewards, mask = groups()
    given, live = array(rewards), array(mask)
    leave_one_out = one_by_one(rewards, mask, lambda own, every, others: own - others.mean())
    np.testing.assert_allclose(np.asarray(telescope.leave_one_out(given, mask=live)), leave_one_out, **EXACT)
    centred = one_by_one(rewards, mask, lambda own, every, others: own - every.mean())
    result = telescope.group_relative(given, mask=live, scale=False)
    np.testing.assert_allclose(np.asarray(result), centred, **EXACT)
    for ddof in 0, 1:
        scaled = one_by_one(
            rewards, mask, lambda own, every, others, ddof=ddof: (own - every.mean()) / (every.std(ddof=ddof) + 0.1)
        )
        result = telescope.group_relative(given, mask=live, biased=ddof == 0, eps=0.1)
        np.testing.assert_allclose(np.asarray(result), scaled, **EXACT)


def test_without_a_mask_every_sample_counts() -> None:
    rewards = np.random.default_rng(1).normal(size=(5, 8))
    every = np.ones((5, 8), bool)
    for function in telescope.group_relative, telescope.leave_one_out:
        np.testing.assert_array_equal(function(rewards), function(rewards, mask=every))
    relative = telescope.group_relative(rewards)
    np.testing.assert_array_equal(relative, telescope.whiten(rewards, axis=-1))
    np.testing.assert_allclose(relative.std(-1), 1, atol=1e-7)
    centred = telescope.group_relative(rewards, scale=False)
    np.testing.assert_allclose(telescope.leave_one_out(rewards) * 7 / 8, centred, **EXACT)


@pytest.mark.parametrize("array", BOTH)
def test_nothing_to_compare_with_gives_zero(array: Any) -> None:
    functions = (
        telescope.group_relative,
        telescope.leave_one_out,
        lambda rewards: telescope.group_relative(rewards, scale=False),
    )
    for function in functions:
        for shape in (3, 1), (3, 0), (0, 4), (1,):
            result = function(array(np.ones(shape, np.float32)))
            assert tuple(result.shape) == shape
            assert (np.asarray(result) == 0).all()
        equal = function(array(np.full((2, 1000), 0.1, np.float32)))  # all right, or all wrong: nothing to learn
        np.testing.assert_array_equal(np.asarray(equal), np.zeros((2, 1000)))


def test_a_group_knows_only_itself() -> None:
    rewards, mask = groups()
    for function in telescope.group_relative, telescope.leave_one_out:
        whole = function(rewards, mask=mask)
        for index in np.ndindex(rewards.shape[:-1]):
            np.testing.assert_allclose(whole[index], function(rewards[index], mask=mask[index]), **EXACT)


def test_the_baseline_does_not_depend_on_the_sample() -> None:
    """Raising one reward by 1 raises its own leave-one-out advantage by 1: the baseline stays."""
    rewards = np.random.default_rng(1).normal(size=8)
    raised = rewards + (np.arange(8) == 3)
    assert telescope.leave_one_out(raised)[3] - telescope.leave_one_out(rewards)[3] == pytest.approx(1)


def test_types_and_gradients() -> None:
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    for function in telescope.group_relative, telescope.leave_one_out:
        assert function(half).dtype == torch.float32
        assert function(np.ones((2, 4), np.float16)).dtype == np.float32
        rewards = torch.as_tensor(np.random.default_rng(1).normal(size=(2, 4))).requires_grad_()
        mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
        assert not function(rewards, mask=mask).requires_grad

        def judged(rewards: Any, function: Any = function, mask: Any = mask) -> Any:
            return function(rewards, mask=mask, differentiable=True)

        assert torch.autograd.gradcheck(judged, rewards)


@pytest.mark.parametrize("function", [telescope.group_relative, telescope.leave_one_out])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": [1.0]}, "rewards is a list"),
        ({"rewards": np.ones((2, 3), int)}, "rewards has dtype int64; expected float"),
        ({"rewards": np.array(1.0)}, r"rewards has shape \(\); expected \[..., G\]"),
        ({"rewards": np.ones(3), "mask": np.ones(2, bool)}, r"mask has shape \(2,\) but rewards has \(3,\)"),
        ({"rewards": np.ones(3), "mask": np.full(3, 0.5)}, "mask has dtype float64 and holds 0.5"),
        ({"rewards": np.ones(3), "differentiable": True}, "differentiable is True"),
    ],
)
def test_bad_arguments_are_named(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(**arguments)
