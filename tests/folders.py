"""Run folders to be damaged, commands in forked children, and what such a command may end with.

A child is a fork of a process that has loaded everything: a command takes a fraction of a second.
"""

import contextlib
import csv
import hashlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from telescope.cli import main
from telescope.control.experience.replay import Replay
from telescope.runs.formats import checkpoint

FAST = ("--num-envs", "2", "--num-steps", "16", "--minibatch-size", "32", "--epochs", "1")
ANSWERS = ("--eval-prompts", "4", "--eval-every", "0", "--checkpoint-seconds", "0")
KINDS = {
    "ppo": ("ppo", "CartPole-v1", *FAST, "--seeds", "2", "--total-steps", "96", "--eval-every", "32",
            "--eval-episodes", "1", "--checkpoint-seconds", "0"),
    "async": ("ppo", "Pendulum-v1", *FAST, "--vectorization", "async", "--total-steps", "96",
              "--checkpoint-seconds", "0"),
    "processes": ("ppo", "CartPole-v1", *FAST, "--seeds", "2", "--processes", "2", "--total-steps", "96",
                  "--checkpoint-seconds", "0"),
    "dqn": ("dqn", "CartPole-v1", "--num-envs", "2", "--num-steps", "16", "--seeds", "2", "--total-steps", "192",
            "--learning-starts", "8", "--minibatch-size", "8", "--replay-capacity", "50", "--n-step", "2",
            "--checkpoint-seconds", "0"),
    "sft": ("sft", "lm/addition", "--total-steps", "3", *ANSWERS),
    "grpo": ("grpo", "lm/addition", "--total-steps", "3", "--prompts", "4", "--group", "2", "--warm-start-steps", "2",
             *ANSWERS),
    "rlhf": ("ppo", "lm/addition", "--total-steps", "3", "--prompts", "4", "--group", "2", "--warm-start-steps", "2",
             *ANSWERS),
}  # fmt: skip


def warmed(place, kind):
    """Run a kind here once: what it imports and compiles is there in every fork from then on.

    In one thread, as a fork has none of the threads that torch started before it.
    """
    assert main(["train", *KINDS[kind], "--threads", "1", "--out", str(place / f"warm-{kind}")]) == 0
    shutil.rmtree(place / f"warm-{kind}")


def child(arguments, log, *, in_folder=None):
    """Start a command in a fork; its process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        os.setpgrp()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if in_folder:
            os.chdir(in_folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        status = main(list(map(str, arguments)))
        sys.stdout.flush()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def wait(pid, seconds):
    """The exit status, negative for a signal; None where it had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def command(arguments, log, seconds=600):
    """Run a command to its end: its status and what it said."""
    status = wait(child(arguments, log), seconds)
    return status, Path(log).read_text(errors="replace")


# What a run is


