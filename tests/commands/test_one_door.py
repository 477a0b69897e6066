"""The folder says what kind of run it holds: to `telescope.load`, `eval`, `plot` and `train --resume`.

Leaves out what each does with it (`test_cli.py`, `tests/language/`).
"""

import dataclasses
import json

import numpy as np
import pytest

import telescope
from telescope import answers, policy
from telescope.algorithms import grpo, ppo, reward_model, sft
from telescope.cli import main
from telescope.runs import RunFolder

SMALL = {"model": "tiny", "total_steps": 1, "eval_prompts": 4, "max_tokens": 4}
CONFIGS = {
    "ppo": ppo.PPO(env="CartPole-v1", seeds=2, num_envs=2, num_steps=16, minibatch_size=32, total_steps=320),
    "sft": sft.SFT(task="lm/addition", batch_size=4, **SMALL),
    "grpo": grpo.GRPO(task="lm/addition", prompts=2, group=2, minibatches=1, warm_start=0.0, **SMALL),
    "reward_model": reward_model.RewardModelling(task="lm/taste", batch_size=4, **{**SMALL, "max_tokens": None}),
}
MODELS = sorted(CONFIGS.keys() - {"ppo"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {name: telescope.train(config, place / name).path for name, config in CONFIGS.items()}


def test_agents_come_back_as_a_policy(runs):
    agents = telescope.load(runs["ppo"], device="cpu")
    assert type(agents) is policy.Policy
    assert agents.act(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_comes_back_with_its_answers(runs, name):
    model = telescope.load(runs[name], device="cpu", trust=True)
    assert type(model) is answers.Answers
    assert model.complete(["12+34="], max_tokens=3) == answers.load(runs[name]).complete(["12+34="], max_tokens=3)


@pytest.mark.parametrize(("option", "value"), [("best", True), ("network", ())])
def test_an_option_that_does_not_fit_the_kind_of_run_is_refused_by_name(runs, option, value):
    with pytest.raises(ValueError, match=f"^{option} is for agents .* is a run of grpo, a language model"):
        telescope.load(runs["grpo"], **{option: value})


def test_each_room_names_the_door_to_the_other(runs):
    with pytest.raises(ValueError, match=r"is a run of ppo; telescope\.load has its agents"):
        answers.load(runs["ppo"])
    with pytest.raises(ValueError, match=r"is a run of grpo; telescope\.load has its language model"):
        policy.load(runs["grpo"])


EVALUATED = {"ppo": ("episodes", "iqm"), "sft": ("prompts", "exact_match"), "grpo": ("prompts", "exact_match")}
EVALUATED["reward_model"] = ("pairs", "accuracy")


@pytest.mark.parametrize("name", CONFIGS)
def test_eval_measures_what_such_a_run_is_measured_by(runs, name, capsys):
    count = "--episodes" if name == "ppo" else "--prompts"
    assert main(["eval", str(runs[name]), count, "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    number, score = EVALUATED[name]
    assert found[number] == 3
    assert np.isfinite(found[score])


@pytest.mark.parametrize(("name", "flag"), [("ppo", "--prompts"), ("sft", "--episodes"), ("grpo", "--best")])
def test_a_flag_of_the_other_kind_is_refused(runs, name, flag, capsys):
    assert main(["eval", str(runs[name]), *([flag] if flag == "--best" else [flag, "3"])]) != 0
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_of_any_kind_is_extended_and_drawn(runs, name, tmp_path):
    longer = 2 * CONFIGS[name].total_steps
    assert main(["train", "--resume", str(runs[name]), "--total-steps", str(longer)]) == 0
    folder = RunFolder.open(runs[name])
    assert folder.load_checkpoint()["step"] == longer
    assert dataclasses.asdict(telescope.load(folder).config)["total_steps"] == longer
    assert main(["plot", str(runs[name]), "--out", str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 0
