"""What the study shows, as laws: biases within four standard errors of what theory says."""

import numpy as np
import pytest

from telescope.lab import demonstrations, worlds
from telescope.lab.mdp import softmax, truth
from telescope.lab.study import ESTIMATORS, LAMBDAS, VALUES, case, gae, gradients, measure, study, value_function

RNG = np.random.default_rng
ROLLOUTS = 3000


def world_and_policy(seed=1, **options):
    rng = RNG(seed)
    world = worlds.garnet(rng, states=8, ending=0.05, **({"time_limit": 15} | options))
    return world, softmax(rng.normal(size=(world.states, world.actions)))


def cases(kind, **options):
    world, policy = world_and_policy()
    return case(world, policy, gamma=0.9, kind=kind, rng=RNG(2), steps=32, **({"rollouts": ROLLOUTS} | options))


@pytest.mark.parametrize("kind", VALUES)
def test_at_lambda_1_the_gradient_is_right_whatever_the_values_are(kind):
    found = measure(cases(kind), gae(cases(kind), 1.0))
    assert found.gradient_bias < 4 * found.gradient_bias_error


@pytest.mark.parametrize("lam", LAMBDAS)
def test_with_exact_values_every_lambda_is_right(lam):
    found = measure(cases("exact"), gae(cases("exact"), lam))
    assert found.gradient_bias < 4 * found.gradient_bias_error
    assert found.bias < 0.1


@pytest.mark.parametrize("kind", ["fitted", "noisy", "stale"])
def test_below_1_wrong_values_bias_the_gradient_and_less_the_larger_lambda_is(kind):
    here = cases(kind)
    found = [measure(here, gae(here, lam)) for lam in (0.0, 0.6, 0.9)]
    assert found[0].gradient_bias > 4 * found[0].gradient_bias_error
    biases, noises = [one.gradient_bias for one in found], [one.gradient_deviation for one in found]
    assert biases == sorted(biases, reverse=True)
    assert noises == sorted(noises)


@pytest.mark.parametrize(
    "row", [row for row in ESTIMATORS if row.name in ("whole return", "reward to go", "reward to go − V")]
)
def test_weights_that_trust_no_value_function_are_unbiased(row):
    here = cases("exact")
    found = measure(here, row.estimate(here, 0))
    assert found.gradient_bias < 4 * found.gradient_bias_error


def test_fewer_unneeded_rewards_and_a_baseline_make_less_noise():
    here = cases("exact")
    noises = {row.name: measure(here, row.estimate(here, row.tried[0])).gradient_deviation for row in ESTIMATORS}
    assert (
        noises["whole return"]
        > noises["reward to go"]
        > noises["reward to go − V"]
        > noises["TD residual"]
        > noises["Q − V"]
    )


def test_rows_that_are_the_same_estimator_agree():
    here = cases("noisy")
    by_name = {row.name: row.estimate for row in ESTIMATORS}
    np.testing.assert_allclose(by_name["GAE"](here, 0.7), by_name["λ-return − V"](here, 0.7), atol=1e-9)
    np.testing.assert_allclose(by_name["GAE"](here, 0.7), by_name["distributional GAE"](here, 0.7), atol=1e-9)
    np.testing.assert_allclose(by_name["GAE"](here, 0.0), by_name["TD residual"](here, 0), atol=1e-9)
    np.testing.assert_allclose(by_name["GAE"](here, 1.0), by_name["k steps"](here, 1000), atol=1e-9)
    np.testing.assert_allclose(by_name["GAE"](here, 1.0), by_name["reward to go − V"](here, 0), atol=1e-9)


def test_the_gradient_is_the_sum_over_steps():
    here = cases("noisy", rollouts=4)
    estimate = RNG(0).normal(size=here.samples.states.shape)
    off, right = gradients(here, estimate)
    for b in range(4):
        total, exact = np.zeros((2, here.world.states, here.world.actions))
        for t in range(32):
            s, a = here.samples.states[t, b], here.samples.actions[t, b]
            total[s] += (np.eye(here.world.actions)[a] - here.policy[s]) * estimate[t, b]
            exact[s] += here.policy[s] * here.truth.advantages[s]
        np.testing.assert_allclose(right[b], exact.ravel() / 32, atol=1e-12)
        np.testing.assert_allclose(off[b], (total - exact).ravel() / 32, atol=1e-12)


def test_bias_and_variance_add_up():
    found = measure(cases("stale"), gae(cases("stale"), 0.5))
    assert found.error**2 == pytest.approx(found.bias**2 + found.deviation**2, rel=0.02)


