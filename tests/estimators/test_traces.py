"""Eligibility traces: the loops of the textbooks, and the forward views they must agree with."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

GAMMA, LAM, ALPHA = 0.95, 0.8, 0.15
EXACT = {"rtol": 0, "atol": 1e-11}
KINDS = ["accumulating", "replacing", "dutch"]


def rollout(shape: tuple[int, ...] = (25, 3), width: int = 4) -> tuple[oracle.Rollout, np.ndarray]:
    steps = oracle.rollout(shape, ends=0.1)
    features = np.random.default_rng(4).normal(size=(*shape, width))
    return steps, np.where(np.random.default_rng(5).random(features.shape) < 0.4, 0.0, features)


def flags(steps: oracle.Rollout) -> dict[str, np.ndarray]:
    return {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask}


def computed(kind: str, features: Any, **more: Any) -> Any:
    if kind == "dutch":
        return telescope.dutch_trace(features, **more, step_size=ALPHA)
    return telescope.eligibility_trace(features, **more, kind=kind)


def textbook(kind: str, steps: oracle.Rollout, features: np.ndarray, gamma: Any, lam: Any) -> np.ndarray:
    """Episode by episode, from a trace of zeros; γ and λ of the step before decay it."""
    gamma, lam = (np.broadcast_to(np.float64(number), steps.values.shape) for number in (gamma, lam))
    result = np.zeros_like(features)
    for episode in oracle.episodes(steps):
        trace, decay = np.zeros(features.shape[-1]), 0.0
        for i in episode:
            phi, trace = features[i], decay * trace
            if kind == "accumulating":
                trace = trace + phi
            elif kind == "replacing":
                trace = np.array([new if new != 0 else old for new, old in zip(phi, trace, strict=True)])
            else:
                trace = trace + phi - ALPHA * float(trace @ phi) * phi
            result[i], decay = trace, gamma[i] * lam[i]
    return result


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(25, 3), (25,), (1, 2), (0, 2), (4, 2, 3)], ids=str)
def test_against_the_textbook(kind: str, shape: tuple[int, ...], masked: bool) -> None:
    steps, features = rollout(shape)
    steps = steps if masked else steps._replace(mask=np.ones(shape, bool))
    arguments = {**flags(steps), "gamma": GAMMA, "lam": LAM} | ({} if masked else {"mask": None})
    result = computed(kind, features, **arguments)
    assert result.shape == features.shape
    np.testing.assert_allclose(result, textbook(kind, steps, features, GAMMA, LAM), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3,), (25, 1), (25, 3), ()], ids=str)
def test_discounts_per_environment_and_per_step(kind: str, shape: tuple[int, ...]) -> None:
    steps, features = rollout()
    random = np.random.default_rng(6)
    gamma, lam = random.random(shape), random.random(shape)
    result = computed(kind, features, **flags(steps), gamma=gamma, lam=lam)
    np.testing.assert_allclose(result, textbook(kind, steps, features, gamma, lam), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [1, -1, 0, -2])
def test_time_may_be_any_axis(kind: str, axis: int) -> None:
    steps, features = rollout()
    settings = {"gamma": GAMMA, "lam": LAM}
    expected = computed(kind, features, **flags(steps), **settings)
    if axis in (1, -1):
        steps, features = oracle.Rollout(*(array.T for array in steps)), features.swapaxes(0, 1)
        expected = expected.swapaxes(0, 1)
    result = computed(kind, features, **flags(steps), **settings, axis=axis)
    np.testing.assert_allclose(result, expected, **EXACT)


def test_backward_and_forward_view_agree() -> None:
    """Offline, Σ_t δ[t] e[t] = Σ_t A[t] φ[t]: what each step hands back is what each step looks ahead to."""
    steps, features = rollout()
    common = {**flags(steps), "gamma": GAMMA, "lam": LAM}
    traces = telescope.eligibility_trace(features, **common)
    residual = telescope.td_error(*steps[:3], terminated=steps.terminated, gamma=GAMMA, mask=steps.mask)
    advantages = telescope.gae(*steps[:3], **common).advantages
    backward = (residual[..., None] * traces).sum(0)
    np.testing.assert_allclose(backward, (advantages[..., None] * features * steps.mask[..., None]).sum(0), **EXACT)


def test_the_total_reward_is_a_trace_and_a_return() -> None:
    """What came before, by a trace at γ = λ = 1, and the reward to go: each step of an episode gets its sum."""
    steps, _ = rollout()
    before = telescope.eligibility_trace(steps.rewards[..., None], **flags(steps), gamma=1.0, lam=1.0)[..., 0]
    to_go = telescope.discounted_return(steps.rewards, np.zeros_like(steps.rewards), **flags(steps), gamma=1.0)
    total = (before + to_go - steps.rewards) * steps.mask
    for episode in oracle.episodes(steps):
        expected = sum(steps.rewards[i] for i in episode)
        np.testing.assert_allclose([total[i] for i in episode], expected, **EXACT)


def test_what_traces_reduce_to() -> None:
    steps, features = rollout()
    common = {**flags(steps), "gamma": GAMMA}
    live = features * steps.mask[..., None]
    for kind in KINDS:
        np.testing.assert_array_equal(computed(kind, features, **common, lam=0.0), live)
    accumulating = computed("accumulating", features, **common, lam=LAM)
    np.testing.assert_allclose(telescope.dutch_trace(features, **common, lam=LAM, step_size=0.0), accumulating)
    one_hot = np.eye(4)[np.random.default_rng(0).integers(4, size=(25, 3))]
    replacing = computed("replacing", one_hot, **common, lam=LAM)
    np.testing.assert_allclose(telescope.dutch_trace(one_hot, **common, lam=LAM, step_size=1.0), replacing, **EXACT)
    assert replacing.max() == 1 < computed("accumulating", one_hot, **common, lam=LAM).max()


def online_forward_view(weights: np.ndarray, world: list[tuple[np.ndarray, float, np.ndarray, bool]]) -> np.ndarray:
    """After h steps: all updates from the start again, towards λ-returns that end at h (van Seijen et al. 2016, 3.2).

    The value of the state reached after step j is taken with the weights that were current then.
    """
    current = [weights]
    for h in range(1, len(world) + 1):
        w = weights
        for k in range(h):
            n_step, discounted = [], 0.0
            for j in range(k, h):
                _, reward, successor, terminated = world[j]
                discounted += GAMMA ** (j - k) * reward
                tail = 0.0 if terminated else GAMMA ** (j - k + 1) * float(current[j] @ successor)
                n_step.append(discounted + tail)
            mixed = sum((1 - LAM) * LAM**n * value for n, value in enumerate(n_step[:-1]))
            target = mixed + LAM ** (h - k - 1) * n_step[-1]
            phi = world[k][0]
            w = w + ALPHA * (target - float(w @ phi)) * phi
        current.append(w)
    return current[-1]


def test_true_online_td_is_the_online_forward_view() -> None:
    steps, features = rollout((14, 3), width=3)
    successors = np.random.default_rng(8).normal(size=features.shape)
    for column in range(3):  # within an episode a step leads to the state of the next
        live = [t for t in range(14) if steps.mask[t, column]]
        for t, following in pairwise(live):
            if not (steps.terminated[t, column] or steps.truncated[t, column]):
                successors[t, column] = features[following, column]
    start = np.random.default_rng(9).normal(size=(3, 3))
    arguments = (start, steps.rewards, features, successors)
    result = telescope.true_online_td(*arguments, **flags(steps), gamma=GAMMA, lam=LAM, step_size=ALPHA)
    expected = start.copy()
    for episode in oracle.episodes(steps):
        column = episode[0][1]
        world = [(features[i], float(steps.rewards[i]), successors[i], bool(steps.terminated[i])) for i in episode]
        expected[column] = online_forward_view(expected[column], world)
    np.testing.assert_allclose(result, expected, **EXACT)
    tensors = [torch.from_numpy(array) for array in arguments]
    named = {name: torch.from_numpy(flag) for name, flag in flags(steps).items()}
    again = telescope.true_online_td(*tensors, **named, gamma=GAMMA, lam=LAM, step_size=ALPHA)
    np.testing.assert_allclose(again.numpy(), expected, **EXACT)


def test_true_online_td_without_a_trace_is_td0() -> None:
    steps, features = rollout((14, 3))
    successors = np.random.default_rng(8).normal(size=features.shape)
    successors[steps.terminated] = np.nan  # there is no such state
    start = np.zeros((3, 4))
    common = {**flags(steps), "gamma": GAMMA, "lam": 0.0, "step_size": ALPHA}
    result = telescope.true_online_td(start, steps.rewards, features, successors, **common)
    w = np.zeros((3, 4))
    for t, column in np.argwhere(steps.mask):
        i = (t, column)
        tail = 0.0 if steps.terminated[i] else GAMMA * w[column] @ successors[i]
        w[column] += ALPHA * (steps.rewards[i] + tail - w[column] @ features[i]) * features[i]
    np.testing.assert_allclose(result, w, **EXACT)
    assert (start == 0).all()
    none = telescope.true_online_td(start, steps.rewards[:0], features[:0], successors[:0], **_cut(common, 0))
    np.testing.assert_array_equal(none, start)
    assert not np.shares_memory(none, start)


def _cut(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: value[:count] if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def test_true_online_td_learns_the_values_of_a_random_walk() -> None:
    """Five states in a row, reward 1 at the right end: v(s) = s/6 (Sutton & Barto 2018, example 6.2)."""
    random, episodes = np.random.default_rng(0), []
    for _ in range(600):
        state = 3
        while 0 < state < 6:
            step = state + random.choice([-1, 1])
            episodes.append((state - 1, float(step == 6), step - 1, step in (0, 6)))
            state = step
    states, rewards, successors, ends = (np.array(column) for column in zip(*episodes, strict=True))
    one_hot = np.vstack([np.eye(5), np.zeros((2, 5))])  # −1 and 5 are no states
    arguments = (np.full(5, 0.5), rewards, one_hot[states], one_hot[successors])
    w = telescope.true_online_td(*arguments, terminated=ends, truncated=None, gamma=1.0, lam=0.8, step_size=0.01)
    np.testing.assert_allclose(w, np.arange(1, 6) / 6, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact_on_request(kind: str) -> None:
    steps, features = rollout((5, 2), width=2)
    named = {name: torch.from_numpy(flag) for name, flag in flags(steps).items()}
    tensor = torch.from_numpy(features).requires_grad_()
    gamma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def trace(features: Any, gamma: Any) -> Any:
        return computed(kind, features, **named, gamma=gamma, lam=LAM, differentiable=True)

    if kind == "replacing":  # the choice between old and new jumps where a feature is 0
        tensor = (tensor.detach() + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(trace, (tensor, gamma))
    plain = computed(kind, tensor, **named, gamma=gamma, lam=LAM)
    assert not plain.requires_grad
    np.testing.assert_allclose(plain.numpy(), trace(tensor, gamma).detach().numpy(), **EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dutch"}, "kind is 'dutch'; expected 'accumulating' or 'replacing'.*dutch_trace"),
        ({"features": np.ones(25)}, r"features has shape \(25,\); expected \[T, \*batch, F\]"),
        ({"features": [[1.0]]}, "features is a list"),
        ({"features": np.ones((25, 3, 4), int)}, "features has dtype int64"),
        ({"terminated": np.zeros((25, 3, 4), bool)}, r"terminated has shape \(25, 3, 4\) but features without their"),
        ({"truncated": torch.zeros(25, 3)}, "truncated is a torch.Tensor but features is a numpy.ndarray"),
        ({"mask": np.ones((25, 2), bool)}, r"mask has shape \(25, 2\)"),
        ({"gamma": np.ones(25)}, r"gamma has shape \(25,\), which does not broadcast to \(25, 3\)"),
        ({"lam": 2.0}, "lam is 2.0"),
        ({"axis": 2}, r"axis is 2; expected an integer in \[-2, 2\)"),
        ({"differentiable": True}, "differentiable is True"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    steps, features = rollout()
    with pytest.raises(ValueError, match=message):
        telescope.eligibility_trace(**{"features": features, **flags(steps), "gamma": GAMMA, "lam": LAM, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": -0.1}, "step_size is -0.1; expected a number >= 0"),
        ({"step_size": None}, "step_size is None"),
        ({"weights": np.zeros(4)}, r"weights has shape \(4,\) but features without their time axis are \(3, 4\)"),
        ({"weights": np.zeros((3, 4), "f4")}, "weights has dtype float32 but features has float64"),
        ({"rewards": np.zeros((25, 3, 1))}, r"rewards has shape \(25, 3, 1\)"),
        ({"rewards": None}, "rewards is None"),
        ({"next_features": np.zeros((25, 3))}, r"next_features has shape \(25, 3\) but features has \(25, 3, 4\)"),
    ],
)
def test_bad_arguments_of_true_online_td_are_named(change: dict[str, Any], message: str) -> None:
    steps, features = rollout()
    good = {"weights": np.zeros((3, 4)), "rewards": steps.rewards, "features": features, "next_features": features}
    settings = {**flags(steps), "gamma": GAMMA, "lam": LAM, "step_size": ALPHA}
    with pytest.raises(ValueError, match=message):
        telescope.true_online_td(**{**good, **settings, **change})
