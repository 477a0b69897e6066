"""A population spread over processes: each trains its share of the seeds, and here they look like one run.

Seeds never talk to each other, so nothing travels but metrics and, when somebody asks, states. What a training loop
does is its own business: it is run as it stands, on fewer seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from telescope.checks import fitting
from telescope.control.config import AgentConfig
from telescope.control.execution import execution
from telescope.control.starting import Start, rows_of, start_from
from telescope.control.workers.spawning import deaf, keep_tracker, sent, shielded, startable
from telescope.failures import sendable
from telescope.iteration import Iteration

TIMES = ("time_env", "time_policy", "time_update", "time_other")
Train = Callable[..., Iterator[Any]]


def over_processes(train: Train) -> Train:
    """`train(config, resume)` that spreads `config.seeds` over `config.processes`, where these are more than one.

    A run that leaves their number open goes on in as many as were chosen when it began.
    Its workers are new interpreters, to which the environment and the network are sent.
    """

    @functools.wraps(train)
    def spread(config: Any, resume: dict[str, Any] | None = None, **more: Any) -> Iterator[Any]:
        if config.processes == 0:
            decided = resume["execution"] if resume else execution(config)
            config = dataclasses.replace(config, processes=decided["processes"])
        if config.processes == 1:
            return train(config, resume, **more)
        return _Crew(spread, config, resume, more).train()

    return spread


class _Crew:
    """The worker processes of a run, in step with each other."""

    def __init__(self, train: Train, config: AgentConfig, resume: dict[str, Any] | None, more: dict[str, Any]):
        self.train_share, self.config, self.more = train, config, more
        self.start = start_from(more["start"], config.seeds) if more.get("start") is not None else None
        self.execution = resume["execution"] if resume else execution(config)
        self.shares = shares(config, self.execution["threads"])
        sizes = " + ".join(str(share.seeds) for share in self.shares)
        self.note = f"the seeds are spread over {config.processes} processes: {sizes} (--processes)"
        with fitting():
            self.states: list[Any] = [None] * len(self.shares) if resume is None else split(resume, self.shares)
        self.times = dict.fromkeys((*TIMES, "time_total"), 0.0)
        self.times["time_total"] = resume["elapsed"] if resume else 0.0
        self.workers: list[Any] = []
        self.connections: list[Connection] = []
        self.step = resume["step"] if resume else 0
        self.last: list[Any] | None = None

    def train(self) -> Iterator[Iteration]:
        """Iterations of all shares together."""
        try:
            self._begin()
            while True:
                reports = self._heard()
                self._book(reports)
                yield self._iteration(reports)
                if reports[0]["finished"]:
                    self.last = self.ask("state")  # still to be had when the workers are gone
                    return
                self._tell("go")
        finally:
            self.close()

    def _start_of(self, share: AgentConfig) -> Start:
        assert self.start is not None
        return rows_of(self.start, share.seed - self.config.seed, share.seeds)

    def _begin(self) -> None:
        keep_tracker()
        context = multiprocessing.get_context("spawn")  # torch has threads here, which a fork would not survive
        for config, state in zip(self.shares, self.states, strict=True):
            ours, theirs = context.Pipe()
            more = self.more if self.start is None else self.more | {"start": self._start_of(config)}
            parts = self.train_share, config, state, more, registered(config)
            job = sent(parts, f"processes is {self.config.processes}")
            # not daemons, which may have no children: environments of theirs can live in processes, too
            worker = context.Process(target=_work, args=(job, theirs), daemon=False)
            with startable(), shielded():
                worker.start()
            theirs.close()
            self.workers.append(worker)
            self.connections.append(ours)

    def _tell(self, word: str) -> None:
        for connection in self.connections:
            with contextlib.suppress(BrokenPipeError):  # why it is gone is asked when it is listened to
                connection.send(word)

    def _heard(self) -> list[Any]:
        return [self._from(worker, ours) for worker, ours in zip(self.workers, self.connections, strict=True)]

    def _from(self, worker: Any, connection: Connection) -> Any:
        try:
            told = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            worker.join()
            raise ChildProcessError(
                f"a training process ended with exit status {worker.exitcode}; its last words, if any, are above. A "
                "script trains under its `if __name__ == '__main__':`, if it has one; out of memory, try fewer"
            ) from None
        if isinstance(told, Exception):
            raise told
        return told

    def _book(self, reports: list[dict[str, Any]]) -> None:
        """Everybody waits for the slowest, so its seconds are everybody's."""
        slowest = max((report["rows"][0] for report in reports), key=lambda row: sum(row[name] for name in TIMES))
        spent = {name: slowest[name] for name in TIMES}
        self.times = {**spent, "time_total": self.times["time_total"] + sum(spent.values())}
        self.step = reports[0]["step"]

    def _iteration(self, reports: list[dict[str, Any]]) -> Iteration:
        first = reports[0]
        return Iteration(
            self,
            rows=[row | self.times for report in reports for row in report["rows"]],
            total_steps=self.config.total_steps,
            finished=first["finished"],
            notes=[self.note, *first["notes"]],
            warnings=[sentence for report in reports for sentence in report["warnings"]],
        )

    def ask(self, what: str) -> list[Any]:
        """State or policy of each share."""
        if self.last is not None:
            return self.last if what == "state" else [state["policy"] for state in self.last]
        self._tell(what)
        return self._heard()

    def policy(self) -> dict[str, Any]:
        """The policies of all shares as one population's."""
        return joined(self.ask("policy"))

    def state(self) -> dict[str, Any]:
        """One state of the whole run; what acting needs is put together, the rest is kept share by share."""
        states = self.ask("state")
        return {
            "iteration": states[0]["iteration"],
            "step": self.step,
            "elapsed": self.times["time_total"],
            "seeds": self.config.seed_values,
            "execution": dict(self.execution),
            "policy": joined([state["policy"] for state in states]),
            "shares": [{name: part for name, part in state.items() if name != "policy"} for state in states],
        }

    def close(self) -> None:
        for connection in self.connections:
            connection.close()  # which a worker takes for the end
        for worker in self.workers:
            worker.join(timeout=5)
            if worker.is_alive():  # in the middle of an iteration that nobody waits for
                worker.terminate()
                worker.join()


