"""A built-in language model of one narrow layer, for tests that are about trainers."""

from transformers import LlamaConfig

from telescope.language.models.tokenizer import EOS, PAD, VOCABULARY


def narrow(width: int) -> LlamaConfig:
    shape = {"vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": width}
    tokens = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS, "max_position_embeddings": 512}
    return LlamaConfig(**shape, **tokens, num_hidden_layers=1, num_attention_heads=2)
