"""A callable environment in a run folder: by its import path where one finds it again, and told where none does."""

import dataclasses
import sys

import pytest

import worlds
from telescope.algorithms.ppo import PPO, train
from telescope.checks import import_path
from telescope.control.environments.factory import find_source
from telescope.runs.formats.config import read_config, write_config

SMALL = PPO(env=worlds.Forever, num_steps=8, minibatch_size=8, epochs=1, total_steps=8, hidden=(4,), compile="off")


def inside():
    class Hidden(worlds.Forever):
        pass

    return Hidden


@pytest.mark.parametrize("env", [worlds.Forever, worlds.Chain, inside], ids=lambda env: env.__name__)
def test_what_a_module_holds_is_found_again(tmp_path, env):
    write_config(tmp_path / "config.toml", dataclasses.replace(SMALL, env=env))
    again = read_config(tmp_path / "config.toml", PPO).env
    assert again == f"{env.__module__}:{env.__name__}"
    assert find_source(again) is env


@pytest.mark.parametrize("env", [inside(), lambda: worlds.Forever()], ids=["a local class", "a lambda"])
def test_what_no_module_holds_is_told_when_the_run_begins_and_again_when_it_is_looked_for(tmp_path, env):
    config = dataclasses.replace(SMALL, env=env)
    assert any("cannot be imported by name" in note for note in next(train(config)).notes)
    assert not any("cannot be imported by name" in note for note in next(train(SMALL)).notes)
    write_config(tmp_path / "config.toml", config)
    again = read_config(tmp_path / "config.toml", PPO).env
    with pytest.raises(ValueError, match="the run began with a function or class of test_import_paths that cannot be"):
        find_source(again)


def test_the_main_script_is_no_import_path(monkeypatch):
    monkeypatch.setattr(worlds.Forever, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Forever", worlds.Forever, raising=False)
    assert import_path(worlds.Forever) == "__main__:"


def test_a_name_that_a_module_lacks_is_told_with_those_that_look_like_it():
    with pytest.raises(ValueError, match=r"'worlds' neither has .* 'Forevr' nor registers .*; did you mean Forever"):
        find_source("worlds:Forevr")


def test_a_module_that_is_not_found_is_told_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_a_world.py").write_text("import nothing_of_the_kind")
    with pytest.raises(ValueError, match=r"No module named 'worldz'; add its folder to PYTHONPATH"):
        find_source("worldz.sub:World")
    with pytest.raises(ValueError, match=r"No module named 'nothing_of_the_kind'$"):
        find_source("half_a_world:World")
