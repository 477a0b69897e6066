"""An evaluation measures what was asked, with the settings that were asked, and says which they were.

Leaves out what a run trains on.
"""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from telescope import answers
from telescope.algorithms import grpo
from telescope.cli import main
from telescope.language.data.tasks import is_held_out, pairs_of
from telescope.language.experience.sampling import Prompts, sample
from telescope.language.models import causal as models

SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]
FAST = ["--prompts", "4", "--group", "2", "--minibatches", "1", "--max-tokens", "3", "--threads", "1"]
FAST += ["--eval-every", "0", "--total-steps", "1", "--learning-rate", "1e-12"]
REWARD = """
FIRST = {first!r}
SEEN = []
def likely(prompts, completions, **columns):
    found = [float(text.startswith(FIRST[prompt])) for prompt, text in zip(prompts, completions)]
    SEEN.append(found)
    return found
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, rows with and without answers, a reward for each prompt's likeliest first token, and a run."""
    folder = tmp_path_factory.mktemp("evaluation")
    model, tokenizer = models.load(models.TINY)
    models.save(model, tokenizer, folder / "start")
    first = {}
    for row in SUMS:
        tokens = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        found = sample(model, Prompts(tokens, tokens >= 0), ends=[1], max_tokens=1)
        first[row["prompt"]] = tokenizer.decode(found.tokens[0])
    (folder / "rewards.py").write_text(REWARD.format(first=first))
    for name, columns in (("answers", ("prompt", "answer")), ("prompts", ("prompt",))):
        lines = [json.dumps({column: row[column] for column in columns}) for row in SUMS]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    assert run(folder, "answers", "run", "--top-k", "1") == 0
    return folder


def run(folder, rows, out, *flags):
    where = [
        "--model",
        str(folder / "start"),
        "--reward",
        f"{folder / 'rewards.py'}:likely",
        "--out",
        str(folder / out),
    ]
    return main(["train", "grpo", str(folder / f"{rows}.jsonl"), *where, *FAST, *flags])


def metrics(folder, rows, **settings):
    config = grpo.GRPO(task=str(folder / f"{rows}.jsonl"), model=str(folder / "start"), threads=1, total_steps=1)
    config = dataclasses.replace(config, reward=f"{folder / 'rewards.py'}:likely", prompts=4, group=2, minibatches=1)
    return next(iter(grpo.train(dataclasses.replace(config, max_tokens=3, **settings)))).rows[0]


def test_rewards_are_measured_on_what_the_run_samples(place):
    assert metrics(place, "prompts", top_k=1)["reward"] == 1
    assert metrics(place, "prompts", temperature=1e-3)["reward"] == 1
    assert metrics(place, "prompts", top_p=1e-300)["reward"] == 1
    assert metrics(place, "prompts")["reward"] < 0.9


def test_a_runs_own_reward_is_measured_beside_right_answers(place):
    row = metrics(place, "answers", top_k=1)
    assert row["exact_match"] == 0  # an untrained model is right about nothing
    assert row["reward"] == 1
    assert list(row)[3:5] == ["exact_match", "reward"]
    found = answers.load(place / "run").evaluate()
    assert (found["exact_match"], found["reward"]) == (0, 1)


def test_an_evaluation_samples_as_the_run_unless_asked_otherwise(place):
    model = answers.load(place / "run")
    plain = model.evaluate()
    assert (plain["temperature"], plain["samples"]) == (0, 1)  # of exact_match, which stands first
    assert model.evaluate(samples=2)["top_k"] == 1
    wide = model.evaluate(top_k=0)
    assert wide["top_k"] is None
    assert wide["temperature"] == 1
    assert wide["reward"] < 0.9
    assert model.evaluate(top_k=0, temperature=1e-3)["reward"] == 1
    assert model.evaluate(top_k=0, top_p=1e-300)["reward"] == 1
    assert model.evaluate(top_k=0, temperature=0)["reward"] == 1


def test_samples_of_a_prompt_are_different_and_their_mean_is_taken(place, monkeypatch):
    seen = []
    score = answers.load_function(f"{place / 'rewards.py'}:likely")
    monkeypatch.setattr(answers, "load_function", lambda _: lambda *a, **k: seen.append(score(*a, **k)) or seen[-1])
    model = answers.load(place / "run")
    found = model.evaluate(4, samples=5, top_k=0)
    assert len(seen[0]) == 4 * 5
    assert found["reward"] == pytest.approx(np.mean(seen[0]))
    assert found["samples"] == 5
    assert 0 < found["reward"] < 1  # five times the same would be 0 or 1 of each prompt
    assert model.evaluate(4, samples=5, top_k=0) == found  # the same random numbers each time


