"""Several rewards: weights, a column of each, normalised apart (GDPO), asynchronous, in time; ready-made ones.

Leaves out by which names a single function is called (`test_reward_calls.py`).
"""

import asyncio
import csv
import dataclasses
import json
import math
import statistics
import threading

import pytest
import torch

from small_models import save, tokenizer_of
from telescope import rewards
from telescope.algorithms import grpo, rlhf
from telescope.cli import main
from telescope.language.data.inputs import inputs, resolved
from telescope.language.data.rewards import Scorer, columns_of, parsed, score, scores_by, weighted
from telescope.language.experience.preferences import load_reward_model
from telescope.objectives.advantages import apart_advantages, weighted_scores
from telescope.objectives.rows import GRPO, RLOO
from telescope.runs import RunFolder
from telescope.runs.identity.trust import code_in

NAN = math.nan
ROWS = [{"prompt": "p", "answer": "7"}, {"prompt": "q", "answer": "8"}]


# The formulas


def test_a_score_is_the_weighted_sum_of_those_that_there_are():
    each = torch.tensor([[1.0, NAN, NAN], [2.0, 4.0, NAN]])
    assert weighted_scores(each, torch.tensor([1.0, 0.5])).tolist()[:2] == [2.0, 2.0]
    assert weighted_scores(each, torch.tensor([1.0, 0.5])).isnan().tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"weights has shape \(3,\), but there are 2"):
        weighted_scores(each, torch.ones(3))


def gdpo(each, weights, eps=1e-4):
    """The definition, in plain Python: [R][P][G] → [P][G], by sample deviations."""
    total = [[0.0] * len(group) for group in each[0]]
    scored = [[False] * len(group) for group in each[0]]
    for reward, weight in zip(each, weights, strict=True):
        for p, group in enumerate(reward):
            known = [x for x in group if x == x]
            spread = statistics.stdev(known) if len(known) > 1 else 0.0
            for g, x in enumerate(group):
                if x == x:
                    scored[p][g] = True
                    total[p][g] += weight * (x - statistics.mean(known)) / (spread + eps)
    known = [x for xs, flags in zip(total, scored, strict=True) for x, flag in zip(xs, flags, strict=True) if flag]
    mean, spread = statistics.mean(known), statistics.stdev(known)
    return [
        [(x - mean) / (spread + eps) if flag else 0.0 for x, flag in zip(xs, flags, strict=True)]
        for xs, flags in zip(total, scored, strict=True)
    ]


def test_rewards_apart_are_gdpos_definition():
    generator = torch.Generator().manual_seed(0)
    each = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    each[0] *= 100
    each[1, 2] = 1.0  # a group that agrees
    each[2, 0, :2] = NAN
    each[:, 3, 1] = NAN  # nobody scored it
    weights = torch.tensor([1.0, 0.3, -0.5], dtype=torch.float64)
    expected = torch.tensor(gdpo(each.tolist(), weights.tolist()), dtype=torch.float64)
    torch.testing.assert_close(apart_advantages(GRPO, each, weights), expected)


def test_rewards_apart_do_not_drown_and_do_not_cancel():
    """In the sum the second reward is a thousandth; and two that add up to a constant have no signal."""
    each = torch.tensor([[[0.0, 1000.0, 0.0, 1000.0]], [[0.0, 1.0, 1.0, 0.0]]])
    found = apart_advantages(GRPO, each, torch.ones(2))[0]
    assert found[1] > 1
    assert found[0] < -1
    assert found[2:].abs().max() < 1e-3
    opposite = torch.stack([each[1], 1 - each[1]])
    assert weighted_scores(opposite, torch.ones(2)).unique().tolist() == [1.0]
    assert apart_advantages(GRPO, opposite, torch.tensor([1.0, 0.5])).abs().min() > 0.5


# Ready-made ones


