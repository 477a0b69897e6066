"""The command line: `telescope train`, `eval`, `plot`, `report` and the others, with errors as one sentence.

Leaves out the commands themselves (`commands/`).
"""

from __future__ import annotations

import difflib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from telescope.commands.algorithms import algorithms
from telescope.commands.arguments import HELP
from telescope.commands.doctor import doctor
from telescope.commands.evaluate import evaluate
from telescope.commands.export import export
from telescope.commands.lab import lab
from telescope.commands.plot import plot
from telescope.commands.record import record
from telescope.commands.report import report
from telescope.commands.show import show
from telescope.commands.standins import with_standins
from telescope.commands.sweep import sweep
from telescope.commands.train import train
from telescope.commands.tune import tune
from telescope.commands.watch import watch
from telescope.failures import installed, is_users, missing_extra
from telescope.streams import delivered, mended

USAGE = """usage: telescope COMMAND …

  telescope train ALGORITHM ENV [flags]     train a population of seeds: telescope train ppo CartPole-v1 --seeds 8
  telescope train ALGORITHM TASK [flags]    train a language model: telescope train grpo lm/addition
  telescope train --resume RUN [flags]      continue a run where it stopped, bit for bit
  telescope train --start RUN [flags]       begin a new run from another run's agents
  telescope eval RUN [flags]                evaluate the agents of a run
  telescope record RUN --out FILE           write demonstrations, for telescope train bc FILE --env ENV
  telescope export RUN --out policy.onnx    write an agent for use without telescope (or policy.npz, for NumPy alone)
  telescope watch RUN                       follow a run in the terminal, while it trains or afterwards
  telescope plot RUN [RUN …] --out FILE     draw learning curves
  telescope report RUN [RUN …]              compare runs of any library on one HTML page
  telescope tune ALGORITHM ENV [flags]      search for better settings
  telescope sweep FILE.toml [flags]         a grid of settings, or random draws, on all processors or a cluster
  telescope show DATA --model M             show the tokens that a language model reads, and where the loss counts
  telescope show RUN                        show completions that a language model wrote, with their scores
  telescope algorithms [--json]             list what can be trained
  telescope doctor rollout.npz              find mistakes in a rollout, whatever library made it
  telescope lab study                       measure every estimator on a world whose truth is known
  telescope lab explore RUN|rollout.npz     see advantages change with λ, in one HTML page
  telescope lab gae-paper                   learn the GAE paper's cart-pole with every λ and γ, and draw its figure
  telescope --version

Each command explains its flags with --help (telescope train ppo CartPole-v1 --help shows that environment's preset).
Training needs more packages than the estimators: pip install "telescope-rl[control]", or [language]
"""

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "plot": plot,
    "report": report,
    "show": show,
    "record": record,
    "export": export,
    "watch": watch,
    "algorithms": algorithms,
    "tune": tune,
    "sweep": sweep,
    "doctor": doctor,
    "lab": lab,
}

WORDS = {
    "evaluate": "eval",
    "test": "eval",
    "learn": "train",
    "fit": "train",
    "run": "train",
    "resume": "train --resume",
    "list": "algorithms",
    "compare": "report",
    "collect": "record",
    "deploy": "export",
    "onnx": "export",
    "follow": "watch",
    "status": "watch",
    "check": "doctor",
    "diagnose": "doctor",
}
"""Commands of other programs → ours."""

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
"""Environment variables that turn off libraries' progress bars and greetings."""

COLLECTED = (50_000, 20, 20)
"""Thresholds of Python's garbage collection. torch's imports make a million objects that stay: looking through them as
often as by default takes half a second of a start."""

TOLD = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)
"""Types of exceptions that telescope raises with a sentence. Any other type is a bug in its code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failed run, 2 for an invalid command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quieten()
    if argv is None:
        gc.set_threshold(*COLLECTED)
    with mended():
        status = _run(arguments, alone=argv is None)
        lost = delivered()
        return _fail(lost, status or 1) if lost else status


def _run(arguments: list[str], *, alone: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import telescope

        print(f"telescope {telescope.__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        close = (
            [WORDS[arguments[0]]] if arguments[0] in WORDS else difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        )
        hint, known = f"; did you mean {close[0]}?" if close else "", ", ".join(COMMANDS)
        return _fail(f"there is no command {arguments[0]!r}; expected one of {known}{hint}", 2)
    command = COMMANDS[arguments[0]]
    if alone and command is train and HELP & set(arguments):
        return _explained(lambda rest: with_standins(train, rest), arguments[1:])
    return _explained(command, arguments[1:])


def _quieten() -> None:
    """Turn off libraries' progress bars, and warnings about their own code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if sys.warnoptions:  # the user chose which to show
        return
    show = warnings.showwarning

    def those_of_the_user(message: Any, category: Any, filename: str, *place: Any) -> None:
        if not installed(filename):
            show(message, category, filename, *place)

    warnings.showwarning = those_of_the_user  # type: ignore[assignment]


def _explained(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Print errors as one sentence on standard error. Errors of the user's code keep their traceback."""
    try:
        return command(arguments)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)
    except Exception as error:
        if is_users(error.with_traceback(_below(error))) or not isinstance(error, TOLD):
            traceback.print_exception(error)
            return 1
        return _fail(missing_extra(error) or f"{error}", 2 if isinstance(error, ValueError) else 1)


def _below(error: Exception) -> TracebackType | None:
    """The traceback without this file's frame, which `python -m telescope.cli` calls `__main__`."""
    return error.__traceback__ and error.__traceback__.tb_next


def _fail(sentence: str, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"telescope{'' if rank == '0' else f' (rank {rank})'}: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