def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_one_that_passes(place, monkeypatch):
    seen = []
    score = answers.load_function(f"{place / 'rewards.py'}:likely")
    monkeypatch.setattr(answers, "load_function", lambda _: lambda *a, **k: seen.append(score(*a, **k)) or seen[-1])
    model = answers.load(place / "run")
    found = model.evaluate(6, samples=5, top_k=0, pass_at=(1, 3, 5), task=str(place / "prompts.jsonl"))
    rows = np.reshape(seen[0], (6, 5))
    for k in (1, 3, 5):
        chosen = [np.mean([max(some) for some in itertools.combinations(row, k)]) for row in rows]
        assert found[f"pass@{k}"] == pytest.approx(np.mean(chosen))
    assert found["pass@1"] == pytest.approx(found["reward"])
    assert found["pass@1"] < found["pass@5"]
    assert model.evaluate(6, pass_at=(2,), passing=0.0)["pass@2"] == 1
    assert model.evaluate(6, pass_at=(2,), top_k=0)["samples"] == 2
    with pytest.raises(ValueError, match="pass_at has 9; expected 1 to 5"):
        model.evaluate(6, samples=5, pass_at=(9,))


def test_another_task_is_evaluated_and_all_rows_of_another_file(place, capsys):
    model = answers.load(place / "run")
    assert model.evaluate(top_k=1)["prompts"] < 30
    assert model.evaluate(task=str(place / "prompts.jsonl"))["prompts"] == 100
    found = model.evaluate(3, task="lm/sort", digits=7)
    assert found["prompts"] == 3
    assert found["exact_match"] == 0
    flags = ["--task", "lm/reverse", "--pass-at", "1", "2", "--prompts", "2", "--json"]
    assert main(["eval", str(place / "run"), *flags]) == 0
    assert {"pass@1", "pass@2"} <= json.loads(capsys.readouterr().out).keys()
    with pytest.raises(ValueError, match="task is 'nowhere'"):
        model.evaluate(task="nowhere")


def test_a_run_shows_its_samples(place, capsys):
    assert main(["show", str(place / "run"), "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("step 1, score ") == 2
    assert said.count("→") == 2
    assert main(["show", str(place / "run"), "--json", "--rows", "99"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in SUMS}
    assert len(rows) == 8
    assert main(["show", str(place / "run"), "--step", "7"]) == 2
    assert "step is 7;" in capsys.readouterr().err


def test_the_command_passes_the_settings_on(place, capsys):
    assert main(["eval", str(place / "run"), "--json", "--samples", "2", "--temperature", "0.5", "--top-k", "7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("samples", "temperature", "top_k", "top_p")} == {
        "samples": 2,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": None,
    }
    assert main(["eval", str(place / "run"), "--top-p", "0.9"]) == 0
    assert "top_p        0.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-300}, "temperature is 1e-300"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 3, "temperature": 0.0}, "samples is 3; at temperature 0"),
        ({"prompts": -1}, "prompts is -1"),
    ],
)
def test_settings_that_mean_nothing_are_named(place, settings, names):
    with pytest.raises(ValueError, match=names):
        answers.load(place / "run").evaluate(**settings)


def test_completions_at_temperature_0_are_the_likeliest(place):
    model = answers.load(place / "run")
    greedy = model.complete(["1+1=", "2+3="])
    assert model.complete(["1+1=", "2+3="], temperature=0, rng=np.random.default_rng(0)) == greedy
    assert model.complete(["1+1=", "2+3="], temperature=0.0) == greedy
    assert model.complete([]) == []
    with pytest.raises(ValueError, match=r"prompts is the string '1\+1='"):
        model.complete("1+1=")
    with pytest.raises(ValueError, match="max_tokens is 0"):
        model.complete(["1+1="], max_tokens=0)
    with pytest.raises(ValueError, match="temperature is -1"):
        model.complete(["1+1="], temperature=-1, rng=np.random.default_rng(0))


def test_without_the_model_that_training_began_with_there_is_no_kl_but_all_else(place, capsys):
    away = place / "start-away"
    shutil.move(place / "start", away)
    try:
        assert main(["eval", str(place / "run"), "--json"]) == 0
    finally:
        shutil.move(away, place / "start")
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["kl_completion"] is found["kl"] is None
    assert found["exact_match"] == 0
    assert "kl_completion is not measured" in said.err
    assert "no such folder" in said.err


# Preference pairs


def test_every_held_out_pair_counts_once(tmp_path):
    texts = [f"{number}:" for number in range(60)]
    rows = [{"prompt": text, "chosen": "a", "rejected": "b"} for text in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = pairs_of(str(tmp_path / "pairs.jsonl"))
    held = [text for text in texts if is_held_out(text)]
    assert len(held) > 2
    assert [row["prompt"] for row in task.pairs(np.random.default_rng(0), 1000, held_out=True)] == held
    assert [row["prompt"] for row in task.pairs(np.random.default_rng(0), 2, held_out=True)] == held[:2]
    assert not {row["prompt"] for row in task.pairs(np.random.default_rng(0), 500)} & set(held)
