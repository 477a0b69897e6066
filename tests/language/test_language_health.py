"""The health report: every failure is provoked in a run, a healthy run is quiet, and the command names wrong input.

Leaves out the reward functions' and files' errors one by one (`test_language_training.py`).
"""

import csv
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch

from telescope.algorithms import grpo, rlhf
from telescope.cli import main
from telescope.language import health
from telescope.language.experience.preferences import RewardModel
from telescope.language.experience.rollout import RolloutSession
from telescope.language.models import causal as models
from telescope.language.models.tokenizer import EOS, characters

SMALL = {"prompts": 16, "group": 4, "minibatches": 2, "total_steps": 2, "eval_prompts": 20, "threads": 1}


def config_of(module, model, **settings):
    """A small run."""
    return dataclasses.replace(module.preset("lm/addition"), model=str(model), **SMALL | settings)


def told(module, config):
    """name → (step, value, sentence) of everything that a run reports."""
    found = {}
    for iteration in module.train(config):
        assert iteration.warnings == [finding.sentence for finding in iteration.findings]
        for name, value, sentence in iteration.findings:
            assert name not in found  # within so few steps nothing is told twice
            found[name] = (iteration.step, value, sentence)
    return found


REWARDS = """
def constant(prompts, completions, **columns):
    return [0.5] * len(prompts)
def shy(prompts, completions, **columns):
    return [float(i % 8) if i % 4 == 3 else None for i in range(len(prompts))]
def ones_and_luck(prompts, completions, **columns):
    return [text.count("1") / 4 + 4 * prompt.startswith("1") for prompt, text in zip(prompts, completions)]
def length(prompts, completions, **columns):
    return [float(len(text)) + i % 2 for i, text in enumerate(completions)]
def broken(prompts, completions, **columns):
    return [len(text) / columns["weight"] for text in completions]
def short(prompts, completions, **columns):
    return [1.0]
def nan(prompts, completions, **columns):
    return [float("nan")] * len(prompts)
"""


@pytest.fixture
def rewards(tmp_path):
    """A file of reward functions, by name."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return lambda name: f"{tmp_path / 'rewards.py'}:{name}"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The built-in model after a warm start that is long enough for it to end its completions."""
    folder = tmp_path_factory.mktemp("models") / "start"
    config = config_of(grpo, models.TINY, total_steps=1, warm_start_steps=40)
    next(iter(grpo.train(config))).save_model(folder)
    return folder


# A run


@pytest.mark.parametrize("module", [grpo, rlhf])
def test_a_healthy_run_reports_nothing(module, start, rewards):
    assert told(module, config_of(module, start, total_steps=4, reward=rewards("length"))) == {}


@pytest.mark.parametrize("module", [grpo, rlhf])
def test_a_reward_that_never_differs_is_told(module, start, rewards):
    found = told(module, config_of(module, start, reward=rewards("constant")))
    assert found.keys() == {"equal_groups"}
    step, value, sentence = found["equal_groups"]
    assert (step, value) == (1, 1.0)
    assert "equal_groups is 100%" in sentence
    assert "mean 0.5" in sentence


def test_completions_that_are_all_cut_are_told(start, rewards):
    config = config_of(grpo, start, max_tokens=1, reward=rewards("length"))
    _, value, sentence = told(grpo, config)["truncated"]
    assert value > 0.9
    assert "cut at max_tokens (1)" in sentence


def test_completions_without_a_score_are_told(start, rewards):
    found = told(grpo, config_of(grpo, start, reward=rewards("shy")))
    assert found["unscored"][:2] == (1, 0.75)


@pytest.mark.parametrize("module", [grpo, rlhf])
def test_steps_that_are_too_long_are_told(module, start, rewards):
    settings = {"learning_rate": 0.1, "lr_warmup": 0, "beta": 0.01, "total_steps": 8}
    found = told(module, config_of(module, start, reward=rewards("length"), **settings))
    assert found.keys() >= {"kl", "kl_reference"}
    assert found["kl"][0] == 1
    assert found["kl"][1] > 0.1
    assert "lower learning_rate" in found["kl"][2]
    assert found["kl_reference"][0] > 1 or module is grpo  # before the first update it is 0, or a hair below
    assert found["kl_reference"][1] > 5


