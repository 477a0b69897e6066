"""PPO as CleanRL describes it, written anew: one visible loop, torch, synchronous Gymnasium environments, its tricks.

It leaves out what costs CleanRL more time (TensorBoard, printing) and what the benchmark's tasks do not use
(annealing, the clipped value loss, early stopping). An episode cut off by its time limit counts as ended, as there.
"""

# T time, B environments, D observation size
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from benchmarks.train_settings import Task

Act = Callable[[np.ndarray], np.ndarray]


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """Orthogonal weights, zero biases."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def perceptron(inputs: int, hidden: tuple[int, ...], outputs: int, gain: float) -> nn.Sequential:
    widths = [inputs, *hidden]
    inner = [part for a, b in zip(widths, hidden, strict=False) for part in (layer(a, b), nn.Tanh())]
    return nn.Sequential(*inner, layer(widths[-1], outputs, gain))


class Agent(nn.Module):
    """A critic and an actor; continuous actions have a σ that does not depend on the state."""

    def __init__(self, observations: gym.spaces.Box, actions: gym.Space, hidden: tuple[int, ...]) -> None:
        super().__init__()
        inputs = int(np.prod(observations.shape))
        self.discrete = isinstance(actions, gym.spaces.Discrete)
        outputs = int(actions.n) if self.discrete else int(np.prod(actions.shape))
        self.critic = perceptron(inputs, hidden, 1, gain=1.0)
        self.actor = perceptron(inputs, hidden, outputs, gain=0.01)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(1, outputs))

    def policy(self, observations: Tensor) -> Categorical | Normal:
        found = self.actor(observations)
        return Categorical(logits=found) if self.discrete else Normal(found, self.log_std.expand_as(found).exp())

    def evaluate(self, observations: Tensor, actions: Tensor | None = None) -> tuple[Tensor, ...]:
        """Actions (drawn if not given), log π, entropy and V."""
        policy = self.policy(observations)
        actions = policy.sample() if actions is None else actions
        log_probs, entropy = policy.log_prob(actions), policy.entropy()
        if not self.discrete:
            log_probs, entropy = log_probs.sum(1), entropy.sum(1)
        return actions, log_probs, entropy, self.critic(observations).flatten()

    def mode(self, observations: Tensor) -> Tensor:
        found = self.actor(observations)
        return found.argmax(1) if self.discrete else found


def environment(task: Task) -> Callable[[], gym.Env]:
    """One environment in the wrappers that its kind of action space asks for."""

    def make() -> gym.Env:
        env = gym.wrappers.RecordEpisodeStatistics(gym.make(task.env))
        if isinstance(env.action_space, gym.spaces.Box):
            env = gym.wrappers.ClipAction(gym.wrappers.FlattenObservation(env))
        if task.normalise:
            env = gym.wrappers.NormalizeObservation(env)
            env = gym.wrappers.TransformObservation(env, lambda o: np.clip(o, -10, 10), env.observation_space)
            env = gym.wrappers.NormalizeReward(env, gamma=task.gamma)
            env = gym.wrappers.TransformReward(env, lambda r: float(np.clip(r, -10, 10)))
        return env

    return make


class Rollout(NamedTuple):
    """What T steps of B environments leave behind, [T, B, …]; `started` marks the first step of an episode."""

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    started: Tensor
    values: Tensor

    @classmethod
    def empty(cls, task: Task, envs: gym.vector.VectorEnv) -> "Rollout":
        shape = (task.num_steps, task.num_envs)
        sizes = (envs.single_observation_space.shape, envs.single_action_space.shape, (), (), (), ())
        return cls(*(torch.zeros(shape + tuple(size)) for size in sizes))


def train(task: Task, *, seed: int, steps: int) -> Iterator[tuple[int, Act]]:
    """Yields, after each iteration, the steps so far and the policy's mode as a function of raw observations."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    mode = gym.vector.AutoresetMode.SAME_STEP
    envs = gym.vector.SyncVectorEnv([environment(task)] * task.num_envs, autoreset_mode=mode)
    agent = Agent(envs.single_observation_space, envs.single_action_space, task.hidden)
    optimizer = torch.optim.Adam(agent.parameters(), lr=task.learning_rate, eps=task.adam_eps)
    rollout = Rollout.empty(task, envs)
    observations, started = torch.tensor(envs.reset(seed=seed)[0], dtype=torch.float32), torch.zeros(task.num_envs)
    for iteration in range(1, steps // task.batch + 1):
        for t in range(task.num_steps):
            rollout.observations[t], rollout.started[t] = observations, started
            with torch.no_grad():
                actions, rollout.log_probs[t], _, rollout.values[t] = agent.evaluate(observations)
            rollout.actions[t] = actions
            found, rewards, terminated, truncated, _ = envs.step(actions.numpy())
            rollout.rewards[t] = torch.tensor(rewards)
            observations = torch.tensor(found, dtype=torch.float32)
            started = torch.tensor(np.logical_or(terminated, truncated), dtype=torch.float32)
        with torch.no_grad():
            last = agent.critic(observations).flatten()
        update(task, agent, optimizer, rollout, advantages(task, rollout, last, started))
        yield iteration * task.batch, acting(task, agent, envs)
    envs.close()


def advantages(task: Task, rollout: Rollout, last: Tensor, started: Tensor) -> Tensor:
    """GAE as a loop over tensors; `last` and `started` belong to the step after the rollout."""
    found, later = torch.zeros_like(rollout.rewards), torch.zeros_like(last)
    ahead = last
    for t in reversed(range(task.num_steps)):
        going = 1.0 - started
        delta = rollout.rewards[t] + task.gamma * ahead * going - rollout.values[t]
        found[t] = later = delta + task.gamma * task.lam * going * later
        ahead, started = rollout.values[t], rollout.started[t]
    return found


def update(
    task: Task, agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, found: Tensor
) -> dict[str, float]:
    """Epochs of shuffled minibatches; the debug variables of the last one, and the clipped fraction of all."""
    samples = Rollout(*(x.flatten(0, 1) for x in rollout))
    targets, found, clipped = (found + rollout.values).flatten(), found.flatten(), list[float]()
    if agent.discrete:
        samples = samples._replace(actions=samples.actions.long())
    order = np.arange(task.batch)
    for _ in range(task.epochs):
        np.random.shuffle(order)
        for first in range(0, task.batch, task.minibatch_size):
            chosen = order[first : first + task.minibatch_size]
            _, log_probs, entropy, values = agent.evaluate(samples.observations[chosen], samples.actions[chosen])
            log_ratio = log_probs - samples.log_probs[chosen]
            ratio = log_ratio.exp()
            with torch.no_grad():
                kl = (ratio - 1 - log_ratio).mean()
                clipped.append(((ratio - 1).abs() > task.clip).float().mean().item())
            gain = found[chosen]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            policy = torch.max(-gain * ratio, -gain * ratio.clamp(1 - task.clip, 1 + task.clip)).mean()
            value = 0.5 * ((values - targets[chosen]) ** 2).mean()
            loss = policy - task.entropy * entropy.mean() + 2 * task.squared_error * value
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), task.max_grad_norm)
            optimizer.step()
    return {"kl": kl.item(), "clipped": float(np.mean(clipped))}


def acting(task: Task, agent: Agent, envs: gym.vector.SyncVectorEnv) -> Act:
    """The mode on observations as the environment gives them, normalised as the first environment's wrapper would."""
    statistics: Any = envs.envs[0].get_wrapper_attr("obs_rms") if task.normalise else None

    def act(observations: np.ndarray) -> np.ndarray:
        if statistics is not None:
            observations = np.clip((observations - statistics.mean) / np.sqrt(statistics.var + 1e-8), -10, 10)
        with torch.no_grad():
            actions = agent.mode(torch.tensor(observations, dtype=torch.float32)).numpy()
        space = envs.single_action_space
        return actions if agent.discrete else np.clip(actions, space.low, space.high)

    return act
