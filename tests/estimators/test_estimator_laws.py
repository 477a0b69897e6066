"""The laws of credit through time, over numpy and torch, dtypes, odd shapes and layouts, against `oracle.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

import oracle
import telescope
from telescope.recurrence import naive
from telescope.recurrence import torch as tensors

GAMMA, LAM = 0.97, 0.9
SHAPES = [(0,), (1,), (63,), (0, 3), (2, 0), (1, 3), (2, 1), (63, 64), (600, 2), (7, 2, 3)]
DTYPES = {
    "numpy float32": np.float32,
    "numpy float64": np.float64,
    "numpy float16": np.float16,
    "torch float32": torch.float32,
    "torch float64": torch.float64,
    "torch float16": torch.float16,
    "torch bfloat16": torch.bfloat16,
}


def as_array(array: np.ndarray, dtype: Any) -> Any:
    """The same in another library; flags stay flags."""
    if array.dtype == bool:
        return torch.from_numpy(array) if isinstance(dtype, torch.dtype) else array
    return torch.from_numpy(array).to(dtype) if isinstance(dtype, torch.dtype) else array.astype(dtype)


def as_numpy(array: Any) -> np.ndarray:
    return array.detach().double().numpy() if isinstance(array, torch.Tensor) else array.astype(np.float64)


def in_dtype(steps: oracle.Rollout, dtype: Any) -> tuple[dict[str, Any], oracle.Rollout]:
    """Arguments in a library and dtype, and the rollout that they are after rounding, in float64."""
    arguments = {name: as_array(array, dtype) for name, array in steps._asdict().items()}
    rounded = (array if array.dtype == bool else as_numpy(as_array(array, dtype)) for array in steps)
    return arguments, oracle.Rollout(*rounded)


def plain_float32(steps: oracle.Rollout, gamma: float, lam: float) -> np.ndarray:
    """The plain loop in float32, without masks: its error is the yardstick for ours."""
    r, v, n = (array.astype(np.float32) for array in steps[:3])
    with np.errstate(all="ignore"):
        delta = r + np.where(steps.terminated, 0, np.float32(gamma) * n) - v
    a = np.where(steps.terminated | steps.truncated, 0, gamma * lam).astype(np.float32)
    return naive.linear_recurrence(delta, a)


def tolerance(expected: np.ndarray, working: np.dtype) -> float:
    """A few roundings of the largest number in sight."""
    largest = np.abs(expected).max(initial=1.0)
    return float(16 * np.finfo(working).eps * largest)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gae_is_the_plain_double_sum(shape: tuple[int, ...], dtype: str, masked: bool) -> None:
    steps = oracle.rollout(shape)
    steps = steps if masked else steps._replace(mask=np.ones(shape, bool))
    arguments, rounded = in_dtype(steps, DTYPES[dtype])
    if not masked:
        arguments["mask"] = None
    result = telescope.gae(**arguments, gamma=GAMMA, lam=LAM, returns_lam=0.5)
    working = np.dtype("f8" if "64" in dtype else "f4")
    assert type(result.advantages) is type(arguments["values"])
    assert result.advantages.shape == result.returns.shape == arguments["values"].shape
    assert str(result.advantages.dtype).endswith(working.name)
    expected = oracle.advantages(rounded, GAMMA, LAM)
    returns = np.where(steps.mask, oracle.advantages(rounded, GAMMA, 0.5) + rounded.values, 0)
    bound = tolerance(expected, working)
    np.testing.assert_allclose(as_numpy(result.advantages), expected, rtol=0, atol=bound)
    np.testing.assert_allclose(as_numpy(result.returns), returns, rtol=0, atol=bound)


def test_error_is_at_most_twice_the_plain_loops() -> None:
    for seed in range(5):
        for gamma, lam in (GAMMA, LAM), (1.0, 1.0):
            steps = oracle.rollout((400, 7), np.float32, seed, ends=0.01)._replace(mask=np.ones((400, 7), bool))
            exact = oracle.advantages(steps, gamma, lam)
            plain = np.abs(plain_float32(steps, gamma, lam) - exact).max()
            ulp = np.spacing(np.abs(exact).max().astype(np.float32))
            ours = telescope.gae(**steps.arguments(), gamma=gamma, lam=lam).advantages
            assert np.abs(ours - exact).max() <= 2 * plain + ulp


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95)])
@pytest.mark.parametrize("steps", [(1_000_000, 1), (250_000, 3)], ids=str)
def test_so_it_is_over_a_million_steps(steps: tuple[int, int], gamma: float, lam: float) -> None:
    """Of sums as long as that; the plain loop is SciPy's filter, whose every step is rounded to its dtype."""
    rewards = np.random.default_rng(0).standard_normal(steps, np.float32).astype(np.float16)
    decay = np.float32(gamma * lam)

    def filtered(dtype: Any) -> np.ndarray:
        return lfilter(np.ones(1, dtype), np.array([1, -decay], dtype), rewards[::-1].astype(dtype), 0)[::-1]

    exact, plain = filtered(np.float64), filtered(np.float32)
    assert plain.dtype == np.float32
    bound = 2 * np.abs(plain - exact).max() + np.spacing(np.abs(exact).max().astype(np.float32))
    zeros = np.zeros(steps, np.float16)
    common: dict[str, Any] = {"terminated": None, "truncated": None, "lam": lam}
    single, half = [array.astype(np.float32) for array in (rewards, zeros, zeros)], [rewards, zeros, zeros]
    tensors = [torch.from_numpy(array) for array in single]
    results = [
        telescope.gae(*single, gamma=gamma, **common),
        telescope.gae(*(np.asfortranarray(array) for array in single), gamma=gamma, **common),
        telescope.gae(*single, gamma=np.array([gamma]), **common),
        telescope.gae(*half, gamma=gamma, **common),
        telescope.gae(*tensors, gamma=gamma, **common),
        telescope.gae(*(array.half() for array in tensors), gamma=gamma, **common, differentiable=True),
    ]
    for result in results:
        assert np.abs(as_numpy(result.advantages) - exact).max() <= bound


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_lambda_return_is_the_mixture_of_n_step_returns(gamma: float, lam: float, masked: bool) -> None:
    steps = oracle.rollout((20, 4))
    steps = chained(steps if masked else steps._replace(mask=np.ones((20, 4), bool)))
    flags = {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask if masked else None}
    result = telescope.lambda_return(steps.rewards, steps.next_values, **flags, gamma=gamma, lam=lam)
    np.testing.assert_allclose(result, oracle.lambda_returns(steps, gamma, lam), rtol=0, atol=1e-12)
    if lam == 1:
        discounted = telescope.discounted_return(steps.rewards, steps.next_values, **flags, gamma=gamma)
        np.testing.assert_array_equal(discounted, result)


