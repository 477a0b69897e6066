"""Features of linear values, by their definitions as plain loops, and by what they are for.

Leaves out learning with them: `test_sarsa_lambda.py`.
"""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope.algorithms.sarsa_lambda import SarsaLambda
from telescope.control.agents.features import (
    bounds,
    coordinates,
    feature_count,
    fourier_basis,
    linear_q,
    of_pair,
    tabular,
    tile_coding,
)

LOW, HIGH = np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32)


def observations(count=200):
    return np.random.default_rng(0).uniform(LOW, HIGH, (count, 2)).astype(np.float32)


@pytest.mark.parametrize(("tilings", "tiles"), [(1, 4), (4, 3), (8, 8)])
def test_tiles_by_their_definition(tilings, tiles):
    """In each grid the tile is found by walking along every dimension: displaced by (1, 3) k / K of a tile."""
    features = tile_coding(LOW, HIGH, tilings=tilings, tiles=tiles)
    found = features.apply(observations())
    assert found.shape == (200, features.size)
    assert (
        features.size == tilings * (tiles + 1) ** 2 == feature_count(2, "tiles", tilings=tilings, tiles=tiles, order=0)
    )
    for x, active in zip(observations(), found, strict=True):
        expected = set()
        for k in range(tilings):
            place = []
            for d in range(2):
                width = (HIGH[d] - LOW[d]) / tiles
                shift = (k * (2 * d + 1) % tilings) / tilings * width
                place.append(next(i for i in range(tiles + 1) if x[d] - LOW[d] + shift < (i + 1) * width + 1e-7))
            expected.add(k * (tiles + 1) ** 2 + place[0] + (tiles + 1) * place[1])
        assert set(np.flatnonzero(active)) == expected
        assert set(np.unique(active)) == {0.0, 1.0}


def test_every_tile_can_be_reached_or_lies_beyond_the_border_and_none_is_shared_by_two():
    """An exact index: two observations have the same tile of a grid just if they lie in the same tile of it."""
    features = tile_coding(np.zeros(2, np.float32), np.ones(2, np.float32), tilings=1, tiles=3)
    grid = np.stack(np.meshgrid(np.arange(6) / 6 + 1 / 12, np.arange(6) / 6 + 1 / 12), -1).reshape(-1, 2)
    index = features.apply(grid.astype(np.float32)).argmax(-1)
    place = np.floor(grid * 3).astype(int)
    same = (place[:, None] == place[None]).all(-1)
    np.testing.assert_array_equal(index[:, None] == index[None], same)


def test_near_observations_share_more_tiles():
    features = tile_coding(np.zeros(1, np.float32), np.ones(1, np.float32), tilings=8, tiles=4)
    base = features.apply(np.full((1, 1), 0.5, np.float32))
    shared = [float((base * features.apply(np.full((1, 1), 0.5 + d, np.float32))).sum()) for d in (0, 0.06, 0.13, 0.26)]
    assert shared[0] == 8
    assert shared == sorted(shared, reverse=True)
    assert 0 == shared[-1] < shared[2] < shared[1] < 8, "beyond a tile's width nothing is shared"


def test_what_lies_outside_counts_as_the_border():
    features = tile_coding(LOW, HIGH, tilings=8, tiles=8)
    for bound in (LOW, HIGH):
        beyond = bound + 100 * np.sign(bound - (LOW + HIGH) / 2)
        np.testing.assert_array_equal(features.apply(beyond[None]), features.apply(bound[None]))
        assert features.apply(bound[None]).sum() == 8


