"""Conversations of several turns: what is read, what is learned, where rewards fall, and how they end.

Leaves out the formula of turns (`per_turn`, in the estimators' tests).
"""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch

from small_models import save, tokenizer_of
from telescope.algorithms import grpo, rlhf
from telescope.cli import main
from telescope.language.data.games import Guess, Hall, guess_row, random_player
from telescope.language.data.tasks import open_task
from telescope.language.experience import conversations
from telescope.language.experience.conversations import play, transcript
from telescope.language.models import causal as models
from telescope.language.models.tokenizer import EOS, characters
from telescope.objectives.advantages import critic_advantages
from telescope.objectives.rows import PPO
from telescope.runs import RunFolder
from telescope.runs.identity.trust import code_in

QUICK = {"prompts": 4, "group": 4, "minibatches": 2, "total_steps": 2, "eval_prompts": 4, "threads": 1, "eval_every": 1}
QUICK |= {"warm_start_steps": 2}


class Echo:
    """Says what it heard, in brackets; ends after the row's number of turns."""

    def reset(self, row):
        self.left = row["level"]
        return row["prompt"]

    def step(self, text):
        self.left -= 1
        return f"[{text[:3]}]", float(len(text)), self.left == 0


@pytest.fixture(scope="module")
def policy():
    return models.tiny(3).eval()


ENDS = [EOS, *range(10, 40)]
"""Many tokens that end a turn, so that turns are short."""
ROWS = [{"prompt": "a:", "level": 1}, {"prompt": "long one:", "level": 3}, {"prompt": "b:", "level": 9}]


def talk(policy, *, turns=4, max_tokens=20, group=2, seed=0, make=Echo, rows=ROWS, **more):
    hall = Hall(make, characters(), "tiny", ENDS)
    uniforms = torch.from_numpy(np.random.default_rng(seed).random((len(rows) * group, max_tokens), dtype=np.float32))
    settings = {"ends": ENDS, "turns": turns, "max_tokens": max_tokens, "uniforms": uniforms, "temperature": 4.0}
    return hall, *play(policy, hall, rows, group=group, **settings | more)


