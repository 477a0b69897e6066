"""How a reward function is called: by the names in its signature, in any order, or refused before it is called.

Leaves out what is wrong with what it returns (`test_language_training.py`).
"""

import functools
import sys

import pytest

from telescope.algorithms import grpo
from telescope.cli import main
from telescope.language.data.rewards import given_to, load_function, score

ROWS = [{"prompt": "p1", "answer": "a1", "level": 1}, {"prompt": "p2", "answer": "a2", "level": 2}]
COMPLETIONS = ["c1", "c2"]
WANTED = {
    "prompts": ["p1", "p2"],
    "completions": ["c1", "c2"],
    "answer": ["a1", "a2"],
    "level": [1, 2],
}


def seen_by(function):
    """What the function says it got, by name: each returns its `locals()`."""
    seen = {}

    def remember(found):
        seen.update(found.pop("k", {}), **found)
        return [0.0, 0.0]

    score(function(remember), ROWS, COMPLETIONS, name="f")
    return seen


class Method:
    def __init__(self, tell):
        self.tell = tell

    def __call__(self, completions, prompts, **k):
        return self.tell({"completions": completions, "prompts": prompts, "k": k})


def wrapped(tell):
    """A decorator that says nothing of the function it wraps."""

    def inner(completions, prompts, **k):
        return tell({"completions": completions, "prompts": prompts, "k": k})

    def outer(*args, **kwargs):
        return inner(*args, **kwargs)

    return outer


FUNCTIONS = {
    "ours": lambda tell: lambda prompts, completions, **k: tell(locals() | {"tell": 0}),
    "trl": lambda tell: lambda completions, prompts, **k: tell(locals() | {"tell": 0}),
    "columns first": lambda tell: lambda level, answer, completions, prompts=None: tell(locals() | {"tell": 0}),
    "keywords only": lambda tell: lambda *, completions, answer, prompts, **k: tell(locals() | {"tell": 0}),
    "all by name": lambda tell: lambda **k: tell(locals() | {"tell": 0}),
    "completions alone": lambda tell: lambda completions: tell(locals() | {"tell": 0}),
    "an optional column": lambda tell: lambda completions, answer=None, solution=None: tell(locals() | {"tell": 0}),
    "a bound method": Method,
    "a partial": lambda tell: functools.partial(lambda tell, completions, prompts: tell(locals() | {"tell": 0}), tell),
    "wrapped": wrapped,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_parameter_gets_what_it_is_named_for(name):
    """By position, the prompts would stand where a function for TRL has its completions."""
    seen = {key: value for key, value in seen_by(FUNCTIONS[name]).items() if key not in ("tell", "solution")}
    assert "completions" in seen
    assert seen == {key: WANTED[key] for key in seen}


def test_a_column_that_is_absent_leaves_the_default():
    seen = seen_by(FUNCTIONS["an optional column"])
    assert (seen["answer"], seen["solution"]) == (["a1", "a2"], None)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, c, **k: [(p, c)],
        lambda _, c, **k: [(_, c)],
        lambda p, c, /, level, **k: [(p, c)],
        lambda *args: [args],
        lambda completions, _, **k: [(_, completions)],
    ],
)
def test_parameters_without_a_telling_name_get_prompts_and_completions(function):
    given = given_to(function, ROWS[0], name="f")
    lists = {**WANTED}
    [(prompts, completions)] = function(
        *(lists[what] for what in given.positions), **{key: lists[what] for key, what in given.keywords.items()}
    )
    assert (prompts, completions) == (WANTED["prompts"], WANTED["completions"])


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda queries, prompts, answer: [], "queries"),  # OpenRLHF: queries are prompt and completion together
        (lambda solution_str, answer: [], "solution_str"),  # verl
        (lambda data_source, solution_str, ground_truth, extra_info=None: [], "data_source"),
        (lambda prompt, completion, **data: [], "prompt"),  # AReaL: one at a time
        (lambda args, sample, **k: [], "args"),  # slime
        (lambda completions, ground_truth: [], "ground_truth"),  # a column that the rows do not have
    ],
)
def test_a_function_for_another_library_is_refused_by_what_it_asks_for(function, named):
    """With what is expected, and before any call: its arguments would be others than it believes."""
    with pytest.raises(ValueError, match=rf"f cannot be called: it asks for '{named}'.*completions.*answer, level"):
        given_to(function, ROWS[0], name="f")


@pytest.mark.parametrize("function", [lambda prompts: [], lambda solution_str=None, answer=None: []])
def test_a_function_that_never_sees_completions_is_refused(function):
    with pytest.raises(ValueError, match="does not ask for completions"):
        given_to(function, ROWS[0], name="f")


def test_a_second_flag_for_rewards_is_refused(capsys):
    """All but the last were dropped, silently."""
    flags = ["--reward", "one.py:f", "--reward=two.py:f"]
    assert main(["train", "grpo", "lm/reverse", *flags]) == 2
    assert "--reward is given twice" in capsys.readouterr().err


def test_a_field_that_is_called_as_the_texts_are_is_refused():
    with pytest.raises(ValueError, match="the rows have a field 'completions'"):
        given_to(lambda prompts, completions: [], {"prompt": "p", "completions": 1}, name="f")


def test_modules_beside_the_file_are_imported_at_once_and_later(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_at_once.py").write_text("def size(text): return float(len(text))\n")
    (tmp_path / "beside_later.py").write_text("TWO = 2\n")
    (tmp_path / "score.py").write_text(
        "from beside_at_once import size\n"
        "def score(completions):\n    from beside_later import TWO\n    return [TWO * size(c) for c in completions]\n"
    )
    first = sys.path[0]
    function = load_function(f"{tmp_path / 'score.py'}:score")
    assert score(function, ROWS, COMPLETIONS, name="f").tolist() == [4.0, 4.0]
    assert sys.path[0] == first  # nothing of the run's own is shadowed


def test_a_function_is_a_reward_from_python(tmp_path):
    """In any style, and called by its name where it fails."""

    def mine(completions, prompts, **k):
        assert all(prompt.endswith("|") for prompt in prompts)
        return [float(len(completion)) for completion in completions]

    settings = {"prompts": 4, "group": 2, "total_steps": 1, "warm_start": 0.0, "eval_prompts": 4, "threads": 1}
    config = grpo.GRPO(task="lm/reverse", reward=mine, minibatches=1, eval_every=0, **settings)
    *_, last = grpo.train(config)
    assert last.rows[0]["score"] > 0

    def wrong(completions):
        raise KeyError("level")

    with pytest.raises(ValueError, match=r"the reward function .*wrong raised KeyError: 'level'"):
        list(grpo.train(grpo.GRPO(task="lm/reverse", reward=wrong, minibatches=1, eval_every=0, **settings)))
