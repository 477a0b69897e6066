"""Worker processes start from any program: a script, guarded or not, a notebook, standard input."""

import json
import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
import types
from multiprocessing import resource_tracker

import gymnasium as gym
import pytest

from telescope.algorithms.ppo import PPO, train
from telescope.control.environments.factory import Factory
from telescope.control.environments.lanes import recorded_lane
from telescope.control.workers.shares import registered
from telescope.control.workers.spawning import GROUP, deaf, is_guarded, keep_tracker, sent, shielded, startable
from worlds import Forever

GUARD = 'if __name__ == "__main__":\n    '
TRAIN = """
import gymnasium as gym, numpy as np
from telescope.algorithms.ppo import PPO, train

class Ten(gym.Env):
    observation_space, action_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t >= 10, False, {}

def go():
    config = PPO(env=lambda: Ten(), num_envs=1, num_steps=32, minibatch_size=32, epochs=1, total_steps=32,
                 compile="off", threads=1, **SETTINGS)
    print("lengths", [row["length_mean"] for metrics in train(config) for row in metrics.rows])

"""


def main_of(monkeypatch, code, tmp_path, **names):
    main = types.ModuleType("__main__")
    if code is not None:
        (tmp_path / "script.py").write_text(code)
        main.__file__ = str(tmp_path / "script.py")
    main.__dict__.update(names)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


@pytest.mark.parametrize(
    ("code", "guarded"),
    [
        (TRAIN + GUARD + "go()", True),
        ("if '__main__' == __name__: pass", True),
        (TRAIN + "go()", False),
        ("def f():\n    if __name__ == '__main__': pass", False),
        ("no python", False),
        (None, False),  # a notebook, -c
    ],
)
def test_only_a_guarded_file_is_run_again_by_workers(monkeypatch, tmp_path, code, guarded):
    main = main_of(monkeypatch, code, tmp_path)
    assert is_guarded() == guarded
    with startable():
        assert (sys.modules["__main__"] is main) == guarded
    assert sys.modules["__main__"] is main


def test_python_m_is_run_again_as_ever(monkeypatch, tmp_path):
    main_of(monkeypatch, None, tmp_path, __spec__=types.SimpleNamespace(name="package.__main__"))
    assert is_guarded()


def test_a_worker_that_runs_the_script_again_ends_without_a_word(monkeypatch):
    monkeypatch.setattr("multiprocessing.process.current_process", lambda: types.SimpleNamespace(_inheriting=True))
    with pytest.raises(SystemExit), startable():
        pass


def test_what_cannot_be_sent_is_a_sentence():
    with pytest.raises(ValueError, match=r"processes is 2, but the environment or network cannot be sent .*TypeError"):
        sent(threading.Lock(), "processes is 2")
    lock = threading.Lock()
    with pytest.raises(ValueError, match="vectorization is 'async', but the environment or network cannot be sent"):
        recorded_lane([Factory(lambda: (lock, Forever())[1], {})], "same_step", True)


def test_ids_that_the_program_registered_go_along():
    from telescope.algorithms.ppo import PPO

    gym.register("Ours-v0", entry_point=Forever)
    try:
        assert registered(PPO(env="Ours-v0")).entry_point is Forever
    finally:
        del gym.registry["Ours-v0"]
    assert registered(PPO(env=Forever)) is None


@pytest.mark.slow
@pytest.mark.parametrize("settings", ['{"vectorization": "async"}', '{"seeds": 2, "processes": 2}'])
@pytest.mark.parametrize("how", ["guarded", "unguarded", "standard input"])
def test_every_kind_of_program_trains(tmp_path, settings, how):
    code = f"SETTINGS = {settings}" + TRAIN + (GUARD if how == "guarded" else "") + "go()\n"
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, "-" if how == "standard input" else "script.py"]
    found = subprocess.run(command, input=code, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "lengths [10.0" in found.stdout
    assert found.stderr == ""


def test_a_signal_to_the_group_waits_until_a_worker_has_started():
    """One that comes while a worker still imports would end it, with a traceback or without."""
    code = "import signal; print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
    with shielded():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(GROUP) <= set(json.loads(found.stdout))


def test_the_thread_that_starts_workers_sees_signals_to_the_group_afterwards():
    seen = []
    for number in GROUP:
        before = signal.signal(number, lambda number, _: seen.append(number))
        try:
            with shielded():
                signal.pthread_kill(threading.get_ident(), number)  # os.kill may choose another thread, of torch's pool
                assert number not in seen
        finally:
            signal.signal(number, before)
    assert seen == list(GROUP)


def test_workers_of_a_population_are_started_so(monkeypatch):
    masks = []

    def start(process):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        raise ConnectionResetError("no worker")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    with pytest.raises(ConnectionResetError):
        next(train(PPO(env="CartPole-v1", seeds=2, processes=2, compile="off")))
    assert set(GROUP) <= masks[0]


def test_a_worker_is_deaf_also_to_what_came_while_it_started():
    if not (child := os.fork()):
        signal.pthread_sigmask(signal.SIG_BLOCK, GROUP)
        for number in GROUP:
            os.kill(os.getpid(), number)
        deaf()
        for number in GROUP:
            os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_resource_tracker_survives_a_hang_up(monkeypatch):
    tracker = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    keep_tracker()
    os.kill(tracker._pid, signal.SIGHUP)
    os.close(tracker._fd)  # which ends it in its own way
    assert os.waitpid(tracker._pid, 0)[1] == 0
    tracker._fd = None
