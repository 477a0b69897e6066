"""The settings of algorithms on environments, and how a preset is chosen for an environment.

They are frozen dataclasses with a docstring under each field; an algorithm extends them with its own settings. Other
modules make command-line flags and config files from them.
"""

from telescope.control.config.learner import AgentConfig, ControlConfig, LearnerConfig, RewardConfig
from telescope.control.config.policy import EpisodeConfig, MemoryConfig, OnPolicyConfig, PolicyConfig
from telescope.control.config.presets import MUJOCO_FAMILY, for_family

__all__ = [
    "MUJOCO_FAMILY",
    "AgentConfig",
    "ControlConfig",
    "EpisodeConfig",
    "LearnerConfig",
    "MemoryConfig",
    "OnPolicyConfig",
    "PolicyConfig",
    "RewardConfig",
    "for_family",
]