def shares(config: Any, threads: int) -> list[Any]:
    """The configs of the processes: as many seeds each as can be, in order."""
    sizes = [len(part) for part in np.array_split(config.seed_values, config.processes)]
    starts = np.cumsum([config.seed, *sizes[:-1]])
    return [
        dataclasses.replace(config, seed=int(seed), seeds=size, processes=1, threads=threads)
        for seed, size in zip(starts, sizes, strict=True)
    ]


def joined(policies: list[dict[str, Any]]) -> dict[str, Any]:
    """The policies of all shares as one population's."""
    statistics = [policy["normaliser"] for policy in policies]
    return {
        "parameters": torch.cat([policy["parameters"] for policy in policies]),
        "normaliser": {name: np.concatenate([one[name] for one in statistics]) for name in statistics[0]},
    }


def registered(config: AgentConfig) -> EnvSpec | None:
    """What the program has registered under the environment's id, for workers that have not run it."""
    return gym.registry.get(config.env.rpartition(":")[2]) if isinstance(config.env, str) else None


def split(state: dict[str, Any], parts: list[Any]) -> list[dict[str, Any]]:
    """`_Crew.state` taken apart again; ValueError where it is another run's."""
    found = [share["seeds"] for share in state.get("shares", [{"seeds": state["seeds"]}])]
    if found != [part.seed_values for part in parts]:
        raise ValueError(
            f"resume holds seeds {state['seeds']} of {len(found)} processes, but the config asks for "
            f"{[seed for part in parts for seed in part.seed_values]} in {len(parts)}; a run continues as it began"
        )
    position, states = 0, []
    for share in state["shares"]:
        rows = slice(position, position := position + len(share["seeds"]))
        policy = {
            "parameters": state["policy"]["parameters"][rows],
            "normaliser": {name: array[rows] for name, array in state["policy"]["normaliser"].items()},
        }
        states.append({**share, "policy": policy})
    return states


def _work(job: bytes, connection: Connection) -> None:
    """A worker: train one share, and after each iteration wait for what is wanted."""
    deaf()
    try:
        train, config, state, more, spec = pickle.loads(job)
        if spec is not None:
            gym.registry.setdefault(spec.id, spec)
        for metrics in train(config, state, **more):
            names = ("rows", "step", "finished", "notes", "warnings")
            connection.send_bytes(pickle.dumps({name: getattr(metrics, name) for name in names}))
            while (wanted := connection.recv()) != "go":
                connection.send_bytes(pickle.dumps(getattr(metrics, wanted)))
    except Exception as error:
        with contextlib.suppress(OSError):  # there may be nobody left to train for
            connection.send_bytes(pickle.dumps(sendable(error)))
