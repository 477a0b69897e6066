"""What goes through the model at a time is what was asked for, and changes nothing; an adapter is all that learns.

Leaves out how a loss is weighed (`test_policy_loss.py`).
"""

import dataclasses

import pytest
import torch

from telescope.algorithms import grpo, reward_model, rlhf
from telescope.language.config import LIGHTER
from telescope.language.experience import sampling
from telescope.language.experience.rollout import RolloutSession
from telescope.language.experience.sampling import encode, sample
from telescope.language.models import causal as models
from telescope.language.models.tokenizer import EOS, characters
from telescope.objectives.rows import READ_WHERE, ROWS

SMALL = {"total_steps": 1, "eval_every": 0, "eval_prompts": 4, "threads": 1}
ROLLOUTS = SMALL | {"prompts": 3, "group": 5, "minibatches": 1, "warm_start": 0.0, "max_tokens": 4}
ROLLOUTS["reward"] = lambda completions: [float(sum(map(ord, text)) % 7) for text in completions]
CONFIGS = {
    "grpo": (grpo, grpo.GRPO(task="lm/reverse", beta=0.1, **ROLLOUTS)),
    "ppo": (rlhf, rlhf.RLHF(task="lm/reverse", truncation="bootstrap", **ROLLOUTS)),
}


@pytest.fixture
def at_a_time(monkeypatch):
    """How many completions were learned from, and sampled, at a time."""
    seen = {"learned": [], "sampled": []}
    states, step = RolloutSession.states, sampling.stepped

    def watched_states(self, rollout, policy=None):
        seen["learned"].append(len(rollout.completions.tokens))
        return states(self, rollout, policy)

    def watched_step(model, tokens, *rest):
        seen["sampled"].append(len(tokens))
        return step(model, tokens, *rest)

    monkeypatch.setattr(RolloutSession, "states", watched_states)
    monkeypatch.setattr(sampling, "stepped", watched_step)
    return seen


@pytest.mark.parametrize("micro", [2, 10])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_micro_batch_is_as_large_as_asked_for_and_changes_nothing_but_rounding(name, micro, at_a_time):
    """One smaller than a group was a whole group, silently, and the run out of memory all the same."""
    module, config = CONFIGS[name]
    whole = list(module.train(config))[-1]
    for sizes in at_a_time.values():
        sizes.clear()
    cut = list(module.train(dataclasses.replace(config, micro_batch=micro)))[-1]
    assert max(at_a_time["learned"]) == micro
    assert max(at_a_time["sampled"]) <= LIGHTER * micro
    for kind, parameters in whole.state["models"].items():
        for key, parameter in parameters.items():
            torch.testing.assert_close(parameter, cut.state["models"][kind][key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("at_once", [1, 2, 4, 7])
@pytest.mark.parametrize("top_k", [None, 3])
def test_completions_are_the_same_however_many_are_drawn_at_a_time(at_once, top_k, at_a_time):
    model, prompts = models.tiny(1).eval(), encode(characters(), ["1+2=", "hello|", "x"])
    uniforms = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    settings = {"ends": [EOS], "max_tokens": 5, "uniforms": uniforms, "group": 3, "top_k": top_k}
    whole = sample(model, prompts, **settings)
    at_a_time["sampled"].clear()
    cut = sample(model, prompts, at_once=at_once, **settings)
    assert max(at_a_time["sampled"]) <= at_once
    assert torch.equal(whole.tokens, cut.tokens)
    assert torch.equal(whole.mask, cut.mask)
    torch.testing.assert_close(whole.log_probs, cut.log_probs)


def test_a_reward_model_of_an_adapter_learns_the_adapter_and_its_head():
    """It trained all weights, without a word."""
    config = reward_model.RewardModelling(batch_size=4, lora_rank=2, **SMALL)
    *_, last = list(reward_model.train(config))
    names = last.state["models"]["reward_model"].keys()
    assert all("lora" in name or name.startswith("head") for name in names)
    assert any("lora" in name for name in names)


def test_a_critic_of_its_own_learns_an_adapter_where_the_policy_does():
    """The whole trunk of a model that is too large to train was trained as its critic."""
    config = rlhf.RLHF(task="lm/reverse", lora_rank=2, **ROLLOUTS)
    *_, last = rlhf.train(config)
    names = last.state["models"]["value"].keys()
    assert all("lora" in name or name.startswith("head") for name in names)
    assert any("lora" in name for name in names)
    *_, last = rlhf.train(dataclasses.replace(config, lora_rank=0))
    assert not any("lora" in name for name in last.state["models"]["value"])


OTHER = {
    "clip": (0.1, 0.1),
    "ratio": "sequence_token",
    "log_ratio_bounds": (-1.0, 1.0),
    "dual_clip": 3.0,
    "ratio_cap": 2.0,
    "gamma": 0.5,
    "masked": "decayed",
    "score_at": "after",
    "lam": 0.5,
    "lam_rule": "end_corrected",
    "lam_alpha": 0.5,
    "lam_border": 0.5,
    "returns_lam": 0.5,
    "value_clip": None,
    "singleton": "score",
    "kl_gradient": "k2",
}


@pytest.mark.parametrize("column", OTHER)
def test_a_column_that_a_row_does_not_read_is_refused_by_name(column):
    """It was stated as if it acted: dual_clip of CISPO, log_ratio_bounds of REINFORCE."""
    assert OTHER.keys() == READ_WHERE.keys()
    refused = 0
    for row in ROWS.values():
        read, _ = READ_WHERE[column]
        if read(row):
            dataclasses.replace(row, **{column: OTHER[column]})
            continue
        refused += 1
        with pytest.raises(ValueError, match=f"{column} is .* which {row.name.replace('+', '[+]')} does not read"):
            dataclasses.replace(row, **{column: OTHER[column]})
    assert 0 < refused < len(ROWS)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        ("cispo", "dual_clip", 3.0),
        ("cispo", "ratio_cap", 2.0),
        ("reinforce", "log_ratio_bounds", (-1.0, 1.0)),
        ("rloo", "clip", (0.1, 0.1)),
        ("rloo", "kl_gradient", "k2"),
        ("grpo", "lam", 0.5),
        ("grpo", "gamma", 0.9),
    ],
)
def test_rows_read_what_their_formula_has(row, column, value):
    with pytest.raises(ValueError, match=f"{column} is"):
        dataclasses.replace(ROWS[row], **{column: value})
