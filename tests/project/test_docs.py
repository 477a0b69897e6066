"""README.md and docs/ say what is so: code runs, commands parse, tables and names are those of the package.

Leaves out whether the prose is true.
"""

import dataclasses
import inspect
import re
import shlex
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest

import telescope
from telescope import cli, commands, estimators
from telescope.algorithms import grpo, reward_model, rlhf, sft
from telescope.algorithms.ppo import MUJOCO, PPO, PRESETS
from telescope.control.config import MUJOCO_FAMILY
from telescope.control.environments.factory import find_source
from telescope.language.health import CHECKS
from telescope.metrics import summarise
from telescope.runs import RunFolder
from telescope.runs.formats.config import from_mapping, to_mapping

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
TOLD_ELSEWHERE = {"switching.md"}  # needs other libraries' variables: tests/estimators/test_conventions.py
FIELDS = {field.name: getattr(PPO(), field.name) for field in dataclasses.fields(PPO)}


def blocks(page, language):
    """The fenced blocks of a page in one language, each behind as many newlines as it has lines above it."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return ["\n" * PAGES[page].count("\n", 0, block.start(1)) + block[1] for block in found]


def run_code(page):
    """Run the Python of a page from top to bottom, as one script, and return its names."""
    names = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
    return names


def table(page, heading):
    """The cells of the first table below a heading, row by row, without its header."""
    section = re.split(r"^#+ ", PAGES[page].partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, f"{page} has no table under {heading!r}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def code_names(text):
    """What stands between backticks, fenced blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny run with everything that a run can leave behind."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    flags = "--num-envs 2 --num-steps 32 --minibatch-size 32 --epochs 1 --total-steps 128 --eval-every 64"
    assert cli.main(["train", "ppo", "CartPole-v1", "--eval-episodes", "1", "--out", str(out), *flags.split()]) == 0
    return out


# Code and commands


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in TOLD_ELSEWHERE])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_code(page)
    if page == "estimators.md":
        np.testing.assert_allclose(names["next_values"], [0.4, 0.0, 0.7, 0.9], rtol=1e-6)


class Parsed(BaseException):
    """Stands in for what a command does after it has understood its arguments."""


COMMANDS = [
    line
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("telescope")
]


def check_task(config):
    """A built-in task is one, a file says of itself that it is not there."""
    if config.task.endswith((".jsonl", ".csv", ".parquet")):
        with pytest.raises(ValueError, match="No such file"):
            config.open_task()
    elif not config.task.startswith("verifiers:my_"):  # the reader's own
        config.open_task()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path, monkeypatch):
    def only_parse(*arguments):
        raise Parsed(commands.arguments.parse(*arguments))

    names = ("train", "evaluate", "plot", "show", "report", "record", "export", "watch", "sweep", "doctor", "lab")
    for module in (getattr(commands, name) for name in names):
        monkeypatch.setattr(module, "parse", only_parse)
    run = types.SimpleNamespace(algorithm="grpo" if "--prompts" in command else "ppo")
    run.config_to_use = lambda cls, **_: cls(env="Pendulum-v1")
    monkeypatch.setattr(RunFolder, "open", lambda _: run)  # eval and --start look there for the kind of a run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text(blocks("runs.md", "toml")[0])
    with pytest.raises(Parsed) as parsed:
        cli.main(shlex.split(command.replace("--device cuda", "--device cpu"), comments=True)[1:])
    options = parsed.value.args[0]
    if hasattr(options, "config"):
        env = getattr(options.config, "env", None)
        if env is None:
            check_task(options.config)
        elif not env.startswith("my_"):  # a function in the reader's package
            find_source(env)


def test_the_config_file_is_one():
    settings = tomllib.loads(blocks("runs.md", "toml")[0])
    config = from_mapping(PPO, settings, source="docs")
    assert {name: value for name, value in to_mapping(config).items() if name in settings} == settings


# Tables


def test_every_column_of_the_metrics_is_explained(folder):
    header = (folder / "metrics.csv").read_text().partition("\n")[0]
    assert [code_names(name)[0] for name, *_ in table("ppo.md", "Every column of metrics.csv")] == header.split(",")
    assert all(meaning for *_, meaning in table("ppo.md", "Every column of metrics.csv"))


@pytest.mark.parametrize("module", [grpo, rlhf, sft, reward_model])
def test_every_column_of_a_language_run_is_explained(module):
    explained = {code_names(name)[0] for name, *_ in table("language.md", "Every column of metrics.csv")}
    assert set(module.STATISTICS) <= explained


def test_every_finding_is_explained():
    stated = [code_names(name)[0] for name, *_ in table("language.md", "What usually goes wrong")]
    assert stated == [*(check.name for check in CHECKS), "eos_is_pad"]


def test_every_field_is_explained_and_has_its_default():
    rows = table("ppo.md", "Every field")
    assert {code_names(name)[0]: code_names(default)[0] for name, default, _ in rows} == {
        name: repr(default) for name, default in FIELDS.items()
    }


