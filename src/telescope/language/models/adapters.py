"""LoRA adapters in peft's own layout: save one beside the merged model, and load one to begin a run.

Leaves out training an adapter (`causal.with_lora`) and loading its base (`causal.load`).
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from telescope.language.models import pretrained
from telescope.language.models.pretrained import ModelError, folder_of, quiet, told

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
BASE = "base"
"""The subfolder of an adapter folder that holds its base, if that is the built-in model."""


def is_adapter(place: str) -> bool:
    """Whether it is the folder of an adapter, not of a whole model."""
    return (Path(place) / CONFIG).is_file()


def base_of(place: str) -> str:
    """The folder or name of an adapter's base model. A ModelError if it does not exist, or is the adapter itself."""
    base, seen = _named_base(place), {os.path.realpath(place)}
    if os.path.isabs(base) and not os.path.isdir(base):
        raise ModelError(f"model is {place!r}, an adapter of {base}, which does not exist; restore its base")
    further = base
    while is_adapter(further):
        if os.path.realpath(further) in seen:
            raise ModelError(f"model is {place!r}, an adapter that is its own base")
        seen.add(os.path.realpath(further))
        further = _named_base(further)
    return base


def _named_base(place: str) -> str:
    """The base within the adapter's folder, or the one that its config names."""
    with told(place, CONFIG):
        named = json.loads((Path(place) / CONFIG).read_bytes()).get("base_model_name_or_path")
    if (inner := Path(place) / BASE).is_dir():
        return str(inner)
    if not isinstance(named, str) or not named:
        raise ModelError(f"model is {place!r}, an adapter whose {CONFIG} names no base (base_model_name_or_path)")
    return folder_of(named)


def merged(place: str, base: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, float]:
    """A float32 base with a folder's adapter added to its weights, in `dtype`, and the share of the adapter kept.

    The share is ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩, where Δ is the update and Δ' what remains of it after rounding the sum to `dtype`.
    """
    pretrained.require_unchanged(place, weights=False)
    pretrained.require_unchanged(place, weights=True)
    if not (Path(place) / FILE).is_file():
        raise ModelError(f"model is {place!r}, an adapter without {FILE}; pickles, which may run code, are not loaded")
    _require_lora(place)
    have = pretrained.weights(Path(place) / FILE).keys()
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(
            f'{place} is an adapter, which needs peft: pip install "telescope-rl[lora]"', name="peft"
        ) from error
    with told(place, "the adapter on its base"):
        model: Any = PeftModel.from_pretrained(base, place)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    for names, what in ((expected - have, "lacks"), (have - expected, "has no place for")):
        if names:
            raise ModelError(
                f"model is {place!r}, an adapter that {what} {min(names)}; it has another base, or is incomplete"
            )
    share = 1.0 if dtype == torch.float32 else _kept(model, dtype)
    whole: Any = pretrained.cast(model.merge_and_unload(), dtype)
    whole.config.name_or_path = place  # it is no longer its base
    return whole, share


def _require_lora(place: str) -> None:
    with told(place, CONFIG):
        about = json.loads((Path(place) / CONFIG).read_bytes())
        kind, imported = about.get("peft_type"), about.get("megatron_config")
    if kind != "LORA":
        raise ModelError(f"model is {place!r}, an adapter of type {kind!r}; expected LORA, the only supported type")
    if imported is not None:
        raise ModelError(f"model is {place!r}, whose {CONFIG} names a module to import (megatron_core); remove it")


@torch.no_grad()
def _kept(model: nn.Module, dtype: torch.dtype) -> float:
    """⟨Δ', Δ⟩ / ⟨Δ, Δ⟩ over all adapted weights."""
    kept = whole = 0.0
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "lora_A"):
            weight, delta = layer.base_layer.weight, layer.get_delta_weight("default")
            left = (weight + delta).to(dtype).to(weight.dtype) - weight
            kept, whole = kept + float((left * delta).sum()), whole + float(delta.square().sum())
    return kept / whole if whole else 1.0


def save(model: Any, tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Save a model's adapter for `PeftModel.from_pretrained(base, path)`, with the absolute path of its base.

    A base that has no folder is saved within the adapter's folder.
    """
    place = Path(path)
    config, plain = model.peft_config["default"], model.get_base_model()
    source = plain.config.name_or_path
    config.base_model_name_or_path = os.path.abspath(source) if os.path.isdir(source) else source or BASE
    with quiet():
        model.save_pretrained(place, save_embedding_layers=False)
        tokenizer.save_pretrained(place)
        if not source:
            copy.deepcopy(model).unload().save_pretrained(place / BASE)
            tokenizer.save_pretrained(place / BASE)
