"""Policies: load and save transformers causal LMs and the built-in one, with their adapters.

It uses `from_pretrained` and `save_pretrained`. Leaves out hidden states (`states.py`) and heads (`heads.py`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescope.language import parallel
from telescope.language.models import adapters, pretrained
from telescope.language.models.heads import HEAD
from telescope.language.models.pretrained import folder_of
from telescope.language.models.seeded import Seeded
from telescope.language.models.states import embeddings_of, output_of
from telescope.language.models.tokenizer import EOS, PAD, VOCABULARY, characters

TINY = "tiny"
"""The name of the built-in model: about half a million parameters, untrained, one token per character."""
WHOLE = 0.999
"""If a merged model keeps at least this share of an adapter's update, there is no note about the rest."""
INITIAL = 0.08
"""Standard deviation of its initial weights, about width^−½. With the usual 0.02 it learns addition far more slowly."""
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2}
"""The config entry that identifies the built-in model."""


def is_built_in(source: str) -> bool:
    """Whether it is the built-in model or was trained from it. Reads config.json, and loads no weights."""
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
    """The built-in model with initial weights from the seed."""
    from transformers import LlamaForCausalLM

    with Seeded(seed):
        return LlamaForCausalLM(tiny_config())


def load(
    source: str, *, seed: int = 0, dtype: torch.dtype | None = torch.float32, trust: bool = False
) -> tuple[nn.Module, Any]:
    """A causal LM and its tokenizer: the built-in one, a run folder, a transformers folder, or a name on the hub.

    An adapter's folder gives its base with the adapter merged into it. dtype: None keeps the saved one. trust: run code
    that the folder brings. Files that are incomplete, not finite or inconsistent raise a ValueError that names them.
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
    """Config and tokenizer of a model, without reading its weights. A ValueError if a run cannot begin from it."""
    if source == TINY:
        return tiny_config(), characters()
    place = folder_of(source)
    if (Path(place) / HEAD).is_file():
        raise ValueError(f"model is {source!r}, a reward model, which cannot write text; pass it as --reward")
    if adapters.is_adapter(place):
        about, tokenizer = require(adapters.base_of(place), trust=trust)
        own = (Path(place) / "tokenizer_config.json").is_file()
        return about, pretrained.tokenizer(place, trust=trust) if own else tokenizer
    return pretrained.config(place, trust=trust), pretrained.tokenizer(place, trust=trust)


def context_of(config: Any) -> int | None:
    """The context length of a model in tokens; None if its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole, on the CPU. Tied weights are one tensor. If sharded, all ranks must call this."""
    made: dict[int, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in made:
            made[id(tensor)] = parallel.whole(tensor.detach()).cpu()
    return {name: made[id(tensor)] for name, tensor in state.items()}


def save(
    model: nn.Module, tokenizer: Any, path: str | os.PathLike[str], weights: dict[str, Tensor] | None = None
) -> None:
    """Save an ordinary transformers folder. With an adapter, save the merged weights in float32, which keep all of it.

    weights: replace the model's own, if those are sharded.
    """
    plain: Any = model
    if hasattr(model, "merge_and_unload"):
        plain = copy.deepcopy(plain).float().merge_and_unload()
    # Before transformers 5.23 a model with a generation config that warns, as many have, could be loaded but not saved.
    generation = plain.generation_config
    try:
        with pretrained.quiet():
            plain.generation_config = type(generation)()
            plain.save_pretrained(path, state_dict=weights or None)
            generation.to_json_file(os.path.join(path, pretrained.GENERATION))
            tokenizer.save_pretrained(path)
    finally:
        plain.generation_config = generation


def with_lora(model: nn.Module, rank: int, *, seed: int) -> nn.Module:
    """The model with a LoRA adapter of this rank on its linear layers (Hu et al. 2021, arXiv 2106.09685), via peft."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('lora_rank needs peft: pip install "telescope-rl[lora]"', name="peft") from error
    with Seeded(seed):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)  # type: ignore[no-any-return]


@contextlib.contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Use the model without its adapter during the block: a reference model that needs no second copy."""
    with model.disable_adapter():
        yield


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a completion: the tokenizer's, which training teaches, then those of the generation config."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    listed = list(listed) if isinstance(listed, list | tuple) else [listed]
    ends = [end for end in (getattr(tokenizer, "eos_token_id", None), *listed) if end is not None]
    if not ends:
        raise ValueError("the tokenizer has no end token (eos_token), so a completion could never end")
    known = range(len(output_of(model)))
    if unknown := [end for end in ends if not isinstance(end, int) or isinstance(end, bool) or end not in known]:
        raise ValueError(
            f"eos_token_id is {unknown[0]!r}, but {type(model).__name__} has {len(known)} tokens, so a "
            "completion could never end; correct it in the model's generation_config.json and config.json"
        )
    return list(dict.fromkeys(ends))
