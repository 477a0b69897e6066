"""The loop around an algorithm's `train`: log, keep the best agents, save checkpoints, stop on a signal, draw curves.

`telescope.train` from Python and the command line use it. Leaves out where settings come from (`commands/train.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescope.algorithms import LANGUAGE, algorithm_of, called, family, find, subject_field

if TYPE_CHECKING:
    from telescope.runs.display import Display
    from telescope.runs.folder import RunFolder

DEFAULT_LOG = ("tensorboard",)
"""Where metrics go besides metrics.csv, if nobody says otherwise."""
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
"""How the threads of one step wait for each other: awake for a fraction of a millisecond, then asleep.

torch's threads stay awake fifteen times as long. On a machine with other work they then take processors from it, and
steps take several times as long. If they slept sooner, steps would spend up to half of their time on waking them.
"""


def wait_asleep() -> None:
    """Make threads wait this way. Call it before torch is loaded. The user's own settings stay."""
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)


def train(
    config: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    checkpoint_seconds: float = 60.0,
    log: Sequence[Any] = DEFAULT_LOG,
    **more: Any,
) -> RunFolder:
    """Train into a run folder, as `telescope train` does, and return the folder for `telescope.load`.

    config: the configuration of any algorithm. out: the new folder, by default runs/ALGORITHM-ENV-DATE-TIME.
    checkpoint_seconds: write a checkpoint at least this often. log: where metrics go besides metrics.csv: names as in
    `telescope train --log`, and functions that take the rows of an iteration, a list of dicts. more: further arguments
    of the algorithm's `train`, such as `network=`, or `start=` with another run's folder or state. Ctrl-C and SIGTERM
    write a checkpoint, then raise KeyboardInterrupt and SystemExit.
    """
    begun_from = more.get("start", "")
    words = ["--start", begun_from if isinstance(begun_from, str) else "STATE"] if begun_from else []
    folder, status = begin(config, out, checkpoint_seconds, command=["from Python", *words], log=log, **more)
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)
    assert folder is not None  # torchrun's other ranks have already ended
    return folder


def begin(
    config: Any,
    out: str | os.PathLike[str] | None,
    checkpoint_seconds: float,
    *,
    command: list[str],
    log: Sequence[Any] = DEFAULT_LOG,
    **more: Any,
) -> tuple[RunFolder | None, int]:
    """Begin a new run. Return its folder (None on torchrun's other ranks) and exit status."""
    from telescope.runs.folder import RunFolder
    from telescope.runs.trackers import chosen

    log = chosen(log)

    algorithm = algorithm_of(config)
    shared, tried = family(algorithm), {}
    if "start" in more:
        tried["start"] = more["start"] = _state_of(more["start"])
    named, made_from = config, dict[str, str]()
    spaces = shared.try_out(config, **tried)  # an invalid config leaves no folder behind
    if algorithm in LANGUAGE:
        from telescope.language.data.inputs import inputs, resolved

        config = resolved(config)
    if follows(algorithm):
        return None, follow(algorithm, config, None, **more)
    if algorithm in LANGUAGE:
        made_from = inputs(config)
    subject = re.sub(r"\.(jsonl?|csv|parquet)$", "", subject_of(named)).strip("/").replace("/", "-")
    out = out or Path("runs") / f"{called(config)}-{subject}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder.create(
        out,
        config,
        algorithm=algorithm,
        execution=shared.execution(config),
        command=command,
        inputs=made_from,
        log=[one for one in log if isinstance(one, str)],
        spaces=spaces,
    )
    try:
        with folder.lock():
            return folder, run(folder, config, None, checkpoint_seconds, log=log, **more)
    except Exception:
        if algorithm in LANGUAGE:  # a late error about the model must not block the next try
            folder.discard()
        raise


def _state_of(run: Any) -> Any:
    """The state of a run, given by its folder. A state is returned unchanged."""
    if not isinstance(run, str | os.PathLike):
        return run
    from telescope.runs.files import RunError
    from telescope.runs.folder import RunFolder

    state = RunFolder.open(run).load_checkpoint()
    if state is None:
        raise RunError(f"{run} has no checkpoint yet to begin with; `telescope train --resume` continues the run")
    return state


