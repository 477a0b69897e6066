"""S × B environments as one: making, stepping, checking, saving and restoring them. Nothing here learns."""

from telescope.control.environments.population import Environments, Step

__all__ = ["Environments", "Step"]
