"""Search for settings, by Optuna. A trial trains several seeds side by side and is judged by their interquartile mean.

`telescope tune` and `telescope.tune` use it. Leaves out the search spaces (`algorithms/spaces.py`) and Optuna's other
samplers and pruners: its own tools read the study from the folder, and may go on with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from telescope.algorithms import LANGUAGE, algorithm_of, called, find
from telescope.algorithms.spaces import SPACES, Choice, Range, Space
from telescope.checks import as_typed
from telescope.metrics import interval, iqm

STUDY, SEARCH, TABLE, PICTURE, BEST = "study.log", "search.toml", "trials.csv", "importance.png", "best.toml"
"""Files of a folder: Optuna's storage, what the search is about, its trials, what mattered, and the best settings."""
EVALUATIONS = 10
"""Evaluations of each trial, spread over its steps. A trial may be pruned after any of them."""
UNDISTURBED = 5
"""Trials that run to their end before any is pruned."""


class Tuned(NamedTuple):
    """What a search found."""

    config: Any
    """The best settings, as a config of the algorithm."""
    settings: dict[str, Any]
    """Those of its fields that were searched."""
    score: float
    """Their interquartile mean of evaluation returns over seeds."""
    interval: tuple[float, float]
    preset: float | None
    """The score of the settings that the search began with. None if they were pruned."""
    importances: dict[str, float]
    """Setting → how much of the score it decides."""
    trials: list[dict[str, Any]]
    """All trials, as in trials.csv."""
    path: Path


