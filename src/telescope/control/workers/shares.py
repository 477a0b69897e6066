"""A population spread over processes. Each process trains its share of the seeds; to the caller they look like one run.

Seeds never talk to each other, so only metrics travel, and states on request. Each process runs the unchanged training
loop on fewer seeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from telescope.checks import fitting
from telescope.control.config import LearnerConfig
from telescope.control.execution import execution, processes_that_pay
from telescope.control.starting import rows_of, start_from
from telescope.control.workers.nodes import RayWorkers
from telescope.control.workers.transport import Workers
from telescope.iteration import AgentIteration

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
            decided = resume["execution"]["processes"] if resume else processes_that_pay(config)
            config = dataclasses.replace(config, processes=decided)
        if config.processes == 1 and not (resume and "shares" in resume) and not on_cluster(config):
            return train(config, resume, **more)
        return _SpreadRun(spread, config, resume, more).train()

    return spread


class _SpreadRun:
    """A run whose shares train in worker processes, in step with each other.

    A share whose seeds have finished before those of the others waits, so that its state can be asked for. One that
    had finished before a resume is not started.
    """

    def __init__(self, train: Train, config: LearnerConfig, resume: dict[str, Any] | None, more: dict[str, Any]):
        self.config, self.step = config, resume["step"] if resume else 0
        self.execution = resume["execution"] if resume else execution(config)
        parts = shares(config, self.execution["threads"])
        sizes = " + ".join(str(part.seeds) for part in parts)
        where = f" of the cluster at {config.ray_address}" if on_cluster(config) else ""
        self.note = f"the seeds are spread over {config.processes} processes{where}: {sizes} (--processes)"
        with fitting():
            states = [None] * len(parts) if resume is None else split(resume, parts)
        self.times = dict.fromkeys((*TIMES, "time_total"), 0.0)
        self.times["time_total"] = resume["elapsed"] if resume else 0.0
        self.steps = [state["step"] if state else 0 for state in states]
        """The clock of the slowest seed of each share."""
        self.ended = {i: state for i, state in enumerate(states) if state and state["step"] >= config.total_steps}
        self.places = [i for i in range(len(parts)) if i not in self.ended]
        """The share of each process."""
        jobs = [
            (train, parts[i], states[i], {**more, **_start_of(more, config, parts[i])}, registered(parts[i]))
            for i in self.places
        ]
        self.workers: Any = (
            RayWorkers(_iterations, jobs, _report, address=config.ray_address, restored=_restored)
            if on_cluster(config)
            else Workers(_iterations, jobs, _report)
        )
        self.last: list[Any] | None = None

    def train(self) -> Iterator[AgentIteration]:
        """Yield iterations that join those of all shares."""
        try:
            self.workers.start(f"processes is {self.config.processes}")
            running = list(range(len(self.places)))
            while running:
                reports = dict(zip(running, self.workers.reports(running), strict=True))
                running = [i for i in running if not reports[i]["finished"]]
                self._book(reports)
                yield self._iteration(list(reports.values()), finished=not running)
                self.workers.go(running)
            self.last = self._ask("state")  # readable after the workers are gone
        finally:
            self.workers.close()

    def _ask(self, attribute: str) -> list[Any]:
        """An attribute of each share, also of those that had finished before this run."""
        found = {i: state["policy"] if attribute == "policy" else state for i, state in self.ended.items()}
        found |= dict(zip(self.places, self.workers.ask(attribute), strict=True))
        return [found[i] for i in range(len(self.steps))]

    def _book(self, reports: dict[int, dict[str, Any]]) -> None:
        """The times of the slowest share, because all others wait for it, and the clock of the slowest seed."""
        slowest = max(
            [report["rows"][0] for report in reports.values()], key=lambda row: sum(row[name] for name in TIMES)
        )
        spent = {name: slowest[name] for name in TIMES}
        self.times = {**spent, "time_total": self.times["time_total"] + sum(spent.values())}
        for i, report in reports.items():
            self.steps[self.places[i]] = report["step"]
        self.step = min(self.steps)

    def _iteration(self, reports: list[dict[str, Any]], *, finished: bool) -> AgentIteration:
        return AgentIteration(
            self,
            rows=[row | self.times for report in reports for row in report["rows"]],
            total_steps=self.config.total_steps,
            finished=finished,
            notes=[self.note, *reports[0]["notes"]],
            warnings=[sentence for report in reports for sentence in report["warnings"]],
        )

    def policy(self) -> dict[str, Any]:
        """Join the policies of all shares into that of the whole population."""
        return joined([state["policy"] for state in self.last] if self.last else self._ask("policy"))

    def state(self) -> dict[str, Any]:
        """The state of the whole run: the policy is joined, everything else is kept per share."""
        return self._state(self.last or self._ask("state"))

    def light_state(self) -> dict[str, Any]:
        """The state without the steps in replay buffers, while the workers are there."""
        return self._state(self._ask("light_state"))

    def chunk(self, share: int, start: int) -> dict[str, Any] | None:
        """The next steps of a share's replay buffer from row `start` on; None if there are no more."""
        return None if share in self.ended else self.workers.call(self.places.index(share), "chunk", 0, start)

    def _state(self, states: list[Any]) -> dict[str, Any]:
        clocks = {name: np.concatenate([state[name] for state in states]) for name in ("clocks",) if name in states[0]}
        return {
            "iteration": max(state["iteration"] for state in states),
            "step": self.step,
            **clocks,
            "elapsed": self.times["time_total"],
            "seeds": self.config.seed_values,
            "execution": dict(self.execution),
            "policy": joined([state["policy"] for state in states]),
            "shares": [{name: part for name, part in state.items() if name != "policy"} for state in states],
        }


