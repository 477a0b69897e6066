"""The table of mutants is in order: each still applies, and names tests that exist. `make mutants` tries them.

Leaves out whether they are killed, which takes minutes; but the command that does it is tried on a tiny project.
"""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))  # also for the processes that the command starts

import mutants  # noqa: E402

TABLE = mutants.table()


@cache
def functions(path: str) -> set[str]:
    """The names of the tests in a file."""
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: f"{mutant.file}: {mutant.name}")
def test_every_mutant_still_applies_and_its_tests_exist(mutant: mutants.Mutant) -> None:
    assert mutant.old != mutant.new
    changed = mutant.applied(ROOT)
    if mutant.file.endswith(".py"):
        ast.parse(changed)
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert not name or name.partition("[")[0] in functions(path), test


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len(TABLE) >= 30
    assert len({(mutant.file, mutant.name) for mutant in TABLE}) == len(TABLE)
    assert len({(mutant.file, mutant.applied(ROOT)) for mutant in TABLE}) == len(TABLE)


PROJECT = {
    "src/telescope/__init__.py": "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n",
    "tests/test_double.py": "import telescope\n\n\ndef test_double():\n    assert telescope.double(2) == 4\n",
    "tools/mutants.toml": """
[[file]]
path = "__init__.py"
tests = ["tests/test_double.py"]
mutant = [
    { name = "noticed", old = "2 * x", new = "3 * x" },
    { name = "missed", old = "x / 2", new = "x / 3" },
    { name = "no program", old = "x / 2", new = "x /" },
]
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_only_a_mutant_that_fails_the_tests_is_killed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["--jobs", "1"], root=project) == 1
    printed = capsys.readouterr().out
    assert "1 of 3 mutants killed" in printed
    verdicts = {line.split(": ")[-1]: line.split("  ")[0] for line in printed.splitlines() if " s  " in line}
    assert {name: word.split()[0] for name, word in verdicts.items()} == {
        "noticed": "killed",
        "missed": "SURVIVED",
        "no program": "NOT",
    }
    assert "-    return x / 2\n+    return x / 3" in printed
    assert mutants.main(["noticed"], root=project) == 0
    for name, text in PROJECT.items():
        assert (project / name).read_text() == text


def test_training_means_the_files_of_the_training_half() -> None:
    rest = {"estimators", "lab", "recurrence", "runs", "__init__.py", "arrays.py", "checks.py", "cli.py", "failures.py"}
    rest |= {"metrics.py", "moved.py", "processors.py", "quiet.py", "streams.py", "threads.py", "torch_func.py"}
    for mutant in TABLE:
        assert mutants.is_meant(mutant, "training") == (Path(mutant.file).parts[0] not in rest), mutant.file


def test_a_mutant_whose_text_is_gone_is_an_error_that_names_it(project: Path) -> None:
    (project / "src/telescope/__init__.py").write_text("def double(x):\n    return x + x\n")
    with pytest.raises(ValueError, match=r"mutant 'noticed': its old text stands 0 times in __init__.py"):
        mutants.main([], root=project)


def test_nothing_is_judged_by_tests_that_fail_already(project: Path) -> None:
    (project / "tests/test_double.py").write_text("def test_double():\n    assert False\n")
    with pytest.raises(SystemExit, match="must pass before anything is broken"):
        mutants.main(["noticed"], root=project)