@pytest.mark.parametrize(
    ("function", "completions", "expected"),
    [
        (rewards.exact_answer, ["7", " 8\n"], [1, 1]),
        (rewards.exact_answer, ["<think>8</think>\n\n7", "7"], [1, 0]),
        (rewards.exact_answer, [[{"role": "assistant", "content": "</think>7"}], [{"content": "8"}]], [1, 1]),
        (rewards.number_in_text, ["it is 7.", "1 + 7 = 8.00"], [1, 1]),
        (rewards.number_in_text, ["7 or 9", "none"], [0, 0]),
        (rewards.number_in_text, ["$7", "-8"], [1, 0]),
        (rewards.matches(r"<think>.*</think>.*"), ["<think>\na\n</think>b", " <think></think>"], [1, 0]),
        (rewards.length_window(2, 4), ["abc", "abcde"], [1, 0.5]),
        (rewards.length_window(2, 4), ["", "abcdefgh"], [0, 0]),
        (rewards.repetition(2), ["a b c d", "a b a b"], [0, -1 / 3]),
        (rewards.repetition(2), ["", "a"], [0, 0]),
    ],
)
def test_what_a_ready_made_reward_says(function, completions, expected):
    found = function(completions=completions, answer=["7", "8"])
    assert found == pytest.approx(expected)
    assert score(function, ROWS, ["a", "b"], name="f").shape == (2,)


def test_a_number_with_commas_is_one_and_an_answer_without_is_not_scored():
    assert rewards.number_in_text(["1,200 of 3", "so 1200.0"], ["x", "1,200"]) == [None, 1.0]


@pytest.mark.parametrize(
    "source", ["length_window:4", "length_window:5,2", "matches:(", "repetition:0", "repetition:a"]
)
def test_a_ready_made_reward_that_cannot_be_made_is_refused(source):
    with pytest.raises(ValueError, match="cannot be made from"):
        rewards.named(source)


# Names and weights


def test_sources_have_weights_columns_and_code(tmp_path):
    (tmp_path / "r@2").mkdir()
    assert parsed("a.py:f@0.3") == ("a.py:f", 0.3)
    assert parsed("matches:a@b") == ("matches:a@b", 1.0)
    assert parsed(r"matches:\d+@-2e-1") == (r"matches:\d+", -0.2)
    assert parsed(str(tmp_path / "r@2")) == (str(tmp_path / "r@2"), 1.0)
    assert parsed(weighted(len, 0.5))[1] == 0.5
    sources = ["a.py:f@0.3", "b.py:f", "matches:^x:y", str(tmp_path / "r@2"), len, weighted(rewards.exact_answer, 2)]
    names = ["reward_f", "reward_f_2", "reward_matches", "reward_r_2", "reward_len", "reward_exact_answer"]
    assert columns_of(sources) == names
    assert [clause.split(" ")[-1] for clause in code_in({"reward": sources[:4]})] == ["a.py", "b.py"]


def test_paths_are_whole_and_known_by_their_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("def f(completions): return [0.0] * len(completions)\n")
    (tmp_path / "rm").mkdir()
    config = grpo.GRPO(reward=("a.py:f@0.5", "matches:a:b", "rm@2"))
    whole = resolved(config).reward
    assert whole == (f"{tmp_path / 'a.py'}:f@0.5", "matches:a:b", f"{tmp_path / 'rm'}@2")
    before = inputs(config)["reward"]
    (tmp_path / "rm" / "config.json").write_text("{}")
    assert inputs(config)["reward"] != before
    assert "reward" not in inputs(grpo.GRPO(reward="exact_answer"))
    assert grpo.GRPO(reward=("a.py:f",)).reward == "a.py:f"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"normalise_each": True}, "normalise_each is True, but there is at most one reward"),
        ({"normalise_each": True, "reward": ("a", "b"), "objective": "rloo"}, "normalise_each is set, but rloo"),
        ({"reward": ("a.py:f", 3)}, r"reward is \('a.py:f', 3\)|reward\[1\] is 3"),
        ({"reward_seconds": 0.0}, "reward_seconds is 0.0"),
    ],
)
def test_what_cannot_be_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        grpo.GRPO(**settings)


