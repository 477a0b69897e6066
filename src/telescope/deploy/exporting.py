"""Write a trained agent as ONNX, or as arrays for `reader.py`, and compare what was written with the agent itself.

Leaves out what the agent computes (`acting.py`).
"""

# N observations
from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from telescope import __version__
from telescope.control.environments.described import described
from telescope.control.environments.spaces import assembled, choices, part_of
from telescope.deploy import reader
from telescope.deploy.acting import Acting, draws, named, parts_of
from telescope.policy import Policy
from telescope.runs.files import RunError, write_atomic

FORMATS = (".onnx", ".npz")
TOLERANCE = 1e-5
"""The largest difference from the agent, in units of the larger of 1 and the number itself.

Sums in single precision round to about 1e-6, or 3e-6 through many layers: each library adds up in another order."""
BATCHES = (1, 3, 64)
"""Numbers of observations of the checks."""
FARTHEST = 1e3
"""The largest number in an observation of the checks."""
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""From inputs to outputs, by name."""


def export(policy: Policy, *out: str | os.PathLike[str], seed: int | None = None) -> dict[str, float]:
    """Write the agent of a seed (default: the run's first) into .onnx and .npz files, and check each of them.

    Return for each file its largest difference from the agent on random observations. A RunError if one is too large;
    the file is then removed.
    """
    paths = [require_out(one) for one in out]
    require_packages()
    acting = Acting(policy, seed).eval()
    graph = traced(acting, about(policy, acting, seed))
    return {os.fspath(path): _written(path, graph, policy, acting, seed) for path in paths}


def _written(path: Path, graph: Any, policy: Policy, acting: Acting, seed: int | None) -> float:
    if path.suffix == ".onnx":
        write_atomic(path, graph.SerializeToString())
        run = _session(path)
    else:
        _write_arrays(path, graph, acting)
        run = reader.Reader(path)
    found = difference(policy, acting, run, seed)
    if not found <= TOLERANCE:
        path.unlink()
        raise RunError(
            f"{path} differs from the agent by {found:.2g}, more than {TOLERANCE:g}, so it was removed; "
            "a network with very large parameters, or one that is no pure function of its inputs, cannot be exported"
        )
    return found


def require_out(out: str | os.PathLike[str]) -> Path:
    """The path of a file to write. A ValueError if its name says no format."""
    path = Path(out)
    if path.suffix not in FORMATS:
        raise ValueError(f"out is {os.fspath(out)!r}; expected a name that ends in .onnx or .npz")
    if not path.parent.is_dir():
        raise ValueError(f"out is {os.fspath(out)!r}, but there is no folder {path.parent}")
    return path


def require_packages() -> None:
    """Raise an ImportError that names the extra if a package is missing."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'telescope export needs {name}: pip install "telescope-rl[export]"', name=name
            ) from error


def about(policy: Policy, acting: Acting, seed: int | None) -> dict[str, str]:
    """What the file says about itself."""
    env = policy.config.env
    spaces = dict(zip(("observation_space", "action_space"), map(described, policy.rows), strict=True))
    return {
        "made_by": f"telescope {__version__}",
        "env": env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__),
        "seed": str(policy.seeds[policy.position(seed)]),
        "noise": json.dumps(draws(acting)),
        **{name: json.dumps(space) for name, space in spaces.items()},
    }