@pytest.mark.parametrize("module", [grpo, rlhf])
def test_a_policy_that_has_become_certain_is_told(module, start, rewards):
    settings = {"learning_rate": 0.01, "lr_warmup": 0, "total_steps": 8}
    found = told(module, config_of(module, start, reward=rewards("ones_and_luck"), **settings))
    step, value, sentence = found["entropy"]
    assert step > 1
    assert value < 0.1
    assert "% of the first step's, but score is " in sentence


@pytest.mark.parametrize("module", [grpo, rlhf])
def test_a_sampler_that_is_not_the_trainer_is_told(module, start, rewards, monkeypatch):
    sample = RolloutSession.sample

    def apart(session, *arguments):
        found = sample(session, *arguments)
        return found._replace(log_probs=torch.where(found.mask, found.log_probs - 0.01, 0.0))

    monkeypatch.setattr(RolloutSession, "sample", apart)
    found = told(module, config_of(module, start, reward=rewards("length")))
    assert found.keys() == {"sampler_mismatch"}
    assert "sampler_mismatch is 0.01 nats" in found["sampler_mismatch"][2]
    assert told(module, config_of(module, start, reward=rewards("length"), dtype="bfloat16")).keys() <= {"equal_groups"}


# Numbers


NUMBERS = {"score": 0.5, "equal_groups": 0.95, "length": 10.0, "truncated": 0.0, "entropy": 1.0, "kl_reference": 2.0}
SETTINGS = {"group": 4, "dtype": "float32", "max_tokens": 16, "first_entropy": 1.0, "seen": (0.0, 1.0)}


def names(critic, **numbers):
    found = health.findings(health.quantities(NUMBERS | numbers, critic=critic, **SETTINGS))
    return [finding.name for finding in found]


def test_a_critic_compares_across_prompts():
    """So only a reward that differs nowhere leaves it nothing."""
    assert names(False) == ["equal_groups"]
    assert names(True) == []
    assert names(True, equal_groups=1.0) == ["equal_groups"]


@pytest.mark.parametrize("critic", [False, True])
def test_the_distance_to_the_reference_is_judged_by_the_token(critic):
    assert "kl_reference" in names(critic, kl_reference=6.0)
    assert "kl_reference" not in names(critic, kl_reference=4.0, kl_completion=40.0)


def test_who_solves_a_task_may_become_certain():
    """Entropy falls with what is left to learn; below that the policy has given up exploring."""
    assert names(True, entropy=0.04, score=0.5) == ["entropy"]
    assert names(True, entropy=0.06, score=0.5) == []
    assert names(True, entropy=0.04, score=0.7) == []
    assert names(True, entropy=0.0, score=1.0) == []
    assert names(True, entropy=0.09, score=0.0) == ["entropy"]


def test_groups_that_are_skipped_do_not_move():
    assert "kl" in names(False, kl=0.5, skipped=0.5)
    assert "kl" not in names(False, kl=0.5, skipped=0.9)


def test_a_finding_is_told_again_later_each_time(monkeypatch):
    monkeypatch.setattr(health, "AGAIN", 10)
    watch, numbers = health.Watch(), NUMBERS | {"score_min": 0.0, "score_max": 1.0}
    settings = {name: value for name, value in SETTINGS.items() if name not in ("first_entropy", "seen")}
    told = [step for step in range(1, 100) if watch.look(step, numbers, critic=False, **settings)]
    assert told == [1, 11, 22, 44, 88]


def test_a_number_that_is_none_is_not_healthy():
    assert names(True, kl=float("nan")) == ["kl"]
    assert names(True, kl=float("inf"), ratio_max=float("inf")) == ["kl"]


def test_a_reward_model_without_a_number_is_an_error():
    """Not a completion that was not scored."""
    model = RewardModel(models.tiny(0).eval(), characters(), EOS, "cpu")
    assert model.scores([{"prompt": "a"}], ["b"]).tolist() == [0.0]
    torch.nn.init.constant_(model.network.head.bias, torch.nan)
    with pytest.raises(FloatingPointError, match=r"the reward model gave nan for completion 0 \('b' to 'a'\)"):
        model.scores([{"prompt": "a"}], ["b"])


# A tokenizer that pads with its end


