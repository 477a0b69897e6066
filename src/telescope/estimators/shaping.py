"""The reward-shaping view of advantages (Schulman et al. 2016, section 4): shaped rewards, response function.

Shaping is for rollouts; the response function is for a small world that is known exactly. Leaves out how to find a
potential.
"""

from types import ModuleType

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.pairs import residual
from telescope.estimators.steps import enter
from telescope.quiet import quiet


@quiet
def shaped_rewards(
    rewards: Array,
    potentials: Array,
    next_potentials: Array,
    *,
    terminated: Array | None,
    gamma: Array,
    mask: Array | None = None,
    differentiable: bool = False,
) -> Array:
    """Shaped reward r̃[t] = r[t] + γ (1 − terminated[t]) Φ(s'[t]) − Φ(s[t]) (Ng et al. 1999; Schulman 2016, eq. 20).

    The potential is 0 where an episode terminates. A truncated step keeps the potential of the state it reached. With Φ
    = v this is `td_error`, and GAE is its γλ-discounted sum. With values shifted by −Φ, `gae` of the shaped rewards is
    `gae` of the plain ones: shaping does not change advantages.

    Args:
        rewards: [T, *batch].
        potentials: Φ of the state in which each step was taken. The result has its dtype.
        next_potentials: Φ of the state it really led to. Not read where terminated. All else is as in `td_error`.
    """
    floats = {"rewards": rewards, "potentials": potentials, "next_potentials": next_potentials}
    flags = {"terminated": terminated}
    steps = enter(floats, flags, mask, {"gamma": gamma}, differentiable=differentiable)
    return steps.deliver(residual(steps))


@quiet
def response_function(transitions: Array, rewards: Array, policy: Array, *, lags: int) -> Array:
    """Response χ(l; s, a) = E[r[t+l] | s, a] − E[r[t+l] | s] (Schulman et al. 2016, eq. 26), exactly.

        q₀(s, a) = r(s, a),   qₗ(s, a) = Σ_s' P(s'|s, a) Σ_a' π(a'|s') qₗ₋₁(s', a')
        χ(l; s, a) = qₗ(s, a) − Σ_a' π(a'|s) qₗ(s, a')

    The response says how the action changes the reward l steps later. Its discounted sum Σ_l γ^l χ(l) is the advantage
    A^{π,γ}(s, a). So γ limits how late a response counts, and shaping that makes responses earlier allows a smaller γ.
    With rewards shaped by Φ = V^{π,γ} only χ(0) is not 0, and it is the advantage.

    Args:
        transitions: [S, A, S], P(s'|s, a). Where they sum to less than 1, the episode terminates with the remainder.
        rewards: [S, A], the expected reward of action a in state s.
        policy: [S, A], π(a|s).
        lags: number of lags, χ(0) … χ(lags − 1).

    Returns:
        [lags, S, A] in the dtype of `transitions` (float32 if that is half precision).
    """
    xp, p, q, pi = _entered(transitions, rewards, policy)
    lags = arrays.counted("lags", lags, "the number of lags from 0")
    responses = []
    for _ in range(lags):
        expected = (pi * q).sum(-1)
        responses.append(q - expected[:, None])
        q = xp.einsum("san,n->sa", p, expected)
    return xp.stack(responses)


def _entered(transitions: Array, rewards: Array, policy: Array) -> tuple[ModuleType, Array, Array, Array]:
    """The library, and the three arrays in working precision, after checks of shapes and probabilities."""
    xp = arrays.library("transitions", transitions)
    shape = tuple(transitions.shape)
    if len(shape) != 3 or shape[0] != shape[2]:
        raise ValueError(f"transitions has shape {shape}; expected (states, actions, states)")
    arrays.check_float("transitions", transitions)
    for name, array in (("rewards", rewards), ("policy", policy)):
        arrays.check_neighbour("transitions", transitions, name, array)
        arrays.check_shape(name, array, shape[:2], "states and actions of transitions are")
    rounding, dtype = 1e-2 if str(transitions.dtype).endswith("16") else 1e-4, arrays.working_dtype(transitions)
    transitions, rewards, policy = (
        arrays.to_dtype(name, array, dtype)
        for name, array in (("transitions", transitions), ("rewards", rewards), ("policy", policy))
    )
    _check_probabilities("transitions", transitions, rounding)
    _check_probabilities("policy", policy, rounding)
    if arrays.any_true(abs(policy.sum(-1) - 1) > rounding):
        raise ValueError("policy does not sum to 1 over the actions of every state; normalise it over its last axis")
    return xp, transitions, rewards, policy


def _check_probabilities(name: str, array: Array, rounding: float) -> None:
    good = (array >= 0) & (array.sum(-1)[..., None] <= 1 + rounding)
    if arrays.any_true(~good):  # NaN fails both
        raise ValueError(f"{name} holds negative numbers or NaN, or sums to more than 1 over its last axis")