def traced(acting: Acting, metadata: Mapping[str, str]) -> Any:
    """The agent as an ONNX model whose batch axis is free, and whose inputs with a default may be left out."""
    import onnx

    examples = tuple(torch.from_numpy(np.zeros((2, *port.shape), port.dtype)) for port in acting.inputs)
    free = tuple({0: "batch"} for _ in examples)
    names: dict[str, Any] = {
        "input_names": [port.name for port in acting.inputs],
        "output_names": [port.name for port in acting.outputs],
    }
    with _quiet():
        program = torch.onnx.export(
            acting, (examples,), dynamo=True, dynamic_shapes=(free,), verbose=False, external_data=False, **names
        )
    assert program is not None
    model = program.model_proto
    _rename(model.graph, acting.parameter_names)
    optional = {port.name: port.default for port in acting.inputs if port.default is not None}
    for value in model.graph.input:
        if value.name in optional:  # the default has one row, so its batch axis is another one
            value.type.tensor_type.shape.dim[0].dim_param = f"{value.name}_rows"
            model.graph.initializer.append(onnx.numpy_helper.from_array(optional[value.name], value.name))
    onnx.helper.set_model_props(model, dict(metadata))
    del model.graph.value_info[:]  # they name the batch axis of inputs that may be left out
    onnx.checker.check_model(model)
    return model


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give parameters the names that they have in the network."""
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about packages that nothing here needs off the terminal."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _session(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings about inputs that may be left out
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _write_arrays(path: Path, model: Any, acting: Acting) -> None:
    """The parameters by their names, and the steps that act with them, as one npz file."""
    import onnx

    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    steps = [
        [node.op_type, list(node.input), list(node.output), {a.name: _attribute(a) for a in node.attribute}]
        for node in model.graph.node
    ]
    if missing := sorted({op for op, *_ in steps} - reader.OPERATORS.keys()):
        raise ValueError(
            f"the network has the operators {', '.join(missing)}, which the NumPy reader does not know; export an .onnx"
        )
    inputs = {port.name: [str(port.dtype), list(port.shape)] for port in acting.inputs}
    outputs = [port.name for port in acting.outputs]
    meta = {entry.key: entry.value for entry in model.metadata_props}
    plain = {"inputs": inputs, "outputs": outputs, "steps": steps, "about": meta, "draws": draws(acting)}
    with open(path, "wb") as file:
        np.savez(file, **{**arrays, "graph": np.array(json.dumps(plain))})  # type: ignore[arg-type]


def _attribute(attribute: Any) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value).tolist()
    return value.decode() if isinstance(value, bytes) else list(value) if not isinstance(value, int | float) else value


def write_reader(folder: str | os.PathLike[str]) -> Path:
    """Copy the reader into a folder."""
    return Path(shutil.copy(reader.__file__, Path(folder) / "reader.py"))


def difference(policy: Policy, acting: Acting, run: Run, seed: int | None) -> float:
    """The largest difference between `run` and the agent, relative to the larger of 1 and the number itself.

    Observations, memories and masks are random, and actions are sampled as well as not. Policy outputs are compared
    with the agent's, actions with those that the agent's distribution makes of the policy outputs of `run`: where two
    actions are all but equally likely, the last bit chooses.
    """
    rng, largest = np.random.default_rng(0), 0.0
    for rows in BATCHES:
        for sampled in (False, True):
            given = random_inputs(acting, policy.observation_space, rows, rng, sampled=sampled)
            found = run(given)
            for name, values in _expected(policy, acting, given, found, seed).items():
                largest = max(largest, distance(values, found[name]))
    return largest


def random_inputs(
    acting: Acting, space: gym.Space, rows: int, rng: np.random.Generator, *, sampled: bool
) -> dict[str, np.ndarray]:
    """Observations of the space, a memory, and with `sampled` the noise of actions and a mask, as inputs by name."""
    space.seed(int(rng.integers(2**31)))
    seen = [space.sample() for _ in range(rows)]
    given = {}
    for part in parts_of(acting.spaces[0]):
        values = np.stack([np.asarray(part_of(one, part.path, "observation")) for one in seen])
        floats = values.dtype.kind == "f"
        given[named("observation", part)] = np.clip(values, -FARTHEST, FARTHEST) if floats else values
    if acting.memory:
        given["memory"] = rng.uniform(-1, 1, (rows, acting.memory)).astype(np.float32)
    if not sampled:
        return given
    given["noise"] = acting.agent.distribution.noise(rng, (rows,))
    if sizes := [n for part in parts_of(acting.spaces[1]) for n in choices(part.space)]:
        masks = [np.eye(n, dtype=bool)[rng.integers(n, size=rows)] | (rng.random((rows, n)) < 0.5) for n in sizes]
        given["action_mask"] = np.concatenate(masks, axis=1)
    return given


@torch.no_grad()
def _expected(
    policy: Policy, acting: Acting, given: dict[str, np.ndarray], found: dict[str, np.ndarray], seed: int | None
) -> dict[str, np.ndarray]:
    """The agent's outputs for these inputs, by name."""
    agent, space = policy.agent, policy.observation_space
    values = {part.path: given[named("observation", part)] for part in parts_of(acting.spaces[0])}
    vector, inputs, _ = policy.inputs(assembled(space, values), seed)
    memory, noise, mask = (
        None if name not in given else torch.from_numpy(given[name]).to(inputs.device)
        for name in ("memory", "noise", "action_mask")
    )
    seen = agent.see(vector, inputs, memory)
    outputs = agent.policy(agent.layout.unflatten(vector), seen)
    drawn = agent.choose(torch.from_numpy(found["policy_outputs"]).to(inputs.device), noise, mask)
    actions = policy.native(policy.finished(drawn.cpu().numpy()))
    expected = {named("action", part): part_of(actions, part.path, "action") for part in parts_of(acting.spaces[1])}
    expected["policy_outputs"] = outputs.cpu().numpy()
    return expected | ({"next_memory": seen.cpu().numpy()} if acting.memory else {})


def distance(one: Any, other: Any) -> float:
    """The largest |a − b| / max(1, |a|)."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.shape != other.shape:
        return float("inf")
    return float((np.abs(one - other) / np.maximum(1.0, np.abs(one))).max(initial=0.0))
