"""A network of one's own is tried when a run begins: what cannot work is refused by name, what is frozen stays."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from telescope.algorithms.ppo import PPO, Learner, train
from telescope.control.agents.networks import Network, from_module
from telescope.control.training import Session
from telescope.policy import Policy
from worlds import Forever, Pixels

CONFIG = PPO(
    env=Forever, seeds=2, num_steps=8, minibatch_size=8, epochs=2, total_steps=24, learning_rate=0.1, compile="off"
)


class Net(nn.Module):
    """A body, then heads for two actions and a value; `change` says what is done to it."""

    def __init__(self, body=None, change=None):
        super().__init__()
        self.body = nn.Linear(1, 4) if body is None else body
        self.policy, self.value = nn.Linear(4, 2), nn.Linear(4, 1)
        self.change = change

    def features(self, x):
        return torch.tanh(self.body(x))

    def forward(self, observations):
        x = self.features(observations)
        answer = self.policy(x), self.value(x).squeeze(-1)
        return answer if self.change is None else self.change(observations, x, *answer)


def after(network, config=CONFIG):
    """Notes and the parameters [S, P] after each iteration."""
    found = [(metrics.notes, metrics.policy["parameters"]) for metrics in train(config, network=network)]
    return found[-1][0], [parameters for _, parameters in found]


def named(network, vectors):
    sizes = {name: p.numel() for name, p in network.init(np.random.default_rng(0)).items()}
    return dict(zip(sizes, torch.split(vectors, list(sizes.values()), -1), strict=True))


class Encoder(nn.Module):
    """Frozen and random at construction: its own numbers for every seed, in parameters and in a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 4).requires_grad_(False)
        self.register_buffer("phases", torch.randn(4), persistent=False)
        self.norm = nn.BatchNorm1d(4).eval().requires_grad_(False)

    def forward(self, x):
        return self.norm(self.linear(x) + self.phases)


def test_frozen_layers_and_buffers_stay_and_everything_else_learns():
    network = from_module(lambda: Net(Encoder()))
    _, parameters = after(network)
    first, last = named(network, parameters[0]), named(network, parameters[-1])
    assert "body.phases" in first
    assert "body.norm.running_var" in first
    for name in first:
        assert torch.equal(first[name], last[name]) == name.startswith("body."), name
    assert not torch.equal(first["body.phases"][0], first["body.phases"][1]), (
        "each seed has the buffer it was built with"
    )


def test_what_was_random_at_construction_comes_back_with_the_run():
    states = [metrics.state for metrics in train(CONFIG, network=from_module(lambda: Net(Encoder())))]
    torch.manual_seed(1)  # another template
    again = [m.policy["parameters"] for m in train(CONFIG, states[0], network=from_module(lambda: Net(Encoder())))]
    assert torch.equal(again[-1], states[-1]["policy"]["parameters"])


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 4)

    def forward(self, x):
        return self.lstm(x)


class Counter(nn.Module):
    """Counts its calls in a buffer, in place or anew."""

    def __init__(self, in_place):
        super().__init__()
        self.linear, self.in_place = nn.Linear(1, 4), in_place
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        if self.in_place:
            self.seen.add_(1)
        else:
            self.seen = self.seen + 1
        return self.linear(x)


class Index(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 4)
        self.register_buffer("order", torch.randperm(400))

    def forward(self, x):
        return self.linear(x)


def changed(change, body=None):
    return lambda: from_module(lambda: Net(body and body(), change))


