"""Small tokenizers of the kinds that models come with: byte-level, Metaspace and SentencePiece, with BOS and EOS."""

import functools

from telescope.language.models.tokenizer import characters

SPECIAL = ["<s>", "</s>", "<unk>", "<pad>"]
TEXTS = [f"Add {a}+{b}={a + b} and say so:\nfine. so it is" for a in range(30) for b in range(30)]


def _framed(tokenizer, trainer, *, end=False):
    """Trained, with BOS before each text, and with EOS behind it where that is asked for."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.train_from_iterator(TEXTS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A" + " </s>" * end, special_tokens=ids)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def metaspace(scheme, *, end=False, unigram=False):
    """As Llama 2, Mistral and Gemma (BPE) or T5 and XLNet (Unigram) are converted: "▁" for a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    settings = {"vocab_size": 300, "special_tokens": SPECIAL}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **settings) if unigram else trainers.BpeTrainer(**settings)
    return _framed(tokenizer, trainer, end=end)


def sentencepiece():
    """The older conversion of Llama 2: the space is prepended by the normaliser and stripped by the decoder."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    return _framed(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL + bytes_))


def byte_level(*, space=False, end=False):
    """As GPT-2 or Llama 3 have it; with a space before each text as RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    return _framed(tokenizer, trainer, end=end)


KINDS = {
    "byte level": byte_level,
    "byte level, ends": functools.partial(byte_level, end=True),
    "byte level, space first": functools.partial(byte_level, space=True),
    "metaspace always": functools.partial(metaspace, "always"),
    "metaspace first, ends": functools.partial(metaspace, "first", end=True),
    "metaspace never": functools.partial(metaspace, "never"),
    "unigram": functools.partial(metaspace, "always", unigram=True, end=True),
    "sentencepiece": sentencepiece,
    "characters": characters,
}


@functools.cache
def kind(name):
    """One of them, made once."""
    return KINDS[name]()
