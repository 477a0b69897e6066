"""Act with a policy that `telescope export RUN --out policy.npz` wrote. It needs NumPy only: copy this file anywhere.

policy = Reader("policy.npz"); policy({"observation": x})["action"], with a batch axis in front of every array.
"""

import json

import numpy as np

KINDS = {1: "f4", 2: "u1", 3: "i1", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8"}  # ONNX's numbers for them
SAME = """Add add Sub subtract Mul multiply Pow power Neg negative Abs abs Exp exp Log log Sqrt sqrt Tanh tanh
Cos cos Sin sin Floor floor Round round Atanh arctanh Min minimum Max maximum MatMul matmul Where where Equal equal
Less less Greater greater LessOrEqual less_equal GreaterOrEqual greater_equal Not logical_not And logical_and
Or logical_or"""  # ONNX's names and NumPy's


def windows(x, sides, strides=(1, 1), pads=(0, 0, 0, 0), edge=0.0, **_):  # [N, C, H, W] → [N, C, H', W', h, w]
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=edge)
    return np.lib.stride_tricks.sliding_window_view(x, sides, (2, 3))[:, :, :: strides[0], :: strides[1]]


def conv(x, w, b=0.0, **how):
    return np.einsum("nchwij,ocij->nohw", windows(x, w.shape[2:], **how), w, optimize=True) + np.reshape(b, (-1, 1, 1))


def cut(x, starts, ends, axes=None, steps=None):
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        index[axis] = slice(starts[i], ends[i], 1 if steps is None else steps[i])
    return x[tuple(index)]


def norm(x, scale, shift=0.0, axis=-1, epsilon=1e-5, **_):
    axes = tuple(range(axis % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + np.float32(epsilon)) * scale + shift


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def over(f):  # a function of an array's axes
    return lambda x, axes=None, keepdims=1, **_: f(x, None if axes is None else tuple(axes), keepdims=bool(keepdims))


# fmt: off
OPERATORS = dict(zip(SAME.split()[::2], (getattr(np, name) for name in SAME.split()[1::2]), strict=True)) | {
    "Identity": lambda x: x, "Relu": lambda x: np.maximum(x, 0), "Softmax": softmax,
    "Sigmoid": lambda x: np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5),
    "Softplus": lambda x: np.logaddexp(np.zeros_like(x), x),
    "LeakyRelu": lambda x, alpha=0.01: np.where(x > 0, x, np.float32(alpha) * x),
    "Elu": lambda x, alpha=1.0: np.where(x > 0, x, np.float32(alpha) * np.expm1(np.minimum(x, 0))),
    "Div": lambda x, y: x // y if x.dtype.kind in "iu" else x / y,
    "Clip": lambda x, low=None, high=None: np.clip(x, low, high),
    "Gemm": lambda a, b, c=0.0, transB=0, **_: a @ (b.T if transB else b) + c,
    "MaxPool": lambda x, kernel_shape, **how: windows(x, kernel_shape, **how, edge=-np.inf).max((-1, -2)),
    "LayerNormalization": norm, "Conv": conv, "Slice": cut, "Transpose": lambda x, perm=None: np.transpose(x, perm),
    "ReduceMean": over(np.mean), "ReduceSum": over(np.sum), "ReduceMax": over(np.max),
    "ArgMax": lambda x, axis=0, keepdims=1, **_: np.argmax(x, axis, keepdims=bool(keepdims)),
    "Cast": lambda x, to, **_: x.astype(KINDS[to]),
    "Concat": lambda *x, axis: np.concatenate(x, axis),
    "Reshape": lambda x, shape, **_: x.reshape([n or x.shape[i] for i, n in enumerate(shape)]),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(axes)),
    "Split": lambda x, sizes, axis=0, **_: np.split(x, np.cumsum(sizes)[:-1], axis),
    "Gather": lambda x, index, axis=0: np.take(x, index, axis),
    "Expand": lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape))),
    "Shape": lambda x, start=0, end=None: np.array(x.shape[start:end], np.int64),
}
# fmt: on


class Reader:
    """A policy: a function from named inputs to named outputs, those of the ONNX file of the same agent."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.graph = json.loads(str(self.arrays.pop("graph")))

    def __call__(self, given):
        values = dict(self.arrays)  # also what inputs are that are left out
        values |= {name: np.asarray(x, self.graph["inputs"][name][0]) for name, x in given.items()}
        for operator, inputs, outputs, more in self.graph["steps"]:
            found = OPERATORS[operator](*(values[name] if name else None for name in inputs), **more)
            values.update(zip(outputs, found if len(outputs) > 1 else (found,), strict=True))
        return {name: values[name] for name in self.graph["outputs"]}

    def noise(self, rng, rows):
        """Noise, with which actions are samples of the policy."""
        draw = {
            "gumbel": lambda n: -np.log(np.maximum(rng.standard_exponential((rows, n), "f4"), np.finfo("f4").tiny)),
            "logistic": lambda n: rng.logistic(size=(rows, n)),
            "normal": lambda n: rng.standard_normal((rows, n), "f4"),
            "uniform": lambda n: rng.random((rows, n), "f4"),
        }
        columns = [draw[kind](n) - np.float32(less) * (np.arange(n) == 0) for kind, n, less in self.graph["draws"]]
        return np.concatenate(columns, 1).astype("f4").reshape(rows, *self.graph["inputs"]["noise"][1])
