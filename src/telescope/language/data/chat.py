"""Conversations: what they are, and how a tokenizer's chat template turns them into the text that a model reads.

The text is always `apply_chat_template`'s. Leaves out tokens (`text.py`).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from telescope.rewards import text_of

Message = dict[str, Any]
"""`role` and `content`, and whatever else a template knows (`tool_calls`, `reasoning_content`, …)."""
MARK = "\u2063content\u2063"
"""A content that no template writes by itself."""


class Rendered(str):
    """A part of a conversation as text. A prompt knows its row of the data, a completion where the loss counts."""

    __slots__ = ("pieces", "prefill", "row")
    row: dict[str, Any]
    """The row as the data has it, with messages. Reward functions receive them."""
    prefill: str
    """The end of the prompt that already belongs to the assistant's message, such as `<think>`."""
    pieces: tuple[tuple[str, bool], ...]
    """The texts of several messages, and whether the assistant wrote them."""


def is_conversation(value: Any) -> bool:
    """Whether it is a list of messages with roles."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def parted(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a `prompt`, from `messages` or from what `chosen` and `rejected` share."""
    if "prompt" in row:
        return row
    messages: Any = row.get("messages")
    if is_conversation(messages):
        if messages[-1]["role"] != "assistant":
            return {"prompt": messages, **row}
        return {"prompt": messages[:-1], "completion": messages[-1:], **row}
    pair: list[Any] = [row.get("chosen"), row.get("rejected")]
    if all(isinstance(text, str) for text in pair) or all(map(is_conversation, pair)):
        asked = shared(*pair)
        if isinstance(asked, str):  # answers are whole words, with the space before them
            asked = re.sub(r"\s*\S*$", "", asked)
        rest = [text[len(asked) :] for text in pair]
        return row | {"prompt": asked, "chosen": rest[0], "rejected": rest[1]}
    return row