def test_rloo_keeps_its_own_baseline_apart():
    each = torch.tensor([[[0.0, 1.0, 2.0]], [[1.0, 1.0, 4.0]]])
    row = dataclasses.replace(RLOO, kl_place="loss", beta=0.0)
    plain = torch.tensor([-1.5 - 1.5, 0.0 - 1.5, 1.5 + 3.0])
    expected = (plain - plain.mean()) / (plain.std() + row.eps)
    torch.testing.assert_close(apart_advantages(row, each, torch.ones(2))[0], expected)


# Calls


def test_asynchronous_functions_run_at_the_same_time():
    """Each waits for the other."""
    events = {}

    async def one(completions):
        events["loop"] = asyncio.get_running_loop()
        events.setdefault("one", asyncio.Event()).set()
        await events.setdefault("two", asyncio.Event()).wait()
        return [1.0] * len(completions)

    async def two(completions):
        events.setdefault("two", asyncio.Event()).set()
        await events.setdefault("one", asyncio.Event()).wait()
        return [2.0] * len(completions)

    scorers = [Scorer(one, "one"), Scorer(lambda completions: [3.0] * len(completions), "plain"), Scorer(two, "two")]
    assert scores_by(scorers, ROWS, ["a", "b"], seconds=60).tolist() == [[1, 1], [3, 3], [2, 2]]

    async def inside():  # as in a notebook, whose thread has a running loop
        return scores_by([scorers[1]], ROWS, ["a", "b"]).tolist()

    assert asyncio.run(inside()) == [[3, 3]]


def test_a_function_that_takes_too_long_is_told():
    wait = threading.Event()

    def slow(completions):
        wait.wait(60)
        return [0.0] * len(completions)

    async def slower(completions):
        await asyncio.sleep(60)

    for function in (slow, slower):
        with pytest.raises(ValueError, match=r"the reward function f took longer than reward_seconds, 0.05 s"):
            score(function, ROWS, ["a", "b"], name="f", seconds=0.05)
    wait.set()
    assert score(slow, ROWS, ["a", "b"], name="f", seconds=60).tolist() == [0, 0]


def test_what_an_asynchronous_function_raises_is_told_with_its_line():
    async def broken(completions):
        raise KeyError("level")

    def broken_too(completions):
        raise KeyError("level")

    for function, seconds in ((broken, None), (broken, 5), (broken_too, 5)):
        line = function.__code__.co_firstlineno + 1
        said = rf"the reward function f raised KeyError: 'level' \(line {line} of .*test_several_rewards.py\)"
        with pytest.raises(ValueError, match=said):
            score(function, ROWS, ["a", "b"], name="f", seconds=seconds)


# Runs


FILE = """
async def vowels(completions, level, **columns):
    return [None if not text else sum(c in "aeiou" for c in text) / len(text) for text in completions]
def short(completions):
    return [-float(len(text)) for text in completions]
"""
QUICK = {"prompts": 4, "group": 4, "minibatches": 2, "total_steps": 3, "eval_prompts": 4, "threads": 1, "eval_every": 1}
QUICK |= {"warm_start": 0.0, "max_tokens": 4}


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": f"say {i}:", "level": i} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def plain(row):
    return {name: value for name, value in row.items() if not name.startswith("time_")}


@pytest.mark.parametrize("name", ["grpo", "apart", "ppo"])
def test_a_run_with_several_rewards_has_a_column_of_each_and_resumes_bit_for_bit(name, files):
    sources = (f"{files / 'mine.py'}:vowels", f"{files / 'mine.py'}:short@0.1", "matches:[a-z]*@0.5")
    settings = {"task": str(files / "data.jsonl"), "reward": sources, "overlong_cache": 2, **QUICK}
    module = rlhf if name == "ppo" else grpo
    more = {"apart": {"normalise_each": True, "resample": 1}}.get(name, {})
    config = (rlhf.RLHF if name == "ppo" else grpo.GRPO)(**settings, **more)
    found, state = [], None
    for step in module.train(config):
        found.append(plain(step.rows[0]))
        state = step.state if step.step == 1 else state
    row = found[-1]
    assert all(row[column] is not None for column in ("reward_vowels", "reward_short", "reward_matches", "reward"))
    assert -4 <= row["reward_short"] <= 0
    assert [plain(step.rows[0]) for step in module.train(config, resume=state)] == found[2:]


