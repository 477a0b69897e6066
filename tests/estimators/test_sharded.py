"""Time split across processes: every rank gets its rows of the unsharded result, for one message each."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

import oracle
import telescope
from telescope.recurrence import naive
from telescope.recurrence.sharded import linear_recurrence_sharded

WORLD = 4
SPLITS = {"all four": [4, 0, 6, 1], "two of them": [5, 6]}  # rows of each rank
MEMBERS = {"all four": [0, 1, 2, 3], "two of them": [1, 3]}  # their places in the world


def problems() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs (x, a) [11, *batch]: what a rank's border can meet."""
    random = np.random.default_rng(0)
    steps = oracle.rollout((11, 8), ends=0.1)
    x = np.where(steps.mask, steps.rewards, 0)
    a = np.where(steps.mask, np.where(steps.terminated, 0, 0.9), 1.0)
    beyond, cut = x.copy(), a.copy()
    cut[5], beyond[6:], cut[6:] = 0, np.nan, np.nan
    through = x.copy()
    through[10] = np.nan
    return {
        "masked": (x, a),
        "single": (x[:, 0], a[:, 0]),
        "three axes": (x.reshape(11, 2, 4), a.reshape(11, 2, 4)),
        "NaN beyond a cut": (beyond, cut),
        "NaN, and ∏a underflows": (through, np.full_like(a, 1e-100)),
        "no cut": (x, random.uniform(0.5, 1.5, x.shape)),
    }


def _rank(rank: int, folder: str) -> None:
    """What each process does; its results go to a file."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", WORLD)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(minutes=5))
    pair = distributed.new_group(MEMBERS["two of them"])
    results = _work("all four", distributed.group.WORLD)
    if rank in MEMBERS["two of them"]:
        results |= _work("two of them", pair)
    np.savez(f"{folder}/{rank}.npz", **results)
    distributed.destroy_process_group()


def _work(split: str, group: Any) -> dict[str, np.ndarray]:
    messages, all_gather = [], distributed.all_gather

    def counted(pairs: list[torch.Tensor], pair: torch.Tensor, **options: Any) -> None:
        messages.append(pair.numel())
        all_gather(pairs, pair, **options)

    distributed.all_gather = counted
    rows, results = _rows(split, distributed.get_rank(group)), {}
    for name, (x, a) in problems().items():
        for kind in "f4", "f8":
            shard = [np.ascontiguousarray(array[rows]).astype(kind) for array in (x, a)]
            y = linear_recurrence_sharded(*map(torch.from_numpy, shard), group)
            assert messages == [2 * x[0].size]
            np.testing.assert_array_equal(linear_recurrence_sharded(*shard, group), y.numpy())
            messages.clear()
            results[f"{split}, {name}, {kind}"] = y.numpy()
            results[f"{split}, {name}, {kind}, slopes"] = np.stack(_slopes(shard, rows, group))
            assert messages == [2 * x[0].size] * 2  # one forwards, one backwards
            messages.clear()
    distributed.all_gather = all_gather
    return results | _estimates(split, rows, group)


def _weights(shape: tuple[int, ...]) -> np.ndarray:
    """What the loss makes of each row: 0 at some."""
    random = np.random.default_rng(1)
    return random.normal(size=shape) * (random.random(shape) < 0.7)


def _slopes(shard: list[np.ndarray], rows: slice, group: Any) -> list[np.ndarray]:
    """∂L/∂x and ∂L/∂a at this rank's rows."""
    x, a = (torch.from_numpy(array).requires_grad_() for array in shard)
    y = linear_recurrence_sharded(x, a, group, differentiable=True)
    weights = _weights((11, *x.shape[1:]))[rows]
    y.backward(torch.from_numpy(weights).to(y.dtype))
    return [x.grad.numpy(), a.grad.numpy()]


def _estimates(split: str, rows: slice, group: Any) -> dict[str, np.ndarray]:
    """telescope.gae on this rank's rows: NumPy in float64, tensors in float32."""
    steps = _whole()
    mine = {name: np.ascontiguousarray(array[rows]) for name, array in steps._asdict().items()}
    numbers = telescope.gae(**mine, gamma=0.97, lam=0.9, returns_lam=1.0, time_group=group)
    single = {name: torch.from_numpy(array) for name, array in mine.items()}
    single |= {name: single[name].float() for name in ("rewards", "values", "next_values")}
    tensors = telescope.gae(**single, gamma=0.97, lam=0.9, time_group=group)
    leaves = {name: torch.from_numpy(mine[name]).requires_grad_() for name in ("rewards", "values", "next_values")}
    others = {name: torch.from_numpy(mine[name]) for name in ("terminated", "truncated", "mask")}
    gamma = torch.tensor(0.97, dtype=torch.float64, requires_grad=True)
    through = telescope.gae(
        **leaves, **others, gamma=gamma, lam=0.9, returns_lam=1.0, time_group=group, differentiable=True
    )
    weights = torch.from_numpy(_weights((11, 40))[rows])
    (through.advantages * weights + through.returns**2 * weights).sum().backward()
    slopes = [leaf.grad.numpy() for leaf in leaves.values()]
    return {
        f"{split}, gae": np.stack(numbers),
        f"{split}, tensors": torch.stack(tensors).numpy(),
        f"{split}, slopes of gae": np.stack(slopes),
        f"{split}, slope of γ": gamma.grad.numpy()[None],
    }


