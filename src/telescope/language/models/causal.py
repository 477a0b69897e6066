"""Policies, critics and reward models: transformers causal LMs, their adapters, and the small heads put on them.

Everything is loaded and saved by `from_pretrained` and `save_pretrained`. It leaves out how any of them is trained.
"""

# B sequences, T tokens, D hidden size
from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescope.language import parallel
from telescope.language.models import adapters, pretrained
from telescope.language.models.pretrained import folder_of
from telescope.language.models.seeded import Seeded
from telescope.language.models.tokenizer import EOS, PAD, VOCABULARY, characters

TINY = "tiny"
"""The name of the built-in model: about half a million parameters, untrained, characters for tokens."""


WHOLE = 0.999
"""Share of an adapter's update from which nothing is said about the rest."""
INITIAL = 0.08
"""Deviation of its weights, about width^−½: with the usual 0.02 it learns addition far more slowly."""


SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2}
"""By which the built-in model is known again."""


def is_built_in(source: str) -> bool:
    """Is it the built-in model, or what a run has made of it? Its config.json tells; nothing is loaded."""
    if source == TINY:
        return True
    try:
        about = json.loads((Path(folder_of(source)) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and all(about.get(name) == value for name, value in SHAPE.items())


def tiny_config() -> Any:
    """The built-in model: a Llama of 2 layers and width 128."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPE,
        intermediate_size=512,
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

    with Seeded(seed):
        return LlamaForCausalLM(tiny_config())


def load(
    source: str, *, seed: int = 0, dtype: torch.dtype | None = torch.float32, trust: bool = False
) -> tuple[nn.Module, Any]:
    """A causal LM and its tokenizer: the built-in one, a run folder, a transformers folder, or a name on the hub.

    Of the folder of an adapter, its base with the adapter merged into it. dtype: None: as it was saved. trust: run the
    code that a folder may bring. What is not whole, not finite or not of one piece is a ValueError that names it.
    """
    if source == TINY:
        return pretrained.cast(tiny(seed), dtype or torch.float32), characters()
    place = folder_of(source)
    if adapters.is_adapter(place):
        return _load_adapter(place, dtype or torch.float32, trust)
    model, tokenizer = pretrained.model(place, dtype=dtype, trust=trust), pretrained.tokenizer(place, trust=trust)
    pretrained.require_vocabulary(place, tokenizer, embeddings_of(model))
    return model, tokenizer


def _load_adapter(place: str, dtype: torch.dtype, trust: bool) -> tuple[nn.Module, Any]:
    base, tokenizer = load(adapters.base_of(place), trust=trust)
    model, kept = adapters.merged(place, base, dtype)
    if (Path(place) / "tokenizer_config.json").is_file():
        tokenizer = pretrained.tokenizer(place, trust=trust)
        pretrained.require_vocabulary(place, tokenizer, embeddings_of(model))
    if kept < WHOLE:
        said = f"merged into {dtype} weights, the adapter {place} keeps {kept:.0%} of its update; float32 keeps all"
        warnings.warn(said, stacklevel=3)
    return model, tokenizer


def require(source: str, *, trust: bool = False) -> tuple[Any, Any]:
    """Config and tokenizer of a model; ValueError where there is none to begin with. Its weights are not looked at."""
    if source == TINY:
        return tiny_config(), characters()
    place = folder_of(source)
    if (Path(place) / HEAD).is_file():
        raise ValueError(f"model is {source!r}, a reward model, which says nothing any more; it serves as --reward")
    if adapters.is_adapter(place):
        about, tokenizer = require(adapters.base_of(place), trust=trust)
        own = (Path(place) / "tokenizer_config.json").is_file()
        return about, pretrained.tokenizer(place, trust=trust) if own else tokenizer
    return pretrained.config(place, trust=trust), pretrained.tokenizer(place, trust=trust)


def require_head(folder: str) -> Path:
    """The transformers folder within the run folder of a reward model; ValueError where it is none."""
    place = Path(folder) / "model"
    if not (place / HEAD).is_file():
        raise ValueError(f"reward is {folder!r}, which holds no reward model ({place / HEAD} is missing)")
    return place


def context_of(config: Any) -> int | None:
    """The longest text that a model has learned positions for, in tokens; None where its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


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
    """An ordinary transformers folder; with an adapter, the merged weights in float32, which keep all of it.

    weights: in place of the model's own, where those are sharded.
    """
    plain: Any = model
    if hasattr(model, "merge_and_unload"):
        plain = copy.deepcopy(plain).float().merge_and_unload()
    with pretrained.quiet():
        plain.save_pretrained(path, state_dict=weights or None)
        tokenizer.save_pretrained(path)


def with_lora(model: nn.Module, rank: int, *, seed: int) -> nn.Module:
    """The model with a LoRA adapter of that rank on its linear layers (Hu et al. 2021, arXiv 2106.09685), via peft."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('lora_rank needs peft: pip install "telescope-rl[lora]"', name="peft") from error
    with Seeded(seed):
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
    ends = [end for end in (getattr(tokenizer, "eos_token_id", None), *listed) if end is not None]
    if not ends:
        raise ValueError("the tokenizer has no end token (eos_token), so a completion could never end")
    known = range(len(output_of(model)))
    if unknown := [end for end in ends if not isinstance(end, int) or isinstance(end, bool) or end not in known]:
        raise ValueError(
            f"eos_token_id is {unknown[0]!r}, but {type(model).__name__} has {len(known)} tokens, so a "
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


def embeddings_of(model: Any) -> int:
    """How many tokens it has an embedding for, as far as it tells."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # of some trunks; the probe judges them
        return sys.maxsize


def require_tokens(model: Any, tokens: Tensor) -> None:
    """ValueError where a text has tokens that the model has no embedding for."""
    if tokens.numel() and int(tokens.max()) >= embeddings_of(model):
        raise ValueError(
            f"a text has the token {int(tokens.max())}, but the embedding of {type(model).__name__} has "
            f"{embeddings_of(model)} rows; is its tokenizer another model's? Added tokens need resize_token_embeddings"
        )


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
        select_rows(cache, rows // group)
    both_mask = torch.cat([asked_mask[rows // group], mask[rows]], 1)
    rest = _run(trunk, tokens[rows], both_mask, tokens.shape[1], cache)
    rest = rest if len(rows) == len(tokens) else rows_of(rest, copies)
    return torch.cat([first.repeat_interleave(group, 0), rest], 1)


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], where some rows are taken several times over, with a gradient that adds the copies in their order.

    On the CPU that of `x[rows]` adds them as its threads reach them, so that equal commands would give different bits;
    on CUDA that of `index_select` does.
    """
    return x[rows] if x.is_cuda else x.index_select(0, rows)


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep the cache's texts with these numbers, some of them several times over."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer).batch_select_indices is DynamicLayer.batch_select_indices and layer.get_seq_length() > 0:
            layer.keys, layer.values = rows_of(layer.keys, rows), rows_of(layer.values, rows)
        else:  # it holds more than keys and values
            layer.batch_select_indices(rows)


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
    require_tokens(trunk, tokens)
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
        """A network of its own that begins as a copy of a policy's trunk, and learns in what that does (an adapter)."""
        weight = output_of(policy)
        trunk = copy.deepcopy(trunk_of(policy)).eval()
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
    """What `save_head` wrote; ValueError where it is cut, or of a trunk of another width."""
    saved, own = pretrained.weights(Path(path) / HEAD), network.head.state_dict()
    there, expected = ({name: list(x.shape) for name, x in tensors.items()} for tensors in (saved, own))
    if there != expected:
        raise pretrained.ModelError(f"{Path(path) / HEAD} holds {there}; this reward model needs {expected}")
    network.head.load_state_dict(saved)
