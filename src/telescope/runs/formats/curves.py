"""Learning curves: the interquartile mean over seeds with its 95 % bootstrap band, drawn as PNG, PDF or SVG.

Leaves out smoothing (metrics are already means over an iteration) and interaction (use TensorBoard).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from telescope.metrics import interval_name, intervals, iqm
from telescope.renamed import COLUMNS, columns_today
from telescope.runs.files import explained, require, write_atomic
from telescope.runs.folder import RunFolder
from telescope.runs.formats.log import read_metrics

# Okabe & Ito 2008, without yellow and black: colour-blind readers can distinguish them, also in print
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")  # one per run, so that a curve below another shows through the gaps
ENDINGS = ("png", "pdf", "svg")
FEW = 30  # curves with at most this many values get markers
POINTS = 300  # more points are not visible at this width
INK, GRID = "#333333", "#e6e6e6"
AUTO = ("return_mean", "eval_return_mean", "exact_match", "reward", "accuracy", "score")
LABELS = {"return_mean": "episode return", "eval_return_mean": "evaluation return"}
UNITS = {  # by name, or by the beginning of a name
    "return_mean": "sum of rewards",
    "eval_return_mean": "sum of rewards",
    "exact_match": "share of held-out prompts",
    "accuracy": "share of held-out pairs",
    "reward": "mean over held-out prompts",
    "reward_": "mean over the rollout",
    "score": "mean over the rollout",
    "score_": "reward",
    "length_mean": "steps",
    "length": "tokens",
    "entropy": "nats",
    "kl": "nats",
    "kl_": "nats",
    "time_": "s",
    "clip_fraction": "share",
    "clipped": "share",
    "truncated": "share",
    "unscored": "share",
    "equal_groups": "share",
    "updated": "share",
    "kept": "share",
    "explained_variance": "share of variance",
}

Array = npt.NDArray[Any]


class Curve(NamedTuple):
    """One metric of one run: `[T]` steps per seed, and scores `[S, T]`, NaN before a seed's first value."""

    steps: Array
    scores: Array


def plot(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metric: str = "auto",
    title: str | None = None,
) -> Path:
    """Draw the learning curves of one or more run folders into the file `out`, atomically, and return it.

    Each run is a line, the interquartile mean over its seeds, with a 95 % bootstrap band (with fewer than 5 seeds,
    their range) and a thin line per seed. It begins where every seed has a value. out: its ending chooses PNG, PDF or
    SVG. metric: a column of metrics.csv. `auto` is return_mean, or eval_return_mean if a run has no episode returns;
    for language models it is exact_match, reward or accuracy, but score if the run has its own reward.

    A RunError if a folder is not a run, or the file cannot be written. A ValueError for another ending, an unknown
    metric, or a run without any value of it.
    """
    out = Path(out)
    ending = out.suffix.lower().removeprefix(".")
    if ending not in ENDINGS:
        known = ", ".join(f".{name}" for name in ENDINGS)
        raise ValueError(f"out is {os.fspath(out)!r}; expected an ending among {known}")
    folders = [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in runs]
    if not folders:
        raise ValueError("runs is empty; expected at least one run folder")
    for folder in folders:
        folder.require_metrics()
    tables = [_of_today(read_metrics(folder.metrics_path), folder) for folder in folders]
    metric = _chosen(folders, tables) if metric == "auto" else metric
    names = [_name_of_today(metric, table, folder) for table, folder in zip(tables, folders, strict=True)]
    curves = [
        curve(table, name, source=str(folder.path)) for table, name, folder in zip(tables, names, folders, strict=True)
    ]
    figure = _figure(curves, _labels(folders), (_steps(folders), _quantity(names[0])), title or _title(folders))
    image = io.BytesIO()
    figure.savefig(image, format=ending, dpi=150)
    with explained("create the folder of", out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, image.getvalue())  # not its buffer, which Python 3.13 complains about after an error
    return out


def _of_today(table: dict[str, Array], folder: RunFolder) -> dict[str, Array]:
    """The metrics of a run under the names that they have now."""
    names = columns_today(COLUMNS.get(folder.algorithm, {}), list(table))
    return {names[column]: values for column, values in table.items()}


def _name_of_today(metric: str, table: dict[str, Array], folder: RunFolder) -> str:
    """What a metric that a user names is called now."""
    now = COLUMNS.get(folder.algorithm, {}).get(metric, metric)
    if metric in table or now not in table:
        return metric
    warnings.warn(f"{metric} is called {now} now", DeprecationWarning, stacklevel=3)
    return now


def curve(table: dict[str, Array], metric: str, *, source: str) -> Curve:
    """One metric of a table, per seed, at the steps where any seed has a value.

    A seed without a value at a step keeps its last one. Seeds without any value are left out. source: the origin of the
    table, for error messages.
    """
    if metric not in table:
        raise ValueError(f"{source} has no metric {metric!r}; it has {', '.join(table)}")
    live = np.isfinite(table[metric])
    if not live.any():
        raise ValueError(f"{source} has no value of {metric} yet; let it run until there is one")
    steps, column = np.unique(table["step"][live], return_inverse=True)
    seeds, row = np.unique(table["seed"][live], return_inverse=True)
    scores = np.full((len(seeds), len(steps)), np.nan)
    scores[row, column] = table[metric][live]
    latest = np.maximum.accumulate(np.where(np.isnan(scores), 0, np.arange(len(steps))), axis=1)
    return Curve(steps, np.take_along_axis(scores, latest, axis=1))


