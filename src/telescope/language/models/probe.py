"""Check that a model can be trained here: padding and caching must not change its output. It tries a few tokens.

Leaves out whether training improves the model.
"""

# V vocabulary
from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from telescope.language.experience.sampling import Completions, Prompts, sample
from telescope.language.log_probs import token_log_probs
from telescope.language.models.states import completion_states, head_of, hidden_states, output_of, trunk_of

LENGTHS = (2, 5)
"""Lengths of the trial prompts, in tokens."""
GROUP, TOKENS = 3, 4
"""Completions per prompt, and tokens per completion."""
LOGIT = 1000.0
"""The size of trial logits: large enough that a soft cap would change them."""
APART = {torch.float32: 1e-3, torch.bfloat16: 1.0}
"""A larger difference of log-probabilities, in nats, is more than rounding."""


@torch.no_grad()
def probe(model: Any, *, packing: str = "off") -> bool | None:
    """Raise a ValueError that names the model's class if `sampling` or `states` would compute something else.

    packing: on, off or auto. Return what `completion_states` takes for it: auto (None) is off where it does not work.
    """
    name = type(model).__name__
    prompts = _prompts(model)
    try:
        known = _is_known(model, prompts)
        found = sample(model, prompts, ends=[-1], max_tokens=TOKENS, uniforms=_uniforms(output_of(model)), group=GROUP)
        own = _learned(model, prompts, found)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{name} does not run on left-padded prompts with a key–value cache whose rows change: {reason}; such "
            "models are not supported"
        ) from error
    if not known:
        raise ValueError(
            f"the logits of {name} are not the last hidden states times the output matrix plus its bias, scaled or "
            "capped as its config says (another layer, or another scale, lies between); such models are not supported"
        )
    alone = _alone(model, prompts, found.tokens)
    for where, log_probs in (("sampling", found.log_probs), ("training", own)):
        apart = float((log_probs - alone).abs().max())
        if not apart < APART[output_of(model).dtype]:
            raise ValueError(
                f"in {where}, a token's log-probability by {name} is {apart:.2g} nats from that without padding and "
                "key–value cache (its positions, its mask or its cache work differently); such models are not supported"
            )
    if packing == "off" or (wrong := _wrong_in_rows(model, prompts, found, alone)) is None:
        return {"off": False, "on": True, "auto": None}[packing]
    if packing == "on":
        raise ValueError(
            f"packing is 'on', but {name} does not read packed texts as it reads each alone: {wrong}; leave packing out"
        )
    return False


def _wrong_in_rows(model: Any, prompts: Prompts, found: Completions, alone: Tensor) -> str | None:
    """What is wrong with log-probabilities in rows without padding. None: nothing."""
    try:
        apart = float((_learned(model, prompts, found, packed=True) - alone).abs().max())
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    right = apart < APART[output_of(model).dtype]
    return None if right else f"a token's log-probability is {apart:.2g} nats from that of its text alone"


def _prompts(model: Any) -> Prompts:
    """Prompts of arbitrary tokens, padded on the left."""
    weight = output_of(model)
    width, rng = max(LENGTHS), torch.Generator().manual_seed(0)
    tokens = torch.randint(min(256, len(weight)), (len(LENGTHS), width), generator=rng)
    mask = torch.arange(width) >= width - torch.tensor(LENGTHS)[:, None]
    return Prompts(tokens.masked_fill(~mask, 0).to(weight.device), mask.to(weight.device))


def _uniforms(weight: Tensor) -> Tensor:
    """Random numbers with which the completions of a group begin equally and then differ, except two of them."""
    uniforms = torch.rand(len(LENGTHS), GROUP, TOKENS, generator=torch.Generator().manual_seed(0))
    uniforms[:, :, 0] = uniforms[:, :1, 0]
    uniforms[:, -1] = uniforms[:, 0]
    return uniforms.flatten(0, 1).to(weight.device)


def _is_known(model: Any, prompts: Prompts) -> bool:
    """Whether the logits are what `head_of` says, for the trunk's states and for large ones."""
    tokens, mask = prompts.tokens[-1:], prompts.mask[-1:]
    head = head_of(model)
    states, factor = hidden_states(trunk_of(model), tokens, mask), 1.0
    with contextlib.ExitStack() as stack:
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))
        stack.callback(hook.remove)
        for _ in range(2):
            logits = model(input_ids=tokens, use_cache=False).logits.float()
            product = _logits(states * factor, **head)
            size = float(product.abs().max())
            if not torch.allclose(logits, product, rtol=1e-2, atol=1e-2 * size):
                return False
            factor = LOGIT / max(size, 1e-6)
    return True


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, scale: float, soft_cap: float | None) -> Tensor:
    """The logits that `token_log_probs` computes, all of them."""
    logits = scale * torch.nn.functional.linear(states, weight, bias).float()
    return logits if soft_cap is None else soft_cap * (logits / soft_cap).tanh()


def _learned(model: Any, prompts: Prompts, found: Completions, *, packed: bool = False) -> Tensor:
    """Log-probabilities of completions as an update computes them."""
    states = completion_states(trunk_of(model), prompts, (found.tokens, found.mask), group=GROUP, packed=packed)
    return token_log_probs(states, tokens=found.tokens, **head_of(model)).log_probs


def _alone(model: Any, prompts: Prompts, tokens: Tensor) -> Tensor:
    """The same from the plain model, on texts of one length at a time."""
    parts = []
    for prompt, mask, own in zip(*prompts, tokens.unflatten(0, (-1, GROUP)), strict=True):
        texts = torch.cat([prompt[mask].expand(GROUP, -1), own], 1)
        logits = model(input_ids=texts, use_cache=False).logits[:, -TOKENS - 1 : -1].float()
        parts.append(logits.log_softmax(-1).gather(-1, own[..., None])[..., 0])
    return torch.cat(parts)
