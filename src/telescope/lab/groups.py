"""Judge advantages that are relative to a group of completions: scores [N] of N / G prompts, without values.

Inside a group such an advantage is c · (score − b). Subtracting the group's mean and leaving one out both give 0 on
average, with c = 1 and G / (G − 1); c may also divide by a deviation. Leaves out the loss.
"""

# K groups of G completions
from __future__ import annotations

import numpy as np

from telescope.lab.evidence import Floats
from telescope.lab.reading import Reading

NEAR = 1e-3
"""How far numbers that are computed with a small ε in a divisor may be off, relative to their spread."""


class Grouped(Reading):
    """A reading of scores and advantages in groups."""

    def judge(self) -> None:
        scores, advantages = np.asarray(self.rollout.rewards, np.float64), self.rollout.advantages
        size = self.rollout.group or 1
        if scores.ndim != 1 or len(scores) % size:
            self.add("shapes", None, detail=f"rewards has shape {scores.shape}, which is not whole groups of {size}")
            return
        if advantages is None:
            self.notes.append("there are no advantages to judge")
            return
        given = np.asarray(advantages, np.float64)
        off = _off(scores.reshape(-1, size), given.reshape(-1, size))
        if not off.any():
            self.notes.append(f"the advantages are relative to groups of {size}")
            return
        flat = off.reshape(-1, 1)
        turned = [x.reshape(size, -1).T for x in (scores, given)]
        whole = [x.reshape(1, -1) for x in (scores, given)]
        if not _off(*turned).any():
            self.add("mixed_groups", flat)
        elif not _off(*whole).any():
            self.notes.append("the advantages are relative to the mean of all completions, not of each group")
        elif self._in_other_rows(scores.reshape(-1, size), given):
            self.add("permuted_rows", flat, detail="advantages")
        else:
            self.add("not_group_relative", flat)

    def _in_other_rows(self, scores: Floats, given: Floats) -> bool:
        """Whether the advantages are those of these scores in another order."""
        centred = scores - scores.mean(1, keepdims=True)
        by_group = centred / (scores.std(1, ddof=1, keepdims=True) + 1e-4)
        return any(_affine(np.sort(right.ravel()), np.sort(given)) for right in (centred, by_group))


def _affine(x: Floats, y: Floats) -> bool:
    """Whether y = c x + b for one c > 0 and b."""
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y) / (float(x @ x) or 1.0)
    return slope > 0 and bool(np.abs(y - slope * x).max() <= NEAR * (y.std() or 1.0))


def _off(scores: Floats, given: Floats) -> np.ndarray:
    """Completions [K, G] whose advantage is not c · (score − b), with one c > 0 and b for each group and mean 0.

    The mean may also be the same number in all groups, as it is after whitening.
    """
    centred, means = scores - scores.mean(1, keepdims=True), given.mean(1, keepdims=True)
    around = given - means
    squares = np.square(centred).sum(1, keepdims=True)
    slopes = np.divide((around * centred).sum(1, keepdims=True), squares, out=np.zeros_like(means), where=squares > 0)
    spread = float(given.std()) or 1.0
    wrong = np.abs(around - slopes * centred) > NEAR * spread
    wrong |= (slopes < 0) | (np.abs(means - np.median(means)) > NEAR * spread)
    return np.asarray(wrong)
