"""The table of objectives: golden numbers through the presets, laws of advantages, what a row refuses and says.

Golden numbers are what the formulas of the frameworks give, worked out in plain Python, six digits each. Leaves out the
laws of the loss, which are in tests/language/test_policy_loss.py.
"""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from telescope import group_relative, leave_one_out
from telescope.language.log_probs import token_log_probs
from telescope.losses import clipped_value_loss
from telescope.objectives.advantages import (
    critic_advantages,
    penalised_scores,
    sample_advantages,
    token_advantages,
    token_rewards,
    whitened,
)
from telescope.objectives.frameworks import AS_IN, REINFORCE_PP_BASELINE
from telescope.objectives.loss import (
    adaptive_kl,
    kl_penalty,
    off_policy_weights,
    policy_loss,
    token_weights,
)
from telescope.objectives.rows import (
    DAPO,
    DR_GRPO,
    GRPO,
    GSPO,
    GSPO_TOKEN,
    PPO,
    REINFORCE_PP,
    RLOO,
    ROWS,
    Correction,
    cautions,
    describe,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "language_golden.json").read_text())
PRESETS = [(framework, name) for framework, rows in AS_IN.items() for name in rows]


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, wanted):
    """To the six digits that are written down."""
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), numbers(wanted), rtol=0, atol=1e-6)


@pytest.fixture
def batch():
    names = ("new", "old", "mask", "advantages")
    new, old, mask, advantages = (numbers(GOLDEN["batch"][name]) for name in names)
    return new, old, mask.bool(), advantages


# Golden numbers


@pytest.mark.parametrize(
    ("objective", "case"),
    [
        (DR_GRPO, "centred"),
        (AS_IN["open_instruct"]["grpo"], "centred"),
        (AS_IN["trl"]["grpo"], "trl"),
        (AS_IN["verl"]["grpo"], "verl"),
        (AS_IN["slime"]["grpo"], "slime"),
        (AS_IN["openrlhf"]["grpo"], "openrlhf"),
        (AS_IN["areal"]["grpo"], "areal"),
        (replace(AS_IN["open_instruct"]["grpo"], scale="group"), "open_instruct, standard"),
        (replace(GRPO, unbiased=False), "population, 1e-4"),
        (AS_IN["trl"]["rloo"], "rloo"),
        (AS_IN["nemo"]["grpo"], "nemo"),
    ],
)
def test_group_advantages(objective, case):
    close(sample_advantages(objective, numbers([GOLDEN["scores"]]))[0], GOLDEN["advantages"][case])


@pytest.mark.parametrize("framework", ["verl", "openrlhf"])
def test_advantages_whitened_over_tokens(framework):
    objective, case = replace(AS_IN[framework]["reinforce++_baseline"], beta=0.0), GOLDEN["reinforce++_baseline"]
    mask = torch.arange(4) < torch.tensor(case["lengths"])[:, None]
    scores = sample_advantages(objective, numbers([GOLDEN["scores"]]))[0]
    found = token_advantages(objective, scores, mask)
    close(found, [[case[framework][i] * (t < length) for t in range(4)] for i, length in enumerate(case["lengths"])])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates(kind):
    case = GOLDEN["kl"]
    policy, reference = numbers([case["policy"]]), numbers([case["reference"]])
    close(kl_penalty(replace(GRPO, kl=kind), policy, reference, torch.tensor([True])), [case[kind]])


@pytest.mark.parametrize("framework", ["verl", "openrlhf", "trl"])
def test_rewards_and_advantages_of_tokens(framework):
    case = GOLDEN["gae"]
    objective = replace(AS_IN[framework]["ppo"], lam=case["lam"], beta=case["beta"])
    mask, values, kl = (numbers([case[name]]) for name in ("mask", "values", "kl"))
    rewards = token_rewards(objective, numbers([case["score"]]), mask.bool(), kl)
    credit = critic_advantages(objective, rewards, values, mask.bool(), terminated=torch.tensor([True]))
    close(credit.advantages, [case[framework]["advantages"]])
    close(credit.returns, [case[framework]["returns"]])
    close(whitened(objective, credit.advantages, mask.bool()), [case[framework]["whitened"]])


