"""Pages of the documentation site that are no files of docs/: README and its kin, and the reference from docstrings.

Leaves out how docstrings become pages, which is mkdocstrings', and the order of the pages, which is mkdocs.yml's.
"""

import ast
import functools
import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "telescope"
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Wide tables scroll by themselves; names of code break at spaces alone.
STYLE = """
.md-typeset table:not([class]) { font-size: .7rem; }
.md-typeset table:not([class]) :is(td, th) { min-width: 0; padding: .5em .8em; }
.md-typeset table:not([class]) code { overflow-wrap: normal; word-break: normal; }
.md-grid { max-width: 70rem; }
"""
# Each page of the reference: its title, and a sentence.
REFERENCE = {
    "estimators": ("Estimators", "All of them are functions of `telescope` itself."),
    "conventions": ("Conventions", "They turn the rollouts of other libraries into the arguments of `telescope.gae`."),
    "losses": (
        "Losses and metrics",
        "Losses are per element, to be minimised. Metrics are functions of NumPy arrays.",
    ),
    "runs": ("Runs and agents", "Train into a run folder, and load what was trained."),
    "algorithms": ("Algorithms", "Each configuration is a frozen dataclass. On the command line each field is a flag."),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=moved((ROOT / source).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "LICENSE.txt", content=(ROOT / "LICENSE").read_bytes()))
    files.append(File.generated(config, "site.css", content=STYLE))
    for name, (title, sentence) in REFERENCE.items():
        text = "\n\n".join([f"# {title}", sentence, *entries(name)])
        files.append(File.generated(config, f"reference/{name}.md", content=text + "\n"))
    return files


def moved(text: str) -> str:
    """Markdown of the repository's root with its links as they are from the site's."""
    for source, page in {**OUTSIDE, "LICENSE": "LICENSE.txt", "docs/": ""}.items():
        text = text.replace(f"]({source}", f"]({page}")
    return text


def entries(page: str) -> list[str]:
    """What a page describes, in mkdocstrings' syntax."""
    match page:
        case "estimators":
            return [f"::: telescope.estimators.{name}" for name in exported() if name.islower()]
        case "conventions":
            return [module("estimators.conventions"), module("estimators.sequences")]
        case "losses":
            return [module("losses"), module("metrics")]
        case "runs":
            names = ("telescope.runner.train", "telescope.loading.load", "telescope.policy.Policy")
            return [*(f"::: {name}" for name in names), module("answers")]
        case _:
            files = sorted((PACKAGE / "algorithms").glob("[!_]*.py"))
            return [module(f"algorithms.{file.stem}", *users(file)) for file in files]


def module(name: str, *members: str) -> str:
    """A module, or those of its members that users need, with the fields that a configuration inherits."""
    options = {"members": [*members], "inherited_members": True, "filters": no_fields()} if members else {}
    return f"::: telescope.{name}" + (f"\n    options: {json.dumps(options)}" if options else "")


def users(file: Path) -> list[str]:
    """The configuration of an algorithm, and the functions that a user calls."""
    classes = [node for node in parsed(file).body if isinstance(node, ast.ClassDef) and node.decorator_list]
    return [*(node.name for node in classes), "preset", "train"]


def no_fields() -> list[str]:
    """Filters that leave out what is private and the class variables of configurations, which are no flags."""
    nodes = [
        node for file in PACKAGE.rglob("*.py") for node in ast.walk(parsed(file)) if isinstance(node, ast.AnnAssign)
    ]
    constants = {node.target.id for node in nodes if ast.unparse(node.annotation).startswith("ClassVar")}
    return ["!^_", f"!^({'|'.join(sorted(constants))})$"]


def exported() -> list[str]:
    """`__all__` of the estimators, read without importing them."""
    body = parsed(PACKAGE / "estimators" / "__init__.py").body
    return next(ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign))


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
