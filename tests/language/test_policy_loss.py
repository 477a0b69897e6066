"""Laws of the language objectives' loss: reductions, finite differences, and what must have no influence.

Leaves out golden numbers, which are in tests/language/test_objectives.py.
"""

from dataclasses import replace

import pytest
import torch

from telescope.objectives.frameworks import AS_IN
from telescope.objectives.loss import (
    Counts,
    batch_counts,
    kl_penalty,
    mismatch,
    off_policy_weights,
    policy_loss,
    token_weights,
)
from telescope.objectives.rows import (
    CISPO,
    DAPO,
    DR_GRPO,
    GRPO,
    GSPO,
    GSPO_TOKEN,
    PPO,
    REINFORCE,
    ROWS,
    Correction,
)

LIMIT = 9  # tokens a completion may have; the padded width is another number
# All rows, with a KL in the loss where it belongs there, and the options that only presets use.
OBJECTIVES = [
    *(replace(row, beta=0.1) for row in ROWS.values()),
    replace(AS_IN["verl"]["grpo"], kl_gradient="k2", beta=0.1),
    replace(AS_IN["trl"]["rloo"], correction=AS_IN["trl"]["grpo"].correction),
    replace(GRPO, ratio_cap=1.5, kl_gradient="ratio", beta=0.1, correction=Correction("geometric", "geometric")),
    replace(AS_IN["nemo"]["grpo"], correction=Correction("token", "geometric", "drop", 0.9, 1.1)),
]
every_objective = pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=[f"{i}-{objective.name}" for i, objective in enumerate(OBJECTIVES)]
)


class Batch:
    """Completions with holes and padding, policies that differ from each other; NaN wherever the mask is False."""

    def __init__(self, seed=0, lengths=(5, 1, 7, 3, 0, 4), width=8, spread=0.3, fill=torch.nan):
        rng = torch.Generator().manual_seed(seed)
        shape = (len(lengths), width)
        self.mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        self.mask[2, 3:4] = False  # a tool's token

        def draw(scale, about=0.0):
            noise = torch.randn(shape, generator=rng, dtype=torch.float64)
            return torch.where(self.mask, about + scale * noise, fill)

        self.old = draw(0.5, -1.5)
        self.new, self.reference, self.sampler = (self.old + draw(scale) for scale in (spread, 0.2, 0.1))
        per_sequence = torch.randn(shape[0], 1, generator=rng, dtype=torch.float64)
        self.advantages = torch.where(self.mask, per_sequence.expand(shape), fill)

    NAMES = ("new", "old", "reference", "sampler", "advantages", "mask")

    def mapped(self, function):
        """The same batch, with every array put through a function."""
        batch = Batch.__new__(Batch)
        for name in self.NAMES:
            setattr(batch, name, function(getattr(self, name)))
        return batch


def loss_of(objective, batch, *, new=None, weights=None, owner=None):
    """What an optimiser step minimises, of the whole batch or a piece of it."""
    if weights is None:
        weights = token_weights(objective, batch.mask, max_tokens=LIMIT, owner=owner, dtype=torch.float64)
    correction = None
    if objective.correction is not None:
        correction = off_policy_weights(objective.correction, batch.old, batch.sampler, batch.mask, owner=owner)
    found = policy_loss(
        objective,
        batch.new if new is None else new,
        batch.old,
        batch.advantages,
        batch.mask,
        reference_log_probs=batch.reference,
        correction=correction,
        owner=owner,
    )
    return (weights * found.loss).sum()


def gradient_of(objective, batch, **others):
    new = batch.new.clone().requires_grad_()
    value = loss_of(objective, batch, new=new, **others)
    value.backward()
    return value.detach(), new.grad


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


# What must have no influence


@every_objective
def test_what_stands_in_masked_places_has_no_influence(objective):
    for fill in (torch.nan, torch.inf, 1e30):
        value, gradient = gradient_of(objective, Batch(fill=fill))
        wanted, slope = gradient_of(objective, Batch(fill=0.0))
        assert value.isfinite()
        same(value, wanted)
        same(gradient, slope)
    assert (gradient[~Batch().mask] == 0).all()
    assert (gradient[Batch().mask] != 0).any()


@every_objective
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_how_a_batch_is_cut_has_no_influence(objective, cut):
    batch = Batch()
    value, gradient = gradient_of(objective, batch)
    weights = token_weights(objective, batch.mask, max_tokens=LIMIT, dtype=torch.float64)
    pieces = []
    for rows in torch.arange(6).split(cut):
        pieces.append(gradient_of(objective, batch.mapped(lambda x, rows=rows: x[rows]), weights=weights[rows]))
    same(sum(piece for piece, _ in pieces), value)
    same(torch.cat([slope for _, slope in pieces]), gradient)


