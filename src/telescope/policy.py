"""Load trained agents from a run folder: act on observations, evaluate, keep the best.

A policy holds only parameters and normalisation statistics. Leaves out training.
"""

# S seeds, P parameters of one agent
from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope import algorithms
from telescope.checks import fitting, on_device, whole_number
from telescope.control.agents.actor import ActorCritic, Agents
from telescope.control.agents.layout import create
from telescope.control.agents.networks import Network
from telescope.control.agents.trial import require_network
from telescope.control.config import LearnerConfig
from telescope.control.environments.checks import mask_fit, observation_fit, packed, real_array
from telescope.control.environments.described import spaces_of
from telescope.control.environments.population import Environments, environment_seed
from telescope.control.environments.spaces import Packed, PackedObservations
from telescope.control.evaluate import Evaluation, cut_note, evaluate, evaluation_environments
from telescope.control.experience.encoding import encoder
from telescope.control.experience.worlds import normaliser
from telescope.control.recording import recorded
from telescope.randomness import RECORDED_ACTIONS, RECORDED_ENVIRONMENTS, generator
from telescope.runs.files import RunError
from telescope.runs.folder import RunFolder


class Policy:
    """The agents of a run, one per seed, from a checkpoint.

    `best_seed` is the seed with the best evaluation, if these are the best agents of a run, otherwise the first.
    """

    def __init__(
        self,
        config: LearnerConfig,
        state: dict[str, Any],
        *,
        network: Network | None = None,
        spaces: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.seeds = config, config.seed_values
        self._observations: Any
        self._actions: Any
        self._observations, self._actions = _spaces(config) if spaces is None else spaces_of(spaces)
        self.observation_space, self.action_space = (
            space.original if isinstance(space, Packed) else space for space in (self._observations, self._actions)
        )
        self._bound = config.bound(self._actions)
        network = network or config.own_network(self._observations, self._actions)
        if network is not None:
            require_network(network)
        network = config.agents_network(network, self._observations, self._actions)
        self.encoder = encoder(self._observations, shaped=network.shaped)
        layout = create(network, self.seeds[:1])[1]
        self.agent = ActorCritic(network, config.head(self._actions), layout)
        with fitting():
            self.parameters: Tensor = state["parameters"].to(config.device).float().clone()
            rows, statistics = len(self.parameters), state["normaliser"]
        scores = state.get("eval_return_mean")
        self.best_seed = self.seeds[0] if scores is None else self.seeds[int(np.argmax(scores))]
        if rows != len(self.seeds):
            raise ValueError(f"the state holds {rows} agents, but the config has {len(self.seeds)} seeds")
        if self.parameters.shape[1] != sum(layout.sizes):
            raise ValueError(
                f"the run has {self.parameters.shape[1]} parameters per agent, but the network that its config "
                f"describes has {sum(layout.sizes)}; if it was trained with a network of your own, pass network="
            )
        self.normaliser = normaliser(config, self.encoder)
        self.normaliser.restore(statistics)

    def act(
        self,
        observation: Any,
        *,
        action_mask: Any = None,
        seed: int | None = None,
        rng: np.random.Generator | None = None,
        state: np.ndarray | None = None,
        begins: Any = False,
    ) -> Any:
        """The action for one observation [*obs], or the actions for a batch [N, *obs].

        Observations and actions have the structure of their spaces; in a batch each part has N in front. The action is
        the policy's mode; with `rng` it is a sample. `action_mask` is [A], or [N, A] for a batch, with True = allowed,
        as the environment gives it in `info`. `seed` chooses the agent by its seed's value (default: the run's
        first). Actions lie in the environment's action space. Observations and masks are checked as in training.

        A policy with a memory also takes the `state` before the observation, and returns a pair: the action and the
        state after it. `policy.start()` is the state at the beginning of an episode, `policy.start(N)` that of a batch.
        Where `begins` (a bool, or [N]) is True an episode begins, whatever the state is. A `player` keeps the state.
        """
        if state is None:
            self._require_no_memory("act")
            return self._act(observation, None, action_mask, seed, rng)[0]
        action, memory = self._act(observation, self._memory(state, begins), action_mask, seed, rng)
        assert memory is not None
        return action, memory.cpu().numpy().reshape(state.shape)

    def start(self, count: int | None = None) -> np.ndarray:
        """The state of a policy with a memory where an episode begins, zeros [W]; [N, W] for a batch of N = `count`."""
        width = self.agent.network.memory
        return np.zeros((width,) if count is None else (whole_number("count", count), width), np.float32)

    def _memory(self, state: Any, begins: Any) -> Tensor:
        """A state of the caller's as the memory [N, W], zero where an episode begins."""
        width, flags = self.agent.network.memory, np.asarray(begins, dtype=bool)
        if not width:
            raise ValueError("state is given, but this policy has no memory; leave it out")
        if not isinstance(state, np.ndarray) or state.ndim not in (1, 2) or state.shape[-1] != width:
            shape = getattr(state, "shape", type(state).__name__)
            raise ValueError(f"state is {shape}; expected an array ({width},) or (N, {width}), as policy.start() gives")
        if flags.shape not in ((), state.shape[:-1]):
            raise ValueError(f"begins has shape {flags.shape}; expected a bool, or {state.shape[:-1]}")
        kept = np.where(flags[..., None], np.float32(0), state.astype(np.float32)).reshape(-1, width)
        return torch.tensor(kept).to(self.config.device)

    def _act(
        self, observation: Any, memory: Tensor | None, action_mask: Any, seed: int | None, rng: Any
    ) -> tuple[np.ndarray, Tensor | None]:
        """Actions, and the new memory [N, H]. `memory` [N, H] is the one before; None means zeros."""
        vector, inputs, single = self.inputs(observation, seed)
        mask = None
        if action_mask is not None:
            allowed = mask_fit(self._actions, action_mask, () if single else (len(inputs),))
            mask = torch.as_tensor(allowed.reshape(len(inputs), -1)).to(inputs.device)
        noise = None
        if rng is not None:
            noise = torch.tensor(self.agent.distribution.noise(rng, (len(inputs),))).to(inputs.device)
        self._require_as_many(inputs, memory)
        if (width := self.agent.network.memory) and memory is None:
            memory = torch.zeros((len(inputs), width), device=inputs.device)
        with torch.no_grad():
            seen = self.agent.see(vector, inputs, memory)
            actions = self.agent.act(vector, seen, noise, mask)
        chosen = self.finished(actions.cpu().numpy())
        return self.native(chosen[0] if single else chosen), seen if width else None

    def finished(self, drawn: np.ndarray) -> np.ndarray:
        """Drawn actions [N, …] as the environment's, of a composite space as rows."""
        return (self._bound(drawn) + _start(self._actions)).astype(self._actions.dtype)

    def native(self, chosen: np.ndarray) -> Any:
        """Actions in the structure of their space, from rows."""
        return self._actions.native(chosen) if isinstance(self._actions, Packed) else chosen

    def _require_as_many(self, inputs: Tensor, memory: Tensor | None) -> None:
        if memory is not None and len(memory) != len(inputs):
            raise ValueError(
                f"observation holds {len(inputs)} observations, but the player remembers {len(memory)} episodes; "
                "expected as many, or begins=True for new episodes"
            )

    def player(self, *, seed: int | None = None, rng: np.random.Generator | None = None) -> Player:
        """One agent that plays episodes and keeps its memory; see `Player`."""
        return Player(self, seed, rng)

    def _require_no_memory(self, what: str) -> None:
        if self.agent.network.memory:
            raise ValueError(
                f"{what} takes one observation, but this policy has a memory of its episode; use player = "
                "policy.player(), then player(observation), which keeps the memory, or pass the state: "
                f"{what}(observation, state=policy.start())"
            )

    def value(
        self, observation: Any, *, seed: int | None = None, state: np.ndarray | None = None, begins: Any = False
    ) -> np.ndarray:
        """V(s) from an agent's critic, for one observation [*obs] or a batch, in units of the (scaled) return.

        A policy with a memory takes the `state` before the observation too, as `act` does.
        """
        if state is None:
            self._require_no_memory("value")
        memory = None if state is None else self._memory(state, begins)
        vector, inputs, single = self.inputs(observation, seed)
        self._require_as_many(inputs, memory)
        with torch.no_grad():
            seen = self.agent.see(vector, inputs, memory)
            values = self.config.state_values(self.agent.value(vector, seen)).cpu().numpy()  # type: ignore[arg-type]
        return values[0] if single else values

    def inputs(self, observation: Any, seed: int | None) -> tuple[Tensor, Tensor, bool]:
        """One agent's parameters, the observations for its network [N, D], and whether it was a single observation."""
        s = self.position(seed)
        shape = self._observations.shape or ()
        if isinstance(self._observations, PackedObservations):
            observation = packed(self._observations, observation)
        observations = real_array(observation, "observation")
        single = observations.shape == shape
        if not single and observations.shape[1:] != shape:
            raise ValueError(f"observation has shape {observations.shape}; expected {shape}, or a batch of those")
        observations = observation_fit(self._observations, () if single else observations.shape[:1])(observations)
        if not np.isfinite(observations).all():
            raise ValueError("observation holds NaN or infinity; expected finite numbers")
        batch = observations[None] if single else observations
        encoded = self.encoder.encode(batch[None] - _start(self._observations))
        normalised = self.normaliser(np.repeat(encoded, len(self.seeds), axis=0))[s]
        return self.parameters[s], torch.tensor(normalised).to(self.config.device), single

    def evaluate(self, episodes: int, *, stochastic: bool = False, max_steps: int | None = None) -> Evaluation:
        """Run whole episodes with every agent: returns and lengths [S, episodes].

        An episode that has not ended after `max_steps` (default: the config's `eval_max_steps`) is cut there, with a
        warning, and True in `cut`.
        """
        episodes = whole_number("episodes", episodes)
        most = self.config.eval_max_steps if max_steps is None else whole_number("max_steps", max_steps)
        environments = evaluation_environments(self.config, episodes=episodes, max_steps=most)
        try:
            self._require_spaces(environments)
            result = evaluate(
                Agents(self.agent),
                self.parameters,
                self.normaliser,
                environments,
                seeds=self.seeds,
                episodes=episodes,
                max_steps=most,
                bound=self._bound,
                stochastic=stochastic,
            )
        finally:
            environments.close()
        if note := cut_note(result, self.seeds, most):
            warnings.warn(note, stacklevel=2)
        return result

    def record(
        self,
        episodes: int,
        *,
        agent: int | None = None,
        stochastic: bool = False,
        seed: int = 0,
        max_steps: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Play episodes and return their steps as arrays with one row per step.

        All agents play in turn, or the one of the seed `agent`. Names are observations, actions, rewards, terminated,
        truncated and, if there are masks, action_masks; a part of a Dict or Tuple has its key behind a dot
        (observations.camera). Equal arguments give equal episodes.
        """
        most = whole_number("max_steps", self.config.eval_max_steps if max_steps is None else max_steps)
        agents = self.seeds if agent is None else [self.seeds[self.position(agent, "agent")]]
        found = []
        for e in range(whole_number("episodes", episodes)):
            plays = agents[e % len(agents)]
            begins = environment_seed(plays, RECORDED_ENVIRONMENTS, e, seed)
            rng = generator(begins, RECORDED_ACTIONS) if stochastic else None
            found.append(recorded(self.config, self.player(seed=plays, rng=rng), [begins], most))
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _require_spaces(self, environments: Environments) -> None:
        """Raise a ValueError if the environment is not what the agents were trained in."""
        trained, here = (self._observations, self._actions), (environments.observation_space, environments.action_space)
        for name, known, found in zip(("observation", "action"), trained, here, strict=True):
            if known != found:
                raise ValueError(
                    f"env {self.config.env!r} has the {name} space {found}, but the agents were trained with {known}; "
                    "install the version of the environment that they were trained in"
                )

    @property
    def rows(self) -> tuple[Any, Any]:
        """The observation and the action space as agents know them, composite ones as spaces of rows."""
        return self._observations, self._actions

    def position(self, seed: int | None, name: str = "seed") -> int:
        """The place of a seed's agent among those of the run; None: the first."""
        if seed is None:
            return 0
        if seed not in self.seeds:
            raise ValueError(f"{name} is {seed}; this run has the seeds {self.seeds[0]} to {self.seeds[-1]}")
        return self.seeds.index(seed)


class Player:
    """An agent that plays episodes: `player(observation)` returns the action and keeps the memory.

    It works for every policy; without a memory it acts like `Policy.act`. An episode begins with the first call, and
    where `begins` is True.
    """

    def __init__(self, policy: Policy, seed: int | None, rng: np.random.Generator | None) -> None:
        self._policy, self._seed, self._rng = policy, seed, rng
        self._memory: Tensor | None = None  # [N, H]

    def __call__(self, observation: Any, *, action_mask: Any = None, begins: Any = False) -> np.ndarray:
        """The action for one observation [*obs], or the actions for a batch [N, *obs], always of the same N.

        begins: whether the observation is the first of an episode; a bool, or [N] for a batch.
        """
        flags = np.asarray(begins, dtype=bool)
        if flags.all():
            self._memory = None
        elif self._memory is not None:
            if flags.ndim and flags.shape != (len(self._memory),):
                raise ValueError(f"begins has shape {flags.shape}; expected a bool, or ({len(self._memory)},)")
            self._memory = torch.where(torch.as_tensor(flags).to(self._memory.device).reshape(-1, 1), 0.0, self._memory)
        action, self._memory = self._policy._act(observation, self._memory, action_mask, self._seed, self._rng)
        return action

    def reset(self, done: Any = True) -> None:
        """Forget the episodes that are over: all of them, or those of a batch where `done` [N] is True."""
        flags = np.asarray(done, dtype=bool)
        if self._memory is None:
            return
        if flags.shape not in ((), (len(self._memory),)):
            raise ValueError(f"done has shape {flags.shape}; expected a bool, or ({len(self._memory)},)")
        over = torch.as_tensor(flags).to(self._memory.device).reshape(-1, 1)
        self._memory = None if flags.all() else torch.where(over, 0.0, self._memory)


def load(
    run: str | os.PathLike[str],
    *,
    best: bool = False,
    network: Network | None = None,
    trust: bool = False,
    device: str | None = None,
) -> Policy:
    """The trained agents in a run folder; see `telescope.load`, which takes language models too."""
    folder = RunFolder.open(run)
    if folder.algorithm in algorithms.LANGUAGE:
        raise ValueError(f"{os.fspath(run)} is a run of {folder.algorithm}; telescope.load has its language model")
    config = folder.config_to_use(algorithms.config_class(folder.algorithm), trusted=trust)
    config = on_device(config, device)
    if best:
        state = folder.load_best()
        missing = "no best agent yet; train with --eval-every to save one"
    else:
        checkpoint = folder.load_checkpoint()
        state = None if checkpoint is None else checkpoint["policy"]
        missing = "no checkpoint yet; `telescope train --resume` continues the run"
    if state is None:
        raise RunError(f"{os.fspath(run)} has {missing}")
    return Policy(config, state, network=network, spaces=folder.spaces)


def keep_best(
    best: dict[str, Any] | None, policy: dict[str, Any], rows: list[dict[str, Any]], seeds: Sequence[int]
) -> dict[str, Any] | None:
    """The best agents so far, per seed, from the policy and the metrics rows of this iteration; None if unchanged.

    A seed that has finished before the others has no row.
    """
    found = {row["seed"]: row for row in rows}
    own = [found.get(seed, {"step": 0, "eval_return_mean": None}) for seed in seeds]
    scores = np.array([row["eval_return_mean"] for row in own], dtype=np.float64)  # None becomes NaN
    previous = np.full(len(own), -np.inf) if best is None else np.asarray(best["eval_return_mean"])
    better = scores > previous  # False for NaN: no evaluation in this iteration
    if not better.any():
        return None
    steps = np.array([row["step"] for row in own])
    highest = np.where(better, scores, previous)
    if best is None:
        return {**policy, "eval_return_mean": highest, "step": steps}
    chosen = torch.from_numpy(better)
    statistics = {
        name: np.where(better.reshape(-1, *(1,) * (array.ndim - 1)), array, best["normaliser"][name])
        for name, array in policy["normaliser"].items()
    }
    return {
        "parameters": torch.where(chosen[:, None], policy["parameters"], best["parameters"]),
        "normaliser": statistics,
        "eval_return_mean": highest,
        "step": np.where(better, steps, best["step"]),
    }


def _spaces(config: LearnerConfig) -> tuple[Any, Any]:
    """The observation and the action space of the environment, which is made for this."""
    environments = Environments.of(config, seeds=config.seed_values[:1], num_envs=1)
    environments.close()
    return environments.observation_space, environments.action_space


def _start(space: Any) -> Any:
    """The first value of a Discrete or MultiDiscrete space. Internally, everything counts from 0."""
    return getattr(space, "start", 0)