def test_noise_of_the_measurement_is_no_bias():
    """With few rollouts, means of a state and action are off by chance: by the deviation of their few samples."""
    here = cases("exact", rollouts=30)
    found = measure(here, gae(here, 1.0))
    pairs = len(np.unique(here.samples.states * here.world.actions + here.samples.actions))
    assert found.bias < 0.5 * found.deviation * (pairs / here.samples.states.size) ** 0.5


def test_off_policy_corrections_without_a_clip_are_unbiased_and_a_clip_costs():
    world, policy = world_and_policy()
    behaviour = (policy + 1 / world.actions) / 2
    here = case(world, policy, gamma=0.9, kind="exact", rng=RNG(3), steps=32, rollouts=ROLLOUTS, behaviour=behaviour)
    from telescope.lab.study import vtrace

    free, clipped = (measure(here, vtrace(here, clip)) for clip in (1e9, 0.5))
    assert free.gradient_bias < 4 * free.gradient_bias_error
    assert clipped.gradient_bias > 10 * clipped.gradient_bias_error
    assert clipped.gradient_deviation < free.gradient_deviation


def test_mistakes_at_time_limits_do_not_go_away_with_data():
    world, policy = world_and_policy(time_limit=3)
    here = case(world, policy, gamma=0.95, kind="exact", rng=RNG(4), steps=32, rollouts=4 * ROLLOUTS)
    found = {name: measure(here, estimate(here, 0.9)) for name, estimate in demonstrations.MISTAKES.items()}
    right = found["as it should be"]
    assert right.gradient_bias < 4 * right.gradient_bias_error
    for name in ("time limit as an end", "value of the reset state"):
        assert found[name].gradient_bias > 6 * found[name].gradient_bias_error, name
    # a trace over the reset adds advantages of an episode that the action cannot change: noise alone, with exact values
    leaking = found["trace over the reset"]
    assert leaking.gradient_bias < 4 * leaking.gradient_bias_error
    assert leaking.gradient_deviation > right.gradient_deviation


def test_the_first_response_to_rewards_shaped_by_v_is_the_advantage_and_there_is_no_other():
    world, policy = world_and_policy()
    plain, shaped = demonstrations.responses(world, policy, 0.9, lags=200)
    advantages = np.abs(truth(world, policy, 0.9).advantages[~world.terminal]).mean()
    assert shaped[0] == pytest.approx(advantages)
    assert shaped[1:].max() < 1e-12
    assert plain[1] > 0.01 * plain[0]


def test_a_baseline_of_the_turn_where_a_sample_stopped_pays_for_further_turns():
    for stop in (0.8, 1.0, 2.0):
        found = demonstrations.two_turns(RNG(5), stop=stop)
        assert found.right == pytest.approx(0.25 * (0.5 - stop))
        assert abs(found.group - found.right) < 4 * found.noise
        assert abs(found.per_turn) < 4 * found.noise  # as if both ways were worth the same


def test_value_functions_are_as_wrong_as_they_say():
    world, policy = world_and_policy()
    right = truth(world, policy, 0.9).values
    for kind in VALUES:
        values = value_function(kind, world, policy, 0.9, RNG(0))
        assert (values[world.terminal] == 0).all()
        assert np.allclose(values, right) == (kind == "exact")
    with pytest.raises(ValueError, match="kind is 'perfect'"):
        value_function("perfect", world, policy, 0.9, RNG(0))


def test_the_command_writes_a_picture_and_a_table(tmp_path, capsys):
    from telescope.cli import main

    assert main(["lab", "study", "--rollouts", "30", "--steps", "8", "--out", str(tmp_path / "study")]) == 0
    printed = capsys.readouterr().out
    assert "reward to go − V" in printed
    lines = (tmp_path / "study" / "study.csv").read_text(encoding="utf-8").splitlines()
    world, policy = world_and_policy()
    assert len(lines) - 1 == len(study(world, policy, steps=4, rollouts=30))
    assert (tmp_path / "study" / "study.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab"], "telescope lab needs a word"),
        (["lab", "nothing"], "telescope lab knows study, explore, gae-paper, got nothing"),
        (["lab", "study", "--rollouts", "3"], "rollouts is 3; expected at least 25"),
        (["lab", "study", "--gamma", "1.5"], "gamma is 1.5; expected a number from 0 on and below 1"),
    ],
)
def test_what_cannot_be_studied_is_said(arguments, message, capsys):
    from telescope.cli import main

    assert main(arguments) == 2
    assert message in capsys.readouterr().err