def test_a_conversation_is_prompt_turns_and_answers_in_this_order(policy):
    _, prompts, found = talk(policy, max_tokens=40)
    tokenizer = characters()
    assert found.present.cumprod(1).bool().equal(found.present), "no gaps"
    for i, text in enumerate(transcript(tokenizer, found)):
        tokens = found.tokens[i][found.present[i]].tolist()
        own = found.mask[i][found.present[i]].tolist()
        turns, read = [[]], []
        for token, mine in zip(tokens, own, strict=True):
            if mine:
                turns[-1].append(token)
                if token in ENDS:
                    turns.append([])
            else:
                read.append(token)
        said = ["".join(tokenizer.decode([t]) for t in turn[:-1]) for turn in turns if turn and turn[-1] in ENDS]
        answers = "".join(f"[{one[:3]}]" for one in said)
        assert answers.startswith(tokenizer.decode(read)), (text, said)
        rewards = found.rewards[i][found.turn_ends[i]].tolist()
        assert rewards == [float(len(one)) for one in said]
        assert found.rewards[i].sum() == sum(rewards)
        assert bool(found.terminated[i]) == (len(said) == ROWS[i // 2]["level"])
    assert len(prompts.tokens) == 3
    assert found.turn_ends.sum(1).max() > 1, "some have several turns"
    assert not found.mask[found.turn_ends].logical_not().any()


def test_log_probs_and_caches_over_turns_are_those_of_the_whole_text(policy):
    """A cache with gaps, and silent conversations beside long ones, change nothing."""
    from telescope.language.log_probs import token_log_probs
    from telescope.language.models.states import completion_states, output_of, trunk_of

    _, prompts, found = talk(policy, max_tokens=40)
    states = completion_states(trunk_of(policy), prompts, (found.tokens, found.present), group=2)
    again = token_log_probs(states, output_of(policy), found.tokens, mask=found.mask, temperature=4.0)
    torch.testing.assert_close(again.log_probs, found.log_probs, rtol=0, atol=2e-5)
    torch.testing.assert_close(again.entropy, found.entropy, rtol=0, atol=2e-4)


def test_a_conversation_does_not_depend_on_its_company(policy):
    _, _, whole = talk(policy, max_tokens=30)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((6, 30), dtype=np.float32))
    for row in range(3):
        mine = {"uniforms": uniforms[2 * row : 2 * row + 2], "max_tokens": 30, "rows": ROWS[row : row + 1]}
        _, _, alone = talk(policy, **mine)
        for i in (0, 1):
            live = whole.present[2 * row + i]
            assert whole.tokens[2 * row + i][live].tolist() == alone.tokens[i][alone.present[i]].tolist()


@pytest.mark.parametrize("top", [{"top_k": 5}, {"top_p": 0.3}, {"top_k": 30, "top_p": 0.8}])
def test_turns_are_drawn_from_the_likeliest_tokens(top, policy):
    """And their probabilities are over these tokens, as the update computes them again."""
    from telescope.language.log_probs import token_log_probs
    from telescope.language.models.states import completion_states, output_of, trunk_of

    _, prompts, found = talk(policy, max_tokens=40, **top)
    own = found.mask
    assert found.support is not None
    assert (found.support == found.tokens[..., None]).any(-1)[own].all()
    assert (found.support[~own] == -1).all()
    if "top_k" in top:
        assert found.support.shape[-1] <= top["top_k"]
    states = completion_states(trunk_of(policy), prompts, (found.tokens, found.present), group=2)
    settings = {"mask": own, "temperature": 4.0, "support": found.support}
    again = token_log_probs(states, output_of(policy), found.tokens, **settings)
    torch.testing.assert_close(again.log_probs, found.log_probs, rtol=0, atol=2e-5)
    assert not found.tokens.equal(talk(policy, max_tokens=40)[2].tokens)


def test_equal_conversations_share_their_way_through_the_model(policy, monkeypatch):
    """Also those of equal prompts, and as long as they are equal: the texts are those of conversations alone."""
    seen, step = [], conversations.stepped

    def watched(model, tokens, *rest):
        seen.append(len(tokens))
        return step(model, tokens, *rest)

    monkeypatch.setattr(conversations, "stepped", watched)
    rows = [{"prompt": "a:", "level": 3}] * 3
    _, _, found = talk(policy, rows=rows, max_tokens=30)
    assert seen[0] == 1
    assert max(seen[1:]) > 1
    uniforms = torch.from_numpy(np.random.default_rng(0).random((6, 30), dtype=np.float32))
    for i in range(6):
        _, _, alone = talk(policy, rows=rows[:1], group=1, uniforms=uniforms[i : i + 1], max_tokens=30)
        assert found.tokens[i][found.present[i]].tolist() == alone.tokens[0][alone.present[0]].tolist()
    seen.clear()
    _, _, found = talk(policy, rows=rows, uniforms=uniforms[:1].expand(6, -1), max_tokens=30)
    assert set(seen) == {1}, "of equal random numbers too"
    assert (found.tokens == found.tokens[:1]).all()


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_fewer_conversations_at_a_time_are_the_same(at_once, policy):
    _, _, whole = talk(policy, max_tokens=30)
    _, _, found = talk(policy, max_tokens=30, at_once=at_once)
    for name in ("tokens", "mask", "read", "turn_ends", "rewards", "terminated"):
        assert getattr(whole, name).equal(getattr(found, name)), name
    torch.testing.assert_close(whole.log_probs, found.log_probs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("turns", "max_tokens"), [(1, 30), (2, 30), (4, 5), (4, 1)])
def test_turns_and_tokens_cut_a_conversation(turns, max_tokens, policy):
    _, _, found = talk(policy, turns=turns, max_tokens=max_tokens)
    assert found.mask.sum(1).max() <= max_tokens
    assert found.turn_ends.sum(1).max() <= turns
    assert found.turn_ends.equal(found.mask & torch.isin(found.tokens, torch.tensor(ENDS))), "a cut turn is no turn"
    assert found.mask[torch.arange(6), found.present.sum(1) - 1].all(), "nothing is read after the last turn"
    endless = torch.tensor([row["level"] > turns for row in ROWS for _ in range(2)])
    assert not found.terminated[endless].any()


def test_greedy_conversations_take_the_likeliest_tokens(policy):
    _, prompts, found = talk(policy, uniforms=None, group=1, max_tokens=6)
    out = policy.generate(prompts.tokens, attention_mask=prompts.mask.long(), max_new_tokens=1, do_sample=False)
    assert out[:, -1].tolist() == found.tokens[:, 0].tolist()


def test_an_environment_that_fails_is_told(policy):
    class Broken(Echo):
        def step(self, text):
            raise KeyError("level")

    class Odd(Echo):
        def step(self, text):
            return "", math.nan, False

    class Fickle(Echo):
        count = 0

        def reset(self, row):
            Fickle.count += 1
            return str(Fickle.count)

    for make, said in ((Broken, "step of the environment raised KeyError"), (Odd, "gave the reward nan")):
        with pytest.raises(ValueError, match=said):
            talk(policy, make=make, max_tokens=40)
    with pytest.raises(ValueError, match="reset of the environment gave two prompts for one row"):
        talk(policy, make=Fickle)


# Chat templates


@pytest.mark.parametrize("kind", ["qwen3", "thinking", "llama"])
def test_messages_between_turns_are_what_the_template_writes(kind):
    """Without tokenising again what was sampled, and with one end token."""
    tokenizer = tokenizer_of(kind)
    hall = Hall(Echo, tokenizer, kind, [tokenizer.eos_token_id])
    asked, reply = [{"role": "user", "content": "hi"}], [{"role": "tool", "content": "higher"}]
    content = "7"
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    talk_ = [*asked, {"role": "assistant", "content": content}, *reply]
    whole = tokenizer.apply_chat_template(talk_, add_generation_prompt=True, tokenize=False)
    ids = hall.following({}, reply, True)
    text = tokenizer.decode(ids)
    if kind != "thinking":  # whose earlier turns are written without the thought that the prompt opened
        assert before + content + tokenizer.eos_token + text == whole
    assert whole.endswith(text)
    assert hall.following({}, reply, False) == [tokenizer.eos_token_id, *ids]


# Advantages


def test_a_turn_is_a_step_of_gae_and_what_is_read_is_none():
    """By hand: three own tokens in two turns with one read between them, γ = 1."""
    mask = torch.tensor([[True, True, False, True]])
    ends = torch.tensor([[False, True, False, True]])
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 2.0]]), torch.tensor([[0.5, 9.0, 9.0, 0.25]])
    row = dataclasses.replace(PPO, lam=0.5, gamma=1.0)
    found = critic_advantages(row, rewards, values, mask, terminated=torch.tensor([True]), turn_ends=ends)
    second = 2.0 - 0.25
    first = 1.0 + 0.25 - 0.5 + 0.5 * second
    torch.testing.assert_close(found.advantages, torch.tensor([[first, first, 0.0, second]]))
    torch.testing.assert_close(found.returns, torch.tensor([[0.5 + first, 0.5 + first, 0.0, 2.0]]))
    sampled = dataclasses.replace(row, returns_lam=1.0)
    found = critic_advantages(sampled, rewards, values, mask, terminated=torch.tensor([True]), turn_ends=ends)
    torch.testing.assert_close(found.returns, torch.tensor([[3.0, 3.0, 0.0, 2.0]]))


