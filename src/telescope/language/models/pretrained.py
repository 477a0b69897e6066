"""Models and tokenizers as transformers folders hold them: whole, finite, unchanged and never code, or a sentence.

What a folder lacks, transformers fills with random numbers; what it has too much of, it leaves out; pickles it would
load. Here each of these is an error that names the file or the weight. It leaves out what models are used for
(`models.py`) and adapters (`adapters.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SEAL = "seal.json"
"""What a run writes beside its model: the SHA-256 of each file (`runs/identity/seal.py`)."""
WEIGHTS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
TRUST = "only `telescope eval --trust` and trust=True from Python run it, if you trust whoever made it"


class ModelError(ValueError):
    """A model folder that cannot be used; one sentence names what is wrong in it."""


def folder_of(source: str) -> str:
    """The transformers folder that a path means: of a run folder, its `model`; anything else as it is."""
    inner = Path(source) / "model"
    return str(inner) if (Path(source) / "run.json").is_file() and inner.is_dir() else source


def config(place: str, *, trust: bool = False) -> Any:
    """The config of a transformers folder, or of a name on the hub."""
    from transformers import AutoConfig

    if os.path.isabs(place) and not os.path.isdir(place):  # which the hub would be asked for
        raise ModelError(f"model is {place!r}, but there is no such folder")
    require_unchanged(place, weights=False)
    with told(place):
        found = AutoConfig.from_pretrained(place, trust_remote_code=trust)
    _require_no_code(place, found, trust)
    return found


def tokenizer(place: str, *, trust: bool = False) -> Any:
    """The tokenizer of a transformers folder; it has tokenised something."""
    from transformers import AutoTokenizer

    require_unchanged(place, weights=False)
    with told(place, "its tokenizer"):
        found = AutoTokenizer.from_pretrained(place, trust_remote_code=trust)
        found.decode(found("a b")["input_ids"])  # some mistakes in it only show now
        found.get_vocab()
    return found


def model(place: str, *, dtype: torch.dtype | None = None, trust: bool = False) -> nn.Module:
    """The causal LM of a transformers folder, with all of its weights and no others. dtype: None: as they are saved."""
    from transformers import AutoModelForCausalLM

    config(place, trust=trust)
    require_unchanged(place, weights=True)
    _require_safetensors(place)
    with told(place):
        both: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
    found: nn.Module = both[0]
    loaded: dict[str, Any] = both[1]
    _require_whole(place, type(found).__name__, loaded)
    require_finite(place, found.state_dict())
    return found


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with parameters of that dtype; buffers stay exact, as `from_pretrained` leaves them."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, all of them finite."""
    from safetensors.torch import load_file

    with told(str(path)):
        found = load_file(path)
    require_finite(str(path), found)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def told(place: str, what: str = "it") -> Iterator[None]:
    """Whatever a library raises over a broken folder, in one sentence; and nothing else that it has to say."""
    try:
        with quiet():
            yield
    except (ModelError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the tokenizers library
            raise
        if _is_lost_folder(place):  # transformers takes it for a name on the hub and speaks of that
            raise ModelError(f"model is {place!r}, but there is no such folder") from error
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError | RuntimeError):  # of a KeyError, say, the text is the key alone
            reason = f"{type(error).__name__}: {reason}"
        if "trust_remote_code" in reason:
            raise ModelError(
                f"model is {place!r}, which brings code of its own that would run here; {TRUST}"
            ) from error
        raise ModelError(f"model is {place!r}, but transformers cannot load {what}: {reason[:400]}") from error


