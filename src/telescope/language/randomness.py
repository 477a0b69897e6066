"""Random numbers of a run on a language model, keyed by its seed, a purpose and the step.

There is no generator state to save, and one purpose never disturbs another.
"""

import numpy as np

PROMPTS, TOKENS, MINIBATCHES, DEMONSTRATIONS, PAIRS, EVALUATION = range(6)
"""The purposes."""


def generator(seed: int, purpose: int, iteration: int = 0, part: int = 0) -> np.random.Generator:
    """A new generator for one purpose in one part of a step."""
    return np.random.default_rng([seed, purpose, iteration, part])