def _iterations(train: Train, config: LearnerConfig, state: Any, more: dict[str, Any], spec: EnvSpec | None) -> Any:
    """In a worker: train one share."""
    if spec is not None:
        gym.registry.setdefault(spec.id, spec)
    return train(config, state, **more)


def _restored(job: Sequence[Any], state: dict[str, Any]) -> list[Any]:
    """The job of a share, beginning from one of its states."""
    train, config, _, more, spec = job
    return [train, config, state, {**more, "start": None}, spec]


def on_cluster(config: Any) -> bool:
    """Whether the shares train on a cluster. Actors are on it themselves, beside their learner."""
    return config.ray_address is not None and not getattr(config, "actors", 0)


def _report(metrics: AgentIteration) -> dict[str, Any]:
    """A worker's report about an iteration."""
    return {name: getattr(metrics, name) for name in ("rows", "step", "finished", "notes", "warnings")}


def _start_of(more: dict[str, Any], config: LearnerConfig, share: LearnerConfig) -> dict[str, Any]:
    """The share's part of the agents that a run starts from, if it starts from any."""
    if more.get("start") is None:
        return {}
    return {"start": rows_of(start_from(more["start"], config.seeds), share.seed - config.seed, share.seeds)}


def shares(config: Any, threads: int) -> list[Any]:
    """The configs of the processes, with the seeds divided evenly and in order."""
    sizes = [len(part) for part in np.array_split(config.seed_values, config.processes)]
    starts = np.cumsum([config.seed, *sizes[:-1]])
    return [
        dataclasses.replace(config, seed=int(seed), seeds=size, processes=1, threads=threads, ray_address=None)
        for seed, size in zip(starts, sizes, strict=True)
    ]


def joined(policies: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the policies of all shares into that of the whole population."""
    statistics = [policy["normaliser"] for policy in policies]
    return {
        "parameters": torch.cat([policy["parameters"] for policy in policies]),
        "normaliser": {name: np.concatenate([one[name] for one in statistics]) for name in statistics[0]},
    }


def registered(config: LearnerConfig) -> EnvSpec | None:
    """The registered spec of the environment's id, for workers that did not run the registration."""
    return gym.registry.get(config.env.rpartition(":")[2]) if isinstance(config.env, str) else None


def split(state: dict[str, Any], parts: list[Any]) -> list[dict[str, Any]]:
    """Split `_SpreadRun.state` into shares. A ValueError if it belongs to another run."""
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
