"""A population spread over processes. Each process trains its share of the seeds; to the caller they look like one run.

Seeds never talk to each other, so only metrics travel, and states on request. Each process runs the unchanged training
loop on fewer seeds.
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
    """Decorate `train(config, resume)` to spread `config.seeds` over `config.processes`, if that is more than one.

    With `processes` 0 a resumed run uses the number that was chosen when it began. Workers are new interpreters; they
    receive the environment and the network by value.
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
        """Yield iterations that join those of all shares."""
        try:
            self._begin()
            while True:
                reports = self._heard()
                self._book(reports)
                yield self._iteration(reports)
                if reports[0]["finished"]:
                    self.last = self.ask("state")  # readable after the workers are gone
                    return
                self._tell("go")
        finally:
            self.close()

    def _start_of(self, share: AgentConfig) -> Start:
        assert self.start is not None
        return rows_of(self.start, share.seed - self.config.seed, share.seeds)

    def _begin(self) -> None:
        keep_tracker()
        context = multiprocessing.get_context("spawn")  # torch has threads here, so a fork is not safe
        for config, state in zip(self.shares, self.states, strict=True):
            ours, theirs = context.Pipe()
            more = self.more if self.start is None else self.more | {"start": self._start_of(config)}
            parts = self.train_share, config, state, more, registered(config)
            job = sent(parts, f"processes is {self.config.processes}")
            # not daemons: those may have no children, but their environments can be processes too
            worker = context.Process(target=_work, args=(job, theirs), daemon=False)
            with startable(), shielded():
                worker.start()
            theirs.close()
            self.workers.append(worker)
            self.connections.append(ours)

    def _tell(self, word: str) -> None:
        for connection in self.connections:
            with contextlib.suppress(BrokenPipeError):  # `heard` will say why it is gone
                connection.send(word)

    def _heard(self) -> list[Any]:
        return [self._from(worker, ours) for worker, ours in zip(self.workers, self.connections, strict=True)]

    def _from(self, worker: Any, connection: Connection) -> Any:
        try:
            told = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            worker.join()
            raise ChildProcessError(
                f"a training process ended with exit status {worker.exitcode}; its output, if any, is above. If the "
                "script has an `if __name__ == '__main__':`, train under it; if memory ran out, use fewer processes"
            ) from None
        if isinstance(told, Exception):
            raise told
        return told

    def _book(self, reports: list[dict[str, Any]]) -> None:
        """The times of the slowest share, because all others wait for it."""
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
        """Join the policies of all shares into that of the whole population."""
        return joined(self.ask("policy"))

    def state(self) -> dict[str, Any]:
        """The state of the whole run: the policy is joined, everything else is kept per share."""
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
            connection.close()  # tells the worker to end
        for worker in self.workers:
            worker.join(timeout=5)
            if worker.is_alive():  # still in an iteration that is no longer needed
                worker.terminate()
                worker.join()


def shares(config: Any, threads: int) -> list[Any]:
    """The configs of the processes, with the seeds divided evenly and in order."""
    sizes = [len(part) for part in np.array_split(config.seed_values, config.processes)]
    starts = np.cumsum([config.seed, *sizes[:-1]])
    return [
        dataclasses.replace(config, seed=int(seed), seeds=size, processes=1, threads=threads)
        for seed, size in zip(starts, sizes, strict=True)
    ]


def joined(policies: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the policies of all shares into that of the whole population."""
    statistics = [policy["normaliser"] for policy in policies]
    return {
        "parameters": torch.cat([policy["parameters"] for policy in policies]),
        "normaliser": {name: np.concatenate([one[name] for one in statistics]) for name in statistics[0]},
    }


def registered(config: AgentConfig) -> EnvSpec | None:
    """The registered spec of the environment's id, for workers that did not run the registration."""
    return gym.registry.get(config.env.rpartition(":")[2]) if isinstance(config.env, str) else None


def split(state: dict[str, Any], parts: list[Any]) -> list[dict[str, Any]]:
    """Split `_Crew.state` into shares. A ValueError if it belongs to another run."""
    found = [share["seeds"] for share in state.get("shares", [{"seeds": state["seeds"]}])]
    if found != [part.seed_values for part in parts]:
        raise ValueError(
            f"resume holds seeds {state['seeds']} in {len(found)} processes, but the config has seeds "
            f"{[seed for part in parts for seed in part.seed_values]} in {len(parts)}; pass the seeds and processes "
            "that the run began with"
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
    """The worker: train one share, and wait for a request after each iteration."""
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
        with contextlib.suppress(OSError):  # the parent may be gone
            connection.send_bytes(pickle.dumps(sendable(error)))
