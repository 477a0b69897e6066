"""Language models: loading, saving, checks, the built-in model, and heads and adapters on models."""

from telescope.language.models.causal import ends_of, load, save

__all__ = ["ends_of", "load", "save"]
