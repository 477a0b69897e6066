"""JAX arrays: the same laws as for every other library, and what jit, vmap and grad must leave as it is.

Leaves out what the laws of the estimators themselves are; `test_estimator_laws.py` has those.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import oracle
import telescope
from problems import float64_in_jax
from telescope.estimators import conventions
from telescope.recurrence import jax as recurrence
from telescope.recurrence import naive

GAMMA, LAM = 0.9, 0.8


@pytest.fixture(params=["scan", "tree"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either form of the recurrence, whatever this machine's platform and the length would choose."""
    for name in "_scan", "_by_platform":
        monkeypatch.setattr(recurrence, name, getattr(recurrence, f"_{request.param}"))
    return request.param


def given(steps: oracle.Rollout, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The rollout as JAX arrays."""
    return {name: jnp.asarray(array, bool if array.dtype == bool else dtype) for name, array in steps._asdict().items()}


def rounded(steps: oracle.Rollout, arrays: dict[str, Any]) -> oracle.Rollout:
    """What those arrays hold, in float64."""
    return steps._replace(**{name: np.asarray(arrays[name], np.float64) for name in steps._fields[:3]})


def without(arrays: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name not in names}


# --- the recurrence


@pytest.mark.parametrize("shape", [(0, 2), (1,), (5, 0), (63, 3), (70, 2, 2)], ids=str)
def test_either_form_is_the_definition(shape: tuple[int, ...], form: str) -> None:
    random = np.random.default_rng(0)
    x, a = random.normal(size=shape).astype("f4"), random.random(shape).astype("f4")
    a[random.random(shape) < 0.2] = 0
    x[random.random(shape) < 0.02] = np.nan  # what happens beyond a cut stays there, what does not travels on
    y = recurrence.linear_recurrence(jnp.asarray(x), jnp.asarray(a))
    np.testing.assert_allclose(y, naive.linear_recurrence(x.astype(float), a.astype(float)), rtol=1e-5, atol=1e-6)


def test_a_product_that_underflows_is_no_cut(form: str) -> None:
    x, a = jnp.zeros(70).at[-1].set(jnp.nan), jnp.full(70, 1e-5)
    assert np.isnan(recurrence.linear_recurrence(x, a)).all()


def test_a_million_steps_keep_their_precision() -> None:
    """γ = λ = 1 on one column, the worst case of a running sum; the tree rounds far less than the plain loop."""
    x = np.random.default_rng(0).normal(size=1_000_000).astype("f4")
    truth = np.cumsum(x[::-1].astype(float))[::-1]
    plain = np.abs(np.cumsum(x[::-1])[::-1] - truth).max()
    y = jax.jit(recurrence._scan)(jnp.asarray(x), jnp.ones_like(x))
    assert np.abs(y - truth).max() <= 2 * plain + np.spacing(np.abs(truth).max().astype("f4"))


@pytest.mark.parametrize("argument", [0, 1], ids=["x", "a"])
def test_its_gradient_is_that_of_the_definition(argument: int, form: str) -> None:
    """Against central differences of the plain loop in float64; a = 0 has a slope too."""
    random = np.random.default_rng(1)
    pair = [random.normal(size=(70, 2)), random.random((70, 2))]
    pair[1][[3, 40]] = 0
    weights = random.normal(size=(70, 2))

    def loss(moved: np.ndarray) -> float:
        arguments = [moved if i == argument else array for i, array in enumerate(pair)]
        return float((weights * naive.linear_recurrence(*arguments)).sum())

    def jax_loss(*arguments: Any) -> Any:
        return (jnp.asarray(weights) * recurrence.linear_recurrence(*arguments)).sum()

    with float64_in_jax():
        arrays = [jnp.asarray(array) for array in pair]
        reverse = jax.jit(jax.grad(jax_loss, argument))(*arrays)
        forward = jax.jit(jax.jacfwd(jax_loss, argument))(*arrays)
    for index in (0, 0), (3, 0), (39, 1), (40, 1), (69, 0):
        step = np.zeros((70, 2))
        step[index] = 1e-5
        slope = (loss(pair[argument] + step) - loss(pair[argument] - step)) / 2e-5
        np.testing.assert_allclose([reverse[index], forward[index]], slope, rtol=1e-7, atol=1e-9)


def test_no_gradient_comes_from_beyond_a_cut(form: str) -> None:
    """Neither NaN in a later episode, nor a NaN slope from an earlier one."""
    x, a = jnp.ones(70).at[50].set(jnp.nan), jnp.full(70, 0.5).at[20].set(0).at[40].set(0)
    y, pull = jax.vjp(recurrence.linear_recurrence, x, a)
    by_x, by_a = pull(jnp.where(jnp.arange(70) == 10, jnp.nan, 1.0))
    assert np.isfinite(y[:41]).all()
    assert np.isfinite(by_x[21:]).all()
    assert np.isfinite(by_a[21:40]).all()
    np.testing.assert_allclose(by_x[21:24], [1, 1.5, 1.75])


# --- the estimators


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((70, 3), kind) for kind in (jnp.float16, jnp.bfloat16, jnp.float32)]
    + [(shape, jnp.float32) for shape in ((0, 2), (1,), (9, 2, 4))],
)
def test_gae_is_the_definition(shape: tuple[int, ...], dtype: Any) -> None:
    steps = oracle.rollout(shape)
    arrays = given(steps, dtype)
    advantages, returns = telescope.gae(**arrays, gamma=GAMMA, lam=LAM)
    expected = oracle.advantages(rounded(steps, arrays), GAMMA, LAM)
    assert isinstance(advantages, jax.Array)
    assert advantages.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-5)
    target = np.where(steps.mask, expected + np.asarray(arrays["values"], float), 0)
    np.testing.assert_allclose(returns, target, rtol=1e-5, atol=1e-5)


def test_float64_is_honoured() -> None:
    steps = oracle.rollout((70, 3))
    with float64_in_jax():
        advantages, _ = telescope.gae(**given(steps, jnp.float64), gamma=GAMMA, lam=LAM)
        assert advantages.dtype == jnp.float64
    np.testing.assert_allclose(advantages, oracle.advantages(steps, GAMMA, LAM), rtol=1e-12, atol=1e-12)


def everything(arrays: dict[str, Any]) -> dict[str, Any]:
    """Each estimator on one rollout [T, B]; a dictionary of results, whatever the library."""
    flags = {name: arrays[name] for name in ("terminated", "truncated", "mask")}
    ahead = without(arrays, "values")
    last = arrays["values"][0]
    return {
        "gae": telescope.gae(**arrays, gamma=GAMMA, lam=LAM, returns_lam=1.0),
        "batch-major": telescope.gae(**{k: v.T for k, v in arrays.items()}, gamma=GAMMA, lam=LAM, axis=1).returns.T,
        "td_error": telescope.td_error(**without(arrays, "truncated"), gamma=GAMMA),
        "lambda_return": telescope.lambda_return(**ahead, gamma=GAMMA, lam=LAM),
        "discounted_return": telescope.discounted_return(**ahead, gamma=GAMMA),
        "next_values": telescope.next_values(arrays["values"], last, final_values=arrays["next_values"], **flags),
        "whiten": telescope.whiten(arrays["values"], mask=arrays["mask"]),
        "whiten per column": telescope.whiten(arrays["values"], axis=0, biased=False, scale_only=True),
    }


def assert_equal(results: dict[str, Any], expected: dict[str, Any]) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), results, expected)


def test_results_are_numpys() -> None:
    steps = oracle.rollout((70, 3), np.float32)
    assert_equal(jax.jit(everything)(given(steps)), everything(steps._asdict()))


def test_vmap_adds_an_axis() -> None:
    members = [oracle.rollout((70, 3), np.float32, seed) for seed in range(3)]
    batch = jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(given, members))
    expected = jax.tree.map(lambda *arrays: np.stack(arrays), *(everything(steps._asdict()) for steps in members))
    assert_equal(jax.jit(jax.vmap(everything))(batch), expected)


def test_gamma_and_lambda_may_be_traced_per_environment_and_per_step() -> None:
    steps = oracle.rollout((70, 3), np.float32)
    random = np.random.default_rng(0)
    for shape in (), (3,), (70, 1):
        gamma, lam = random.random(shape, "f4"), random.random(shape, "f4")
        result = jax.jit(lambda a, g, d: telescope.gae(**a, gamma=g, lam=d))(given(steps), gamma, lam)
        expected = oracle.advantages(steps, gamma, lam)
        np.testing.assert_allclose(result.advantages, expected, rtol=1e-5, atol=1e-5)


# --- conventions


def translated(told: Callable[[np.ndarray], Any]) -> list[dict[str, Any]]:
    """Every convention once; arguments of gae, all but the axis, which is a number."""
    steps = oracle.rollout((6, 6), np.float32)
    r, v, finals, ends, cuts, mask = map(told, steps)
    last, some = told(steps.values[0]), told(steps.mask[0])
    packed, lengths = told(steps.values[0]), told(np.array([2, 0, 3, 1]))
    whole = {"terminated": told(np.array([True, True, False, False])), "final_values": told(steps.rewards[0, :4])}
    both = {"terminated": ends, "truncated": cuts}
    places, few = tuple(told(i) for i in np.nonzero(steps.truncated)), told(steps.next_values[steps.truncated])
    dense = conventions.dense_final_values(v, places, few)
    rollouts = [
        conventions.from_last_values(r, v, last, **both, final_values=dense, mask=mask),
        conventions.from_values_with_bootstrap(r[1:], v, terminated=ends[1:], truncated=None),
        conventions.from_dones(r, v, last, dones=ends | cuts, truncated=cuts, final_values=finals),
        conventions.from_episode_starts(r, v, last, episode_starts=ends, last_dones=some, truncated=None),
        conventions.from_discounts(r[1:], v, discounts=abs(r[1:]) * 0.1 * ends[1:], truncated=None),
        conventions.from_arrivals(r, v, **both, final_values=finals),
        conventions.from_next_step_autoreset(r, v, last, **both, previous_dones=some),
        conventions.from_lengths(packed, packed, lengths, **whole),
        conventions.from_cu_seqlens(packed, packed, told(np.array([0, 2, 2, 5, 6])), **whole),
        conventions.from_response_mask(r, v, mask, terminated=some, final_values=last),
        conventions.from_response_mask(r, v, mask, terminated=some, final_values=last, masked="decayed"),
    ]
    for rollout in rollouts:
        rollout |= telescope.gae(**{"gamma": GAMMA} | rollout, lam=LAM)._asdict()
    return [without(rollout, "axis") for rollout in rollouts]


def test_conventions_are_numpys() -> None:
    assert_equal(jax.jit(lambda: translated(jnp.asarray))(), translated(lambda array: array))


# --- gradients


def test_gradients_stop_unless_asked_for() -> None:
    arrays = given(oracle.rollout((70, 3)))
    fixed = without(arrays, "values")

    def total(values: Any, gamma: Any, **how: Any) -> Any:
        return sum(array.sum() for array in telescope.gae(values=values, **fixed, gamma=gamma, lam=LAM, **how))

    gradients = jax.jit(jax.grad(total, (0, 1)))(arrays["values"], 0.9)
    np.testing.assert_array_equal(gradients[0], 0)
    assert gradients[1] == 0
    through = jax.jit(jax.grad(partial(total, differentiable=True), (0, 1)))(arrays["values"], 0.9)
    assert (np.abs(through[0])[np.asarray(arrays["mask"])] > 0).all()
    assert through[1] != 0


def test_the_gradient_is_that_of_the_sum() -> None:
    """Against central differences of the double sum over episodes, in float64, γ and λ included."""
    steps = oracle.rollout((70, 1))
    weights = np.random.default_rng(0).normal(size=(70, 1))
    numbers: dict[str, Any] = {name: getattr(steps, name) for name in ("rewards", "values", "next_values")}
    numbers |= {"gamma": 0.9, "lam": 0.8}
    flags = without(steps._asdict(), *numbers)

    def loss(numbers: dict[str, Any]) -> float:
        moved = steps._replace(**without(numbers, "gamma", "lam"))
        return float((weights * oracle.advantages(moved, numbers["gamma"], numbers["lam"])).sum())

    def jax_loss(numbers: dict[str, Any]) -> Any:
        return (weights * telescope.gae(**numbers, **flags, differentiable=True).advantages).sum()

    with float64_in_jax():
        flags = {name: jnp.asarray(flag) for name, flag in flags.items()}
        gradient = jax.jit(jax.grad(jax_loss))(jax.tree.map(jnp.asarray, numbers))
    for name, number in numbers.items():
        for index in [()] if name in ("gamma", "lam") else [(0, 0), (33, 0), (69, 0)]:
            slopes = []
            for step in 1e-5, -1e-5:
                moved = np.array(number, float)
                moved[index] += step
                slopes.append(loss(numbers | {name: moved}))
            slope = (slopes[0] - slopes[1]) / 2e-5
            np.testing.assert_allclose(gradient[name][index], slope, rtol=1e-6, atol=1e-8, err_msg=name)


def test_no_gradient_is_nan_because_of_a_number_nobody_reads() -> None:
    """NaN in a masked step, behind a termination, as the unread next value: all of them have the slope 0."""
    arrays = given(oracle.rollout((70, 3)))
    terminated, mask = arrays["terminated"], arrays["mask"]
    arrays["next_values"] = jnp.where(terminated | ~mask, jnp.nan, arrays["next_values"])
    arrays["rewards"] = jnp.where(mask, arrays["rewards"], jnp.nan)
    arrays["values"] = jnp.where(mask, arrays["values"], jnp.nan)

    def loss(numbers: dict[str, Any]) -> Any:
        result = telescope.gae(**arrays | numbers, gamma=GAMMA, lam=LAM, differentiable=True)
        return (result.advantages**2 + result.returns).sum() + (telescope.whiten(numbers["values"], mask=mask)).sum()

    gradients = jax.jit(jax.grad(loss))({name: arrays[name] for name in ("rewards", "values", "next_values")})
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name


# --- what is asked of the arguments


def test_checks_on_data_are_made_where_there_are_data() -> None:
    arrays = given(oracle.rollout((6, 2)))
    wrong = arrays | {"terminated": jnp.full((6, 2), 0.5), "mask": None}
    with pytest.raises(ValueError, match=r"terminated has dtype float32 and holds 0.5"):
        telescope.gae(**wrong, gamma=GAMMA, lam=LAM)
    with pytest.raises(ValueError, match=r"gamma holds numbers outside"):
        telescope.gae(**arrays, gamma=jnp.full(2, 1.5), lam=LAM)
    flags = {"terminated": None, "truncated": jnp.ones((6, 2), bool)}
    with pytest.raises(ValueError, match=r"final_values holds no value for 12 truncated steps"):
        telescope.next_values(arrays["values"], arrays["values"][0], **flags)


def test_and_skipped_where_an_array_is_a_tracer() -> None:
    arrays = given(oracle.rollout((6, 2))) | {"mask": None}
    gae = jax.jit(lambda flags, gamma: telescope.gae(**arrays | {"truncated": flags}, gamma=gamma, lam=LAM))
    numbers = arrays["truncated"].astype(jnp.float32)
    expected = telescope.gae(**arrays, gamma=GAMMA, lam=LAM)
    np.testing.assert_allclose(gae(numbers, GAMMA).advantages, expected.advantages, rtol=1e-6, atol=1e-6)
    assert np.isfinite(gae(numbers, 1.5).advantages).all()
    following = jax.jit(lambda v, flags: telescope.next_values(v, v[0], terminated=None, truncated=flags))
    found, last = following(arrays["values"], numbers), np.asarray(arrays["truncated"])
    np.testing.assert_array_equal(np.isnan(found), last)  # no final value is told: not the next episode's


def test_checks_on_shapes_are_always_made() -> None:
    arrays = given(oracle.rollout((6, 2)))
    with pytest.raises(ValueError, match=r"values has shape \(6, 2, 1\) .*squeeze"):
        jax.jit(lambda a: telescope.gae(**a, gamma=GAMMA, lam=LAM))(arrays | {"values": arrays["values"][..., None]})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": np.ones((4, 2), np.float32)}, r"values is a numpy.ndarray but rewards is a jax\w*.ArrayImpl"),
        ({"rewards": torch.ones(4, 2)}, r"values is a jax\w*.ArrayImpl but rewards is a torch.Tensor"),
        ({"values": jnp.ones((4, 2), jnp.int32)}, r"values has dtype int32; expected float16, bfloat16"),
        ({"values": jnp.ones((4, 2), jnp.bfloat16)}, r"next_values has dtype float32 but values has bfloat16"),
        ({"rewards": jnp.ones((4, 2), jnp.complex64)}, r"rewards has dtype complex64; expected real"),
        ({"gamma": np.full(2, 0.9, np.float32)}, r"gamma is a numpy.ndarray but values is a jax"),
        ({"gamma": jnp.full(3, 0.9)}, r"gamma has shape \(3,\), which does not broadcast to \(4, 2\)"),
        ({"lam": 1.1}, r"lam is 1.1"),
        ({"out": (jnp.ones((4, 2)), jnp.ones((4, 2)))}, r"out is given, but a JAX array cannot be written in place"),
    ],
)
def test_bad_arguments_are_refused(changed: dict[str, Any], message: str) -> None:
    ones = jnp.ones((4, 2))
    arguments = {"rewards": ones, "values": ones, "next_values": ones, "terminated": None, "truncated": None}
    with pytest.raises(ValueError, match=message):
        telescope.gae(**(arguments | {"gamma": GAMMA, "lam": LAM} | changed))


def test_rewards_of_any_real_dtype_are_converted() -> None:
    steps = oracle.rollout((6, 2), np.float32)
    whole = np.arange(12).reshape(6, 2) % 3
    expected = telescope.gae(**steps._asdict() | {"rewards": whole}, gamma=GAMMA, lam=LAM)
    for dtype in jnp.int32, jnp.uint8, jnp.bfloat16, jnp.float16:
        result = telescope.gae(**given(steps) | {"rewards": jnp.asarray(whole, dtype)}, gamma=GAMMA, lam=LAM)
        np.testing.assert_allclose(result.returns, expected.returns, rtol=1e-6, atol=1e-6)


def test_jax_is_not_imported_for_anybody_else() -> None:
    program = (
        "import sys, numpy as np, telescope; v = np.ones(3)\n"
        "telescope.gae(v, v, v, terminated=None, truncated=None, gamma=0.9, lam=0.9)\n"
        "try: telescope.whiten(object())\n"
        "except ValueError as error: print('jax' in sys.modules, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False x is a builtins.object; supported are")