def chained(steps: oracle.Rollout) -> oracle.Rollout:
    """With next_values that come from values, as in a real rollout."""
    random = np.random.default_rng(3)
    final_values = random.normal(size=steps.values.shape)
    last_values = random.normal(size=steps.values.shape[1:])
    return steps._replace(next_values=oracle.successors(steps, last_values, final_values))


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("library", [np.float64, torch.float64], ids=["numpy", "torch"])
def test_value_plus_gae_is_the_lambda_return(library: Any, lam: float) -> None:
    arguments, _ = in_dtype(chained(oracle.rollout((40, 5))), library)
    result = telescope.gae(**arguments, gamma=GAMMA, lam=lam)
    values, mask = arguments.pop("values"), arguments["mask"]
    returns = telescope.lambda_return(**arguments, gamma=GAMMA, lam=lam)
    np.testing.assert_allclose(as_numpy(returns), as_numpy(result.returns), rtol=0, atol=1e-12)
    sums = np.where(mask, as_numpy(values + result.advantages), 0)
    np.testing.assert_allclose(as_numpy(returns), sums, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2), (1,), (30, 4)], ids=str)
def test_lambda_zero_is_the_td_residual(shape: tuple[int, ...]) -> None:
    steps = oracle.rollout(shape)
    flags = {"gamma": GAMMA, "mask": steps.mask}
    result = telescope.gae(**steps.arguments(), **flags, lam=0.0)
    residual = telescope.td_error(*steps[:3], terminated=steps.terminated, **flags)
    np.testing.assert_array_equal(result.advantages, residual)
    by_hand = steps.rewards + GAMMA * steps.next_values * ~steps.terminated - steps.values
    np.testing.assert_allclose(residual, by_hand * steps.mask, rtol=0, atol=1e-14)


