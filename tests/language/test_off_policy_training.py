"""Weights for samples of a policy that is not quite the trainer's: nothing where they agree, else the right gradient.

Leaves out the formula of the weights (`test_objectives.py`).
"""

import copy
import dataclasses
import math

import pytest
import torch

from telescope.algorithms import grpo, rlhf
from telescope.language.experience.off_policy import corrected
from telescope.language.experience.rollout import RolloutSession
from telescope.language.experience.sampling import Completions
from telescope.language.models.tokenizer import VOCABULARY

MODULES = pytest.mark.parametrize("module", [grpo, rlhf])


def config_of(module, **settings):
    """A small run from random weights, rewarded for long completions."""
    shared = {"prompts": 8, "group": 4, "minibatches": 1, "total_steps": 1, "eval_prompts": 5, "threads": 1}
    given = {"warm_start": 0.0, "max_tokens": 6}
    return dataclasses.replace(module.preset("lm/reverse"), **shared | given | settings)


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "def length(prompts, completions, **columns):\n"
        "    return [float(len(text)) + i % 2 for i, text in enumerate(completions)]\n"
    )
    return f"{tmp_path / 'rewards.py'}:length"


def last(module, config):
    *_, iteration = module.train(config)
    return iteration


# Agreement


@MODULES
@pytest.mark.parametrize("off_policy", ["truncate", "mask"])
def test_where_sampler_and_trainer_agree_nothing_changes(module, reward, off_policy):
    config = config_of(module, reward=reward)
    plain, weighed = (last(module, dataclasses.replace(config, off_policy=how)) for how in ("none", off_policy))
    assert weighed.rows[0]["off_policy_weight"] == pytest.approx(1, abs=1e-5)
    assert weighed.rows[0]["off_policy_bounded"] == 0
    assert plain.rows[0]["off_policy_weight"] is None
    for one, two in zip(*(run.state["models"]["policy"].values() for run in (plain, weighed)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


# Disagreement, known


@pytest.fixture
def apart(monkeypatch):
    """A sampler that gives all of its tokens 1% less probability than the trainer does."""
    sample = RolloutSession.sample

    def perturbed(session, *arguments):
        found = sample(session, *arguments)
        return found._replace(log_probs=torch.where(found.mask, found.log_probs - 0.01, 0.0))

    monkeypatch.setattr(RolloutSession, "sample", perturbed)


@MODULES
@pytest.mark.parametrize(
    ("how", "cap", "weight", "bounded"),
    [
        ("truncate", 2.0, math.exp(0.01), 0),
        ("truncate", 1.005, 1.005, 1),
        ("mask", 1.02, math.exp(0.01), 0),
        ("mask", 1.005, 0.0, 1),
    ],
)
def test_a_known_difference_is_weighed_and_the_ratio_begins_at_one(module, reward, apart, how, cap, weight, bounded):
    found = last(module, config_of(module, reward=reward, off_policy=how, off_policy_cap=cap)).rows[0]
    assert found["off_policy_weight"] == pytest.approx(weight, abs=1e-5)
    assert found["off_policy_bounded"] == bounded
    assert found["sampler_mismatch"] == pytest.approx(0.01, abs=1e-5)
    assert found["ratio_max"] == pytest.approx(1, abs=1e-5)  # π/π_old; the sampler is in the weight
    plain = last(module, config_of(module, reward=reward)).rows[0]
    assert plain["ratio_max"] == pytest.approx(math.exp(0.01), abs=1e-5)


@MODULES
def test_the_report_takes_notice_of_the_weights(module, reward, apart):
    def names(**settings):
        return [one.name for one in last(module, config_of(module, reward=reward, **settings)).findings]

    assert "sampler_mismatch" in names()
    assert {"sampler_mismatch", "off_policy_bounded"}.isdisjoint(names(off_policy="truncate"))
    assert "off_policy_bounded" in names(off_policy="truncate", off_policy_cap=1.005)


# Disagreement, every completion there is


def every_completion(module, config):
    """A session, one rollout of all completions of one token by a perturbed sampler μ, log π, log μ and advantages."""
    session = RolloutSession(config, module.row(config), None, module.STATISTICS)
    critic = rlhf.Critic(session) if module is rlhf else None
    session.begin({"policy": session.policy}, None)
    sampler = copy.deepcopy(session.policy)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=rng)
    rollout = session.collect(1)
    tokens = rollout.prompts.tokens
    log_pi, log_mu = (model(input_ids=tokens).logits[0, -1].log_softmax(-1) for model in (session.policy, sampler))
    ones = torch.ones(VOCABULARY, 1)
    drawn = (torch.arange(VOCABULARY)[:, None], ones.bool(), log_mu.detach()[:, None], 0 * ones, ones[:, 0] > 0, None)
    advantages = torch.randn(VOCABULARY, generator=rng)
    rollout = rollout._replace(completions=Completions(*drawn))
    return session, critic, rollout, log_pi, log_mu.detach(), advantages


CAP = 1.1
TRUTH = {  # E_μ[w A ∇ log π] by the definition of w, over all tokens
    "truncate": lambda pi, mu: torch.minimum(pi, CAP * mu),
    "mask": lambda pi, mu: torch.where((pi <= CAP * mu) & (mu <= CAP * pi), pi, 0.0),
}


@MODULES
@pytest.mark.parametrize("how", [*TRUTH, "free"])
def test_the_gradient_is_that_of_the_enumeration(module, how, monkeypatch):
    """Each token counts with its probability under μ, as it would on average; without a bound it is the gradient of
    E_π[A], whatever has sampled."""
    settings = (
        {"off_policy": "truncate", "off_policy_cap": 1e9}
        if how == "free"
        else {"off_policy": how, "off_policy_cap": CAP}
    )
    config = config_of(module, prompts=1, group=VOCABULARY, max_tokens=1, epochs=1, task="lm/reverse", **settings)
    if module is rlhf:
        config = dataclasses.replace(config, value_model="own", beta=0.0)
    session, critic, rollout, log_pi, log_mu, advantages = every_completion(module, config)
    pi, mu = log_pi.exp(), log_mu.exp()
    assert ((pi > CAP * mu) | (mu > CAP * pi)).any()
    loss = -(pi * advantages).sum()
    if how != "free":
        weighed = TRUTH[how](pi.detach(), mu)
        assert 0 < (weighed != pi).sum() < VOCABULARY
        loss = -(weighed * advantages * log_pi).sum()
    wanted = torch.autograd.grad(loss, list(session.policy.parameters()))

    rollout, _ = corrected(session, rollout)
    each = (VOCABULARY * mu * advantages)[:, None]
    monkeypatch.setattr(session.optimiser, "step", lambda progress: 0.0)
    if module is grpo:
        grpo.update(session, rollout, each, torch.zeros(1).long(), first=True)
    else:
        values = torch.zeros_like(each)
        batch = rlhf.Batch(each, values, values, rollout.completions.mask, values)
        rlhf.update(session, critic, rollout, batch, torch.zeros(1).long())
    for parameter, gradient in zip(session.policy.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


def test_a_row_with_a_correction_of_its_own_keeps_it(reward, apart):
    config = config_of(grpo, reward=reward, objective="trl/grpo")
    assert grpo.row(config).correction.outside == "drop"
    assert last(grpo, config).rows[0]["off_policy_weight"] > 1.01
    truncated = dataclasses.replace(config, off_policy="truncate", off_policy_cap=3.0)
    assert grpo.row(truncated).correction.outside == "clamp"
    with pytest.raises(ValueError, match=r"off_policy_cap is 1\.0; expected more than 1"):
        dataclasses.replace(truncated, off_policy_cap=1)
