"""The object that every training loop yields: the rows of one iteration, and the state from which the run continues.

It is one type for agents, language models and runs over several processes. Each of them may extend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Run(Protocol):
    """The interface of a run that an iteration uses."""

    @property
    def step(self) -> int:
        """Steps per seed so far."""

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""


class AgentRun(Run, Protocol):
    """A run of agents, whose acting part can be had alone."""

    def policy(self) -> dict[str, Any]:
        """The part of the state that acting needs."""

    def light_state(self) -> dict[str, Any]:
        """The state without the steps in replay buffers."""

    def chunk(self, share: int, start: int) -> dict[str, Any] | None:
        """The next steps of a share's replay buffer from row `start` on; None if there are no more."""


class ChunkStore(Protocol):
    """Where steps of replay buffers are kept in chunks."""

    def stop(self, share: int) -> int:
        """The row after those of this share that are here."""

    def add(self, share: int, chunk: dict[str, Any]) -> None:
        """Keep a chunk."""

    def names(self, share: int, first: int) -> list[str]:
        """The names of this share's chunks with rows from `first` on."""


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
        """The run's clock so far: environment steps per seed, or iterations on language models."""
        self.total_steps = total_steps
        """The clock at the end of the run."""
        self.finished = finished
        """Whether the run ends with this iteration."""
        self.notes = list(notes)
        """Sentences about this run for its user, for instance about what cannot be resumed exactly."""
        self.warnings = list(warnings)
        """Sentences about this iteration, for instance about evaluation episodes that never ended."""

    @property
    def state(self) -> dict[str, Any]:
        """A nested dictionary of arrays and plain values; `train(config, resume=state)` continues bit for bit.

        It is captured when you read it. Read it before you request the next iteration; later it raises a RuntimeError.
        """
        self._require_current()
        return self._run.state()

    def _require_current(self) -> None:
        if self._run.step != self.step:
            raise RuntimeError(
                f"the state after step {self.step} is gone: training has reached step {self._run.step}; "
                "read `.state` before requesting the next iteration"
            )


class AgentIteration(Iteration):
    """An iteration of agents in environments."""

    _run: AgentRun

    @property
    def policy(self) -> dict[str, Any]:
        """The part of the state that acting needs."""
        self._require_current()
        return self._run.policy()

    @property
    def light_state(self) -> dict[str, Any]:
        """The state without the steps in replay buffers."""
        self._require_current()
        return self._run.light_state()

    def chunk(self, share: int, start: int) -> dict[str, Any] | None:
        """The next steps of a share's replay buffer from row `start` on; None if there are no more."""
        return self._run.chunk(share, start)

    def state_beside(self, store: ChunkStore) -> dict[str, Any]:
        """The state, with names in place of the steps in replay buffers, which go to `store` unless they are there."""
        state = self.light_state
        for share, part in enumerate(state.get("shares", [state])):
            if "replay" in part:
                while (chunk := self.chunk(share, store.stop(share))) is not None:
                    store.add(share, chunk)
                part["replay"]["chunks"] = store.names(share, part["replay"]["first"])
        return state