@pytest.mark.parametrize("framework", ["verl", "openrlhf"])
def test_advantages_over_two_turns(framework):
    case = GOLDEN["gae over two turns"]
    objective = replace(AS_IN[framework]["ppo"], lam=0.95, beta=0.0)
    mask, values = numbers([case["mask"]]).bool(), numbers([GOLDEN["gae"]["values"]])
    rewards = token_rewards(objective, numbers([1.0]), mask)
    found = critic_advantages(objective, rewards, values, mask, terminated=torch.tensor([True])).advantages
    close(found, [case[framework]])


@pytest.mark.parametrize(
    ("objective", "losses"),
    [(AS_IN["trl"]["grpo"], "losses"), (AS_IN["verl"]["grpo"], "losses, dual clip 3"), (PPO, "losses")],
)
def test_clipped_losses(objective, losses, batch):
    new, old, mask, advantages = batch
    found = policy_loss(objective, new, old, advantages[:, None].expand_as(new), mask)
    close(found.loss, GOLDEN["batch"][losses])
    close(found.ratio, GOLDEN["batch"]["ratios"])
    assert found.clipped.tolist() == [[True, False, False], [False, False, False]]  # up with A > 0; not up with A < 0


@pytest.mark.parametrize(
    ("objective", "max_tokens", "wanted"),
    [
        (AS_IN["trl"]["grpo"], None, "token_mean"),
        (AS_IN["paper"]["grpo"], None, "sequence_mean"),
        (replace(GRPO, weight="sequence_sum"), None, "sequence_sum"),
        (AS_IN["verl"]["dr_grpo"], 3, "constant 3"),
        (AS_IN["trl"]["dr_grpo"], 8, "constant 8"),
    ],
)
def test_aggregations(objective, max_tokens, wanted, batch):
    losses, mask = numbers(GOLDEN["batch"]["losses"]), batch[2]
    weights = token_weights(objective, mask, max_tokens=max_tokens, dtype=torch.float64)
    close((weights * losses).sum(), GOLDEN["aggregations"][wanted])


def total(objective, new, old, advantages, mask, **others):
    """The loss of a batch with one advantage per sequence."""
    loss = policy_loss(objective, new, old, advantages[:, None].expand_as(new), mask, **others).loss
    return (token_weights(objective, mask, max_tokens=mask.shape[1], dtype=torch.float64) * loss).sum()


@pytest.mark.parametrize(
    "objective", [GSPO, GSPO_TOKEN, AS_IN["trl"]["gspo"], AS_IN["verl"]["gspo"], AS_IN["openrlhf"]["gspo"]]
)
def test_gspo(objective, batch):
    case, (new, old, mask, advantages) = GOLDEN["gspo"], batch
    found = policy_loss(objective, new, old, advantages[:, None].expand_as(new), mask)
    close(found.ratio[:, 0], case["ratios"])
    close(found.loss[:, 0], case["sequence losses"])
    close(total(objective, new, old, advantages, mask), case["loss"])
    near = numbers(case["near"]).requires_grad_()
    close(policy_loss(objective, near, old, advantages[:, None].expand_as(near), mask).ratio[:, 0], case["near ratios"])
    loss = total(objective, near, old, advantages, mask)
    loss.backward()
    close(loss.detach(), case["near loss"])
    close(near.grad, [[case["near gradients"][0]] * 3, [case["near gradients"][1], 0, 0]])


def test_a_sequence_ratio_with_weights_by_tokens(batch):
    new, old, mask, advantages = batch
    close(total(AS_IN["areal"]["gspo"], new, old, advantages, mask), GOLDEN["gspo"]["loss, weighted by tokens"])


@pytest.mark.parametrize("framework", ["trl", "verl"])
def test_cispo(framework, batch):
    new, old, mask, advantages = batch
    close(total(AS_IN[framework]["cispo"], new, old, advantages, mask), GOLDEN["cispo"][framework])


@pytest.mark.parametrize(
    ("correction", "wanted"),
    [
        (Correction(high=float("inf")), "token"),
        (AS_IN["open_instruct"]["grpo"].correction, "token, at most 2"),
        (Correction(outside="drop", low=0.5, high=2.0), "token, dropped beyond 0.5 and 2"),
        (Correction("sequence", "sequence", high=float("inf")), "product"),
        (Correction("sequence", "sequence"), "product, at most 2"),
        (AS_IN["trl"]["grpo"].correction, "product, dropped beyond 3"),
        (Correction("geometric", "geometric"), "geometric"),
    ],
)
def test_off_policy_weights(correction, wanted):
    case = GOLDEN["sampler"]
    found = off_policy_weights(
        correction, numbers(case["old"]), numbers(case["sampler"]), torch.ones(3, dtype=torch.bool)
    )
    close(found, [case[wanted]] * 3 if isinstance(case[wanted], float) else case[wanted])


