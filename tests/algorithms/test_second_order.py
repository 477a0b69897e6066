"""Second-order steps against dense algebra: products, conjugate gradient, lengths of steps, the line search.

Leaves out their use in training (`test_trpo.py`).
"""

import math

import pytest
import torch

from telescope.second_order import (
    Solution,
    conjugate_gradient,
    gauss_newton_product,
    line_search,
    step_of_least_squares,
    step_to_the_edge,
)


def positive(size, seed=0, *, spread=3.0):
    """A symmetric positive definite matrix in double precision, with a condition number of exp(spread)."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(0, spread, size, dtype=torch.float64).exp()) @ q.T


def vector(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Products


def test_a_product_is_that_of_the_dense_matrix():
    inputs, weights = vector(7, 3, seed=1), vector(7, seed=2).abs()

    def outputs(x):
        return torch.tanh(inputs @ x.reshape(3, 2))

    def loss(y):
        return (weights[:, None] * torch.cosh(y)).sum()

    x, v = vector(6, seed=3), vector(6, seed=4)
    jacobian = torch.func.jacrev(outputs)(x).reshape(14, 6)
    hessian = torch.func.hessian(loss)(outputs(x)).reshape(14, 14)
    torch.testing.assert_close(gauss_newton_product(outputs, loss, x, v), jacobian.T @ hessian @ jacobian @ v)


def test_a_product_is_the_whole_hessian_where_the_loss_is_flat():
    inputs, x, v = vector(7, 3, seed=1), vector(6, seed=3), vector(6, seed=4)

    def outputs(x):
        return torch.tanh(inputs @ x.reshape(3, 2))

    old = outputs(x)

    def loss(y):
        return ((y - old) ** 2).mean() + ((y - old) ** 3).sum()

    whole = torch.func.hessian(lambda x: loss(outputs(x)))(x)
    torch.testing.assert_close(gauss_newton_product(outputs, loss, x, v), whole @ v)


# Conjugate gradient


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_conjugate_gradient_finds_the_dense_solution(damping):
    a, b = positive(12), vector(12)
    found = conjugate_gradient(lambda v: a @ v, b, iterations=12, damping=damping)
    damped = a + damping * torch.eye(12, dtype=torch.float64)
    wanted = torch.linalg.solve(damped, b)
    torch.testing.assert_close(found.x, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.curvature[0], wanted @ damped @ wanted)


def test_residual_and_curvature_are_those_of_a_solution_that_is_not_yet_there():
    a, b = positive(30, spread=5.0), vector(30)
    found = conjugate_gradient(lambda v: a @ v, b, iterations=5)
    assert found.iterations == 5
    assert found.residual > 1e-3
    torch.testing.assert_close(found.residual, (b - a @ found.x).norm() / b.norm())
    torch.testing.assert_close(found.curvature[0], found.x @ a @ found.x)


def test_each_agent_stops_by_itself():
    """One is done after one product, one after its tolerance, one has nothing to do; each has what it has alone."""
    matrices = torch.stack([torch.eye(24, dtype=torch.float64) * 3, positive(24, spread=1.0), positive(24, 1)] * 2)
    b = vector(6, 24)
    b[3] = 0
    product = lambda v: (matrices @ v[..., None])[..., 0]  # noqa: E731
    found = conjugate_gradient(product, b, iterations=20, tolerance=1e-3)
    assert found.iterations.tolist()[:4] == [1, found.iterations[1], found.iterations[2], 0]
    assert 1 < found.iterations[1] < found.iterations[2]
    assert (found.residual <= 1e-3).all()
    for s in range(6):
        alone = conjugate_gradient(lambda v, s=s: matrices[s] @ v, b[s], iterations=20, tolerance=1e-3)
        torch.testing.assert_close(found.x[s], alone.x)
        assert found.iterations[s] == alone.iterations
        torch.testing.assert_close(found.curvature[s], alone.curvature)


def test_the_loop_ends_when_all_have_stopped():
    calls = []

    def product(v):
        calls.append(1)
        return 2 * v

    conjugate_gradient(product, vector(3, 4), iterations=50, tolerance=1e-6)
    assert len(calls) == 1


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan, math.inf])
def test_a_direction_without_positive_curvature_leaves_x_as_it_is(bad):
    b = vector(2, 4)
    scale = torch.tensor([[2.0], [bad]], dtype=torch.float64)
    found = conjugate_gradient(lambda v: scale * v, b, iterations=3)
    torch.testing.assert_close(found.x[0], b[0] / 2)
    assert not found.x[1].any()


# Lengths


def test_a_step_to_the_edge_has_the_quadratic_distance():
    a, b = positive(9), vector(9)
    step = step_to_the_edge(conjugate_gradient(lambda v: a @ v, b, iterations=9), 0.03)
    torch.testing.assert_close(0.5 * step @ a @ step, torch.tensor(0.03, dtype=torch.float64))
    assert step @ b > 0


def test_without_a_gradient_there_is_no_step():
    zeros = torch.zeros(2, 4)
    solution = conjugate_gradient(lambda v: v, zeros, iterations=3)
    assert not step_to_the_edge(solution, 0.01).any()
    assert not step_of_least_squares(solution, zeros, torch.ones(2, 1), damping=0.1).any()


@pytest.mark.parametrize("damping", [0.0, 0.2, 3.0])
@pytest.mark.parametrize("radius", [0.1, 1e3])
def test_a_step_of_least_squares_is_the_best_along_its_direction(damping, radius):
    a, g = positive(9), vector(9)
    solution = conjugate_gradient(lambda v: a @ v, -g, iterations=9, damping=damping)
    step = step_of_least_squares(solution, g, torch.tensor([radius], dtype=torch.float64), damping=damping)
    lengths = torch.linspace(0, 20, 200_001, dtype=torch.float64)
    slope, curvature = g @ solution.x, solution.x @ a @ solution.x
    change = lengths * slope + 0.5 * lengths**2 * curvature
    allowed = 0.5 * lengths**2 * curvature <= radius
    wanted = lengths[torch.where(allowed, change, math.inf).argmin()] * solution.x
    torch.testing.assert_close(step, wanted, rtol=2e-3, atol=1e-6)


# Line search


def bowl(x):
    """The loss (x − 1)² of one number, and the distance |x| from 0."""
    return ((x - 1) ** 2)[..., 0], x.abs()[..., 0]


def search(step, *, radius=10.0, attempts=4, measure=bowl):
    old = torch.zeros_like(step)
    return line_search(measure, old, step, measure(old)[0], radius=radius, shrink=0.5, attempts=attempts)


def test_it_takes_the_first_step_that_is_better_and_near_enough():
    steps = torch.tensor([[1.5], [3.0], [-1.0], [40.0], [8.0]])
    found = search(steps)
    assert found.fraction.tolist() == [1.0, 0.5, 0.0, 0.0, 0.125]  # 3 → 1.5; 40, 20, 10, 5 are all worse than 0
    torch.testing.assert_close(found.parameters[:, 0], torch.tensor([1.5, 1.5, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(found.loss, (found.parameters[:, 0] - 1) ** 2)
    torch.testing.assert_close(found.distance, found.parameters[:, 0].abs())
    assert search(steps, radius=1.0).fraction.tolist() == [0.5, 0.25, 0.0, 0.0, 0.125]


def test_a_failed_search_leaves_the_parameters_bit_for_bit():
    old = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 1e-3
    step = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 1e6

    def measure(x):
        worse = torch.tensor([1.0, math.nan, 0.0])  # at 0 the loss is not lower either
        return worse, torch.zeros(3)

    found = line_search(measure, old, step, torch.zeros(3), radius=1.0, shrink=0.5, attempts=5)
    assert torch.equal(found.parameters, old)
    assert found.fraction.tolist() == [0, 0, 0]
    assert found.distance.tolist() == [0, 0, 0]


def test_it_stops_asking_when_all_have_a_step():
    asked = []

    def measure(x):
        asked.append(x)
        return bowl(x)

    search(torch.tensor([[1.5], [3.0]]), measure=measure)
    assert len(asked) == 1 + 2


def test_without_attempts_the_whole_step_is_taken():
    found = search(torch.tensor([[3.0], [-1.0]]), attempts=0, radius=0.1)
    assert found.parameters[:, 0].tolist() == [3, -1]
    assert found.fraction.tolist() == [1, 1]
    assert found.loss.tolist() == [4, 4]


def test_a_solution_of_one_agent_has_no_other_axis():
    solution = conjugate_gradient(lambda v: 2 * v, vector(4), iterations=2)
    assert isinstance(solution, Solution)
    assert solution.x.shape == (4,)
    assert solution.iterations.shape == solution.residual.shape == ()
