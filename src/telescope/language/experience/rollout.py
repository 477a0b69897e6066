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
from telescope.language.checks import unknown_characters
from telescope.language.config import RolloutConfig
from telescope.language.data.rewards import is_folder, load_function, name_of, overlong, score
from telescope.language.data.tasks import Row
from telescope.language.experience.preferences import RewardModel, train_reward_model
from telescope.language.experience.sampling import Completions, Prompts, decode, encode, joined, sample
from telescope.language.experience.warm_start import warm_start
from telescope.language.health import Watch
from telescope.language.log_probs import TokenLogProbs, token_log_probs
from telescope.language.models import causal as models
from telescope.language.models.states import bias_of, completion_states, output_of, trunk_of
from telescope.language.optimiser import everything, put_back
from telescope.language.randomness import MINIBATCHES, PROMPTS, TOKENS, generator
from telescope.language.run import Iteration, Scoring, Session, scorings
from telescope.losses import kl_k3
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
        return Rollout(
            [self.rows[i] for i in chosen],
            [self.texts[i] for i in chosen],
            self.prompts.rows(prompts),
            self.completions.rows(members),
            self.scores[members],
            None if self.reference is None else self.reference[members],
            group,
            None if self.correction is None else self.correction[members],
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
        self.columns = (*(self.scorings() or (self.task.metric,)), *columns)
        if resume is None:
            self.start = warm_start(self, config)
        elif self.start is not None:
            put_back(self.policy, self.start)
        self.reference = (
            copy.deepcopy(self.policy).requires_grad_(False) if objective.beta and not config.lora_rank else None
        )
        if config.lora_rank:
            self.policy = models.with_lora(self.policy, config.lora_rank, seed=config.seed)
        self.after = False
        """Whether a critic needs the states after the last tokens too."""

    # Scores

    def _score_by(self, resume: dict[str, Any] | None) -> None:
        source = self.config.reward
        self.reward_model: RewardModel | None = None
        self.reward_name = f"of {self.task.name}" if source is None else name_of(source)
        if source is not None and not is_folder(source):
            self.reward = load_function(source)
        elif isinstance(source, str):
            self.reward_model = RewardModel.load(source, self.config.device)
            self.reward_model.at_once = self.config.at_once
            prompts = [row["prompt"] for row in self.task.held_out[: self.config.eval_prompts]]
            self.notes += unknown_characters(self.reward_model.tokenizer, prompts, source)
        elif self.task.pairs is not None:
            self.reward_model = self._own_reward_model()
            if resume is not None:
                put_back(self.reward_model.network, resume["reward_model"])
                self.reward_model.network.requires_grad_(False)
            else:
                accuracy = train_reward_model(self.reward_model, self.task, self.config.seed)
                parallel.spread(self.reward_model.network)
                self.notes.append(
                    f"no reward model was given: trained one on {self.task.name}'s preference pairs; it orders "
                    f"{accuracy:.0%} of held-out pairs correctly"
                )
        else:
            assert self.task.reward is not None
            self.reward = self.task.reward

    def _own_reward_model(self) -> RewardModel:
        """An untrained reward model with other initial weights, so that its score is independent of the policy's."""
        policy, tokenizer = models.load(self.config.model, seed=self.config.seed + 1)
        return RewardModel(policy.eval(), tokenizer, self.ends, self.config.device)

    def scorings(self) -> dict[str, Scoring]:
        """The task's reward, and the run's own: a function, or its reward model."""
        own = self.reward if self.reward_model is None else self.reward_model.reward
        return scorings(self.task, Scoring(own, self.reward_name) if self.config.reward is not None else None)

    def scores(self, rows: list[Row], texts: list[str]) -> Tensor:
        """One score per completion [B]; NaN where not scored."""
        if self.reward_model is not None:
            mine = parallel.share(len(rows))
            return parallel.rows(self.reward_model.scores(rows[mine], texts[mine]))
        scores = parallel.from_first(lambda: score(self.reward, rows, texts, name=self.reward_name))
        return scores.to(self.config.device)  # type: ignore[no-any-return]

    # One step

    def collect(self, count: int | None = None, *, part: int = 0) -> Rollout:
        """Collect the next rollout: prompts, completions by the current policy, scores, reference.

        count: number of prompts. None: `config.prompts`. part: which rollout of this step, if there are several.
        """
        with self.timed("sample"):
            rows = self.task.draw(self.generator(PROMPTS, part), self.config.prompts if count is None else count)
            prompts = encode(self.tokenizer, [row["prompt"] for row in rows], self.config.device)
            completions = self.sample(prompts, part)
            rows = [row for row in rows for _ in range(self.config.group)]  # [N] → [B]
            texts = decode(self.tokenizer, completions, self.ends)
        with self.timed("reward"):
            scores = self.scores(rows, texts)
            if self.config.overlong_cache:
                scores = scores + overlong(completions.mask.sum(1), self.max_tokens, self.config.overlong_cache)
            rollout = Rollout(rows, texts, prompts, completions, scores, None, self.config.group)
            if self.beta:
                rollout = rollout._replace(reference=self.reference_log_probs(rollout))
        return rollout

    def sample(self, prompts: Prompts, part: int = 0) -> Completions:
        """Sample `group` completions of each prompt with this step's random numbers. Each rank samples its share."""
        config = self.config
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
                at_once=config.at_once,
            )
        if parallel.size() == 1:
            return completions
        parts = [each for each in parallel.gather(completions.to("cpu")) if len(each.tokens)]
        return functools.reduce(joined, parts).to(config.device)

    def states(self, rollout: Rollout, policy: nn.Module | None = None) -> Tensor:
        """Hidden states before each token [B, T, D], with `after` also after the last one [B, T + 1, D]."""
        tokens, mask = rollout.completions.tokens, rollout.completions.mask
        trunk = trunk_of(self.policy if policy is None else policy)
        return completion_states(trunk, rollout.prompts, (tokens, mask), group=rollout.group, after=self.after)

    def log_probs(self, states: Tensor, rollout: Rollout, policy: nn.Module | None = None) -> TokenLogProbs:
        """Log-probabilities and entropy [B, T] of the tokens, from the states before them."""
        completions = rollout.completions
        policy = self.policy if policy is None else policy
        return token_log_probs(
            states[:, : completions.tokens.shape[1]],
            output_of(policy),
            completions.tokens,
            mask=completions.mask,
            bias=bias_of(policy),
            temperature=self.config.temperature,
            support=completions.support,
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
        if prompts is None:
            prompts = torch.arange(len(rollout.prompts.tokens), device=rollout.prompts.tokens.device)
        group, size = rollout.group, self.config.micro_batch or len(rollout.texts)
        for piece in self.pieces(len(prompts), max(1, size // group)):
            some, part = prompts[piece], rollout.part(prompts[piece])
            here = rollout.members(some).view(len(some), group)  # [prompts of the piece, G]
            for start in range(0, group, size):
                stop = min(start + size, group)
                yield (
                    here[:, start:stop].reshape(-1),
                    part.within(start, stop) if size < group else part,
                )

    def table(self, rollout: Rollout) -> list[dict[str, Any]]:
        """The first completions of the rollout with their scores."""
        lengths, ended = rollout.completions.mask.sum(1).tolist(), rollout.completions.terminated.tolist()
        scores = rollout.scores.tolist()
        return [
            {
                "prompt": rollout.rows[i]["prompt"],
                "completion": rollout.texts[i],
                "score": scores[i],
                "length": lengths[i],
                "terminated": ended[i],
            }
            for i in range(min(SHOWN, len(scores)))
        ]

    def finish(self, statistics: dict[str, float], table: list[dict[str, Any]] | None = None) -> Iteration:
        """The same, with findings about the step."""
        config, critic = self.config, self.objective.critic
        settings = {"group": config.group, "critic": critic, "dtype": config.dtype, "max_tokens": self.max_tokens}
        self.warn(self.watch.look(self.iteration + 1, statistics, **settings))
        return super().finish(statistics, table)

    def state(self) -> dict[str, Any]:
        reward_model = None
        if self.reward_model is not None and self.config.reward is None:
            reward_model = everything(self.reward_model.network)
        own = {"start": self.start, "beta": self.beta, "reward_model": reward_model, "health": self.watch.state()}
        return super().state() | own


def spread(rollout: Rollout) -> Tensor:
    """Scores [N, G]. The group's mean replaces missing ones."""
    scores = rollout.scores.view(-1, rollout.group)
    return torch.where(scores.isnan(), scores.nanmean(1, keepdim=True), scores).nan_to_num(0.0)


def all_equal(rollout: Rollout) -> Tensor:
    """[N] bool, True where the scores of a group are all equal."""
    scores = spread(rollout)
    return scores.amax(1) == scores.amin(1)


def rollout_statistics(rollout: Rollout) -> dict[str, float]:
    """Statistics of a rollout, before the update."""
    mask, scores = rollout.completions.mask, rollout.scores
    scored = scores[~scores.isnan()]
    found = dict[str, Tensor]()
    if len(scored):
        some = (~scores.view(-1, rollout.group).isnan()).any(1)
        found = {"score": scored.mean(), "score_min": scored.min(), "score_max": scored.max()}
        found["score_std"] = spread(rollout)[some].std(1, correction=0).mean()
    if rollout.reference is not None:
        found["kl_reference"] = kl_k3(rollout.reference, rollout.completions.log_probs)[mask].mean()
    return {name: float(value) for name, value in found.items()} | {
        "equal_groups": float(all_equal(rollout).float().mean()),
        "length": float(mask.sum(1).float().mean()),
        "truncated": float((~rollout.completions.terminated).float().mean()),
        "unscored": float(scores.isnan().float().mean()),
        "entropy": float(rollout.completions.entropy.sum() / mask.sum().clamp(min=1)),
    }


ROLLOUT_STATISTICS = (
    "score",
    "score_min",
    "score_max",
    "score_std",
    "equal_groups",
    "length",
    "truncated",
    "unscored",
    "entropy",
)
