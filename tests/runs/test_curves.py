"""Learning curves draw the numbers of metrics.csv, survive missing ones, and are written whole."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telescope.metrics import bootstrap_ci, iqm
from telescope.runs import MetricsLog, RunError, RunFolder, read_metrics
from telescope.runs.formats.curves import band, curve, plot


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    seeds: int = 1
    reward: str | None = None


SIZES = {"grpo": "prompts", "sft": "batch_size", "reward_model": "batch_size"}
"""The setting by which the kind of a language run is known."""


def make_run(
    path: Path,
    returns: list[list[float | None]],
    env: str = "CartPole-v1",
    *,
    algorithm: str = "ppo",
    reward: str | None = None,
    **metrics: Any,
) -> RunFolder:
    """A run whose seed s has return `returns[s][i]` at iteration i."""
    config: Any = Config(env, len(returns), reward)
    if size := SIZES.get(algorithm):
        config = dataclasses.make_dataclass("Language", [(size, int, 1)], bases=(Config,), frozen=True)(
            env, len(returns), reward
        )
    run = RunFolder.create(path, config, algorithm=algorithm, execution={}, command=[])
    with MetricsLog(run, columns=["return_mean", *metrics], tensorboard=False) as log:
        for i, column in enumerate(zip(*returns, strict=True)):
            common = {"step": 100 * (i + 1), "iteration": i, **metrics}
            log.write([common | {"seed": s, "return_mean": value} for s, value in enumerate(column)])
    return run


def size(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_a_curve_carries_the_last_value_forward_but_never_back(tmp_path: Path) -> None:
    nan = math.nan
    run = make_run(tmp_path / "run", [[None, None, 3.0, nan, 5.0], [None, 2.0, None, 4.0, None], [None] * 5])
    steps, scores = curve(read_metrics(run), "return_mean", source="run")
    assert steps.tolist() == [200, 300, 400, 500]  # nobody has a value at 100
    np.testing.assert_array_equal(scores, [[nan, 3, 3, 5], [2, 2, 4, 4]])  # the third seed never has one


def test_the_band_is_the_statistics_of_every_step() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 5)).cumsum(axis=1)
    middle, low, high = band(scores)
    for t in range(5):
        assert middle[t] == iqm(scores[:, t])
        assert (low[t], high[t]) == pytest.approx(bootstrap_ci(scores[:, t]), rel=1e-12)  # the same resamples
        assert low[t] < middle[t] < high[t]


@pytest.mark.parametrize(
    "returns",
    [
        [[1.0]],
        [[1.0, 2.0, 3.0]],
        [[None, 2.0], [1.0, None]],
        [[None, 2.0], [None, None]],
        [[math.nan, 2.0, math.inf], [1.0, 1.0, 1.0]],
        np.random.default_rng(0).normal(size=(8, 700)).tolist(),
    ],
    ids=["point", "one seed", "gaps", "no episode", "nan", "long"],
)
def test_every_run_with_a_value_has_a_picture(tmp_path: Path, returns: list[list[float | None]]) -> None:
    out = plot([make_run(tmp_path / "run", returns)], tmp_path / "new" / "curves.png")
    assert out == tmp_path / "new" / "curves.png"
    assert size(out) == (900, 500)
    assert [path.name for path in out.parent.iterdir()] == ["curves.png"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the latest picture shows: its texts, and its lines that are not of single seeds."""
    found: dict[str, Any] = {}
    from matplotlib.figure import Figure

    real = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        axes = figure.axes[0]
        legend = axes.get_legend()
        found["legend"] = [text.get_text() for text in legend.get_texts()]
        found["explained"] = legend.get_title().get_text()
        found["title"], found["x"], found["y"] = axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()
        found["lines"] = [line for line in axes.lines if line.get_linewidth() > 1]
        found["bands"] = [one.get_paths()[0].vertices[:, 1] for one in axes.collections]
        real(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def test_many_runs_share_a_picture(tmp_path: Path, drawn: dict[str, Any]) -> None:
    runs = [make_run(tmp_path / f"run{i}", [[float(i), 1.0], [2.0, 3.0]]) for i in range(8)]
    assert size(plot(runs, tmp_path / "all.png")) == (900, 500)
    assert drawn["legend"] == [f"run{i} (2 seeds)" for i in range(8)]
    assert drawn["explained"] == "interquartile mean, lowest to highest seed"
    assert drawn["title"] == "PPO on CartPole-v1"
    assert [line.get_ydata().tolist() for line in drawn["lines"]] == [[(i + 2) / 2, 2.0] for i in range(8)]
    other = make_run(tmp_path / "other", [[1.0]], env="Hopper-v5")
    plot([runs[0], other], tmp_path / "two.png", title="Mine")
    assert drawn["legend"] == ["run0 · CartPole-v1 (2 seeds)", "other · Hopper-v5"]
    assert drawn["title"] == "Mine"


def test_equal_curves_are_all_seen(tmp_path: Path, drawn: dict[str, Any]) -> None:
    """Whatever lies on top leaves room for what is below: it is narrower, or has gaps, and it has another colour."""
    runs = [make_run(tmp_path / f"run{i}", [[1.0, 2.0, 3.0]]) for i in range(6)]
    plot(runs, tmp_path / "x.png")
    lines = drawn["lines"]
    assert len({line.get_color() for line in lines}) == 6
    assert lines[0].get_linestyle() == "-"
    for i, below in enumerate(lines):
        for above in lines[i + 1 :]:
            narrower = above.get_linewidth() < below.get_linewidth()
            other_gaps = above.get_linestyle() != below.get_linestyle() and above.get_linestyle() != "-"
            assert narrower or other_gaps


@pytest.mark.parametrize(("values", "marker"), [(1, "o"), (5, "o"), (30, "o"), (31, "None"), (500, "None")])
def test_few_values_have_markers(tmp_path: Path, drawn: dict[str, Any], values: int, marker: str) -> None:
    plot([make_run(tmp_path / "run", [list(range(values))])], tmp_path / "x.png")
    assert drawn["lines"][0].get_marker() == marker


@pytest.mark.parametrize(
    ("seeds", "name"),
    [(1, "one seed"), (2, "lowest to highest seed"), (4, "lowest to highest seed"), (5, "95 % bootstrap interval")],
)
def test_the_band_is_called_what_it_is(tmp_path: Path, drawn: dict[str, Any], seeds: int, name: str) -> None:
    plot([make_run(tmp_path / "run", [[float(s**2), 0.0] for s in range(seeds)])], tmp_path / "x.png")
    assert name in drawn["legend"][0]
    highest = max(drawn["bands"][0])
    assert (highest == (seeds - 1) ** 2) == (seeds < 5)  # of five, the bootstrap leaves the extremes out


@pytest.mark.parametrize(
    ("metric", "algorithm", "x", "y"),
    [
        ("return_mean", "ppo", "environment steps per seed", "episode return (sum of rewards)"),
        ("time_update", "ppo", "environment steps per seed", "time update (s)"),
        ("kl_reference", "grpo", "training steps of one rollout each", "kl reference (nats)"),
        ("score_max", "grpo", "training steps of one rollout each", "score max (reward)"),
        ("accuracy", "reward_model", "optimiser steps", "accuracy (share of held-out pairs)"),
        ("other", "sft", "optimiser steps", "other"),
    ],
)
def test_axes_have_units(tmp_path: Path, drawn: dict[str, Any], metric: str, algorithm: str, x: str, y: str) -> None:
    metrics = {} if metric == "return_mean" else {metric: 1.0}
    plot([make_run(tmp_path / "run", [[1.0]], algorithm=algorithm, **metrics)], tmp_path / "x.png", metric=metric)
    assert (drawn["x"], drawn["y"]) == (x, y)


@pytest.mark.parametrize(("reward", "chosen"), [(None, "exact match"), ("rewards.py:score", "score")])
def test_auto_draws_what_a_run_trains_on(tmp_path: Path, drawn: dict[str, Any], reward: Any, chosen: str) -> None:
    run = make_run(tmp_path / "run", [[None]], algorithm="grpo", reward=reward, exact_match=0.5, score=3.0)
    plot([run], tmp_path / "x.png")
    assert drawn["y"].startswith(chosen)


@pytest.mark.parametrize(
    ("name", "begins"), [("x.png", b"\x89PNG"), ("x.PDF", b"%PDF"), ("x.svg", b"<?xml"), ("x.y.svg", b"<?xml")]
)
def test_the_ending_is_the_format(tmp_path: Path, name: str, begins: bytes) -> None:
    assert plot([make_run(tmp_path / "run", [[1.0, 2.0]])], tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.csv", "png"])
def test_another_ending_is_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected an ending among \.png, \.pdf, \.svg"):
        plot([tmp_path / "nowhere"], tmp_path / name)


def test_auto_falls_back_to_evaluation_for_all_runs(tmp_path: Path) -> None:
    both = make_run(tmp_path / "both", [[1.0]], eval_return_mean=9.0)
    only = make_run(tmp_path / "only", [[None]], eval_return_mean=9.0)
    assert size(plot([both, only], tmp_path / "x.png")) == (900, 500)
    neither = make_run(tmp_path / "neither", [[None]])
    with pytest.raises(ValueError, match="neither has no value of return_mean yet"):
        plot([neither], tmp_path / "y.png", metric="return_mean")
    with pytest.raises(ValueError, match="neither has no metric 'loss'; it has step, iteration, seed, return_mean"):
        plot([neither], tmp_path / "y.png", metric="loss")
    with pytest.raises(ValueError, match="neither has no value of return_mean yet; let it run"):
        plot([neither], tmp_path / "y.png")
    with pytest.raises(ValueError, match="runs is empty"):
        plot([], tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()


def test_a_bad_run_or_target_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[1.0]])
    with pytest.raises(RunError, match="not a run folder"):
        plot([tmp_path], tmp_path / "x.png")
    with pytest.raises(RunError, match="a file of that name exists"):
        plot([run], run.metrics_path / "x.png")
