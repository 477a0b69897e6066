"""What `telescope export` writes acts as the agent does: every algorithm, distribution, memory and kind of space."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from roster import ROSTER
from torch import nn

import telescope
from telescope import cli
from telescope.algorithms import LANGUAGE, ppo
from telescope.control.agents.networks import from_module
from telescope.control.environments.spaces import assembled, part_of
from telescope.deploy import exporting, reader
from telescope.deploy.acting import Acting, named, parts_of
from telescope.policy import Policy
from telescope.runs.files import RunError
from worlds import Pixels, Spaces

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself

AGENTS = [name for name in ROSTER if name not in LANGUAGE]
SMALL = {"total_steps": 32, "num_steps": 16, "minibatch_size": 16, "epochs": 1, "threads": 1, "compile": "off"}
NESTED = spaces.Dict(
    {
        "place": spaces.Discrete(5, start=-2),
        "far": spaces.Discrete(1000),
        "speed": spaces.Box(-1, 1, (2, 2), np.float64),
        "inside": spaces.Tuple((spaces.MultiDiscrete([2, 4, 4]), spaces.MultiBinary((2, 2)))),
        "camera": spaces.Box(0, 255, (4, 5, 3), np.uint8),
        "level": spaces.Box(-9, 9, (), np.int32),
    }
)
HYBRID = spaces.Dict(
    {
        "aim": spaces.Box(-1, 1, (2, 2), np.float32),
        "fire": spaces.Discrete(3, start=1),
        "keys": spaces.MultiBinary(2),
        "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-np.inf, np.inf, (), np.float64))),
    }
)
MIXED = spaces.Box(np.array([-2, 0, -np.inf, 5]), np.array([3, np.inf, 1, 9]), dtype=np.float64)
FLAT = spaces.Box(-1, 1, (3,), np.float32)
SEEN = spaces.Dict({"camera": spaces.Box(0, 255, (16, 14, 3), np.uint8), "speed": FLAT, "gear": spaces.Discrete(4)})
CASES = {  # name → observation space, action space, settings
    "flat": (FLAT, spaces.Discrete(4, start=2), {}),
    "choice": (spaces.Discrete(7, start=3), spaces.Discrete(3), {"normalise_observations": True}),
    "choices": (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([[2, 3], [4, 2]]), {"activation": "relu"}),
    "keys": (spaces.MultiBinary(5), spaces.MultiBinary((2, 2)), {"shared_network": True}),
    "clip": (FLAT, MIXED, {"action_bounds": "clip"}),
    "rescale": (FLAT, MIXED, {"action_bounds": "rescale"}),
    "squash": (FLAT, MIXED, {"action_bounds": "squash", "normalise_observations": True}),
    "whole": (spaces.Box(0, 200, (2, 3), np.uint8), spaces.Box(-3, 3, (2,), np.int32), {"log_std": 1.0}),
    "nested": (NESTED, HYBRID, {"normalise_observations": True, "action_bounds": "rescale"}),
    "asymmetric": (NESTED, HYBRID, {"critic_observations": ("far", "inside.0"), "critic": "quantile"}),
    "memory": (NESTED, HYBRID, {"memory": "gru", "memory_size": 5, "normalise_observations": True}),
    "grid": (spaces.Box(0.0, 1.0, (10, 10, 4), bool), spaces.Discrete(3), {}),
    "screen": (spaces.Box(0, 255, (3, 40, 36), np.uint8), spaces.Discrete(4), {"encoder": "cnn"}),
    "camera": (SEEN, HYBRID, {"encoder": "cnn", "shared_network": True}),
    "residual": (SEEN, spaces.Discrete(3), {"encoder": "impala"}),
    "lstm": (FLAT, spaces.Discrete(3), {"memory": "lstm", "memory_size": 3, "shared_network": True}),
}


class Anything(Spaces):
    """Any spaces, and nothing to earn."""

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(self.np_random.random()), False, self.steps >= 7, {}


def agent(config, network=None):
    """The policy of a run after one iteration."""
    module = ROSTER["ppo"].module if type(config) is ppo.PPO else None
    module = module or next(row.module for row in ROSTER.values() if type(row.small) is type(config))
    loop = module.train(config, **({} if network is None else {"network": network}))
    state = next(loop).policy
    loop.close()
    scaled = state["parameters"] * 1.5  # so that actions depend on what the agent sees
    return Policy(config, state | {"parameters": scaled}, network=network)


def policy_of(case):
    seen, chosen, more = CASES[case]
    return agent(ppo.PPO(env=lambda: Anything(seen, chosen), seeds=2, **SMALL | more))


def require_same(policy, run, seed):
    """Compare a file with `act` and `player` on observations, noise, masks and memories of this test's own."""
    rng, acting = np.random.default_rng(5), Acting(policy, seed)
    space, player = policy.observation_space, policy.player(seed=seed)
    noisy = policy.player(seed=seed, rng=np.random.default_rng(9))
    memory = {} if not acting.memory else {"memory": np.zeros((6, acting.memory), np.float32)}
    noisy_memory, draws = dict(memory), np.random.default_rng(9)
    for step in range(3):
        given = exporting.random_inputs(acting, space, 6, rng, sampled=True)
        given.pop("memory", None)
        mask = {} if "action_mask" not in given else {"action_mask": given["action_mask"]}
        seen = {name: x for name, x in given.items() if name not in ("noise", "action_mask")}
        observation = seen.get("observation")
        if observation is None:
            parts = {part.path: seen[named("observation", part)] for part in parts_of(acting.spaces[0])}
            observation = assembled(space, parts)
        found = run(seen | mask | memory)
        require_equal(acting, found, player(observation, begins=step == 0, **mask))
        noise = acting.agent.distribution.noise(draws, (6,))
        sampled = run(seen | mask | noisy_memory | {"noise": noise})
        require_equal(acting, sampled, noisy(observation, begins=step == 0, **mask))
        if memory:
            memory, noisy_memory = {"memory": found["next_memory"]}, {"memory": sampled["next_memory"]}


