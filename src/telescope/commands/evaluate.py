"""`telescope eval`: the agents of a run on whole episodes, or its language model on held-out prompts."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from typing import Any

from telescope.algorithms import LANGUAGE
from telescope.commands.arguments import HELP, notes, parse, positionals
from telescope.failures import is_users
from telescope.runner import wait_asleep


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Evaluate the agents of a run on whole episodes. `telescope eval RUN --help` shows the flags for that run."""

    episodes: int = 100
    """Number of episodes per seed."""
    max_steps: int | None = None
    """Cut an episode after this many steps, with a note. Default: the run's eval_max_steps (10,000)."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""
    stochastic: bool = False
    """Sample actions from the policy instead of taking its most likely action."""
    best: bool = False
    """Evaluate each seed's best agent by its evaluations in training (--eval-every), instead of the final agent."""
    video: str | None = None
    """Folder for a video of one episode of the first seed. Default: no video."""
    device: str | None = None
    """Device of the networks. Default: the one they were trained on, or the CPU if this machine lacks it."""
    trust: bool = False
    """Run the code that the run names (an environment's module), even if somebody else began the run."""


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """Evaluate the language model of a run on held-out prompts: exact match with greedy decoding, reward on samples."""

    prompts: int = 1000
    """Maximum number of held-out prompts; for a reward model, of preference pairs."""
    samples: int | None = None
    """Sample this many completions per prompt with the run's sampling settings, and average their scores."""
    temperature: float | None = None
    """Sampling temperature. Default: the run's. 0 always takes the most likely token."""
    top_k: int | None = None
    """Sample from this many of the most likely tokens. Default: the run's. 0 samples from all tokens."""
    top_p: float | None = None
    """Sample from the most likely tokens that together have this probability. Default: the run's. 1 keeps all."""
    task: str | None = None
    """Another task or data file than the run's; all rows of a file are used. Default: the run's held-out prompts."""
    digits: int | None = None
    """Digits or length of a built-in task, if other than the run's (or the default of --task)."""
    pass_at: tuple[int, ...] = ()
    """Numbers k: also print pass@k, the chance that one of k samples passes, without bias from all samples."""
    passing: float = 1.0
    """With --pass-at: a completion passes from this score on."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""
    device: str | None = None
    """Device of the model. Default: the one it was trained on, or the CPU if this machine lacks it."""
    trust: bool = False
    """Run the code that the run names (a reward file), even if somebody else began the run."""


def evaluate(arguments: list[str]) -> int:
    """`telescope eval RUN`. The folder says which kind of run it is."""
    from telescope.runs.folder import RunFolder

    runs, flags = positionals(arguments, EvalOptions, AnswerOptions)
    if not runs and HELP & set(flags):
        parse(EvalOptions, flags, "telescope eval RUN", {})
    if len(runs) != 1:
        raise ValueError(f"telescope eval takes one run folder, got {len(runs)}")
    wait_asleep()
    if RunFolder.open(runs[0]).algorithm in LANGUAGE:
        return _answers(runs[0], parse(AnswerOptions, flags, "telescope eval RUN", {}))
    return _agents(runs[0], parse(EvalOptions, flags, "telescope eval RUN", {}))


def _agents(run: str, options: EvalOptions) -> int:
    if options.episodes < 1:
        raise ValueError(f"episodes is {options.episodes}; expected at least 1")
    from telescope.metrics import summarise
    from telescope.policy import load

    with notes():
        policy = load(run, best=options.best, trust=options.trust, device=options.device)
    with notes():
        result = policy.evaluate(options.episodes, stochastic=options.stochastic, max_steps=options.max_steps)
    summary = summarise(result.returns)
    if options.json:
        print(json.dumps(summary), flush=True)
    else:
        _print_table(policy.seeds, result, summary)
    if options.video is not None:
        with notes():
            print(f"video: {_film(policy, options.video, options.max_steps)}", file=sys.stderr)
    return 0


def _answers(run: str, options: AnswerOptions) -> int:
    if options.prompts < 1:
        raise ValueError(f"prompts is {options.prompts}; expected at least 1")
    from telescope.answers import load
    from telescope.runs.folder import RunFolder

    settings = {
        name: getattr(options, name)
        for name in ("temperature", "top_k", "top_p", "samples", "task", "digits", "pass_at", "passing")
    }
    found = []
    for seed in RunFolder.open(run).seeds:
        with notes():
            model = load(run, trust=options.trust, device=options.device, seed=seed)
            found.append(model.evaluate(options.prompts, **settings))
    if options.json:
        print(json.dumps(found[0] if len(found) == 1 else _over_seeds(found)))
        return 0
    for name in [name for name in found[0] if name != "kl"]:
        print(f"{name:12} {_words([one[name] for one in found])}")
    return 0


def _over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the numbers of each seed."""
    known = {name: [one[name] for one in found if one[name] is not None] for name in found[0]}
    return {**{name: sum(x) / len(x) if x else None for name, x in known.items()}, "per_seed": found}


def _words(values: list[Any]) -> str:
    """A number; of several seeds that differ, their mean and range."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):,.4g}"
    return (
        mean
        if min(known) == max(known)
        else f"{mean}  ({min(known):,.4g} to {max(known):,.4g} over {len(known)} seeds)"
    )


def _film(policy: Any, folder: str, max_steps: int | None) -> Any:
    """Record one episode as a video. An error of the renderer becomes one sentence, after the results."""
    from telescope.control.video import record
    from telescope.runs.files import RunError

    config, hook = policy.config, sys.unraisablehook
    bound = {} if max_steps is None else {"max_steps": max_steps}
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # otherwise SDL looks for a display and prints errors
    sys.unraisablehook = lambda _: None  # a half-made renderer prints another error when it is freed
    try:
        more = {"env_kwargs": config.env_kwargs, "dressing": config.dressing, **bound}
        return record(config.env, policy.player(), folder, seed=config.seed, **more)
    except Exception as error:
        if is_users(error):
            raise
        said = " ".join(str(error).split()).rstrip(".")
        if not isinstance(error, ValueError):  # not our own error about an environment that renders nothing
            said = (
                f"{type(error).__name__}: {said}. Without a display, set MUJOCO_GL=egl (or osmesa) for MuJoCo and "
                "SDL_VIDEODRIVER=dummy for others"
            )
        raise RunError(f"the evaluation is complete, but its video could not be made: {said}") from error
    finally:
        gc.collect()
        sys.unraisablehook = hook


def _print_table(seeds: list[int], result: Any, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from telescope.metrics import interval, interval_name

    table = Table("seed", "return", "std", "lowest", "length", box=None)
    for seed, returns, lengths in zip(seeds, result.returns, result.lengths, strict=True):
        numbers = (returns.mean(), returns.std(), returns.min(), lengths.mean())
        table.add_row(str(seed), *(f"{x:,.1f}" for x in numbers))
    console = Console()
    console.print(table)
    low, high = interval(summary["per_seed"])
    one = len(seeds) == 1
    around = "one seed, so no interval" if one else f"{interval_name(len(seeds))} {low:,.1f} to {high:,.1f}"
    console.print(f"IQM over seeds {summary['iqm']:,.1f} ({around})", highlight=False)
    console.print(f"mean {summary['mean']:,.1f}, worst seed {summary['worst']:,.1f}", highlight=False)
    console.print(f"{summary['episodes']} episode{'s' * (summary['episodes'] > 1)} per seed", highlight=False)