def test_lambda_one_is_monte_carlo_minus_value() -> None:
    steps = chained(oracle.rollout((30, 4)))
    advantages = telescope.gae(**steps.arguments(), mask=steps.mask, gamma=GAMMA, lam=1.0).advantages
    monte_carlo = oracle.lambda_returns(steps, GAMMA, 1.0)
    np.testing.assert_allclose(advantages, (monte_carlo - steps.values) * steps.mask, rtol=0, atol=1e-12)


def test_concatenated_episodes_are_separate_episodes() -> None:
    """Whatever follows an end, a termination or a truncation, an episode knows only itself."""
    parts = [oracle.rollout((length, 2), seed=length, ends=0.0) for length in (5, 1, 8)]
    for part, kind in zip(parts, ("terminated", "truncated", "terminated"), strict=True):
        getattr(part, kind)[-1] = True
    whole = oracle.Rollout(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    together = telescope.gae(**whole.arguments(), gamma=GAMMA, lam=LAM).advantages
    apart = [telescope.gae(**part.arguments(), gamma=GAMMA, lam=LAM).advantages for part in parts]
    np.testing.assert_array_equal(together, np.concatenate(apart))


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a_world_without_end(lam: float) -> None:
    """Reward 1 for ever and v = 1/(1−γ): nothing is better than expected, also where only the clock stopped."""
    gamma = 0.9
    shape = (60, 3)
    values = np.full(shape, 1 / (1 - gamma))
    stops = np.zeros(shape, bool)
    stops[9::10] = True
    world = {"rewards": np.ones(shape), "values": values, "next_values": values, "gamma": gamma, "lam": lam}
    timed_out = telescope.gae(**world, terminated=None, truncated=stops).advantages
    np.testing.assert_allclose(timed_out, 0, atol=1e-12)
    died = telescope.gae(**world, terminated=stops, truncated=None).advantages
    np.testing.assert_allclose(died[stops], 1 - 1 / (1 - gamma))


def test_both_flags_at_once_are_a_termination() -> None:
    steps = oracle.rollout((30, 4), ends=0.5)
    assert (steps.terminated & steps.truncated).any()
    only = steps._replace(truncated=steps.truncated & ~steps.terminated)
    for both, one in zip(every_estimator(steps), every_estimator(only), strict=True):
        np.testing.assert_array_equal(both, one)


def every_estimator(steps: oracle.Rollout, **more: Any) -> list[Any]:
    flags = {"terminated": steps.terminated, "truncated": steps.truncated}
    sparse = np.where(steps.truncated & ~steps.terminated, 9.0, np.nan).astype(steps.values.dtype)
    ahead = telescope.next_values(steps.values, steps.values[-1], **flags, final_values=sparse, **more)
    common = {"gamma": GAMMA, **more}
    return [
        *telescope.gae(**steps.arguments(), lam=LAM, returns_lam=0.3, **common),
        *telescope.gae(**steps.arguments(), lam=np.full(steps.values.shape[1:], LAM), **common),
        telescope.td_error(*steps[:3], terminated=steps.terminated, **common),
        telescope.lambda_return(steps.rewards, steps.next_values, **flags, lam=LAM, **common),
        telescope.discounted_return(steps.rewards, steps.next_values, **flags, **common),
        telescope.shaped_rewards(*steps[:3], terminated=steps.terminated, **common),
        *family(steps, **common),
        ahead,
    ]


def family(steps: oracle.Rollout, **common: Any) -> list[Any]:
    """The estimators that have files of tests of their own, in either library; here for the laws that all share."""
    xp = torch if isinstance(steps.values, torch.Tensor) else np
    flags = {"terminated": steps.terminated, "truncated": steps.truncated, **common}
    wide, wide_next = (xp.stack([array, array + 1, 2 * array], -1) for array in (steps.values, steps.next_values))
    off_policy = {**flags, "log_ratios": steps.values, "lam": LAM}
    return [
        telescope.k_step_advantage(*steps[:3], **flags, k=3),
        telescope.n_step_return(steps.rewards, steps.next_values, **flags, n=4),
        *telescope.vtrace(*steps[:3], **off_policy),
        *telescope.vtrace(*steps[:3], **off_policy, rho_clip=1.5, c_clip=None, pg_rho_clip=None),
        telescope.retrace(*steps[:3], **off_policy),
        telescope.eligibility_trace(wide, **flags, lam=LAM),
        telescope.eligibility_trace(wide, **flags, lam=LAM, kind="replacing"),
        telescope.dutch_trace(wide, **flags, lam=LAM, step_size=0.1),
        *telescope.distributional_gae(steps.rewards, wide, wide_next, **flags, lam=LAM),
    ]


@pytest.mark.parametrize("columns", [1, 9])
def test_a_masked_step_is_transparent(columns: int) -> None:
    """Results on live rows are those of the array with the masked rows taken out; nothing in them is read."""
    steps = oracle.rollout((30, columns))
    live = np.random.default_rng(1).random(30) < 0.6
    live[[0, 10, -1]] = False
    mask = np.repeat(live[:, None], columns, axis=1)
    for array in steps[:3]:
        array[~live] = np.nan
    steps.terminated[~live] = True
    steps.truncated[~live] = True
    taken_out = oracle.Rollout(*(array[live] for array in steps))
    results = every_estimator(steps, mask=mask)
    # the last value is the caller's: the same in both
    flags = {"terminated": steps.terminated, "truncated": steps.truncated}
    sparse = np.where(steps.truncated & ~steps.terminated, 9.0, np.nan)
    last = taken_out.values[-1]
    results[-1] = telescope.next_values(steps.values, last, **flags, final_values=sparse, mask=mask)
    for result, expected in zip(results, every_estimator(taken_out), strict=True):
        np.testing.assert_array_equal(result[live], expected)
        assert (result[~live] == 0).all()


def test_all_masked_and_all_live() -> None:
    steps = oracle.rollout((8, 3))
    for result in every_estimator(steps, mask=np.zeros((8, 3), bool)):
        assert (result == 0).all()
    for result, expected in zip(
        every_estimator(steps, mask=np.ones((8, 3), bool)), every_estimator(steps), strict=True
    ):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [(), (9,)])
