"""Checkpoints come back bit for bit, or are refused with a sentence; a crash never costs the previous one."""

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from telescope.runs import RunError, files
from telescope.runs.formats import checkpoint

KIND = "ppo checkpoint"


def bits(value: Any) -> Any:
    """A form in which two states are equal exactly if structure, types, shapes and bits are."""
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]  # order counts
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return ("torch", str(value.dtype), tuple(value.shape), raw)
    if isinstance(value, np.ndarray | np.generic):
        native = value.astype(value.dtype.newbyteorder("="))
        return (type(value).__name__, native.dtype.str, value.shape, native.tobytes())
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


def reloaded(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    checkpoint.save(folder / "x.safetensors", state, kind=KIND)
    return checkpoint.load(folder / "x.safetensors", kind=KIND)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"w": np.arange(3.0), "step": 7, "name": "a"}, kind=KIND)
    return path


NUMPY_DTYPES = [
    "bool",
    "u1",
    "i1",
    "<u2",
    "<i2",
    "<u4",
    "<i4",
    "<u8",
    "<i8",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    ">f4",
    ">i8",
]


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (5,), (2, 3)])
def test_every_numpy_dtype_and_shape_comes_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    state = {
        "array": np.asarray(array),
        "view": np.asarray(array)[..., None][..., ::-1].T,
        "scalar": np.dtype(dtype).type(1),
    }
    assert bits(reloaded(tmp_path, state)) == bits(state)


TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3,), (2, 3)])
def test_every_torch_dtype_and_shape_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    state = {"tensor": tensor, "view": tensor.T if len(shape) == 2 else tensor}
    assert bits(reloaded(tmp_path, state)) == bits(state)


def test_floats_keep_every_bit(tmp_path: Path) -> None:
    patterns = np.array([0x7FF8000000000001, 0xFFF0000000000000, 0x8000000000000000, 1], dtype="u8").view("f8")
    tensor = torch.tensor([0x7FC1, 0xFF80, 0x8000, 1], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert bits(reloaded(tmp_path, {"numpy": patterns, "torch": tensor})) == bits({"numpy": patterns, "torch": tensor})
    plain = {"nan": math.nan, "inf": math.inf, "low": -math.inf, "zero": -0.0, "tiny": 5e-324, "third": 1 / 3}
    assert bits(reloaded(tmp_path, plain)) == bits(plain)


leaves = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False)
    | st.text(max_size=5) | st.builds(np.arange, st.integers(0, 3))
    | st.builds(torch.arange, st.integers(0, 3))
)  # fmt: skip
states = st.dictionaries(
    st.text(alphabet='a/~.0"\\é', max_size=3),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("a/~0"), inner)),
    max_size=4,
)


