"""A run that is killed at random moments, and resumed, ends as the run that was never stopped, to the last bit.

Kills: a checkpoint before its tables are on the disk, tables cut back to a wrong row, a stop that loses a random state.
"""

import os
import random
import shutil
import signal
import time

import pytest

from folders import KINDS, child, command, rows, state, wait, warmed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)
ALGORITHMS = {"async": "ppo", "processes": "ppo"}


class Run:
    """A run that was never stopped, and how long it took."""

    def __init__(self, place, kind):
        self.place, self.kind = place, kind
        warmed(place, ALGORITHMS.get(kind, kind))  # alone: with workers there would be a resource tracker already
        begun = time.monotonic()
        status, said = command(["train", *KINDS[kind], "--out", place / "whole"], place / "log", 300)
        assert status == 0, said
        self.seconds = time.monotonic() - begun
        self.wanted = self.result(place / "whole")

    def result(self, folder):
        return rows(folder), state(folder, ALGORITHMS.get(self.kind, self.kind))

    def killed(self, seed, kills=2):
        """Stop it at random moments, to the process alone or to its group; empty where it ends whole."""
        rng = random.Random(f"{self.kind} {seed}")
        folder = self.place / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        told = []
        for attempt in range(kills + 1):
            again = ["train", "--resume", folder] if (folder / "run.json").exists() else ["train", *KINDS[self.kind]]
            pid = child([*again, *([] if "--resume" in again else ["--out", folder])], self.place / "log")
            number = rng.choice(SIGNALS)
            if attempt < kills:
                time.sleep(rng.random() * self.seconds)
                (os.killpg if rng.random() < 0.5 else os.kill)(pid, number)
                told.append(number.name)
            status = wait(pid, 300)
            said = (self.place / "log").read_text(errors="replace")
            if "Traceback" in said or status not in (0, -number, 128 + number):
                return f"{self.kind} seed {seed} {told}: status {status}: {said[-800:]}"
        return "" if self.result(folder) == self.wanted else f"{self.kind} seed {seed} {told}: another result"


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_a_few_kills(tmp_path, kind):
    """Also while a replay buffer wraps."""
    run = Run(tmp_path, kind)
    assert [found for seed in range(3) if (found := run.killed(seed, kills=1))] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_kills(tmp_path, kind):
    run = Run(tmp_path, kind)
    assert [found for seed in range(9) if (found := run.killed(seed))] == []
