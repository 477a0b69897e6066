"""Dynamic sampling (DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2): fresh prompts for groups without signal.

Leaves out how a rollout is made (`rollout.py`) and learned from.
"""

# N prompts, G completions each, B = N · G completions of T tokens
from __future__ import annotations

import torch

from telescope.language.experience import sampling
from telescope.language.experience.rollout import Rollout, RolloutSession
from telescope.language.experience.sampling import Prompts, stacked
from telescope.language.experience.statistics import all_equal, rollout_statistics


def collect(session: RolloutSession, rounds: int) -> tuple[Rollout, dict[str, float]]:
    """Return the next rollout, and statistics of all completions that were sampled for it.

    A group of equal scores is replaced by a group of a fresh prompt. Each of up to `rounds` further rounds samples as
    many prompts as are still missing. After that, groups of equal scores fill the rollout to its full size; they come
    last, and the update does not learn from them. Random numbers are keyed by step and round.
    """
    everything = session.collect()
    if not rounds:
        return everything, rollout_statistics(everything)
    wanted, done = session.config.prompts, 1
    while done <= rounds and (missing := wanted - int((~all_equal(everything)).sum())) > 0:
        everything = joined(everything, session.collect(missing, part=done))
        done += 1
    useless = all_equal(everything)
    chosen = useless.int().argsort(stable=True)[:wanted]
    share = float((~useless).float().mean())
    filled = float((~useless[chosen]).float().mean())
    return everything.part(chosen), rollout_statistics(everything) | {"rounds": done, "kept": share, "filled": filled}


def joined(one: Rollout, two: Rollout) -> Rollout:
    """Join two rollouts. Prompts are padded on the left, completions on the right, to the width of the wider one."""
    reference = None
    if one.reference is not None and two.reference is not None:
        reference = stacked(one.reference, two.reference)
    return one._replace(
        rows=[*one.rows, *two.rows],
        texts=[*one.texts, *two.texts],
        prompts=Prompts(*(stacked(x, y, left=True) for x, y in zip(one.prompts, two.prompts, strict=True))),
        completions=sampling.joined(one.completions, two.completions),
        scores=torch.cat([one.scores, two.scores]),
        reference=reference,
        each=None if one.each is None or two.each is None else torch.cat([one.each, two.each], 1),
    )