def run(
    folder: RunFolder,
    config: Any,
    state: dict[str, Any] | None,
    checkpoint_seconds: float,
    *,
    resumed: Callable[[], None] | None = None,
    log: Sequence[Any] = DEFAULT_LOG,
    **more: Any,
) -> int:
    """The loop around an algorithm's `train`, under the folder's lock. Return the exit status: 0, or 128 + a signal.

    resumed: what a resumed run records after it has started. A resume that fails changes nothing on disk. log: where
    metrics go besides metrics.csv, as `trackers.chosen` returns it.
    """
    from telescope.language import parallel
    from telescope.language.models.memory import sparing
    from telescope.runs.display import Display

    if folder.algorithm in LANGUAGE:
        parallel.join(config.device)
    with (
        Display(config.total_steps, first_step=0 if state is None else clocks_of(state)) as display,
        _signals(display, folder) as received,
    ):
        writer = Writer(folder, config, state, display, resumed, log)
        try:
            loop = find(folder.algorithm).train(config, state, **more)
            for metrics in sparing(loop) if writer.language else loop:
                writer.write(metrics)
                stop, due = parallel.agree(received, writer.is_due(metrics, checkpoint_seconds))
                if due:
                    writer.checkpoint(metrics)
                if stop or (metrics.finished and not writer.language):  # a loop of agents would copy its last state
                    break
        except BaseException as error:
            if writer.tables or resumed is None:
                with contextlib.suppress(OSError):  # report the first error
                    folder.set_status("stopped")
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"interrupted, back to the last checkpoint; {resumable(folder)}") from None
            raise
        finally:
            writer.close()
        stopped = bool(stop) and not metrics.finished
        folder.set_status("stopped" if stopped else "finished")
        draw_curve(folder, display.note)
    if stopped:
        print(f"stopped at step {metrics.step:,} of {config.total_steps:,}; {resumable(folder)}", file=sys.stderr)
    return parallel.leave(128 + stop if stopped else 0)


class Writer:
    """Writes a run's files during training: tables, the best agents, checkpoints."""

    def __init__(
        self,
        folder: RunFolder,
        config: Any,
        state: dict[str, Any] | None,
        display: Display,
        resumed: Callable[[], None] | None,
        log: Sequence[Any],
    ) -> None:
        from telescope.runs.chunks import Store

        self.folder, self.config, self.display, self.resumed = folder, config, display, resumed
        self.log = log
        self.language = folder.algorithm in LANGUAGE
        self.resume_step: int | None = None if state is None else state["step"]
        self.clocks = None if state is None else clocks_of(state)
        self.best: dict[str, Any] | None = None if state is None else state.get("best")
        self.tables: dict[str, Any] = {}
        self.chunks = Store(folder, state)
        self.saved = time.monotonic()
        display.note(f"training {folder.method} on {subject_of(config)}, {_named(folder.seeds)}: {folder.path}")

    def write(self, metrics: Any) -> None:
        """Write one iteration: its rows, a language model's samples and findings, the best agents so far."""
        if not self.tables:
            self._begin(metrics)
        self.tables["metrics.csv"].write(metrics.rows)
        self.trackers.write(metrics.rows)
        self.display.show(metrics.rows)
        for sentence in metrics.warnings:
            self.display.note(f"step {metrics.step}: {sentence}")
        if self.language:
            self.tables["samples.csv"].write(metrics.step, metrics.table)
            self.tables["health.csv"].write(metrics.step, [finding._asdict() for finding in metrics.findings])
            return
        from telescope.policy import keep_best

        if (improved := keep_best(self.best, metrics.policy, metrics.rows, self.folder.seeds)) is not None:
            self.best = improved
            self.folder.save_best(self.best)

    def _begin(self, metrics: Any) -> None:
        from telescope.renamed import COLUMNS
        from telescope.runs.formats.config import to_mapping
        from telescope.runs.formats.log import METRICS, MetricsLog
        from telescope.runs.formats.tables import GrowingTable
        from telescope.runs.trackers import TENSORBOARD, Trackers

        if self.resumed is not None:
            self.resumed()
        self.folder.save_config(self.config)
        self.folder.save_best(self.best)  # those of the checkpoint: later ones will be trained again
        self.folder.set_status("running")
        self.trackers = Trackers(self.log, self.folder, to_mapping(self.config), self.display.note)
        marks = self.folder.marks
        self.tables[METRICS] = MetricsLog(
            self.folder,
            columns=list(metrics.rows[0]),
            resume_step=self.clocks,
            mark=marks.get(METRICS),
            former=COLUMNS.get(self.folder.algorithm),
            tensorboard=TENSORBOARD in self.log,
        )
        for path in (self.folder.samples_path, self.folder.health_path):
            self.tables[path.name] = GrowingTable(path, resume_step=self.resume_step, mark=marks.get(path.name))
        for sentence in metrics.notes:
            self.display.note(sentence)

    def is_due(self, metrics: Any, checkpoint_seconds: float) -> bool:
        """Whether to write a checkpoint now. One follows a warm start, so that it is never repeated."""
        started = self.language and metrics.step == 0
        return started or metrics.finished or time.monotonic() - self.saved >= checkpoint_seconds

    def checkpoint(self, metrics: Any) -> None:
        """Write everything that a resumed run needs."""
        for table in self.tables.values():
            table.sync()
        if self.language:  # before the checkpoint, so that a finished run has its model
            self.folder.save_model(metrics.save_model)
            if metrics.has_adapter:
                self.folder.save_adapter(metrics.save_adapter)
            if metrics.has_critic:
                self.folder.save_critic(metrics.save_critic)
        marks = {name: table.mark for name, table in self.tables.items()}
        state = metrics.state if self.language else metrics.state_beside(self.chunks)
        self.folder.save_checkpoint({**state, "best": self.best}, marks)
        self.chunks.prune()
        self.saved = time.monotonic()

    def close(self) -> None:
        """Close the tables and trackers."""
        for table in self.tables.values():
            table.close()
        if self.tables:
            self.trackers.close()