def _is_lost_folder(place: str) -> bool:
    """Does it look like a path, where nothing is? A name on the hub has two parts at most."""
    path = Path(place)
    is_path = path.is_absolute() or place.startswith(".") or len(path.parts) > 2
    return not path.exists() and (is_path or (len(path.parts) == 2 and path.parent.is_dir()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, reports and warnings of the libraries: what matters in them is an error here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # one of our own is on the terminal
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _require_no_code(place: str, about: Any, trust: bool) -> None:
    """ModelError where a config names kernels on the hub, which are programs."""
    kernels = (getattr(about, "_attn_implementation", None), getattr(about, "_experts_implementation", None))
    if named := [name for name in kernels if isinstance(name, str) and "/" in name and not trust]:
        raise ModelError(f"model is {place!r}, whose config names code that would run here ({named[0]}); {TRUST}")


def _require_safetensors(place: str) -> None:
    """ModelError where a folder holds pickles alone, or an index that points out of it or to what is not there."""
    folder = Path(place)
    if not folder.is_dir():
        return
    with told(place):
        names = sorted(os.listdir(folder))
        explicit = json.loads((folder / "config.json").read_bytes()).get("transformers_weights")
    with told(place, GENERATION):
        if GENERATION in names:  # transformers goes on without one that is broken, and so with other end tokens
            json.loads((folder / GENERATION).read_bytes())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if explicit is not None and (
        not isinstance(explicit, str) or explicit not in names or not explicit.endswith((WEIGHTS, INDEX))
    ):
        raise ModelError(
            f"model is {place!r}, whose config.json takes weights from {explicit!r}, which is no safetensors file in it"
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
            raise ModelError(f"model is {place!r}, whose {INDEX} points to {file!r}, which is no file in that folder")


def _require_whole(place: str, kind: str, loaded: Mapping[str, Any]) -> None:
    """ModelError by transformers' own account of what it found, left out, or would have filled with random numbers."""
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"model is {place!r}, which lacks {_some(missing)} of a {kind}; the file is not whole")
    if wrong := sorted(loaded["mismatched_keys"]):
        name, there, expected = wrong[0]
        raise ModelError(
            f"model is {place!r}, where {name} has shape {list(there)}, but its config.json describes a {kind} with "
            f"{list(expected)}; the two are not of one model"
        )
    if unknown := sorted(loaded["unexpected_keys"]):
        raise ModelError(
            f"model is {place!r}, which holds {_some(unknown)}, of which a {kind} as config.json describes it has no "
            "use; the two are not of one model"
        )
    if errors := loaded.get("error_msgs"):
        raise ModelError(f"model is {place!r}, but transformers cannot load it: {' '.join(str(errors[0]).split())}")


def require_finite(place: str, tensors: Mapping[str, Tensor]) -> None:
    """ModelError naming the first weight that is infinite or NaN."""
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
    """ModelError where a tokenizer gives ids that an embedding of this size does not have.

    Tokens that were added behind the vocabulary are let pass: some published models have them for texts that they are
    never given. `require_known` looks for them where texts are known.
    """
    added = found.get_added_vocab()
    wrong = {token: i for token, i in found.get_vocab().items() if not 0 <= i < size and (i < 0 or token not in added)}
    if wrong:
        token = min(wrong, key=lambda name: wrong[name])
        raise ModelError(
            f"model is {place!r}, whose tokenizer gives {token!r} the id {wrong[token]} ({len(wrong)} such tokens), "
            f"but its embedding has {size} rows; the tokenizer is of another model"
        )


def require_known(place: str, found: Any, size: int, texts: Iterable[str]) -> None:
    """ModelError naming the first text with a token that was added to the tokenizer alone."""
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
    """ModelError naming a file that is not what the run wrote, where one did. weights: look at those, or at the rest.

    A flipped bit in a tokenizer or a weight makes another model without a word.
    """
    if not (Path(place) / SEAL).is_file():
        return
    with told(place, SEAL):
        files = {
            str(name): str(digest) for name, digest in json.loads((Path(place) / SEAL).read_bytes())["files"].items()
        }
    for name, digest in files.items():
        path = Path(place) / name
        if name.endswith(WEIGHTS) == weights and not (path.is_file() and _digest(path) == digest):
            raise ModelError(
                f"{path} is {'changed' if path.is_file() else 'gone'} since the run wrote it; bring it back, or delete "
                f"{SEAL} beside it if the change is meant"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
