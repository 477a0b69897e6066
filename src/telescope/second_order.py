"""Second-order steps as pure functions: curvature products, conjugate gradient, steps within a trust region.

A product of a matrix with a vector stands for the matrix, which is never formed. Vectors are [P] of one agent, or
[..., P] of several at once; each agent then stops by itself. Leaves out what is minimised, and the loop of training.
"""

# P parameters of one agent, N samples, K outputs of the network for a sample
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""product(v) → A v, for a symmetric positive definite matrix A and vectors [..., P]"""
Measure = Callable[[Tensor], tuple[Tensor, Tensor]]
"""measure(parameters [..., P]) → the loss there, and the distance from the old parameters; [...] each"""


def gauss_newton_product(
    outputs: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], vector: Tensor, direction: Tensor
) -> Tensor:
    """Jᵀ M J v for one agent: J is the Jacobian of `outputs` at `vector`, M the Hessian of `loss` at these outputs.

    It is the Hessian of loss(outputs(vector)) without the curvature of the outputs (Schraudolph 2002, section 3). Where
    the loss has no gradient it is the whole Hessian: with the KL divergence from the present policy it is the Fisher
    matrix (Schulman et al. 2015, appendix C).

    Args:
        outputs: vector [P] → [N, K] or [N].
        loss: outputs → a number.
        vector: [P], the point.
        direction: [P], v.
    """
    here, tangent = torch.func.jvp(outputs, (vector,), (direction,))  # type: ignore[misc]
    _, curved = torch.func.jvp(torch.func.grad(loss), (here,), (tangent,))  # type: ignore[misc]
    _, pull = torch.func.vjp(outputs, vector)  # type: ignore[misc]
    return pull(curved)[0]  # type: ignore[no-any-return]


class Solution(NamedTuple):
    """What `conjugate_gradient` found."""

    x: Tensor  # [..., P]
    curvature: Tensor  # [..., 1] xᵀAx
    residual: Tensor  # [...] ‖b − A x‖ / ‖b‖
    iterations: Tensor  # [...] the products that each agent has used


def conjugate_gradient(
    product: Product, b: Tensor, *, iterations: int, damping: float = 0.0, tolerance: float = 0.0
) -> Solution:
    """Solve (A + λI) x = b by conjugate gradients from x = 0 (Hestenes & Stiefel 1952).

    Each agent stops when ‖b − (A + λI) x‖ ≤ tolerance · ‖b‖, after `iterations` products, or where the curvature along
    its direction is not positive. Its x then stays, whatever the others do. The loop ends when all have stopped.

    Args:
        product: v → A v.
        b: [..., P].
        iterations: the most products.
        damping: λ. The `curvature` of the result includes it.
        tolerance: relative to ‖b‖.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = first = dot(b, b)  # [..., 1]
    used, going = torch.zeros_like(first), first > 0
    for _ in range(iterations):
        if not going.any():
            break
        image = product(direction) + damping * direction
        along = dot(direction, image)
        step = squared / along
        going = going & (along > 0) & torch.isfinite(step)
        x = torch.where(going, x + step * direction, x)
        residual = torch.where(going, residual - step * image, residual)
        used = used + going
        before, squared = squared, torch.where(going, dot(residual, residual), squared)
        going = going & (squared > tolerance**2 * first)
        direction = torch.where(going, residual + squared / before * direction, direction)
    relative = torch.where(first > 0, (squared / first).sqrt(), 0.0)
    return Solution(x, dot(x, b - residual), relative[..., 0], used[..., 0])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """aᵀb of each agent, [..., P] → [..., 1]."""
    return (a * b).sum(-1, keepdim=True)


def step_to_the_edge(solution: Solution, radius: float) -> Tensor:
    """x √(2δ / xᵀAx): the step [..., P] along x whose quadratic distance ½ sᵀAs is δ; 0 where x is 0.

    With the Fisher matrix it is the natural gradient's step (Kakade 2001) as Rajeswaran et al. 2017 (arXiv 1703.02660,
    equation 5) and TRPO normalise it.
    """
    return scaled(solution.x, torch.sqrt(2 * radius / solution.curvature))


def step_of_least_squares(solution: Solution, gradient: Tensor, radius: Tensor, *, damping: float) -> Tensor:
    """The step [..., P] along x that minimises gᵀs + ½ sᵀAs while ½ sᵀAs ≤ δ, for (A + λI) x = −g.

    The GAE paper's fit of a value function (Schulman et al. 2016, arXiv 1506.02438, equations 29 and 30) with
    A = JᵀJ / N. Objective and distance have the same matrix, so without damping this is the exact optimum of both.

    Args:
        solution: of `conjugate_gradient` with this damping.
        gradient: g, [..., P].
        radius: δ, [..., 1].
        damping: λ, which counts neither in the objective nor in the distance.
    """
    curvature = solution.curvature - damping * dot(solution.x, solution.x)  # xᵀAx
    scale = torch.minimum(-dot(gradient, solution.x) / curvature, torch.sqrt(2 * radius / curvature))
    return scaled(solution.x, scale)


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """scale · x, and 0 where the scale is not a positive finite number: a vector without curvature has no length."""
    return torch.where((scale > 0) & torch.isfinite(scale), scale * x, 0.0)


class Search(NamedTuple):
    """What `line_search` found."""

    parameters: Tensor  # [..., P]
    fraction: Tensor  # [...] of the step that was taken; 0 where the parameters stay as they were
    loss: Tensor  # [...] at these parameters
    distance: Tensor  # [...] from the old parameters


def line_search(
    measure: Measure, old: Tensor, step: Tensor, loss: Tensor, *, radius: float, shrink: float, attempts: int
) -> Search:
    """The largest of the steps 1, c, c², … times `step` with a lower loss and a distance of at most δ, per agent.

    Where no attempt succeeds, the parameters are the old ones, bit for bit.

    Args:
        measure: parameters [..., P] → their loss and their distance from the old ones, [...] each.
        old, step: [..., P].
        loss: [...], at the old parameters.
        radius: δ.
        shrink: c, below 1.
        attempts: the number of steps to try. 0 takes the whole step, whatever it leads to.
    """
    if attempts == 0:
        return Search(old + step, torch.ones_like(loss), *measure(old + step))
    none = torch.zeros_like(loss)
    found, factor = Search(old, none, loss, none), 1.0
    for _ in range(attempts):
        candidate = old + factor * step
        new_loss, distance = measure(candidate)
        good = (found.fraction == 0) & (new_loss < loss) & (distance <= radius)  # False where NaN
        tried = Search(candidate, torch.full_like(loss, factor), new_loss, distance)
        found = Search(
            *(
                torch.where(good.reshape(good.shape + (1,) * (a.ndim - good.ndim)), a, b)
                for a, b in zip(tried, found, strict=True)
            )
        )
        if (found.fraction > 0).all():
            break
        factor *= shrink
    return found
