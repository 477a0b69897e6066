"""Policies, critics and reward models: transformers causal LMs, their adapters, and the small heads put on them.

Everything is loaded and saved by `from_pretrained` and `save_pretrained`. It leaves out how any of them is trained.
"""

# B sequences, T tokens, D hidden size
from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescope.language import parallel
from telescope.language.tokenizer import EOS, PAD, VOCABULARY, characters

TINY = "tiny"
"""The name of the built-in model: about half a million parameters, untrained, characters for tokens."""


INITIAL = 0.08
"""Deviation of its weights, about width^−½: with the usual 0.02 it learns addition far more slowly."""


def tiny_config() -> Any:
    """The built-in model: a Llama of 2 layers and width 128."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=INITIAL,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )


def tiny(seed: int = 0) -> nn.Module:
    """The built-in model with weights by the seed."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_config())


def load(source: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """A causal LM and its tokenizer: the built-in one, a run folder, a transformers folder, or a name on the hub."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # one of our own is on the terminal
    if source == TINY:
        return tiny(seed).to(dtype), characters()
    place = folder_of(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_to_be_had(source, error) from error
    return model, tokenizer


def require(source: str) -> tuple[Any, Any]:
    """Config and tokenizer of a model; ValueError where there is none to begin with. Its weights are not looked at."""
    from transformers import AutoConfig, AutoTokenizer

    if source == TINY:
        return tiny_config(), characters()
    place = folder_of(source)
    if (Path(place) / HEAD).is_file():
        raise ValueError(f"model is {source!r}, a reward model, which says nothing any more; it serves as --reward")
    try:
        return AutoConfig.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise _not_to_be_had(source, error) from error


def require_head(folder: str) -> Path:
    """The transformers folder within the run folder of a reward model; ValueError where it is none."""
    place = Path(folder) / "model"
    if not (place / HEAD).is_file():
        raise ValueError(f"reward is {folder!r}, which holds no reward model ({place / HEAD} is missing)")
    return place


def context_of(config: Any) -> int | None:
    """The longest text that a model has learned positions for, in tokens; None where its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _not_to_be_had(source: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"model is {source!r}, which transformers cannot load: {reason}")


def folder_of(source: str) -> str:
    """The transformers folder that a path means: of a run folder, its `model`; anything else as it is."""
    inner = Path(source) / "model"
    return str(inner) if (Path(source) / "run.json").is_file() and inner.is_dir() else source


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole, on the CPU; what is tied is one tensor. Where they are sharded all ranks must ask."""
    made: dict[int, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in made:
            made[id(tensor)] = parallel.whole(tensor.detach()).cpu()
    return {name: made[id(tensor)] for name, tensor in state.items()}


def save(
    model: nn.Module, tokenizer: Any, path: str | os.PathLike[str], weights: dict[str, Tensor] | None = None
) -> None:
    """An ordinary transformers folder; of a model with an adapter, the merged weights.

    weights: in place of the model's own, where those are sharded.
    """
    plain: Any = model
    if hasattr(model, "merge_and_unload"):
        plain = copy.deepcopy(plain).merge_and_unload()
    plain.save_pretrained(path, state_dict=weights or None)
    tokenizer.save_pretrained(path)


def with_lora(model: nn.Module, rank: int, *, seed: int) -> nn.Module:
    """The model with a LoRA adapter of that rank on its linear layers (Hu et al. 2021, arXiv 2106.09685), via peft."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('lora_rank needs peft: pip install "telescope-rl[lora]"', name="peft") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)  # type: ignore[no-any-return]


@contextlib.contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model as it was before its adapter: the reference that costs no second copy."""
    with model.disable_adapter():
        yield


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a completion: the tokenizer's, which is taught, then those of the generation config."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    listed = list(listed) if isinstance(listed, list | tuple) else [listed]
    ends = [int(end) for end in (getattr(tokenizer, "eos_token_id", None), *listed) if end is not None]
    if not ends:
        raise ValueError("the tokenizer has no end token (eos_token), so a completion could never end")
    if unknown := [end for end in ends if end >= len(output_of(model))]:
        raise ValueError(
            f"eos_token_id is {unknown[0]}, but {type(model).__name__} has {len(output_of(model))} tokens, so a "
            "completion could never end; correct it in generation_config.json and config.json of the model"
        )
    return list(dict.fromkeys(ends))


def trunk_of(model: Any) -> nn.Module:
    """The part that makes hidden states, without the output matrix."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model if plain.base_model is not plain else plain.model  # type: ignore[no-any-return]


def output_of(model: Any) -> Tensor:
    """The output matrix [V, D] from hidden states to logits."""
    return model.get_output_embeddings().weight  # type: ignore[no-any-return]


def bias_of(model: Any) -> Tensor | None:
    """What is added to their product [V], where a model has it."""
    return getattr(model.get_output_embeddings(), "bias", None)


def require_positions(model: Any, length: int) -> None:
    """ValueError where a model that knows a fixed number of positions would have to read longer texts."""
    known = None if hasattr(model.config, "rope_parameters") else getattr(model.config, "max_position_embeddings", None)
    if known is not None and length > known:
        raise ValueError(
            f"a text of {length} tokens, its prompt included, is too long for {type(model).__name__}, which knows "
            f"{known} positions; a smaller max_tokens or shorter texts are needed"
        )


def hidden_states(trunk: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states [B, T, D] of left- or right-padded tokens; positions count live tokens."""
    return _run(trunk, tokens, mask, tokens.shape[1])


def completion_states(
    trunk: nn.Module,
    prompts: tuple[Tensor, Tensor],
    completions: tuple[Tensor, Tensor],
    *,
    group: int = 1,
    after: bool = False,
) -> Tensor:
    """The states that predict each token of the completions [B, T, D]; with `after` also those behind it [B, T + 1, D].

    With `group` > 1 a prompt that several completions share is read once: its keys and values are repeated, and only
    the completions' own tokens run through the model, once for those of a group that are alike. Values and gradients
    are the same, to rounding. Layers with a recurrent state (linear attention, convolutions) overwrite it, which no
    gradient survives: with them every text is read whole.

    Args:
        prompts: tokens and mask [N, P], padded on the left. completions: tokens and mask [N · group, T], on the right.
    """
    (asked, asked_mask), (tokens, mask) = prompts, completions
    if len(tokens) == 0:  # most models refuse; with FSDP a rank that has no rows must run along all the same
        asked, tokens = asked.new_zeros(1, max(1, asked.shape[1])), tokens.new_zeros(group, tokens.shape[1])
        prompts, completions = (asked, asked.eq(0)), (tokens, tokens.eq(0))
        return completion_states(trunk, prompts, completions, group=group, after=after)[:0]
    if not after:
        tokens, mask = tokens[:, :-1], mask[:, :-1]
    from transformers import DynamicCache

    cache = DynamicCache(config=trunk.config)  # type: ignore[arg-type]
    if group == 1 or any(hasattr(layer, "conv_states") for layer in cache.layers):
        both = torch.cat([asked.repeat_interleave(group, 0), tokens], 1)
        both_mask = torch.cat([asked_mask.repeat_interleave(group, 0), mask], 1)
        return _run(trunk, both, both_mask, tokens.shape[1] + 1)
    first = _run(trunk, asked, asked_mask, 1, cache)
    if tokens.shape[1] == 0:
        return first.repeat_interleave(group, 0)
    rows, copies = alike(tokens, mask, group)
    if len(rows) == len(tokens):
        cache.batch_repeat_interleave(group)
    else:
        cache.batch_select_indices(rows // group)
    both_mask = torch.cat([asked_mask[rows // group], mask[rows]], 1)
    rest = _run(trunk, tokens[rows], both_mask, tokens.shape[1], cache)
    return torch.cat([first.repeat_interleave(group, 0), rest if len(rows) == len(tokens) else rest[copies]], 1)


def alike(tokens: Tensor, mask: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The first of each kind of row within its group [C], and which of those each row equals [N · group]."""
    live = torch.where(mask, tokens, -1).unflatten(0, (-1, group))
    index = torch.arange(len(tokens), device=tokens.device).view(-1, group)
    first = index
    for member in reversed(range(group - 1)):
        first = torch.where((live == live[:, member, None]).all(-1), index[:, member, None], first)
    rows, copies = torch.unique(first, return_inverse=True)
    return rows, copies.flatten()


def _run(trunk: nn.Module, tokens: Tensor, mask: Tensor, last: int, cache: Any = None) -> Tensor:
    """Hidden states of the last tokens. mask: of all tokens, those already in the cache too."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    if positions.numel():
        require_positions(trunk, int(positions.max()) + 1)
    out = trunk(
        input_ids=tokens,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state[:, -last:]  # type: ignore[no-any-return]


HEAD = "head.safetensors"


class Scalar(nn.Module):
    """One number per token from hidden states, V of the state behind it or a score; the output layer begins at 0.

    With a trunk of its own it is a model; without one it is a head on states that are given.
    """

    def __init__(self, width: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def on(cls, policy: nn.Module) -> Scalar:
        """A network of its own that begins as a copy of a policy's trunk."""
        weight = output_of(policy)
        trunk = copy.deepcopy(trunk_of(policy)).requires_grad_(True).eval()
        return cls(weight.shape[1], trunk).to(weight.device, weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] → [...], float32."""
        return self.head(states).squeeze(-1).float()  # type: ignore[no-any-return]

    def along(
        self, prompts: tuple[Tensor, Tensor], completions: tuple[Tensor, Tensor], group: int = 1, *, after: bool = True
    ) -> Tensor:
        """Of the states before each token and, with `after`, behind the last; by its own trunk."""
        assert self.trunk is not None
        states = completion_states(self.trunk, prompts, completions, group=group, after=after)
        return self(states)  # type: ignore[no-any-return]


def save_head(weights: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """The head's weights beside those of the trunk."""
    from safetensors.torch import save_file

    save_file(weights, Path(path) / HEAD)


def load_head(network: Scalar, path: str | os.PathLike[str]) -> None:
    """What `save_head` wrote."""
    from safetensors.torch import load_file

    network.head.load_state_dict(load_file(Path(path) / HEAD))