def require_equal(acting, found, actions):
    for part in parts_of(acting.spaces[1]):
        expected, here = part_of(actions, part.path, "action"), found[named("action", part)]
        assert here.shape == expected.shape
        assert here.dtype == expected.dtype
        np.testing.assert_allclose(here, expected, rtol=1e-5, atol=1e-5)


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in opened.get_outputs()]
    return lambda given: dict(zip(names, opened.run(names, given), strict=True))


def require_exported(policy, folder, seed=None):
    files = [folder / "policy.onnx", folder / "policy.npz"]
    onnx_off, arrays_off = exporting.export(policy, *files, seed=seed).values()
    assert onnx_off <= 1e-5
    # sums of single precision: the depth of the residual network rounds more often
    assert arrays_off <= (5e-6 if getattr(policy.config, "encoder", "") in ("cnn", "impala") else 2e-6)
    for path, opened in zip(files, (session, reader.Reader), strict=True):
        require_same(policy, opened(path), seed)


@pytest.mark.parametrize("name", AGENTS)
def test_every_algorithm_exports(name, tmp_path):
    policy = agent(ROSTER[name].small)
    require_exported(policy, tmp_path, policy.seeds[-1])


@pytest.mark.parametrize("case", CASES)
def test_every_space_and_distribution_exports(case, tmp_path):
    require_exported(policy_of(case), tmp_path)


class Seeing(nn.Module):
    """A convolution, pooling, normalisation and the usual activations."""

    def __init__(self):
        super().__init__()
        convolution = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.body = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 8))
        self.more = nn.Sequential(nn.LayerNorm(8), nn.SiLU(), nn.LeakyReLU(), nn.ELU())
        self.policy, self.value = nn.Linear(8, Pixels.action_space.n), nn.Linear(8, 1)

    def forward(self, x):
        x = self.more(self.body(x.float() / 255))
        return self.policy(x), self.value(x)[:, 0]


def test_a_network_of_ones_own_exports(tmp_path):
    config = ppo.PPO(env=Pixels, **SMALL)
    require_exported(agent(config, from_module(Seeing, shaped=True)), tmp_path)


def test_each_seed_has_its_own_file(tmp_path):
    policy = policy_of("flat")
    for seed in policy.seeds:
        exporting.export(policy, tmp_path / "policy.npz", seed=seed)
        require_same(policy, reader.Reader(tmp_path / "policy.npz"), seed)
    with pytest.raises(ValueError, match="this run has the seeds 0 to 1"):
        exporting.export(policy, tmp_path / "policy.npz", seed=7)


def test_normalised_observations_are_clipped(tmp_path):
    config = ppo.PPO(env="CartPole-v1", normalise_observations=True, clip_observations=0.5, **SMALL)
    policy, far = agent(config), np.full((1, 4), 1e4, np.float32)
    exporting.export(policy, tmp_path / "policy.onnx")
    run = session(tmp_path / "policy.onnx")
    _, inputs, _ = policy.inputs(far, None)
    assert inputs.max() == 0.5
    found = run({"observation": far})["policy_outputs"]
    assert found == pytest.approx(run({"observation": 2 * far})["policy_outputs"])
    parameters = policy.agent.layout.unflatten(policy.parameters[0])
    assert found[0] == pytest.approx(policy.agent.policy(parameters, inputs)[0], abs=1e-6)