BROKEN = {
    "dropout": (
        changed(None, lambda: nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.1))),
        r"'body.1' is a Dropout in training",
    ),
    "functional dropout": (changed(lambda o, x, p, v: (nn.functional.dropout(p), v)), "other outputs for the same obs"),
    "LSTM": (lambda: from_module(lambda: Net(Lstm())), r"'body.lstm' is a LSTM with a state from step to step"),
    "GRU cell": (changed(None, lambda: nn.GRUCell(1, 4)), r"'body' is a GRUCell with a state"),
    "BatchNorm": (
        changed(None, lambda: nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4))),
        "is a BatchNorm1d in training",
    ),
    "a bare module": (Net, r"network is Net; expected from_module\(lambda: Net\(…\)\)"),
    "a module class": (lambda: Net, r"network is Net; expected from_module"),
    "a function": (lambda: lambda x: x, r"network is function; expected a Network"),
    "no module": (lambda: from_module(lambda: 3), "returned a int; expected a torch.nn.Module"),
    "one output": (changed(lambda o, x, p, v: p), r"returned one tensor of shape \(3, 2\); expected \(policy outputs"),
    "three outputs": (changed(lambda o, x, p, v: (p, v, x)), r"returned 3 values \(Tensor, Tensor, Tensor\)"),
    "a dict": (changed(lambda o, x, p, v: {"p": p}), "returned a dict; expected"),
    "too few logits": (
        changed(lambda o, x, p, v: (p[:, :1], v)),
        r"shape \(3, 1\) for 3 observations; expected \(3, 2\): a logit",
    ),
    "values not squeezed": (
        changed(lambda o, x, p, v: (p, v[:, None])),
        r"\(3, 1\) .* expected \(3,\); .*\.squeeze",
    ),
    "values squeezed too far": (
        changed(lambda o, x, p, v: (p, v[:, None].squeeze())),
        r"shape \(\) for 1 .*\.squeeze\(-1\)",
    ),
    "float64 outputs": (changed(lambda o, x, p, v: (p.double(), v)), "policy outputs are torch.float64; expected"),
    "NaN": (changed(lambda o, x, p, v: (p, v / 0 * 0)), "values are not finite"),
    "another size": (changed(None, lambda: nn.Linear(7, 4)), r"fails on observations of shape \(3, 1\): .*"),
    "float64 parameters": (
        changed(None, lambda: nn.Linear(1, 4).double()),
        "'body.weight' is torch.float64, .* call .float",
    ),
    "its batch": (changed(lambda o, x, p, v: (p - p.mean(0), v)), "alone than in a batch"),
    "a counter in place": (
        lambda: from_module(lambda: Net(Counter(True))),
        "writes into its own parameters or buffers",
    ),
    "a counter anew": (lambda: from_module(lambda: Net(Counter(False))), r"buffer 'body.seen' changes in the forward"),
    "an index per seed": (
        lambda: from_module(lambda: Net(Index())),
        r"'body.order' is torch.int64 and differs from seed",
    ),
    "no gradient": (changed(lambda o, x, p, v: (p.detach(), v.detach())), "no gradient reaches"),
    "a branch on data": (changed(lambda o, x, p, v: (p, v) if p.sum() > 1e9 else (p, v + 0)), "for all seeds at once"),
}


@pytest.mark.parametrize(("make", "sentence"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_work_is_refused_by_name(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        next(train(CONFIG, network=make()))


def test_dropout_and_batch_normalisation_that_rest_are_taken():
    body = lambda: nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()  # noqa: E731
    after(from_module(lambda: Net(body())))


def test_gaussians_are_told_that_they_need_a_deviation():
    class Continuous(Forever):
        action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    config = dataclasses.replace(CONFIG, env=Continuous)
    with pytest.raises(
        ValueError, match=r"shape \(3, 2\) .* expected \(3, 4\): mean and log σ of each action component"
    ):
        next(train(config, network=from_module(Net)))


def test_a_pair_of_functions_is_tried_too():
    def init(rng):
        return {"w": torch.from_numpy(rng.standard_normal((1, 3), dtype=np.float32))}

    def apply(parameters, observations):
        answer = observations @ parameters["w"]
        return answer[:, :2], answer[:, 2:]

    with pytest.raises(ValueError, match=r"values have shape \(3, 1\)"):
        next(train(CONFIG, network=Network(init, apply)))


def test_settings_of_the_built_in_networks_are_told_to_have_no_effect():
    config = dataclasses.replace(CONFIG, hidden=(8,), activation="relu")
    notes, _ = after(from_module(Net), config)
    assert "hidden, activation have no effect: network= replaces the built-in networks" in notes
    assert not any("no effect" in note for note in after(from_module(Net))[0])
    assert not any("no effect" in note for note in after(None, config)[0])


def test_a_network_may_see_images_as_they_are():
    """Bytes [2, 3, 4], as the environment's Box has them: while acting, in updates, and at the end of a rollout."""

    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Conv2d(2, 4, 2), nn.Linear(4 * 2 * 3, 3)

        def forward(self, images):
            assert images.dtype == torch.uint8
            assert images.shape[1:] == (2, 3, 4)
            found = self.out(torch.relu(self.first(images.float() / 255)).flatten(1))
            return found[:, :2], found[:, 2]

    config = dataclasses.replace(CONFIG, env=Pixels, total_steps=6400, num_steps=32, num_envs=4, learning_rate=1e-2)
    network = from_module(Conv, shaped=True)
    *_, last = train(config, network=network)
    assert min(row["return_mean"] for row in last.rows) > 3.5, "of 4; chance is 2"
    policy = Policy(config, last.policy, network=network)
    assert policy.evaluate(5).returns.mean() == 4
    image = np.zeros((2, 3, 4), np.uint8)
    assert policy.act(image) == 0
    image[0] = 255
    assert policy.act(image) == 1
    rollout = Session(config, None, Learner, network=network).collect()
    assert rollout.observations.dtype == torch.uint8
    assert rollout.finals.observations.dtype == np.uint8
