"""Experience of language models: prompts, sampled completions, scores, and log-probabilities by policy and reference.

A completion is an episode: its end token terminates it, and the length limit truncates it. Leaves out advantages and
losses.
"""

# N prompts, G completions each, B = N · G completions of T tokens, D hidden size
from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from telescope.checks import fitting
from telescope.language import parallel
from telescope.language.config import RolloutConfig
from telescope.language.data.games import Hall
from telescope.language.data.rewards import Scorer, overlong, scores_by
from telescope.language.data.tasks import Row
from telescope.language.experience.conversations import held
from telescope.language.experience.engines import Engine, sampled
from telescope.language.experience.preferences import RewardModel, scorers_of, train_reward_model
from telescope.language.experience.sampling import Completions, Prompts, decode, encode, joined, sample
from telescope.language.experience.warm_start import warm_start
from telescope.language.health import Watch
from telescope.language.log_probs import TokenLogProbs, token_log_probs
from telescope.language.micro_batches import Size, sizes_of, within
from telescope.language.models import causal as models
from telescope.language.models.states import completion_states, head_of, trunk_of
from telescope.language.optimiser import everything, put_back
from telescope.language.randomness import MINIBATCHES, PROMPTS, TOKENS, generator
from telescope.language.run import Iteration, Scoring, Session, scorings
from telescope.objectives.advantages import weighted_scores
from telescope.objectives.rows import Objective

SHOWN = 16
"""Completions per step in the table of samples."""


