"""Algorithms whose actors may act while the learner learns: their settings, and the bookkeeping of such a run.

Leaves out Ray (`workers/actors.py`), and what an actor makes from a rollout (the algorithm's file).
"""

# S seeds, B environments per seed of one actor
from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from telescope import checks
from telescope.control.config import LearnerConfig, MemoryConfig
from telescope.control.experience.rollout import Episodes, Rollout
from telescope.control.training import Session
from telescope.iteration import AgentIteration

Make = Callable[[Rollout], dict[str, Any]]
"""What an actor makes from a rollout and sends to the learner: a nested dictionary of NumPy arrays."""


@dataclasses.dataclass(frozen=True)
class ActorConfig(LearnerConfig):
    """The settings that algorithms with actors share."""

    actors: int = 0
    """Ray actors that act while the learner learns. 0: the learner's own process acts and learns in turn."""
    delay: int = 0
    """Rollouts that an actor collects ahead of the learner. 0: it waits for the update from its last rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least_zero(self, "actors", "delay")
        if self.actors and self.processes > 1:
            raise ValueError(
                f"processes is {self.processes}, but actors is {self.actors}, and each actor acts for all seeds; "
                "set processes to 1, or actors to 0"
            )


@dataclasses.dataclass(frozen=True)
class VTraceConfig(MemoryConfig, ActorConfig):
    """The settings of actor–critics that correct rollouts of older parameters by V-trace."""

    collects_rollouts = True
    lam: float = 1.0
    """λ of V-trace's targets, between 0 and 1. 0 trusts one step and the value function; 1 the whole rollout."""
    correction: Literal["vtrace", "none"] = "vtrace"
    """Correction for the age of a rollout's parameters: vtrace weighs its steps by ratios, none takes them as new."""
    rho_clip: float | None = 1.0
    """Upper bound ρ̄ of the ratio π/μ at a step's own TD error and advantage. none: no bound."""
    c_clip: float | None = 1.0
    """Upper bound c̄ of the ratio π/μ in the trace over later steps. none: no bound."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_unit_interval(self, "lam")
        checks.positive(self, "rho_clip", "c_clip")
        if self.correction == "none":
            for name in ("rho_clip", "c_clip"):
                checks.unread(self, name, "set correction to 'vtrace'", "correction is 'none'")


class Gathered(NamedTuple):
    """What an actor made from one rollout, and how it came about."""

    made: dict[str, Any]
    episodes: Episodes  # those that ended in the rollout
    version: int  # updates before the parameters that acted
    since: float  # when it was ready to learn from, in seconds of `time.time`

    def state(self) -> dict[str, Any]:
        return {"made": self.made, "episodes": self.episodes._asdict(), "version": self.version}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Gathered:
        return cls(state["made"], Episodes(**state["episodes"]), state["version"], time.time())


class Actors(Protocol):
    """Who acts. `send` and `gather` are all that a training loop needs of them."""

    def send(self, version: int, session: ActorSession) -> None:
        """From now on act with the session's parameters, which are those after `version` updates."""

    def gather(self) -> Gathered:
        """Wait for the next rollout to learn from."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""

    def statistics(self) -> dict[str, float]:
        """Further columns of the iteration."""

    def close(self) -> None:
        """End them."""


class ActorSession(Session):
    """A training run whose rollouts come from actors, `config.actors` of them, or from this process if that is 0.

    `prepare(config, session)` returns the function from a rollout to what an actor sends. It runs in each actor, on a
    session with the actor's environments and the parameters that act.
    """

    def __init__(
        self,
        config: Any,
        resume: dict[str, Any] | None,
        kind: Any,
        prepare: Callable[[Any, Session], Make],
        **more: Any,
    ) -> None:
        self._prepare, self._network = prepare, more.get("network")
        self._actors: Actors | None = None
        self._asynchrony: dict[str, float] = {}
        super().__init__(config, resume, kind, **more)

    @property
    def actors(self) -> Actors:
        """They begin when they are first needed: the session is whole then."""
        if self._actors is None:
            self._actors = self._begin_actors()
        return self._actors

    def _begin_actors(self) -> Actors:
        if self.config.actors == 0:  # type: ignore[attr-defined]
            return OwnActors(self, self._prepare(self.config, self))
        from telescope.control.workers.actors import RayActors

        return RayActors(self.config, self._prepare, self._network)

    def gather(self) -> dict[str, Any]:
        """What an actor made from the next rollout. Its parameters are some updates old: see the column `staleness`."""
        started = time.perf_counter()
        self.actors.send(self.iteration, self)
        one = self.actors.gather()
        waited = time.perf_counter() - started if self.config.actors else 0.0  # type: ignore[attr-defined]
        self._collecting += waited
        self._episodes = one.episodes
        self._asynchrony = {
            "staleness": float(self.iteration - one.version),
            **self.actors.statistics(),
            "time_queue": max(0.0, time.time() - one.since),
            "time_wait": waited,
        }
        return one.made

    def play_rollout(self, ticket: int) -> tuple[Rollout, Episodes]:
        """Collect a rollout in this process with the current policies and the noise of this number."""
        with self._acting():
            return self.rollouts.collect(self.rollouts.actor(self.agents, self.parameters), ticket)

    def finish(self, statistics: Mapping[str, np.ndarray | None]) -> AgentIteration:
        own = {name: np.full(self.config.seeds, value) for name, value in self._asynchrony.items()}
        return super().finish({**statistics, **own})

    def light_state(self) -> dict[str, Any]:
        if self._last_state is not None:
            return dict(self._last_state)
        return {**super().light_state(), "actors": self.actors.state()}

    def _restore_parts(self, state: dict[str, Any], allow_inexact: bool) -> None:
        super()._restore_parts(state, allow_inexact)
        self.actors.restore(state["actors"])
        if self.config.actors:  # type: ignore[attr-defined]
            self.notes.append("the actors begin new episodes; the rollouts that were on their way are collected anew")

    def close(self) -> None:
        super().close()
        if self._actors is not None:
            self._actors.close()


class OwnActors:
    """The case without actors: the session's own process acts whenever a rollout is due, so every run is exact.

    With `delay` D it acts D rollouts ahead, as an actor would, and the learner's rollouts are D updates old.
    """

    def __init__(self, session: ActorSession, make: Make) -> None:
        self.session, self.make = session, make
        self.tickets = 0
        """Rollouts so far. Each has random numbers of its own."""
        self.ready: collections.deque[Gathered] = collections.deque()

    def send(self, version: int, session: ActorSession) -> None:
        config: Any = session.config
        while len(self.ready) <= config.delay and self.tickets < config.iterations:
            rollout, episodes = session.play_rollout(self.tickets)
            self.ready.append(Gathered(self.make(rollout), episodes, version, time.time()))
            self.tickets += 1

    def gather(self) -> Gathered:
        return self.ready.popleft()

    def state(self) -> dict[str, Any]:
        return {"tickets": self.tickets, "ready": [one.state() for one in self.ready]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.tickets = state["tickets"]
        self.ready = collections.deque(map(Gathered.restored, state["ready"]))

    def statistics(self) -> dict[str, float]:
        return {"actor": 0.0, "actor_restarts": 0.0}

    def close(self) -> None:
        """Nothing: the session closes its environments."""
