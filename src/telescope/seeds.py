"""Language runs of several seeds: each seed trains as if alone, and together they are one run.

The seeds are dealt to processes, one for each processor, with one thread each. Leaves out agents in environments, whose
seeds share their arrays (`control/`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from telescope import iteration
from telescope.checks import fitting
from telescope.control.workers.transport import Workers
from telescope.language import parallel
from telescope.language.execution import execution
from telescope.processors import processors

Train = Callable[..., Iterator[Any]]


def over_seeds(train: Train) -> Train:
    """Decorate `train(config, resume)` of one seed to train `config.seeds` of them side by side."""

    @functools.wraps(train)
    def spread(config: Any, resume: dict[str, Any] | None = None) -> Iterator[Any]:
        return train(config, resume) if config.seeds == 1 else _Run(spread, config, resume).train()

    return spread


def alone(config: Any) -> list[Any]:
    """The config of each seed."""
    threads = config.threads or 1
    return [dataclasses.replace(config, seed=seed, seeds=1, threads=threads) for seed in config.seed_values]


def folder_of(folder: Path, config: Any, seed: int) -> Path:
    """Where the model of a seed is: that of the first one in the folder itself, so that it is an ordinary one."""
    return folder if seed == config.seed else folder / f"seed_{seed}"


def of_seed(state: dict[str, Any] | None, seed: int) -> dict[str, Any] | None:
    """The part of a run's state that belongs to a seed, where the run has several."""
    if state is None or "seeds" not in state:
        return state
    return next(one for one in state["seeds"] if one["seed"] == seed)  # type: ignore[no-any-return]


class Share:
    """The current iterations of some seeds, in a worker."""

    def __init__(self, iterations: Sequence[Any]) -> None:
        self.iterations = iterations

    def save(self, kind: str, place: int, path: str) -> None:
        """Write the model, adapter or critic of one seed."""
        Path(path).mkdir(parents=True, exist_ok=True)
        getattr(self.iterations[place], f"save_{kind}")(path)

    @property
    def states(self) -> list[dict[str, Any]]:
        """The state of each seed."""
        return [one.state for one in self.iterations]


def _shares(train: Train, configs: Sequence[Any], states: Sequence[Any]) -> Iterator[Share]:
    """In a worker: train some seeds, a step of each in turn."""
    loops = [train(config, state) for config, state in zip(configs, states, strict=True)]
    yield from map(Share, zip(*loops, strict=True))


def _report(share: Share) -> list[dict[str, Any]]:
    """What a worker says about each seed."""
    names = ("rows", "step", "table", "findings", "notes", "finished", "has_adapter", "has_critic")
    return [{name: getattr(one, name) for name in names} for one in share.iterations]


class Iteration(iteration.Iteration):
    """An iteration of all seeds. Its attributes are those of one seed's (`language/run.py`)."""

    def __init__(self, run: _Run, found: dict[int, dict[str, Any]]) -> None:
        self.table = [{"seed": seed, **row} for seed, one in found.items() for row in one["table"]]
        self.findings = [
            finding._replace(sentence=f"seed {seed}: {finding.sentence}")
            for seed, one in found.items()
            for finding in one["findings"]
        ]
        first = next(iter(found.values()))
        self.has_adapter, self.has_critic = first["has_adapter"], first["has_critic"]
        self._all = run
        super().__init__(
            run,
            rows=[row for one in found.values() for row in one["rows"]],
            total_steps=run.config.total_steps,
            finished=first["finished"],
            notes=[run.note, *first["notes"]],
            warnings=[finding.sentence for finding in self.findings],
        )

    def save_model(self, path: str | Path) -> None:
        """Write the models of all seeds."""
        self._save("model", path)

    def save_adapter(self, path: str | Path) -> None:
        """Write the adapters of all seeds."""
        self._save("adapter", path)

    def save_critic(self, path: str | Path) -> None:
        """Write the critics of all seeds."""
        self._save("critic", path)

    def _save(self, kind: str, path: str | Path) -> None:
        self._require_current()
        self._all.save(kind, Path(path).resolve())  # a path by way of this process's open files is no other's


class _Run:
    """A run whose seeds train in worker processes, in step with each other."""

    def __init__(self, train: Train, config: Any, resume: dict[str, Any] | None) -> None:
        if parallel.started()[1] > 1:
            raise ValueError(f"seeds is {config.seeds}, but torchrun shares one run among its processes; start without")
        self.config, self.step = config, resume["step"] if resume else 0
        self.execution = resume["execution"] if resume else execution(config)
        configs = alone(config)
        with fitting():
            states = [None] * len(configs) if resume is None else resume["seeds"]
        if len(states) != len(configs):
            raise ValueError(f"resume holds {len(states)} seeds, but the config has {len(configs)}")
        count = min(len(configs), processors())
        self.shares = [configs[i::count] for i in range(count)]
        self.last: dict[str, Any] | None = None
        self.note = f"{config.seeds} seeds train side by side in {count} processes of one thread"
        self.workers = Workers(_shares, [(train, configs[i::count], states[i::count]) for i in range(count)], _report)

    def train(self) -> Iterator[Iteration]:
        """Yield iterations that join those of all seeds."""
        if self.step >= self.config.total_steps:
            return
        try:
            self.workers.start(f"seeds is {self.config.seeds}")
            every = range(len(self.shares))
            while True:
                found = self._by_seed(self.workers.reports(every))
                self.step = next(iter(found.values()))["step"]
                yield (iteration := Iteration(self, found))
                if iteration.finished:
                    self.last = self.state()  # readable after the workers are gone
                    return
                self.workers.go(every)
        finally:
            self.workers.close()

    def _by_seed(self, told: Sequence[Sequence[Any]]) -> dict[int, Any]:
        """What the workers told about their seeds, in the order of the seeds."""
        pairs = [pair for share, ones in zip(self.shares, told, strict=True) for pair in zip(share, ones, strict=True)]
        return {config.seed: one for config, one in sorted(pairs, key=lambda pair: pair[0].seed)}

    def save(self, kind: str, path: Path) -> None:
        """Let the workers write the models of their seeds."""
        if self.last is not None:
            raise RuntimeError("the run's processes have ended; save models before you request the next iteration")
        for i, share in enumerate(self.shares):
            for place, one in enumerate(share):
                self.workers.call(i, "save", kind, place, str(folder_of(path, self.config, one.seed)))

    def state(self) -> dict[str, Any]:
        """The states of all seeds."""
        if self.last is not None:
            return self.last
        states = list(self._by_seed(self.workers.ask("states")).values())
        return {
            "iteration": self.step,
            "step": self.step,
            "elapsed": max(state["elapsed"] for state in states),
            "stopped": False,
            "execution": dict(self.execution),
            "seeds": [{**one, "seed": seed} for seed, one in zip(self.config.seed_values, states, strict=True)],
        }
