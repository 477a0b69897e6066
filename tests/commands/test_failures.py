"""What the user's own code raises is shown with its file and line, whatever its type; refusals stay one sentence."""

import os
import pickle
import sys
import traceback
import warnings
import zlib
from pathlib import Path

import pytest

from telescope.cli import main
from telescope.control.config import ControlConfig
from telescope.failures import IN_WORKER, is_users, sendable
from telescope.language.data.rewards import load_function, score

MODULE = '''
import gymnasium as gym, multiprocessing, numpy as np

class Odd(Exception):
    """Neither made from one argument nor pickled as it is."""
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.held = lambda: None

def raises(what):
    if what == "value": raise ValueError("prices are negative")
    if what == "file": open("/no/such/prices.csv")
    if what == "import": import not_there
    if what == "float": raise FloatingPointError("underflow in my simulator")
    if what == "key": {}["position"]
    if what == "pipe": raise BrokenPipeError("my server is gone")
    if what == "end": raise EOFError("my server has no more")
    if what == "odd": raise Odd("one", "two")

class World(gym.Env):
    observation_space, action_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32), gym.spaces.Discrete(2)
    def __init__(self, at="step", what=""):
        self.at, self.what = at, what
        if at == "init": raises(what)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        if self.at == "reset": raises(self.what)
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.t += 1
        in_worker = multiprocessing.parent_process() is not None
        if self.at == "step" or (self.at == "worker's step" and in_worker): raises(self.what)
        return np.full(1, self.t, np.float32), 1.0, self.t >= 10, False, {}

gym.register("NAME-v0", entry_point="NAME:World")
'''
SMALL = ["--num-steps", "16", "--num-envs", "2", "--minibatch-size", "32", "--epochs", "1", "--total-steps", "32"]


def caught(act):
    """The exception that a function raises, without this file's own frames."""
    try:
        act()
    except Exception as error:
        return error.with_traceback(error.__traceback__.tb_next)


@pytest.fixture
def world(tmp_path, monkeypatch, request):
    """A module of the user's in the working directory, which only `telescope` itself puts on the path."""
    name = f"world_{zlib.crc32(request.node.name.encode())}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    yield name
    sys.modules.pop(name, None)


def train(world, *flags):
    return main(["train", "ppo", f"{world}:{world}-v0", *SMALL, "--out", "run", *flags])


@pytest.mark.parametrize(
    ("at", "what"),
    [("step", w) for w in ("value", "file", "import", "float", "key", "pipe")] + [("reset", "value"), ("init", "key")],
)
def test_an_error_of_the_environment_names_its_line(world, capfd, at, what):
    assert train(world, "--env-kwargs", "at", at, "what", what) == 1
    told = capfd.readouterr().err
    assert "Traceback" in told
    assert f"{world}.py" in told
    assert f'if what == "{what}"' in told


@pytest.mark.parametrize("what", ["value", "odd"])
def test_an_error_in_a_worker_of_gymnasium_names_its_line(world, capfd, what):
    flags = ["--env-kwargs", "at", "worker's step", "what", what, "--vectorization", "async"]
    assert train(world, *flags) == 1
    told = capfd.readouterr().err
    assert IN_WORKER in told
    assert f"{world}.py" in told


@pytest.mark.slow
def test_an_error_in_a_training_process_names_its_line_whatever_its_type(world, capfd):
    flags = ["--env-kwargs", "at", "worker's step", "what", "end", "--processes", "2", "--seeds", "2"]
    assert train(world, *flags) == 1
    told = capfd.readouterr().err
    assert IN_WORKER in told
    assert "EOFError: my server has no more" in told


def test_a_missing_module_of_the_user_names_the_import(world, capfd):
    """It is not the sentence about telescope's own extras."""
    Path("outer.py").write_text("import not_there_either\n")
    assert main(["train", "ppo", "outer:World-v0", *SMALL]) == 1
    told = capfd.readouterr().err
    assert "outer.py" in told
    assert "import not_there_either" in told


def test_an_error_of_a_reward_function_names_its_line(tmp_path):
    (tmp_path / "rewards.py").write_text("def reward(prompts, completions, **columns):\n    {}['position']\n")
    function = load_function(f"{tmp_path / 'rewards.py'}:reward")
    error = caught(lambda: score(function, [{"prompt": "1+1="}], ["2"], name="mine"))
    assert is_users(error)
    assert "{}['position']" in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("flags", [["--gamma", "2"], ["--env-kwargs", "nowhere", "1"], ["--device", "abacus"]])
def test_refusals_of_telescope_stay_one_sentence(world, capfd, flags):
    assert train(world, *flags) == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1


def test_a_refusal_in_a_worker_is_none_of_the_users():
    refuse = eval("lambda: config(seeds=0)", {"__name__": "telescope.somewhere", "config": ControlConfig})
    refusal = caught(refuse)
    assert not is_users(refusal)
    assert not hasattr(pickle.loads(pickle.dumps(sendable(refusal))), "__notes__")


def test_what_arrives_from_a_worker_is_the_users_still():
    arrived = pickle.loads(pickle.dumps(sendable(caught(lambda: {}["position"]))))
    assert type(arrived) is KeyError
    assert arrived.__traceback__ is None
    assert is_users(arrived)
    assert is_users(KeyError(arrived))  # in this way Gymnasium raises it
    assert "test_failures.py" in arrived.__notes__[0]


LIBRARY, MINE = "/x/lib/python3.11/site-packages/gymnasium/envs/registration.py", "/home/me/world.py"


@pytest.mark.parametrize(("file", "asked", "shown"), [(LIBRARY, [], False), (MINE, [], True), (LIBRARY, ["d"], True)])
def test_warnings_of_libraries_stay_off_the_terminal(monkeypatch, file, asked, shown):
    """Those about the user's own code are shown, and all where warnings are asked for with -W."""
    monkeypatch.setattr(sys, "warnoptions", asked)
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: told.append(str(message))
        assert main(["--version"]) == 0
        warnings.warn_explicit("is out of date", DeprecationWarning, file, 1)
    assert told == ["is out of date"] * shown


def test_a_missing_extra_is_named_wherever_it_is_imported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["plot", "--help"]) == 1
    assert 'tyro is not installed, and this needs it: pip install "telescope-rl[control]"' in capsys.readouterr().err
