"""Private interfaces of other packages: each is known here, and a run goes on, only slower, where one is missing.

Kills: a run that ends because a new version of torch, numba or Gymnasium has moved a function that it never promised.
"""

import ast
import builtins
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import telescope
from telescope import arrays, torch_func
from telescope.algorithms import ppo
from telescope.control.agents import compiling, lifting
from telescope.recurrence import caching

SOURCE = Path(telescope.__file__).parent
UNDOCUMENTED = ("numba.core.caching", "torch.fx.experimental")  # private, although their names have no underscore
USED = {
    "torch_func.py": {"sys.modules['torch']._C._functorch", "transforming._dynamo_marked_constant"},
    "control/agents/compiling.py": {"torch._inductor.runtime.cache_dir_utils", "torch._inductor.utils"},
    "control/agents/lifting.py": {
        "torch._inductor",
        "torch._subclasses.fake_tensor",
        "torch.fx.experimental.proxy_tensor",
        "torch.fx.experimental.symbolic_shapes",
    },
    "control/environments/subprocesses.py": {"gymnasium.vector.async_vector_env._async_worker"},
    "language/models/seeded.py": {"torch.utils._python_dispatch", "func._schema"},
    "recurrence/caching.py": {"numba.core.caching", "dispatcher._cache"},
    "recurrence/torch.py": {"torch._C._get_dispatch_mode", "torch._C._TorchDispatchModeKey"},
    "recurrence/triton.py": {"torch._C._dynamo.guards._empty_strided_cuda"},
}
"""For each file the private names that it uses. A new one needs a fallback, and a test of it below."""


def private(module: ast.AST) -> Iterator[str]:
    """The private names that a file takes from other packages."""
    for node in ast.walk(module):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            hidden = [alias.name for alias in node.names if alias.name.startswith("_")]
            names = [f"{node.module}.{name}" for name in hidden] or [node.module]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)] if node.attr.startswith("_") and not node.attr.startswith("__") else []
        for name in names:
            if name.startswith("telescope") or name == "__future__":
                continue
            if name.startswith(UNDOCUMENTED) or any(part.startswith("_") for part in name.split(".")):
                yield name


def own(name: str) -> bool:
    """Whether it is an attribute of our own object, of a NamedTuple or of the operating system."""
    root, last = name.split(".")[0], name.split(".")[-1]
    return root in ("self", "cls", "super()", "os", "folder") or last in ("_replace", "_asdict", "_fields", "_make")


def test_every_private_name_that_the_source_uses_is_known_here() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for name in private(ast.parse(path.read_text(encoding="utf-8"))):
            if not own(name):
                found.setdefault(path.relative_to(SOURCE).as_posix(), set()).add(name)
    for path, names in found.items():
        whole = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
        assert whole == USED.get(path, set()), f"{path}: give each private name a fallback, and a test here"
    assert found.keys() == USED.keys()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hide modules, or names of modules, from telescope's own imports."""
    plain = builtins.__import__

    def hide(*hidden: str) -> None:
        def imported(name: str, about: Any = None, local: Any = None, listed: Any = (), level: int = 0) -> Any:
            wanted = [name, *(f"{name}.{each}" for each in listed or ())]
            if str((about or {}).get("__name__", "")).startswith("telescope") and not level:
                for each in wanted:
                    if each.startswith(hidden):
                        raise ImportError(f"cannot import {each}", name=name)
            return plain(name, about, local, listed, level)

        monkeypatch.setattr(builtins, "__import__", imported)

    return hide