def band(scores: Array) -> tuple[Array, Array, Array]:
    """Interquartile mean over seeds of `[S, T]` scores, and its `metrics.interval`, each `[T]`.

    Every step uses the same resamples of the seeds, so the band is as smooth as the curves are.
    """
    return iqm(scores, axis=0), *intervals(scores)


def _figure(curves: Sequence[Curve], labels: Sequence[str], quantities: tuple[str, str], title: str) -> Any:
    """The picture, of 900 × 500 pixels at 150 per inch, so that its text is readable in a README."""
    figure = require("matplotlib.figure").Figure(figsize=(6.0, 10.0 / 3.0), layout="constrained")
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (one, name) in enumerate(zip(curves, labels, strict=True)):
        _draw(axes, one, name, i, alone=len(curves) == 1)
    axes.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel(quantities[0], fontsize=9, color=INK)
    axes.set_ylabel(quantities[1], fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(require("matplotlib.ticker").FuncFormatter(_thousands))
    axes.set_xlim(0, max(one.steps[-1] for one in curves) or 1)
    axes.margins(y=0.06)
    axes.tick_params(labelsize=8, labelcolor=INK, color=GRID)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#bbbbbb")
    legend = axes.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", labelcolor=INK, handlelength=3)
    if len(curves) > 1 and (explanation := _bands(curves)):
        legend.set_title(explanation, prop={"size": 7})
        legend.set_alignment("left")
    return figure


def _draw(axes: Any, one: Curve, name: str, i: int, *, alone: bool) -> None:
    """Draw run i: thin lines for its seeds, the band, and the interquartile mean on top.

    The first line is solid and wider than those drawn over it, so that equal curves stay visible.
    """
    colour, dashes = PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]
    width = 1.8 if alone else max(2.6 - 0.8 * (i > 0) - 0.4 * (i // len(DASHES)), 1.1)
    shown = np.unique(np.linspace(0, len(one.steps) - 1, POINTS).round().astype(int))
    steps, scores = one.steps[shown], one.scores[:, shown]
    marker = "o" if len(steps) <= FEW else None
    if len(scores) > 1:
        axes.plot(steps, scores.T, color=colour, linewidth=0.6, alpha=0.3, marker=marker, markersize=2)
    whole = ~np.isnan(scores).any(axis=0)  # true at the last step at least: values are carried forward
    middle, low, high = band(scores[:, whole])
    axes.fill_between(steps[whole], low, high, color=colour, alpha=0.2, linewidth=0)
    label = name or ("one seed" if len(scores) == 1 else f"interquartile mean, {interval_name(len(scores))}")
    label += f" ({len(scores)} seeds)" if len(scores) > 1 else ""
    axes.plot(
        steps[whole], middle, dashes, color=colour, linewidth=width, marker=marker, markersize=width + 2, label=label
    )


def _bands(curves: Sequence[Curve]) -> str:
    """A caption of lines and bands; empty if each run has one seed and so no band."""
    names = {interval_name(len(one.scores)): None for one in curves if len(one.scores) > 1}
    return f"interquartile mean, {' or '.join(names)}" if names else ""


def _quantity(name: str) -> str:
    """The label of a metric, with its unit if it has one."""
    known = [unit for start, unit in UNITS.items() if name == start or (start[-1] == "_" and name.startswith(start))]
    return LABELS.get(name, name.replace("_", " ")) + (f" ({known[0]})" if known else "")


def _steps(folders: Sequence[RunFolder]) -> str:
    """The label of the x axis."""
    kinds = {_step(folder.config_mapping()) for folder in folders}
    return kinds.pop() if len(kinds) == 1 else "steps"


def _step(settings: Mapping[str, Any]) -> str:
    """What a step of a run is. A setting that only one kind of run has decides."""
    if "prompts" in settings:
        return "training steps of one rollout each"
    return "optimiser steps" if "batch_size" in settings else "environment steps per seed"


def _chosen(folders: Sequence[RunFolder], tables: Sequence[dict[str, Array]]) -> str:
    """The metric of `auto`. It is the same for all runs, so that their curves can be compared."""
    own = all(folder.config_mapping().get("reward") for folder in folders)
    names = ("score", *AUTO) if own else AUTO  # a run with its own reward trains on that score
    for name in names:
        if all(np.isfinite(table.get(name, np.nan)).any() for table in tables):
            return name
    for name in names:  # the message names missing ones
        if all(name in table for table in tables):
            return name
    raise ValueError(f"the runs have none of {', '.join(AUTO)} in common; name a column of all of them with --metric")


def _labels(folders: Sequence[RunFolder]) -> list[str]:
    """Folder names, with the environment if it differs between runs. A single run needs only the title."""
    if len(folders) == 1:
        return [""]
    environments = [_environment(folder) for folder in folders]
    return [
        folder.path.resolve().name + (f" · {environment}" if len(set(environments)) > 1 else "")
        for folder, environment in zip(folders, environments, strict=True)
    ]


def _title(folders: Sequence[RunFolder]) -> str:
    """`ppo on CartPole-v1`, with the parts that all runs share."""
    methods = sorted({folder.method.replace("_", " ").upper() for folder in folders})
    environments = sorted({_environment(folder) for folder in folders})
    on = f" on {environments[0]}" if len(environments) == 1 else ""
    return f"{', '.join(methods)}{on}"


def _environment(folder: RunFolder) -> str:
    settings = folder.config_mapping()
    return str(settings.get("env") or settings.get("task", "default environment"))


def _thousands(steps: float, _: int | None = None) -> str:
    """80000 → 80k, 1500000 → 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:g}{unit}"
    return f"{steps:g}"
