"""What every training loop yields: the rows of one iteration, and the state from which the run continues.

One type for agents, language models and runs over several processes. What only one of them has extends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Run(Protocol):
    """What an iteration asks of the run behind it."""

    @property
    def step(self) -> int:
        """Steps per seed so far."""

    def state(self) -> dict[str, Any]:
        """Everything that the run needs to continue."""

    def policy(self) -> dict[str, Any]:
        """The part of the state that acting needs."""


class Iteration:
    """Metrics of the iteration just finished, and everything needed to continue from here."""

    def __init__(
        self,
        run: Any,
        *,
        rows: list[dict[str, Any]],
        total_steps: int,
        finished: bool,
        notes: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self._run: Run = run
        self.rows = rows
        """One dictionary per seed; the keys are the columns of metrics.csv."""
        self.step = run.step
        """Steps per seed so far: of the environments, or of the optimiser on language models."""
        self.total_steps = total_steps
        """Steps per seed of the whole run."""
        self.finished = finished
        """True where the run ends with this iteration."""
        self.notes = list(notes)
        """Sentences about this run that its user should see (what cannot be resumed exactly, say)."""
        self.warnings = list(warnings)
        """Sentences about this iteration (which episodes of its evaluation never ended, say)."""

    @property
    def state(self) -> dict[str, Any]:
        """A nested dictionary of arrays and plain values; `train(config, resume=state)` continues bit for bit.

        It is copied when you read it, so read it before the loop continues; afterwards it raises RuntimeError.
        """
        self._require_current()
        return self._run.state()

    @property
    def policy(self) -> dict[str, Any]:
        """The part of the state that acting needs."""
        self._require_current()
        return self._run.policy()

    def _require_current(self) -> None:
        if self._run.step != self.step:
            raise RuntimeError(
                f"the state after step {self.step} is gone: training has reached step {self._run.step}; "
                "read `.state` before asking for the next metrics"
            )
