"""Text to tokens and back. The tokens of a prompt and of its continuation, joined, are the tokens of the joined text.

Special tokens that a text already has are not added again, no token is added after a prompt, and an answer has one end
token. Leaves out padding (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

ANCHORS = ("\n", "=", "a", "0")
"""Texts to put before an answer, so that the tokenizer reads it as the middle of a text."""


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts, with those that the tokenizer adds before a text (BOS), without those it adds after.

    A rendered chat template already begins with BOS; it is not added again.
    """
    front = _front(tokenizer)
    return [_behind(front, ids) for ids in plain_ids(tokenizer, prompts)]


def answer_ids(tokenizer: Any, answers: Sequence[str], ends: int | Sequence[int]) -> list[list[int]]:
    """The tokens of answers that follow a prompt, each with one end token.

    ends: ids that end a completion. An answer without one gets the first.
    """
    ends = [ends] if isinstance(ends, int) else list(ends)
    closed = end_texts(tokenizer, ends)
    tokens = following_ids(tokenizer, [closed_text(answer, closed) for answer in answers])
    return [ids if ids and ids[-1] in ends else [*ids, ends[0]] for ids in tokens]


def turn_ids(tokenizer: Any, turns: Sequence[tuple[str, bool]], ends: Sequence[int]) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation's turns after its first text, and whether each belongs to a learned turn.

    The last learned turn has one end token, as an answer has.
    """
    tokens, learned = list[int](), list[bool]()
    for i, (text, own) in enumerate(turns):
        last = own and not any(later for _, later in turns[i + 1 :])
        [ids] = answer_ids(tokenizer, [text], ends) if last else following_ids(tokenizer, [text])
        tokens, learned = tokens + ids, learned + [own] * len(ids)
    return tokens, learned


def following_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that follow another text.

    Many tokenizers add a space before a text (SentencePiece, Metaspace, `add_prefix_space`). It would come between a
    prompt and its answer. So they tokenise the text after an anchor, whose tokens are then removed.
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
    """The texts of tokens that follow a prompt. Keeps a first space that a decoder would drop."""
    if not opens_with_space(tokenizer):
        return decoded(tokenizer, tokens)
    _, front, start = next(_anchors(tokenizer), ("", [], ""))
    return [text.removeprefix(start) for text in decoded(tokenizer, [[*front, *ids] for ids in tokens])]


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts, without special tokens."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def decoded(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> list[str]:
    """The exact texts of tokens, without any clean-up of spaces."""
    # one by one: an empty batch, and one that begins with an empty list, would be taken for a single text
    return [tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in tokens]


def opens_with_space(tokenizer: Any) -> bool:
    """Whether the first token of a text includes an added space."""
    [ids] = plain_ids(tokenizer, ["a"])
    return decoded(tokenizer, [ids + ids]) != ["aa"]


def end_texts(tokenizer: Any, ends: Sequence[int]) -> tuple[str, ...]:
    """The texts of those ends that are special tokens."""
    special = tokenizer.added_tokens_decoder
    return tuple(str(special[end]) for end in ends if end in special)


def closed_text(text: str, ends: tuple[str, ...]) -> str:
    """The text up to its end token; unchanged without one. Templates add a newline after it."""
    stripped = text.rstrip()
    return stripped if not text.endswith(ends) and stripped.endswith(ends) else text


def open_text(text: str, ends: tuple[str, ...]) -> str:
    """The text without its end token, as completions are scored."""
    closed = closed_text(text, ends)
    return next((closed.removesuffix(end) for end in ends if closed.endswith(end)), text)


def _anchors(tokenizer: Any) -> Iterator[tuple[str, list[int], str]]:
    """Yield each anchor that the tokenizer keeps, its tokens, and their text."""
    for anchor in ANCHORS:
        [front] = plain_ids(tokenizer, [anchor])
        [start] = decoded(tokenizer, [front])
        if start.endswith(anchor):
            yield anchor, front, start


def _front(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer adds before a text."""
    full = list(tokenizer(ANCHORS[-1])["input_ids"])
    [plain] = plain_ids(tokenizer, [ANCHORS[-1]])
    places = [k for k in range(len(full) - len(plain) + 1) if full[k : k + len(plain)] == plain]
    return full[: places[0]] if places else []


def _behind(front: list[int], ids: list[int]) -> list[int]:
    """Concatenate both, without repeating their overlap."""
    shared = max(k for k in range(len(front) + 1) if ids[:k] == front[len(front) - k :])
    return [*front, *ids[shared:]]