# lm/guess


def test_guess_says_higher_or_lower_and_halving_always_finds():
    for digits, turns in ((1, 4), (2, 7)):
        task = open_task("lm/guess", digits)
        assert task.turns == turns
        for row in task.held_out:
            game, low, high = Guess(), 0, row["most"]
            game.reset(row)
            for _ in range(turns):
                middle = (low + high) // 2
                said, reward, ended = game.step(f"{middle:0{digits}}")
                if ended:
                    break
                assert reward == -Guess.COST
                low, high = (middle + 1, high) if said == ">" else (low, middle - 1)
            assert ended
            assert reward == 1.0
    assert Guess().reset(guess_row(3, 9)) == "0-9:"
    game = Guess()
    game.reset(guess_row(3, 9))
    assert [game.step(text)[0] for text in ("", "12", "²", "x", "4")] == ["?", "?", "?", "?", "<"]


def test_the_best_score_of_guess_is_that_of_the_docs():
    """By dynamic programming over how many numbers are possible, as halving is not the only best way."""

    @functools.cache
    def best(numbers, turns):  # the sum over secrets
        if not (numbers and turns):
            return 0.0
        return 1 + max(
            sum(best(part, turns - 1) - Guess.COST * part for part in (below, numbers - 1 - below))
            for below in range(numbers)
        )

    assert best(10, 4) / 10 == pytest.approx(0.81)
    assert best(100, 7) / 100 == pytest.approx(0.52)
    secrets = [row["secret"] for row in open_task("lm/guess").held_out]
    assert sorted(set(secrets)) == list(range(10))
    assert {secrets.count(secret) for secret in range(10)} == {100}


