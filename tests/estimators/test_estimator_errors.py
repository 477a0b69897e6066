"""Bad input meets a sentence that names the argument, what came and the likely fix."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

STEPS = oracle.rollout((6, 2), np.float32)
GOOD: dict[str, Any] = {**STEPS.arguments(), "gamma": 0.9, "lam": 0.9}
nan = float("nan")


class Foreign:
    """An array of a library that is not supported."""


def out(*shape: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(shape, dtype), np.zeros(shape, dtype)


def read_only() -> tuple[np.ndarray, np.ndarray]:
    pair = out(6, 2)
    pair[1].flags.writeable = False
    return pair


BAD: list[tuple[dict[str, Any], str]] = [
    ({"values": STEPS.values[..., None]}, r"values has shape \(6, 2, 1\) but rewards has \(6, 2\); did the critic"),
    ({"values": STEPS.values[:, :1]}, r"values has shape \(6, 1\) but rewards has \(6, 2\)"),
    ({"values": np.ones((7, 2), "f4")}, r"values has shape \(7, 2\) .*see telescope.next_values"),
    ({"values": STEPS.values.T}, r"values has shape \(2, 6\) .* transposed"),
    ({"terminated": STEPS.terminated[:, 0]}, r"terminated has shape \(6,\) but rewards has \(6, 2\)"),
    ({"values": np.ones(3), "mask": np.ones(2, bool)}, r"values has shape \(3,\) and mask has shape \(2,\) but"),
    ({"values": STEPS.values.astype("f8")}, "next_values has dtype float32 but values has float64"),
    ({"values": np.ones((6, 2), int), "next_values": np.ones((6, 2), int)}, "values has dtype int64; expected float"),
    ({"rewards": STEPS.rewards.astype(complex)}, "rewards has dtype complex64|rewards has dtype complex128"),
    ({"rewards": STEPS.rewards.astype(object)}, "rewards has dtype object"),
    ({"rewards": STEPS.rewards.tolist()}, r"rewards is a list.*np.asarray\(rewards\)"),
    ({"next_values": STEPS.values.tolist()}, "next_values is a list"),
    ({"values": None}, "values is None"),
    ({"rewards": None}, "rewards is None"),
    ({"values": np.ma.masked_array(STEPS.values)}, "values is a numpy masked array.*mask="),
    ({"values": torch.from_numpy(STEPS.values)}, "values is a torch.Tensor but rewards is a numpy.ndarray"),
    ({"truncated": torch.from_numpy(STEPS.truncated)}, "truncated is a torch.Tensor"),
    ({"gamma": torch.tensor(0.9)}, "gamma is a torch.Tensor"),
    ({"gamma": True}, r"gamma is True; expected a number in \[0, 1\]"),
    ({"gamma": np.array(["a", "b"])}, "gamma has dtype <U1; expected real numbers"),
    ({"terminated": np.full((6, 2), "yes")}, "terminated has dtype <U3; expected booleans"),
    ({"axis": True}, "axis is True"),
    ({"gamma": 1.01}, r"gamma is 1.01; expected a number in \[0, 1\]"),
    ({"lam": -0.1}, "lam is -0.1"),
    ({"lam": nan}, "lam is nan"),
    ({"returns_lam": 2}, "returns_lam is 2"),
    ({"gamma": np.array([0.9, 1.5])}, r"gamma holds numbers outside \[0, 1\]"),
    ({"gamma": np.array([0.9, nan])}, "gamma holds numbers outside"),
    ({"gamma": np.ones(6)}, r"gamma has shape \(6,\), which does not broadcast to \(6, 2\).*\(T, 1\)"),
    ({"gamma": np.ones((1, 6, 2))}, r"gamma has shape \(1, 6, 2\)"),
    ({"gamma": [0.9, 0.9]}, "gamma is a list"),
    ({"gamma": None}, "gamma is None"),
    ({"gamma": np.ones(2, complex)}, "gamma has dtype complex128"),
    ({"terminated": STEPS.terminated * 0.5}, "terminated has dtype float64 and holds 0.5; expected booleans"),
    ({"truncated": STEPS.rewards}, "truncated has dtype float32"),
    ({"truncated": np.full((6, 2), nan)}, "truncated has dtype float64 and holds nan"),
    ({"mask": np.full((6, 2), 2)}, "mask has dtype int64 and holds 2"),
    ({"terminated": True}, "terminated is True, not an array"),
    ({"axis": 2}, r"axis is 2; expected an integer in \[-2, 2\)"),
    ({"axis": 0.5}, "axis is 0.5"),
    ({"differentiable": True}, "differentiable is True, but .*numpy.*torch tensors"),
    ({"out": out(6, 3)}, r"out\[0\] has shape \(6, 3\) but the result is \(6, 2\)"),
    ({"out": out(6, 2, dtype="f8")}, r"out\[0\] has dtype float64; expected float32"),
    ({"out": read_only()}, r"out\[1\] is read-only"),
    ({"out": (STEPS.rewards, out(6, 2)[0])}, r"out\[0\] shares memory with an input"),
    ({"out": (np.zeros((6, 2), "f4"),) * 2}, r"out\[1\] shares memory"),
    ({"out": np.zeros((6, 2), "f4")}, "out must be a pair"),
    ({"out": (None, None)}, r"out\[0\] is None"),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=lambda value: None if isinstance(value, str) else str(list(value))
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        telescope.gae(**{**GOOD, **change})


def test_one_axis_at_least() -> None:
    with pytest.raises(
        ValueError, match=r"rewards, values, next_values have shape \(\); expected at least a time axis"
    ):
        telescope.gae(*[np.array(1.0)] * 3, terminated=None, truncated=None, gamma=0.9, lam=0.9)


def test_the_flags_have_no_default() -> None:
    for missing in "terminated", "truncated":
        with pytest.raises(TypeError, match=missing):
            telescope.gae(**{name: value for name, value in GOOD.items() if name != missing})


def test_unknown_arrays_are_named_with_what_is_supported() -> None:
    with pytest.raises(ValueError, match=r"rewards is a .*Foreign; supported are numpy.ndarray, torch.T"):
        telescope.gae(**{**GOOD, "rewards": Foreign()})
    with pytest.raises(ValueError, match=r"values is a .*Foreign"):
        telescope.gae(**{**GOOD, "values": Foreign()})


def test_tensors() -> None:
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in GOOD.items()}
    with pytest.raises(ValueError, match="values is on meta but rewards is on cpu; move one of them"):
        telescope.gae(**{**tensors, "values": tensors["values"].to("meta")})
    with pytest.raises(ValueError, match=r"rewards is a torch\.sparse_coo tensor"):
        telescope.gae(**{**tensors, "rewards": tensors["rewards"].to_sparse()})
    pair = torch.zeros(6, 2), torch.zeros(6, 2)
    with pytest.raises(ValueError, match="out is given, but differentiable is True"):
        telescope.gae(**tensors, differentiable=True, out=pair)
    with pytest.raises(ValueError, match=r"out\[0\] shares memory"):
        telescope.gae(**tensors, out=(tensors["values"], torch.zeros(6, 2)))
    with pytest.raises(ValueError, match=r"rewards has dtype torch\.complex64"):
        telescope.gae(**{**tensors, "rewards": tensors["rewards"] + 0j})


def test_what_is_masked_is_not_checked() -> None:
    flags = STEPS.truncated.astype(float)
    flags[2] = nan
    gamma = np.full((6, 2), 0.9)
    gamma[2] = 7
    mask = np.ones((6, 2), bool)
    mask[2] = False
    result = telescope.gae(**{**GOOD, "truncated": flags, "gamma": gamma}, mask=mask)
    np.testing.assert_allclose(result.advantages, telescope.gae(**GOOD, mask=mask).advantages, rtol=0, atol=1e-6)


def test_importing_costs_little() -> None:
    code = (
        "import sys, telescope, numpy as np;"
        "x = np.ones((2, 1));"
        "telescope.td_error(x, x, x, terminated=None, gamma=1.0);"
        "print([name for name in ('torch', 'jax', 'numba', 'gymnasium') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'gymnasium'", name="gymnasium")

    for name in ("answers", "load"):  # another test may have loaded them
        monkeypatch.delitem(vars(telescope), name, raising=False)
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r'needs gymnasium: pip install "telescope-rl\[control\]"'):
        _ = telescope.load
    with pytest.raises(ImportError, match=r'needs gymnasium: pip install "telescope-rl\[language\]"'):
        _ = telescope.answers
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = telescope.nothing
