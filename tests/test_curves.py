"""Learning curves draw the numbers of metrics.csv, survive missing ones, and are written whole."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telescope.metrics import bootstrap_ci, iqm
from telescope.runs import MetricsLog, RunError, RunFolder, read_metrics
from telescope.runs.curves import band, curve, plot


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    seeds: int = 1


def make_run(path: Path, returns: list[list[float | None]], env: str = "CartPole-v1", **metrics: Any) -> RunFolder:
    """A run whose seed s has return `returns[s][i]` at iteration i."""
    run = RunFolder.create(path, Config(env, len(returns)), algorithm="ppo", execution={}, command=[])
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
        assert (low[t], high[t]) == bootstrap_ci(scores[:, t])
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


def test_many_runs_share_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, Any] = {}
    from matplotlib.figure import Figure

    real = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        axes = figure.axes[0]
        texts.update(legend=[text.get_text() for text in axes.get_legend().get_texts()], title=axes.get_title("left"))
        texts["lines"] = [line.get_ydata() for line in axes.lines if line.get_linewidth() > 1]
        real(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    runs = [make_run(tmp_path / f"run{i}", [[float(i), 1.0], [2.0, 3.0]]) for i in range(8)]
    assert size(plot(runs, tmp_path / "all.png")) == (900, 500)
    assert texts["legend"] == [f"run{i} (2 seeds)" for i in range(8)]
    assert texts["title"] == "PPO on CartPole-v1"
    assert [line.tolist() for line in texts["lines"]] == [[(i + 2) / 2, 2.0] for i in range(8)]
    other = make_run(tmp_path / "other", [[1.0]], env="Hopper-v5")
    plot([runs[0], other], tmp_path / "two.png", title="Mine")
    assert texts["legend"] == ["run0 · CartPole-v1 (2 seeds)", "other · Hopper-v5"]
    assert texts["title"] == "Mine"


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
    with pytest.raises(RunError, match="a file of that name is in the way"):
        plot([run], run.metrics_path / "x.png")
