"""Random numbers of agents in environments, keyed by the seed's value, the purpose and the iteration.

There is no generator state to save, and another seed changes nothing for the others.
"""

import numpy as np

INIT, ACTIONS, MINIBATCHES, TRAINING_ENVIRONMENTS, EVALUATION_ENVIRONMENTS, EVALUATION_ACTIONS = range(6)
RECORDED_ENVIRONMENTS, RECORDED_ACTIONS = 20, 21
REPLAY, BOOTSTRAPS, STARTS, SAMPLES = 6, 7, 8, 9


def generator(seed: int, stream: int, iteration: int = 0) -> np.random.Generator:
    """A new generator for one seed (its value, never its position), one purpose and one iteration."""
    return np.random.default_rng([seed, stream, iteration])
