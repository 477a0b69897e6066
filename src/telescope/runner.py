"""The loop around `train`: log, keep the best, checkpoint, stop if asked, draw.

Leaves out where its settings come from (`commands/train.py`).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How threads wait for each other where language models are trained: some microseconds awake, then asleep.

Always awake, as torch has it, they take the processors from other work and steps last many times as long; asleep at
once, small steps spend much of their time on waking them. PPO on environments leaves threads as torch has them.
"""


def wait_asleep() -> None:
    """Have threads wait so. To be called before torch is loaded; what the user has set stays."""
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)


def run(folder: Any, config: Any, state: dict[str, Any] | None, checkpoint_seconds: float) -> int:
    """The loop around `train`, under the folder's lock: log, keep the best, checkpoint, stop if asked, draw."""
    from telescope.algorithms import LANGUAGE, find, subject_field
    from telescope.language import parallel
    from telescope.runs.display import Display
    from telescope.runs.log import METRICS, MetricsLog
    from telescope.runs.tables import GrowingTable

    language = folder.algorithm in LANGUAGE
    if language:
        parallel.join(config.device)
    else:
        from telescope.policy import keep_best
    first_step, best = (0, None) if state is None else (state["step"], state["best"])
    log, saved, stop = None, time.monotonic(), 0
    tables: dict[str, Any] = {}
    with _signals() as received, Display(config.total_steps, first_step=first_step) as display:
        folder.save_config(config)
        folder.save_best(best)  # the checkpoint's: what evaluated better after it is about to be trained anew
        folder.set_status("running")
        subject = getattr(config, subject_field(config))
        display.note(f"training {folder.method} on {subject}, seeds {_range(folder.seeds)}: {folder.path}")
        try:
            for metrics in find(folder.algorithm).train(config, state):
                if log is None:
                    resumed = first_step if state else None
                    columns, marks = list(metrics.rows[0]), folder.marks
                    log = MetricsLog(folder, columns=columns, resume_step=resumed, mark=marks.get(METRICS))
                    samples, health = (
                        GrowingTable(path, resume_step=resumed, mark=marks.get(path.name))
                        for path in (folder.samples_path, folder.health_path)
                    )
                    tables = {METRICS: log, folder.samples_path.name: samples, folder.health_path.name: health}
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
                    for table in tables.values():
                        table.sync()
                    if language:  # before the checkpoint: what that calls finished has its model
                        folder.save_model(metrics.save_model)
                        if metrics.has_adapter:
                            folder.save_adapter(metrics.save_adapter)
                    marks = {name: table.mark for name, table in tables.items()}
                    folder.save_checkpoint({**metrics.state, "best": best}, marks)
                    saved = time.monotonic()
                if stop:
                    break
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                folder.set_status("stopped")
            raise
        finally:
            for table in tables.values():
                table.close()
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


def follows(algorithm: str) -> bool:
    """Has torchrun started this process beside a first one, which alone writes and prints?"""
    from telescope.algorithms import LANGUAGE
    from telescope.language import parallel

    rank, size = parallel.started()
    if size > 1 and algorithm not in LANGUAGE:
        raise ValueError(f"torchrun started {size} processes, but {algorithm} starts its own: --processes")
    return rank > 0


def _draw_curve(folder: Any, display: Any) -> None:
    from telescope.runs.curves import plot as draw
    from telescope.runs.files import RunError

    try:
        draw([folder], folder.curves_path)
    except (ValueError, RunError) as error:  # no episode has ended yet, say: that takes nothing from the run
        display.note(f"no learning curve: {error}")
    else:
        display.note(f"learning curve: {folder.path / folder.curves_path.name}")


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


def _range(seeds: list[int]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
