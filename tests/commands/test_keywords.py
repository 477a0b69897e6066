"""`--env-kwargs NAME VALUE`: values are what TOML knows, so that false is no word and a list no string."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telescope.commands import keywords
from telescope.commands.train import train_arguments

names = st.text("abc_", min_size=1, max_size=3)
numbers = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    numbers | st.text("xyz ", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=6,
)


def toml(value):
    """A value in one line of TOML, written by hand: the oracle of the reader."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


@given(values)
def test_a_value_is_what_toml_reads(value):
    written = toml(value)
    assert tomllib.loads(f"value = {written}")["value"] == value
    found = keywords.value(written)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["8x8", "FrozenLake", "1.2.3", "", "a = 1", "2024-01-01", "1\nb = 2", "007"])
def test_everything_else_is_the_word_itself(word):
    assert keywords.value(word) == word


def test_pythons_truths_are_truths():
    assert [keywords.value(word) for word in ("True", "False", "true", "false")] == [True, False, True, False]
    assert math.isnan(keywords.value("nan"))


@given(st.dictionaries(names, numbers | st.lists(numbers, max_size=2), max_size=3))
def test_what_help_shows_can_be_typed_again(found):
    assert keywords.parsed(keywords.written(found)) == found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["x"], "'x' leaves a NAME without a VALUE"), (["x", "1", "x", "2"], "x is given more")],
)
def test_what_are_no_pairs_is_a_sentence(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        keywords.parsed(words)


def test_the_command_line_reads_them():
    words = ["--env-kwargs", "is_slippery", "false", "map_name", "8x8", "reward_schedule", "[1, 0, 0]"]
    config = train_arguments("ppo", "FrozenLake-v1", words)[0]
    assert config.env_kwargs == {"is_slippery": False, "map_name": "8x8", "reward_schedule": [1, 0, 0]}
