"""A sweep over settings × seeds, by Ray Tune: a grid, or random draws, of which ASHA stops the bad ones early.

`telescope sweep` and `telescope.sweep.sweep` use it. Trials run side by side, on this machine or on a cluster. Leaves
out a sampler that learns from earlier trials (`tuning.py`), and a scheduler of our own.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from telescope.algorithms import called
from telescope.algorithms.spaces import Choice, Range, Space
from telescope.metrics import interval, iqm
from telescope.tuning import evaluated, same_search, with_evaluations

TABLE, PICTURE, BEST, TRIALS = "sweep.csv", "sweep.png", "best.toml", "ray"
"""Files of a sweep's folder: one row per trial, all learning curves, the best settings, Ray Tune's own files."""


class Swept(NamedTuple):
    """What a sweep found."""

    config: Any
    """The best settings, as a config of the algorithm."""
    rows: list[dict[str, Any]]
    """All trials, as in sweep.csv, the best first."""
    path: Path


def sweep(
    config: Any,
    space: Space,
    out: str | os.PathLike[str],
    *,
    samples: int = 0,
    grace: float = 0.2,
    ray_address: str | None = None,
    at_once: int = 0,
) -> Swept:
    """Train every combination of the space's choices, or `samples` random draws of it, with all seeds of `config`.

    A trial is judged by the interquartile mean over seeds of its last evaluation. ASHA (Li et al. 2020, arXiv
    1810.05934) stops the worse two thirds of the trials each time they have tripled their steps, from the share
    `grace` of `total_steps` on; 1 stops none. at_once: trials that run side by side, by default one per processor.
    A sweep that was stopped or killed goes on in the same folder: trials that ended stay, the others begin anew.
    """
    from telescope.control.workers.cluster import connected
    from telescope.processors import processors
    from telescope.runs.lock import locked

    if not 0 < grace <= 1:
        raise ValueError(f"grace is {grace}; expected a share of the run above 0, at most 1")
    _check(config, space, samples)
    config = with_evaluations(config)
    path = Path(out).absolute()
    if (path / TABLE).exists():
        raise ValueError(f"{path} holds a sweep already; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        same_search(path, config, space, {"samples": samples, "grace": grace})
        with connected(ray_address, at_once or processors()), warnings.catch_warnings(action="ignore"):
            results = _tuner(config, space, path, samples, grace, at_once).fit()
        return _result(config, space, path, results)


def _result(config: Any, space: Space, path: Path, results: Any) -> Swept:
    """Write what was found."""
    rows = sorted(_rows(results, space), key=lambda row: (-row["step"], -row["score"]))
    if not rows:
        raise ValueError(f"none of the trials of {path} reached its first evaluation; their errors are above")
    _write(path, rows, results)
    best = dataclasses.replace(config, **{name: rows[0][name] for name in space})
    from telescope.runs.formats.config import write_config

    write_config(path / BEST, best)
    return Swept(best, rows, path)


def _check(config: Any, space: Space, samples: int) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    if unknown := space.keys() - fields:
        raise ValueError(f"the space names {min(unknown)!r}, which is no setting of {called(config)}")
    if not space:
        raise ValueError("the space is empty; expected at least one setting, such as clip = [0.1, 0.2]")
    drawn = [name for name, values in space.items() if isinstance(values, Range)]
    if drawn and not samples:
        raise ValueError(f"{drawn[0]} is a range, and a grid needs lists; set samples to draw from it")


def _tuner(config: Any, space: Space, path: Path, samples: int, grace: float, at_once: int) -> Any:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    trial = tune.with_resources(trial_of(config), {"cpu": 1})
    dimension = {name: _dimension(tune, values, grid=not samples) for name, values in space.items()}
    if tune.Tuner.can_restore(str(path / TRIALS)):
        return tune.Tuner.restore(str(path / TRIALS), trial, restart_errored=True, param_space=dimension)
    steps = config.total_steps
    scheduler = ASHAScheduler(
        time_attr="step", max_t=steps + 1, grace_period=max(1, math.ceil(grace * steps)), reduction_factor=3
    )
    settings = tune.TuneConfig(
        metric="score",
        mode="max",
        scheduler=scheduler,
        num_samples=samples or 1,
        max_concurrent_trials=at_once or None,
        search_alg=tune.search.BasicVariantGenerator(random_state=config.seed),
    )
    files = tune.RunConfig(name=TRIALS, storage_path=str(path), verbose=0, log_to_file=True)
    return tune.Tuner(trial, param_space=dimension, tune_config=settings, run_config=files)


def _dimension(tune: Any, values: Choice | Range, *, grid: bool) -> Any:
    """A setting of the space in the words of Ray Tune."""
    if isinstance(values, Choice):
        return tune.grid_search(list(values.values)) if grid else tune.choice(list(values.values))
    if values.below_one:
        distance = tune.loguniform(1 - values.high, 1 - values.low)
        return tune.sample_from(lambda _: 1 - distance.sample())
    if values.whole:
        return (tune.lograndint if values.log else tune.randint)(int(values.low), int(values.high) + 1)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def trial_of(config: Any) -> Callable[[dict[str, Any]], None]:
    """Return a trial as Ray Tune calls it: train with some settings, and report each evaluation."""
    path = [one for one in sys.path if os.path.isdir(one)]

    def trial(settings: dict[str, Any]) -> None:
        sys.path += [one for one in path if one not in sys.path]
        from ray import tune

        chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        mine = dataclasses.replace(config, **chosen, threads=1, processes=1, ray_address=None)
        for iteration, returns in evaluated(mine):
            tune.report({"step": int(iteration.step), **scored(returns)})

    return trial


def scored(returns: Sequence[float]) -> dict[str, float]:
    """The score of an evaluation: the interquartile mean over seeds, its 95 % interval, and the worst seed."""
    low, high = interval(returns)
    return {"score": float(iqm(list(returns))), "low": low, "high": high, "worst": float(min(returns))}


def _rows(results: Any, space: Space) -> list[dict[str, Any]]:
    """One row per trial that was evaluated: its last evaluation, and its settings."""
    rows = []
    for number, result in enumerate(results):
        found = result.metrics or {}
        if "score" in found:
            kept = {name: found[name] for name in ("step", "score", "low", "high", "worst")}
            error = "" if result.error is None else str(result.error).strip().splitlines()[-1]
            rows.append({"trial": number, **kept, **{name: result.config[name] for name in space}, "error": error})
    return rows


def _write(path: Path, rows: list[dict[str, Any]], results: Any) -> None:
    """One table and one plot of all trials."""
    from matplotlib.figure import Figure

    from telescope.runs.files import write_atomic
    from telescope.runs.formats.tables import as_csv, named_rows

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, result in enumerate(results):
        curve = result.metrics_dataframe
        if curve is not None and "score" in curve:
            best = number == rows[0]["trial"]
            style: dict[str, Any] = (
                {"color": "#D55E00", "zorder": 3, "label": "best"} if best else {"color": "#0072B2", "alpha": 0.4}
            )
            curve = curve.drop_duplicates("step", keep="last")  # what a trial that began anew had reported before
            axes.plot(curve["step"], curve["score"], **style)
    axes.set(xlabel="step", ylabel="evaluation return (IQM over seeds)")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomic(path / PICTURE, image.getvalue())
    write_atomic(path / TABLE, as_csv(named_rows(rows)))
