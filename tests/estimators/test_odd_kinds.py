"""Arrays that are not plain: every public function takes them for what they are, or refuses them by name.

Kills: a NotImplementedError, RuntimeError or AssertionError from somewhere inside, and numbers that lose a part on the
way in (a mask, an imaginary part, a unit).
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_invalid_calls import CALLS as ESTIMATORS
from torch.masked import masked_tensor

import calls
import telescope
from problems import told
from telescope import metrics


class Tagged(torch.Tensor):
    """A subclass whose numbers might mean something else."""


class Hollow(torch.Tensor):
    """A subclass that has no memory and answers nothing."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> "Hollow":
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    def __init__(self, like: torch.Tensor) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        raise NotImplementedError


def odd_float(shape: torch.Size) -> torch.Tensor:
    return torch.complex(torch.zeros(shape), torch.ones(shape)).conj()


KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "on meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.reshape(len(x), -1).to_sparse_csr() if x.ndim > 1 else x.to_sparse(),
    "of another layout": lambda x: x.float().to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)]),
    "a subclass": lambda x: x.as_subclass(Tagged),
    "hollow": Hollow,
    "masked": lambda x: masked_tensor(x, torch.ones_like(x, dtype=torch.bool)),
    "complex": lambda x: x + 0j,
    "conjugate": lambda x: odd_float(x.shape),
    "negated": lambda x: odd_float(x.shape).imag,
    "in eight bits": lambda x: x.float().to(torch.float8_e4m3fn),
    "unsigned": lambda x: x.to(torch.uint16),
    "integers": lambda x: x.long(),
    "booleans": lambda x: x.bool(),
    "NaN": lambda x: torch.full(x.shape, torch.nan),
    "NumPy's": lambda x: x.numpy(),
    "objects": lambda x: x.numpy().astype(object),
    "a matrix": lambda x: np.matrix(np.ones((2, 2))),
    "a masked array": lambda x: np.ma.masked_array(x.numpy(), x.numpy() > 0),
    "dates": lambda x: np.zeros(x.shape, "M8[s]"),
    "a word": lambda x: "abc",
    "nothing": lambda x: None,
    "a list": lambda x: [1.0, 2.0],
    "a complex number": lambda x: 1 + 2j,
    "NumPy's complex number": lambda x: np.complex64(1 + 2j),
    "one axis more": lambda x: x[..., None],
    "one axis less": lambda x: x[0] if x.ndim else x,
    "empty": lambda x: x[:0] if x.ndim else x,
    "a parameter": lambda x: torch.nn.Parameter(x.float()),
}
NEVER = {"sparse", "quantised", "nested", "a subclass", "hollow", "masked", "a masked array", "a matrix", "objects"}


def in_torch(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: told(value, "torch") for name, value in arguments.items() if name != "out"}


FUNCTIONS = {
    **calls.CALLS,
    **{name: (function, in_torch(arguments)) for name, (function, arguments) in ESTIMATORS.items()},
}


def complaint(function: Callable[..., Any], arguments: dict[str, Any], name: str, kind: str) -> str | None:
    """What is wrong about how a function meets an argument of that kind."""
    try:
        value = KINDS[kind](arguments[name])
    except (RuntimeError, NotImplementedError, TypeError):
        return None  # there is no such tensor
    try:
        function(**{**arguments, name: value})
    except ValueError as error:
        return None if name in str(error) else f"{name}, {kind}, is not named: {error}"
    except Exception as error:
        return f"{name}, {kind}: {type(error).__name__}: {error}"
    return f"{name}, {kind}, is taken" if kind in NEVER else None


@pytest.mark.filterwarnings(*(f"ignore::{kind}Warning" for kind in ("User", "Deprecation", "PendingDeprecation")))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_taken_for_what_it_is_or_refused_by_name(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(**arguments)
    tensors = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
    found = [complaint(function, arguments, key, kind) for key in tensors for kind in KINDS]
    assert not [text for text in found if text]


class Metres(np.ndarray):
    """Numbers with a unit."""


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("make", [lambda x: x.view(Metres), lambda x: x.view(np.recarray), np.matrix])
def test_numpys_subclasses_are_refused_by_name(make: Callable[[np.ndarray], Any]) -> None:
    """Kills: np.matrix, whose product is another one, and units that get lost."""
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"values is a .*np.asarray\(values\)"):
        telescope.gae(x, make(x), x, terminated=None, truncated=None, gamma=0.9, lam=0.9)
    with pytest.raises(ValueError, match=r"returns is a .*np.asarray\(returns\)"):
        metrics.explained_variance(x, make(x))


def test_a_file_in_memory_and_a_parameter_are_plain(tmp_path: Any) -> None:
    x = np.arange(6.0).reshape(3, 2)
    on_disk = np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)
    on_disk[:] = x
    np.testing.assert_array_equal(telescope.whiten(on_disk), telescope.whiten(x))
    assert torch.equal(telescope.whiten(torch.nn.Parameter(torch.tensor(x))), telescope.whiten(torch.tensor(x)))


def test_a_masked_score_does_not_count_in_silence() -> None:
    """Kills: iqm over the entries that a masked array hides."""
    hidden = np.ma.masked_array([1.0, 2.0, 3.0, 1e9], [False, False, False, True])
    for function in (metrics.iqm, metrics.bootstrap_ci):
        with pytest.raises(ValueError, match="scores is a numpy masked array"):
            function(hidden)
    with pytest.raises(ValueError, match="scores has dtype complex128"):
        metrics.iqm(np.array([1 + 1j, 2]))
    with pytest.raises(ValueError, match="mask has dtype float64 and holds nan"):
        metrics.explained_variance([1.0, 2.0], [1.0, 2.0], mask=[1.0, np.nan])
    assert metrics.explained_variance([1.0, 2.0, 9.0], [1.0, 2.0, 0.0], mask=[1, 1, 0]) == 1