def tune(
    config: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    trials: int = 50,
    space: Space | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Search `space` around `config` until the folder `out` holds `trials` trials, and return the best settings.

    config: settings of an algorithm, with `seeds`, `total_steps` and `eval_every` of a trial; `eval_every` 0 means ten
    evaluations. space: config field → `Choice` or `Range`, by default that of the algorithm. The first trial has the
    settings of `config`. The sampler is a tree-structured Parzen estimator (Bergstra et al. 2011), and each of its
    draws depends on the trials so far, `config.seed` and the trial's number only: a search that was stopped, killed or
    given more trials goes on as if nothing had happened, with the same folder. say: receives a sentence per trial.
    """
    from telescope.runs.lock import locked

    algorithm = algorithm_of(config)
    if algorithm in LANGUAGE or algorithm not in SPACES:
        raise ValueError(f"{called(config)} cannot be tuned, only {', '.join(SPACES)} can: agents that act")
    config = with_evaluations(config)
    space = _checked(config, SPACES[algorithm] if space is None else space)
    if trials < 1:
        raise ValueError(f"trials is {trials}; expected at least 1")
    path = Path(out or Path("tuning") / f"{called(config)}-{config.env}-{time.strftime('%Y%m%d-%H%M%S')}")
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        same_search(path, config, space)
        study = _study(path, config)
        while len(study.get_trials(deepcopy=False)) < trials:
            say(_trial(study, config, space))
            _write_table(path, study, space)
    return _result(path, study, config, space)


def with_evaluations(config: Any) -> Any:
    """The config of a trial. Without `eval_every` it has ten evaluations."""
    every = max(1, -(-config.total_steps // EVALUATIONS))
    return config if config.eval_every else dataclasses.replace(config, eval_every=every)


def evaluated(config: Any) -> Generator[tuple[Any, list[float]], None, None]:
    """Train, and yield the iteration and each seed's latest evaluation return whenever a seed has a new one.

    It begins when all seeds have one: where iterations have whole episodes, each seed is evaluated by its own clock.
    """
    returns: dict[int, float] = {}
    training = find(algorithm_of(config)).train(config)
    with contextlib.closing(training):
        for iteration in training:
            new = {row["seed"]: row["eval_return_mean"] for row in iteration.rows}
            new = {seed: value for seed, value in new.items() if value is not None}
            returns |= new
            if new and len(returns) == config.seeds:
                yield iteration, list(returns.values())


def _checked(config: Any, space: Space) -> dict[str, Choice | Range]:
    """The space, widened to what `config` has now, so that the first trial can be the config itself."""
    fields = {field.name for field in dataclasses.fields(config)}
    checked: dict[str, Choice | Range] = {}
    for name, values in space.items():
        if name not in fields:
            raise ValueError(f"space names {name!r}, which is no setting of {called(config)}")
        now = getattr(config, name)
        if isinstance(values, Choice):
            if not values.values:
                raise ValueError(f"space has no values for {name!r}; expected at least one")
            checked[name] = values if now in values.values else Choice((*values.values, now))
        elif isinstance(values, Range):
            if (
                not values.low < values.high
                or (values.log and values.low <= 0)
                or (values.below_one and values.high >= 1)
            ):
                raise ValueError(
                    f"space has {values} for {name!r}; expected low < high, above 0 for log, below 1 for below_one"
                )
            fits = now is not None and not (values.log and now <= 0) and not (values.below_one and now >= 1)
            checked[name] = values._replace(low=min(values.low, now), high=max(values.high, now)) if fits else values
        else:
            raise ValueError(f"space has {values!r} for {name!r}; expected a Choice or a Range")
    if not checked:
        raise ValueError("space is empty; expected at least one setting to search")
    return checked


def same_search(path: Path, config: Any, space: Space, more: Mapping[str, Any] | None = None) -> None:
    """Keep what the search is about, with `more`, in the folder. A ValueError if the folder holds another search."""
    from telescope.runs.formats.config import read_toml, to_mapping, write_mapping

    around: dict[str, Any] = to_mapping(config)
    searched = {name: repr(values) for name, values in space.items()}
    asked = {"algorithm": algorithm_of(config), **(more or {}), "config": around, "space": searched}
    file = path / SEARCH
    if not file.exists():
        write_mapping(file, asked)
        return
    known = read_toml(file)
    different = [name for name, value in around.items() if known.get("config", {}).get(name) != value]
    different += [name for name, value in (more or {}).items() if known.get(name) != value]
    if known.get("algorithm") != asked["algorithm"] or different:
        what = ", ".join(different) or "algorithm"
        raise ValueError(f"{path} holds a search with other settings ({what}); repeat them, or choose another folder")
    if known.get("space") != asked["space"]:
        raise ValueError(f"{path} holds a search of another space; repeat it, or choose another folder")


def _study(path: Path, config: Any) -> Any:
    """Optuna's study in the folder. Trials that a killed process left behind are closed as failed."""
    optuna = _optuna()
    backend = optuna.storages.journal.JournalFileBackend(str(path / STUDY))
    study = optuna.create_study(
        study_name=f"{called(config)} {config.env}",
        storage=optuna.storages.JournalStorage(backend),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNDISTURBED, n_warmup_steps=config.total_steps // 3),
    )
    running = optuna.trial.TrialState.RUNNING
    for trial in study.get_trials(deepcopy=False, states=(running,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError('telescope tune needs Optuna: pip install "telescope-rl[tune]"', name="optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _trial(study: Any, config: Any, space: Space) -> str:
    """Run one trial. Return a sentence about it."""
    optuna = _optuna()
    number = len(study.get_trials(deepcopy=False))
    # a sampler of its own for each trial, so that its draws do not depend on what this process drew before
    study.sampler = optuna.samplers.TPESampler(seed=config.seed * 1_000_003 + number, n_startup_trials=2 * UNDISTURBED)
    if number == 0:
        study.enqueue_trial(_parameters(config, space))
    trial = study.ask()
    settings = {name: suggested(trial, name, values) for name, values in space.items()}
    if number == 0:  # exactly those of the config, also beyond a range's ends
        settings = {name: getattr(config, name) for name in space}
    trial.set_user_attr("settings", settings)
    try:
        score, ends = _score(dataclasses.replace(config, **settings), trial, optuna)
    except (optuna.TrialPruned, ValueError, FloatingPointError) as error:  # also what is no config, or diverges
        if number == 0 and not isinstance(error, optuna.TrialPruned):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        trial.set_user_attr("why", str(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return f"trial {number}: {error}; {in_words(settings)}"
    trial.set_user_attr("interval", ends)
    study.tell(trial, score)
    return f"trial {number}: {score:.6g} [{ends[0]:.6g}, {ends[1]:.6g}]; {in_words(settings)}"


def _parameters(config: Any, space: Space) -> dict[str, Any]:
    """What the study calls the settings of `config`. A range's ends stand for what lies beyond them."""
    parameters: dict[str, Any] = {}
    for name, values in space.items():
        now = getattr(config, name)
        if isinstance(values, Choice):
            parameters[name] = _word(now)
        elif now is not None:
            bounded = min(max(now, values.low), values.high)
            parameters.update({f"1 - {name}": 1 - bounded} if values.below_one else {name: bounded})
    return parameters


def suggested(trial: Any, name: str, values: Choice | Range) -> Any:
    """A value of this setting for a trial."""
    if isinstance(values, Choice):  # as words, since Optuna keeps no tuples
        by_word = {_word(value): value for value in values.values}
        return by_word[trial.suggest_categorical(name, list(by_word))]
    if values.below_one:
        return 1 - trial.suggest_float(f"1 - {name}", 1 - values.high, 1 - values.low, log=True)
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _word(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def _score(config: Any, trial: Any, optuna: Any) -> tuple[float, tuple[float, float]]:
    """Train and return the interquartile mean of the last evaluation's returns over seeds, and its interval."""
    scores: list[float] = []
    with contextlib.closing(evaluated(config)) as evaluations:
        for iteration, scores in evaluations:
            score = float(iqm(scores))
            trial.report(score, int(iteration.step))
            if not iteration.finished and trial.should_prune():
                raise optuna.TrialPruned(f"pruned at step {iteration.step:,} with {score:.6g}")
    if not scores or not all(map(math.isfinite, scores)):
        raise FloatingPointError("no evaluation gave a finite return for every seed")
    return float(iqm(scores)), interval(scores)


def _rows(study: Any, space: Space) -> list[dict[str, Any]]:
    """The trials as rows: number, state, score and its interval, seconds, the settings."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        low, high = trial.user_attrs.get("interval", (None, None))
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds() if trial.datetime_complete else None
        settings = trial.user_attrs.get("settings", {})
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "score": trial.value if trial.state.name == "COMPLETE" else None,
                "low": low,
                "high": high,
                "seconds": seconds,
                **{name: settings.get(name) for name in space},
            }
        )
    return rows


def _write_table(path: Path, study: Any, space: Space) -> None:
    from telescope.runs.files import write_atomic
    from telescope.runs.formats.tables import as_csv, named_rows

    write_atomic(path / TABLE, as_csv(named_rows(_rows(study, space))))


def _result(path: Path, study: Any, config: Any, space: Space) -> Tuned:
    from telescope.runs.formats.config import write_config

    rows = _rows(study, space)
    complete = [row for row in rows if row["score"] is not None]
    if not complete:
        raise ValueError(f"none of the {len(rows)} trials in {path} ran to its end; raise --trials or total_steps")
    best = max(complete, key=lambda row: row["score"])
    settings = {name: _restored(values, best[name]) for name, values in space.items()}
    found, shares = dataclasses.replace(config, **settings), importances(study)
    write_config(path / BEST, found)
    _draw(path, complete, shares)
    return Tuned(found, settings, best["score"], (best["low"], best["high"]), rows[0]["score"], shares, rows, path)


def _restored(values: Choice | Range, value: Any) -> Any:
    """A setting as it was given: the journal is JSON, where a tuple becomes a list."""
    return tuple(value) if isinstance(value, list) and isinstance(values, Choice) else value


def importances(study: Any) -> dict[str, float]:
    """How much of the score each setting decides (PED-ANOVA, Watanabe et al. 2023), the largest first.

    Empty while there are too few trials, or all score the same.
    """
    optuna = _optuna()
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings(action="ignore"):  # Optuna marks the evaluator as experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found: Mapping[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name.removeprefix("1 - "): share for name, share in found.items()}


def _draw(path: Path, complete: list[dict[str, Any]], shares: Mapping[str, float]) -> None:
    """Draw each trial's score with the best so far, and what mattered."""
    from matplotlib.figure import Figure

    from telescope.runs.files import write_atomic

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers, scores = [row["trial"] for row in complete], [row["score"] for row in complete]
    errors = [[row["score"] - row["low"] for row in complete], [row["high"] - row["score"] for row in complete]]
    left.errorbar(numbers, scores, errors, fmt="o", color="#0072B2", alpha=0.6, markersize=4, label="trial")
    best = [max(scores[: i + 1]) for i in range(len(scores))]
    left.step(numbers, best, where="post", color="#D55E00", label="best so far")
    left.set(xlabel="trial", ylabel="evaluation return (IQM over seeds)")
    left.legend(frameon=False)
    names = list(shares)[::-1]
    right.barh(names, [shares[name] for name in names], color="#009E73")
    right.set(xlabel="importance" if shares else "too few trials for importances", xlim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path / PICTURE, picture.getvalue())


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as flags of the command line."""
    return " ".join(flag(name, value) for name, value in settings.items())


def flag(name: str, value: Any) -> str:
    """A setting as a flag of the command line."""
    return " ".join(as_typed(name.replace("_", "-"), f"{value:.4g}" if isinstance(value, float) else value))
