"""Random numbers of a run on a language model: keyed with its seed, a purpose and the step.

There is no generator state to store, and one purpose never disturbs another. It leaves out what is drawn.
"""

import numpy as np

PROMPTS, TOKENS, MINIBATCHES, DEMONSTRATIONS, PAIRS, EVALUATION = range(6)
"""The purposes."""


def generator(seed: int, purpose: int, iteration: int = 0, part: int = 0) -> np.random.Generator:
    """The random numbers of a run for one purpose in one part of a step."""
    return np.random.default_rng([seed, purpose, iteration, part])
