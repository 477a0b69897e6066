"""Running statistics against NumPy's over everything seen so far."""

import numpy as np

from telescope.control.experience.normalisation import ObservationNormaliser, RewardScaler, RunningMoments


def test_moments_are_those_of_everything_seen():
    rng = np.random.default_rng(0)
    moments, seen = RunningMoments(2, (3,)), []
    for scale in (1.0, 5.0, 0.1):
        batch = rng.normal(2.0, scale, (2, 50, 3))
        moments.update(batch)
        seen.append(batch)
    everything = np.concatenate(seen, axis=1)
    # the pseudo-count of 1e-4 among 150 samples moves the result by less than 1e-5
    np.testing.assert_allclose(moments.mean, everything.mean(1), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, everything.var(1), rtol=1e-4)


def test_masked_entries_do_not_count():
    rng = np.random.default_rng(1)
    batch, mask = rng.normal(size=(2, 40, 3)), rng.random((2, 40)) < 0.6
    masked, picked = RunningMoments(2, (3,)), RunningMoments(1, (3,))
    masked.update(np.where(mask[..., None], batch, np.nan), mask)
    picked.update(batch[0, mask[0]][None])
    np.testing.assert_allclose(masked.mean[0], picked.mean[0])
    np.testing.assert_allclose(masked.variance[0], picked.variance[0])


def test_normalised_observations_have_no_mean_and_unit_variance_and_a_bound():
    rng = np.random.default_rng(2)
    normaliser = ObservationNormaliser(1, (2,), enabled=True, clip=3.0)
    for _ in range(20):
        batch = rng.normal([5.0, -100.0], [0.01, 40.0], (1, 200, 2))
        normaliser.update(batch)
    out = normaliser(batch)
    assert out.dtype == np.float32
    assert np.abs(out.mean(axis=1)).max() < 0.2
    assert np.abs(out.std(axis=1) - 1).max() < 0.2
    assert normaliser(np.full((1, 1, 2), 1e6)).max() == 3.0
    assert normaliser(np.full((1, 1, 2), -1e6)).min() == -3.0


def test_reward_scale_is_the_deviation_of_the_discounted_return_which_restarts_with_the_episode():
    scaler, returns, running = RewardScaler(1, 1, gamma=0.5, enabled=True, clip=10.0), [], 0.0
    rng = np.random.default_rng(3)
    for t in range(200):
        reward, ended = rng.normal(1.0, 2.0), t % 7 == 6
        running = 0.5 * running + reward
        returns.append(running)
        running = 0.0 if ended else running
        scaled = scaler(np.array([[reward]]), np.array([[ended]]))
    # the first batch of one has no spread of its own, so the pseudo-count still shows a little
    np.testing.assert_allclose(scaled[0, 0], reward / np.std(returns), rtol=1e-3)


def test_disabled_they_pass_everything_through():
    x = np.random.default_rng(4).normal(size=(2, 5, 3)).astype(np.float32)
    assert ObservationNormaliser(2, (3,), enabled=False, clip=1.0)(x) is x
    scaler = RewardScaler(2, 5, gamma=0.9, enabled=False, clip=1e-3)
    np.testing.assert_array_equal(scaler(x[..., 0], x[..., 0] > 0), x[..., 0])
