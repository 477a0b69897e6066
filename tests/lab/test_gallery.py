"""The gallery of mistakes: docs/mistakes.md says what the doctor says, and the effects are those stated."""

from pathlib import Path

import pytest

from telescope.lab import gallery
from telescope.lab.doctor import examine
from telescope.lab.study import measure

PAGE = (Path(__file__).parents[2] / "docs/mistakes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def few():
    return gallery.world_of_limits(gallery.FEW)


@pytest.mark.parametrize("mistake", gallery.MISTAKES, ids=lambda mistake: mistake.plant.__name__)
def test_the_page_says_what_the_doctor_says(mistake, few):
    """Word by word but for the last digits of a residual, which depend on the processor."""
    found = examine(gallery.rollout_of(few, mistake.plant(few))).findings
    assert len(found) == (mistake.plant is not gallery.right)
    assert mistake.name in PAGE
    for finding in found:
        assert finding.text.partition(" This explains")[0] in PAGE


def test_the_effects_are_those_of_the_page():
    here = gallery.world_of_limits(4000)
    bias = {}
    for mistake in gallery.MISTAKES:
        found = measure(here, mistake.plant(here).advantages)
        bias[mistake.plant] = found.gradient_bias, found.gradient_bias_error
    for plant in (gallery.right, gallery.trace_over_reset, gallery.other_lam):  # noise alone, with the exact V
        assert bias[plant][0] < 4 * bias[plant][1]
    for plant in (gallery.another_rollout, gallery.step_abandoned):
        assert bias[plant][0] > 3 * bias[plant][1]
    assert bias[gallery.another_rollout][0] > 0.9  # nothing of the gradient is left
