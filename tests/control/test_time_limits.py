"""`max_episode_steps` means the same whoever steps the environment; Gymnasium writes no limit as −1."""

import importlib.util

import numpy as np
import pytest

from telescope.control.environments.population import Environments

WAYS = [{"vectorization": "sync"}, {"vectorization": "vector_entry_point"}]
if importlib.util.find_spec("envpool"):
    WAYS.append({"backend": "envpool"})


def lengths(limit, way, steps=12):
    """Lengths of the episodes of a cart that is pushed to and fro: it stands longer than that by itself."""
    environments = Environments("CartPole-v1", seeds=[0], num_envs=1, env_kwargs={"max_episode_steps": limit}, **way)
    environments.reset()
    length, found = 0, []
    for t in range(steps):
        step = environments.step(np.full((1, 1), t % 2))
        length += int(step.mask.sum())
        if step.truncated.any():
            found.append(length)
            length = 0
        assert not step.terminated.any()
    environments.close()
    return found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_limit_is_a_limit_and_none_is_none(way):
    assert lengths(5, way)[:2] == [5, 5]
    assert lengths(-1, way) == [], "−1 is no limit, not a limit of one step"
    assert lengths(None, way) == [], "None is the id's own, 500"
    assert lengths(np.int64(5), way)[:1] == [5]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("limit", [0, -2, 2.5, True, "many"])
def test_what_is_no_limit_is_refused(way, limit):
    with pytest.raises(ValueError, match=f"max_episode_steps is {limit!r}; expected a whole number > 0, or -1"):
        lengths(limit, way)


def test_a_callables_argument_of_that_name_is_its_own_affair():
    def make(max_episode_steps):
        assert max_episode_steps == 0
        import gymnasium as gym

        return gym.make("CartPole-v1")

    Environments(make, seeds=[0], num_envs=1, env_kwargs={"max_episode_steps": 0}).close()