def test_nothing_beyond_a_cut_enters(bad: float, batch: tuple[int, ...]) -> None:
    clean = oracle.rollout((12, *batch), ends=0.0)
    clean.terminated[3] = True
    clean.truncated[7] = True
    dirty = oracle.Rollout(*(array.copy() for array in clean))
    dirty.next_values[3] = bad  # not a state: never read
    for array in dirty[:3]:
        array[8:] = bad
    for result, expected in zip(every_estimator(dirty)[:-1], every_estimator(clean)[:-1], strict=True):
        np.testing.assert_array_equal(result[:8], expected[:8])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gamma_and_lambda_zero_look_no_further(bad: float) -> None:
    steps = oracle.rollout((6, 9), ends=0.0)
    steps.next_values[:], steps.rewards[3:] = bad, bad
    result = telescope.gae(**steps.arguments(), gamma=0.0, lam=0.5).advantages
    np.testing.assert_array_equal(result[:3], (steps.rewards - steps.values)[:3])


def test_inputs_are_never_modified() -> None:
    steps = oracle.rollout((12, 9))
    before = oracle.Rollout(*(array.copy() for array in steps))
    for array in steps:
        array.flags.writeable = False
    for result in every_estimator(steps, mask=steps.mask):
        assert not any(np.shares_memory(result, array) for array in steps)
    for array, copy in zip(steps, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_one_two_and_three_axes_agree(masked: bool) -> None:
    steps = oracle.rollout((9, 2, 5))
    more = {"mask": steps.mask} if masked else {}

    def every(part: oracle.Rollout) -> list[Any]:
        return every_estimator(part, **({"mask": part.mask} if masked else {}))

    whole = every_estimator(steps, **more)
    for s, b in np.ndindex(2, 5):
        for result, expected in zip(every(oracle.Rollout(*(array[:, s, b] for array in steps))), whole, strict=True):
            np.testing.assert_array_equal(result, expected[:, s, b])
    flat = oracle.Rollout(*(array.reshape(9, 10) for array in steps))
    for result, expected in zip(every(flat), whole, strict=True):
        np.testing.assert_array_equal(result, expected.reshape(result.shape))


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "every other column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "rows of a wider array": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "backwards in memory": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "columns backwards": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "unaligned": lambda x: _unaligned(x),
    "subclass": lambda x: x.view(np.memmap),
}


def _unaligned(x: np.ndarray) -> np.ndarray:
    """Contiguous, but one byte off."""
    return np.frombuffer(b"\0" + x.tobytes(), x.dtype, x.size, 1).reshape(x.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(13,), (13, 9), (5, 3, 7)], ids=str)