def anew(file: str) -> ModuleType:
    """A module of the package, imported once more under another name."""
    spec = importlib.util.spec_from_file_location(f"telescope.anew_{Path(file).stem}", SOURCE / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIG = ppo.PPO(env="CartPole-v1", seeds=2, total_steps=256, num_steps=64, minibatch_size=32, epochs=2, threads=1)


def trained(**change: Any) -> tuple[torch.Tensor, list[str]]:
    """The parameters after four iterations, and the run's notes without its first, which says how it computes."""
    *_, last = ppo.train(dataclasses.replace(CONFIG, **change))
    return last.policy["parameters"], last.notes[1:]


@pytest.mark.parametrize(
    "hidden", ["torch._inductor", "torch._subclasses", "torch.fx.experimental.symbolic_shapes", "torch.fx.experimental"]
)
def test_a_run_goes_on_uncompiled_where_torchs_compiler_is_missing(hidden: str, without: Any) -> None:
    plain, none = trained(compile="off")
    assert none == []
    without(hidden)
    found, notes = trained(compile="on")
    assert torch.equal(found, plain)
    (note,) = notes
    assert "cannot import" in note
    assert ("cannot record" if hidden == "torch.fx.experimental" else "cannot compile") in note


@pytest.mark.parametrize("error", [TypeError("unexpected argument 'options'"), RuntimeError("no")])
def test_a_run_goes_on_uncompiled_where_torchs_compiler_has_changed(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor

    def changed(*_: Any, **__: Any) -> Any:
        raise error

    plain, _ = trained(compile="off")
    monkeypatch.setattr(torch._inductor, "compile", changed)
    found, notes = trained(compile="on")
    assert torch.equal(found, plain)
    assert len(notes) == 1
    assert str(error) in notes[0]


def test_a_run_that_is_not_compiled_goes_on_where_torch_cannot_record(
    without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifting, "PATIENCE", 0)
    plain, none = trained(compile="off")
    assert none == []
    without("torch.fx.experimental")
    found, notes = trained(compile="off")
    assert torch.equal(found, plain)
    assert len(notes) == 1


def test_one_sentence_says_so_however_many_functions_are_lifted(without: Any) -> None:
    notes: list[str] = []
    without("torch._inductor")
    for factor in (2.0, 3.0):
        lifted = lifting.lift(lambda x, factor=factor: factor * x, (0,), compiled=True, notes=notes)
        assert torch.equal(lifted(torch.ones(3)), torch.full((3,), factor))
    assert len(notes) == 1


def test_an_error_of_the_function_itself_is_told_as_it_is() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        lifting.lift(broken, (0,), compiled=True)(torch.ones(3))


def test_without_the_compilers_cache_folder_it_compiles(without: Any) -> None:
    without("torch._inductor")
    compiling._sweep.cache_clear()
    assert compiling.from_cache_or_anew(lambda: "made") == "made"
    compiling._sweep.cache_clear()


@pytest.mark.parametrize("way", ["missing", "without its file", "another signature"])
def test_loops_are_compiled_in_each_process_where_numbas_cache_has_changed(
    way: str, without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = caching
    if way == "missing":
        without("numba.core.caching")
        module = anew("recurrence/caching.py")
        assert module.FunctionCache is object
    elif way == "without its file":
        monkeypatch.setattr(caching, "IndexDataCacheFile", object)
        monkeypatch.delattr(caching.FunctionCache.__base__, "load_overload")
    else:
        monkeypatch.setattr(caching.FunctionCache, "__init__", lambda self: None)
    assert module.compiled(lambda x: 2 * x)(21) == 42


def test_where_torch_does_not_say_what_it_transforms_the_slow_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not torch_func.transforming()
    with monkeypatch.context() as hidden:
        hidden.delattr(torch._C._functorch, "peek_interpreter_stack")
        assert torch_func.transforming()
    rng = torch.Generator().manual_seed(0)
    rewards, values, after = (torch.randn(7, 3, generator=rng) for _ in range(3))
    ends = {"terminated": rewards > 1, "truncated": rewards < -1}
    plain = telescope.gae(rewards, values, after, **ends, gamma=0.9, lam=0.8)
    monkeypatch.setattr(torch_func, "transforming", lambda: True)
    for slow, fast in zip(telescope.gae(rewards, values, after, **ends, gamma=0.9, lam=0.8), plain, strict=True):
        torch.testing.assert_close(slow, fast)


def test_where_torch_does_not_say_what_it_records_operators_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient critic's update, which is recorded after some calls, has a recurrence in it."""
    gradient = {"critic": "gradient", "sequence_length": 16, "compile": "off", "total_steps": 2560}
    plain, _ = trained(**gradient)
    monkeypatch.delattr(torch._C, "_get_dispatch_mode")
    torch.testing.assert_close(trained(**gradient)[0], plain, rtol=1e-3, atol=1e-4)


def test_checks_of_numbers_are_left_out_under_vmap_where_torch_does_not_say_what_it_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, _ = trained(compile="off")
    monkeypatch.delattr(torch._C._functorch, "is_functorch_wrapped_tensor")
    assert arrays.any_true(torch.ones(3, dtype=torch.bool))
    assert not arrays.any_true(torch.zeros(3, dtype=torch.bool))

    def asks(x: torch.Tensor) -> torch.Tensor:
        assert not arrays.any_true(x > 0)
        return x

    torch.func.vmap(asks)(torch.ones(3))
    assert torch.equal(trained(compile="off")[0], plain)


def test_initial_weights_come_from_the_seed_alone_without_torchs_dispatch(
    without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("torch.utils._python_dispatch")
    seeded = anew("language/models/seeded.py").Seeded
    before = torch.random.get_rng_state()
    weights = []
    for seed in (3, 3, 4):
        with seeded(seed):
            weights.append(torch.nn.Linear(5, 5).weight.detach())
        torch.rand(3)
    torch.random.set_rng_state(before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with seeded(3):
        torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_environments_in_processes_run_where_gymnasiums_worker_has_moved(
    without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("gymnasium.vector.async_vector_env._async_worker")
    module = anew("control/environments/subprocesses.py")
    assert module.gymnasiums_worker is None
    environments = module.ReportedAsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, context="fork")
    try:
        observations, _ = environments.reset(seed=0)
        assert observations.shape == (2, 4)
        assert np.isfinite(environments.step(np.array([0, 1]))[0]).all()
    finally:
        environments.close()
