"""What training measured is what load, eval and resume give back, and every flag that reads a run acts.

One list of laws × the algorithms of `roster.py`, on run folders. Leaves out training itself (`test_laws.py`).
"""

import csv
import dataclasses
import json

import numpy as np
import pytest
from roster import ROSTER, learner, smaller  # noqa: F401

import telescope
from telescope import answers
from telescope.algorithms import LANGUAGE
from telescope.cli import main
from telescope.commands.evaluate import AnswerOptions, EvalOptions
from telescope.commands.plot import PlotOptions

CONTROL = [name for name in ROSTER if name not in LANGUAGE]
IMPROVES = [name for name in CONTROL if not ROSTER[name].judges]
REWARD = "def ones(completions, **_):\n    return [text[:4].count('1') / 4 for text in completions]\n"
MEASURED = {"grpo": "reward", "rlhf": "reward", "sft": "exact_match", "reward_model": "accuracy"}
"""What an evaluation of each run measures and its training has moved."""


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def evaluations(run):
    """What training measured of each seed, by evaluation: [S, times]."""
    rows = [row for row in rows_of(run) if row["eval_return_mean"]]
    seeds = sorted({int(row["seed"]) for row in rows})
    return np.array([[float(row["eval_return_mean"]) for row in rows if int(row["seed"]) == seed] for seed in seeds])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each algorithm that has learned something; of environments one that went up and down."""
    place, made = tmp_path_factory.mktemp("runs"), {}
    (place / "rewards.py").write_text(REWARD)

    def run(name):
        if name not in made:
            config = dataclasses.replace(learner(name, place), eval_every=5)
            if name in CONTROL:
                up_and_down = {"learning_rate": 0.05, "clip": 0.5}
                up_and_down |= {"value_clip": 0.5} if getattr(ROSTER[name].small, "value_clip", None) else {}
                more = {"seeds": 4, "total_steps": 6 * 32, "eval_every": 32, "action_bounds": "squash"}
                small = ROSTER[name].small
                if getattr(small, "group", 1) > 1:  # its iterations have more steps
                    more |= {"total_steps": 6 * 72, "eval_every": 72, "learning_rate": 1.0}
                more["eval_max_steps"] = small.env_kwargs["max_episode_steps"]
                config = dataclasses.replace(
                    small, **{k: v for k, v in (up_and_down | more).items() if hasattr(small, k)}
                )
            if hasattr(config, "reward"):
                config = dataclasses.replace(config, reward=f"{place / 'rewards.py'}:ones")
            if name == "sft":
                config = dataclasses.replace(config, digits=2, eval_prompts=20, total_steps=80)
            made[name] = telescope.train(config, place / name).path
        return made[name]

    return run


@pytest.mark.parametrize("name", ROSTER)
def test_a_run_can_be_explored(name, runs, tmp_path, capsys):
    status = main(["lab", "explore", str(runs(name)), "--out", str(tmp_path / "page.html")])
    if name in ("sft", "reward_model"):
        assert status == 2
        assert "samples no completions" in capsys.readouterr().err
    else:
        assert status == 0, capsys.readouterr().err
        assert (tmp_path / "page.html").stat().st_size > 50_000


@pytest.mark.parametrize("name", ROSTER)
def test_an_evaluation_finds_what_training_measured_last(name, runs):
    run = runs(name)
    if name in LANGUAGE:
        config = answers.load(run).config
        wanted = float(rows_of(run)[-1][MEASURED[name]])
        assert wanted > 0.2, "it has learned, so that no other model would be measured the same"
        assert answers.load(run).evaluate(config.eval_prompts)[MEASURED[name]] == pytest.approx(wanted, abs=1e-6)
        return
    policy = telescope.load(run)
    found = policy.evaluate(policy.config.eval_episodes).returns.mean(axis=1)
    np.testing.assert_allclose(found, evaluations(run)[:, -1], rtol=1e-6)


@pytest.mark.parametrize("name", IMPROVES)
def test_the_best_agents_are_those_that_evaluated_best(name, runs):
    """With the statistics of their time: observations are normalised, and these go on changing."""
    run = runs(name)
    best, last = evaluations(run).max(axis=1), evaluations(run)[:, -1]
    assert (best > last).any(), "some seed was better before"
    policy = telescope.load(run, best=True)
    np.testing.assert_allclose(policy.evaluate(policy.config.eval_episodes).returns.mean(axis=1), best, rtol=1e-6)


@pytest.mark.parametrize("name", IMPROVES)
def test_the_best_agents_survive_a_resume(name, runs, tmp_path):
    config = telescope.load(runs(name)).config
    half = dataclasses.replace(config, total_steps=config.total_steps // 2)
    run = telescope.train(half, tmp_path / "run").path
    assert main(["train", "--resume", str(run), "--total-steps", str(config.total_steps)]) == 0
    measured = evaluations(run)
    best, half_way = measured.max(axis=1), measured.shape[1] // 2
    assert (measured[:, :half_way].max(axis=1) == best).any(), "some seed was best before the resume"
    policy = telescope.load(run, best=True)
    np.testing.assert_allclose(policy.evaluate(config.eval_episodes).returns.mean(axis=1), best, rtol=1e-6)


# Flags

ELSEWHERE = {
    "trust": "a stranger's code: tests/runs/test_folder_identity.py, tests/language/test_reward_calls.py",
    "video": "a film: tests/commands/test_cli.py::test_eval_records_a_video",
}
EVAL = {
    "episodes": ["--episodes", "3"],
    "max_steps": ["--max-steps", "3"],
    "stochastic": ["--stochastic"],
    "best": ["--best"],
}
ANSWERS = {
    "prompts": ["--prompts", "7"],
    "samples": ["--samples", "3"],
    "temperature": ["--temperature", "5"],
    "top_k": ["--top-k", "2"],
    "top_p": ["--top-p", "0.1"],
    "task": ["--task", "lm/addition"],
    "digits": ["--digits", "7"],
    "pass_at": ["--pass-at", "1"],
    "passing": ["--pass-at", "1", "--passing", "0"],
}
ECHOED = ("temperature", "top_k", "top_p", "samples", "prompts", "episodes")
"""What an evaluation repeats of its flags: no measurement."""
TOLD = ("json", "device")
"""Flags that are tried by themselves."""


def test_every_flag_of_an_evaluation_stands_here():
    assert {field.name for field in dataclasses.fields(EvalOptions)} == {*EVAL, *TOLD, *ELSEWHERE}
    assert {field.name for field in dataclasses.fields(AnswerOptions)} == {*ANSWERS, *TOLD, "trust"}
    assert {field.name for field in dataclasses.fields(PlotOptions)} == {"out", "metric"}


@pytest.fixture
def measured(capsys):
    def measure(run, *words):
        assert main(["eval", str(run), "--json", *words]) == 0
        return {name: x for name, x in json.loads(capsys.readouterr().out).items() if name not in ECHOED}

    return measure


@pytest.mark.filterwarnings("ignore:.*evaluation episodes were cut:UserWarning")
@pytest.mark.parametrize(("name", "flag"), [(x, y) for x in CONTROL for y in EVAL if x in IMPROVES or y != "best"])
def test_every_flag_of_eval_changes_what_is_measured(name, flag, runs, measured):
    few = [] if flag == "episodes" else ["--episodes", "2"]
    assert measured(runs(name), *few, *EVAL[flag]) != measured(runs(name), "--episodes", "2")


@pytest.mark.parametrize("flag", ANSWERS)
def test_every_flag_of_an_answers_evaluation_changes_what_is_measured(flag, runs, measured):
    run = runs("rlhf")
    drawn = ["--temperature", "2", "--prompts", "20"]
    assert measured(run, *drawn, *ANSWERS[flag]) != measured(run, *drawn)


@pytest.mark.parametrize("name", ["ppo", "sft"])
def test_json_and_device_act(name, runs, capsys):
    few = ["--episodes", "1"] if name in CONTROL else ["--prompts", "2"]
    assert main(["eval", str(runs(name)), *few, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["eval", str(runs(name)), *few]) == 0
    assert not capsys.readouterr().out.startswith("{")
    assert main(["eval", str(runs(name)), *few, "--device", "nowhere"]) != 0
    assert "nowhere" in capsys.readouterr().err


def test_every_flag_of_plot_acts(runs, tmp_path):
    run, first, second = runs("ppo"), tmp_path / "first.png", tmp_path / "second.png"
    assert main(["plot", str(run), "--out", str(first)]) == 0
    assert main(["plot", str(run), "--out", str(second), "--metric", "entropy"]) == 0
    assert first.read_bytes() != second.read_bytes()
    assert main(["plot", str(run), "--out", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
