"""Actors as Ray actors: processes, on this machine or on a cluster's, that act while the learner learns.

Each actor has environments of its own for all seeds. It is told the parameters once per version, through Ray's object
store, and holds at most 1 + `delay` rollouts that nobody has learned from, so memory is bounded. One that dies is
begun anew. Leaves out what an actor makes from a rollout (the algorithm), and the case without actors
(`control/asynchronous.py`).
"""

# S seeds, B environments per seed of one actor
from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from telescope.control.asynchronous import Gathered, Make
from telescope.control.experience.normalisation import joined, removed
from telescope.control.experience.rollout import Episodes, Rollouts
from telescope.control.training import Session
from telescope.control.workers.cluster import connected
from telescope.control.workers.shares import registered
from telescope.control.workers.spawning import sent
from telescope.failures import sendable

MOST_DEATHS = 10
"""Actors that may die one after the other without a single rollout in between. Then something kills each of them."""


class RayActors:
    """`config.actors` Ray actors. `send` gives work to those that have room for it, `gather` waits for the next result.

    Rollouts are numbered by tickets, which are never used twice: not by two actors, nor by one that died, nor after a
    resume. An actor's noise, and the episodes with which it begins, follow from them.
    """

    def __init__(self, config: Any, prepare: Callable[[Any, Session], Make], network: Any) -> None:
        self.config = config
        job = (prepare, acting_config(config), network, registered(config))
        self.job = sent(job, f"actors is {config.actors}")
        self.tickets = self.deaths = self.restarts = 0
        self.normalisers: Any = None
        self._ends = contextlib.ExitStack()
        self.ray = self._ends.enter_context(connected(config.ray_address, config.actors))
        try:
            self.actors = [self._begin() for _ in range(config.actors)]
        except BaseException:
            self.close()
            raise
        self.waiting: dict[Any, int] = {}
        """Reference to a rollout on its way → the place of its actor, oldest first."""
        self.latest = 0

    def _begin(self) -> Any:
        # each actor waits for a processor of its own; what is on its way when it dies is not asked for again
        kind = self.ray.remote(num_cpus=1, max_restarts=0)(Actor)
        return kind.remote(self.job, [path for path in sys.path if os.path.isdir(path)])

    def send(self, version: int, session: Any) -> None:
        """Give the session's parameters, those after `version` updates, to each actor that has room for a rollout."""
        self.normalisers = session.rollouts.normaliser, session.rollouts.scaler
        busy = list(self.waiting.values())
        rooms = [i for i in range(len(self.actors)) for _ in range(1 + self.config.delay - busy.count(i))]
        rooms = rooms[: max(0, self.config.iterations - version - len(busy))]  # no rollout that none would learn from
        if rooms:
            self._ask(rooms, Sent.of(version, session))

    def _ask(self, places: list[int], what: Sent) -> None:
        self.reference = self.ray.put(what)  # once per version, however many actors read it
        for i in places:
            self.waiting[self.actors[i].act.remote(self.reference, self.tickets)] = i
            self.tickets += 1

    def gather(self) -> Gathered:
        """Wait for a rollout, and replace actors that have died meanwhile."""
        while True:
            oldest: dict[int, Any] = {}  # of each actor, so that its rollouts come in the order in which it plays
            for reference, i in self.waiting.items():
                oldest.setdefault(i, reference)
            (done, *_), _ = self.ray.wait(list(oldest.values()), num_returns=1)
            self.latest = self.waiting.pop(done)
            try:
                found = self.ray.get(done)
            except self.ray.exceptions.RayTaskError:
                raise
            except self.ray.exceptions.RayError as error:
                self._replace(self.latest, error)
                continue
            if isinstance(found, Exception):
                raise found
            self.deaths = 0
            self._learn_statistics(found)
            return Gathered(found["made"], Episodes(*found["episodes"]), found["version"], found["since"])

    def _replace(self, place: int, error: Exception) -> None:
        """Begin a new actor in the place of one that is gone, with the parameters that were sent last."""
        self.deaths += 1
        self.restarts += 1
        if self.deaths > MOST_DEATHS:
            raise ChildProcessError(
                f"{self.deaths} actors have died one after the other without a rollout; their output, if any, is above "
                f"({type(error).__name__}); if memory ran out, use fewer actors or environments"
            ) from None
        lost = [reference for reference, i in self.waiting.items() if i == place]
        for reference in lost:
            del self.waiting[reference]
        with contextlib.suppress(Exception):  # one that is only out of reach must not act beside its successor
            self.ray.kill(self.actors[place])
        self.actors[place] = self._begin()
        for _ in range(1 + len(lost)):
            self.waiting[self.actors[place].act.remote(self.reference, self.tickets)] = place
            self.tickets += 1

    def _learn_statistics(self, found: Mapping[str, Any]) -> None:
        """Add what the actor saw to the learner's statistics of observations and rewards."""
        for normaliser, name in zip(self.normalisers, ("observations", "rewards"), strict=True):
            if found[name] is not None:
                normaliser.moments.restore(joined(normaliser.moments.state(), found[name]))

    def statistics(self) -> dict[str, float]:
        return {"actor": float(self.latest), "actor_restarts": float(self.restarts)}

    def state(self) -> dict[str, Any]:
        return {"tickets": self.tickets, "restarts": self.restarts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.tickets, self.restarts = state["tickets"], state["restarts"]

    def close(self) -> None:
        self._ends.close()


class Sent(NamedTuple):
    """What actors are told once per version."""

    version: int
    parameters: Any  # [S, P] as NumPy
    observations: dict[str, Any]  # moments of the learner's normaliser
    rewards: dict[str, Any]

    @classmethod
    def of(cls, version: int, session: Any) -> Sent:
        moments = session.rollouts.normaliser.moments.state(), session.rollouts.scaler.moments.state()
        return cls(version, session.parameters.cpu().numpy(), *moments)


class Held(NamedTuple):
    """An actor's learner: it only holds the parameters that act."""

    parameters: Tensor  # [S, P]

    @classmethod
    def begin(cls, parameters: Tensor) -> Held:
        return cls(parameters)

    @property
    def acting(self) -> Tensor:
        return self.parameters


class HostRollouts(Rollouts):
    """Rollouts as NumPy arrays, which is how they travel, whatever the environments are."""


class ActorsSession(Session):
    """The session of an actor: environments and agents, in which nothing learns."""

    kind_of_rollouts = HostRollouts

    def __init__(self, config: Any, first: int, network: Any) -> None:
        self._first = first
        super().__init__(config, None, Held, network=network, recurrent=True)

    def _first_episodes(self) -> None:
        self.rollouts.first = self._first
        super()._first_episodes()

    def take(self, what: Sent) -> None:
        """Act with these parameters and statistics from now on."""
        self.learner = Held(torch.tensor(what.parameters))
        self.rollouts.normaliser.moments.restore(what.observations)
        self.rollouts.scaler.moments.restore(what.rewards)


class Actor:
    """In an actor's process. Errors of the user's code are results, and raised by the learner."""

    def __init__(self, job: bytes, path: list[str]) -> None:
        sys.path += [one for one in path if one not in sys.path]
        self.job = job
        self.session: ActorsSession | None = None

    def act(self, what: Sent, ticket: int) -> dict[str, Any] | Exception:
        """Collect the rollout of this number with these parameters, and make of it what is sent to the learner."""
        try:
            if self.session is None:
                self._open(ticket)
            return self._act(what, ticket)
        except Exception as error:
            return sendable(error)

    def _open(self, ticket: int) -> None:
        prepare, config, network, spec = pickle.loads(self.job)
        if spec is not None:
            gym.registry.setdefault(spec.id, spec)
        self.session = ActorsSession(config, ticket * config.num_envs, network)
        self.make = prepare(config, self.session)

    def _act(self, what: Sent, ticket: int) -> dict[str, Any]:
        session = self.session
        assert session is not None
        session.take(what)
        rollout, episodes = session.rollouts.collect(session.agents.actor(session.parameters), ticket)
        rollouts, seen = session.rollouts, {}
        for name, kept, before in (
            ("observations", rollouts.normaliser, what.observations),
            ("rewards", rollouts.scaler, what.rewards),
        ):
            seen[name] = removed(kept.moments.state(), before) if kept.enabled else None  # type: ignore[attr-defined]
        made = self.make(rollout)
        return {"made": made, "episodes": tuple(episodes), "version": what.version, "since": time.time(), **seen}


def acting_config(config: Any) -> Any:
    """The configuration of an actor's session: the same agents and environments, one thread, no evaluations."""
    alone = {"actors": 0, "delay": 0, "processes": 1, "threads": 1, "eval_every": 0, "compile": "off", "device": "cpu"}
    return dataclasses.replace(config, **alone)
