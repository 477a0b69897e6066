"""`telescope algorithms`: every name that can be trained stands in it, with a page, and what it says was measured."""

import json
from pathlib import Path

import pytest

from telescope.algorithms import CONFIGS, PRESETS, called, find, meant
from telescope.algorithms.catalogue import CATALOGUE
from telescope.cli import main

DOCS = Path(__file__).parents[2] / "docs"
SUBJECTS = {"environment": "CartPole-v1", "language task": "lm/addition"}


def test_json_has_every_algorithm(capsys):
    assert main(["algorithms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["name"], row["subject"]) for row in rows} == {(entry.name, entry.subject) for entry in CATALOGUE}
    assert {"paper", "experience", "actions", "page", "measured"} < rows[0].keys()


def test_every_module_and_every_preset_is_listed_once():
    modules = {meant(entry.name, SUBJECTS[entry.subject])[0] for entry in CATALOGUE}
    assert modules == set(CONFIGS)
    assert set(PRESETS) <= {entry.name for entry in CATALOGUE}
    names = [(entry.name, entry.subject) for entry in CATALOGUE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: f"{entry.name} {entry.subject}")
def test_an_entry_is_true(entry):
    module, more = meant(entry.name, SUBJECTS[entry.subject])
    config = find(module).preset(SUBJECTS[entry.subject], **more)
    assert called(config) in (entry.name, module)
    pages = [(DOCS / page).read_text(encoding="utf-8") for page in (entry.page, "results.md")]
    told = [entry.measured in " ".join(page.split()) for page in pages]
    assert any(told), "what was measured stands on its page or among the results, with the command"


def test_the_list_is_for_people(capsys):
    assert main(["algorithms"]) == 0
    out = capsys.readouterr().out
    assert all(entry.name in out and entry.paper in out for entry in CATALOGUE)
    assert max(map(len, out.splitlines())) <= 140
