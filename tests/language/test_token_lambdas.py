"""Rules for λ on tokens: `lam_rule` and `returns_lam` of an objective with a critic, against loops over completions.

Leaves out the rules themselves (`tests/estimators/test_lambdas.py`), and that each field of a config acts.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from telescope.algorithms import rlhf
from telescope.objectives.advantages import critic_advantages
from telescope.objectives.rows import PPO, describe

MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1]]).bool()
PROBABILITIES = torch.tensor(
    [[0.1, 0.9, 0.15, 0.5, 0.9, 0.01], [0.9, 0.19, 0, 0, 0, 0], [0.3, 0.01, 0.1, 0.2, 0.05, 0.7]]
).double()
ROW = replace(PPO, gamma=0.9, lam=0.8, beta=0.0)


def credit(objective: Any, **more: Any) -> Any:
    random = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 6, generator=random, dtype=torch.float64) for _ in range(2))
    more = {"terminated": torch.tensor([True, False, True]), "log_probs": PROBABILITIES.log(), **more}
    final = torch.tensor([9.0, 0.5, 9.0], dtype=torch.float64)
    return (rewards, values, final), critic_advantages(objective, rewards, values, MASK, final_values=final, **more)


def plain(arrays: Any, lam_of: Any) -> np.ndarray:
    """GAE of each completion by itself, with a λ for each of its tokens."""
    rewards, values, final = (x.numpy() for x in arrays)
    result = np.zeros(rewards.shape)
    for i, mask in enumerate(MASK.numpy()):
        [places] = np.nonzero(mask)
        lams, ahead, ahead_value = lam_of(i, places), 0.0, final[i] if i == 1 else 0.0
        for k, t in reversed(list(enumerate(places))):
            ahead = (
                rewards[i, t] + 0.9 * ahead_value - values[i, t] + (0.9 * lams[k] * ahead if k + 1 < len(places) else 0)
            )
            result[i, t], ahead_value = ahead, values[i, t]
    return result


def constant(lam: float) -> Any:
    return lambda i, places: [lam] * len(places)


def corrected(i: int, places: np.ndarray) -> list[float]:
    left = [len(places) - k for k in range(len(places))]
    return [0.8 * (1 - 0.8 ** (n - 1)) / (1 - 0.8**n) for n in left]


def by_length(i: int, places: np.ndarray) -> list[float]:
    return [max(0.0, 1 - 1 / (0.45 * len(places)))] * len(places)


def by_segment(i: int, places: np.ndarray) -> list[float]:
    """λ where the next token was improbable."""
    following = [float(PROBABILITIES[i, t]) for t in places[1:]]
    return [0.8 if p < 0.2 else 1.0 for p in following] + [1.0]


RULES = {
    "constant": ({}, constant(0.8)),
    "end_corrected": ({}, corrected),
    "length_adaptive": ({"lam_alpha": 0.45}, by_length),
    "per_segment": ({}, by_segment),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_over_completions_one_by_one(rule: str) -> None:
    settings, lam_of = RULES[rule]
    arrays, found = credit(replace(ROW, lam_rule=rule, **settings))
    expected = plain(arrays, lam_of)
    np.testing.assert_allclose(found.advantages, expected, atol=1e-12)
    np.testing.assert_allclose(found.returns, np.where(MASK, expected + arrays[1].numpy(), 0), atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_targets_may_have_a_lambda_of_their_own(rule: str) -> None:
    settings, lam_of = RULES[rule]
    arrays, found = credit(replace(ROW, lam_rule=rule, returns_lam=1.0, **settings))
    np.testing.assert_allclose(found.advantages, plain(arrays, lam_of), atol=1e-12)
    sampled = np.where(MASK, plain(arrays, constant(1.0)) + arrays[1].numpy(), 0)
    np.testing.assert_allclose(found.returns, sampled, atol=1e-12)


def test_borders_follow_their_probability() -> None:
    for border, lam in (1e-9, 1.0), (1.0, 0.8):
        arrays, found = credit(replace(ROW, lam_rule="per_segment", lam_border=border))
        np.testing.assert_allclose(found.advantages, plain(arrays, constant(lam)), atol=1e-12)


def test_masked_probabilities_are_not_read() -> None:
    spoilt = torch.where(MASK, PROBABILITIES.log(), torch.nan)
    objective = replace(ROW, lam_rule="per_segment")
    assert torch.equal(credit(objective, log_probs=spoilt)[1].advantages, credit(objective)[1].advantages)


def test_segments_need_the_probabilities() -> None:
    with pytest.raises(ValueError, match='log_probs is None, but lam_rule is "per_segment"'):
        credit(replace(ROW, lam_rule="per_segment"), log_probs=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam_alpha": 0.0}, "lam_alpha is 0.0; expected a number above 0"),
        ({"lam_border": 0.0}, "lam_border is 0.0; expected a probability above 0"),
        ({"lam_border": 1.5}, "lam_border is 1.5"),
        ({"returns_lam": -0.5}, "returns_lam is -0.5"),
        ({"lam_rule": "per_turn"}, "lam_rule is"),
    ],
)
def test_columns_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PPO, **change)


def test_a_run_says_its_rule() -> None:
    texts = [describe(replace(ROW, lam_rule=rule, **settings)) for rule, (settings, _) in RULES.items()]
    assert "γ = 0.9, λ = 0.8; whitened" in texts[0]
    assert "λ = 1 − 1 / (0.45 · length)" in texts[2]
    assert "0.2" in texts[3]
    assert "λ = 0.8, 1 for its targets" in describe(replace(ROW, returns_lam=1.0))
    assert len({*texts}) == len(texts)


def test_the_config_describes_its_row() -> None:
    config = rlhf.RLHF(lam_rule="length_adaptive", lam_alpha=0.3, returns_lam=1.0)
    objective = rlhf.row(config)
    assert (objective.lam_rule, objective.lam_alpha, objective.returns_lam) == ("length_adaptive", 0.3, 1.0)
    assert rlhf.row(rlhf.RLHF()) == rlhf.row(rlhf.RLHF(lam_rule="constant"))