def shared(one: Any, two: Any) -> Any:
    """The common beginning of two texts or conversations."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))
    return one[: sum(1 for _ in same)]


def key_of(prompt: str | list[Message]) -> str:
    """The text that decides whether a prompt is held out. It is the same for all templates."""
    if isinstance(prompt, Rendered):
        prompt = prompt.row["prompt"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def source(row: dict[str, Any]) -> dict[str, Any]:
    """The row as the data has it."""
    return row["prompt"].row if isinstance(row["prompt"], Rendered) else row


def as_completion(row: dict[str, Any], text: str) -> str | list[Message]:
    """What a reward function receives for a completion's text: in a conversation, the assistant's whole message."""
    prompt = row["prompt"]
    return [{"role": "assistant", "content": prompt.prefill + text}] if isinstance(prompt, Rendered) else text


class Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"the prompts are conversations, but the tokenizer of {name} has no chat template; use a model that "
                "has one, or give prompts as texts"
            )
        self.tokenizer, self.name = tokenizer, name
        self._prefills = dict[str, str]()

    def text(self, messages: Sequence[Message], row: dict[str, Any], **settings: Any) -> str:
        """`apply_chat_template`'s text, with the row's `tools` and `chat_template_kwargs`."""
        more = {**(row.get("chat_template_kwargs") or {}), **settings}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tools=row.get("tools") or None, tokenize=False, **more
                )
            )
        except Exception as error:  # a template may raise any error about a conversation that it does not admit
            raise ValueError(
                f"the chat template of {self.name} does not take the conversation {messages!r}: "
                f"{' '.join(str(error).split())}"
            ) from error

    def asked(self, row: dict[str, Any]) -> str:
        """The text of a prompt, after which the assistant's answer follows."""
        messages = row["prompt"]
        if messages[-1]["role"] == "assistant":
            return self.text(messages, row, continue_final_message=True)
        return self.text(messages, row, add_generation_prompt=True)

    def prefill(self, row: dict[str, Any]) -> str:
        """The part of the assistant's message that the prompt already has.

        A template that opens a message with `<think>` writes it after what it writes before any content.
        """
        messages = row["prompt"]
        if messages[-1]["role"] == "assistant":
            content = text_of(messages)
            return content if self.asked(row).endswith(content) else content.strip()  # many templates strip contents
        key = json.dumps([row.get("tools"), row.get("chat_template_kwargs")], sort_keys=True, default=str)
        if key not in self._prefills:
            self._prefills[key] = self._opening(row)
        return self._prefills[key]

    def _opening(self, row: dict[str, Any]) -> str:
        asking, saying = {"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}
        try:
            bare = self.text([asking], row)
            opened = self.text([asking], row, add_generation_prompt=True)
            last, inner = (self.text(texts, row) for texts in ([asking, saying], [asking, saying, asking]))
        except ValueError:  # a template that admits no such conversation
            return ""
        before = [text.partition(MARK)[0] for text in (last, inner)]
        if not opened.startswith(bare) or opened == before[0]:
            return ""
        return next((opened.removeprefix(one) for one in before[::-1] if opened.startswith(one)), "")

    def joined(self, row: dict[str, Any], answer: str | list[Message]) -> str:
        """The text of a prompt and its answer."""
        messages = row["prompt"]
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        if messages[-1]["role"] == "assistant" and said and said[0]["role"] == "assistant":
            content = text_of(messages) + text_of(said[:1])
            messages, said = messages[:-1], [{**said[0], "content": content}, *said[1:]]
        return self.text([*messages, *said], row)

    def turns(self, row: dict[str, Any], answer: str | list[Message], ends: tuple[str, ...]) -> tuple[str, Rendered]:
        """The text before the assistant's first turn, and the rest, of which the assistant's turns are learned.

        A turn reaches from the end of the generation prompt to its end token.
        """
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        messages = [*row["prompt"], *said]
        whole, pieces, done = self.text(messages, row), list[tuple[str, bool]](), 0
        for i in (i for i, message in enumerate(messages) if message["role"] == "assistant" and i):
            if not whole.startswith(self.text(messages[:i], row)):
                raise ValueError(
                    f"the chat template of {self.name} writes earlier turns of a conversation in another way than the "
                    f"last one, so turn {i + 1} of {messages!r} cannot be learned; use loss_on completion"
                )
            # a template may open the last message with a thought that it drops from an earlier one
            start = len(shared(self.text(messages[:i], row, add_generation_prompt=True), whole))
            stop = min((at + len(end) for end in ends if (at := whole.find(end, start)) >= 0), default=len(whole))
            pieces += [(whole[done:start], False), (whole[start:stop], True)]
            done = stop
        pieces = [piece for piece in pieces if piece[0]]
        first = pieces.pop(0)[0] if pieces and not pieces[0][1] else ""
        rest = Rendered("".join(text for text, _ in pieces))
        rest.pieces = tuple(pieces)
        return first, rest

    def render(
        self, row: dict[str, Any], learned: Sequence[str], ends: tuple[str, ...] | None = None
    ) -> dict[str, Any]:
        """A row with the texts of its prompt and of its learned columns. ends: every assistant turn is learned."""
        asked, texts = self.asked(row), dict[str, str]()
        answers = {name: row[name] for name in learned if isinstance(row.get(name), str | list)}
        if "completion" in learned and answers:  # an `answer` to compare with stays as it is
            answers = {"completion": next(iter(answers.values()))}
        if ends is not None and answers:
            asked, texts["completion"] = self.turns(row, answers["completion"], ends)
        else:
            texts = {name: self.joined(row, answer) for name, answer in answers.items()}
            if not all(text.startswith(asked) for text in texts.values()):  # the template writes answers otherwise
                asked = functools.reduce(shared, texts.values(), asked)
            texts = {name: text.removeprefix(asked) for name, text in texts.items()}
        prompt = Rendered(asked)
        prompt.row, prompt.prefill = row, self.prefill(row)
        return row | texts | {"prompt": prompt}


def rendered(
    rows: Sequence[dict[str, Any]], template: Template, learned: Sequence[str], ends: tuple[str, ...] | None = None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function from each of these rows, or another one, to its rendered form."""
    made = {id(row): template.render(row, learned, ends) for row in rows}
    return lambda row: made[id(row)] if id(row) in made else template.render(row, learned, ends)
