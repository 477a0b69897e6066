"""One word, one quantity: the table in docs/design.md against all configurations and all columns of metrics.csv.

Leaves out whether a quantity is computed as the table says: tests of each algorithm know that.
"""

import collections
import dataclasses
import re
import sys
import types
import typing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "algorithms"))

from roster import ROSTER, smaller  # noqa: E402, F401

from telescope.algorithms import LANGUAGE, grpo  # noqa: E402
from telescope.checks import hints, options  # noqa: E402
from telescope.renamed import COLUMNS, FIELDS  # noqa: E402

ALGORITHMS = {row.module.__name__.rpartition(".")[2]: row for row in ROSTER.values()}


def vocabulary():
    """The word of each row, and the row's last cell, in the order of the tables."""
    section = (ROOT / "docs" / "design.md").read_text().partition("## One vocabulary\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 for row in rows), "word, quantity, where"
    return [(word, where.strip()) for words, _, where in rows for word in re.findall(r"`(\w+)`", words)]


@pytest.fixture(scope="module")
def appearances(smaller):  # noqa: F811
    """(name, field or column) → the algorithms that have it."""
    found = collections.defaultdict(set)
    for name, row in ALGORITHMS.items():
        for field in dataclasses.fields(row.small):
            found[field.name, "field"].add(name)
        made = next(row.module.train(row.small))
        for column in made.rows[0]:
            found[column, "column"].add(name)
    verified = dataclasses.replace(ALGORITHMS["grpo"].small, task="lm/addition", reward=None)
    for column in next(grpo.train(verified)).rows[0]:
        found[column, "column"].add("grpo")
    return found


def world(algorithms):
    if not algorithms & LANGUAGE:
        return "environments"
    return "both" if algorithms - LANGUAGE else "language"


def test_a_word_stands_once():
    words = [word for word, _ in vocabulary()]
    assert [word for word, count in collections.Counter(words).items() if count > 1] == []


def test_every_name_that_algorithms_share_stands_in_the_table(appearances):
    words = dict(vocabulary())
    assert {name for (name, _), having in appearances.items() if len(having) > 1} <= words.keys()
    for name, kinds in collections.Counter(name for name, _ in appearances).items():
        assert kinds == 1 or name in words, f"{name} is a field and a column, so it stands in the table"


def test_words_appear_where_the_table_says(appearances):
    for word, where in vocabulary():
        kinds = [kind for kind in ("field", "column") if (word, kind) in appearances]
        assert where == "; ".join(f"{kind}: {world(appearances[word, kind])}" for kind in kinds), word


def test_a_shared_field_has_one_type():
    """Or None besides, where that stands for a default. Of words, each may have its own choice."""

    def kind(option):
        return "words" if typing.get_origin(option) is typing.Literal else str(option)

    found = collections.defaultdict(dict)
    for name, row in ALGORITHMS.items():
        for field, hint in hints(type(row.small)).items():
            found[field][name] = {kind(option) for option in options(hint) if option is not types.NoneType}
    for field, kinds in found.items():
        assert len(set(map(frozenset, kinds.values()))) == 1, f"{field}: {kinds}"


def test_no_former_name_is_a_word_of_the_same_kind_and_owner(appearances):
    for former, row in FIELDS.items():
        owners = {
            name for name, one in ALGORITHMS.items() if row.owner in {kind.__name__ for kind in type(one.small).__mro__}
        }
        assert not owners & appearances[former, "field"]
        assert owners <= appearances[row.now, "field"]
    for name, columns in COLUMNS.items():
        assert all(name in appearances[now, "column"] for now in columns.values())