def test_strides_are_read_as_they_are(shape: tuple[int, ...], layout: str) -> None:
    steps = oracle.rollout(shape, np.float32)
    strided = oracle.Rollout(*(LAYOUTS[layout](array) for array in steps))
    pairs = zip(every_estimator(strided, mask=strided.mask), every_estimator(steps, mask=steps.mask), strict=True)
    for result, expected in pairs:
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    mixed = steps._replace(rewards=strided.rewards, truncated=strided.truncated)
    for result, expected in zip(every_estimator(mixed), every_estimator(steps), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_time_may_be_any_axis(axis: int) -> None:
    steps = oracle.rollout((6, 3, 4))
    expected = every_estimator(steps, mask=steps.mask)
    moved = oracle.Rollout(*(np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in steps))
    flags = {"terminated": moved.terminated, "truncated": moved.truncated, "mask": moved.mask, "axis": axis}
    floats = {"rewards": moved.rewards, "next_values": moved.next_values}
    sparse = np.where(moved.truncated, 9.0, np.nan)
    results = [
        *telescope.gae(**floats, values=moved.values, **flags, gamma=GAMMA, lam=LAM, returns_lam=0.3),
        telescope.lambda_return(**floats, **flags, gamma=GAMMA, lam=LAM),
        telescope.discounted_return(**floats, **flags, gamma=GAMMA),
        telescope.next_values(moved.values, steps.values[-1], **flags, final_values=sparse),
    ]
    for result, right in zip(results, [*expected[:2], *expected[5:7], expected[-1]], strict=True):
        assert result.shape == moved.values.shape
        np.testing.assert_allclose(np.moveaxis(result, axis, 0), right, rtol=0, atol=1e-14)
    rest = family(moved, gamma=GAMMA, mask=moved.mask, axis=axis)
    for result, right in zip(rest, family(steps, gamma=GAMMA, mask=steps.mask), strict=True):
        assert result.shape[:3] == moved.values.shape
        np.testing.assert_allclose(np.moveaxis(result, axis % 3, 0), right, rtol=0, atol=1e-13)


@pytest.mark.parametrize("library", [np.float64, torch.float64], ids=["numpy", "torch"])
def test_discounts_per_environment_and_per_step(library: Any) -> None:
    steps = oracle.rollout((11, 4))
    arguments, _ = in_dtype(steps, library)
    random = np.random.default_rng(5)
    for shape in (4,), (11, 1), (11, 4), (1, 1), ():
        gamma, lam = random.random(shape), random.random(shape)
        given = {"gamma": as_array(np.asarray(gamma), library), "lam": as_array(np.asarray(lam), library)}
        result = telescope.gae(**arguments, **given).advantages
        np.testing.assert_allclose(as_numpy(result), oracle.advantages(steps, gamma, lam), rtol=0, atol=1e-12)
        batch_major = {name: array.T for name, array in arguments.items()}
        turned = {name: array[..., None] if shape == (4,) else array for name, array in given.items()}
        turned = {name: array.T if len(shape) == 2 else array for name, array in turned.items()}
        again = telescope.gae(**batch_major, **turned, axis=1).advantages
        np.testing.assert_allclose(as_numpy(again).T, as_numpy(result), rtol=0, atol=1e-14)


def test_fused_is_the_pair() -> None:
    """γ as an array takes the pair (x, a); as a number the fused kernel, in either layout."""
    for shape in (40, 9), (1100, 1), (40, 2):
        for dtype in np.float32, np.float64:
            steps = oracle.rollout(shape, dtype)
            for mask in None, steps.mask:
                for turn in np.asarray, np.asfortranarray:
                    turned = oracle.Rollout(*(turn(array) for array in steps))
                    more = {"mask": mask, "returns_lam": 0.25}
                    fused = telescope.gae(**turned.arguments(), gamma=0.5, lam=0.75, **more)
                    pair = telescope.gae(**turned.arguments(), gamma=np.array(0.5), lam=0.75, **more)
                    for one, other in zip(fused, pair, strict=True):
                        np.testing.assert_array_equal(one, other)


def test_flags_may_be_numbers_or_none() -> None:
    steps = oracle.rollout((10, 4))
    expected = every_estimator(steps, mask=steps.mask)
    for dtype in np.uint8, np.int64, np.float32:
        numbers = steps._replace(terminated=steps.terminated.astype(dtype), truncated=steps.truncated.astype(dtype))
        flags = {"terminated": numbers.terminated, "truncated": numbers.truncated}
        result = telescope.gae(
            *steps[:3], **flags, mask=steps.mask.astype(dtype), gamma=GAMMA, lam=LAM, returns_lam=0.3
        )
        np.testing.assert_array_equal(result.advantages, expected[0])
    none = telescope.gae(*steps[:3], terminated=None, truncated=None, gamma=GAMMA, lam=LAM)
    never = np.zeros((10, 4), bool)
    zeros = telescope.gae(*steps[:3], terminated=never, truncated=never, gamma=GAMMA, lam=LAM)
    np.testing.assert_array_equal(none.advantages, zeros.advantages)


@pytest.mark.parametrize("reward_dtype", [np.float64, np.float16, np.int32, np.uint8, bool])
def test_rewards_of_any_real_dtype(reward_dtype: Any) -> None:
    steps = oracle.rollout((10, 4), np.float32)
    rewards = (steps.rewards > 0).astype(reward_dtype)
    arguments = {**steps.arguments(), "gamma": GAMMA, "lam": LAM}
    expected = telescope.gae(**{**arguments, "rewards": rewards.astype(np.float32)})
    result = telescope.gae(**{**arguments, "rewards": rewards})
    assert result.advantages.dtype == np.float32
    np.testing.assert_array_equal(result.advantages, expected.advantages)


@pytest.mark.parametrize("library", [np.float32, torch.float32], ids=["numpy", "torch"])
@pytest.mark.parametrize("axis", [0, 1])
def test_out_is_written_into(library: Any, axis: int) -> None:
    arguments, _ = in_dtype(oracle.rollout((10, 4)), library)
    expected = telescope.gae(**arguments, gamma=GAMMA, lam=LAM, axis=axis)
    for gamma in GAMMA, as_array(np.array(GAMMA), library):
        out = tuple(as_array(np.full((10, 4), 7.0), library) for _ in range(2))
        result = telescope.gae(**arguments, gamma=gamma, lam=LAM, axis=axis, out=out)
        assert result.advantages is out[0]
        assert result.returns is out[1]
        np.testing.assert_allclose(as_numpy(out[0]), as_numpy(expected.advantages), rtol=0, atol=1e-6)
        np.testing.assert_allclose(as_numpy(out[1]), as_numpy(expected.returns), rtol=0, atol=1e-6)


def test_tensors_of_arrays_and_back() -> None:
    """torch gives what numpy gives, bit for bit, and without a gradient."""
    steps = oracle.rollout((300, 300), np.float32)
    expected = telescope.gae(**steps._asdict(), gamma=GAMMA, lam=LAM)
    arguments = {name: torch.from_numpy(array) for name, array in steps._asdict().items()}
    arguments["values"].requires_grad_()
    result = telescope.gae(**arguments, gamma=GAMMA, lam=LAM)
    assert not result.advantages.requires_grad
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name.startswith("torch")])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (11, 4), (5, 2, 3)], ids=str)
def test_the_family_in_torch_is_the_family_in_numpy(shape: tuple[int, ...], dtype: str) -> None:
    arguments, rounded = in_dtype(oracle.rollout(shape), DTYPES[dtype])
    expected = family(rounded, gamma=GAMMA, mask=rounded.mask)
    working = np.dtype("f8" if "64" in dtype else "f4")
    results = family(oracle.Rollout(**arguments), gamma=GAMMA, mask=arguments["mask"])
    coarse = 16 if "16" in dtype else 1  # the features are stacked, and rounded, in half precision
    for result, right in zip(results, expected, strict=True):
        assert isinstance(result, torch.Tensor)
        assert str(result.dtype).endswith(working.name)
        assert not result.requires_grad
        if coarse == 1:
            np.testing.assert_allclose(as_numpy(result), right, rtol=0, atol=tolerance(right, working))
        else:
            np.testing.assert_allclose(as_numpy(result), right, rtol=0, atol=0.1)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_gradients_are_exact_on_request(masked: bool) -> None:
    steps = chained(oracle.rollout((6, 3)))
    steps.next_values[steps.terminated] = np.nan
    steps.rewards[~steps.mask] = np.nan if masked else 1.0
    arguments, _ = in_dtype(steps, torch.float64)
    mask = arguments.pop("mask") if masked else None
    arguments.pop("mask", None)
    flags = {"terminated": arguments.pop("terminated"), "truncated": arguments.pop("truncated"), "mask": mask}
    gamma = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, requires_grad=True)
    lam = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    floats = [arguments[name].requires_grad_() for name in ("rewards", "values", "next_values")]

    def both(r: Any, v: Any, n: Any, gamma: Any, lam: Any) -> Any:
        more = {"gamma": gamma, "lam": lam, "returns_lam": 0.4, "differentiable": True}
        return telescope.gae(torch.nan_to_num(r), v, torch.nan_to_num(n), **flags, **more)

    clean = [torch.nan_to_num(array.detach()).requires_grad_() for array in floats]
    assert torch.autograd.gradcheck(both, (*clean, gamma, lam))
    result = telescope.gae(*floats, **flags, gamma=gamma, lam=lam, differentiable=True)
    constant = telescope.gae(*floats, **flags, gamma=gamma, lam=lam)
    assert not constant.advantages.requires_grad
    torch.testing.assert_close(result.advantages.detach(), constant.advantages, rtol=0, atol=1e-14)
    gradients = torch.autograd.grad(result.advantages.sum() + result.returns.sum(), (*floats, gamma, lam))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    expected = torch.autograd.grad(sum(both(*clean, gamma, lam)[:1]).sum(), (*clean, gamma, lam))
    again = torch.autograd.grad(
        telescope.gae(*floats, **flags, gamma=gamma, lam=lam, differentiable=True).advantages.sum(),
        (*floats, gamma, lam),
    )
    for ours, theirs in zip(again, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_other_devices_take_tensors_all_the_way(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU gets: no view in numpy anywhere, and the same results."""
    arguments, _ = in_dtype(oracle.rollout((20, 3)), dtype)
    steps = oracle.Rollout(**arguments)
    sparse = torch.where(steps.truncated, 9.0, torch.nan).to(dtype)
    flags = {"terminated": steps.terminated, "truncated": steps.truncated}

    def every() -> list[torch.Tensor]:
        common = {**flags, "mask": steps.mask, "gamma": GAMMA}
        return [
            *telescope.gae(*steps[:3], **common, lam=LAM, returns_lam=0.3),
            telescope.lambda_return(steps.rewards, steps.next_values, **common, lam=LAM),
            *family(steps, gamma=GAMMA, mask=steps.mask),
            *family(steps, gamma=GAMMA, mask=None),
            telescope.next_values(steps.values, steps.values[0], **flags, final_values=sparse, mask=steps.mask),
            telescope.next_values(steps.values, steps.values[0], **flags, final_values=sparse),
        ]

    expected = every()
    monkeypatch.setattr("telescope.arrays.on_cpu", lambda array: False)
    monkeypatch.setattr("telescope.recurrence.torch._compute", tensors._loop)
    monkeypatch.setattr("telescope.recurrence.torch.FUSED", ())
    for result, right in zip(every(), expected, strict=True):
        assert result.dtype == right.dtype
        torch.testing.assert_close(result, right)
    assert expected[-1].dtype == dtype  # a value passed on keeps its precision


def test_torch_compile_sees_through_all_of_them() -> None:
    """One graph, without a break: gae with and without gradient, and the rest of the family."""
    arguments, _ = in_dtype(oracle.rollout((4, 2)), torch.float64)
    steps = oracle.Rollout(**arguments)

    def every(rewards: Any, values: Any) -> list[Any]:
        seen = steps._replace(rewards=rewards, values=values)
        common = {"mask": steps.mask, "gamma": GAMMA}
        plain = telescope.gae(**seen.arguments(), **common, lam=LAM)
        tracked = telescope.gae(**seen.arguments(), **common, lam=LAM, returns_lam=0.3, differentiable=True)
        return [*plain, *tracked, *family(seen, **common)]

    values = steps.values.clone().requires_grad_()
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")(steps.rewards, values)
    for result, expected in zip(compiled, every(steps.rewards, values), strict=True):
        assert result.requires_grad == expected.requires_grad
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    slope, expected = (
        torch.autograd.grad(results[2].sum(), values)[0] for results in (compiled, every(*steps[:1], values))
    )
    torch.testing.assert_close(slope, expected)