class Rollout(NamedTuple):
    """N · G completions, and everything that is known about them before the update."""

    rows: list[Row]  # [B] the prompt's row, once per completion
    texts: list[str]  # [B]
    prompts: Prompts  # [N]
    completions: Completions  # [B]
    scores: Tensor  # [B], NaN where not scored
    reference: Tensor | None  # [B, T] log-probabilities by the reference
    group: int
    correction: Tensor | None = None  # [B, T] off-policy weights where sampler and trainer disagree
    each: Tensor | None = None  # [R, B] what the scores are the weighted sums of, if there are several rewards
    columns: tuple[str, ...] = ()  # names of the rewards in `each`
    apart: bool = False  # whether each reward is compared within its group by itself

    def sizes(self, prompts: Tensor) -> list[Size]:
        """Tokens of some prompts and of their completions."""
        present = self.completions.present[self.members(prompts)]
        return sizes_of(self.prompts.mask[prompts], present, self.group)

    def part(self, prompts: Tensor) -> Rollout:
        """The groups of some prompts."""
        return self._take(prompts, self.members(prompts), self.group)

    def within(self, start: int, stop: int) -> Rollout:
        """The completions from start to stop of each group."""
        every = torch.arange(len(self.prompts.tokens), device=self.scores.device)  # [N]
        members = self.members(every).view(len(every), self.group)[:, start:stop]  # [N, stop − start]
        return self._take(every, members.reshape(-1), members.shape[1])

    def _take(self, prompts: Tensor, members: Tensor, group: int) -> Rollout:
        chosen = members.tolist()  # indices of completions
        return self._replace(
            rows=[self.rows[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            prompts=self.prompts.rows(prompts),
            completions=self.completions.rows(members),
            scores=self.scores[members],
            reference=None if self.reference is None else self.reference[members],
            group=group,
            correction=None if self.correction is None else self.correction[members],
            each=None if self.each is None else self.each[:, members],
        )

    def members(self, prompts: Tensor) -> Tensor:
        """Indices of the completions of some prompts, group by group."""
        return (prompts[:, None] * self.group + torch.arange(self.group, device=prompts.device)).reshape(-1)


class RolloutSession(Session):
    """A session that samples and scores; see `algorithms.grpo.train` for its use."""

    config: RolloutConfig

    def __init__(
        self, config: RolloutConfig, objective: Objective, resume: dict[str, Any] | None, columns: tuple[str, ...]
    ) -> None:
        super().__init__(config, resume, columns)
        self.objective = objective
        with fitting():
            beta, start = (objective.beta, None) if resume is None else (resume["beta"], resume["start"])
        self.beta: float = beta
        """The coefficient of the KL. A controller may change it."""
        self.watch = Watch(None if resume is None else resume.get("health"))
        self.start: dict[str, Tensor] | None = start
        self._score_by(resume)
        self.columns = (
            *(self.scorings() or (self.task.metric,)),
            *self.several,
            *(("turns",) if self.task.game else ()),
            *columns,
        )
        if resume is None:
            self.start = warm_start(self, config)
        elif self.start is not None:
            put_back(self.policy, self.start)
        self.reference = (
            copy.deepcopy(self.policy).requires_grad_(False) if objective.beta and not config.lora_rank else None
        )
        if config.lora_rank:
            self.policy = models.with_lora(self.policy, config.lora_rank, seed=config.seed)
        self.engine: Engine | None = None
        self.after = False
        """Whether a critic needs the states after the last tokens too."""

    def _score_by(self, resume: dict[str, Any] | None) -> None:
        config = self.config
        self.own_model: RewardModel | None = None
        """A reward model that this run trained for itself."""
        self.scorers = scorers_of(config, self.task, self.notes)
        if self.scorers or self.task.game is not None:
            return
        if self.task.pairs is None:
            assert self.task.reward is not None
            self.scorers = [Scorer(self.task.reward, f"of {self.task.name}")]
            return
        self.own_model = self._own_reward_model()
        self.scorers = [Scorer(self.own_model.reward, f"of {self.task.name}", model=self.own_model)]
        if resume is not None:
            put_back(self.own_model.network, resume["reward_model"])
            self.own_model.network.requires_grad_(False)
        else:
            accuracy = train_reward_model(self.own_model, self.task, config.seed)
            parallel.spread(self.own_model.network)
            self.notes.append(
                f"no reward model was given: trained one on {self.task.name}'s preference pairs; it orders "
                f"{accuracy:.0%} of held-out pairs correctly"
            )

    @property
    def several(self) -> list[str]:
        """The columns of several rewards; empty if there is one."""
        return [scorer.column for scorer in self.scorers] if len(self.scorers) > 1 else []

    def _own_reward_model(self) -> RewardModel:
        """An untrained reward model with other initial weights, so that its score is independent of the policy's."""
        policy, tokenizer = models.load(self.config.model, seed=self.config.seed + 1)
        return RewardModel(policy.eval(), tokenizer, self.ends, self.config.device)

    def scorings(self) -> dict[str, Scoring]:
        """The task's reward, and the run's own: the weighted sum of its functions and reward models."""
        own = Scoring(self.scorers, self.config.reward_seconds)
        return scorings(self.task, own if self.config.reward is not None else None)

    def scores(self, rows: list[Row], texts: list[str]) -> Tensor:
        """The scores of each reward [R, B]; NaN where not scored. Reward models score on all ranks."""
        seconds = self.config.reward_seconds
        functions = [scorer for scorer in self.scorers if scorer.model is None]
        called = parallel.from_first(lambda: scores_by(functions, rows, texts, seconds=seconds)) if functions else ()
        found, mine = iter(called), parallel.share(len(rows))
        return torch.stack(
            [
                next(found).to(self.config.device)
                if scorer.model is None
                else parallel.rows(scorer.model.scores(rows[mine], texts[mine]))
                for scorer in self.scorers
            ]
        )

    def scored(self, rows: list[Row], texts: list[str], lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The score of each completion [B], and what it is the weighted sum of [R, B]: rewards, then any penalty."""
        each = self.scores(rows, texts)
        weights = [scorer.weight for scorer in self.scorers]
        if self.config.overlong_cache:
            penalty = overlong(lengths, self.max_tokens, self.config.overlong_cache)
            each = torch.cat([each, torch.where(each.isnan().all(0), torch.nan, penalty)[None]])
            weights.append(1.0)
        self.weights = torch.tensor(weights, device=each.device)  # [R]
        return weighted_scores(each, self.weights), each

    def collect(self, count: int | None = None, *, part: int = 0) -> Rollout:
        """Collect the next rollout: prompts, completions by the current policy, scores, reference.

        count: number of prompts. None: `config.prompts`. part: which rollout of this step, if there are several.
        """
        if self.task.game is not None:
            return self._referenced(self._conversations(count, part))
        with self.timed("sample"):
            rows = self.task.draw(self.generator(PROMPTS, part), self.config.prompts if count is None else count)
            prompts = encode(self.tokenizer, [row["prompt"] for row in rows], self.config.device)
            completions = self.sample(prompts, part)
            rows = [row for row in rows for _ in range(self.config.group)]  # [N] → [B]
            texts = decode(self.tokenizer, completions, self.ends)
        with self.timed("reward"):
            scores, each = self.scored(rows, texts, completions.mask.sum(1))
            rollout = Rollout(rows, texts, prompts, completions, scores, None, self.config.group)
            if self.several:
                apart = getattr(self.config, "normalise_each", False)
                rollout = rollout._replace(each=each, columns=tuple(self.several), apart=apart)
        return self._referenced(rollout)

    def _referenced(self, rollout: Rollout) -> Rollout:
        """The rollout with log-probabilities by the reference, if the row needs them."""
        with self.timed("reward"):
            return rollout._replace(reference=self.reference_log_probs(rollout)) if self.beta else rollout

    def _conversations(self, count: int | None, part: int) -> Rollout:
        """Conversations with the task's environment, whose rewards add up to the scores."""
        if parallel.size() > 1:
            raise ValueError("conversations run in one process; start without torchrun")
        with self.timed("sample"):
            rows = self.task.draw(self.generator(PROMPTS, part), self.config.prompts if count is None else count)
            shape = (len(rows) * self.config.group, self.max_tokens)
            noise = torch.from_numpy(self.generator(TOKENS, part).random(shape, dtype=np.float32))  # [B, max_tokens]
            hall = Hall(self.task.game, self.tokenizer, self.config.model, self.ends)  # type: ignore[arg-type]
            limits: dict[str, Any] = {"turns": self.task.turns, "max_tokens": self.max_tokens}
            limits["at_once"] = self.config.at_once
            found = held(self.policy, hall, rows, noise, self.config, **limits)
        rows = [row for row in rows for _ in range(self.config.group)]  # [N] → [B]
        return Rollout(rows, *found, None, self.config.group)

    def sample(self, prompts: Prompts, part: int = 0) -> Completions:
        """Sample `group` completions of each prompt with this step's random numbers. Each rank samples its share."""
        config = self.config
        if config.sampler == "vllm":
            return sampled(self, prompts, part)
        shape = (len(prompts.tokens) * config.group, self.max_tokens)
        noise = self.generator(TOKENS, part).random(shape, dtype=np.float32)  # [B, max_tokens]
        mine = parallel.share(len(prompts.tokens))
        noise = noise[mine.start * config.group : mine.stop * config.group]
        with parallel.gathered(self.policy):
            completions = sample(
                self.policy,
                prompts.rows(mine),
                ends=self.ends,
                max_tokens=self.max_tokens,
                uniforms=torch.from_numpy(noise).to(config.device),
                group=config.group,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                at_once=config.sampled_at_once(prompts.tokens.shape[1] + self.max_tokens),
            )
        if parallel.size() == 1:
            return completions
        parts = [each for each in parallel.gather(completions.to("cpu")) if len(each.tokens)]
        return functools.reduce(joined, parts).to(config.device)

    def states(self, rollout: Rollout, policy: nn.Module | None = None) -> Tensor:
        """Hidden states before each token [B, T, D], with `after` also after the last one [B, T + 1, D]."""
        tokens, mask = rollout.completions.tokens, rollout.completions.present
        trunk = trunk_of(self.policy if policy is None else policy)
        settings: dict[str, Any] = {"after": self.after, "packed": self.packed}
        return completion_states(trunk, rollout.prompts, (tokens, mask), group=rollout.group, **settings)

    def log_probs(self, states: Tensor, rollout: Rollout, policy: nn.Module | None = None) -> TokenLogProbs:
        """Log-probabilities and entropy [B, T] of the tokens, from the states before them."""
        completions = rollout.completions
        policy = self.policy if policy is None else policy
        return token_log_probs(
            states[:, : completions.tokens.shape[1]],
            tokens=completions.tokens,
            mask=completions.mask,
            temperature=self.config.temperature,
            support=completions.support,
            **head_of(policy),
        )

    @torch.no_grad()
    def all_log_probs(self, rollout: Rollout, model: nn.Module | None = None) -> Tensor:
        """Log-probabilities of a whole rollout [B, T] by the policy or another model, in micro-batches, no gradient."""
        parts = [part for _, part in self.batches(rollout)]
        found = [self.log_probs(self.states(part, model), part, model).log_probs for part in parts]
        return parallel.rows(torch.cat([*found, rollout.completions.log_probs[:0]]))

    def reference_log_probs(self, rollout: Rollout) -> Tensor:
        """Log-probabilities by the reference [B, T]: the frozen copy, or the policy without its adapter."""
        if self.reference is not None:
            return self.all_log_probs(rollout, self.reference)
        with models.adapter_off(self.policy):
            return self.all_log_probs(rollout)

    def minibatches(self, epoch: int) -> Iterator[Tensor]:
        """The prompts in random order, cut into minibatches of prompts. Groups stay whole."""
        rng = generator(self.config.seed, MINIBATCHES, self.iteration * self.config.epochs + epoch)
        order = torch.from_numpy(rng.permutation(self.config.prompts))
        yield from order.to(self.config.device).chunk(self.config.minibatches)

    def batches(self, rollout: Rollout, prompts: Tensor | None = None) -> Iterator[tuple[Tensor, Rollout]]:
        """Yield micro-batches of this rank's share of prompts, each with the indices of its completions.

        Groups stay whole, because completions share their prompt, unless a micro-batch is smaller than a group.
        """
        asked = rollout.prompts.tokens
        prompts = torch.arange(len(asked), device=asked.device) if prompts is None else prompts
        group, sizes = rollout.group, rollout.sizes(prompts)
        size = self.config.micro_batch or len(rollout.texts)
        for piece in self.pieces(sizes, max(1, size // group)):
            some, part = prompts[piece], rollout.part(prompts[piece])
            here = rollout.members(some).view(len(some), group)  # [prompts of the piece, G]
            if self.config.micro_tokens and self.config.sharding == "ddp":  # ranks with shards take equal steps
                size = within(sizes[piece], group, self.config.micro_tokens)
            for start in range(0, group, size):
                stop = min(start + size, group)
                yield here[:, start:stop].reshape(-1), part.within(start, stop) if size < group else part

    def table(self, rollout: Rollout) -> list[dict[str, Any]]:
        """Completions of the rollout with their scores, as far apart as possible."""
        lengths, ended = rollout.completions.mask.sum(1).tolist(), rollout.completions.terminated.tolist()
        scores = rollout.scores.tolist()
        each = [()] * len(scores) if rollout.each is None else rollout.each.T.tolist()
        return [
            {
                "prompt": rollout.rows[i]["prompt"],
                "completion": rollout.texts[i],
                "score": scores[i],
                **dict(zip(rollout.columns, each[i], strict=False)),
                "length": lengths[i],
                "terminated": ended[i],
            }
            for i in range(0, len(scores), max(1, len(scores) // SHOWN))[:SHOWN]
        ]

    def finish(self, statistics: dict[str, float], table: list[dict[str, Any]] | None = None) -> Iteration:
        """The same, with findings about the step."""
        config, critic = self.config, self.objective.critic
        settings = {"group": config.group, "critic": critic, "dtype": config.dtype, "max_tokens": self.max_tokens}
        self.warn(self.watch.look(self.iteration + 1, statistics, **settings))
        return super().finish(statistics, table)

    def state(self) -> dict[str, Any]:
        reward_model = None
        if self.own_model is not None:
            reward_model = everything(self.own_model.network)
        own = {"start": self.start, "beta": self.beta, "reward_model": reward_model, "health": self.watch.state()}
        return super().state() | own