@pytest.mark.parametrize("each", [False, True])
def test_the_update_does_not_depend_on_micro_batches(each, files):
    sources = (f"{files / 'mine.py'}:vowels", f"{files / 'mine.py'}:short@0.1")
    settings = {"task": str(files / "data.jsonl"), "reward": sources, "normalise_each": each, **QUICK}
    config = grpo.GRPO(**{**settings, "total_steps": 1, "eval_every": 0, "minibatches": 1})
    ends = []
    for size in (0, 3, 4, 16):
        *_, last = grpo.train(dataclasses.replace(config, micro_batch=size))
        ends.append((last.rows[0]["gradient_norm"], last.rows[0]["policy_loss"]))
    assert ends[0][0] > 0
    for other in ends[1:]:
        assert other == pytest.approx(ends[0], rel=1e-4, abs=1e-6)


def test_the_command_line_takes_several_and_evaluates_their_sum(files, capsys):
    one, two = f"{files / 'mine.py'}:vowels", f"{files / 'mine.py'}:short@0.1"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (QUICK | {"total_steps": 1}).items()]
    run = files / "run"
    data = str(files / "data.jsonl")
    assert main(["train", "grpo", data, "--model", "tiny", "--reward", one, two, "--out", str(run), *flags]) == 0
    with (run / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["reward_vowels"]) >= 0
    with (run / "samples.csv").open() as file:
        sample = next(csv.DictReader(file))
    if sample["completion"]:
        parts = [float(sample["reward_vowels"]), 0.1 * float(sample["reward_short"])]
        assert float(sample["score"]) == pytest.approx(sum(parts), abs=1e-6)
    assert RunFolder.open(run).config_mapping()["reward"] == [one, two]
    assert main(["train", "--resume", str(run), "--total-steps", "2"]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] < 1


# Reward models of transformers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder, tokenizer = tmp_path_factory.mktemp("classifier"), tokenizer_of("llama")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    about = LlamaConfig(
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5, **shape
    )
    LlamaForSequenceClassification(about).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_a_classifier_scores_as_transformers_does(classifier, at_once):
    from transformers import AutoModelForSequenceClassification

    network, tokenizer = AutoModelForSequenceClassification.from_pretrained(classifier), tokenizer_of("llama")
    model = load_reward_model(str(classifier), "cpu", at_once)

    def direct(ids):
        with torch.no_grad():
            return float(network(input_ids=torch.tensor([ids])).logits[0, 0])

    rows, texts = [{"prompt": "What is "}, {"prompt": "a"}, {"prompt": "1 + 2"}], ["1 + 2?", "b", ""]
    found = model.scores(rows, texts).tolist()
    plain = [direct(tokenizer(row["prompt"] + text)["input_ids"]) for row, text in zip(rows, texts, strict=True)]
    assert found == pytest.approx(plain, rel=1e-4)
    talks = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "What is 1 + 2?"}]]
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "3")]
    whole = [tokenizer.apply_chat_template([*p, *c], tokenize=False) for p, c in zip(talks, said, strict=True)]
    expected = [direct(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole]
    assert model.reward(talks, said) == pytest.approx(expected, rel=1e-4)


def test_a_classifier_is_a_reward_beside_a_function(classifier, tmp_path):
    talks = [{"prompt": [{"role": "user", "content": f"What is {i} + 1?"}], "answer": str(i + 1)} for i in range(30)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, talks)))
    base = save("qwen3", tmp_path / "base")
    config = grpo.GRPO(task=str(tmp_path / "d.jsonl"), model=base, reward=(str(classifier), "exact_answer@2"), **QUICK)
    *_, last = grpo.train(config)
    column = columns_of([str(classifier)])[0]
    assert last.rows[0][column] is not None
    assert last.rows[0]["reward_exact_answer"] == 0
    assert last.rows[0]["score"] == pytest.approx(last.rows[0][column], rel=1e-4)


def test_a_classifier_of_several_labels_is_refused(classifier, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path)
    tokenizer_of("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a classifier with 3 labels"):
        load_reward_model(str(tmp_path), "cpu")