def test_presets_are_what_the_table_says():
    header = re.search(r"^\| field \| CartPole.*$", PAGES["ppo.md"], re.MULTILINE)[0]
    families = [cell.strip() for cell in header.split("|")[2:-1]]
    stated = {family: {} for family in families}
    for name, *cells in table("ppo.md", "Presets"):
        for family, cell in zip(families, cells, strict=True):
            stated[family] |= {code_names(name)[0]: cell} if cell else {}
    assert set(families) == {name for name, preset in PRESETS.items() if preset is not MUJOCO} | {"MuJoCo"}
    for family, settings in stated.items():
        preset = PRESETS.get(family, MUJOCO)
        other = {name: getattr(preset, name) for name in FIELDS if getattr(preset, name) != FIELDS[name]}
        other.pop("env", None)
        assert settings == {name: str(value) for name, value in other.items()}, family
    assert all(family in PAGES["ppo.md"] for family in MUJOCO_FAMILY)


def test_details_name_fields_and_columns(folder):
    columns = (folder / "metrics.csv").read_text().partition("\n")[0].split(",")
    rows = table("ppo.md", "The details")
    assert [number for number, *_ in rows[:22]] == [f"c{i}" for i in range(1, 14)] + [f"m{i}" for i in range(1, 10)]
    for _, _, fields, source in rows:
        assert source
        assert all(name in FIELDS or name in columns for name in code_names(fields) if name.isidentifier())


def test_every_file_of_a_run_folder_is_explained(folder):
    stated = {code_names(name)[0].rstrip("/") for name, _ in table("runs.md", "The run folder")}
    assert stated == {path.name for path in folder.iterdir()}


def test_every_key_of_an_evaluation_is_named():
    assert summarise([[1.0]]).keys() <= set(code_names(PAGES["runs.md"]))


# Names


@pytest.mark.parametrize("name", sorted([*telescope.__all__, *telescope._SUBMODULES]))
def test_public_names_appear(name):
    pages = [text for page, text in PAGES.items() if page != "README.md"]
    assert any(re.search(rf"(`|telescope\.){name}\b", text) for text in pages)


@pytest.mark.parametrize("name", sorted(set(telescope.__all__) - {"load", "train", "tune", "conventions"}))
def test_every_signature_is_there(name):
    stated = re.search(rf"^{name}\((.*?)\) ->", PAGES["estimators.md"], re.DOTALL | re.MULTILINE)
    assert stated is not None
    parameters = inspect.signature(getattr(telescope, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert " ".join(stated[1].split()) == str(inspect.Signature(plain))[1:-1]


def formulas(name):
    """The formulas of a function's section: on indented lines, one or several a line, or at its beginning."""
    section = re.search(
        rf"^### {name}\n\n```.*?```\n(.*?)(?=^##|\Z)", PAGES["estimators.md"], re.DOTALL | re.MULTILINE
    )[1]
    lines = [line for line in section.splitlines() if re.match(r"    \S+ *\+?= ", line) and "xp." not in line]
    first = re.match(r"(\S+\[t\] = [^,.:]*?) \([A-Z]", " ".join(section.split()))
    return [part for line in lines for part in re.split(r",\s+(?=\S+ = )", line)] + ([first[1]] if first else [])


@pytest.mark.parametrize("name", sorted(set(telescope.__all__) - {"load", "train", "tune", "conventions"}))
def test_formulas_are_those_of_the_docstring(name):
    said = " ".join(getattr(telescope, name).__doc__.replace("γ (1 − terminated[t])", "γ'[t]").split())
    for formula in formulas(name):
        assert " ".join(formula.split()) in said


def test_every_formula_is_found():
    assert len(formulas("gae")) == 3
    assert len(formulas("vtrace")) == 7
    assert len(formulas("lambda_return")) == 1


def test_design_says_of_every_estimator_whether_it_is_the_recurrence():
    section = PAGES["design.md"].partition("# One recurrence\n")[2].partition("\n## ")[0]
    functions = {name for name in estimators.__all__ if inspect.isfunction(getattr(estimators, name))}
    assert set(code_names(section)) >= functions  # as a row, or as what it is instead


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\ntheme:")[0]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert pages <= set(re.findall(r"[\w/-]+\.md", navigation))


def test_files_that_are_named_exist():
    folders = [path for path in ROOT.iterdir() if path.name in ("src", "tests", "docs", "tools")]
    files = [path.as_posix() for folder in folders for path in folder.rglob("*.*")] + [*map(str, ROOT.glob("*.md"))]
    for page, text in PAGES.items():
        for name in re.findall(r"`([\w./-]+\.(?:py|md))`", text):
            assert "NAME" in name or any(path.endswith(f"/{name}") for path in files), f"{page} names {name}"
        base = ROOT if page == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (base / link).exists(), f"{page} links to {link}"