@every_objective
def test_pieces_on_other_ranks_need_only_the_counts(objective):
    batch = Batch()
    whole = token_weights(objective, batch.mask, max_tokens=LIMIT, dtype=torch.float64)
    halves = batch.mask[:2], batch.mask[2:]
    counts = Counts(*(sum(pair) for pair in zip(*map(batch_counts, halves), strict=True)))
    assert [int(count) for count in counts] == [19, 5]
    for half, wanted in zip(halves, whole.split([2, 4]), strict=True):
        same(token_weights(objective, half, max_tokens=LIMIT, counts=counts, dtype=torch.float64), wanted)


def shifted(x):
    """Right padding becomes left padding: each row rolled by its number of dead places at the end."""
    room = torch.tensor([3, 7, 1, 5, 8, 4])
    return torch.stack([row.roll(int(n)) for row, n in zip(x, room, strict=True)])


@every_objective
def test_the_side_and_the_width_of_padding_have_no_influence(objective):
    batch = Batch()
    value, gradient = gradient_of(objective, batch)
    left, slope = gradient_of(objective, batch.mapped(shifted))
    same(left, value)
    same(slope, shifted(gradient))
    dead = {torch.bool: False, torch.float64: torch.nan}

    def widened(x):
        return torch.cat([x, torch.full((6, 4), dead[x.dtype], dtype=x.dtype)], 1)

    wide, slope = gradient_of(objective, batch.mapped(widened))
    same(wide, value)
    same(slope[:, :8], gradient)


