"""Equal commands give equal bits at two threads, idle and beside other work; so do runs that were stopped and resumed.

Each command is a fresh process, so this takes minutes: `make test-slow`. What inside a step could differ is in
`tests/algorithms/test_equal_bits.py`.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from telescope.algorithms import CONFIGS
from telescope.runs import RunFolder

pytestmark = pytest.mark.slow

WARM = ["--warm-start-steps", "20", "--eval-prompts", "20"]
COMMANDS = {
    "ppo": ["ppo", "CartPole-v1", "--seeds", "8", "--total-steps", "8192"],
    "ppo compiled": ["ppo", "CartPole-v1", "--seeds", "8", "--total-steps", "4096", "--compile", "on"],
    "ppo on HalfCheetah": ["ppo", "HalfCheetah-v5", "--seeds", "4", "--total-steps", "8192", "--minibatch-size", "512"],
    "grpo": ["grpo", "lm/addition", "--seed", "11", "--total-steps", "3", *WARM],
    "reinforce": ["reinforce", "CartPole-v1", "--seeds", "4", "--total-steps", "8192"],
    "group_episodes": ["grpo", "CartPole-v1", "--seeds", "4", "--total-steps", "16384"],
    "dqn": ["dqn", "CartPole-v1", "--seeds", "4", "--total-steps", "4096", "--learning-starts", "256"],
    "rlhf": ["ppo", "lm/addition", "--seed", "11", "--total-steps", "3", *WARM],
    "sft": ["sft", "lm/addition", "--total-steps", "20", "--eval-prompts", "20"],
    "reward_model": ["reward_model", "lm/taste", "--total-steps", "20"],
}


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    """A command with the environment of a user, who has not told OpenMP what to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", "telescope", *map(str, words)], env=environment, stdout=quiet, stderr=quiet
    )


def train(name: str, out: Path) -> None:
    assert start("train", *COMMANDS[name], "--threads", "2", "--out", out).wait(1200) == 0


def outcome(run: Path) -> str:
    """Everything that must be equal: the metrics but for their times, and every array of the checkpoint."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("time_")} for row in csv.DictReader(file)]
    state = RunFolder.open(run).load_checkpoint()
    assert state is not None
    return repr(rows) + repr(sorted(flat(state)))


def flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of a state by path, arrays and tensors as bytes; what counts seconds or names the run is left out."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in ("elapsed", "identity"):
                yield from flat(part, f"{path}/{key}")
    elif hasattr(value, "numpy") or hasattr(value, "tobytes"):
        array = value.numpy() if hasattr(value, "numpy") else value
        yield path, array.tobytes()
    else:
        yield path, repr(value)


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Other programs of equal priority that want every core they can get."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_every_algorithm_has_its_row() -> None:
    assert {name.split()[0] for name in COMMANDS} == set(CONFIGS)


@pytest.mark.parametrize("loops", [0, 2], ids=["idle", "busy"])
@pytest.mark.parametrize("name", COMMANDS)
def test_five_equal_commands_give_one_result(name: str, loops: int, tmp_path: Path) -> None:
    with busy(loops):
        for i in range(5):
            train(name, tmp_path / str(i))
    assert len({outcome(tmp_path / str(i)) for i in range(5)}) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_and_resumed_run_gives_it_too(name: str, tmp_path: Path) -> None:
    train(name, tmp_path / "whole")
    run = tmp_path / "stopped"
    process = start("train", *COMMANDS[name], "--threads", "2", "--out", run)
    while process.poll() is None and not rows_of(run):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(300)
    assert start("train", "--resume", run).wait(1200) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


def rows_of(run: Path) -> int:
    """Rows of metrics so far: where there is one, an iteration is done."""
    path = run / "metrics.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0
