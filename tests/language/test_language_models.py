"""Models of many architectures: padded, cached and shared they are what they are alone, or they are refused by name.

Leaves out the built-in model, which all other tests train.
"""

import json

import pytest
import torch

from telescope.cli import main
from telescope.language.experience.preferences import accuracy
from telescope.language.experience.sampling import Prompts, sample
from telescope.language.log_probs import token_log_probs
from telescope.language.models import causal as models
from telescope.language.models.probe import probe
from telescope.language.models.states import completion_states, head_of, trunk_of

V = 40
SIZES = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 1, "bos_token_id": 2}
PAD = {"pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
SUPPORTED = {  # what is peculiar to each
    "GPT2": PAD,  # a table of positions
    "OPT": PAD | {"ffn_dim": 48, "word_embed_proj_dim": 32},  # the same, found by the mask
    "Llama": {},  # rotary, no pad token
    "Bloom": PAD,  # ALiBi
    "Mistral": PAD | {"sliding_window": 4, "head_dim": 8},  # a window shorter than the text
    "Gemma3": PAD | {"sliding_window": 4, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma2": PAD | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 1.5},  # logits with a soft cap
    "Granite": PAD | {"logits_scaling": 8.0},  # logits with a scale that divides
    "Cohere": PAD | {"logit_scale": 0.25},  # and one that multiplies
    "Qwen3Moe": PAD | EXPERTS,
    "GPTJ": PAD | {"rotary_dim": 4},  # a bias on the logits
    "Lfm2": PAD | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "Qwen3_5": PAD | LINEAR | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
}
REFUSED = {
    "Mamba": (PAD | {"state_size": 4, "time_step_rank": 4}, "its cache"),
    "Bart": (PAD | {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}, "its positions"),
}


def made(name, settings):
    """A model with weights that are wide enough for all of its parts to matter."""
    import transformers

    config = {
        "Gemma3": "Gemma3TextConfig",
        "Qwen3_5": "Qwen3_5TextConfig",
    }.get(name, f"{name}Config")
    cls = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))
    model = cls(getattr(transformers, config)(**{**SIZES, **settings})).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 or (parameter.ndim == 1 and len(parameter) == V):
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=rng))
    return model


def texts(rng):
    """Prompts of 9, 3 and 6 tokens, and six completions of each, of which half are alike."""
    mask = torch.arange(9) >= 9 - torch.tensor([9, 3, 6])[:, None]
    prompts = Prompts(torch.randint(3, V, (3, 9), generator=rng) * mask, mask)
    kinds = torch.randint(3, V, (3, 3, 7), generator=rng)
    lengths = torch.tensor([7, 4, 1])
    which = torch.tensor([0, 1, 0, 2, 1, 0])
    mask = (torch.arange(7) < lengths[which][:, None]).repeat(3, 1)
    return prompts, kinds[:, which].flatten(0, 1) * mask, mask