def test_one_level_can_judge_and_another_weigh():
    old, sampler, mask = numbers([[0.1, -0.1], [0.3, 0.3]]), numbers([[0.0, 0.0]] * 2), torch.ones(2, 2).bool()
    found = off_policy_weights(Correction("token", "geometric", "drop", 0.9, 1.1), old, sampler, mask)
    torch.testing.assert_close(found, torch.stack([old[0].exp(), torch.zeros(2).double()]))


def test_adaptive_coefficient():
    case = dict(GOLDEN["adaptive"])
    wanted = case.pop("next")
    assert adaptive_kl(case.pop("beta"), case.pop("kl"), **case) == pytest.approx(wanted, abs=1e-9)
    assert adaptive_kl(1.0, 0.9, target=1.0, samples=100) == pytest.approx(0.999)  # within the limits: in proportion
    assert adaptive_kl(1.0, 0.0, target=1.0, samples=100) == pytest.approx(0.998)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probability_and_entropy(temperature):
    case = GOLDEN["logits"]
    weight = numbers(case["z"])[:, None]
    found = token_log_probs(numbers([[1.0]]), weight, torch.tensor([case["token"]]), temperature=temperature)
    close(torch.cat(found), case[str(temperature)])


@pytest.mark.parametrize(("framework", "clip"), [("trl", "0.2"), ("verl", "0.5"), ("openrlhf", "0.5")])
def test_clipped_value(framework, clip):
    case = GOLDEN["value"]
    new, old, target = (numbers(case[name]) for name in ("new", "old", "return"))
    assert AS_IN[framework]["ppo"].value_clip == float(clip)
    close(clipped_value_loss(new, old, target, AS_IN[framework]["ppo"].value_clip), case[clip])


# Laws of advantages


def scores_of(seed, shape=(5, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_kin_of_sample_advantages():
    scores = scores_of(0)
    torch.testing.assert_close(sample_advantages(GRPO, scores), group_relative(scores, biased=False, eps=1e-4))
    torch.testing.assert_close(sample_advantages(RLOO, scores), leave_one_out(scores))
    torch.testing.assert_close(sample_advantages(DR_GRPO, scores), 5 / 6 * leave_one_out(scores))
    torch.testing.assert_close(sample_advantages(REINFORCE_PP, scores), scores)


def test_scaling_by_the_batch_is_one_number_for_all_groups():
    scores = scores_of(1)
    found = sample_advantages(replace(GRPO, scale="batch"), scores)
    centred = scores - scores.mean(1, keepdim=True)
    torch.testing.assert_close(found, centred / (scores.std() + 1e-4))


@pytest.mark.parametrize(("framework", "name"), PRESETS)
@pytest.mark.parametrize("how", ["NaN", "mask"])
def test_a_sample_without_a_score_is_as_if_it_were_not_there(framework, name, how):
    objective, scores = AS_IN[framework][name], scores_of(2)
    if objective.scale == "batch":
        return
    kept = [0, 2, 3, 5]
    wanted = sample_advantages(objective, scores[:, kept])
    if how == "NaN":
        scores[:, [1, 4]] = torch.nan
        found = sample_advantages(objective, scores)
    else:
        found = sample_advantages(objective, scores, ~torch.isin(torch.arange(6), torch.tensor([1, 4])).expand(5, 6))
    torch.testing.assert_close(found[:, kept], wanted)
    assert (found[:, [1, 4]] == 0).all()


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.baseline != "none"], ids=lambda row: row.name)
@pytest.mark.parametrize("scale", ["none", "group", "others", "batch"])
def test_groups_that_say_nothing_have_no_advantage(row, scale):
    nothing = torch.nan
    scores = torch.tensor([[0.1, 0.1, 0.1], [0.7, nothing, nothing], [nothing] * 3, [1.0, 0.0, 0.0]])
    found = sample_advantages(replace(row, scale=scale, eps=0.0), scores)
    assert (found[:3] == 0).all()
    assert (found[3] != 0).all()
    assert found.isfinite().all()


