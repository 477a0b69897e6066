"""S × B environments as one object: make, step, check, save and restore them. Leaves out learning."""

from telescope.control.environments.population import Environments, Step

__all__ = ["Environments", "Step"]
