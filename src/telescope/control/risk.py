"""Weights of quantiles: how much a good and a bad outcome count in an advantage.

Leaves out the critic that predicts quantiles, and its loss.
"""

from __future__ import annotations


def risk_weights(kind: str, count: int) -> tuple[float, ...]:
    """The weights w of `count` equally likely quantiles in rising order, with sum 1.

        mean            1 / N each
        cvar:α          the mean of the lowest share α, with 0 < α ≤ 1; α = 1 is the mean
        asymmetric:η    (1 + η (1 − 2τ)) / N at level τ, with −1 ≤ η ≤ 1: the mean minus ½ η times the mean absolute
                        difference of two outcomes. η = 0 is the mean; η > 0 avoids risk, η < 0 looks for it

    Raises a ValueError that names `quantile_weights` for anything else.
    """
    name, colon, number = kind.partition(":")
    try:
        amount = float(number) if colon else None
    except ValueError:
        amount = None
    if kind == "mean":
        return (1 / count,) * count
    if name == "cvar" and amount is not None and 0 < amount <= 1:
        share = amount * count  # in quantiles
        return tuple((min(i + 1, share) - min(i, share)) / share for i in range(count))
    if name == "asymmetric" and amount is not None and -1 <= amount <= 1:
        return tuple((1 + amount * (1 - (2 * i + 1) / count)) / count for i in range(count))
    raise ValueError(
        f"quantile_weights is {kind!r}; expected mean, cvar:α with 0 < α <= 1 (such as cvar:0.25), or asymmetric:η "
        "with -1 <= η <= 1"
    )