def test_a_sample_alone_in_its_group_keeps_its_score_where_the_preset_says_so():
    scores = torch.tensor([[0.7], [torch.nan]])
    assert sample_advantages(AS_IN["verl"]["grpo"], scores)[:, 0].tolist() == pytest.approx([0.7, 0.0])
    assert sample_advantages(AS_IN["trl"]["grpo"], scores).tolist() == [[0.0], [0.0]]


def test_others_that_agree_leave_the_centred_score_as_it_is():
    found = sample_advantages(AS_IN["nemo"]["grpo"], torch.tensor([[1.0, 0.1, 0.1, 0.1]]))
    assert found[0, 0].item() == pytest.approx(0.9)
    assert found[0, 1:].tolist() == pytest.approx([-0.3 / (0.9 / 3**0.5 + 1e-6)] * 3, rel=1e-5)


def test_scores_need_groups():
    with pytest.raises(ValueError, match=r"scores has shape \(3,\); expected \[prompts, completions per prompt\]"):
        sample_advantages(GRPO, torch.ones(3))


# Rewards and advantages of tokens

RAGGED = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()  # one has no token


def test_the_score_is_the_reward_of_the_last_live_token():
    kl = torch.where(RAGGED, scores_of(3, (4, 5)), torch.nan)
    scores = torch.tensor([1.0, 2.0, torch.nan, 4.0], dtype=torch.float64)
    found = token_rewards(replace(PPO, beta=0.3), scores, RAGGED, kl)
    wanted = torch.where(RAGGED, -0.3 * kl, 0.0)
    wanted[0, 2] += 1.0
    wanted[1, 4] += 2.0
    torch.testing.assert_close(found, wanted)


def test_the_score_behind_the_last_token_falls_back_to_it_where_there_is_no_room():
    objective = replace(AS_IN["trl"]["ppo"], beta=0.0)
    found = token_rewards(objective, torch.tensor([1.0, 2.0, 3.0, 4.0]), RAGGED)
    assert found.nonzero().tolist() == [[0, 3], [1, 4], [2, 4]]


def test_a_penalty_per_token_sums_to_that_of_the_score():
    kl = torch.where(RAGGED, scores_of(4, (4, 5)), torch.nan)
    scores = scores_of(5, (4,))
    found = penalised_scores(RLOO, scores, kl, RAGGED)
    torch.testing.assert_close(found[:3], token_rewards(replace(RLOO, credit="returns"), scores, RAGGED, kl).sum(1)[:3])
    assert penalised_scores(GRPO, scores, None, RAGGED) is scores
    assert penalised_scores(RLOO, scores, None, RAGGED, beta=0.0) is scores
    with pytest.raises(ValueError, match="kl is None"):
        penalised_scores(RLOO, scores, None, RAGGED)


def test_returns_are_the_rewards_still_to_come():
    objective = replace(REINFORCE_PP, whiten="none", gamma=0.9, beta=0.5)
    kl, scores = scores_of(6, (4, 5)), scores_of(7, (4,))
    found = token_advantages(objective, scores, RAGGED, kl)
    rewards = token_rewards(objective, scores, RAGGED, kl)
    for row, live, got in zip(rewards, RAGGED, found, strict=True):
        places = live.nonzero()[:, 0].tolist()
        for i, t in enumerate(places):
            wanted = sum(0.9**k * row[u].item() for k, u in enumerate(places[i:]))
            assert got[t].item() == pytest.approx(wanted, rel=1e-12)
        assert (got[~live] == 0).all()


def test_what_may_not_be_learned_from_is_left_out_of_the_whitening():
    objective = AS_IN["verl"]["reinforce++_baseline"]
    scores, usable = scores_of(8, (4,)), torch.tensor([True, False, True, True])
    found = token_advantages(objective, scores, RAGGED, usable=usable)
    torch.testing.assert_close(found[usable], token_advantages(objective, scores[usable], RAGGED[usable]))
    assert (found[1] == 0).all()
    live = found[RAGGED & usable[:, None]]
    assert live.mean().item() == pytest.approx(0, abs=1e-12)
    assert live.var().item() == pytest.approx(1, rel=1e-6)


def test_a_critic_has_its_own_function():
    with pytest.raises(ValueError, match="critic_advantages"):
        token_advantages(PPO, torch.ones(4), RAGGED, torch.zeros(4, 5))


