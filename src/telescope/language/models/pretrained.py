"""Load models and tokenizers from transformers folders, and check that they are whole, finite, unchanged and no code.

transformers fills missing weights with random numbers, ignores unknown ones, and would load pickles. Here each of these
raises an error that names the file or the weight. Leaves out the use of models (`causal.py`) and adapters
(`adapters.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescope.checks import file_digest

SEAL = "seal.json"
"""The file with the SHA-256 of each file, which a run writes beside its model (`runs/identity/seal.py`)."""
WEIGHTS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
TRUST = "only `telescope eval --trust` and trust=True from Python run it, if you trust whoever made it"


class ModelError(ValueError):
    """A model folder cannot be used. One sentence names the reason."""


def folder_of(source: str) -> str:
    """The transformers folder of a path: the `model` of a run folder, otherwise the path itself."""
    inner = Path(source) / "model"
    return str(inner) if (Path(source) / "run.json").is_file() and inner.is_dir() else source


def config(place: str, *, trust: bool = False) -> Any:
    """The config of a transformers folder, or of a name on the hub."""
    from transformers import AutoConfig

    if os.path.isabs(place) and not os.path.isdir(place):  # transformers would ask the hub for it
        raise ModelError(f"model is {place!r}, but there is no such folder")
    require_unchanged(place, weights=False)
    with told(place):
        found = AutoConfig.from_pretrained(place, trust_remote_code=trust)
    _require_no_code(place, found, trust)
    return found


def tokenizer(place: str, *, trust: bool = False) -> Any:
    """The tokenizer of a transformers folder, after a trial."""
    from transformers import AutoTokenizer

    require_unchanged(place, weights=False)
    with told(place, "its tokenizer"):
        found = AutoTokenizer.from_pretrained(place, trust_remote_code=trust)
        found.decode(found("a b")["input_ids"])  # some errors only show now
        found.get_vocab()
    return found


def model(
    place: str, *, dtype: torch.dtype | None = None, trust: bool = False, kind: str = "AutoModelForCausalLM"
) -> nn.Module:
    """The model of a transformers folder, with exactly its weights. dtype: None keeps the saved one.

    kind: the class of transformers that loads it.
    """
    import transformers

    config(place, trust=trust)
    require_unchanged(place, weights=True)
    _require_safetensors(place)
    with told(place):
        both: Any = getattr(transformers, kind).from_pretrained(
            place,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    found: nn.Module = both[0]
    loaded: dict[str, Any] = both[1]
    _require_whole(place, type(found).__name__, loaded)
    require_finite(place, found.state_dict())
    return found


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with parameters of this dtype. Buffers keep theirs, as with `from_pretrained`."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. An error if any is not finite."""
    from safetensors.torch import load_file

    with told(str(path)):
        found = load_file(path)
    require_finite(str(path), found)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def told(place: str, what: str = "it") -> Iterator[None]:
    """Turn any error of a library about a broken folder into one sentence, and silence its other output."""
    try:
        with quiet():
            yield
    except (ModelError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # from the tokenizers library
            raise
        if _is_lost_folder(place):  # transformers would report a missing name on the hub
            raise ModelError(f"model is {place!r}, but there is no such folder") from error
        reason = " ".join(str(error).split())
        if not isinstance(
            error, ValueError | OSError | RuntimeError
        ):  # the text of a KeyError, for example, is only the key
            reason = f"{type(error).__name__}: {reason}"
        if "trust_remote_code" in reason:
            raise ModelError(f"model is {place!r}, which brings its own code that would run here; {TRUST}") from error
        raise ModelError(f"model is {place!r}, but transformers cannot load {what}: {reason[:400]}") from error


def _is_lost_folder(place: str) -> bool:
    """Whether it looks like a path that does not exist. A name on the hub has at most two parts."""
    path = Path(place)
    is_path = path.is_absolute() or place.startswith(".") or len(path.parts) > 2
    return not path.exists() and (is_path or (len(path.parts) == 2 and path.parent.is_dir()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, reports and warnings of the libraries. What matters in them is an error here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # we show our own
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _require_no_code(place: str, about: Any, trust: bool) -> None:
    """Raise a ModelError if a config names kernels on the hub, which are programs."""
    kernels = (getattr(about, "_attn_implementation", None), getattr(about, "_experts_implementation", None))
    if named := [name for name in kernels if isinstance(name, str) and "/" in name and not trust]:
        raise ModelError(f"model is {place!r}, whose config names code that would run here ({named[0]}); {TRUST}")


def _require_safetensors(place: str) -> None:
    """Raise a ModelError if a folder holds only pickles, or its index names a missing file or one outside of it."""
    folder = Path(place)
    if not folder.is_dir():
        return
    with told(place):
        names = sorted(os.listdir(folder))
        explicit = json.loads((folder / "config.json").read_bytes()).get("transformers_weights")
    with told(place, GENERATION):
        if GENERATION in names:  # transformers ignores a broken one, which changes end tokens
            json.loads((folder / GENERATION).read_bytes())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if explicit is not None and (
        not isinstance(explicit, str) or explicit not in names or not explicit.endswith((WEIGHTS, INDEX))
    ):
        raise ModelError(
            f"model is {place!r}, whose config.json names weights {explicit!r}, which is not a safetensors file in it"
        )
    if not any(name.endswith(WEIGHTS) for name in names):
        what = f"only pickles ({pickles[0]}), which may run code" if pickles else "none"
        raise ModelError(
            f"model is {place!r}; expected weights as safetensors, and it has {what}; save it again with transformers"
        )
    if INDEX not in names or "model.safetensors" in names:
        return
    with told(place, INDEX):
        files = list(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    for file in files:
        if file not in names:
            raise ModelError(f"model is {place!r}, whose {INDEX} points to {file!r}, which is not in that folder")


def _require_whole(place: str, kind: str, loaded: Mapping[str, Any]) -> None:
    """Raise a ModelError from transformers' report of weights that it ignored or filled with random numbers."""
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"model is {place!r}, which lacks {_some(missing)} of a {kind}; the file is not whole")
    if wrong := sorted(loaded["mismatched_keys"]):
        name, there, expected = wrong[0]
        raise ModelError(
            f"model is {place!r}, where {name} has shape {list(there)}, but its config.json describes a {kind} with "
            f"{list(expected)}; they belong to different models"
        )
    if unknown := sorted(loaded["unexpected_keys"]):
        raise ModelError(
            f"model is {place!r}, which holds {_some(unknown)}, but the {kind} that config.json describes has no such "
            "weight; they belong to different models"
        )
    if errors := loaded.get("error_msgs"):
        raise ModelError(f"model is {place!r}, but transformers cannot load it: {' '.join(str(errors[0]).split())}")


def require_finite(place: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ModelError that names the first weight that is infinite or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            if tensor.element_size() == 1:  # the float8 family has no min
                tensor = tensor.float()
            if not all(bool(bound.isfinite()) for bound in torch.aminmax(tensor)):
                raise ModelError(f"model is {place!r}, where {name} is not finite everywhere; it cannot be used")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# Tokens


def require_vocabulary(place: str, found: Any, size: int) -> None:
    """Raise a ModelError if a tokenizer has ids that an embedding of this size does not have.

    Tokens added after the vocabulary are allowed: some published models have them and never use them. `require_known`
    looks for them in known texts.
    """
    added = found.get_added_vocab()
    wrong = {token: i for token, i in found.get_vocab().items() if not 0 <= i < size and (i < 0 or token not in added)}
    if wrong:
        token = min(wrong, key=lambda name: wrong[name])
        raise ModelError(
            f"model is {place!r}, whose tokenizer gives {token!r} the id {wrong[token]} ({len(wrong)} such tokens), "
            f"but its embedding has {size} rows; the tokenizer belongs to another model"
        )


def require_known(place: str, found: Any, size: int, texts: Iterable[str]) -> None:
    """Raise a ModelError that names the first text with a token that only the tokenizer has."""
    beyond = {token: i for token, i in found.get_added_vocab().items() if i >= size}
    for text in texts if beyond else ():
        for token, i in beyond.items():
            if token in text:
                raise ModelError(
                    f"{text[:60]!r} has the token {token!r}, to which the tokenizer of {place} gives the id {i}, but "
                    f"the embedding has {size} rows; call resize_token_embeddings after adding tokens, and save both"
                )


# What a run has written


def require_unchanged(place: str, *, weights: bool) -> None:
    """Raise a ModelError that names a file that changed since a run wrote it. weights: check those, or the other files.

    A flipped bit in a tokenizer or a weight would silently change the model.
    """
    if not (Path(place) / SEAL).is_file():
        return
    with told(place, SEAL):
        files = {
            str(name): str(digest) for name, digest in json.loads((Path(place) / SEAL).read_bytes())["files"].items()
        }
    for name, digest in files.items():
        path = Path(place) / name
        if name.endswith(WEIGHTS) == weights and file_digest(path) != digest:
            raise ModelError(
                f"{path} is {'changed' if path.is_file() else 'gone'} since the run wrote it; restore it, or delete "
                f"{SEAL} beside it if the change is intended"
            )
