"""The gallery of mistakes: docs/mistakes.md says what the doctor says, and the effects are those stated."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from telescope.lab import gallery, worlds
from telescope.lab.doctor import examine
from telescope.lab.mdp import optimal_policy, truth
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


def test_what_is_learned_with_a_mistake_is_what_the_page_says():
    """The right advantages gain nearly all; those that bootstrap wrongly at a time limit gain far less."""
    gained = {mistake.plant: gallery.learned(mistake, 0) for mistake in gallery.MISTAKES}
    assert gained[gallery.right] > 0.9
    for plant in (gallery.limit_as_end, gallery.reset_value, gallery.late_flags):
        assert gained[plant] < 0.7
    for plant in (gallery.double_bootstrap, gallery.another_rollout):
        assert gained[plant] < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_the_optimal_policy_is_the_best_of_all_of_them(seed):
    world = worlds.garnet(np.random.default_rng(seed), states=4, actions=3, ending=0.1)
    best = truth(world, optimal_policy(world, 0.9), 0.9).values
    every = itertools.product(range(world.actions), repeat=world.states)
    values = [truth(world, np.eye(world.actions)[list(actions)], 0.9).values for actions in every]
    np.testing.assert_allclose(best, np.max(values, 0), rtol=1e-9)
