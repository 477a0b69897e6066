"""Random numbers of environments' agents, keyed by the seed's value, the purpose and the iteration.

There is no generator state to store, and adding a seed changes no other.
"""

import numpy as np

INIT, ACTIONS, MINIBATCHES, TRAINING_ENVIRONMENTS, EVALUATION_ENVIRONMENTS, EVALUATION_ACTIONS, REPLAY = range(7)


def generator(seed: int, stream: int, iteration: int = 0) -> np.random.Generator:
    """The random numbers of one seed (its value, never its position) for one purpose in one iteration."""
    return np.random.default_rng([seed, stream, iteration])
