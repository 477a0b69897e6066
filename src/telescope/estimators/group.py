"""Credit across samples: each answer to a question is compared with the other answers, so no critic is needed.

Groups lie along the last axis, [..., G]. Leaves out credit through time; a sample is one number here.
"""

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.normalisation import entered, moments, whiten
from telescope.quiet import quiet


@quiet
def group_relative(
    rewards: Array,
    *,
    mask: Array | None = None,
    scale: bool = True,
    biased: bool = True,
    eps: float = 1e-8,
    differentiable: bool = False,
) -> Array:
    """Group-relative advantage A[i] = (r[i] − mean r) / (std r + eps) over each group (GRPO; Shao et al. 2024, 4.1.2).

    It is `whiten` over the last axis. Without `scale` (Dr. GRPO, Liu et al. 2025) it is r[i] − mean r, which is (n−1)/n
    times `leave_one_out`.

    Args:
        rewards: [..., G], G samples per group, in a floating point dtype.
        mask: of the same shape, True counts. A sample without a score gives 0, does not count and may be NaN.
        scale: divide by the standard deviation of the group.
        biased: compute the standard deviation with n (True) or with n − 1.
        eps: added to the standard deviation.
        differentiable: let gradients through (torch).

    Returns:
        An array like `rewards`; float32 if that is half precision. A group of one, or of equal rewards, gives 0.
    """
    _check_axis(rewards)
    arrays.check_switch("scale", scale)
    arrays.check_switch("biased", biased)
    arrays.check_not_negative("eps", eps)
    xp, numbers, live = entered("rewards", rewards, mask, differentiable)
    if scale:
        return whiten(numbers, mask=live, axis=-1, biased=biased, eps=eps, differentiable=differentiable)
    return 2 * moments(xp, numbers, live, (rewards.ndim - 1,)).distances


@quiet
def leave_one_out(rewards: Array, *, mask: Array | None = None, differentiable: bool = False) -> Array:
    """Leave-one-out advantage A[i] = r[i] − the mean of the others (RLOO; Kool et al. 2019, Ahmadian et al. 2024).

    The baseline does not depend on its own sample, so the policy gradient stays unbiased. It equals
    n/(n−1) (r[i] − mean r), and is computed this way: `group_relative` without `scale`, times n/(n−1).

    Arguments, result and errors are as in `group_relative`. A group of one gives 0.
    """
    _check_axis(rewards)
    xp, numbers, live = entered("rewards", rewards, mask, differentiable)
    found = moments(xp, numbers, live, (rewards.ndim - 1,))
    return found.distances * (2 * found.n / (found.n - 1).clip(1))


def _check_axis(rewards: Array) -> None:
    if arrays.library("rewards", rewards) and rewards.ndim == 0:
        raise ValueError("rewards has shape (); expected [..., G], the samples of a group along the last axis")
