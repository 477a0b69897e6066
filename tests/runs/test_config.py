"""Configurations survive the trip through TOML, and a bad file is refused by key, value and expected type."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telescope.runs import RunError, from_mapping, read_config, write_config


@dataclasses.dataclass(frozen=True)
class Config:
    env: str
    note: str | None
    seeds: int = 1
    gamma: float = 0.99
    anneal: bool = True
    kl_stop: float | None = 0.02
    clip: float | None = None
    hidden: tuple[int, ...] = (64, 64)
    range: tuple[float, float] = (0.0, 1.0)
    normalise: Literal["none", "batch"] = "batch"
    mixed: int | float | str = 0
    extra: tuple[str | None, ...] = ()
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


numbers = st.floats(allow_nan=False)
plain = st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | st.text(max_size=5)
configs = st.builds(
    Config,
    env=st.text(max_size=8),
    note=st.none() | st.text(max_size=8).filter(lambda text: text != "none"),
    seeds=st.integers(-(2**63), 2**63 - 1),
    gamma=numbers,
    kl_stop=st.none() | numbers,
    clip=st.none() | numbers,
    hidden=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    range=st.tuples(numbers, numbers),
    normalise=st.sampled_from(["none", "batch"]),
    mixed=st.integers(0, 9) | numbers | st.text(max_size=3),
    env_kwargs=st.dictionaries(st.text(max_size=4), plain | st.lists(plain, max_size=2), max_size=3),
)


@given(configs)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "config.toml"
    write_config(path, config)
    read = read_config(path, Config)
    assert read == config
    assert [type(value) for value in vars(read).values()] == [type(value) for value in vars(config).values()]


def test_none_survives_where_the_default_is_something_else(tmp_path: Path) -> None:
    write_config(tmp_path / "c.toml", Config("a", None, kl_stop=None))
    assert 'kl_stop = "none"' in (tmp_path / "c.toml").read_text()
    assert read_config(tmp_path / "c.toml", Config).kl_stop is None
    with pytest.raises(ValueError, match="note is 'none', which means None in a configuration file"):
        write_config(tmp_path / "c.toml", Config("a", "none"))


def test_defaults_fill_what_a_file_leaves_out_and_ints_become_floats() -> None:
    config = from_mapping(Config, {"env": "a", "gamma": 1}, source="x.toml")
    assert config == Config("a", None, gamma=1.0)
    assert type(config.gamma) is float


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"env": "a", "gama": 0.9}, r"x\.toml: unknown key 'gama'; did you mean 'gamma'\?"),
        ({"env": "a", "kl-stop": 0.9}, "did you mean 'kl_stop'"),
        ({"env": "a", "zzz": 0.9}, "unknown key 'zzz'; known keys are env, note"),
        ({}, "no value for 'env', which Config needs"),
        ({"env": 3}, r"env is 3 \(int\); expected str"),
        ({"env": "a", "seeds": "8"}, r"seeds is '8' \(str\); expected int"),
        ({"env": "a", "seeds": 8.0}, r"seeds is 8.0 \(float\); expected int; write 8"),
        ({"env": "a", "gamma": math.nan}, r"x\.toml: gamma is nan; expected a number"),
        ({"env": "a", "seeds": True}, r"seeds is True \(bool\); expected int"),
        ({"env": "a", "gamma": True}, r"gamma is True \(bool\); expected float"),
        ({"env": "a", "anneal": 1}, r"anneal is 1 \(int\); expected bool"),
        ({"env": "a", "clip": "off"}, "clip is 'off' .* expected float or \"none\""),
        ({"env": "a", "gamma": "none"}, "gamma is 'none' .* expected float"),
        ({"env": "a", "hidden": 64}, r"hidden is 64 \(int\); expected tuple"),
        ({"env": "a", "hidden": [64, "x"]}, r"hidden\[1\] is 'x' \(str\); expected int"),
        ({"env": "a", "range": [1.0]}, "range is .*; expected 2 values, not 1"),
        ({"env": "a", "normalise": "all"}, "normalise is 'all' .* expected one of 'none', 'batch'"),
        ({"env": "a", "env_kwargs": [1]}, "env_kwargs is .* expected dict"),
    ],
)
def test_bad_entries_are_named(mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_mapping(Config, mapping, source="x.toml")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config("a", None, env_kwargs={"x": {"y": None}}), "env_kwargs.x.y is None"),
        (Config("a", None, env_kwargs={"x": object()}), "env_kwargs.x is <object"),
        (Config("a", None, env_kwargs={1: 2}), "env_kwargs is {1: 2}"),  # type: ignore[dict-item]
        (Config("a", None, extra=("x", None)), r"extra\[1\] is None"),
    ],
)
def test_what_toml_cannot_hold_is_refused(tmp_path: Path, config: Config, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_config(tmp_path / "c.toml", config)
    assert not list(tmp_path.iterdir())


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"env = \n")
    with pytest.raises(ValueError, match=r"c\.toml is not a TOML file"):
        read_config(tmp_path / "c.toml", Config)
    (tmp_path / "c.toml").write_bytes(b'env = "\xff"\n')
    with pytest.raises(ValueError, match=r"c\.toml is not a TOML file"):
        read_config(tmp_path / "c.toml", Config)
    with pytest.raises(RunError, match=r"cannot read .*absent"):
        read_config(tmp_path / "absent", Config)
