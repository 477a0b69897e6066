"""Every field of every configuration is held against its annotation, whoever makes the config."""

import dataclasses
import math
import typing

import numpy as np
import pytest

from telescope import checks
from telescope.algorithms import CONFIGS, config_class
from telescope.objectives.rows import Correction, Objective

CLASSES = [*(config_class(name) for name in CONFIGS), Objective, Correction]
FIELDS = [(cls, name, hint) for cls in CLASSES for name, hint in checks.hints(cls).items()]


def made(cls, **settings):
    return cls(**({"name": "mine"} if cls is Objective else {}) | settings)


def kinds(hint) -> set[str]:
    """What an annotation takes, by hand: the oracle of the checks."""
    text = str(hint)
    found = {
        kind for kind in ("int", "float", "bool", "str", "tuple", "dict", "Literal", "None", "Any") if kind in text
    }
    return found | ({"None"} if "Optional" in text else set())


@pytest.mark.parametrize(
    ("cls", "name", "hint"), FIELDS, ids=lambda x: getattr(x, "__name__", x if type(x) is str else "")
)
def test_no_field_takes_another_kind_of_value(cls, name, hint):
    taken = kinds(hint)
    if "Any" in taken and "dict" not in taken:
        return
    wrong = {"a list": [[]], "an object": object(), "NaN": math.nan}
    if "int" not in taken and "float" not in taken:
        wrong |= {"a number": 1, "a NumPy number": np.float32(1)}
    if "bool" not in taken:
        wrong["a truth"] = True
    if "str" not in taken:
        wrong["a word"] = "no such word"
    if "None" not in taken:
        wrong["nothing"] = None
    if "float" not in taken:
        wrong["a broken number"] = 2.5
    for what, value in wrong.items():
        with pytest.raises(ValueError, match=rf"^{name}\b"):
            pytest.fail(f"{what} passed: {made(cls, **{name: value})}")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_numpys_numbers_are_taken_and_become_pythons(cls):
    whole = made(cls)
    twin = {}
    for field in dataclasses.fields(cls):
        value = getattr(whole, field.name)
        twin[field.name] = np.asarray(value)[()] if isinstance(value, bool | int | float | str) else value
        if isinstance(value, tuple):
            twin[field.name] = [np.asarray(item)[()] for item in value]
    again = cls(**twin)
    assert again == whole
    assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(whole).values()]


def test_a_whole_float_is_no_int_and_the_sentence_says_how_to_write_it():
    with pytest.raises(ValueError, match=r"total_steps is 100000.0 \(float\); expected int; write 100000"):
        config_class("ppo")(total_steps=1e5)


def test_ints_become_floats_and_lists_tuples():
    config = config_class("ppo")(gamma=1, hidden=[8])
    assert (config.gamma, type(config.gamma), config.hidden) == (1.0, float, (8,))


@pytest.mark.parametrize("settings", [{"seeds": 10**18}, {"num_envs": 2**40, "total_steps": 2**62}])
def test_more_environments_than_any_machine_holds_are_a_sentence(settings):
    with pytest.raises(ValueError, match="environments; expected at most"):
        config_class("ppo")(**settings)


def test_what_no_memory_holds_is_refused_before_it_is_asked_for():
    with pytest.raises(ValueError, match=r"the weights need .* GB of memory, but this machine has"):
        checks.fits_memory(10**15, "the weights need")
    checks.fits_memory(10**3, "the weights need")


def test_every_config_is_looked_at():
    assert typing.get_args(checks.hints(config_class("ppo"))["compile"]) == ("auto", "on", "off")
    assert len(FIELDS) > 150


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden": (10**9,)}, r"hidden is \(1000000000,\), so the networks of 1 seeds need"),
        ({"hidden": (10**6, 10**6)}, "hidden is .* GB"),
        ({"num_steps": 10**13, "total_steps": 10**14}, r"a rollout of num_steps 10000000000000 × 1 environments needs"),
    ],
)
def test_a_slip_of_the_finger_is_a_sentence_and_no_memory_error(settings, sentence):
    from telescope.algorithms.ppo import PPO, train

    with pytest.raises(ValueError, match=sentence):
        next(train(PPO(**settings)))
