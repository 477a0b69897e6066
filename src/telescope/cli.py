"""The command line: `telescope train`, `eval` and `plot`; its training loop is the documented example of `train`.

Flags are made from the config dataclasses. What a run is, and how an algorithm works, stands elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

USAGE = """usage: telescope COMMAND …

  telescope train ALGORITHM ENV [flags]     train a population of seeds: telescope train ppo CartPole-v1 --seeds 8
  telescope train ALGORITHM TASK [flags]    train a language model: telescope train grpo lm/addition
  telescope train --resume RUN [flags]      continue a run where it stopped, bit for bit
  telescope eval RUN [flags]                evaluate the agents of a run
  telescope plot RUN [RUN …] --out FILE     draw learning curves
  telescope --version

Each command explains its flags with --help (telescope train ppo CartPole-v1 --help shows that environment's preset).
Training needs more packages than the estimators: pip install "telescope-rl[control]", or [language]
"""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Where the run goes."""

    out: str | None = None
    """The run folder, made anew; by default runs/ALGORITHM-ENV-DATE-TIME."""
    config: str | None = None
    """A TOML file with settings (a run's own config.toml, say); flags override it."""
    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least this often; a killed run loses at most the work since the last one."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Continue a run where it stopped."""

    resume: str
    """The run folder."""
    total_steps: int | None = None
    """Train to this many steps per seed instead; schedules are planned anew for it."""
    allow_inexact: bool = False
    """Continue even if versions or machine differ, so that the last bits may."""
    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least this often."""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Evaluate the agents of a run on whole episodes."""

    episodes: int = 100
    """Episodes per seed."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""
    stochastic: bool = False
    """Sample actions instead of taking the policy's mode."""
    best: bool = False
    """Each seed as it was at its best evaluation during training (--eval-every), instead of at the end."""
    video: str | None = None
    """Also record one episode of the first seed into this folder."""


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """Evaluate the language model of a run on held-out prompts, greedily."""

    prompts: int = 1000
    """Held-out prompts, at most."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves: interquartile mean over seeds with its 95 % bootstrap interval."""

    out: str = "curves.png"
    """The picture to write."""
    metric: str = "auto"
    """A column of metrics.csv; auto: return_mean, or exact_match or reward of a language model."""


WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How threads wait for each other where language models are trained: some microseconds awake, then asleep.

Always awake, as torch has it, they take the processors from other work and steps last many times as long; asleep at
once, small steps spend much of their time on waking them. PPO on environments leaves threads as torch has them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a run that failed, 2 for a command that makes no sense."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(word.startswith("lm/") or word.endswith(".jsonl") for word in arguments):
        for name, value in WAITING.items():  # before torch is loaded
            os.environ.setdefault(name, value)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import telescope

        print(f"telescope {telescope.__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {"train": train, "eval": evaluate, "plot": plot}
    if arguments[0] not in commands:
        return _fail(f"there is no command {arguments[0]!r}; expected train, eval or plot", 2)
    return _explained(commands[arguments[0]], arguments[1:])


def _explained(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Turn what can go wrong into one sentence on standard error."""
    try:
        return command(arguments)
    except ImportError as error:
        return _fail(f"{error}", 1)
    except FloatingPointError as error:
        return _fail(f"{error}", 1)
    except ValueError as error:
        return _fail(f"{error}", 2)
    except OSError as error:
        return _fail(f"{error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; what was trained since the last checkpoint is lost", 130)


def _fail(sentence: str, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"telescope{'' if rank == '0' else f' (rank {rank})'}: {sentence}", file=sys.stderr)
    return status


# train


def train(arguments: list[str]) -> int:
    """`telescope train ALGORITHM ENV [flags]` or `telescope train --resume RUN`."""
    if any(a == "--resume" or a.startswith("--resume=") for a in arguments):
        return resume(arguments)
    from telescope.algorithms import CONFIGS, ROWS

    if not arguments or arguments[0].startswith("-"):
        known = ", ".join((*CONFIGS, *ROWS))
        print(f"usage: telescope train ALGORITHM ENV|TASK [flags]\n"
              "       telescope train --resume RUN [--total-steps N] [--allow-inexact]\n"
              f"ALGORITHM is one of: {known}")  # fmt: skip
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    name, rest = arguments[0], arguments[1:]
    subject = rest.pop(0) if rest and not rest[0].startswith("-") else None
    algorithm, config, options = _train_arguments(name, subject, rest)
    return start(algorithm, config, options, ["telescope", "train", *arguments])


def _train_arguments(name: str, positional: str | None, flags: list[str]) -> tuple[str, Any, TrainOptions]:
    """Algorithm and config: the preset of the environment or task, overridden by --config FILE, overridden by flags."""
    from telescope.algorithms import config_class, find, meant
    from telescope.runs.config import from_mapping, read_toml, to_mapping

    file = _value_of("--config", flags)
    settings = {} if file is None else read_toml(file)
    algorithm, preset = meant(name, positional or _value_of("--task", flags) or settings.get("task"))
    cls = config_class(algorithm)
    what, field = ("task", "task") if _subject_field(cls) == "task" else ("environment", "env")
    subject = _one_subject(what, positional, _value_of(f"--{field}", flags)) or settings.get(field)
    if subject is None and not any(flag in flags for flag in ("-h", "--help")):
        example = "lm/addition" if field == "task" else "CartPole-v1"
        raise ValueError(f"no {what} was named; it comes right after the algorithm: train {name} {example}")
    if not isinstance(subject, str | None):
        raise ValueError(f"{field} is {subject!r} in {file}; expected a string")
    default = find(algorithm).preset(subject, **preset) if subject else cls()
    named = {field: subject} if subject else {}
    default = from_mapping(cls, to_mapping(default) | settings | named, source=str(file))
    arguments = dataclasses.make_dataclass("Arguments", [("config", cls), ("run", TrainOptions)])
    title = f"telescope train {name} {subject or field.upper()}"
    parsed = _parse(arguments, flags, title, {"config": default, "run": TrainOptions()})
    return algorithm, parsed.config, parsed.run


def _subject_field(config: Any) -> str:
    """The field that says what a run is about: `task` of a language model, `env` of everything else."""
    return "task" if hasattr(config, "task") else "env"


def _one_subject(what: str, positional: str | None, flag: str | None) -> str | None:
    if positional is not None and flag is not None and positional != flag:
        raise ValueError(f"two {what}s were named, {positional} and {flag}; name one")
    return positional or flag


def start(algorithm: str, config: Any, options: TrainOptions, command: list[str]) -> int:
    """Begin a new run."""
    from telescope.algorithms import family
    from telescope.runs.folder import RunFolder

    shared = family(algorithm)
    shared.try_out(config)  # what cannot run leaves no folder behind
    if _follows(algorithm):
        return follow(algorithm, config, None)
    subject = getattr(config, _subject_field(config)).removesuffix(".jsonl").strip("/").replace("/", "-")
    out = options.out or str(Path("runs") / f"{command[2]}-{subject}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = RunFolder.create(out, config, algorithm=algorithm, execution=shared.execution(config), command=command)
    with folder.lock():
        return run(folder, config, None, options.checkpoint_seconds)


def resume(arguments: list[str]) -> int:
    """Continue a run from its checkpoint, or from its config where it has none yet."""
    from telescope.runs.folder import RunFolder

    options: ResumeOptions = _parse(ResumeOptions, arguments, "telescope train")
    folder = RunFolder.open(options.resume)
    with contextlib.nullcontext() if _follows(folder.algorithm) else folder.lock():
        return _resume_locked(folder, options)


def _resume_locked(folder: Any, options: ResumeOptions) -> int:
    from telescope.algorithms import config_class, family
    from telescope.language import parallel

    first = not _follows(folder.algorithm)
    say = print if first else lambda *_, **__: None
    execution = family(folder.algorithm).execution
    config = folder.load_config(config_class(folder.algorithm))
    state = folder.load_checkpoint()
    if options.total_steps is not None and options.total_steps != config.total_steps:
        config = dataclasses.replace(config, total_steps=options.total_steps)
        say(f"total_steps is now {config.total_steps:,}: schedules are planned anew over it", file=sys.stderr)
    if state is None:
        say(f"{options.resume} has no checkpoint yet: starting from its config", file=sys.stderr)
        if first:
            folder.set_execution(execution(config))
    elif state["iteration"] >= config.iterations or state.get("stopped"):
        done = f"{state['step']:,} steps done, total_steps is {config.total_steps:,}"
        say(f"{options.resume} is finished: {done}; a larger --total-steps extends it")
        return 0
    else:
        folder.check_execution(parallel.now(state["execution"]), allow_inexact=options.allow_inexact)
    if not first:
        return follow(folder.algorithm, config, state)
    return run(folder, config, state, options.checkpoint_seconds)


def run(folder: Any, config: Any, state: dict[str, Any] | None, checkpoint_seconds: float) -> int:
    """The loop around `train`, under the folder's lock: log, keep the best, checkpoint, stop if asked, draw."""
    from telescope.algorithms import LANGUAGE, find
    from telescope.language import parallel
    from telescope.runs.display import Display
    from telescope.runs.files import replace_folder
    from telescope.runs.log import MetricsLog
    from telescope.runs.tables import GrowingTable

    language = folder.algorithm in LANGUAGE
    if language:
        parallel.join(config.device)
    else:
        from telescope.policy import keep_best
    first_step, best = (0, None) if state is None else (state["step"], state["best"])
    log, saved, stop = None, time.monotonic(), 0
    with _signals() as received, Display(config.total_steps, first_step=first_step) as display:
        folder.save_config(config)
        folder.save_best(best)  # the checkpoint's: what evaluated better after it is about to be trained anew
        folder.set_status("running")
        subject = getattr(config, _subject_field(config))
        display.note(f"training {folder.method} on {subject}, seeds {_range(folder.seeds)}: {folder.path}")
        try:
            for metrics in find(folder.algorithm).train(config, state):
                if log is None:
                    resumed = first_step if state else None
                    log = MetricsLog(folder, columns=list(metrics.rows[0]), resume_step=resumed)
                    samples = GrowingTable(folder.samples_path, resume_step=resumed)
                    health = GrowingTable(folder.health_path, resume_step=resumed)
                    for sentence in metrics.notes:
                        display.note(sentence)
                log.write(metrics.rows)
                display.show(metrics.rows)
                if language:
                    samples.write(metrics.step, metrics.table)
                    health.write(metrics.step, [finding._asdict() for finding in metrics.findings])
                    for sentence in metrics.warnings:
                        display.note(f"step {metrics.step}: {sentence}")
                elif (improved := keep_best(best, metrics.policy, metrics.rows)) is not None:
                    best = improved
                    folder.save_best(best)
                started = language and metrics.step == 0  # a warm start is not to be made twice
                due = started or metrics.finished or time.monotonic() - saved >= checkpoint_seconds
                stop, due = parallel.agree(received, due)
                if due:
                    log.sync()
                    if language:  # before the checkpoint: what that calls finished has its model
                        replace_folder(folder.model_path, metrics.save_model)
                    folder.save_checkpoint({**metrics.state, "best": best})
                    saved = time.monotonic()
                if stop:
                    break
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                folder.set_status("stopped")
            raise
        finally:
            if log is not None:
                log.close()
        folder.set_status("stopped" if stop and not metrics.finished else "finished")
        _draw_curve(folder, display)
    if stop and not metrics.finished:
        print(f"stopped at step {metrics.step:,} of {config.total_steps:,}; continue with: "
              f"telescope train --resume {shlex.quote(str(folder.path))}", file=sys.stderr)  # fmt: skip
    return parallel.leave(128 + stop if stop and not metrics.finished else 0)


def follow(algorithm: str, config: Any, state: dict[str, Any] | None) -> int:
    """The same loop on the ranks beside the first: they train along, and write and print nothing."""
    from telescope.algorithms import find
    from telescope.language import parallel

    parallel.join(config.device)
    with _signals() as received:
        for metrics in find(algorithm).train(config, state):
            stop, due = parallel.agree(received, False)
            if due:
                metrics.save_model("")  # weights may be sharded: all ranks take part in what the first one saves
                _ = metrics.state
            if stop:
                break
    return parallel.leave(128 + stop if stop and not metrics.finished else 0)


def _follows(algorithm: str) -> bool:
    """Has torchrun started this process beside a first one, which alone writes and prints?"""
    from telescope.algorithms import LANGUAGE
    from telescope.language import parallel

    rank, size = parallel.started()
    if size > 1 and algorithm not in LANGUAGE:
        raise ValueError(f"torchrun started {size} processes, but {algorithm} starts its own: --processes")
    return rank > 0


def _draw_curve(folder: Any, display: Any) -> None:
    from telescope.runs.curves import plot as draw

    try:
        draw([folder.path], folder.curves_path)
    except ValueError as error:  # no episode has ended yet, say: that takes nothing from the run
        display.note(f"no learning curve: {error}")
    else:
        display.note(f"learning curve: {folder.curves_path}")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM is put into, to be looked at between iterations; a second SIGINT interrupts."""
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# eval and plot


def evaluate(arguments: list[str]) -> int:
    """`telescope eval RUN`."""
    if (status := _evaluate_language(arguments)) is not None:
        return status
    run_path, flags = _positionals(arguments, EvalOptions)
    options: EvalOptions = _parse(EvalOptions, flags, "telescope eval RUN", {})
    if len(run_path) != 1:
        raise ValueError(f"telescope eval takes one run folder, got {len(run_path)}")
    if options.episodes < 1:
        raise ValueError(f"episodes is {options.episodes}; expected at least 1")
    from telescope.metrics import summarise
    from telescope.policy import load

    policy = load(run_path[0], best=options.best)
    result = policy.evaluate(options.episodes, stochastic=options.stochastic)
    summary = summarise(result.returns)
    if options.video is not None:
        from telescope.control.video import record

        config = policy.config
        film = record(config.env, policy.act, options.video, env_kwargs=config.env_kwargs, seed=config.seed)
        print(f"video: {film}", file=sys.stderr)
    if options.json:
        print(json.dumps(summary))
    else:
        _print_table(policy.seeds, result, summary)
    return 0


def _evaluate_language(arguments: list[str]) -> int | None:
    """`telescope eval RUN` of a language model; None where the run is not one."""
    run_path, flags = _positionals(arguments, AnswerOptions)
    if len(run_path) != 1 or not _is_language(run_path[0]):
        return None
    options: AnswerOptions = _parse(AnswerOptions, flags, "telescope eval RUN", {})
    if options.prompts < 1:
        raise ValueError(f"prompts is {options.prompts}; expected at least 1")
    from telescope.answers import load

    found = load(run_path[0]).evaluate(options.prompts)
    lines = [f"{name:12} {value:,.4g}" for name, value in found.items()]
    print(json.dumps(found) if options.json else "\n".join(lines))
    return 0


def _is_language(run: str) -> bool:
    from telescope.algorithms import LANGUAGE
    from telescope.runs.folder import RunError, RunFolder

    with contextlib.suppress(RunError):  # said where the options are understood
        return RunFolder.open(run).algorithm in LANGUAGE
    return False


def _print_table(seeds: list[int], result: Any, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("seed", "return", "std", "lowest", "length", box=None)
    for seed, returns, lengths in zip(seeds, result.returns, result.lengths, strict=True):
        numbers = (returns.mean(), returns.std(), returns.min(), lengths.mean())
        table.add_row(str(seed), *(f"{x:,.1f}" for x in numbers))
    console = Console()
    console.print(table)
    low, high = summary["ci95"]
    console.print(
        f"IQM over seeds {summary['iqm']:,.1f} (95 % bootstrap interval {low:,.1f} to {high:,.1f})", highlight=False
    )
    console.print(f"mean {summary['mean']:,.1f}, worst seed {summary['worst']:,.1f}", highlight=False)
    console.print(f"{summary['episodes']} episodes per seed", highlight=False)


def plot(arguments: list[str]) -> int:
    """`telescope plot RUN [RUN …] --out FILE`."""
    runs, flags = _positionals(arguments, PlotOptions)
    options: PlotOptions = _parse(PlotOptions, flags, "telescope plot RUN [RUN …]", {})
    if not runs:
        raise ValueError("telescope plot takes at least one run folder")
    from telescope.runs.curves import plot as draw

    print(draw(runs, options.out, metric=options.metric))
    return 0


# arguments


def _parse(cls: type[Any], flags: list[str], title: str, defaults: dict[str, Any] | None = None) -> Any:
    """Flags → the dataclass; nested dataclasses share one flat set of flags."""
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the command line needs more packages: pip install "telescope-rl[control]"') from error
    default = {} if defaults is None else {"default": cls(**defaults)}
    return tyro.cli(cls, args=flags, prog=title, config=(tyro.conf.OmitArgPrefixes,), **default)


def _positionals(arguments: list[str], options: Any) -> tuple[list[str], list[str]]:
    """The arguments that are no flags nor values of flags, and the rest."""
    switches = {f"--{field.name}" for field in dataclasses.fields(options) if field.default is False}
    positionals, flags = list[str](), list[str]()
    for argument in arguments:
        takes_value = bool(flags) and flags[-1].startswith("--") and flags[-1] not in switches and "=" not in flags[-1]
        (flags if argument.startswith("-") or takes_value else positionals).append(argument)
    return positionals, flags


def _value_of(flag: str, flags: list[str]) -> str | None:
    """The value of one flag before the others are parsed."""
    for i, argument in enumerate(flags):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(flags):
            return flags[i + 1]
    return None


def _range(seeds: list[int]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"


if __name__ == "__main__":
    sys.exit(main())
