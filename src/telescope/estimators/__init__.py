"""Estimators: pure functions of arrays that turn a rollout into the numbers that a loss needs.

They know nothing of losses, environments, models or configuration.
"""

from telescope.estimators.distributional import DistributionalAdvantages, distributional_gae
from telescope.estimators.group import group_relative, leave_one_out
from telescope.estimators.lambdas import (
    Turns,
    end_corrected,
    from_explained_variance,
    length_adaptive,
    per_segment,
    per_turn,
)
from telescope.estimators.normalisation import whiten
from telescope.estimators.offpolicy import VTrace, retrace, vtrace
from telescope.estimators.shaping import response_function, shaped_rewards
from telescope.estimators.temporal import (
    Advantages,
    discounted_return,
    gae,
    lambda_return,
    next_values,
    td_error,
)
from telescope.estimators.traces import dutch_trace, eligibility_trace, true_online_td
from telescope.estimators.windows import k_step_advantage, n_step_return

__all__ = [
    "Advantages",
    "DistributionalAdvantages",
    "Turns",
    "VTrace",
    "discounted_return",
    "distributional_gae",
    "dutch_trace",
    "eligibility_trace",
    "end_corrected",
    "from_explained_variance",
    "gae",
    "group_relative",
    "k_step_advantage",
    "lambda_return",
    "leave_one_out",
    "length_adaptive",
    "n_step_return",
    "next_values",
    "per_segment",
    "per_turn",
    "response_function",
    "retrace",
    "shaped_rewards",
    "td_error",
    "true_online_td",
    "vtrace",
    "whiten",
]
