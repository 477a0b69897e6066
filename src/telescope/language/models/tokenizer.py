"""The character tokenizer of the built-in model, saved and loaded like any other transformers tokenizer.

Every printable ASCII character is a token; all others are unknown. Leaves out learned vocabularies.
"""

from __future__ import annotations

from typing import Any

SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = (*map(chr, range(32, 127)), "\n")
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
PAD, EOS = 0, 1


def characters() -> Any:
    """A `PreTrainedTokenizerFast` with one token per character, and separate tokens for padding and end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
