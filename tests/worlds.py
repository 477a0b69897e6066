"""Small worlds whose truth is known, for learning tests."""

import gymnasium as gym
import numpy as np


class Chain(gym.Env):
    """States 0 … n−1 in a row, start at 0; action 1 goes right, 0 left. Reward 1 and the end at the right end.

    Going left from 0 pays a lure of 0.05 and stays. The optimum is to go right always: V*(s) = γ^(n−2−s).
    """

    def __init__(self, n: int = 5) -> None:
        self.n, self.observation_space, self.action_space = n, gym.spaces.Discrete(n), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        lured = action == 0 and self.state == 0
        self.state = max(self.state + (1 if action else -1), 0)
        ended = self.state == self.n - 1
        return self.state, 1.0 if ended else 0.05 * lured, ended, False, {}


class Forever(gym.Env):
    """Reward 1 at every step, one state, and episodes that only ever time out: V = 1 / (1 − γ)."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, limit: int = 5, *, broken_at: int | None = None, blind_at_the_end: bool = False) -> None:
        self.limit, self.broken_at, self.total = limit, broken_at, 0
        self.blind_at_the_end = blind_at_the_end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        reward = float("nan") if self.total == self.broken_at else 1.0
        truncated = self.steps >= self.limit
        seen = np.full(1, np.nan if truncated and self.blind_at_the_end else 1.0, np.float32)
        return seen, reward, False, truncated, {}


class Masked(gym.Env):
    """Three actions of which one, another each step, is forbidden; taking a forbidden one is an error."""

    observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def _view(self):
        forbidden = self.np_random.integers(3)
        self.mask = np.arange(3) != forbidden
        return self.mask.astype(np.float32), {"action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._view()

    def step(self, action):
        assert self.mask[action], "a forbidden action was taken"
        self.steps += 1
        observation, info = self._view()
        return observation, float(action), self.steps >= 6, False, info


class Forced(Masked):
    """The same with one action allowed at a time, so that there is nothing to choose."""

    def _view(self):
        self.mask = np.arange(3) == self.np_random.integers(3)
        return self.mask.astype(np.float32), {"action_mask": self.mask}


class Spaces(gym.Env):
    """One step pays for how close the action is to a target; any observation and action space."""

    def __init__(self, observation_space, action_space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        closeness = -float(np.abs(np.asarray(action, dtype=float) - 1).sum())
        return self.observation_space.sample(), closeness, False, self.steps >= 7, {}


class Edge(Spaces):
    """The `Spaces` whose action is a number in −3 … 1 and best at its upper bound. Random ones earn −14 an episode."""

    def __init__(self) -> None:
        super().__init__(gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Box(-3.0, 1.0, (1,)))


class Lit(gym.Env):
    """One of two halves of a picture is lit; six actions that say which earn 6."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, dtype: str = "uint8", size: int = 5, first: bool = False) -> None:
        shape = (1, size, size) if first else (size, size, 1)
        self.observation_space = gym.spaces.Box(0, 255 if dtype == "uint8" else 1, shape, np.dtype(dtype).type)

    def _view(self):
        space = self.observation_space
        seen = np.zeros(space.shape, space.dtype)
        self.lit = int(self.np_random.integers(2))
        seen[(slice(None), slice(0, 2) if self.lit else slice(3, 5))] = space.high.max()
        return seen, {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._view()

    def step(self, action):
        earned, self.steps = float(action == self.lit), self.steps + 1
        seen, info = self._view()
        return seen, earned, self.steps == 6, False, info


class Recall(gym.Env):
    """A cue at the first step, then nothing to see; the last action is right if it says what the cue was.

    Who remembers earns 1 an episode, everybody else ½ on average. `truncated` says in which way an episode ends.
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, steps: int = 3, *, truncated: bool = False) -> None:
        self.length, self.truncated = steps, truncated

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.cue = 0, int(self.np_random.integers(2))
        return np.full(1, 2 * self.cue - 1, np.float32), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.length
        right = float(over and action == self.cue)
        return np.zeros(1, np.float32), right, over and not self.truncated, over and self.truncated, {}


class Shown(gym.ObservationWrapper):
    """`Recall` as a picture: a square in one channel or the other, then darkness."""

    def __init__(self, steps: int = 3, *, truncated: bool = False) -> None:
        super().__init__(Recall(steps, truncated=truncated))
        self.observation_space = gym.spaces.Box(0, 255, (6, 6, 2), np.uint8)

    def observation(self, observation):
        image = np.zeros((6, 6, 2), np.uint8)
        if observation[0]:
            image[2:4, 2:4, int(observation[0] > 0)] = 255
        return image


class Pixels(gym.Env):
    """Images of bytes [2, 3, 4] whose first byte says which action pays: 255 the second, 0 the first."""

    observation_space = gym.spaces.Box(0, 255, (2, 3, 4), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def _view(self):
        self.right = int(self.np_random.integers(2))
        image = self.np_random.integers(0, 256, (2, 3, 4)).astype(np.uint8)
        image[0] = 255 * self.right
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._view(), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.right)
        return self._view(), reward, False, self.steps >= 4, {}
