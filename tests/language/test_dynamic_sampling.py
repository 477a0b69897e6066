"""Dynamic sampling and the soft length limit of DAPO: what is learned from, what is counted, what is drawn again.

Leaves out how completions are sampled (`test_sampling.py`).
"""

import dataclasses

import pytest
import torch

from telescope.algorithms import grpo
from telescope.language.data.rewards import overlong
from telescope.language.data.tasks import is_held_out, open_task
from telescope.language.experience.dynamic import collect, joined
from telescope.language.experience.rollout import RolloutSession
from telescope.language.experience.statistics import ROLLOUT_STATISTICS, all_equal
from telescope.objectives.advantages import sample_advantages

REWARDS = """
def vowels(prompts, completions, **columns):
    return [float(any(letter in "aeiou" for letter in text)) for text in completions]
def constant(prompts, completions, **columns):
    return [0.5] * len(prompts)
"""


@pytest.fixture
def rewards(tmp_path):
    """A file of reward functions, by name. An untrained model's three tokens have a vowel about as often as not."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return lambda name: f"{tmp_path / 'rewards.py'}:{name}"


def config_of(reward, **settings):
    """A small run from random weights."""
    shared = {"prompts": 8, "group": 2, "minibatches": 2, "total_steps": 3, "eval_prompts": 5, "threads": 1}
    given = {"warm_start": 0.0, "reward": reward, "max_tokens": 6, "task": "lm/reverse"}
    return dataclasses.replace(grpo.preset("lm/reverse", "dapo"), **shared | given | settings)


def session_of(config):
    session = RolloutSession(config, grpo.row(config), None, grpo.STATISTICS)
    session.begin({"policy": session.policy}, None)
    return session


def rounds_of(session, monkeypatch):
    """Record how many prompts each round asks for."""
    asked, plain = [], session.collect

    def recorded(count=None, *, part=0):
        asked.append((count, part))
        return plain(count, part=part)

    monkeypatch.setattr(session, "collect", recorded)
    return asked


# Rounds


def test_groups_of_equal_scores_are_replaced_by_fresh_prompts(rewards, monkeypatch):
    session = session_of(config_of(rewards("vowels"), resample=20))
    first = session.collect()
    asked = rounds_of(session, monkeypatch)
    rollout, seen = collect(session, 20)
    assert not all_equal(rollout).any()
    assert (sample_advantages(session.objective, rollout.scores.view(-1, 2)).abs() > 0).all()
    assert len(rollout.prompts.tokens) == 8
    assert seen["rounds"] == len(asked) > 2
    assert asked[0] == (None, 0)
    missing = int(all_equal(first).sum())
    assert asked[1] == (missing, 1)
    assert [part for _, part in asked] == list(range(len(asked)))
    sampled = 8 + sum(count for count, _ in asked[1:])
    assert seen["kept"] == pytest.approx(8 / sampled)
    assert seen["equal_groups"] == pytest.approx(1 - 8 / sampled)  # statistics are of all that was sampled
    assert seen["filled"] == 1
    texts = [row["prompt"] for row in rollout.rows[::2]]
    assert not any(map(is_held_out, texts))
    kept = [first.rows[2 * i]["prompt"] for i in (~all_equal(first)).nonzero()[:, 0].tolist()]
    assert texts[: len(kept)] == kept  # in the order drawn
    assert len(set(texts)) > len(kept)


def test_a_round_draws_by_its_own_random_numbers(rewards):
    session = session_of(config_of(rewards("vowels")))
    one, again, other = session.collect(), session.collect(), session.collect(part=1)
    assert torch.equal(one.completions.tokens, again.completions.tokens)
    assert [row["prompt"] for row in one.rows] == [row["prompt"] for row in again.rows]
    assert [row["prompt"] for row in one.rows] != [row["prompt"] for row in other.rows]


def test_without_rounds_nothing_is_replaced(rewards):
    session = session_of(config_of(rewards("vowels"), resample=0))
    rollout, seen = collect(session, 0)
    assert torch.equal(rollout.completions.tokens, session.collect().completions.tokens)
    assert all_equal(rollout).any()
    assert seen.keys() == set(ROLLOUT_STATISTICS)


def test_where_the_rounds_are_used_up_the_step_goes_on_and_says_so(rewards):
    config = config_of(rewards("constant"), resample=2, total_steps=1)
    policies = []
    for iteration in grpo.train(config):
        policies.append(iteration.state["models"]["policy"])
    row = iteration.rows[0]
    assert (row["rounds"], row["kept"], row["skipped"]) == (3, 0.0, 1.0)
    assert [finding.name for finding in iteration.findings if finding.name != "truncated"] == ["resample"]
    assert "only 0% of the rollout's groups in 3 rounds" in " ".join(iteration.warnings)
    assert all(torch.equal(tensor, policies[1][name]) for name, tensor in policies[0].items())


@pytest.mark.parametrize("objective", ["dapo", "rloo"])
def test_groups_that_could_not_be_replaced_weigh_nothing(rewards, monkeypatch, objective):
    """The step is that of the groups with signal alone, also where a penalty would give the others an advantage."""
    gradients = []
    for resample in (1, 0):
        session = session_of(config_of(rewards("vowels"), resample=resample, objective=objective))
        with torch.no_grad():  # away from the reference
            for parameter in session.policy.parameters():
                parameter *= 1.1
        rollout, _ = collect(session, 0)
        useful = (~all_equal(rollout)).nonzero()[:, 0]
        assert 0 < len(useful) < 8
        prompts = torch.arange(8) if resample else useful
        monkeypatch.setattr(session.optimiser, "step", lambda progress: 0.0)
        grpo.update(session, rollout, grpo.advantages_of(session, rollout), prompts, first=True)
        gradients.append([parameter.grad for parameter in session.policy.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_draws_the_same_rounds(rewards):
    config = config_of(rewards("vowels"), resample=2)
    whole, state = [], None
    for iteration in grpo.train(config):
        whole.append({key: value for key, value in iteration.rows[0].items() if not key.startswith("time_")})
        state = iteration.state if iteration.step == 1 else state
    again = [
        {key: value for key, value in iteration.rows[0].items() if not key.startswith("time_")}
        for iteration in grpo.train(config, resume=state)
    ]
    assert again == whole[2:]
    assert max(row["rounds"] for row in again) > 1


@pytest.mark.parametrize("restricted", [{}, {"top_p": 0.5}, {"beta": 0.1}])
@pytest.mark.parametrize("wider", [0, 1])
def test_joined_rollouts_are_their_parts(rewards, restricted, wider):
    """Whatever their widths: log-probabilities of what was sampled come out as in each alone."""
    session = session_of(config_of(rewards("vowels"), task="lm/addition", **restricted))
    parts = []
    for part, count in enumerate((3, 5)):
        session.task = open_task("lm/addition", 2 if part == wider else 1)
        session.max_tokens = 6 if part == wider else 3
        if part == wider and "top_p" in restricted:
            session.config = dataclasses.replace(session.config, top_p=0.9)
        parts.append(session.collect(count, part=part))
    one, two = parts
    assert one.prompts.tokens.shape[1] != two.prompts.tokens.shape[1]
    if "top_p" in restricted:
        assert one.completions.support.shape[2] != two.completions.support.shape[2]
    both = joined(one, two)
    assert both.prompts.mask.sum(1).tolist() == [*one.prompts.mask.sum(1).tolist(), *two.prompts.mask.sum(1).tolist()]
    assert both.texts == one.texts + two.texts
    assert both.scores.tolist() == one.scores.tolist() + two.scores.tolist()
    assert both.completions.tokens.shape == (16, 6)
    with torch.no_grad():
        found = session.log_probs(session.states(both), both).log_probs
    torch.testing.assert_close(found, both.completions.log_probs, rtol=0, atol=2e-5)
    assert (both.reference is None) == ("beta" not in restricted)
    if both.reference is not None:
        torch.testing.assert_close(found, both.reference, rtol=0, atol=2e-5)


def test_the_preset_replaces_groups_and_the_row_alone_does_not():
    assert grpo.preset("lm/addition", "dapo").resample > 0
    assert grpo.preset("lm/addition", "grpo").resample == 0
    with pytest.raises(ValueError, match="resample is -1"):
        config_of("x", resample=-1)


# The soft length limit


def test_what_a_long_completion_loses():
    """Equation 13, case by case, with L_max 20 and L_cache 4."""

    def by_cases(length):
        if length <= 20 - 4:
            return 0.0
        return ((20 - 4) - length) / 4 if length <= 20 else -1.0

    lengths = torch.arange(1, 30)
    assert overlong(lengths, 20, 4).tolist() == [by_cases(length) for length in lengths.tolist()]


def test_long_completions_lose_score(rewards):
    session = session_of(config_of(rewards("constant"), overlong_cache=4))
    rollout = session.collect()
    lengths = rollout.completions.mask.sum(1)
    assert (rollout.scores == torch.tensor([0.5 - max(0, n - 2) / 4 for n in lengths.tolist()])).all()
    with pytest.raises(ValueError, match="overlong_cache is 7, but the length limit is 6"):
        config_of(rewards("constant"), overlong_cache=7).open_task()