def test_the_fourier_basis_by_its_definition():
    """Cosines that are orthogonal on the box, and step sizes α / ‖c‖, with ‖c‖ = 1 for the constant."""
    features = fourier_basis(LOW, HIGH, order=3)
    found = features.apply(observations())
    frequencies = [(i, j) for i in range(4) for j in range(4)]
    for x, row in zip(observations(), found, strict=True):
        s = [(x[d] - LOW[d]) / (HIGH[d] - LOW[d]) for d in range(2)]
        expected = [math.cos(math.pi * (i * s[0] + j * s[1])) for i, j in frequencies]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    norms = [math.hypot(*c) or 1.0 for c in frequencies]
    np.testing.assert_allclose(features.step_sizes, 1 / np.array(norms), rtol=1e-6)
    middle = LOW[:1] + (np.arange(40)[:, None] + 0.5) / 40 * (HIGH - LOW)[:1]
    phi = fourier_basis(LOW[:1], HIGH[:1], order=5).apply(middle.astype(np.float32)).astype(float)
    np.testing.assert_allclose(phi.T @ phi / 40, np.diag([1, *[0.5] * 5]), atol=1e-5)  # in one dimension


@pytest.mark.parametrize(
    "features",
    [tile_coding(LOW, HIGH, tilings=8, tiles=8), fourier_basis(LOW, HIGH, order=3), tabular(2)],
    ids=["tiles", "fourier", "tabular"],
)
def test_arrays_and_tensors_have_the_same_features(features):
    x = observations().reshape(4, 50, 2)
    expected, tensor = features.apply(x), features.apply(torch.from_numpy(x))
    assert expected.dtype == np.float32
    assert expected.shape == (4, 50, features.size)
    torch.testing.assert_close(tensor, torch.from_numpy(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.func.vmap(features.apply)(torch.from_numpy(x)), tensor, rtol=0, atol=1e-5)


def test_the_number_of_a_discrete_state_can_be_divided_too():
    """Ten states in five groups of two: aggregation is one grid over the number of the state."""
    low, high = bounds(gym.spaces.Discrete(10), None)
    features = coordinates(tile_coding(low, high + 1, tilings=1, tiles=5), 10)
    index = features.apply(np.eye(10, dtype=np.float32)).argmax(-1)
    np.testing.assert_array_equal(index, np.arange(10) // 2)


def test_q_is_the_product_of_weights_and_the_features_of_the_pair():
    features = tile_coding(LOW, HIGH, tilings=4, tiles=3)
    network = linear_q(features, 3)
    weights = torch.randn(features.size, 3)
    q, best = network.apply({"q.weight": weights}, torch.from_numpy(observations(5)))
    for a in range(3):
        pair = of_pair(features.apply(torch.from_numpy(observations(5))), torch.eye(3)[a])
        torch.testing.assert_close(pair @ weights.reshape(-1), q[:, a])
    torch.testing.assert_close(best, q.max(-1).values)


BOX = gym.spaces.Box(np.array([0, -np.inf], np.float32), np.array([1, np.inf], np.float32))


@pytest.mark.parametrize(
    ("change", "space", "message"),
    [
        ({}, BOX, r"has no bounds in its entries 1, .*set normalise_observations"),
        ({"features": "tabular"}, BOX, "features is 'tabular'.*expected Discrete"),
        ({"tiles": 100}, gym.spaces.Box(0, 1, (9,)), r"[\d,]+ features \(tiles of 9 numbers\) of 1 seeds need"),
    ],
)
def test_spaces_that_do_not_suit_the_features_are_named(change, space, message):
    with pytest.raises(ValueError, match=message):
        SarsaLambda(**change).features_for(space)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 2}, "num_envs is 2; expected 1"),
        ({"true_online": True}, "true_online is True, but trace is 'replacing'"),
        ({"features": "fourier"}, "trace is 'replacing', but features is 'fourier'"),
        ({"features": "fourier", "tiles": 4, "trace": "dutch"}, "tiles is 4, but features is 'fourier'"),
        ({"fourier_order": 4}, "fourier_order is 4, but features is 'auto'"),
        ({"lam": 1.5}, "lam is 1.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SarsaLambda(**change)


def test_normalised_observations_have_bounds():
    low, high = bounds(BOX, 3.0)
    assert low.tolist() == [-3.0, -3.0]
    assert high.tolist() == [3.0, 3.0]
    assert SarsaLambda(normalise_observations=True, clip_observations=2.0).features_for(BOX).size == 8 * 81
