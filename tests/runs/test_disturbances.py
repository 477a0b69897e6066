"""What surrounds a run and fails: streams, caches of compilers, signals to the group, devices, states of other shapes.

Kills: a run that ends because nobody listens, an exception for ever because of one empty file, a compiler that dies of
Ctrl-C, a compiled loop that writes beyond its arrays.
"""

import importlib.util
import io
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope import cli
from telescope.algorithms.ppo import PPO, train
from telescope.checks import fitting, missing_device, on_device
from telescope.control.agents import compiling
from telescope.control.environments.factory import Factory
from telescope.control.environments.subprocesses import ParentsPipe, ReportedAsyncVectorEnv
from telescope.recurrence import caching
from telescope.streams import delivered, mended

# Streams


class Broken(io.StringIO):
    def write(self, _):
        raise OSError(5, "Input/output error")

    flush = write


def test_a_standard_error_that_is_gone_ends_nothing(monkeypatch):
    for stream in (None, Broken()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.main(["nonsense"]) == 2


def test_what_did_not_arrive_is_told(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["--help"]) == 1
    assert "cannot write to standard output: No space left on device" in capsys.readouterr().err


def test_an_encoding_that_lacks_a_character_ends_nothing(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["--help"]) == 0
    assert b"usage: telescope COMMAND ?" in raw.getvalue()


def test_closed_descriptors_are_not_taken_by_files(tmp_path):
    code = (
        "import os, sys\n"
        "from telescope.streams import mended\n"
        "with mended():\n"
        f"    file = open({str(tmp_path / 'data')!r}, 'w')\n"
        "    os.write(2, b'from a library')\n"
        "    sys.exit(file.fileno() <= 2)\n"
    )
    status = subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" >&- 2>&-', code]).returncode
    assert status == 0
    assert (tmp_path / "data").read_text() == ""


def test_streams_are_as_they_were_afterwards():
    before = sys.stdout, sys.stderr
    with mended():
        assert delivered() == ""
    assert (sys.stdout, sys.stderr) == before


# Caches


@pytest.mark.parametrize("content", [b"", b"\x80\x05", bytes(500), "changed"])
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_a_broken_file_in_the_cache_of_numba_is_made_anew(tmp_path, monkeypatch, content, ending):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "loops.py"
    source.write_text("def double(x):\n    return 2 * x\n")

    def double():
        spec = importlib.util.spec_from_file_location("loops", source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return caching.compiled(module.double)

    assert double()(21) == 42
    (file,) = tmp_path.rglob(f"*{ending}")
    if content == "changed" and ending == ".nbc":
        content = file.read_bytes() + b"x"  # which pickle would not notice
    elif content == "changed":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    anew = double()
    assert anew(21) == 42
    assert sum(anew.stats.cache_hits.values()) == 0
    again = double()
    assert again(21) == 42
    assert sum(again.stats.cache_hits.values()) == 1  # made anew, and found


ELF = b"\x7fELF\x02" + bytes(35) + struct.pack("<Q", 200) + bytes(10) + struct.pack("<HH", 64, 2) + bytes(2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "locks").mkdir()
    compiling._sweep.cache_clear()
    yield tmp_path
    compiling._sweep.cache_clear()


def test_cut_files_of_the_compilers_cache_are_deleted_but_not_those_being_written(cache):
    import fcntl

    whole = ELF + bytes(200 + 128 - len(ELF))
    for name, content in {"empty.main.so": b"", "cut.so": whole[:-1], "whole.so": whole, "empty.py": b"",
                          "code.py": b"1", "busy.so": b"", "no.so": b"\x7fELF"}.items():  # fmt: skip
        (cache / name).write_bytes(content)
    with (cache / "locks" / "busy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert compiling.from_cache_or_anew(lambda: "made") == "made"
    assert sorted(path.name for path in cache.iterdir()) == ["busy.so", "code.py", "locks", "whole.so"]


def test_what_the_loader_refuses_is_deleted_and_compiled_again(cache):
    library = cache / "odd.main.so"
    library.write_bytes(ELF + bytes(400))
    calls = []

    def make():
        calls.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        if library.exists():
            raise ImportError(f"{library}: undefined symbol")
        return "made"

    assert compiling.from_cache_or_anew(make) == "made"
    assert calls == [str(cache)] * 2


def test_where_no_file_is_named_a_fresh_cache_serves(cache):
    def make():
        if os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache):
            raise AttributeError("has no attribute 'call'")
        return "made"

    assert compiling.from_cache_or_anew(make) == "made"


# Signals


def test_signals_reach_this_process_at_once_but_not_what_it_starts():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(time.monotonic()))
    try:
        with compiling.undisturbed():
            started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
            time.sleep(0.2)
            started.send_signal(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert len(heard) == 1
            assert started.wait() == 0
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(signal.SIGTERM, before)


# Worker processes


def test_a_worker_that_is_killed_is_told_in_a_sentence():
    factory = Factory(gym.spec("CartPole-v1"), {})
    vector = ReportedAsyncVectorEnv([factory, factory], context="forkserver")
    try:
        vector.reset(seed=0)
        vector.processes[1].kill()
        vector.processes[1].join()
        with pytest.raises(ChildProcessError, match=r"1 of 2 environment processes ended \(exit status -9"):
            vector.step(np.zeros(2, int))
    finally:
        vector.close()


def test_a_worker_whose_parent_is_gone_ends_without_a_word(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    parent, worker = multiprocessing.Pipe()
    parent.close()
    for act in (ParentsPipe(worker).recv, lambda: ParentsPipe(worker).send((None, True))):
        with pytest.raises(SystemExit) as caught:
            act()
        assert caught.value.code == 0


# Devices


@pytest.mark.parametrize("name", ["evil", "meta", "cpu:x", "mps"])
def test_a_device_that_keeps_no_numbers_is_told(name):
    assert missing_device(name)
    with pytest.raises(ValueError, match=f"device '{name}' is not available on this machine"):
        on_device(PPO(), name)


def test_a_run_of_another_device_is_read_on_the_cpu_and_says_so():
    assert missing_device("cpu") == ""
    with pytest.warns(UserWarning, match="device 'evil' is not available on this machine .*; using cpu"):
        assert on_device(PPO(device="evil"), None).device == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_device(PPO(), None) == PPO()


# States


CONFIG = PPO(num_envs=2, num_steps=8, minibatch_size=16, epochs=1, total_steps=32, normalise_observations=True,
             normalise_rewards=True)  # fmt: skip


@pytest.fixture(scope="module")
def state():
    return next(iter(train(CONFIG))).state


def changed(value, path, new):
    """A copy of nested dicts with one leaf replaced; removed where new is None."""
    name, *rest = path
    if rest:
        return {**value, name: changed(value[name], rest, new)}
    return {k: v for k, v in value.items() if k != name} if new is None else {**value, name: new}


CART = ("rollouts", "environments", "lanes", "0", "attributes")


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("policy", "normaliser", "mean"), np.zeros((1, 1))),
        (("policy", "normaliser", "count"), np.zeros((1, 1), np.float32)),
        (("policy", "normaliser"), None),
        (("policy", "parameters"), torch.zeros(1, 3)),
        (("learner", "adam", "second_moment"), torch.zeros(1, 1)),
        (("learner", "adam", "first_decay"), None),
        (("rollouts", "scaler", "returns"), np.zeros((1, 1))),
        (("rollouts", "episode_return"), np.zeros((1, 1))),
        (("rollouts", "episode_length"), "many"),
        ((*CART, "state"), np.zeros((3, 2))),
        ((*CART, "prev_done"), np.zeros(1, bool)),
        ((*CART, "steps"), None),
        ((*CART, "step"), 1),
        (("rollouts", "environments", "lanes"), {}),
        (("rollouts", "environments", "lanes", "0", "observations"), np.zeros((1, 1), np.float32)),
        (("iteration",), "two"),
        (("step",), None),
    ],
    ids=lambda x: "/".join(x) if isinstance(x, tuple) else "",
)
def test_a_state_of_other_shapes_is_refused_before_any_loop_sees_it(state, path, new):
    with pytest.raises(ValueError, match=r"go on from|resume|state was saved"):
        next(iter(train(CONFIG, changed(state, path, new))))


def test_the_state_itself_is_taken(state):
    assert next(iter(train(CONFIG, state))).step == 32


def test_an_error_in_a_state_keeps_its_cause():
    with pytest.raises(ValueError, match="KeyError: 'x'") as caught, fitting():
        {}["x"]
    assert isinstance(caught.value.__cause__, KeyError)
