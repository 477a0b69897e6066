"""A run on a disk that is full, or read-only, from its k-th write on; then resumed with space again.

Or a model's folder alone, replaced on such a disk: there is the old one, or none, but never half of the new one.

A program of its own, `disks.py LIBRARY PLACE KIND ERROR STRIDE START`, with LIBRARY (`full_disk.c`) loaded before libc:
what Rust writes for a tokenizer fails as what Python writes.
It prints what is wrong, a line each, and how many
writes there were. Leaves out partial damage of files (`folders.py`).
"""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from folders import KINDS, command, files, main, rows, state
from telescope.runs import RunError
from telescope.runs.files import remove_leftovers, replace_folder
from telescope.runs.formats import checkpoint
from telescope.runs.identity import seal

OWN = {
    **KINDS,
    "own": ("ppo", "worlds_of_mine:Mine-v0", *KINDS["ppo"][2:]),
    "lora": (*KINDS["sft"], "--lora-rank", "2"),
}
MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Mine-v0", CartPoleEnv, max_episode_steps=50)
"""
ALGORITHMS = {"async": "ppo", "processes": "ppo", "own": "ppo", "lora": "sft"}
SAID = {errno.ENOSPC: ("full", "No space"), errno.EROFS: ("read-only", "Read-only")}


class Disk:
    """The folder whose disk fails, and a run of a kind on it that was never disturbed."""

    def __init__(self, library, place, kind):
        self.library, self.place, self.kind = ctypes.CDLL(library), Path(place).resolve(), kind
        self.folder, self.log = self.place / "disk" / "run", self.place / "log"
        self.algorithm = ALGORITHMS.get(kind, kind)
        os.environ["XDG_STATE_HOME"] = str(self.place / "disk" / "state")
        (self.place / "worlds_of_mine.py").write_text(MODULE)
        sys.path.insert(0, str(self.place))
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):  # forks find everything loaded
            main(["train", *OWN[kind], "--threads", "1", "--out", str(self.place / "warm")])
        self.begin = ["train", *OWN[kind], "--out", self.folder]
        status, said, self.writes = self.failing(self.begin, -1, 0)
        assert status == 0, said
        self.wanted = self.result()

    def failing(self, arguments, k, error):
        """A command while the disk fails: status, words, number of writes."""
        self.library.disk_set(str(self.place / "disk").encode(), ctypes.c_long(k), error)
        (self.place / "disk").mkdir(exist_ok=True)
        try:
            status, said = command(arguments, self.log, 300)
        finally:
            self.library.disk_set(b"", ctypes.c_long(-1), 0)
        return status, said, self.library.disk_count()

    def result(self):
        return rows(self.folder), state(self.folder, self.algorithm)

    def case(self, k, error):
        """What is wrong where the disk fails from write k on; empty if nothing."""
        shutil.rmtree(self.place / "disk")
        status, said, _ = self.failing(self.begin, k, error)
        told = f"{self.kind} write {k} of {self.writes} {errno.errorcode[error]}: status {status}: {said[-700:]}"
        if "Traceback" in said or status not in (0, 1):
            return f"no sentence: {told}"
        if status == 1 and not any(word in said for word in SAID[error]):
            return f"no reason: {told}"
        saved = self.folder / "checkpoint.safetensors"
        try:
            before = checkpoint.load(saved, kind=f"{self.algorithm} checkpoint")["step"] if saved.exists() else 0
        except RunError as broken:
            return f"checkpoint {broken}: {told}"
        again = ["train", "--resume", self.folder, "--trust"] if (self.folder / "run.json").exists() else self.begin
        back, words = command(again, self.log, 300)
        if back != 0 or "Traceback" in words:
            return f"status {back} afterwards, at step {before}: {words[-700:]}; before: {told}"
        if self.result() != self.wanted:
            return f"another result: {told}"
        left = [path.name for path in self.folder.rglob("*.tmp")]
        return f"left behind {left}: {told}" if left else ""


class Model:
    """The folder of a model or an adapter, whole, to be replaced on a disk that fails."""

    def __init__(self, library, place, kind):
        from telescope.language.models import adapters
        from telescope.language.models import causal as models

        self.library, self.disk, self.path = ctypes.CDLL(library), Path(place) / "disk", Path(place) / "disk" / kind
        self.disk.mkdir()
        model, tokenizer = models.load("tiny", seed=0)
        lora = models.with_lora(model, 2, seed=0) if kind == "adapter" else None
        self.save = lambda path: (
            models.save(model, tokenizer, path) if lora is None else adapters.save(lora, tokenizer, path)
        )
        replace_folder(self.path, self.sealed)
        self.whole = files(self.path)
        self.library.disk_set(str(self.disk.resolve()).encode(), ctypes.c_long(-1), 0)
        replace_folder(self.path, self.sealed)
        self.writes = self.library.disk_count()

    def sealed(self, path):
        self.save(path)
        seal.close(path, "run")

    def case(self, k, error):
        """What is wrong where the disk fails from write k on; empty if nothing."""
        self.library.disk_set(str(self.disk.resolve()).encode(), ctypes.c_long(k), error)
        complaint = ""
        try:
            replace_folder(self.path, self.sealed)
        except RunError as told:
            complaint = "" if any(word in str(told) for word in SAID[error]) else f"no reason: {told}"
        except Exception as leaked:
            complaint = f"{type(leaked).__name__}: {leaked}"
        finally:
            self.library.disk_set(b"", ctypes.c_long(-1), 0)
        if self.path.exists() and files(self.path) != self.whole:
            complaint = complaint or "half a folder"
        remove_leftovers(self.disk)
        replace_folder(self.path, self.sealed)
        return complaint and f"write {k} of {self.writes}: {complaint}"


def try_all(library, place, kind, error, stride, start):
    disk = (Model if kind in ("model", "adapter") else Disk)(library, place, kind)
    tried = range(int(start), disk.writes, int(stride))
    for k in tried:
        if found := disk.case(k, getattr(errno, error)):
            print(found.replace("\n", " | "), flush=True)
    print(f"{len(tried)} of {disk.writes} writes", file=sys.stderr)


if __name__ == "__main__":
    try_all(*sys.argv[1:])
