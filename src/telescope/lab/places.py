"""Whether advantages, rewards or values are right but stand in other rows than they belong to.

Leaves out what is wrong with numbers in their own rows (`judging.py`).
"""

# T time, C columns
from __future__ import annotations

from typing import Any

import numpy as np

from telescope.lab.evidence import Floats, matched
from telescope.lab.reading import Reading

MOST = 0.8
"""If this share of numbers stands in other rows, they are permuted: some may have fallen out."""


class Places(Reading):
    """A reading that looks for rows in other places."""

    def _permuted(self) -> bool:
        """Whether advantages, rewards or values are right but stand in other rows."""
        rows, rollout = self.rows, self.rollout
        if rollout.gamma is None or rollout.lam is None:
            return False
        gamma, lam = rollout.gamma, rollout.lam
        right = self._right_advantages(gamma, lam)
        for given in (rows.advantages, self._like(right)):
            near = 1e3 * rows.rounding.fine * float(np.std(given[rows.live]) or 1.0)
            off = rows.live & (np.abs(right - given) > near)
            if off.sum() > 1 and matched(given[off], right[off], near) > MOST:
                self.add("permuted_rows", off, detail="advantages")
                return True
        near = 1e3 * rows.rounding.fine * float(np.std(rows.advantages[rows.live]) or 1.0)
        missing = rows.rest - rows.expected(gamma, lam)  # what the row's reward, or its value, would have to differ by
        known = rows.live & np.isfinite(missing)
        for name, given, guess in (
            ("rewards", rows.rewards, rows.rewards + missing),
            ("values", rows.values, rows.values - missing),
        ):
            different = known & (np.abs(missing) > near)
            if different.sum() > 1 and matched(guess[different], given[different], near) > MOST:
                self.add("permuted_rows", different, detail=name)
                return True
        return False

    def _like(self, right: Floats) -> Floats:
        """The advantages, scaled and shifted so that their mean and deviation are the right ones'."""
        live, given = self.rows.live, self.rows.advantages
        scale = float(right[live].std()) / (float(given[live].std()) or 1.0)
        return (given - given[live].mean()) * scale + right[live].mean()

    def _right_advantages(self, gamma: float, lam: float) -> Floats:
        import telescope

        rows = self.rows
        successors = np.nan_to_num(rows.successors)
        ends: dict[str, Any] = {"terminated": rows.terminated, "truncated": rows.truncated, "mask": rows.live}
        values = np.where(rows.live, rows.values, 0.0)
        rewards = np.where(rows.live, rows.rewards, 0.0)
        return np.asarray(telescope.gae(rewards, values, successors, **ends, gamma=gamma, lam=lam).advantages)
