"""Estimators: pure functions of arrays, from a rollout to the numbers a loss needs.

They know neither losses nor environments, models or configuration.
"""

from telescope.estimators.normalisation import whiten
from telescope.estimators.temporal import (
    Advantages,
    discounted_return,
    gae,
    lambda_return,
    next_values,
    td_error,
)

__all__ = ["Advantages", "discounted_return", "gae", "lambda_return", "next_values", "td_error", "whiten"]