def alone(model, prompts, tokens, mask):
    """Log-probabilities of each completion by the plain model, without padding and without a cache."""
    group = len(tokens) // len(prompts.tokens)
    found = torch.zeros(tokens.shape)
    for i, (row, live) in enumerate(zip(tokens, mask, strict=True)):
        asked = prompts.tokens[i // group][prompts.mask[i // group]]
        logits = model(input_ids=torch.cat([asked, row[live]])[None], use_cache=False).logits[0].log_softmax(-1)
        found[i, live] = logits[len(asked) - 1 : -1].gather(-1, row[live][:, None])[:, 0]
    return found


@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize("name", SUPPORTED)
def test_log_probabilities_and_gradients_are_those_of_each_text_alone(name, group):
    model = made(name, SUPPORTED[name])
    probe(model)
    rng = torch.Generator().manual_seed(1)
    prompts, tokens, mask = texts(rng)
    weights = torch.randn(tokens.shape, generator=rng)
    asked = prompts if group == 6 else Prompts(*(x.repeat_interleave(6, 0) for x in prompts))
    states = completion_states(trunk_of(model), asked, (tokens, mask), group=group)
    found = []
    for log_probs in (
        token_log_probs(states, tokens=tokens, mask=mask, **head_of(model)).log_probs,
        alone(model, prompts, tokens, mask),
    ):
        (log_probs * weights).sum().backward()
        found.append((log_probs.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    (ours, gradients), (plain, expected) = found
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-3, atol=1e-5 * largest, msg=parameter)


@pytest.mark.parametrize("name", SUPPORTED)
def test_samples_are_the_plain_models(name):
    """The likeliest tokens are those that transformers generates, and drawn ones have the plain model's probability."""
    model = made(name, SUPPORTED[name])
    rng = torch.Generator().manual_seed(1)
    prompts, _, _ = texts(rng)
    found = sample(model, prompts, ends=[1], max_tokens=8, group=8)
    for i in range(3):
        asked = prompts.tokens[i][prompts.mask[i]][None]
        wanted = model.generate(asked, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, asked.shape[1] :]
        for j in range(i * 8, i * 8 + 8):
            assert found.tokens[j][found.mask[j]].tolist() == wanted.tolist()
    drawn = sample(model, prompts, ends=[1], max_tokens=8, group=8, uniforms=torch.rand(24, 8, generator=rng))
    with torch.no_grad():
        expected = alone(model, prompts, drawn.tokens, drawn.mask)
    torch.testing.assert_close(drawn.log_probs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SUPPORTED)
def test_what_is_supported_passes_the_probe_in_both_dtypes(name, dtype):
    probe(made(name, SUPPORTED[name]).to(dtype))


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_model_in_training_is_refused_by_name(name):
    settings, reason = REFUSED[name]
    with pytest.raises(ValueError, match=rf"{name}ForCausalLM.*{reason}.*not supported"):
        probe(made(name, settings))


@pytest.mark.parametrize(("scale", "cap"), [(3.0, None), (1.0, 2.0)])
def test_a_scale_or_cap_that_the_config_does_not_name_is_refused(scale, cap, monkeypatch):
    """transformers grows; a kind of logits that we do not know is noticed by what it computes."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def other(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = scale * out.logits if cap is None else cap * (out.logits / cap).tanh()
        return out

    model = made("Llama", {})
    monkeypatch.setattr(LlamaForCausalLM, "forward", other)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*as its config says"):
        probe(model)


@pytest.mark.parametrize(
    "kind", ["Gemma2", "Gemma3", "Granite", "GraniteMoe", "Cohere", "Cohere2", "HyperCLOVAX", "Mpt"]
)
def test_the_head_has_the_logits_of_the_model(kind):
    """Of configs that scale, cap, divide, or name a scale that their model does not use."""
    odd = {"Mpt": {"logit_scale": 3.0, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}}
    more = {"logit_scale": 0.3, "final_logit_softcapping": 2.0, "logits_scaling": 5.0, "head_dim": 8}
    known = {name: value for name, value in more.items() if kind.startswith(OWN[name])}
    model = made(kind, PAD | known | odd.get(kind, {}))
    tokens = torch.arange(3, 12)[None]
    states = trunk_of(model)(tokens).last_hidden_state
    head = head_of(model)
    logits = head["scale"] * torch.nn.functional.linear(states, head["weight"], head["bias"])
    logits = logits if head["soft_cap"] is None else head["soft_cap"] * (logits / head["soft_cap"]).tanh()
    torch.testing.assert_close(logits, model(tokens).logits)
    found = token_log_probs(states[:, :-1], tokens=tokens[:, 1:], **head).log_probs
    expected = model(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(found, expected)


OWN = {
    "logit_scale": ("Cohere",),
    "final_logit_softcapping": ("Gemma",),
    "logits_scaling": ("Granite", "HyperCLOVAX"),
    "head_dim": ("Gemma",),
}
"""The kinds whose config has such an entry."""


def test_a_text_beyond_the_last_position_is_refused():
    """Of a table of positions; rotary ones go on."""
    prompts = Prompts(torch.ones(1, 60, dtype=torch.long), torch.ones(1, 60, dtype=torch.bool))
    model = made("GPT2", PAD)
    sample(model, prompts, ends=[-1], max_tokens=5)
    with pytest.raises(ValueError, match=r"65 tokens.* too long for GPT2LMHeadModel, which has 64 positions"):
        sample(model, prompts, ends=[-1], max_tokens=6)
    answer = torch.ones(1, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"65 tokens.* too long for GPT2Model"):
        completion_states(trunk_of(model), prompts, (answer, answer > 0))
    sample(made("Llama", {}), prompts, ends=[-1], max_tokens=6)


def test_an_end_that_the_model_does_not_have_is_refused():
    model = made("GPT2", {"eos_token_id": 50256})
    with pytest.raises(ValueError, match="eos_token_id is 50256, but GPT2LMHeadModel has 40 tokens"):
        models.ends_of(model, None)


def byte_level(folder, special):
    """A tokenizer whose only special token ends texts; it pads with that, or not at all."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([f"{a}+{b}={a + b}" for a in range(9) for b in range(9)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", **special).save_pretrained(folder)


@pytest.mark.parametrize("special", [{}, {"pad_token": "<eos>"}], ids=["no_pad", "pad_is_end"])
@pytest.mark.parametrize("name", ["GPTJ", "Qwen3_5"])
def test_a_folder_is_trained_and_evaluated(name, special, tmp_path, capsys):
    made(name, SUPPORTED[name] | {"vocab_size": 280, "eos_token_id": 0, "pad_token_id": None}).save_pretrained(
        tmp_path / "folder"
    )
    byte_level(tmp_path / "folder", special)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(9) for b in range(9)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    quick = ["--threads", "1", "--total-steps", "1", "--eval-prompts", "5", "--max-tokens", "4"]
    quick += ["--model", str(tmp_path / "folder")]
    for algorithm, *flags in (("grpo", "--prompts", "4", "--group", "3"), ("sft", "--batch-size", "8")):
        out = str(tmp_path / algorithm)
        assert main(["train", algorithm, str(tmp_path / "data.jsonl"), "--out", out, *quick, *flags]) == 0
        capsys.readouterr()
        assert main(["eval", out, "--json", "--prompts", "5"]) == 0
        assert json.loads(capsys.readouterr().out)["kl_completion"] is not None, (
            "the model that training began with is found"
        )


def test_a_tie_of_a_reward_model_counts_half():
    """As half precision often has them: counted as wrong, a model that says nothing would be worse than a guess."""
    assert accuracy(torch.tensor([1.0, -1.0, 0.0, 2.0])) == 0.625
    assert accuracy(torch.zeros(5, dtype=torch.bfloat16)) == 0.5
