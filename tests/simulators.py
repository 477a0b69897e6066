"""Small simulators whose arrays are torch tensors, in every autoreset mode; and one with Brax's interface.

Module-level functions of theirs can be named on the command line: `--env simulators:walkers`.
"""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

MODES = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}


class Guarded(torch.Tensor):
    """A tensor that must not leave its device: whoever turns it, or what is made of it, into NumPy is told off."""

    forbidden = ("cpu", "numpy", "tolist", "item", "__array__", "__array_wrap__")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in cls.forbidden:
            raise AssertionError(f"an observation was copied to the host by {func.__name__}")
        return super().__torch_function__(func, types, args, kwargs or {})

    def __array__(self, *_, **__):
        raise AssertionError("an observation became a NumPy array")

    def numpy(self, *_, **__):
        raise AssertionError("an observation became a NumPy array")


class Walkers:
    """Walkers on −2 … 2. Action 1 goes right, 0 left; to leave at the right pays 1, at the left 0, and both end.

    A time limit truncates. Each walker's starts follow from its own seed and the number of its episode. Observations
    are [position / 3, steps / 10], in one buffer that every step overwrites.
    """

    def __init__(self, num_envs, device="cpu", mode="same_step", limit=7, guarded=False, masks=False, shape=None):
        self.num_envs, self.device, self.limit = num_envs, device, limit
        self.guarded, self.masks, self.mode, self.shape = guarded, masks, mode, shape
        self.metadata = {"autoreset_mode": MODES[mode]}
        self.single_observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        if shape == "dict":
            self.single_observation_space = gym.spaces.Dict(
                {"place": gym.spaces.Box(-1.0, 1.0, (1,), np.float32), "steps": gym.spaces.Discrete(20)}
            )
        self.single_action_space = gym.spaces.Discrete(2)
        self.seen = torch.zeros((num_envs, 2), device=device)
        self.position, self.steps, self.seeds, self.episodes = (self._zeros() for _ in range(4))
        self.over = self._zeros().bool()
        self.closed = False

    def _zeros(self):
        return torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)

    def reset(self, *, seed=None, options=None):
        which = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        if seed is not None:
            self.seeds, self.episodes = torch.tensor(seed, device=self.device), self._zeros()
        if options is not None:
            which = options["reset_mask"]
        self._begin(which)
        self.over = torch.zeros_like(self.over)
        return self._view(), self._infos()

    def _begin(self, which):
        self.episodes = self.episodes + which
        start = (self.seeds % 1009 * 31 + self.episodes * 17) % 5 - 2
        self.position, self.steps = torch.where(which, start, self.position), torch.where(which, 0, self.steps)

    def _view(self):
        self.seen[:, 0], self.seen[:, 1] = self.position / 3, self.steps / 10
        if self.shape == "dict":
            return {"steps": self.steps.clone(), "place": self.seen[:, :1]}
        return self.seen.as_subclass(Guarded) if self.guarded else self.seen

    def _infos(self):
        if not self.masks:
            return {}
        at_left = self.position == -2  # where to leave to the left is forbidden
        return {"action_mask": torch.stack([~at_left, torch.ones_like(at_left)], 1)}

    def step(self, actions):
        assert actions.dtype == torch.int64
        assert actions.shape == (self.num_envs,)
        if self.masks:
            assert not ((self.position == -2) & (actions == 0) & ~self.over).any()
        self.position, self.steps = self.position + 2 * actions - 1, self.steps + 1
        terminated = self.position.abs() > 2
        reward = (self.position > 2).float()
        truncated = (self.steps >= self.limit) & ~terminated
        infos = {}
        if self.mode == "next_step" and self.over.any():  # whatever the action was, these begin anew
            self._begin(self.over)
            reward, terminated, truncated = reward.masked_fill(self.over, 9.0), terminated & ~self.over, truncated
            truncated = truncated & ~self.over
        ended = terminated | truncated
        self.over = ended
        if self.mode == "same_step" and ended.any():
            final = self._view()
            infos["final_obs"] = {k: v.clone() for k, v in final.items()} if self.shape == "dict" else final.clone()
            self._begin(ended)
        return self._view(), reward, terminated, truncated, {**infos, **self._infos()}

    NAMES = ("position", "steps", "seeds", "episodes", "over")

    def state(self):
        return {name: getattr(self, name) for name in self.NAMES}

    def restore(self, state):
        for name in self.NAMES:
            setattr(self, name, state[name].to(self.device))
        self._view()

    def close(self):
        self.closed = True


def walkers(num_envs, device="cpu", **settings):
    return Walkers(num_envs, device, **settings)


class Forgetful(Walkers):
    """Without state() and restore(), as most simulators are."""

    state = restore = None


def forgetful(num_envs):
    return Forgetful(num_envs)