def test_a_graph_says_what_it_takes_and_gives(tmp_path):
    policy = policy_of("memory")
    exporting.export(policy, tmp_path / "policy.onnx")
    opened = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    asked = {one.name: (one.shape, one.type) for one in opened.get_inputs()}
    assert asked == {
        "observation.camera": (["batch", 4, 5, 3], "tensor(uint8)"),
        "observation.far": (["batch"], "tensor(int64)"),
        "observation.inside.0": (["batch", 3], "tensor(int64)"),
        "observation.inside.1": (["batch", 2, 2], "tensor(int8)"),
        "observation.level": (["batch"], "tensor(int32)"),
        "observation.place": (["batch"], "tensor(int64)"),
        "observation.speed": (["batch", 2, 2], "tensor(double)"),
        "memory": (["batch", 10], "tensor(float)"),
    }
    assert {one.name for one in opened.get_overridable_initializers()} == {"noise", "action_mask"}
    names = [one.name for one in opened.get_outputs()]
    actions = ["action.aim", "action.fire", "action.keys", "action.pair.0", "action.pair.1"]
    assert names == [*actions, "policy_outputs", "next_memory"]
    about = opened.get_modelmeta().custom_metadata_map
    assert about["seed"] == "0"
    assert json.loads(about["noise"])[0] == ["normal", 4, 0.0]
    arrays = {one.name for one in onnx.load(tmp_path / "policy.onnx").graph.initializer}
    assert {"policy.memory.input.weight", "policy.0.weight", "policy.out.bias"} <= arrays


def test_a_file_that_differs_is_removed(tmp_path, monkeypatch):
    policy = policy_of("flat")
    for wrong in (1e-3, float("nan")):
        monkeypatch.setattr(exporting, "difference", lambda *_, wrong=wrong: wrong)
        for name in ("policy.onnx", "policy.npz"):
            with pytest.raises(RunError, match="differs from the agent by"):
                exporting.export(policy, tmp_path / name)
            assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["policy_outputs", "action"])
def test_the_check_sees_every_output(name):
    """A difference in one output alone is the difference of the file."""
    policy = policy_of("squash")
    acting = Acting(policy).eval()

    def run(given):
        values = [given.get(port.name, port.default) for port in acting.inputs]
        found = acting(tuple(torch.from_numpy(np.asarray(value)) for value in values))
        outputs = {port.name: x.numpy() for port, x in zip(acting.outputs, found, strict=True)}
        return outputs | {name: outputs[name] + shift}

    shift = np.float32(0)
    assert exporting.difference(policy, acting, run, None) < 1e-6
    shift = np.float32(0.01)
    assert exporting.difference(policy, acting, run, None) > 1e-3


@pytest.mark.parametrize("name", ["dqn", "ppo", "sac"])
def test_the_reader_draws_the_agents_noise(name, tmp_path):
    policy = agent(ROSTER[name].small)
    exporting.export(policy, tmp_path / "policy.npz")
    drawn = reader.Reader(tmp_path / "policy.npz").noise(np.random.default_rng(3), 5)
    assert np.array_equal(drawn, policy.agent.distribution.noise(np.random.default_rng(3), (5,)))


def test_the_reader_needs_numpy_alone(tmp_path):
    policy = policy_of("nested")
    exporting.export(policy, tmp_path / "policy.npz")
    exporting.write_reader(tmp_path)
    code = """
import sys
before = set(sys.modules)
import numpy
from reader import Reader
policy = Reader("policy.npz")
rows = policy.noise(numpy.random.default_rng(0), 3)
given = {name: numpy.zeros((3, *shape), dtype) for name, (dtype, shape) in policy.graph["inputs"].items()}
print(sorted(policy(given | {"noise": rows, "action_mask": given["action_mask"] | True})))
assert not {"torch", "onnx", "onnxruntime", "gymnasium", "telescope"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{code}"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "action.pair.1" in done.stdout


def test_the_command_exports_the_seed_that_is_asked_for(tmp_path, capsys):
    folder = tmp_path / "run"
    telescope.train(ppo.PPO(env="CartPole-v1", seeds=3, eval_every=16, eval_episodes=3, **SMALL), folder)
    best = telescope.load(folder, best=True)
    table = telescope.runs.read_metrics(folder)
    for flags, policy, seed in (
        ([], telescope.load(folder), 0),
        (["--seed", "2"], telescope.load(folder), 2),
        (["--best"], best, best.best_seed),
        (["--best", "--seed", "1"], best, 1),
    ):
        assert cli.main(["export", str(folder), "--out", str(tmp_path / "p.npz"), "--reader", *flags]) == 0
        assert f"seed {seed}: " in capsys.readouterr().err
        require_same(policy, reader.Reader(tmp_path / "p.npz"), seed)
    highest = np.nanmax(table["eval_return_mean"])
    assert highest == np.nanmax(table["eval_return_mean"][table["seed"] == best.best_seed])
    assert (tmp_path / "reader.py").read_bytes() == Path(reader.__file__).read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--out", "policy.pt"], "out is 'policy.pt'; expected a name that ends in .onnx or .npz"),
        (["--out", "nowhere/policy.npz"], "there is no folder nowhere"),
        (["--reader"], "--reader reads arrays, but --out is policy.onnx"),
        (["--seed", "5", "--out", "x.npz"], "seed is 5; this run has the seeds 0 to 0"),
        (["--best"], "has no best agent yet; train with --eval-every"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(tmp_path, monkeypatch, capsys, words, complaint):
    telescope.train(ppo.PPO(env="CartPole-v1", **SMALL), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "run", *words]) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    telescope.train(ppo.PPO(env="CartPole-v1", **SMALL), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "p.onnx")]) == 1
    assert 'telescope export needs onnxruntime: pip install "telescope-rl[export]"' in capsys.readouterr().err
