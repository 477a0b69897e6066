"""Language models: loading, saving, checking, the built-in one, and the heads and adapters put on them."""

from telescope.language.models.causal import ends_of, load, save

__all__ = ["ends_of", "load", "save"]