def test_a_completion_that_was_cut_bootstraps():
    mask, values = torch.ones(2, 3).bool(), scores_of(9, (2, 3))
    objective = replace(PPO, lam=1.0, beta=0.0)
    rewards = token_rewards(objective, numbers([1.0, 1.0]), mask)
    found = critic_advantages(
        objective, rewards, values, mask, terminated=torch.tensor([True, False]), final_values=numbers([5.0, 5.0])
    )
    torch.testing.assert_close(found.returns, numbers([[1.0] * 3, [6.0] * 3]))


# Rows


def test_rows_differ_from_their_kin_where_their_names_say():
    assert replace(GRPO, name="dapo", clip=(0.2, 0.28), weight="token_mean") == DAPO
    assert replace(GSPO_TOKEN, name="gspo", ratio="sequence") == GSPO
    assert len(ROWS) == 10
    assert [row.name for row in ROWS.values() if row.critic] == ["ppo"]


@pytest.mark.parametrize(("framework", "name"), PRESETS)
def test_a_preset_is_called_what_it_is(framework, name):
    assert AS_IN[framework][name].name == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": (0.2, -0.1)}, "clip is"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5"),
        ({"credit": "gae", "ratio": "sequence"}, 'use ratio="sequence_token"'),
        ({"baseline": "none"}, 'scale is "group" but baseline is "none"'),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GRPO, **change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "token", "decision": "sequence"}, 'decision is "sequence" but weight is "token"'),
        ({"low": 2.0, "high": 1.0}, "low is 2.0 and high is 1.0"),
    ],
)
def test_a_correction_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Correction(**settings)


def test_a_row_in_words():
    assert describe(GSPO) == (
        "gspo\n"
        "  score     (r − mean of the group) / (std of the group, over n − 1, + 0.0001)\n"
        "  advantage of a token: its completion's score\n"
        "  loss      −min(ρ A, clip(ρ, 0.9997, 1.0004) A); ρ = (π/π_old of the sequence)^(1/length)\n"
        "  weight    1 / (sequences of the batch · tokens of its own)\n"
        "  reference none (β = 0)"
    )
    assert "+0.04 k3 in the loss" in describe(AS_IN["paper"]["grpo"])
    assert "0 where that of the sequence is not in [0, 3]" in describe(AS_IN["trl"]["grpo"])


def test_no_two_presets_of_a_framework_are_described_alike():
    for rows in AS_IN.values():
        texts = [describe(row).partition("\n")[2] for row in rows.values()]
        same = len(texts) - len(set(texts))
        assert same == 0, texts


@pytest.mark.parametrize(
    ("objective", "updates", "words"),
    [
        (GSPO, 4, []),
        (GSPO_TOKEN, 1, ["one update per rollout"]),
        (replace(GSPO, clip=(0.2, 0.2)), 1, ["nothing will be clipped", "one update per rollout"]),
        (AS_IN["areal"]["gspo"], 4, ["by its length"]),
        (GRPO, 1, []),
    ],
)
def test_cautions(objective, updates, words):
    found = cautions(objective, updates=updates)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


# The page


def table(heading):
    """The cells of the table whose header begins so, row by row."""
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    lines = page[page.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in [lines[0], *lines[2:]]]


def written(value):
    """A column's value as the page has it."""
    if isinstance(value, tuple):
        return ", ".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_page_has_every_row_as_it_is():
    (_, *columns, _), *rows = table("row")
    assert [name.strip("`") for name, *_ in rows] == list(ROWS)
    for name, *cells, paper in rows:
        assert cells == [written(getattr(ROWS[name.strip("`")], column.strip("`"))) for column in columns]
        assert paper


def test_the_page_has_every_preset_and_all_that_sets_it_apart():
    _, *rows = table("framework | preset")
    kin = ROWS | {REINFORCE_PP_BASELINE.name: REINFORCE_PP_BASELINE}
    assert [(framework, name.strip("`")) for framework, name, _ in rows] == PRESETS
    for framework, name, stated in rows:
        ours, theirs = kin[name.strip("`")], AS_IN[framework][name.strip("`")]
        different = [field.name for field in fields(ours) if getattr(ours, field.name) != getattr(theirs, field.name)]
        assert stated == ", ".join(f"`{name}={getattr(theirs, name)!r}`" for name in different)
