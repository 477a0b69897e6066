"""From text to tokens and back: a prompt and what follows it are, joined, the tokens of the joined text.

Special tokens that a text already has are not added again, nothing follows a prompt, and an answer ends once. It leaves
out padding (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

ANCHORS = ("\n", "=", "a", "0")
"""Texts to put before an answer, so that it is read as the middle of a text."""


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts, behind what the tokenizer puts before every text (BOS) and without what it puts behind.

    A rendered chat template begins with its BOS: what the text has of it is not added again.
    """
    front = _front(tokenizer)
    return [_behind(front, ids) for ids in plain_ids(tokenizer, prompts)]


def answer_ids(tokenizer: Any, answers: Sequence[str], ends: int | Sequence[int]) -> list[list[int]]:
    """The tokens of answers as they follow a prompt, each with one end.

    ends: ids that end a completion; an answer without one gets the first.
    """
    ends = [ends] if isinstance(ends, int) else list(ends)
    closed = end_texts(tokenizer, ends)
    tokens = following_ids(tokenizer, [closed_text(answer, closed) for answer in answers])
    return [ids if ids and ids[-1] in ends else [*ids, ends[0]] for ids in tokens]


def following_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that stand behind another text.

    Many tokenizers begin a text with a space of their own (SentencePiece, Metaspace, `add_prefix_space`), which would
    stand between a prompt and its answer. They read the text behind an anchor, whose tokens are then cut off.
    """
    found = plain_ids(tokenizer, texts)
    if not opens_with_space(tokenizer):
        return found
    missing = [i for i, text in enumerate(texts) if text]
    for anchor, front, start in _anchors(tokenizer):
        whole = plain_ids(tokenizer, [anchor + texts[i] for i in missing])
        for i, ids, text in zip(tuple(missing), whole, decoded(tokenizer, whole), strict=True):
            spaced = text.removeprefix(start)[:1].isspace() != texts[i][:1].isspace()
            if ids[: len(front)] == front and text.startswith(start) and not spaced:
                found[i] = ids[len(front) :]
                missing.remove(i)
    return found


def following_texts(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> list[str]:
    """The texts of tokens that stand behind a prompt: where a decoder drops a text's first space, this one stays."""
    if not opens_with_space(tokenizer):
        return decoded(tokenizer, tokens)
    _, front, start = next(_anchors(tokenizer), ("", [], ""))
    return [text.removeprefix(start) for text in decoded(tokenizer, [[*front, *ids] for ids in tokens])]


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts, with nothing added."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def decoded(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> list[str]:
    """The texts of tokens as they are: no space is cleaned away."""
    # one by one: a batch of nothing, and one that begins with nothing, are taken for a single text
    return [tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in tokens]


def opens_with_space(tokenizer: Any) -> bool:
    """Does a text's first token stand for more than the text?"""
    [ids] = plain_ids(tokenizer, ["a"])
    return decoded(tokenizer, [ids + ids]) != ["aa"]


def end_texts(tokenizer: Any, ends: Sequence[int]) -> tuple[str, ...]:
    """Those ends that are special tokens, as they stand in a text."""
    special = tokenizer.added_tokens_decoder
    return tuple(str(special[end]) for end in ends if end in special)


def closed_text(text: str, ends: tuple[str, ...]) -> str:
    """The text up to its end token; as it is where none closes it. Templates put a line's end behind theirs."""
    stripped = text.rstrip()
    return stripped if not text.endswith(ends) and stripped.endswith(ends) else text


def open_text(text: str, ends: tuple[str, ...]) -> str:
    """The text without the end token that closes it, as completions are scored."""
    closed = closed_text(text, ends)
    return next((closed.removesuffix(end) for end in ends if closed.endswith(end)), text)


def _anchors(tokenizer: Any) -> Iterator[tuple[str, list[int], str]]:
    """Each anchor that the tokenizer keeps, its tokens, and the text that these give."""
    for anchor in ANCHORS:
        [front] = plain_ids(tokenizer, [anchor])
        [start] = decoded(tokenizer, [front])
        if start.endswith(anchor):
            yield anchor, front, start


def _front(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text of its own accord."""
    full = list(tokenizer(ANCHORS[-1])["input_ids"])
    [plain] = plain_ids(tokenizer, [ANCHORS[-1]])
    places = [k for k in range(len(full) - len(plain) + 1) if full[k : k + len(plain)] == plain]
    return full[: places[0]] if places else []


def _behind(front: list[int], ids: list[int]) -> list[int]:
    """Both, joined where they overlap."""
    shared = max(k for k in range(len(front) + 1) if ids[:k] == front[len(front) - k :])
    return [*front, *ids[shared:]]
