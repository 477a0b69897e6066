"""The picture of the layers in docs/design.md, kept true by reading every import.

Leaves out what the modules do.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from telescope.moved import MOVED

SPLIT = [former for former, name in MOVED.items() if " " in name]
SOURCE = Path(__file__).parents[2] / "src" / "telescope"

CORE = {"arrays", "torch_func", "quiet", "recurrence", "estimators"}
MATH = CORE | {
    "checks",
    "failures",
    "iteration",
    "losses",
    "metrics",
    "objectives",
    "optimisers",
    "processors",
    "randomness",
    "renamed",
    "second_order",
    "threads",
    "trees",
}
DATA = {"control", "language", "runs"}
MAY_IMPORT = {  # a new part of the package gets its line here and its box in the picture
    "arrays": {"torch_func"},
    "torch_func": set(),
    "checks": set(),
    "renamed": set(),
    "processors": set(),
    "quiet": set(),
    "recurrence": {"arrays", "processors", "torch_func"},
    "estimators": {"arrays", "quiet", "recurrence", "torch_func"},
    "threads": set(),
    "trees": set(),
    "optimisers": set(),
    "second_order": set(),
    "iteration": set(),
    "randomness": set(),
    "failures": set(),
    "losses": {"arrays"},
    "metrics": {"arrays", "quiet"},
    "objectives": CORE | {"checks", "losses"},
    "control": MATH,
    "rewards": set(),
    "language": MATH | {"rewards"},
    "runs": {"arrays", "checks", "metrics", "renamed"},
    "behaviour": MATH | DATA,
    "seeds": MATH | {"control", "language"},
    "algorithms": MATH | DATA | {"behaviour", "seeds"},
    "policy": MATH | DATA | {"algorithms"},
    "answers": MATH | DATA | {"seeds", "algorithms"},
    "loading": {"runs", "control", "algorithms", "policy", "answers"},
    "deploy": MATH | DATA | {"algorithms", "policy"},
    "lab": MATH | DATA | {"seeds", "algorithms", "policy"},
    "runner": MATH | DATA | {"algorithms", "policy"},
    "tuning": MATH | DATA | {"algorithms"},
    "sweep": MATH | DATA | {"algorithms", "tuning"},
    "commands": MATH
    | DATA
    | {"algorithms", "policy", "answers", "deploy", "loading", "lab", "runner", "sweep", "tuning"},
    "cli": {"commands", "failures", "streams"},
    "__init__": MATH | DATA | {"algorithms", "moved", "loading"},
    "moved": set(),
    "streams": set(),
    "__main__": {"cli"},
}
# What `import telescope` loads, and what it must therefore leave to the functions that need it.
LIGHT = ("__init__.py", "arrays.py", "torch_func.py", "quiet.py", "recurrence/__init__.py", "estimators/")
HEAVY = {"gymnasium", "jax", "numba", "torch", "triton"}


def imports(module: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every dotted name that a file of `package` imports, relative ones made absolute."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, alias.name) for alias in node.names)


def at_import_time(module: ast.Module) -> ast.Module:
    """The file without what is not run when it is imported: function bodies and type-checking blocks."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(module)


def broken_rules(path: str, code: str) -> list[str]:
    """What the file `telescope/<path>` imports against the rules."""
    module, parts = ast.parse(code), Path(path).with_suffix("").parts
    package = ("telescope", *parts[:-1])
    layer = parts[0]
    if layer not in MAY_IMPORT:
        return [f"{path}: {layer} has no line in MAY_IMPORT"]
    broken = []
    for name in imports(module, package):
        own = name[1:] if name[0] == "telescope" else ()
        if own and own[0] != layer and own[0] in MAY_IMPORT and own[0] not in MAY_IMPORT[layer]:
            broken.append(f"{path}: {layer} may not import {'.'.join(name)}")
        other = own[:1] == ("algorithms",) == package[1:] and own[1:2] != parts[1:2] and parts[1] != "__init__"
        if other and (SOURCE / "algorithms" / f"{own[1]}.py").exists():
            broken.append(f"{path}: algorithms never import each other, but here is {'.'.join(name)}")
        if own and own[0] not in MAY_IMPORT and own[0] != "__version__" and layer in DATA | MATH:
            broken.append(f"{path}: import {own[0]} from the file it lives in, not from the top")
    if path.startswith(LIGHT):
        heavy = {name[0] for name in imports(at_import_time(module), package)} & HEAVY
        broken += [f"{path}: {name} belongs inside the function that needs it" for name in sorted(heavy)]
    return broken


def test_imports_follow_the_picture() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert files
    broken = [rule for f in files for rule in broken_rules(f.relative_to(SOURCE).as_posix(), f.read_text())]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("losses.py", "from telescope.estimators import gae"),
        ("losses.py", "from telescope import gae"),
        ("estimators/temporal.py", "from ..control import rollout"),
        ("estimators/temporal.py", "def f():\n    from telescope import losses"),
        ("estimators/temporal.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("control/experience/rollout.py", "import telescope.runs.folder"),
        ("runs/folder.py", "from telescope import cli"),
        ("algorithms/ppo.py", "from . import dqn"),
        ("algorithms/ppo.py", "from telescope.algorithms.dqn import train"),
        ("helpers.py", ""),
    ],
)
def test_a_forbidden_import_is_found(path: str, code: str) -> None:
    assert len(broken_rules(path, code)) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("__init__.py", "def load():\n    from telescope.algorithms import ppo\n    import torch"),
        ("estimators/group.py", "if TYPE_CHECKING:\n    import torch\nfrom ..recurrence import backward"),
        ("algorithms/ppo.py", "from telescope import estimators, __version__"),
        ("algorithms/__init__.py", "def names():\n    from . import ppo"),
        ("recurrence/kernels.py", "import numba"),
    ],
)
def test_an_allowed_import_passes(path: str, code: str) -> None:
    assert broken_rules(path, code) == []


def test_the_command_line_loads_nothing_before_it_knows_the_command() -> None:
    slow = HEAVY | {"matplotlib", "numpy", "optuna", "ray", "tyro"}
    report = f"import telescope.cli, sys; print(sorted({slow!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_import_loads_no_framework() -> None:
    report = f"import telescope, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_modules_that_moved_are_found_by_their_former_names():
    for former, name in [(former, name) for former, name in MOVED.items() if former not in SPLIT]:
        with pytest.warns(DeprecationWarning, match=f"import telescope.{name}"):
            found = importlib.import_module(f"telescope.{former}")
        assert found is importlib.import_module(f"telescope.{name}")
        assert found.__name__ == f"telescope.{name}"
        del sys.modules[f"telescope.{former}"]


@pytest.mark.parametrize("former", SPLIT)
def test_the_content_of_a_module_that_was_split_is_found_by_its_former_name(former):
    names = [f"telescope.{name}" for name in MOVED[former].split()]
    with pytest.warns(DeprecationWarning, match=f"import {names[0]} or"):
        whole = importlib.import_module(f"telescope.{former}")
    for part in map(importlib.import_module, names):
        own = [name for name, found in vars(part).items() if getattr(found, "__module__", None) == part.__name__]
        assert own
        assert all(getattr(whole, name) is getattr(part, name) for name in own)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = whole.nothing
    del sys.modules[f"telescope.{former}"]
