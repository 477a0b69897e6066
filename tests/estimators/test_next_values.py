"""next_values: the value of the state that each step really led to, and the mistakes it makes impossible."""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

nan = np.nan


def built(values: Any, last: Any, terminated: Any = None, truncated: Any = None, **more: Any) -> Any:
    flags = (None if flag is None else np.asarray(flag, bool) for flag in (terminated, truncated))
    names = dict(zip(("terminated", "truncated"), flags, strict=True))
    return telescope.next_values(np.asarray(values, float), np.asarray(last, float), **names, **more)


def test_without_ends_it_is_a_shift() -> None:
    np.testing.assert_array_equal(built([1, 2, 3], 4), [2, 3, 4])
    np.testing.assert_array_equal(built([[1, 5], [2, 6]], [3, 7]), [[2, 6], [3, 7]])


def test_a_terminated_step_has_no_successor() -> None:
    np.testing.assert_array_equal(built([1, 2, 3], nan, [0, 1, 1]), [2, 0, 0])


def test_a_truncated_step_has_the_final_value() -> None:
    np.testing.assert_array_equal(built([1, 2, 3], 4, None, [1, 0, 0], final_values=np.array([9, nan, nan])), [9, 3, 4])


def test_the_reset_states_value_is_not_one() -> None:
    """The most copied mistake: V of the state after the reset behind a time limit."""
    with pytest.raises(ValueError, match=r"final_values holds no value for 1 .* step 0, column \(\)"):
        built([1, 2, 3], 4, None, [1, 0, 0])
    with pytest.raises(ValueError, match=r"step 1, column \(1,\).*final_obs"):
        built(np.ones((3, 2)), np.ones(2), None, [[0, 0], [0, 1], [0, 0]], final_values=np.full((3, 2), nan))


@pytest.mark.parametrize("final_values", [None, np.array([nan, nan, nan]), np.array([7.0, nan, nan])])
def test_the_last_row_is_no_exception(final_values: Any) -> None:
    """Kills: V of the state after the reset, where a time limit falls on the rollout's last row."""
    ends = {"truncated": [0, 0, 1], "final_values": final_values}
    with pytest.raises(ValueError, match=r"final_values holds no value for 1 .* step 2.*last_values"):
        built([1, 2, 3], 4, None, **ends)
    with pytest.raises(ValueError, match=r"step 0"):  # the last row that is live
        built([1, 2, 3], 4, None, [1, 0, 1], mask=np.array([True, False, False]))
    np.testing.assert_array_equal(built([1, 2, 3], nan, [0, 0, 1], **ends), [2, 3, 0])  # terminated wins
    np.testing.assert_array_equal(built([1, 2, 3], nan, None, [0, 0, 1], final_values=np.full(3, 9.0)), [2, 3, 9])
    np.testing.assert_array_equal(built([1, 2, 3], 4), [2, 3, 4])  # cut by nothing but the end of the buffer


def test_final_values_are_read_only_where_truncated() -> None:
    final_values = np.array([9.0, 8.0, 7.0])
    np.testing.assert_array_equal(built([1, 2, 3], 4, [0, 1, 0], [0, 1, 0], final_values=final_values), [2, 0, 4])


def test_masked_steps_are_looked_through() -> None:
    mask = np.array([True, False, False, True, False])
    result = built([1, nan, nan, 4, nan], 5, [0, 1, 0, 0, 1], [0, 1, 1, 0, 1], mask=mask)
    np.testing.assert_array_equal(result, [4, 0, 0, 5, 0])
    np.testing.assert_array_equal(built([1, nan, 4], 5, mask=np.array([True, False, False])), [5, 0, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 2), (1,), (40, 3), (9, 2, 4)], ids=str)
def test_the_definition_in_every_dtype(shape: tuple[int, ...], dtype: Any) -> None:
    steps = oracle.rollout(shape)
    random = np.random.default_rng(2)
    last_values, final_values = random.normal(size=shape[1:]), random.normal(size=shape)
    arrays = [steps.values, last_values, final_values, steps.terminated, steps.truncated, steps.mask]
    if isinstance(dtype, torch.dtype):
        given = [torch.as_tensor(array).to(torch.bool if array.dtype == bool else dtype) for array in arrays]
        rounded = [array.double().numpy() for array in given[:3]]
    else:
        given = [array if array.dtype == bool else np.asarray(array, dtype) for array in map(np.asarray, arrays)]
        rounded = [array.astype(float) for array in given[:3]]
    values, last, final, terminated, truncated, mask = given
    flags = {"terminated": terminated, "truncated": truncated, "mask": mask}
    result = telescope.next_values(values, last, final_values=final, **flags)
    assert result.dtype == dtype
    expected = oracle.successors(steps._replace(values=rounded[0]), *rounded[1:])
    result = result.double().numpy() if isinstance(dtype, torch.dtype) else result
    np.testing.assert_array_equal(result, expected)


def test_a_number_is_the_last_value_of_one_column() -> None:
    values = np.ones(3, np.float32)
    for last in 4, 4.0, np.float64(4), values[-1] * 4:
        result = telescope.next_values(values, last, terminated=None, truncated=None)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, [1, 1, 4])


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (np.ones((2, 1)), r"last_values has shape \(2, 1\) .* \(2,\); did the critic forget .squeeze\(-1\)\?"),
        (np.ones((1, 2)), r"last_values has shape \(1, 2\)"),
        (4.0, r"last_values has shape \(\)"),
        (np.ones(2, np.float32), "last_values has dtype float32 but values has float64"),
        (torch.ones(2), "last_values is a torch.Tensor but values is a numpy.ndarray"),
        ([1.0, 2.0], "last_values is a list"),
        (None, "last_values is None"),
        (4 + 1j, "last_values is a builtins.complex"),
        (np.complex64(4 + 1j), "last_values is a numpy.complex64"),
        (np.full(2, 4 + 1j), "last_values has dtype complex128"),
    ],
)
def test_bad_last_values_are_refused(last: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        telescope.next_values(np.ones((3, 2)), last, terminated=None, truncated=None)