@given(states)
@example({"~1": np.ones(1), "/": [np.zeros(2)], "": {"": np.ones(3)}, "0": {"~01": np.ones(4)}})
def test_any_nesting_comes_back_in_order(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    assert bits(reloaded(tmp_path_factory.getbasetemp(), state)) == bits(state)


def test_random_generators_come_back(tmp_path: Path) -> None:
    one, other = np.random.default_rng(5), np.random.Generator(np.random.MT19937(5))
    state = {"pcg": one.bit_generator.state, "mt": other.bit_generator.state, "torch": torch.get_rng_state()}
    loaded = reloaded(tmp_path, state)
    assert bits(loaded) == bits(state)
    twin = np.random.default_rng()
    twin.bit_generator.state = loaded["pcg"]
    assert twin.random() == one.random()


def test_parameters_come_back_detached_and_writable(tmp_path: Path) -> None:
    loaded = reloaded(tmp_path, {"w": torch.nn.Parameter(torch.ones(2)), "a": np.ones(2)})
    assert type(loaded["w"]) is torch.Tensor
    assert not loaded["w"].requires_grad
    loaded["a"][0] = 2.0
    loaded["w"][0] = 2.0
    assert (loaded["a"][0], loaded["w"][0].item()) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ((1, 2), "builtins.tuple"),
        (object(), "builtins.object"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([None]), "dtype object"),
        (np.zeros(1, np.complex128), "dtype complex128"),
        ({1: 2}, "key 1"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(tmp_path: Path, leaf: Any, words: str) -> None:
    with pytest.raises(ValueError, match="state/a/0.*" + words):
        checkpoint.save(tmp_path / "x", {"a": [leaf]}, kind=KIND)
    assert not list(tmp_path.iterdir())


def test_any_safetensors_reader_opens_it_and_equal_states_give_equal_files(saved: Path) -> None:
    with safetensors.safe_open(saved, "np") as file:
        assert list(file.keys()) == ["/w"]
        assert json.loads(file.metadata()["telescope"])["kind"] == KIND
        np.testing.assert_array_equal(file.get_tensor("/w"), np.arange(3.0))
    before = saved.read_bytes()
    checkpoint.save(saved, {"w": np.arange(3.0), "step": 7, "name": "a"}, kind=KIND)
    assert saved.read_bytes() == before


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(RunError, match="cut short"):
            checkpoint.load(saved, kind=KIND)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(saved, kind=KIND)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_every_flipped_byte_is_refused(saved: Path, flip: int) -> None:
    whole = saved.read_bytes()
    for i in range(len(whole)):
        saved.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
        with pytest.raises(RunError):
            checkpoint.load(saved, kind=KIND)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())  # ends the tests if anybody unpickles it


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    torch.save({"w": torch.ones(2)}, tmp_path / "torch.pt")
    for content in (
        b"",
        b"\0" * 100,
        pickle.dumps(Bomb()),
        (tmp_path / "torch.pt").read_bytes(),
        b"\x02" + b"\0" * 7 + b"[]",
    ):
        path.write_bytes(content)
        with pytest.raises(RunError, match="not a checkpoint"):
            checkpoint.load(path, kind=KIND)
    for metadata in (None, {"format": "pt"}, {"telescope": "{}"}):
        safetensors.numpy.save_file({"w": np.ones(2)}, path, metadata=metadata)
        with pytest.raises(RunError, match="not a checkpoint written by telescope"):
            checkpoint.load(path, kind=KIND)
    for text in ("5", "[]", "nonsense", '{"sha256": "0"}', '{"sha256": null}', '{"sha256": [1]}'):
        safetensors.numpy.save_file({"w": np.ones(2)}, path, metadata={"telescope": text})
        with pytest.raises(RunError):
            checkpoint.load(path, kind=KIND)


def test_wrong_kind_format_and_absence_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="kind 'ppo checkpoint', but 'dqn checkpoint' was expected"):
        checkpoint.load(saved, kind="dqn checkpoint")
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(RunError, match="format 1, but this version of telescope reads format 2"):
        checkpoint.load(saved, kind=KIND)
    with pytest.raises(RunError, match=r"cannot read .*absent"):
        checkpoint.load(saved.with_name("absent"), kind=KIND)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "disk is read-only")])
def test_a_failing_disk_keeps_the_previous_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    before = saved.read_bytes()
    with monkeypatch.context() as broken:
        if call == "open":
            broken.setattr(files, "open", fail, raising=False)
        else:
            broken.setattr(os, call, fail)
        with pytest.raises(RunError, match=f"cannot (write|open) .*x.safetensors.*{words}") as caught:
            checkpoint.save(saved, {"step": 8}, kind=KIND)
    assert "\n" not in str(caught.value)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_really_full_disk_is_said_to_be_full() -> None:
    with (
        files.Appender("/dev/full") as file,
        pytest.raises(RunError, match="cannot write /dev/full: the disk is full"),
    ):
        file.write(b"x")


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_them_all(tmp_path: Path) -> None:
    class Sips:
        def __init__(self) -> None:
            self.taken = b""

        def write(self, data: memoryview) -> int:
            self.taken += bytes(data[:3])
            return min(3, len(data))

    with files.Appender(tmp_path / "x") as file:
        real, file._file = file._file, Sips()
        file.write(b"hello, ", b"", memoryview(b"world"))
        assert file._file.taken == b"hello, world"
        file._file = real


def test_a_path_through_a_file_is_refused(saved: Path) -> None:
    with pytest.raises(RunError, match="is a file, not a folder"):
        checkpoint.save(saved / "x.safetensors", {}, kind=KIND)


def test_rename_happens_after_the_data_is_on_the_disk(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    checkpoint.save(saved, {}, kind=KIND)
    assert calls == ["fsync", "replace", "fsync"]  # the data, the name, the folder


SAVE_FOREVER = """
import sys, numpy as np
from telescope.runs.formats import checkpoint
step = 0
while True:
    step += 1
    state = {"step": step, "w": np.full(200_000, float(step)), "last": step}
    checkpoint.save(sys.argv[1], state, kind="k")
    print(step, flush=True)
"""


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, delays = tmp_path / "x.safetensors", np.random.default_rng(0).uniform(0.0, 0.03, size=8)
    for delay in delays:
        with subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            acknowledged = int(process.stdout.readline())
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        state = checkpoint.load(path, kind="k")
        assert state["step"] == state["last"] >= acknowledged
        assert (state["w"] == state["step"]).all()
