"""A disk that is full, or read-only, from the k-th write of a run on: a sentence, and later the undisturbed result.

Kills: a write whose failure is a traceback, that leaves half a file in the place of a whole one, or is not noticed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from telescope.runs.files import RunError, replace_folder

HERE = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="failing writes needs Linux and gcc"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("library") / "full_disk.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", made, HERE / "full_disk.c", "-ldl"], check=True)
    return made


def found(library, place, kind, error, stride, start=0):
    """What is wrong, a line per write."""
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, HERE / "disks.py", library, place, kind, error, str(stride), str(start)],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_some_writes_on_a_full_disk(library, tmp_path):
    assert found(library, tmp_path, "ppo", "ENOSPC", 31, 5) == []


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EROFS"])
@pytest.mark.parametrize(("kind", "stride"), [("own", 1), ("model", 1), ("adapter", 1), ("lora", 11), ("grpo", 11)])
def test_every_write(library, tmp_path, kind, error, stride):
    assert found(library, tmp_path, kind, error, stride) == []


@pytest.mark.parametrize(("number", "reason"), [(28, "the disk is full"), (30, "the disk is read-only")])
def test_a_library_in_rust_tells_of_the_disk_in_its_own_type(tmp_path, number, reason):
    """What tokenizers raises is an Exception, with no number but in its words."""

    def write(folder):
        (folder / "half").write_text("half")
        raise Exception(f"Some words (os error {number})")

    (tmp_path / "model").mkdir()
    with pytest.raises(RunError, match=f"cannot write .*model: {reason}"):
        replace_folder(tmp_path / "model", write)
    assert [path.name for path in tmp_path.rglob("*")] == ["model"]
