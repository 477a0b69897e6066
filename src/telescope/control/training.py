"""The bookkeeping of all algorithms on environments: population, environments, execution mode, metrics rows, state.

Leaves out the training loop and the update, which are in the algorithm's own file.
"""

# S seeds, P parameters of one agent
from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.checks import fitting, import_path, same_kind
from telescope.control.agents.actions import space_note
from telescope.control.agents.actor import Act, ActorCritic, Agents
from telescope.control.agents.layout import create
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import Network
from telescope.control.agents.trial import require_network, try_network, without_effect
from telescope.control.clocks import Clock
from telescope.control.config import LearnerConfig
from telescope.control.environments.population import Environments
from telescope.control.environments.rehearsal import rehearse, spare
from telescope.control.evaluate import cut_note, evaluate, evaluation_environments
from telescope.control.execution import execution, in_words
from telescope.control.experience.draws import replay_of
from telescope.control.experience.rollout import Rollout, Rollouts, Transition, no_episodes
from telescope.control.experience.worlds import rollouts
from telescope.control.starting import require_same_shape, start_from
from telescope.iteration import AgentIteration
from telescope.randomness import TRAINING_ENVIRONMENTS
from telescope.threads import settle
from telescope.trees import from_dict, mapped, to_dict


class Session:
    """The parts of one training run; see `algorithms.ppo.train` for their use.

    `kind` is the algorithm's Learner class, a NamedTuple of tensors. `kind.begin(parameters)` makes the first learner
    from the parameters [S, P] of new agents, and from their `layout` if it takes one; `learner.acting` returns the
    parameters that act. The loop replaces `learner` after each update. `recurrent` says that the loop can learn from
    sequences, so that a network may have a memory. With an `OffPolicyConfig`, `play` stores each step in a replay
    buffer. Every iteration has the same number of steps; `EpisodeSession` collects whole episodes instead.
    """

    kind_of_rollouts, kind_of_clock = Rollouts, Clock

    def __init__(
        self,
        config: LearnerConfig,
        resume: dict[str, Any] | None,
        kind: Any,
        *,
        network: Network | None = None,
        recurrent: bool = False,
        start: Any = None,
        allow_inexact: bool = False,
    ) -> None:
        if resume and start:
            raise ValueError(
                "both resume and start are given; resume continues a run, start begins a new one from another run's "
                "agents; pass one of them"
            )
        self.config = config
        self.learner: Any
        self._begin_learner = kind.begin
        self.clock = self.kind_of_clock(config)
        self._episodes = no_episodes(config.seeds)
        self._evaluation: Environments | None = None
        self._last_state: dict[str, Any] | None = None
        self._environments = self._open_environments()
        try:
            seen = self._environments.observation_space
            self.execution = resume["execution"] if resume else execution(config, seen)
            self.notes = [in_words(self.execution, config, seen)]
            settle(self.execution["threads"], config.device)
            self._begin(resume, network, start, allow_inexact, recurrent)
        except BaseException:  # leave no worker process behind if the run cannot begin
            self.close()
            raise

    def _open_environments(self) -> Environments:
        return Environments.of(self.config, stream=TRAINING_ENVIRONMENTS, single_frames=self.config.single_frames)

    def _begin(
        self, resume: dict[str, Any] | None, own: Network | None, start: Any, allow_inexact: bool, recurrent: bool
    ) -> None:
        config, environments = self.config, self._environments
        own = own or config.own_network(environments.observation_space, environments.action_space)
        if own is None and (note := space_note(config, environments.action_space)):
            self.notes.append(note)
        if own is None:
            self.notes += [one.words for one in config.inputs(environments.observation_space) if one.picture]
        else:
            require_network(own, recurrent=recurrent)
        network = config.agents_network(own, environments.observation_space, environments.action_space)
        self.rollouts = rollouts(config, environments, network, self.kind_of_rollouts)
        self.replay = replay_of(config, environments, self.rollouts.encoder)
        parameters, layout = create(network, config.seed_values, config.device)
        self.agent = ActorCritic(network, self.rollouts.distribution, layout)
        self.learner = self._first_learner(parameters)
        mode: dict[str, Any] = {name: self.execution[name] for name in ("compiled", "cuda_graph")}
        self.agents = Agents(self.agent, **mode, notes=self.notes)
        if callable(config.env) and import_path(config.env).endswith(":"):
            self.notes.append(
                "the environment's function or class cannot be imported by name, so the command line cannot resume or "
                "evaluate a run folder of it; put it into a module of its own, or continue from Python"
            )
        if own is not None:
            try_network(self.agent, self.parameters, environments.observation_space, config)
            self.notes += filter(None, [without_effect(config)])
        if config.eval_every:  # now, so that an error shows before training
            self._evaluation = evaluation_environments(
                config, episodes=config.eval_episodes, max_steps=config.eval_max_steps
            )
        if resume:
            self._restore(resume, allow_inexact)
            return
        self.notes += rehearse(environments, lambda: spare(config))
        if start:
            self._start_from(start)
        self._first_episodes()

    def _first_episodes(self) -> None:
        self.rollouts.reset()

    def _first_learner(self, parameters: Tensor) -> Any:
        reads_layout = "layout" in inspect.signature(self._begin_learner).parameters
        return self._begin_learner(parameters, **({"layout": self.agent.layout} if reads_layout else {}))

    def _start_from(self, state: Any) -> None:
        """Take agents and statistics from another run, but not its optimiser, schedules and episodes."""
        start = start_from(state, self.config.seeds)
        require_same_shape(start, self.parameters, self.rollouts.encoder.normalised)
        self.learner = self._first_learner(start.parameters.to(self.config.device).clone())
        self.rollouts.normaliser.restore(start.observations)
        self.rollouts.scaler.restore({**start.rewards, "returns": self.rollouts.scaler.returns})
        self.notes.append(f"begins with agents that were trained for {start.step:,} steps, and with a new optimiser")

    def lift(self, update: Callable[..., Any], in_dims: tuple[int | None, ...], *, staged: bool = False) -> Any:
        """Turn an update of one agent into one of all agents, in the execution mode of this run; see `lifting.lift`."""
        mode: dict[str, Any] = {name: self.execution[name] for name in ("compiled", "cuda_graph")}
        return lift(update, in_dims, **mode, notes=self.notes, staged=staged)

    @property
    def parameters(self) -> Tensor:
        """The parameters that act [S, P]."""
        return self.learner.acting  # type: ignore[no-any-return]

    @property
    def observation_space(self) -> Any:
        return self._environments.observation_space

    @property
    def new_episodes(self) -> bool:
        """Whether a resumed run could not restore its episodes, so that traces must begin anew."""
        return self._environments.began_anew

    @property
    def step(self) -> int:
        """The clock of the slowest seed."""
        return int(self.clock.steps.min())

    @property
    def iteration(self) -> int:
        return self.clock.iteration

    def iterations(self) -> Iterator[int]:
        """Yield the numbers of the remaining iterations. Updates the clock, and `remaining` for schedules."""
        try:
            while self.clock.running.any():
                self._started, self._collecting = time.perf_counter(), 0.0
                self._episodes = no_episodes(self.config.seeds)
                self.rollouts.time = {"env": 0.0, "policy": 0.0}
                self.remaining = self.clock.remaining
                yield self.iteration
            self._last_state = self.light_state()  # readable after the environments are closed
        finally:
            self.close()

    def scheduled(self, value: float, decays: bool) -> float:
        """`value` in this iteration. If it decays, it falls linearly to 0 over the run."""
        return value * (self.remaining if decays else 1.0)

    def collect(self, noise: np.ndarray | None = None) -> Rollout:
        """Collect the next rollout with the current policies, and with this noise [T, S, B, …] if it is given."""
        with self._acting():
            act = self.rollouts.actor(self.agents, self.parameters)
            rollout, self._episodes = self.rollouts.collect(act, self.iteration, noise)
        return rollout

    def play(self, noise: np.ndarray, t: int, act: Act | None = None) -> Transition:
        """Play step t of this iteration with the current policies and noise [S, B, …], and store it in the replay.

        `act` chooses actions in place of the policies.
        """
        with self._acting():
            act, row = act or self.agents.actor(self.parameters), self.iteration * self.config.num_steps + t
            transition = self.rollouts.play(act, noise, row, self._episodes)
            if self.replay is not None:
                self.replay.add(transition)
        return transition

    @contextlib.contextmanager
    def _acting(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                yield
        except FloatingPointError:  # an environment that was given no number returns none: say where it came from
            self._require_finite()
            raise
        self._collecting += time.perf_counter() - started

    def value(self, observations: Tensor, memory: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """V(s) [S, N] of observations [S, N, D] by the current critics, without gradient."""
        return self.config.state_values(self.critic(observations, memory, frames))

    def critic(self, observations: Tensor, memory: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """The outputs of the current critics for observations [S, N, D]: V(s) [S, N], or its quantiles [S, N, Q].

        With `frames` [S, F, …] observations are the places [S, N, K] of stacks.
        """
        return self.agents.value(self.parameters, *self.to_device((observations, memory, frames)))

    def evaluate(
        self,
        observations: Tensor,
        actions: Tensor,
        masks: Tensor | None,
        memory: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log π(a|s) [S, N] and the critics' outputs [S, N, …] for samples [S, N, …], without gradient."""
        return self.agents.evaluate(self.parameters, *self.to_device((observations, actions, masks, memory, frames)))

    def to_device(self, samples: Any) -> Any:
        """Move a structure of tensors (or None) to the networks' device."""
        return mapped(lambda x: x.to(self.config.device), samples)

    def finish(self, statistics: Mapping[str, np.ndarray | None]) -> AgentIteration:
        """End an iteration: evaluate if due, and make its rows from `statistics` (name → [S], None for no value)."""
        before = self.clock.steps
        self.clock.tick(self._episodes)
        self._require_finite()
        updated = time.perf_counter()
        evaluation = self._evaluate(before)
        rows = [
            {
                "step": int(self.clock.steps[s]),
                "iteration": int(self.clock.iterations[s]),
                "seed": seed,
                **self._episodes.means(s),
                "eval_return_mean": evaluation[s],
                **{name: None if values is None else float(values[s]) for name, values in statistics.items()},
            }
            for s, seed in enumerate(self.config.seed_values)
            if self.clock.steps[s] > before[s]
        ]
        times = self._times(updated)
        return AgentIteration(
            self,
            rows=[{**row, **times} for row in rows],
            total_steps=self.config.total_steps,
            finished=not self.clock.running.any(),
            notes=self.notes,
            warnings=self.warnings,
        )

    def _times(self, updated: float) -> dict[str, float]:
        now = time.perf_counter()
        env, policy = self.rollouts.time["env"], self.rollouts.time["policy"]
        update = updated - self._started - self._collecting
        other = now - self._started - env - policy - update
        self._elapsed += now - self._started
        names = ("time_env", "time_policy", "time_update", "time_other", "time_total")
        return dict(zip(names, (env, policy, update, other, self._elapsed), strict=True))

    _elapsed = _collecting = 0.0

    def _evaluate(self, before: np.ndarray) -> list[float | None]:
        """Mean evaluation return of each seed whose clock has crossed a multiple of `eval_every`, else None."""
        self.warnings: list[str] = []
        every, seeds = self.config.eval_every, self.config.seed_values
        due = self.clock.steps // every > before // every if every else np.zeros(len(seeds), bool)
        if not due.any():
            return [None] * len(seeds)
        assert self._evaluation is not None
        result = evaluate(
            self.agents,
            self.parameters,
            self.rollouts.normaliser,
            self._evaluation,
            seeds=seeds,
            due=due,
            episodes=self.config.eval_episodes,
            max_steps=self.config.eval_max_steps,
            bound=self.rollouts.bound,
        )
        self.warnings += filter(None, [cut_note(result, seeds, self.config.eval_max_steps)])
        return [float(one) if now else None for one, now in zip(result.returns.mean(axis=1), due, strict=True)]

    def _require_finite(self) -> None:
        broken = ~torch.isfinite(self.parameters).all(dim=1)
        if broken.any():
            s = int(broken.nonzero()[0])
            raise FloatingPointError(
                f"parameters of seed {self.config.seed_values[s]} are no longer finite after the update at step "
                f"{self.clock.steps[s]}; a lower learning_rate or max_grad_norm usually helps"
            )

    def state(self) -> dict[str, Any]:
        """See `Iteration.state`."""
        state = self.light_state()
        return state if self.replay is None else {**state, "replay": self.replay.state()}

    def light_state(self) -> dict[str, Any]:
        """The state without the steps in the replay buffer."""
        if self._last_state is not None:
            return dict(self._last_state)
        return {
            **self.clock.state(),
            "elapsed": self._elapsed,
            "seeds": self.config.seed_values,
            "execution": dict(self.execution),
            "policy": self.policy(),
            "learner": to_dict(self.learner, without=self.parameters),
            "rollouts": self.rollouts.state(),
            **({} if self.replay is None else {"replay": self.replay.saved()}),
        }

    def chunk(self, share: int, start: int) -> dict[str, Any] | None:
        """The next steps of the replay buffer from row `start` on; None if there are no more."""
        return None if self.replay is None else self.replay.chunk(start)

    def policy(self) -> dict[str, Any]:
        """What acting needs: the parameters and the normalisation of observations."""
        return {"parameters": self.parameters.cpu().clone(), "normaliser": self.rollouts.normaliser.state()}

    def _restore(self, state: dict[str, Any], allow_inexact: bool) -> None:
        if state["seeds"] != self.config.seed_values:
            raise ValueError(
                f"resume holds seeds {state['seeds']}, but the config has {self.config.seed_values}; "
                "a run continues with the seeds it began with (start= begins a new one from its agents)"
            )
        with fitting():
            self._restore_parts(state, allow_inexact)

    def _restore_parts(self, state: dict[str, Any], allow_inexact: bool) -> None:
        parameters = state["policy"]["parameters"]
        if parameters.shape != self.parameters.shape:
            raise ValueError(
                f"resume holds {parameters.shape[1]} parameters per agent, but this network has "
                f"{self.parameters.shape[1]}; pass the config and network of the run"
            )
        same_kind("agents", {"parameters": parameters}, {"parameters": self.parameters.cpu()})
        # a clone, so that the run never writes into the caller's state and torch's allocator keeps the alignment
        fresh = self._first_learner(parameters.to(self.config.device).clone())
        kept = state["learner"] if "learner" in state else {"adam": state["optimiser"]}  # PPO before other learners
        same_kind("learner", kept, to_dict(fresh, without=fresh.acting))
        self.learner = from_dict(fresh, kept, without=fresh.acting)
        self._elapsed = state["elapsed"]
        self.clock.restore(state)
        self.rollouts.normaliser.restore(state["policy"]["normaliser"])
        self.rollouts.restore(state["rollouts"], allow_inexact=allow_inexact)
        if self.replay is not None:
            self.notes += self.replay.restore(state["replay"])
        if (environments := self._environments).began_anew:
            self.notes.append(environments.resume_note or "the environments could not be restored; new episodes begin")

    def close(self) -> None:
        self._environments.close()
        if self._evaluation is not None:
            self._evaluation.close()


def mean_statistics(names: Sequence[str], rows: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The means over updates of per-update statistics, each a tensor [S, len(names)]: name → [S]."""
    table = torch.stack(list(rows)).double()
    return dict(zip(names, table.mean(0).cpu().numpy().T, strict=True))