@every_objective
@pytest.mark.parametrize("lines", [1, 2])
def test_packing_has_no_influence(objective, lines):
    batch = Batch()
    value, gradient = gradient_of(objective, batch)
    # no padding but a little at the end; the tool's token stays; names of sequences are any integers
    kept = batch.mask.clone()
    kept[2, 3] = True
    owners = torch.tensor([70, 3, 11, 12, 5, 40])[:, None].expand(6, 8)
    room = 20 // lines + 4

    def packed(x, dead=None):
        rows = [torch.cat([x[i][kept[i]] for i in part]) for part in torch.arange(6).split(6 // lines)]
        filler = dead if dead is not None else (False if x.dtype == torch.bool else torch.nan)
        return torch.stack([torch.cat([row, torch.full((room - len(row),), filler, dtype=x.dtype)]) for row in rows])

    found, slope = gradient_of(objective, batch.mapped(packed), owner=packed(owners, dead=99))
    same(found, value)
    same(slope[packed(batch.mask)], gradient[batch.mask])


@every_objective
def test_a_piece_of_a_packed_batch_keeps_the_names_of_its_sequences(objective):
    batch = Batch()
    owner = torch.arange(6)[:, None].expand(6, 8)
    weights = token_weights(objective, batch.mask, max_tokens=LIMIT, owner=owner, dtype=torch.float64)
    value, _ = gradient_of(objective, batch)
    parts = [
        gradient_of(objective, batch.mapped(lambda x, i=i: x[i]), weights=weights[i], owner=owner[i])[0]
        for i in (slice(0, 3), slice(3, 6))
    ]
    same(sum(parts), value)


# Gradients


# The loss is not differentiable where a ratio is at a clip, and stops gradients in places: no ratio of these is near
# one, and what stops a gradient is held by its own test.
SMOOTH = [o for o in OBJECTIVES if o.ratio != "sequence_token" and o.surrogate != "cispo" and o.kl_gradient == "own"]


@pytest.mark.parametrize("objective", SMOOTH, ids=[f"{o.name}-{o.ratio}" for o in SMOOTH])
@pytest.mark.parametrize("spread", [0.3, 1e-5])
def test_the_gradient_is_that_of_finite_differences(objective, spread):
    batch = Batch(seed=1, spread=spread, fill=0.0)
    assert torch.autograd.gradcheck(lambda new: loss_of(objective, batch, new=new), batch.new.clone().requires_grad_())


def test_the_gradient_of_cispo_is_that_of_a_weighted_log_likelihood():
    batch = Batch()
    _, gradient = gradient_of(CISPO, batch)
    ratio = (batch.new - batch.old).exp().clamp(0, 5)
    wanted = -ratio * batch.advantages / batch.mask.sum()
    same(gradient[batch.mask], wanted[batch.mask])


def test_on_the_policys_own_samples_every_row_has_the_gradient_of_reinforce():
    batch = Batch(spread=0.0)
    for row in (GRPO, GSPO, GSPO_TOKEN, CISPO, AS_IN["verl"]["grpo"]):
        row = replace(row, weight="sequence_mean")
        same(gradient_of(row, batch)[1], gradient_of(replace(REINFORCE, weight="sequence_mean"), batch)[1])
        new = batch.new.clone().requires_grad_()
        found = policy_loss(row, new, None, batch.advantages, batch.mask)  # without old log-probabilities
        (token_weights(row, batch.mask, dtype=torch.float64) * found.loss).sum().backward()
        same(new.grad, gradient_of(row, batch)[1])


def gradient_in_expectation(objective, policy, reference, place):
    """∇ of E[the loss] over the logits, through the sampled log-probability only, as an optimiser sees it."""
    logits = policy.clone().requires_grad_()
    log_probs = logits.log_softmax(-1)
    penalty = kl_penalty(
        objective, log_probs, reference.log_softmax(-1), torch.ones(4, dtype=torch.bool), old_log_probs=place
    )
    (log_probs.detach().exp() * penalty).sum().backward()
    return logits.grad


@pytest.mark.parametrize(
    ("kind", "gradient", "right"),
    [
        ("k2", "own", True),
        ("k1", "k2", True),
        ("k3", "k2", True),
        ("k3", "score", True),
        ("k3", "ratio", True),
        ("k1", "score", True),
        ("k1", "own", False),
        ("k3", "own", False),
    ],
)
def test_which_penalties_have_the_gradient_of_the_kl(kind, gradient, right):
    policy, reference = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits = policy.clone().requires_grad_()
    log_probs = logits.log_softmax(-1)
    (log_probs.exp() * (log_probs - reference.log_softmax(-1))).sum().backward()
    objective = replace(GRPO, kl=kind, kl_gradient=gradient)
    found = gradient_in_expectation(objective, policy, reference, policy.log_softmax(-1))
    assert torch.allclose(found, logits.grad, rtol=1e-9) == right


def test_bounds_of_the_kl_hold_and_leave_the_gradient_of_k2():
    objective = replace(GRPO, kl_bounds=(3.0, 10.0), kl_gradient="k2")
    policy = torch.tensor([-50.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -50.0], dtype=torch.float64)
    found = kl_penalty(objective, policy, reference, torch.ones(2, dtype=torch.bool))
    assert found.tolist() == pytest.approx([10.0, torch.tensor(-3.0).exp().item() - 1 + 3])  # e³ − 1 − 3 is beyond 10
    found.sum().backward()
    assert policy.grad.tolist() == [-49.0, 49.0]


# Kin


def test_gspo_on_single_tokens_is_grpo():
    batch = Batch(lengths=(1, 1, 1, 0, 1, 1), width=3)
    for beta in (0.0, 0.2):
        gspo = replace(GSPO, clip=(0.1, 0.15), beta=beta)
        grpo = replace(GRPO, clip=(0.1, 0.15), beta=beta)
        for one, other in zip(gradient_of(gspo, batch), gradient_of(grpo, batch), strict=True):
            same(one, other)


def test_dapo_is_ppo_given_equal_clips_and_the_same_advantages():
    batch = Batch()
    one, other = replace(DAPO, clip=(0.2, 0.2)), replace(PPO, beta=0.0)
    for found, wanted in zip(gradient_of(one, batch), gradient_of(other, batch), strict=True):
        same(found, wanted)
    far = Batch(spread=0.6)
    far.advantages = far.advantages.abs()  # the clips differ above
    assert gradient_of(DAPO, far)[0] != gradient_of(other, far)[0]


@pytest.mark.parametrize("spread", [0.3, 1e-4])
def test_gspo_token_is_gspo_where_the_advantage_is_that_of_the_sequence(spread):
    batch = Batch(spread=spread)
    for found, wanted in zip(gradient_of(GSPO_TOKEN, batch), gradient_of(GSPO, batch), strict=True):
        same(found, wanted)


def test_gspo_token_gives_each_token_the_gradient_of_its_own_advantage():
    batch = Batch(spread=1e-5)
    batch.advantages = torch.where(batch.mask, torch.randn(6, 8, generator=torch.Generator().manual_seed(5)), torch.nan)
    batch.advantages = batch.advantages.double()
    _, gradient = gradient_of(GSPO_TOKEN, batch)
    lengths = batch.mask.sum(1, keepdim=True)
    wanted = -batch.advantages / (5 * lengths)  # times the ratio, which is 1 to 1e-5
    torch.testing.assert_close(gradient[batch.mask], wanted[batch.mask], rtol=1e-4, atol=0)


def test_the_correction_multiplies_the_surrogate_but_not_the_kl():
    batch = Batch()
    weight = torch.where(batch.mask, 3.0, torch.nan).double()
    reference = {"reference_log_probs": batch.reference}
    arguments = (batch.new, batch.old, batch.advantages, batch.mask)
    plain = policy_loss(GRPO, *arguments)
    found = policy_loss(replace(GRPO, beta=0.5), *arguments, **reference, correction=weight)
    same(found.loss, 3.0 * plain.loss + 0.5 * found.kl)
    assert (found.kl[batch.mask] > 0).all()
    again = policy_loss(GRPO, *arguments, **reference, correction=weight, beta=0.5)
    same(again.loss, found.loss)


# Weights, diagnostics, errors


@every_objective
def test_weights_count_what_they_say(objective):
    mask = Batch().mask
    weights = token_weights(objective, mask, max_tokens=LIMIT, dtype=torch.float64)
    assert (weights[~mask] == 0).all()
    totals = {"token_mean": 1, "sequence_mean": 1, "sequence_sum": 19 / 5, "constant": 19 / (5 * LIMIT)}
    assert weights.sum().item() == pytest.approx(totals[objective.weight], rel=1e-12)
    if objective.weight == "sequence_mean":
        same(weights.sum(1)[[0, 1, 2, 3, 5]], torch.full((5,), 0.2, dtype=torch.float64))
    else:
        assert weights[mask].unique().numel() == 1


def test_an_empty_batch_weighs_nothing():
    for objective in (GRPO, DAPO, REINFORCE):
        assert (token_weights(objective, torch.zeros(2, 3, dtype=torch.bool)) == 0).all()


def test_a_constant_weight_needs_the_constant():
    with pytest.raises(ValueError, match="max_tokens is None"):
        token_weights(DR_GRPO, torch.ones(2, 3, dtype=torch.bool))


def test_where_the_clip_was_active():
    mask = torch.ones(1, 4, dtype=torch.bool)
    old, new = torch.zeros(1, 4), torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log()
    found = policy_loss(GRPO, new, old, torch.tensor([[1.0, -1.0, 1.0, -1.0]]), mask)
    assert found.clipped.tolist() == [[True, False, False, True]]
    found = policy_loss(AS_IN["verl"]["cispo"], new, old, torch.tensor([[1.0, -1.0, 1.0, -1.0]]), mask)
    assert found.clipped.all()


def test_mismatch_of_sampler_and_trainer():
    batch = Batch()
    found = mismatch(batch.old, batch.sampler, batch.mask)
    difference = (batch.old - batch.sampler)[batch.mask]
    assert found["ratio_mean"].item() == pytest.approx(difference.exp().mean().item())
    assert found["k3"].item() == pytest.approx((difference.exp() - 1 - difference).mean().item())
    assert found["max_difference"].item() == pytest.approx(difference.abs().max().item())
    assert mismatch(batch.old, batch.old, batch.mask)["ratio_mean"].item() == pytest.approx(1)


def test_a_missing_reference_and_a_wrong_shape_are_named():
    batch = Batch()
    with pytest.raises(ValueError, match="reference_log_probs is None, but beta is not 0"):
        policy_loss(replace(GRPO, beta=0.1), batch.new, batch.old, batch.advantages, batch.mask)
    with pytest.raises(ValueError, match=r"advantages has shape \(6,\) but log_probs has \(6, 8\)"):
        policy_loss(GRPO, batch.new, batch.old, batch.advantages[:, 0], batch.mask)


@pytest.mark.parametrize("objective", [AS_IN["verl"]["grpo"], AS_IN["verl"]["gspo"]], ids=lambda row: row.name)
def test_a_bounded_log_ratio_gives_no_ratio_beyond(objective):
    """verl bounds log ρ on both sides of a token's ratio, and from above on a sequence's."""
    low, high = objective.log_ratio_bounds
    log_probs, mask = torch.tensor([[-1.0, -1.0], [-90.0, -90.0]], dtype=torch.float64), torch.ones(2, 2, dtype=bool)
    old = torch.tensor([[-61.0, -61.0], [-1.0, -1.0]], dtype=torch.float64)  # log ρ is 60 and −89
    ratio = policy_loss(objective, log_probs, old, torch.ones_like(old), mask).ratio
    expected = torch.tensor([[min(60.0, high)] * 2, [max(-89.0, low)] * 2], dtype=torch.float64).exp()
    torch.testing.assert_close(ratio, expected)
