"""Judge the advantages of a rollout: which γ and λ they are GAE of, or which mistake explains them.

Each row shows by itself what was added for everything after its step, so what happened at the ends of episodes is told
apart from what happened inside. Leaves out what the rows say without advantages (`reading.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from telescope.lab.evidence import Fit, Flags, Floats, Rows, at, fitted_discounts, matched, rows_of
from telescope.lab.mistakes import ENDS
from telescope.lab.reading import Reading

ENOUGH = 8
"""Rows inside episodes from which an explanation of all of them is no accident."""
BOUND = 1e-3
"""How far a fitted γ or λ may lie outside of [0, 1], or from the given one."""

SWAPPED = "terminated and truncated are in each other's place"


class Judging(Reading):
    """A reading that goes on to the advantages."""

    def judge(self) -> None:
        self.rows = rows_of(self.rollout)
        self.read_rows()
        rows, rollout = self.rows, self.rollout
        if not np.isfinite(rows.advantages[rows.live]).all() or not np.isfinite(rows.values[rows.live]).all():
            return  # there are none, or no values to compare them with
        fit = self._explained(rows)
        if fit is None:
            for words, shifted in self._shifted():
                fit = self._explained(shifted)
                if fit is not None and not self._ends_off(shifted, fit).any():
                    self._flags_moved(words, shifted, self._against_advantages(self.rows, fit))
                    break
                fit = None
        if fit is None and self._permuted():
            return
        if fit is None:
            self._unexplained()
            return
        self._first_flags(fit)
        self._discounts(fit)
        self._swapped(fit)
        raw = self._raw(self.rows, fit)
        self._whitening(fit, raw)
        self._ends(raw, fit)
        if rollout.returns is not None and rollout.advantages is not None:
            self._returns(raw, fit)

    def _first_flags(self, fit: Fit) -> None:
        """Where flags are too early, the first rows' advantages tell too whether their own flags were others."""
        if self.early is not None:
            rows, wrong = self.early
            wrong[0] |= self._against_advantages(rows, fit)[0]
            place = [one.name for one in self.findings].index("shifted_flags")
            first = self.findings[place]
            self.findings[place] = first._replace(row=self.first(wrong), rows=int(wrong.sum()))

    def _against_advantages(self, rows: Rows, fit: Fit) -> Flags:
        """Rows whose flags contradict the advantage, which is that of an episode that ends otherwise or goes on."""
        raw = self._raw(rows, fit)
        goes_on = fit.gamma * (raw.following + fit.lam * raw.later)
        flagged = (raw.terminated | raw.truncated) & np.isfinite(goes_on)
        continues = flagged & ~raw.off(goes_on, fit.gamma, fit.lam)
        terminates = raw.truncated & ~raw.off(np.zeros(goes_on.shape), fit.gamma, fit.lam)
        return self._ends_off(rows, fit) | continues | terminates

    def _swapped(self, fit: Fit) -> None:
        """Both kinds of ends are wrong as flagged, and all of them right the other way round."""
        rows, off = self.rows, self._ends_off(self.rows, fit)
        swapped = self._with_flags(rows.truncated, rows.terminated)
        if (off & rows.terminated).any() and rows.truncated.any() and not self._ends_off(swapped, fit).any():
            self.findings = [one for one in self.findings if one.name != "truncation_as_termination"]
            self.add("shifted_flags", rows.terminated | rows.truncated, detail=SWAPPED)
            self.rows = swapped

    def _candidates(self, rows: Rows) -> Iterator[Fit | None]:
        """γ and λ to try: the given ones, then those that fit; each with advantages as they are and scaled."""
        gamma, lam = self.rollout.gamma, self.rollout.lam
        if not rows.successors[rows.inside].any() and gamma is None:
            gamma = 1.0  # all values are 0, so only the product γλ can be told
        if gamma is not None or lam is not None:
            for scaled in (False, True):
                yield fitted_discounts(rows, scaled=scaled, gamma=gamma, lam=lam)
        for scaled in (False, True):
            yield fitted_discounts(rows, scaled=scaled)

    def _explained(self, rows: Rows) -> Fit | None:
        """The first γ, λ, mean and scale by which every row inside an episode is right."""
        for fit in self._candidates(rows):
            if fit is None or not (-BOUND <= fit.gamma <= 1 + BOUND and -BOUND <= fit.lam <= 1 + BOUND):
                continue
            raw = self._raw(rows, fit)
            if not (raw.off(raw.expected(fit.gamma, fit.lam), fit.gamma, fit.lam) & raw.inside).any():
                return fit
        return None

    def _raw(self, rows: Rows, fit: Fit) -> Rows:
        """The rows with advantages as they were before they were shifted and scaled."""
        advantages, later = (fit.scale * x + fit.mean for x in (rows.advantages, rows.later))
        return rows._replace(advantages=advantages, later=later)

    def _ends_off(self, rows: Rows, fit: Fit) -> Flags:
        raw = self._raw(rows, fit)
        return raw.off(raw.expected(fit.gamma, fit.lam), fit.gamma, fit.lam)

    def _discounts(self, fit: Fit) -> None:
        gamma, lam = self.rollout.gamma, self.rollout.lam
        found, given = [], []
        for name, said, is_ in (("γ", gamma, fit.gamma), ("λ", lam, fit.lam)):
            if said is not None and abs(said - is_) > BOUND:
                found.append(f"{name} = {is_:.4g}")
                given.append(f"{name} = {said:.4g}")
        if found:
            raw = self._raw(self.rows, fit)
            off = raw.off(
                raw.expected(gamma if gamma is not None else fit.gamma, lam if lam is not None else fit.lam), 1, 1
            )
            detail = f"{', '.join(found)}, not of {', '.join(given)}"
            self.add("other_discounts", off & raw.inside, self._residual(raw, fit, raw.inside), detail=detail)
        elif gamma is None or lam is None:
            self.notes.append(f"the advantages are GAE of γ = {fit.gamma:.4g}, λ = {fit.lam:.4g}")

    def _residual(self, raw: Rows, fit: Fit, where: Flags, expected: Floats | None = None) -> float:
        wanted = raw.expected(fit.gamma, fit.lam) if expected is None else expected
        errors = np.abs(raw.rest - wanted)[where]
        spread = float(np.std(raw.advantages[raw.live])) or 1.0
        return float(np.nanmax(errors, initial=0.0)) / spread

    def _whitening(self, fit: Fit, raw: Rows) -> None:
        if fit.scale == 1 and fit.mean == 0:
            return
        live = raw.advantages[raw.live]
        padded = np.where(raw.live, raw.advantages, 0.0).ravel()

        def error(x: Floats) -> float:
            means, stds = float(x.mean()), [float(x.std(ddof=d)) for d in (0, 1)]
            return min(max(abs(fit.mean - means), abs(fit.scale - std)) for std in stds) / fit.scale

        if not raw.live.all() and error(padded) < 1e-3 and error(padded) < error(live) / 4:
            self.add("padding_whitened", raw.live, error(padded))
        elif error(live) < 1e-2:
            self.notes.append("the advantages are whitened")
        else:
            self.notes.append(f"the advantages are ({fit.mean:.4g} subtracted) divided by {fit.scale:.4g}")

    def _ends(self, raw: Rows, fit: Fit) -> None:
        """Rows at the end of an episode or the buffer: what was added there, if not what GAE adds."""
        gamma, decay = fit.gamma, fit.gamma * fit.lam
        expected = raw.expected(fit.gamma, fit.lam)
        wrong = raw.off(expected, fit.gamma, fit.lam)
        flagged = self.rollout.terminated is not None or self.rollout.truncated is not None
        kinds = {
            "a termination": raw.terminated,
            "a truncation": raw.truncated,
            "the end of the buffer": raw.last & flagged,
        }
        named = {finding.name for finding in self.findings}
        for end, where in kinds.items():
            off, unknown = wrong & where, where & np.isnan(expected)
            for mistake in ENDS[end]:
                added = mistake.added(raw, gamma, decay)
                told = (off | unknown) & np.isfinite(added)
                if (off & ~told).any() or not told.any() or (raw.off(added, fit.gamma, fit.lam) & told).any():
                    continue
                if not (mistake.needs_values and not raw.values[raw.live].any()) and mistake.name not in named:
                    self.add(mistake.name, told, self._residual(raw, fit, told, added), end=end)
                break
            else:
                if off.any():
                    self.add("not_gae", off)

    def _returns(self, raw: Rows, fit: Fit) -> None:
        shape = raw.rewards.shape
        returns = np.asarray(self.rollout.returns, np.float64).reshape(shape)
        if not self._returns_off(returns, raw).any():
            return
        if not self._returns_off(returns, self.rows).any():
            self.add("returns_of_whitened", self._returns_off(returns, raw))
            return
        targets = raw._replace(advantages=returns - raw.values)
        targets = targets._replace(later=at(targets.advantages, raw.next_row))
        other = fitted_discounts(targets, scaled=False, gamma=fit.gamma)
        if other is not None and not self._ends_off(targets, other).any():
            self.notes.append(f"the returns are those of another λ = {other.lam:.4g}")
        else:
            self.add("other_returns", self._returns_off(returns, raw))

    def _returns_off(self, returns: Floats, rows: Rows) -> Flags:
        errors = np.abs(returns - rows.advantages - rows.values)
        return rows.live & (errors > rows.tolerance(1.0, 1.0) + 64 * rows.rounding * np.abs(returns))

    def _permuted(self) -> bool:
        """Whether advantages, rewards or values are right but stand in other rows."""
        rows, rollout = self.rows, self.rollout
        if rollout.gamma is None or rollout.lam is None:
            return False
        gamma, lam = rollout.gamma, rollout.lam
        near = 1e3 * rows.rounding * float(np.std(rows.advantages[rows.live]) or 1.0)
        right = self._right_advantages(gamma, lam)
        off = rows.live & (np.abs(right - rows.advantages) > near)
        if matched(rows.advantages[off], right[rows.live], near) > 0.8:
            self.add("permuted_rows", off, detail="advantages")
            return True
        missing = rows.rest - rows.expected(gamma, lam)  # what the row's reward, or its value, would have to differ by
        for name, given, guess in (
            ("rewards", rows.rewards, rows.rewards + missing),
            ("values", rows.values, rows.values - missing),
        ):
            different = rows.inside & (np.abs(missing) > near)
            if different.any() and matched(guess[different], given[rows.live], near) > 0.8:
                self.add("permuted_rows", different, detail=name)
                return True
        return False

    def _right_advantages(self, gamma: float, lam: float) -> Floats:
        import telescope

        rows = self.rows
        successors = np.nan_to_num(rows.successors)
        ends: dict[str, Any] = {"terminated": rows.terminated, "truncated": rows.truncated, "mask": rows.live}
        values = np.where(rows.live, rows.values, 0.0)
        rewards = np.where(rows.live, rows.rewards, 0.0)
        return np.asarray(telescope.gae(rewards, values, successors, **ends, gamma=gamma, lam=lam).advantages)

    def _unexplained(self) -> None:
        rows = self.rows
        if self._transposed():
            self.add("time_axis", None)
            return
        fit = fitted_discounts(rows, scaled=False, gamma=self.rollout.gamma, lam=self.rollout.lam)
        if fit is None:
            self.notes.append("there are too few rows inside episodes to tell γ and λ")
            return
        off = self._ends_off(rows, fit)
        self.add("not_gae", off, self._residual(rows, fit, off))

    def _transposed(self) -> bool:
        arrays = self.rollout.arrays()
        if arrays["rewards"].ndim < 2:
            return False
        turned: dict[str, Any] = {name: np.swapaxes(x, 0, 1) for name, x in arrays.items()}
        rows = rows_of(self.rollout._replace(**turned))
        return rows.inside.sum() >= ENOUGH and self._explained(rows) is not None
