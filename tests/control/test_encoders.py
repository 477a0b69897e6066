"""Encoders of pictures against torch's own layers, written out; what a picture is; whose encoder learns."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from telescope.algorithms import dqn, ppo, sac
from telescope.control.agents.convolution import convolve
from telescope.control.agents.encoders import encoder_of, inputs
from telescope.control.agents.layout import create
from telescope.control.agents.pictures import picture, pixels
from telescope.control.environments.spaces import packed_observations
from telescope.control.experience.encoding import encoder, examples


def box(*shape, dtype=np.uint8, high=255):
    return gym.spaces.Box(0, high, shape, dtype)


# A convolution


@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, 0), (4, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_a_convolution_is_torchs(k, stride, padding):
    """Values, gradients of all three arguments, and derivatives along a direction; alone and for all agents."""
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((2, 3, 11, 9, 4), (2, 5, k, k, 4), (2, 5))
    )

    def ours(x, weight, bias):
        return convolve(x, weight, bias, stride=stride, padding=padding)

    def theirs(x, weight, bias):
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, stride, padding)
        return y.permute(0, 2, 3, 1)

    def slopes(function):
        return torch.func.grad(lambda *given: function(*given).sin().sum(), argnums=(0, 1, 2))

    def along(function, *given):
        return torch.func.jvp(function, given, tuple(torch.cos(one) for one in given))[1]

    given = [(x[s], weight[s], bias[s]) for s in range(2)]
    for mine, reference in ((ours, theirs), (slopes(ours), slopes(theirs))):
        wanted = [reference(*one) for one in given]
        together = torch.func.vmap(mine)(x, weight, bias)
        for s in range(2):
            alone = mine(*given[s])
            for a, b, c in zip(
                *(t if isinstance(t, tuple) else (t,) for t in (wanted[s], alone, together)), strict=True
            ):
                torch.testing.assert_close(b, a)
                torch.testing.assert_close(c[s], a)
    torch.testing.assert_close(along(ours, *given[0]), along(theirs, *given[0]))
    directions = torch.func.vmap(lambda *one: along(ours, *one))(x, weight, bias)
    torch.testing.assert_close(directions[1], along(theirs, *given[1]))


def test_a_convolution_of_one_picture_for_all_agents():
    x, weight, bias = torch.rand(3, 8, 8, 2), torch.rand(4, 5, 3, 3, 2), torch.rand(4, 5)
    found = torch.func.vmap(convolve, in_dims=(None, 0, 0))(x, weight, bias)
    torch.testing.assert_close(found[2], convolve(x, weight[2], bias[2]))


# Encoders


def layer(parameters, name, x, **how):
    """A convolution of channels first, by torch, with our parameters."""
    return F.conv2d(x, parameters[f"{name}.weight"].permute(0, 3, 1, 2), parameters[f"{name}.bias"], **how)


def out(parameters, x):
    """The last layer reads pixels row by row, each with all of its channels."""
    return F.relu(x.permute(0, 2, 3, 1).flatten(1) @ parameters["out.weight"] + parameters["out.bias"])


def nature(p, x):
    for name, stride in (("0", 4), ("1", 2), ("2", 1)):
        x = F.relu(layer(p, name, x, stride=stride))
    return out(p, x)


def small(p, x):
    return out(p, F.relu(layer(p, "0", x)))


def impala(p, x):
    for stage in range(3):
        x = F.max_pool2d(layer(p, f"{stage}", x, padding=1), 3, 2, 1)
        for block in range(2):
            y = layer(p, f"{stage}.{block}.0", F.relu(x), padding=1)
            x = x + layer(p, f"{stage}.{block}.1", F.relu(y), padding=1)
    return out(p, F.relu(x))


@pytest.mark.parametrize(
    ("shape", "kind", "by_hand", "size"),
    [
        ((84, 84, 4), "cnn", nature, 512),
        ((36, 40, 1), "cnn", nature, 512),
        ((35, 84, 3), "cnn", small, 128),
        ((10, 10, 4), "cnn", small, 128),
        ((5, 7, 3), "cnn", small, 128),
        ((21, 10, 3), "impala", impala, 256),
        ((64, 64, 3), "impala", impala, 256),
        ((6, 5, 3), "mlp", lambda p, x: x.permute(0, 2, 3, 1).flatten(1), 90),
    ],
)
def test_an_encoder_is_the_published_network(shape, kind, by_hand, size):
    found = encoder_of(picture(box(*shape)), kind)
    parameters = found.init("", np.random.default_rng(1))
    x = torch.rand(2, *shape)
    features = found.apply(parameters, "", x)
    assert features.shape == (2, size) == (2, found.size)
    torch.testing.assert_close(features, by_hand(parameters, x.permute(0, 3, 1, 2)))
    assert found.weights == sum(len(p.flatten()) for p in parameters.values() if p.ndim > 1)
    with FlopCounterMode(display=False) as counter:  # a multiplication and an addition for each product
        by_hand(parameters, x.permute(0, 3, 1, 2))
    assert counter.get_total_flops() == 2 * len(x) * found.products


def test_filters_begin_orthogonal():
    parameters = encoder_of(picture(box(84, 84, 4)), "cnn").init("", np.random.default_rng(0))
    for name, filters in (("0", 32), ("1", 64), ("2", 64)):
        rows = parameters[f"{name}.weight"].reshape(filters, -1)
        torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(filters), atol=1e-5, rtol=0)
        assert not parameters[f"{name}.bias"].any()


# Pictures


@pytest.mark.parametrize(
    ("space", "order", "channels"),
    [
        (box(84, 84, 4), "HWC", 4),
        (box(4, 84, 84), "CHW", 4),
        (box(84, 84), "HW", 1),
        (box(210, 160, 3), "HWC", 3),
        (box(4, 84, 84, 3), "KHWC", 12),
        (box(4, 3, 84, 84), "KCHW", 12),
        (box(10, 10, 10, dtype=np.bool_, high=1), "HWC", 10),
        (box(5, 6, 1, dtype=np.float32, high=1), "HWC", 1),
    ],
)
def test_the_order_of_channels_is_found_out(space, order, channels):
    found = picture(space)
    assert (found.order, found.channels) == (order, channels)
    for axis, size in (("H", found.height), ("W", found.width)):
        assert space.shape[order.index(axis)] == size


@pytest.mark.parametrize(
    "space",
    [
        box(128),
        box(4, 128),
        box(4, 84, 3),
        box(7, 7, 3, dtype=np.int64),
        box(9, 9, 3, dtype=np.float32, high=np.inf),
        box(9, 9, dtype=np.float32, high=1),
        gym.spaces.Discrete(9),
        gym.spaces.MultiBinary((9, 9, 3)),
    ],
)
def test_other_spaces_are_no_pictures(space):
    assert picture(space) is None
    assert inputs(packed_observations(space), "auto") == []
    with pytest.raises(ValueError, match=r"encoder is 'impala'.*no picture"):
        inputs(packed_observations(space), "impala")


@pytest.mark.parametrize("order", ["HW", "HWC", "CHW", "KHWC", "KCHW"])
def test_pixels_keep_their_place(order):
    """Each pixel of [N, H, W, C] is looked up in the observation; frames are channels one after the other."""
    sizes = {"H": 7, "W": 6, "C": 3, "K": 2}
    shape = tuple(sizes[axis] for axis in order)
    space = box(*shape)
    x = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    found = pixels(picture(space), x)
    assert found.dtype == torch.float32
    counts = [sizes[axis] if axis in order else 1 for axis in "KC"]
    assert found.shape == (2, 7, 6, counts[0] * counts[1])
    for k in range(counts[0]):
        for c in range(counts[1]):
            place = tuple({"K": k, "C": c}.get(axis, slice(None)) for axis in order)
            torch.testing.assert_close(found[..., k * counts[1] + c], x[(slice(None), *place)].float() / 255)


def test_only_brightness_is_divided():
    """Bools and floats 0 … 1 stay, and so do bytes with another bound."""
    for dtype, high in ((np.bool_, 1), (np.float32, 1), (np.uint8, 7)):
        space = box(6, 5, 2, dtype=dtype, high=high)
        x = torch.from_numpy(np.full((1, 6, 5, 2), high, dtype))
        assert (pixels(picture(space), x) == high).all()


# Networks


DICT = gym.spaces.Dict(
    {
        "speed": gym.spaces.Box(-1, 1, (2,)),
        "camera": box(3, 40, 40),
        "map": box(6, 6, 2, dtype=np.bool_, high=1),
        "gear": gym.spaces.Discrete(3),
    }
)


def agent_of(config, space, actions=None):
    packed = packed_observations(space)
    network = config.network_for(packed, actions or gym.spaces.Discrete(2))
    vectors, layout = create(network, [0, 1])
    return network, layout.unflatten(vectors[0]), examples(packed, shaped=network.shaped), layout


def test_each_picture_of_a_dict_has_an_encoder_beside_the_numbers():
    """The perceptron reads the features of each part in the order of the space; written out here."""
    network, p, rows, _ = agent_of(ppo.PPO(shared_network=True, hidden=(8,)), DICT)
    space = packed_observations(DICT)
    native = space.native(rows.numpy())

    def part(key, by_hand, x):
        own = {name.removeprefix(f"encoder.{key}."): v for name, v in p.items() if name.startswith(f"encoder.{key}.")}
        return by_hand(own, x)

    camera = part("camera", nature, torch.from_numpy(native["camera"]) / 255)
    board = part("map", small, torch.from_numpy(native["map"]).float().permute(0, 3, 1, 2))
    gear = F.one_hot(torch.from_numpy(native["gear"]), 3)
    columns = {"speed": torch.from_numpy(native["speed"]), "camera": camera, "map": board, "gear": gear}
    x = torch.cat([columns[key] for key in DICT.spaces], -1)
    hidden = torch.tanh(x @ p["shared.0.weight"] + p["shared.0.bias"])
    outputs, values = network.apply(p, rows)
    torch.testing.assert_close(outputs, hidden @ p["policy.out.weight"] + p["policy.out.bias"])
    torch.testing.assert_close(values, (hidden @ p["value.out.weight"] + p["value.out.bias"])[:, 0])


@pytest.mark.parametrize("kind", ["cnn", "impala", "mlp"])
def test_policy_and_critic_have_encoders_of_their_own(kind):
    network, p, x, _ = agent_of(ppo.PPO(hidden=(8,), encoder=kind), box(10, 10, 2))

    def touched(which):
        slopes = torch.func.grad(lambda own: network.apply(own, x)[which].square().sum())(p)
        return {name.split(".")[0] for name, slope in slopes.items() if slope.any()}

    assert touched(0) == {"policy"}
    assert touched(1) == {"value"}
    outputs, values = network.apply(p, x)
    torch.testing.assert_close(network.policy(p, x), outputs)
    torch.testing.assert_close(network.value(p, x), values)


def test_the_critics_pictures_are_not_the_policys():
    config = ppo.PPO(hidden=(8,), critic_observations=("camera",))
    network, p, rows, _ = agent_of(config, DICT)
    assert any(name.startswith("value.encoder.camera.") for name in p)
    assert not any(name.startswith("policy.encoder.camera.") for name in p)
    other = rows.clone()
    part = next(part for part in packed_observations(DICT).parts if part.name == "camera")
    other[:, part.start : part.start + part.entries] = 255 - other[:, part.start : part.start + part.entries]
    torch.testing.assert_close(network.policy(p, other), network.policy(p, rows), rtol=0, atol=0)
    assert (network.value(p, other) != network.value(p, rows)).all()


@pytest.mark.parametrize("action", [gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))])
def test_critics_of_actions_share_one_encoder_apart_from_the_policys(action):
    """min Q of the policy's mode is what `apply` calls a value; the critics' sections hold their encoder."""
    config = sac.SAC(hidden=(8,))
    network, p, x, layout = agent_of(config, box(10, 10, 2), action)
    names = [section.names[0] for section in layout.sections(("policy.", "value."))]
    assert names == ["policy.encoder.0.weight", "value.encoder.0.weight"]
    outputs, values = network.apply(p, x)
    chosen = None if isinstance(action, gym.spaces.Discrete) else torch.tanh(outputs[:, :2])
    q = network.critics.q(p, x, chosen).amin(0)  # [N, K]
    wanted = q[:, 0] if chosen is not None else q.gather(1, outputs.argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(values, wanted)


def test_q_values_of_a_picture():
    network, p, x, _ = agent_of(dqn.DQN(hidden=(), dueling=False), box(10, 10, 2))
    own = {name.removeprefix("encoder."): v for name, v in p.items()}
    features = small(own, x.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(network.policy(p, x), features @ p["q.out.weight"] + p["q.out.bias"])


# Kept as they are


@pytest.mark.parametrize(
    ("dtype", "kept"), [(np.uint8, torch.uint8), (np.bool_, torch.bool), (np.float32, torch.float32)]
)
def test_pictures_keep_their_dtype(dtype, kept):
    space = box(6, 6, 2, dtype=dtype, high=255 if dtype == np.uint8 else 1)
    found = encoder(space, shaped=ppo.PPO().network_for(space, gym.spaces.Discrete(2)).shaped)
    assert found.shape == (6, 6, 2)
    assert found.kept == kept
    assert found.encode(np.ones((1, 1, 6, 6, 2), dtype)).dtype == dtype