def clocks_of(state: dict[str, Any]) -> int | dict[int, int]:
    """The clock of a state: one for the run, or seed → its own where iterations have whole episodes."""
    clocks = state.get("clocks")
    return state["step"] if clocks is None else dict(zip(state["seeds"], map(int, clocks), strict=True))


def follow(algorithm: str, config: Any, state: dict[str, Any] | None, **more: Any) -> int:
    """The same loop on all ranks but the first. They train, and write and print nothing."""
    from telescope.language import parallel

    parallel.join(config.device)
    with _signals() as received:
        for metrics in find(algorithm).train(config, state, **more):
            stop, due = parallel.agree(received, False)
            if due:
                metrics.save_model("")  # weights may be sharded, so all ranks take part in saving
                if metrics.has_adapter:
                    metrics.save_adapter("")
                _ = metrics.state
            if stop:
                break
    return parallel.leave(128 + stop if stop and not metrics.finished else 0)


def follows(algorithm: str) -> bool:
    """Whether torchrun started this process as another rank than the first, which alone writes and prints."""
    from telescope.language import parallel

    rank, size = parallel.started()
    if size > 1 and algorithm not in LANGUAGE:
        raise ValueError(f"torchrun started {size} processes, but {algorithm} starts its own: --processes")
    return rank > 0


def draw_curve(folder: Any, say: Callable[[str], None]) -> None:
    """Draw the learning curve into the folder, and print where it is, or why there is none."""
    from telescope.runs.files import RunError
    from telescope.runs.formats.curves import plot as draw

    try:
        draw([folder], folder.curves_path)
    except (ValueError, RunError) as error:  # for example no ended episode: the run itself is fine
        say(f"no learning curve: {error}")
    else:
        say(f"learning curve: {folder.path / folder.curves_path.name}")


def resumable(folder: RunFolder) -> str:
    """How to continue this run, as the end of a sentence."""
    return f"continue with: telescope train --resume {shlex.quote(str(folder.path))}"


def subject_of(config: Any) -> str:
    """The subject of a run: its task, or its environment's id or name."""
    subject = getattr(config, subject_field(config))
    return subject if isinstance(subject, str) else getattr(subject, "__name__", type(subject).__name__)


@contextlib.contextmanager
def _signals(display: Display | None = None, folder: RunFolder | None = None) -> Iterator[list[int]]:
    """A list that receives SIGINT, SIGTERM or SIGHUP, for a check between iterations. A second SIGINT interrupts now.

    The display confirms the first one at once. In a thread, which receives no signals, the list stays empty. An ignored
    SIGHUP (nohup) stays ignored.
    """
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        if display is not None and folder is not None:
            again = "Ctrl-C again stops now" if number == signal.SIGINT else "SIGINT stops now"
            with contextlib.suppress(RuntimeError, OSError):  # the signal may interrupt the display's own writing
                display.note(f"stopping after this iteration, with a checkpoint; {again}; then {resumable(folder)}")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _named(seeds: list[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}–{seeds[-1]}"