def _whole() -> oracle.Rollout:
    """A rollout whose episodes reach over the borders; NaN where nothing may be read."""
    steps = oracle.rollout((11, 40), ends=0.1)
    steps.next_values[steps.terminated] = np.nan
    steps.rewards[~steps.mask] = np.nan
    return steps


def _rows(split: str, rank: int) -> slice:
    start = sum(SPLITS[split][:rank])
    return slice(start, start + SPLITS[split][rank])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The results of all ranks, put together along time again."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_rank, (str(folder),), nprocs=WORLD)
    results = [dict(np.load(folder / f"{rank}.npz")) for rank in range(WORLD)]
    together = {}
    for key in {key for result in results for key in result}:
        axis = 1 if key.endswith(("gae", "tensors", "slopes")) else 0
        together[key] = np.concatenate([results[rank][key] for rank in MEMBERS[key.split(", ")[0]]], axis)
    return together


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("name", problems())
@pytest.mark.parametrize("split", SPLITS)
def test_ranks_have_their_rows_of_the_whole(split: str, name: str, kind: str, shards: dict[str, np.ndarray]) -> None:
    x, a = problems()[name]
    y = shards[f"{split}, {name}, {kind}"]
    assert y.dtype == kind
    assert np.isnan(y).any() == ("NaN" in name)
    expected = naive.linear_recurrence(x.astype(kind), a.astype(kind))
    # A carry that came over a border was rounded twice, in ∏a and in y₀.
    np.testing.assert_allclose(y, expected, rtol=16 * np.finfo(kind).eps, atol=16 * np.finfo(kind).eps)


@pytest.mark.parametrize("split", SPLITS)
def test_gae_over_ranks_is_gae(split: str, shards: dict[str, np.ndarray]) -> None:
    steps = _whole()
    clean = steps._replace(rewards=np.nan_to_num(steps.rewards))
    short, long = (oracle.advantages(clean, 0.97, lam) for lam in (0.9, 1.0))
    values = np.where(steps.mask, steps.values, 0)
    advantages, returns = shards[f"{split}, gae"]
    np.testing.assert_allclose(advantages, short, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(returns, long + values, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shards[f"{split}, tensors"], [short, short + values], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("name", problems())
@pytest.mark.parametrize("split", SPLITS)
def test_gradients_cross_the_borders(split: str, name: str, kind: str, shards: dict[str, np.ndarray]) -> None:
    """Σ w y by hand: ∂/∂x[t] is what all rows up to t make of it, ∂/∂a[t] that times y[t+1]."""
    x, a = (array.astype(kind).astype("f8") for array in problems()[name])
    weights, z = _weights(x.shape), np.zeros_like(x)
    y = np.concatenate([naive.linear_recurrence(x, a), np.zeros_like(x[:1])])
    for t in range(11):
        for s in range(t + 1):
            through = np.prod(a[s:t], axis=0)
            z[t] += np.where((a[s:t] == 0).any(0), 0, through * weights[s])
    by_x, by_a = shards[f"{split}, {name}, {kind}, slopes"]
    precision = {"rtol": 32 * np.finfo(kind).eps, "atol": 32 * np.finfo(kind).eps}
    np.testing.assert_allclose(by_x, z, **precision)
    np.testing.assert_allclose(by_a, z * y[1:], **precision)


@pytest.mark.parametrize("split", SPLITS)
def test_the_gradient_of_gae_over_ranks_is_that_of_one_process(split: str, shards: dict[str, np.ndarray]) -> None:
    steps = {name: torch.from_numpy(array) for name, array in _whole()._asdict().items()}
    leaves = {name: steps.pop(name).requires_grad_() for name in ("rewards", "values", "next_values")}
    gamma = torch.tensor(0.97, dtype=torch.float64, requires_grad=True)
    whole = telescope.gae(**leaves, **steps, gamma=gamma, lam=0.9, returns_lam=1.0, differentiable=True)
    weights = torch.from_numpy(_weights((11, 40)))
    (whole.advantages * weights + whole.returns**2 * weights).sum().backward()
    by_rank, by_gamma = shards[f"{split}, slopes of gae"], shards[f"{split}, slope of γ"]
    expected = np.stack([leaf.grad.numpy() for leaf in leaves.values()])
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(by_rank.reshape(expected.shape), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(by_gamma.sum(), gamma.grad.numpy(), rtol=1e-11)  # each rank has its rows' part


def test_a_time_group_is_a_process_group() -> None:
    steps = {name: torch.from_numpy(array) for name, array in oracle.rollout((3, 2)).arguments().items()}
    for group in distributed.group, "WORLD", 0:
        with pytest.raises(ValueError, match=r"time_group is .*; expected a torch.distributed process group"):
            telescope.gae(**steps, gamma=0.9, lam=0.9, time_group=group)