@pytest.mark.parametrize("module", [grpo, rlhf])
def test_padding_with_the_end_token_changes_no_mask_and_is_told(module, start, tmp_path):
    ends = {}
    for name, pad in (("own", "<pad>"), ("end", "<eos>")):
        shutil.copytree(start, tmp_path / name)
        tokenizer = characters()
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(tmp_path / name)
        config = config_of(module, tmp_path / name)
        first, *_, last = (iteration for iteration in module.train(config))
        ends[name] = last.state["models"]
        assert models.load(config.model)[1].pad_token == pad
        assert [finding.name for finding in first.findings] == ["eos_is_pad"] * (name == "end")
    for network, parameters in ends["own"].items():
        assert all(torch.equal(tensor, ends["end"][network][key]) for key, tensor in parameters.items())


# From the command line


QUICK = ["--threads", "1", "--eval-prompts", "20", "--prompts", "4", "--group", "2", "--minibatches", "2"]


def command(*arguments, traceback=False):
    """Run it in a process of its own: exit status and what it wrote on standard error."""
    line = [sys.executable, "-m", "telescope.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert ("Traceback" in done.stderr) == traceback
    return done.returncode, done.stderr


def table(run):
    with (run / "health.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_has_what_was_told_and_a_resumed_run_tells_the_same(
    tmp_path, start, rewards, capsys, monkeypatch
):
    monkeypatch.setattr(health, "AGAIN", 3)
    flags = [*QUICK, "--model", str(start), "--reward", rewards("constant"), "--total-steps", "5"]
    assert main(["train", "grpo", "lm/addition", "--out", str(tmp_path / "whole"), *flags]) == 0
    assert capsys.readouterr().err.count("equal_groups is 100%") == 2
    found = table(tmp_path / "whole")
    assert [(row["step"], row["name"], row["value"]) for row in found] == [
        ("1", "equal_groups", "1.0"),
        ("4", "equal_groups", "1.0"),
    ]
    assert "equal_groups is 100%" in found[0]["sentence"]
    config = config_of(grpo, start, reward=rewards("constant"), total_steps=5)
    state = next(itertools.islice(grpo.train(config), 2, None)).state
    again = [(one.step, finding.name) for one in grpo.train(config, resume=state) for finding in one.findings]
    assert again == [(4, "equal_groups")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            '{"prompt": "b", "level": 2}\n{"prompt": "c"}',
            "row 3 of {file} has no field 'level', which the first row has",
        ),
        ('{"prompt": "b", "level": 2, "mark": 1}', "row 2 of {file} has the field 'mark', which the first row lacks"),
        ('{"prompt": " ", "level": 2}', "prompt in row 2 of {file} is empty"),
    ],
)
def test_a_wrong_row_is_named_and_leaves_no_folder(tmp_path, rewards, line, sentence):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "level": 1}\n' + line)
    status, errors = command("train", "grpo", file, "--out", tmp_path / "run", "--reward", rewards("length"), *QUICK)
    assert (status, errors.strip().startswith("telescope: " + sentence.format(file=file))) == (2, True), errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken", "{reward} raised KeyError: 'weight' (line 11 of {file})"),
        ("short", "{reward} returned 1 scores for 8 completions; expected one for each"),
        ("nan", "{reward} gave nan for completion 0 ("),
    ],
)
def test_a_wrong_reward_function_is_named_and_the_run_goes_on_with_a_right_one(tmp_path, rewards, name, sentence):
    data, file = tmp_path / "data.jsonl", tmp_path / "rewards.py"
    data.write_text("\n".join(json.dumps({"prompt": f"say {i}:"}) for i in range(20)))
    flags = ["--reward", rewards(name), "--total-steps", 2, "--max-tokens", 4, *QUICK]
    raised = name == "broken"  # the user's own line is shown
    status, errors = command("train", "grpo", data, "--out", tmp_path / "run", *flags, traceback=raised)
    assert status != 0
    assert "the reward function " + sentence.format(reward=rewards(name), file=file) in errors
    file.write_text(f"def {name}(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    if name == "short":  # noticed after the first evaluation, of fewer prompts
        resume = ["train", "--resume", str(tmp_path / "run")]
        assert main(resume) == 1  # neither the code that was signed nor the inputs that were there
        assert main([*resume, "--trust", "--allow-inexact"]) == 0
    else:  # nothing had been trained, and nothing is in the way of the same command
        assert main(["train", "grpo", str(data), "--out", str(tmp_path / "run"), *map(str, flags)]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as rows:
        assert [row["step"] for row in csv.DictReader(rows)] == ["0", "1", "2"]