def test_the_random_player_obeys_the_rules():
    found = random_player(guess_row(3, 9), np.random.default_rng(0), 4)
    game = Guess()
    game.reset(guess_row(3, 9))
    answers = [game.step(text)[0] for text, own in found.pieces if own]
    assert [text for text, own in found.pieces if not own] == answers[: len(found.pieces) // 2]


# Runs


@pytest.mark.parametrize("name", ["tokens", "turns", "grpo", "bootstrap", "kl", "top"])
def test_runs_learn_from_turns_and_resume_bit_for_bit(name):
    if name == "grpo":
        module, config = grpo, grpo.GRPO(task="lm/guess", **QUICK)
    else:
        more = {"turns": {"gae_over": "turns"}, "bootstrap": {"gae_over": "turns", "truncation": "bootstrap"}}
        more["kl"] = {"gae_over": "turns", "beta": 0.1}
        more["top"] = {"top_k": 20, "top_p": 0.9}
        module, config = rlhf, rlhf.RLHF(task="lm/guess", **QUICK, **{"beta": 0.0, **more.get(name, {})})
    found, state = [], None
    for step in module.train(config):
        found.append({k: v for k, v in step.rows[0].items() if not k.startswith("time_")})
        state = step.state if step.step == 1 else state
    assert found[-1]["turns"] >= 0
    assert found[-1]["reward"] is not None
    assert found[-1]["sampler_mismatch"] < 1e-4
    again = [step.rows[0] for step in module.train(config, resume=state)]
    assert [{k: v for k, v in row.items() if not k.startswith("time_")} for row in again] == found[2:]


@pytest.mark.parametrize("name", ["turns", "grpo"])
def test_the_update_does_not_depend_on_micro_batches(name):
    settings = {**QUICK, "task": "lm/guess", "total_steps": 1, "eval_every": 0, "minibatches": 1}
    config = grpo.GRPO(**settings) if name == "grpo" else rlhf.RLHF(gae_over="turns", beta=0.0, **settings)
    module, ends = (grpo if name == "grpo" else rlhf), []
    for size in (0, 3, 8):
        *_, last = module.train(dataclasses.replace(config, micro_batch=size))
        ends.append((last.rows[0]["gradient_norm"], last.rows[0]["policy_loss"]))
    for other in ends[1:]:
        assert other == pytest.approx(ends[0], rel=1e-4, abs=1e-6)


ENVIRONMENT = """
class Game:
    def reset(self, row):
        self.left = 2
        return [{"role": "user", "content": row["prompt"]}]
    def step(self, text):
        self.left -= 1
        return [{"role": "user", "content": "again"}], float(len(text) < 3), self.left == 0
"""


def test_an_environment_of_ones_own_with_a_chat_template(tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"prompt": f"p{i}"}) for i in range(30)))
    (tmp_path / "game.py").write_text(ENVIRONMENT)
    base = save("qwen3", tmp_path / "base")
    source = f"{tmp_path / 'game.py'}:Game"
    flags = [
        "--model",
        base,
        "--environment",
        source,
        "--turns",
        "3",
        "--max-tokens",
        "12",
        "--out",
        str(tmp_path / "r"),
    ]
    for key, value in (QUICK | {"group": 2, "total_steps": 1}).items():
        flags += [f"--{key.replace('_', '-')}", str(value)] if key != "warm_start_steps" else []
    assert main(["train", "grpo", str(tmp_path / "d.jsonl"), *flags]) == 0
    assert main(["train", "--resume", str(tmp_path / "r"), "--total-steps", "2"]) == 0
    assert any("environment" in clause for clause in code_in(RunFolder.open(tmp_path / "r").config_mapping()))
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "r"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["turns"] <= 3
    assert found["reward"] >= 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"task": "lm/sort", "turns": 3}, "turns is 3, but lm/sort is answered in one turn"),
        ({"task": "lm/guess", "overlong_cache": 3}, "overlong_cache is 3"),
        ({"task": "lm/guess", "reward": "exact_answer"}, "reward is 'exact_answer'"),
    ],
)
def test_what_nobody_would_read_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        grpo.GRPO(**settings).open_task()
    if "turns" in settings:
        with pytest.raises(ValueError, match="gae_over is 'turns', but lm/sort is answered"):
            rlhf.RLHF(task="lm/sort", gae_over="turns").open_task()