def rows(folder):
    """metrics.csv without its times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in csv.DictReader(file)]


def leaves(value, place=""):
    """Everything in a checkpoint but clocks, by place; arrays by their bits."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in ("elapsed", "execution"):
                yield from leaves(part, f"{place}/{name}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from leaves(part, f"{place}/{i}")
    elif hasattr(value, "shape"):
        array = value.detach().float().numpy() if hasattr(value, "detach") else value
        yield place, (tuple(array.shape), hashlib.sha256(array.tobytes()).hexdigest())
    else:
        yield place, value


def state(folder, algorithm):
    """What a checkpoint says, and the replay buffer beside it, whatever chunks it is in."""
    whole = checkpoint.load(folder / "checkpoint.safetensors", kind=f"{algorithm} checkpoint")
    if "replay" in whole:
        saved = whole["replay"]
        paths = [folder / "replay" / f"{name}.safetensors" for name in saved["chunks"]]
        chunks = [checkpoint.load(path, kind="replay") for path in paths]
        seeds, _, envs = chunks[0]["mask"].shape
        replay = Replay((saved["time"] - saved["first"]) * envs, seeds, envs)
        replay.restore(saved | {"chunks": chunks})
        whole["replay"] = replay.state()
    return dict(leaves(whole))


def files(folder):
    """Every file below a folder by its bytes; links by where they lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


# Damage


def flip(data, rng, bits):
    damaged = bytearray(data)
    for _ in range(bits if damaged else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def insert(data, rng, what):
    at = rng.randrange(len(data) + 1)
    return data[:at] + what + data[at + len(what) * rng.randrange(2) :]


def without_a_line(data, rng):
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[rng.randrange(len(lines))]
    return b"".join(lines)


BYTES = {
    **{f"flip {n}": lambda data, rng, n=n: flip(data, rng, n) for n in (1, 2, 10, 100)},
    "cut": lambda data, rng: data[: rng.randrange(len(data) + 1)],
    "emptied": lambda data, rng: b"",
    "random": lambda data, rng: rng.randbytes(len(data)),
    "appended": lambda data, rng: data + rng.randbytes(rng.randrange(1, 40)),
    "zeros": lambda data, rng: insert(data, rng, bytes(min(512, len(data)))),
    "doubled": lambda data, rng: data + data,
    "all zeros": lambda data, rng: bytes(len(data)),
    "line dropped": without_a_line,
    "utf-16": lambda data, rng: data.decode("latin-1").encode("utf-16"),
    **{f"{t} written": lambda data, rng, t=t: insert(data, rng, t.encode())
       for t in ("nan", "-1", "1e999", "null", '"', "[" * 3000)},
}  # fmt: skip
PLACES = ("deleted", "folder", "dangling link", "link out", "swapped", "pipe")


def damage(folder, outside, rng):
    """Damage one file of a run folder in one way; says which and how."""
    path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()])
    how = rng.choice([*BYTES, *PLACES])
    if how in BYTES:
        path.write_bytes(BYTES[how](path.read_bytes(), rng))
        return path.relative_to(folder), how
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "dangling link":
        path.symlink_to(outside / "nothing")
    elif how == "link out":
        (outside / "moved").write_bytes(data)
        path.symlink_to(outside / "moved")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "swapped":
        other = rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    return path.relative_to(folder), how


class Fuzz:
    """Finished runs, and what commands do on them whole."""

    def __init__(self, place, kinds):
        self.place, self.whole, self.cache = place, {}, {}
        for kind in kinds:
            warmed(place, kind)
            folder = place / f"whole-{kind}"
            status, said = command(["train", *KINDS[kind], "--out", folder], place / "log")
            assert status == 0, said
            self.whole[kind] = folder

    def commands(self, kind, folder):
        longer = 128 if kind in ("ppo", "async", "processes") else 4
        found = {
            "resume": ["train", "--resume", folder, "--total-steps", longer],
            "eval": ["eval", folder, "--json", *(("--episodes", 2) if longer == 128 else ("--prompts", 4))],
            "plot": ["plot", folder, "--out", folder.parent / "plot.png"],
        }
        if kind == "ppo":
            found["best"] = ["eval", folder, "--json", "--episodes", 2, "--best"]
        return found

    def result(self, kind, name, folder):
        """What a command gives: its status, its words, and what counts of its result."""
        (folder.parent / "plot.png").unlink(missing_ok=True)
        status, said = command(self.commands(kind, folder)[name], folder.parent / "log")
        made = None
        if status == 0:
            algorithm = {"async": "ppo", "processes": "ppo"}.get(kind, kind)
            made = {
                "resume": lambda: (rows(folder), state(folder, algorithm)),
                "plot": lambda: (folder.parent / "plot.png").read_bytes(),
            }.get(name, lambda: said[said.index("{") :])()
        return status, said, made

    def reference(self, kind, name):
        if (kind, name) not in self.cache:
            folder = self.copy(kind, "reference")
            self.cache[kind, name] = self.result(kind, name, folder)
            assert self.cache[kind, name][0] == 0, self.cache[kind, name]
        return self.cache[kind, name][2]

    def copy(self, kind, name):
        place = self.place / name
        shutil.rmtree(place, ignore_errors=True)
        (place / "outside").mkdir(parents=True)
        (place / "outside" / "victim").write_text("my only copy")
        shutil.copytree(self.whole[kind], place / "run", symlinks=True)
        return place / "run"

    def case(self, seed):
        """One damaged folder: empty where it is as it should be, or what is wrong."""
        rng = random.Random(seed)
        kind = rng.choice(list(self.whole))
        folder = self.copy(kind, "case")
        outside = folder.parent / "outside"
        file, how = damage(folder, outside, rng)
        before = files(outside)
        name = rng.choice(list(self.commands(kind, folder)))
        wanted = self.reference(kind, name)
        try:
            status, said, made = self.result(kind, name, folder)
        except Exception as error:  # a result that cannot be read is a wrong one
            return f"seed {seed}: {kind} {name}, {file} {how}: result unreadable: {error!r}"
        complaint = judged(status, said, made == wanted)
        if files(outside) != before:
            complaint = "something outside was changed"
        return complaint and f"seed {seed}: {kind} {name}, {file} {how}: {complaint}: {said[-600:]}"


def judged(status, said, same):
    if "Traceback" in said:
        return "a traceback"
    if status is None:
        return "it hangs"
    if status == 0:
        return "" if same else "another result"
    if status not in (1, 2):
        return f"status {status}"
    return "" if "telescope: " in said else "no sentence"
