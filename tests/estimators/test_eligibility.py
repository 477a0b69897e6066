"""One step of TD(λ): run over random episodes it gives the forward views, which are computed from whole episodes.

Leaves out the functions along a time axis: `test_traces.py`.
"""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope
from telescope.estimators.eligibility import KINDS, linear_value, td_lambda_step, trace_step, true_online_step

GAMMA, LAM = 0.95, 0.8
EXACT = {"rtol": 0, "atol": 1e-11}
ROWS, STEPS, WIDTH = 4, 30, 5  # rows are seeds


class World:
    """Random steps [T, S] with features [T, S, F]; within an episode a step leads to the state of the next."""

    def __init__(self, *, one_hot: bool = False, ends: float = 0.15, terminations: bool = True) -> None:
        random = np.random.default_rng(3)
        shape = (STEPS, ROWS, WIDTH)
        self.features = np.where(random.random(shape) < 0.3, 0.0, random.normal(size=shape))
        if one_hot:
            self.features = np.eye(WIDTH)[random.integers(WIDTH, size=shape[:2])]
        self.next_features = random.normal(size=shape)
        self.rewards = random.normal(size=shape[:2])
        self.terminated = random.random(shape[:2]) < ends * terminations
        self.truncated = random.random(shape[:2]) < ends
        self.start = random.normal(size=shape[1:])
        ended = self.terminated | self.truncated
        self.next_features[:-1][~ended[:-1]] = self.features[1:][~ended[:-1]]
        self.first = np.vstack([np.ones((1, ROWS), bool), ended[:-1]])  # [T, S] the first step of an episode
        self.next_features[self.terminated] = np.nan  # there is no such state

    def steps(self, weights: np.ndarray) -> oracle.Rollout:
        """With the values of fixed weights [S, F]."""
        values, successors = ((x * weights).sum(-1) for x in (self.features, np.nan_to_num(self.next_features)))
        ends = (self.terminated, self.truncated, np.ones_like(self.truncated))
        return oracle.Rollout(self.rewards, values, successors, *ends)

    def step(self, t: int, gamma: Any = GAMMA, lam: Any = LAM) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of step t."""
        gamma, lam = (np.broadcast_to(x, (ROWS,)) for x in (gamma, lam))
        discount = np.where(self.terminated[t], 0.0, gamma)[:, None]
        decay = np.where(self.first[t], 0.0, gamma * lam)[:, None]
        return (self.features[t], self.next_features[t], self.rewards[t, :, None]), {
            "discount": discount,
            "decay": decay,
        }


def offline(world: World, *, kind: str = "accumulating", **more: Any) -> np.ndarray:
    """Σ_t α δ[t] e[t] with weights that stay [S, F]."""
    trace, total = np.full_like(world.start, np.nan), np.zeros_like(world.start)
    for t in range(STEPS):
        place, how = world.step(t, **more)
        new, trace, _ = td_lambda_step(world.start, trace, *place, **how, step_size=0.1, kind=kind)
        total += new - world.start
    return total


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("terminations", [True, False], ids=["both ends", "truncations alone"])
def test_offline_the_backward_view_is_the_forward_view(lam: float, terminations: bool) -> None:
    """Σ_t α δ[t] e[t] = Σ_t α (G^λ[t] − v[t]) φ[t]. A truncation bootstraps, then the trace restarts."""
    world = World(terminations=terminations)
    steps = world.steps(world.start)
    plain = 0.1 * ((oracle.lambda_returns(steps, GAMMA, lam) - steps.values)[..., None] * world.features).sum(0)
    np.testing.assert_allclose(offline(world, lam=lam), plain, **EXACT)
    ends = {"terminated": steps.terminated, "truncated": steps.truncated}
    returns = telescope.lambda_return(steps.rewards, steps.next_values, **ends, gamma=GAMMA, lam=lam)
    forward = 0.1 * ((returns - steps.values)[..., None] * world.features).sum(0)
    np.testing.assert_allclose(offline(world, lam=lam), forward, **EXACT)


@pytest.mark.parametrize("gamma", [GAMMA, 1.0])
def test_offline_with_lambda_1_it_is_monte_carlo(gamma: float) -> None:
    """Accumulating traces learn from every visit of a state, replacing ones at γ = 1 from the first alone."""
    world = World(one_hot=True)
    steps = world.steps(world.start)
    every, first = np.zeros_like(world.start), np.zeros_like(world.start)
    for episode in oracle.episodes(steps):
        seen = set()
        for k, (t, s) in enumerate(episode):
            total = sum(gamma**j * steps.rewards[i] for j, i in enumerate(episode[k:]))
            last = episode[-1]
            if not steps.terminated[last]:
                total += gamma ** (len(episode) - k) * steps.next_values[last]
            state = int(world.features[t, s].argmax())
            change = 0.1 * (total - world.start[s, state])
            every[s, state] += change
            first[s, state] += change * (state not in seen)
            seen.add(state)
    np.testing.assert_allclose(offline(world, gamma=gamma, lam=1.0), every, **EXACT)
    if gamma == 1:  # Singh & Sutton 1996, theorem 3
        np.testing.assert_allclose(offline(world, gamma=gamma, lam=1.0, kind="replacing"), first, **EXACT)
    assert not np.allclose(every, first)


@pytest.mark.parametrize("kind", KINDS)
def test_with_lambda_0_it_is_td0_whatever_the_trace(kind: str) -> None:
    world = World()
    w, expected, trace = world.start, world.start.copy(), np.zeros_like(world.start)
    online, online_trace, old = world.start, trace, np.zeros((ROWS, 1))
    for t in range(STEPS):
        place, how = world.step(t, lam=0.0)
        w, trace, delta = td_lambda_step(w, trace, *place, **how, step_size=0.1, kind=kind)
        online, online_trace, _, old = true_online_step(online, online_trace, old, *place, **how, step_size=0.1)
        for s in range(ROWS):
            ahead = 0.0 if world.terminated[t, s] else GAMMA * expected[s] @ world.next_features[t, s]
            error = world.rewards[t, s] + ahead - expected[s] @ world.features[t, s]
            assert delta[s, 0] == pytest.approx(error, abs=1e-11)
            expected[s] += 0.1 * error * world.features[t, s]
        np.testing.assert_allclose(w, expected, **EXACT)
        np.testing.assert_allclose(online, expected, **EXACT)


def online_lambda_return(world: World, s: int, begin: int, end: int, w: np.ndarray, seen: list, numbers: tuple) -> Any:
    """The weights after step `end` − 1 of the episode that began at `begin`: everything from its start again.

    The targets are λ-returns that end at this horizon; the value of the state that step j reached is that by the
    weights `seen[j]` which were current then (van Seijen et al. 2016, section 3.2).
    """
    gamma, lam, alpha = numbers
    for k in range(begin, end):
        n_step, discounted = [], 0.0
        for j in range(k, end):
            discounted += gamma ** (j - k) * world.rewards[j, s]
            tail = 0.0 if world.terminated[j, s] else gamma ** (j - k + 1) * seen[j] @ world.next_features[j, s]
            n_step.append(discounted + tail)
        mixed = (
            sum((1 - lam) * lam**n * value for n, value in enumerate(n_step[:-1]))
            + lam ** (len(n_step) - 1) * n_step[-1]
        )
        w = w + alpha * (mixed - w @ world.features[k, s]) * world.features[k, s]
    return w


@pytest.mark.parametrize("step_size", [0.1, np.array([0.1, 0.05, 0.2, 0.0, 0.1])], ids=["number", "per feature"])
def test_true_online_is_the_online_lambda_return_after_every_step(step_size: Any) -> None:
    """Each row with a γ and λ of its own, across terminations and truncations."""
    world = World()
    gamma, lam = np.array([0.95, 0.9, 1.0, 0.5]), np.array([0.8, 1.0, 0.3, 0.95])
    w, trace, old = world.start, np.full_like(world.start, np.nan), np.zeros((ROWS, 1))
    seen: list[list[np.ndarray]] = [[] for _ in range(ROWS)]  # the weights before each step, per row
    begins = [0] * ROWS
    starts = [*world.start]
    for t in range(STEPS):
        for s in range(ROWS):
            if world.first[t, s]:
                begins[s], starts[s] = t, w[s]
            seen[s].append(w[s])
        place, how = world.step(t, gamma, lam)
        w, trace, _, old = true_online_step(w, trace, old, *place, **how, step_size=step_size)
        for s in range(ROWS):
            numbers = (gamma[s], lam[s], step_size)
            expected = online_lambda_return(world, s, begins[s], t + 1, starts[s], seen[s], numbers)
            np.testing.assert_allclose(w[s], expected, rtol=1e-9, atol=1e-9)


def test_true_online_over_an_axis_is_the_same_step_by_step() -> None:
    world = World()
    w, trace, old = world.start, np.zeros_like(world.start), np.zeros((ROWS, 1))
    for t in range(STEPS):
        place, how = world.step(t)
        w, trace, _, old = true_online_step(w, trace, old, *place, **how, step_size=0.1)
    ends = {"terminated": world.terminated, "truncated": world.truncated}
    arguments = (world.start, world.rewards, world.features, world.next_features)
    whole = telescope.true_online_td(*arguments, **ends, gamma=GAMMA, lam=LAM, step_size=0.1)
    np.testing.assert_allclose(w, whole, **EXACT)


def test_what_traces_reduce_to() -> None:
    """Where no feature repeats, replacing is accumulating; a dutch trace is accumulating as α → 0, replacing at α 1."""
    features = np.eye(STEPS)[:, None].repeat(ROWS, 1)  # a new feature at each step
    traces: Any = dict.fromkeys(KINDS, np.zeros((ROWS, STEPS)))
    for t in range(STEPS):
        traces = {kind: trace_step(traces[kind], features[t], 0.9, kind=kind) for kind in KINDS}
        np.testing.assert_array_equal(traces["replacing"], traces["accumulating"])
        np.testing.assert_array_equal(traces["dutch"], traces["accumulating"])
    world = World(one_hot=True)
    a = b = c = d = np.zeros_like(world.start)
    for x in world.features:
        a, b = trace_step(a, x, 0.9), trace_step(b, x, 0.9, kind="dutch", step_size=0.0)
        c, d = (trace_step(c, x, 0.9, kind="replacing"), trace_step(d, x, 0.9, kind="dutch", step_size=1.0))
        np.testing.assert_allclose(a, b, **EXACT)
        np.testing.assert_allclose(c, d, **EXACT)
    assert a.max() > 1 >= c.max()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_libraries_do_not_matter(kind: str) -> None:
    """Rows together are each row alone, tensors are arrays, and under vmap a row needs no axis of its own."""
    world = World()
    place, how = world.step(7)
    trace = np.random.default_rng(0).normal(size=world.start.shape)
    together = td_lambda_step(world.start, trace, *place, **how, step_size=0.1, kind=kind)
    for s in range(ROWS):
        own = {name: value[s] for name, value in how.items()}
        alone = td_lambda_step(world.start[s], trace[s], *(x[s] for x in place), **own, step_size=0.1, kind=kind)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other[s], **EXACT)
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in (world.start, trace, *place, *how.values())]

    def step(w: Any, e: Any, x: Any, y: Any, r: Any, discount: Any, decay: Any) -> Any:
        return tuple(td_lambda_step(w, e, x, y, r, discount=discount, decay=decay, step_size=0.1, kind=kind))

    for found in (step(*tensors), torch.func.vmap(step)(*tensors)):
        for one, other in zip(found, together, strict=True):
            np.testing.assert_allclose(one.numpy(), other, **EXACT)


def test_numbers_decay_tensors_and_nothing_is_read_through_a_zero() -> None:
    broken, features = torch.full((2, 3), torch.nan), torch.ones(2, 3)
    torch.testing.assert_close(trace_step(broken, features, 0.0), features)
    torch.testing.assert_close(trace_step(features, features, 0.5), torch.full((2, 3), 1.5))
    assert linear_value(features, features).tolist() == [[3.0], [3.0]]
    with pytest.raises(ValueError, match="kind is 'fading'; expected 'accumulating' or 'replacing' or 'dutch'"):
        trace_step(features, features, 0.5, kind="fading")
