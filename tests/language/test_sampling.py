"""Sampling: what is drawn, from what, and that the company of other rows does not matter."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from telescope.language.experience.sampling import decode, encode, sample
from telescope.language.log_probs import token_log_probs
from telescope.language.models import causal as models
from telescope.language.models.cache import ROOM, RoomyLayer, roomy_cache
from telescope.language.models.states import completion_states, output_of, trunk_of
from telescope.language.models.tokenizer import EOS, characters

PROMPTS = ["37+58=", "3+5=", "10+9=", "1+1="]


@pytest.fixture(scope="module")
def model():
    return models.tiny(0).eval()


def drawn(model, prompts, uniforms, **settings):
    return sample(
        model, encode(characters(), prompts), ends=[EOS], max_tokens=uniforms.shape[1], uniforms=uniforms, **settings
    )


def uniforms(rows, tokens=8):
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.9}]
)
def test_the_trainer_finds_the_samplers_log_probabilities(model, settings):
    """Over the same support and at the same temperature: the first ratio of an update is 1."""
    found = drawn(model, PROMPTS, uniforms(12), group=3, **settings)
    states = completion_states(trunk_of(model), encode(characters(), PROMPTS), (found.tokens, found.mask), group=3)
    again = token_log_probs(
        states,
        output_of(model),
        found.tokens,
        mask=found.mask,
        temperature=settings.get("temperature", 1.0),
        support=found.support,
    )
    torch.testing.assert_close(again.log_probs, found.log_probs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.entropy, found.entropy, rtol=1e-4, atol=1e-4)
    if "top_k" in settings:
        assert found.support.shape[-1] <= settings["top_k"]


def test_a_row_draws_the_same_alone_and_in_company(model):
    """Other rows end earlier and leave, or ask something longer: its own tokens stay."""
    noise = uniforms(4, 64)
    together = drawn(model, PROMPTS, noise)
    assert together.terminated.any()  # about one token in a hundred is the end
    for i, prompt in enumerate(PROMPTS):
        alone = drawn(model, [prompt], noise[i : i + 1])
        n = int(alone.mask.sum())
        assert together.mask[i].sum() == n
        assert torch.equal(alone.tokens[0, :n], together.tokens[i, :n])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.3}, {"top_k": 2}])
def test_completions_that_run_together_are_those_that_run_alone(model, settings):
    """A group shares the model's work until its members part, and each still draws by its own random numbers."""
    noise = uniforms(16, 6)
    together = drawn(model, PROMPTS[:2], noise, group=8, **settings)
    alone = drawn(model, [prompt for prompt in PROMPTS[:2] for _ in range(8)], noise, **settings)
    assert len(together.tokens[:, 0].unique()) < 16  # some go on together
    for name in ("tokens", "mask", "terminated"):
        assert torch.equal(getattr(together, name), getattr(alone, name))
    for name in ("log_probs", "entropy"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    assert settings.get("top_k") is None or torch.equal(together.support, alone.support)


def test_the_model_reads_what_completions_share_once(model, monkeypatch):
    """64 completions that cannot but agree are one row of each step."""
    read = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: read.append(inputs["input_ids"].numel()) or forward(**inputs)
    )
    found = drawn(model, PROMPTS[:1], uniforms(64, 5), group=64, top_k=1)
    assert (found.tokens == found.tokens[:1]).all()
    assert read == [len(PROMPTS[0]), *[1] * (found.tokens.shape[1] - 1)]


def test_masks_end_with_the_end(model):
    found = drawn(model, PROMPTS * 8, uniforms(32, 64))
    for tokens, mask, terminated in zip(found.tokens, found.mask, found.terminated, strict=True):
        live = tokens[mask]
        assert mask[: len(live)].all()
        assert (live[:-1] != EOS).all()
        assert bool(live[-1] == EOS) == bool(terminated)
        assert terminated or len(live) == 64
    assert found.terminated.any()


def test_without_random_numbers_it_is_what_transformers_generates(model):
    tokenizer = characters()
    found = sample(model, encode(tokenizer, PROMPTS), ends=[EOS], max_tokens=6)
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    wanted = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for i in range(len(PROMPTS)):
        n = int(found.mask[i].sum())
        assert torch.equal(found.tokens[i, :n], wanted[i, :n])
    assert len(decode(tokenizer, found, [EOS])) == len(PROMPTS)


def test_draws_have_the_models_probabilities(model):
    """The first token of 4096 completions of one prompt, against the softmax."""
    n = 4096
    found = drawn(model, PROMPTS[:1], uniforms(n, 1), group=n)
    inputs = encode(characters(), PROMPTS[:1])
    with torch.no_grad():
        wanted = model(input_ids=inputs.tokens).logits[0, -1].softmax(-1)
    share = torch.bincount(found.tokens[:, 0], minlength=len(wanted)) / n
    error = (wanted * (1 - wanted) / n).sqrt()
    assert ((share - wanted).abs() < 5 * error + 1e-3).all()


def test_an_empty_prompt_is_named():
    with pytest.raises(ValueError, match=r"prompt 1 .* has no tokens"):
        encode(characters(), ["a", ""])


@pytest.mark.parametrize("seed", range(20))
def test_a_cache_with_room_holds_what_that_of_transformers_holds(seed):
    """After any mixture of new tokens, selected texts, and arrays that others have replaced; bit for bit."""
    generator = torch.Generator().manual_seed(seed)

    def number(most):
        return int(torch.randint(1, most + 1, (1,), generator=generator))

    ours, theirs = RoomyLayer(), DynamicLayer()
    rows = number(4)
    for _ in range(30):
        kind = number(8)
        if kind <= 4 or ours.get_seq_length() == 0:
            new = torch.randn(2, rows, 2, number(3) if kind > 1 else number(40), 4, generator=generator)
            for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
                assert torch.equal(found, expected)
        elif kind <= 6:
            chosen = torch.randint(rows, (number(6),), generator=generator)
            rows = len(chosen)
            ours.reorder_cache(chosen)
            theirs.reorder_cache(chosen)
        elif kind == 7 and ours.get_seq_length() > 1:
            for layer in (ours, theirs):
                layer.crop(-1)
        else:
            for layer in (ours, theirs):
                layer.batch_repeat_interleave(2)
            rows *= 2
            if rows > 12:
                for layer in (ours, theirs):
                    layer.reorder_cache(torch.arange(3))
                rows = 3
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_a_cache_with_room_is_not_copied_at_each_token(model):
    cache = roomy_cache(model.config)
    places = []
    for _ in range(ROOM + 2):
        cache.update(*torch.zeros(2, 3, 4, 1, 32), 0)
        places.append(cache.layers[0].keys.data_ptr())
    assert len(set(places)) == 2
