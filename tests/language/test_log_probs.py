"""Log-probabilities in chunks against the plain formula: values, gradients, and no array of the full size.

Leaves out the memory of whole processes, which `python -m benchmarks.log_probs` measures.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from telescope.language import log_probs
from telescope.language.log_probs import sampling_support, token_log_probs

N, D, V = 23, 6, 40


def problem(dtype=torch.float64, seed=0, n=N, d=D, v=V):
    rng = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((n, d), (v, d), (v,)))
    tokens = torch.randint(0, v, (n,), generator=rng)
    return [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)], tokens


def plain(hidden, weight, bias, tokens, temperature=1.0, kept=None):
    """As everybody writes it."""
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = (z if z.dtype == torch.float64 else z.float()) / temperature
    if kept is not None:
        z = z.masked_fill(~kept, -torch.inf)
    log_p = z.log_softmax(-1)
    return log_p.gather(-1, tokens[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)


def with_gradients(function, leaves, slopes):
    """Values, and the gradients of a weighted sum of them."""
    outputs = tuple(function(*leaves))
    total = sum((slope * output).sum() for slope, output in zip(slopes, outputs, strict=True))
    return [*(output.detach() for output in outputs), *torch.autograd.grad(total, leaves)]


SLOPES = torch.linspace(-1, 2, N, dtype=torch.float64), torch.linspace(0.5, -0.7, N, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 5, N, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_it_is_the_plain_formula(chunk, temperature):
    leaves, tokens = problem()
    wanted = with_gradients(lambda h, w, b: plain(h, w, b, tokens, temperature), leaves, SLOPES)

    def ours(h, w, b):
        return token_log_probs(h, w, tokens, bias=b, temperature=temperature, entropy_gradient=True, chunk=chunk)

    for found, value in zip(with_gradients(ours, leaves, SLOPES), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("support", [False, True])
def test_the_gradient_is_that_of_finite_differences(support):
    leaves, tokens = problem(n=4, d=3, v=7)
    ids = torch.stack([tokens, (tokens + 1) % 7, torch.tensor([-1, 3, 5, -1])], 1) if support else None

    def ours(h, w, b):
        return tuple(
            token_log_probs(h, w, tokens, bias=b, support=ids, entropy_gradient=True, temperature=0.7, chunk=3)
        )

    assert torch.autograd.gradcheck(ours, leaves)


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (3.0, None), (1.0, 2.0), (0.5, 1.5)])
def test_a_models_own_scale_and_soft_cap_are_in_values_and_gradients(scale, cap, chunk):
    leaves, tokens = problem()
    kept = torch.rand(N, V, generator=torch.Generator().manual_seed(2)) > 0.5
    kept[torch.arange(N), tokens] = True
    support = torch.where(kept, torch.arange(V), -1)

    def theirs(h, w, b):
        z = scale * torch.nn.functional.linear(h, w, b)
        z = (z if cap is None else cap * torch.tanh(z / cap)) / 0.6
        log_p = z.masked_fill(~kept, -torch.inf).log_softmax(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(~kept, 0.0)).sum(-1)
        return log_p.gather(-1, tokens[:, None])[:, 0], entropy

    def ours(h, w, b):
        settings = {"support": support, "entropy_gradient": True, "chunk": chunk, "temperature": 0.6}
        return token_log_probs(h, w, tokens, bias=b, scale=scale, soft_cap=cap, **settings)

    wanted = with_gradients(theirs, leaves, SLOPES)
    for found, value in zip(with_gradients(ours, leaves, SLOPES), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("change", [{"scale": 0.0}, {"scale": float("nan")}, {"soft_cap": 0.0}, {"soft_cap": -1.0}])
def test_a_scale_or_cap_of_nothing_is_refused(change):
    (hidden, weight, _), tokens = problem()
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        token_log_probs(hidden, weight, tokens, **change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_it_is_as_exact_as_the_plain_formula(dtype):
    leaves, tokens = problem(dtype, n=200, d=32, v=300)
    slopes = torch.linspace(-1, 2, 200), torch.linspace(0.5, -0.7, 200)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = with_gradients(
        lambda h, w, b: plain(h, w, b, tokens, 0.8), exact_leaves, [slope.double() for slope in slopes]
    )
    theirs = with_gradients(lambda h, w, b: plain(h, w, b, tokens, 0.8), leaves, slopes)

    def formula(h, w, b):
        return token_log_probs(h, w, tokens, bias=b, temperature=0.8, entropy_gradient=True, chunk=64)

    ours = with_gradients(formula, leaves, slopes)
    for found, other, wanted in zip(ours, theirs, exact, strict=True):
        assert found.dtype == other.dtype
        assert (found - wanted).abs().max() <= 2 * (other - wanted).abs().max()


def test_autocast_changes_nothing():
    leaves, tokens = problem(torch.float32)
    slopes = [slope.float() for slope in SLOPES]

    def ours(h, w, b):
        return token_log_probs(h, w, tokens, bias=b, entropy_gradient=True)

    wanted = with_gradients(ours, leaves, slopes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(ours, leaves, slopes)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_masked_places_have_no_influence():
    (hidden, weight, bias), tokens = problem(n=24)
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    hidden, tokens = hidden.detach().reshape(4, 6, D), tokens.reshape(4, 6)
    wanted = with_gradients(
        lambda h, w, b: plain(h[mask], w, b, tokens[mask]), [hidden.requires_grad_(), weight, bias], (1.0, 0.0)
    )
    dirty = torch.where(mask[..., None], hidden.detach(), torch.nan).requires_grad_()
    wrong = torch.where(mask, tokens, -100)
    found = with_gradients(
        lambda h, w, b: token_log_probs(h, w, wrong, mask=mask, bias=b), [dirty, weight, bias], (1.0, 0.0)
    )
    for got, value in zip(found[:2], wanted[:2], strict=True):
        assert (got[~mask] == 0).all()
        torch.testing.assert_close(got[mask], value)
    for got, value in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(got, value)


def test_nothing_live_is_no_error():
    (hidden, weight, _), tokens = problem()
    found = token_log_probs(hidden, weight, tokens, mask=torch.zeros(N, dtype=torch.bool))
    assert found.log_probs.tolist() == [0.0] * N
    found.log_probs.sum().backward()
    assert (weight.grad == 0).all()


def test_the_entropy_has_a_gradient_only_where_it_is_asked_for():
    (hidden, weight, _), tokens = problem()
    assert not token_log_probs(hidden, weight, tokens).entropy.requires_grad
    assert token_log_probs(hidden, weight, tokens, entropy_gradient=True).entropy.requires_grad


def test_frozen_parts_get_no_gradient():
    (hidden, weight, bias), tokens = problem()
    token_log_probs(hidden, weight.detach(), tokens, bias=bias.detach()).log_probs.sum().backward()
    assert hidden.grad is not None
    token_log_probs(hidden.detach(), weight, tokens).log_probs.sum().backward()
    assert weight.grad is not None


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation has made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("with_support", [False, True])
def test_no_array_of_tokens_by_vocabulary_is_ever_made(with_support):
    leaves, tokens = problem(n=400, d=4, v=500)
    support = tokens[:, None] if with_support else None
    with Largest() as seen:
        found = token_log_probs(
            leaves[0], leaves[1], tokens, bias=leaves[2], support=support, entropy_gradient=True, chunk=8
        )
        sum(found).sum().backward()
    assert seen.elements <= 8 * 501  # a chunk; one more column while a support is marked
    with Largest() as seen:
        sum(plain(*leaves, tokens)).sum().backward()
    assert seen.elements >= 400 * 500


def test_a_chunk_is_chosen_by_the_vocabulary(monkeypatch):
    assert 4 * log_probs.CHUNK == 64 * 2**20  # bytes
    monkeypatch.setattr(log_probs, "CHUNK", 100 * 8 + 5)
    (hidden, weight, _), tokens = problem(n=64, v=100)
    with torch.no_grad(), Largest() as seen:
        token_log_probs(hidden, weight, tokens)
    assert seen.elements == 8 * 100


# Support


def kept_by_hand(logits, temperature, top_k, top_p):
    """Which tokens top-k, then top-p sampling may draw, one row at a time."""
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, z in enumerate((logits / temperature).tolist()):
        order = sorted(range(len(z)), key=lambda token: -z[token])[: top_k or len(z)]
        odds = [torch.tensor(z[token]).exp().item() for token in order]
        mass = 0.0
        for token, odd in zip(order, odds, strict=True):
            if top_p in (None, 1.0) or mass < top_p:  # the mass of all but the last may round to 1
                kept[row, token] = True
            mass += odd / sum(odds)
    return kept


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(3, None), (None, 0.8), (10, 0.6), (None, 1e-9), (None, 1e-300), (1, 0.5), (100, None), (None, 1.0)],
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_support_is_that_of_top_k_and_top_p(top_k, top_p, temperature):
    (hidden, weight, bias), _ = problem()
    logits = torch.nn.functional.linear(hidden, weight, bias).detach()
    kept = kept_by_hand(logits, temperature, top_k, top_p)
    ids = sampling_support(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert ids.shape[-1] == kept.sum(-1).max()
    found = torch.zeros(N, V + 1, dtype=torch.bool).scatter_(1, torch.where(ids < 0, V, ids), True)[:, :V]
    assert torch.equal(found, kept)
    tokens = ids[:, 0]
    leaves = [leaf.detach().requires_grad_() for leaf in (hidden, weight, bias)]
    entropy = plain(*leaves, tokens, temperature, kept)[1]  # its gradient is NaN there, but not in ours
    wanted = with_gradients(lambda h, w, b: plain(h, w, b, tokens, temperature, kept)[:1], leaves, SLOPES[:1])

    def ours(h, w, b):
        found = token_log_probs(h, w, tokens, bias=b, support=ids, temperature=temperature, chunk=4)
        torch.testing.assert_close(found.entropy, entropy.detach(), rtol=1e-11, atol=1e-13)
        return (found.log_probs,)

    for got, value in zip(with_gradients(ours, leaves, SLOPES[:1]), wanted, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-11, atol=1e-13)


def test_probabilities_over_the_support_sum_to_one():
    (hidden, weight, _), _ = problem()
    ids = sampling_support(torch.nn.functional.linear(hidden, weight), top_k=5, top_p=None)
    total = sum(token_log_probs(hidden, weight, ids[:, k], support=ids).log_probs.exp() for k in range(5))
    torch.testing.assert_close(total, torch.ones(N, dtype=torch.float64))


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"tokens": torch.zeros(3, dtype=torch.long)}, r"tokens has shape \(3,\)"),
        ({"weight": torch.zeros(V, D + 1)}, r"hidden has shape \(23, 6\) and weight \(40, 7\)"),
        ({"weight": torch.zeros(V, D, dtype=torch.bfloat16)}, "weight has dtype torch.bfloat16 but hidden"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask has shape \(3,\)"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\)"),
        ({"support": torch.full((N, 2), V - 1)}, "support lacks tokens that were drawn"),
        ({"support": torch.zeros(N, dtype=torch.long)}, "support has shape"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"hidden": torch.zeros(N, D), "weight": torch.zeros(V, D), "tokens": torch.zeros(N, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        token_log_probs(**arguments | change)


@pytest.mark.parametrize("rule", [{"top_k": 0, "top_p": None}, {"top_k": None, "top_p": 0.0}])
def test_a_rule_that_leaves_nothing_to_draw_is_refused(rule):
    with pytest.raises(ValueError, match=r"top_[kp] is 0"):
        sampling_support(torch.zeros(2, 3), **rule)
