"""Flags as fingers know them: what is typed from memory is understood, or answered with the flag that was meant."""

import dataclasses
import re
from typing import Any, Literal

import pytest

from telescope.algorithms import CONFIGS, config_class
from telescope.cli import main
from telescope.commands.arguments import known_flags, parse, positionals, values
from telescope.commands.evaluate import AnswerOptions, EvalOptions
from telescope.commands.flags import ALIASES
from telescope.commands.train import ResumeOptions, TrainOptions


@dataclasses.dataclass(frozen=True)
class Options:
    """One field of each kind."""

    steps: int = 1
    """-"""
    rate: float = 0.5
    """-"""
    kind: Literal["slow", "fast"] = "slow"
    """-"""
    limit: float | None = None
    """-"""
    rows: int | None = None
    """-"""
    hidden: tuple[int, ...] = (64, 64)
    """-"""
    pair: tuple[float, float] | None = None
    """-"""
    name: str = "x"
    """-"""
    loud: bool = True
    """-"""
    more: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """-"""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; expected at least 0, " + "which is a long sentence " * 12)


def understood(line: str) -> Any:
    return parse(Options, line.split(), "telescope try", {})


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--steps 1e5", "steps", 100_000),
        ("--steps 2.5E3", "steps", 2500),
        ("--steps 1e23", "steps", 10**23),  # not the float next to it
        ("--steps 100_000", "steps", 100_000),
        ("--steps=7", "steps", 7),
        ("--rows 1e3", "rows", 1000),
        ("--rows none", "rows", None),
        ("--rate -1e-3", "rate", -1e-3),
        ("--rate 1", "rate", 1.0),
        ("--limit None", "limit", None),
        ("--limit 3", "limit", 3.0),
        ("--hidden 1e2 8", "hidden", (100, 8)),
        ("--pair 0.2 0.28", "pair", (0.2, 0.28)),
        ("--pair none", "pair", None),
        ("--kind fast", "kind", "fast"),
        ("--no-loud", "loud", False),
        ("--name 1e5", "name", "1e5"),
        ("--name none", "name", "none"),
        ("--more a 1 b 0.5", "more", {"a": 1, "b": 0.5}),
    ],
)
def test_values_are_taken_as_they_are_meant(line: str, field: str, value: Any) -> None:
    found = getattr(understood(line), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--steps 1.5", "--steps is '1.5'; expected a whole number"),
        ("--steps 1e400", "--steps is '1e400'; expected a whole number"),
        ("--steps inf", "--steps is 'inf'; expected a whole number"),
        ("--rows x", "--rows is 'x'; expected a whole number or none"),
        ("--rate fast", "--rate is 'fast'; expected a number"),
        ("--kind x", "--kind is 'x'; expected one of fast, slow"),
        ("--hidden", "--hidden needs a value"),
        ("--hidden --steps 3", "--hidden needs a value"),
        ("--hidden=", "--hidden needs a value"),
        ("--steps", "--steps needs a value"),
        ("--steps 1 2", "--steps takes one value, got 2: 1 2"),
        ("--hidden 8 --hidden 9", "--hidden is given twice"),
        ("--more a 1 --more b 2", "--more is given twice"),
        ("--loud yes", "--loud takes no value, got 'yes'; --loud means yes, --no-loud no"),
        ("--stepz 4", "no flag --stepz here; did you mean --steps?"),
        ("-q 4", "no flag --q here; `telescope try --help`"),
        ("here", "'here' is not a flag"),
        ("--pair 1", "--pair takes 2 values, got 1: 1"),
        ("--hidden 64,64", "expected a whole number; separate several by spaces: --hidden 1 2"),
        ("--steps -3", "^steps is -3; expected at least 0, (which is a long sentence ?){12}$"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=sentence if sentence[0] == "^" else re.escape(sentence)) as caught:
        understood(line)
    assert not set("\n│─╭") & set(str(caught.value))
    assert capsys.readouterr() == ("", "")


FLAGS = {name: {**known_flags(config_class(name)), **known_flags(TrainOptions)} for name in CONFIGS}
FROM_MEMORY = {
    "ppo": {
        "lr": "learning-rate",
        "lambda": "lam",
        "gae-lambda": "lam",
        "ent-coef": "entropy-coefficient",
        "vf-coef": "value-coefficient",
        "clip-range": "clip",
        "total-timesteps": "total-steps",
        "n-steps": "num-steps",
        "n-envs": "num-envs",
        "batch-size": "minibatch-size",
        "net-arch": "hidden",
        "no-anneal-lr": "no-anneal-learning-rate",
        "total_timestep": "total-steps",
        "max-episode-steps": "time-limit",
    },
    "grpo": {
        "num-generations": "group",
        "lr": "learning-rate",
        "max-new-tokens": "max-tokens",
        "batch-size": "prompts",
    },
    "sft": {"lr": "learning-rate", "dataset": "task"},
}


@pytest.mark.parametrize(("algorithm", "typed"), [(a, typed) for a, names in FROM_MEMORY.items() for typed in names])
def test_flags_of_other_libraries_are_answered_with_ours(algorithm: str, typed: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean --{FROM_MEMORY[algorithm][typed]}\\?"):
        values([f"--{typed}", "1"], FLAGS[algorithm], "telescope train")


def test_a_setting_of_a_run_that_goes_on_is_answered_with_start() -> None:
    with pytest.raises(ValueError, match="a run keeps its settings; to change them, begin a new run with --start RUN"):
        values(["--gamma", "0.9"], known_flags(ResumeOptions), "telescope train --resume RUN")


def test_the_table_names_flags_that_exist_and_no_flag_of_ours_twice() -> None:
    options = [known_flags(cls) for cls in (EvalOptions, AnswerOptions, ResumeOptions)]
    every = {flag for flags in (*FLAGS.values(), *options) for flag in flags}
    assert ALIASES.keys() <= every
    names = {name for names in ALIASES.values() for name in names.split()}
    assert not {name for name in names if all(name in flags for flags in FLAGS.values())}


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("--json run", ["run"]),
        ("--no-json run", ["run"]),
        ("run --episodes 4", ["run"]),
        ("--episodes 4 run", ["run"]),
        ("--episodes=4 run --best", ["run"]),
        ("--video films run", ["run"]),
        ("--prompts 3 run other", ["run", "other"]),
        ("--help run", ["run"]),
    ],
)
def test_positionals_are_found_among_flags(words: str, runs: list[str]) -> None:
    assert positionals(words.split(), EvalOptions, AnswerOptions)[0] == runs


@pytest.mark.parametrize(
    ("line", "meant"),
    [("trian ppo", "train"), ("evaluate x", "eval"), ("resume x", "train --resume"), ("polt x", "plot")],
)
def test_commands_from_memory_are_answered_with_ours(line, meant, capsys) -> None:
    assert main(line.split()) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["train --resume --help", "train --resume x --help", "eval --help", "plot -h"])
def test_help_comes_whatever_stands_around_it(line, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code in (0, None)
    assert "usage" in capsys.readouterr().out
