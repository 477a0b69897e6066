"""Rollouts of our own language models, for the explorer: completions of a run's task, token by token.

Leaves out agents in environments (`playing.py`), and how a rollout is shown (`explorer.py`).
"""

# B completions of T tokens
from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.algorithms import config_class, find
from telescope.checks import on_device
from telescope.estimators import next_values
from telescope.lab.evidence import Rollout
from telescope.lab.explorer import Extras
from telescope.language.data.text import following_texts
from telescope.language.experience.rollout import Rollout as Sampled
from telescope.language.experience.rollout import RolloutSession
from telescope.objectives.advantages import token_rewards
from telescope.objectives.loss import kl_penalty
from telescope.runs.files import RunError
from telescope.runs.folder import RunFolder
from telescope.seeds import alone, of_seed


def completed(
    run: str | os.PathLike[str], *, prompts: int, trust: bool = False, device: str | None = None
) -> tuple[Rollout, Extras]:
    """Completions of the next prompts that the run would train on, with the rewards and values of their tokens.

    Raises:
        ValueError: the run samples no completions. RunError: nothing was saved yet.
    """
    folder = RunFolder.open(run)
    if folder.algorithm not in ("grpo", "rlhf"):
        raise ValueError(
            f"{os.fspath(run)} is a run of {folder.algorithm}, which learns from data and samples no completions; "
            "explore a run of ppo, grpo or one of its kin"
        )
    algorithm = find(folder.algorithm)
    config = on_device(folder.config_to_use(config_class(folder.algorithm), trusted=trust), device)
    state, config = of_seed(folder.load_checkpoint(), config.seed), alone(config)[0]  # of several seeds: the first
    if state is None:
        raise RunError(f"{os.fspath(run)} has no checkpoint yet; `telescope train --resume` continues the run")
    session = RolloutSession(config, algorithm.row(config), state, algorithm.STATISTICS)
    own = _with_critic if folder.algorithm == "rlhf" else _without_critic
    with torch.no_grad():
        sampled, arrays = own(algorithm, session, state, prompts)
    mask = sampled.completions.mask
    numbers: dict[str, Any] = {name: x.cpu().float().numpy().T for name, x in arrays.items()}  # [T, B]
    rollout = Rollout(**numbers, mask=mask.cpu().numpy().T, gamma=session.objective.gamma, lam=session.objective.lam)
    return rollout, _extras(session, sampled, "values" in arrays)


def _with_critic(
    rlhf: Any, session: RolloutSession, state: dict[str, Any], prompts: int
) -> tuple[Sampled, dict[str, Tensor]]:
    """Arrays [B, T] of PPO, as its update would learn from them."""
    session.after = session.config.truncation == "bootstrap"  # type: ignore[attr-defined]
    critic = rlhf.Critic(session)
    session.begin({"policy": session.policy, "value": critic.network}, state)
    sampled = session.collect(prompts)
    values = critic.values_of(sampled)
    rewards, _, cut = rlhf.priced(session, sampled, values)
    batch = rlhf.credit(session, sampled, values)
    last, ends = _last(sampled.completions.mask), cut["terminated"][:, None]
    mask, last_values = sampled.completions.mask, cut["final_values"]
    following = next_values(batch.values, last_values, terminated=None, truncated=None, mask=mask, axis=1)
    return sampled, {
        "rewards": rewards,
        "values": batch.values,
        "next_values": following,
        "terminated": last & ends,
        "truncated": last & ~ends,
        "advantages": batch.advantages,
        "returns": batch.returns,
    }


def _without_critic(
    grpo: Any, session: RolloutSession, state: dict[str, Any], prompts: int
) -> tuple[Sampled, dict[str, Tensor]]:
    """Arrays [B, T] of GRPO and its kin: no values, and the score at the last token."""
    session.begin({"policy": session.policy}, state)
    sampled, objective = session.collect(prompts), session.objective
    mask, kl = sampled.completions.mask, None
    if sampled.reference is not None and objective.kl_place == "reward":
        kl = kl_penalty(objective, sampled.completions.log_probs, sampled.reference, mask)
    own = sampled.completions.rewards  # of a conversation, they come with its turns
    scores = sampled.scores if own is None else torch.zeros_like(sampled.scores)
    rewards = token_rewards(objective, scores, mask, kl)
    return sampled, {
        "rewards": rewards if own is None else rewards + own,
        "terminated": _last(mask),
        "advantages": grpo.advantages_of(session, sampled),
    }


def _last(mask: Tensor) -> Tensor:
    """True at the last token of each completion."""
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def _extras(session: RolloutSession, sampled: Sampled, critic: bool) -> Extras:
    prompts = [row["prompt"] for row in sampled.rows]
    completions = sampled.completions.to("cpu")
    ids, read = completions.tokens, completions.present
    known = sorted(set(ids[read].tolist()))
    texts = dict(zip(known, following_texts(session.tokenizer, [[one] for one in known]), strict=True))
    texts |= {end: session.tokenizer.convert_ids_to_tokens(end) for end in session.ends}
    tokens = np.array(
        [
            _texts([texts[one] for one in row[here].tolist()], own[here].tolist(), len(row))
            for row, here, own in zip(ids, read, completions.mask, strict=True)
        ]
    )
    names = [
        f"prompt {i // sampled.group + 1}, completion {i % sampled.group + 1}: score {float(score):.3g}"
        for i, score in enumerate(sampled.scores)
    ]
    notes = [] if critic else ["This run has no critic; its own advantages compare the completions of a prompt."]
    return Extras(tokens=tokens.T, prompts=prompts, columns=names, notes=notes, recorded="What the run learns from")


def _texts(texts: list[str], own: list[bool], width: int) -> list[str]:
    """The texts of one conversation's tokens. What an environment says stands behind the token that it answers."""
    found = [""] * width
    at = 0
    for place, (text, mine) in enumerate(zip(texts, own, strict=True)):
        at = place if mine else at
        found[at] += text if mine else f" {text}" if found[at] else text
    return found
