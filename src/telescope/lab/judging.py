"""Judge the advantages of a rollout: which γ and λ they are GAE of, or which mistake explains them.

Each row shows by itself what was added for everything after its step, so what happened at the ends of episodes is told
apart from what happened inside. Leaves out what the rows say without advantages (`reading.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from telescope.lab.evidence import Fit, Flags, Floats, Rows, at, fitted_discounts, rows_of
from telescope.lab.mistakes import ENDS, SENTENCES, End
from telescope.lab.places import Places
from telescope.lab.reading import Finding

ENOUGH = 8
"""Rows inside episodes from which an explanation of all of them is no accident."""
FEW = 4
"""The same, where mean and deviation of the advantages say that they were whitened."""
BOUND = 1e-3
"""How far a fitted γ or λ may lie outside of [0, 1], or from the given one."""

SWAPPED = "terminated and truncated are in each other's place"


class Judging(Places):
    """A reading that goes on to the advantages."""

    def judge(self) -> None:
        self.rows = rows_of(self.rollout)
        self.read_rows()
        rows, rollout = self.rows, self.rollout
        if not np.isfinite(rows.advantages[rows.live]).all() or not np.isfinite(rows.values[rows.live]).all():
            return  # there are none, or no values to compare them with
        fit = self.explained_by(rows)
        if self._turned(fit):
            self.findings = [Finding("time_axis", SENTENCES["time_axis"], None, 0)]
            return
        fit = fit or self._with_moved_flags()
        if fit is None:
            self._padding_whitened(self._over_padding())
            if not self._permuted() and "shifted_flags" not in {one.name for one in self.findings}:
                self._unexplained()
            return
        off = self._ends_off(self.rows, fit)
        known = self.rows.live & np.isfinite(self.rows.expected(fit.gamma, fit.lam))
        if off.any() and known.sum() <= FEW and self._looks_whitened():
            self.notes.append("there are too few rows to tell how the advantages were whitened")
            return
        if off.sum() > 0.5 * self.rows.live.sum() and self._permuted():
            return
        if self.scrambled is not None:
            self.add("permuted_rows", self.scrambled, detail="values or next_values")
        self._first_flags(fit)
        self._discounts(fit)
        self._swapped(fit)
        raw = self._raw(self.rows, fit)
        self._whitening(fit, raw)
        self._ends(raw, fit)
        if rollout.returns is not None and rollout.advantages is not None:
            self._returns(raw, fit)

    def _with_moved_flags(self) -> Fit | None:
        """The discounts that explain every row if flags are a row late or early, or in each other's place."""
        best = self._plain(self.rows)
        for words, shifted in self._shifted():
            fit = self.explained_by(shifted)
            if fit is None or self._ends_off(shifted, fit).any():
                continue
            moved = (shifted.terminated != self.rows.terminated) | (shifted.truncated != self.rows.truncated)
            off = self._ends_off(self.rows, best or fit)
            if off.sum() >= 0.25 * moved.sum() and shifted.inside.sum() >= 2:
                self._flags_moved(words, shifted, self._against_advantages(self.rows, fit))
                return fit
        return None

    def _plain(self, rows: Rows) -> Fit | None:
        """The given discounts, if both are."""
        gamma, lam = self.rollout.gamma, self.rollout.lam
        return None if gamma is None or lam is None else Fit(gamma, lam, 0.0, 1.0)

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
            if gamma is not None and lam is not None and self._looks_whitened():  # so there are two rows
                right = self._right_advantages(gamma, lam)
                for over in (right[rows.live], np.where(rows.live, right, 0.0).ravel()):
                    yield from (Fit(gamma, lam, float(over.mean()), float(over.std(ddof=d))) for d in (0, 1))
        for scaled in (False, True):
            yield fitted_discounts(rows, scaled=scaled)

    def explained_by(self, rows: Rows) -> Fit | None:
        """The first γ, λ, mean and scale by which every row inside an episode is right."""
        found: list[tuple[int, Fit]] = []
        for fit in self._candidates(rows):
            if fit is None or not (-BOUND <= fit.gamma <= 1 + BOUND and -BOUND <= fit.lam <= 1 + BOUND):
                continue
            known = rows.live & np.isfinite(rows.expected(fit.gamma, fit.lam))
            tried = [fit]
            if (fit.scale, fit.mean) != (1, 0):
                both = (fit.gamma, fit.lam) == (self.rollout.gamma, self.rollout.lam)
                enough = FEW if self._looks_whitened() else ENOUGH
                if (known if both else rows.inside).sum() < enough:
                    continue
                tried += self._other_means(rows, fit)
            wrong = [(self._ends_off(rows, one), one) for one in tried]
            right = [(int(off.sum()), one) for off, one in wrong if not (off & rows.inside).any()]
            found += sorted(right, key=lambda one: one[0])[:1]
            if found and found[-1][0] <= (0 if self._looks_whitened() else 0.5 * known.sum()):
                return found[-1][1]
        return min(found, key=lambda one: one[0] > 0)[1] if found else None

    def _looks_whitened(self) -> bool:
        """Whether the advantages' mean and deviation say so: of all rows, or of those that count."""
        given, live = self.rows.advantages, self.rows.live
        return min(_unwhitened(x) for x in (given[live], np.where(live, given, 0.0).ravel(), given.ravel())) < 1e-2

    def _other_means(self, rows: Rows, fit: Fit) -> Iterator[Fit]:
        """The means by which most ends of a kind are right: where γλ is nearly 1, rows inside episodes do not tell."""
        raw = self._raw(rows, fit)
        missing = raw.expected(fit.gamma, fit.lam) - raw.rest
        for where in (rows.terminated, rows.truncated, rows.last):
            known = missing[where & np.isfinite(missing)]
            if len(known):
                yield fit._replace(mean=fit.mean + float(np.median(known)))

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
        if self._padding_whitened(min(self._over_padding(), self._over_padding(-fit.mean / fit.scale))):
            return
        if _unwhitened(self.rows.advantages[raw.live]) < 1e-2:
            self.notes.append("the advantages are whitened")
        else:
            self.notes.append(f"the advantages are ({fit.mean:.4g} subtracted) divided by {fit.scale:.4g}")

    def _over_padding(self, padding: float | None = None) -> float:
        """How far all rows are from being whitened together: with the padding as given, or with this number there."""
        given = self.rows.advantages
        return _unwhitened((given if padding is None else np.where(self.rows.live, given, padding)).ravel())

    def _padding_whitened(self, over_all: float) -> bool:
        live = self.rows.live
        over_live = _unwhitened(self.rows.advantages[live])
        found = self.rollout.mask is not None and not live.all() and over_all < 1e-3 and over_all < over_live / 4
        if found:
            self.add("padding_whitened", live, over_all)
        return found

    def _ends(self, raw: Rows, fit: Fit) -> None:
        """Rows at the end of an episode or the buffer: what was added there, if not what GAE adds."""
        gamma, decay = fit.gamma, fit.gamma * fit.lam
        expected = raw.expected(fit.gamma, fit.lam)
        wrong = raw.off(expected, fit.gamma, fit.lam)
        kinds = self._kinds(raw)
        named = {finding.name for finding in self.findings}
        places, told, sizes = dict[str, list[str]](), dict[str, Flags](), dict[str, float]()
        for end, where in kinds.items():
            off, unknown = wrong & where, where & np.isnan(expected)
            found = self._mistake(raw, fit, end, off, unknown)
            if found is None and not off.any():
                continue
            name, at_rows = (found[0].name, found[1]) if found else ("not_gae", off)
            added = found[0].added(raw, gamma, decay) if found else expected
            places[name] = [*places.get(name, []), end]
            sizes[name] = max(sizes.get(name, 0.0), self._residual(raw, fit, at_rows, added))
            told[name] = told.get(name, False) | at_rows
        for name, ends in places.items():
            if name not in named and not (name == "not_gae" and "shifted_flags" in named):
                self.add(name, told[name], sizes[name], end=" and ".join(ends))

    def _mistake(self, raw: Rows, fit: Fit, end: str, off: Flags, unknown: Flags) -> tuple[End, Flags] | None:
        """The mistake that explains these ends best, and which of them have it."""
        expected, tolerance = raw.expected(fit.gamma, fit.lam), raw.tolerance(fit.gamma, fit.lam)
        best: tuple[float, End, Flags] | None = None
        for mistake in ENDS[end]:
            if mistake.needs_values and not raw.values[raw.live].any():
                continue
            if mistake.needs_next and not off.any():
                continue
            errors = np.abs(raw.rest - mistake.added(raw, fit.gamma, fit.gamma * fit.lam))
            explained = errors <= tolerance
            if (off & ~explained & ~np.isnan(errors)).any() or not (off | unknown)[explained].any():
                continue  # a row of which it says nothing may have it too
            if not off.any() and not ((unknown & ~np.isnan(errors)) <= explained).all():
                continue
            if not off.any() and not self._no_chance(raw, mistake, tolerance, unknown & explained):
                continue
            where = off | unknown | (raw.live & self._kinds(raw)[end])
            nearer = where & explained & ~(errors >= np.abs(raw.rest - expected))
            size = float(np.mean((errors / tolerance)[nearer | off])) if (nearer | off).any() else 0.0
            if best is None or size < best[0] / 4 - 1e-3:
                best = size, mistake, nearer | off
        return None if best is None else best[1:]

    def _no_chance(self, raw: Rows, mistake: End, tolerance: Floats, where: Flags) -> bool:
        """Whether what is added at ends whose next value is not known cannot be right by chance."""
        if mistake.by_chance and not self._telling():
            return False
        spread = float(np.std(raw.values[raw.live])) + float(np.abs(raw.values[raw.live]).mean())
        chances = np.minimum(2 * tolerance[where] / (spread or 1.0), 1.0)
        return bool(np.log(chances).sum() < np.log(1e-3))

    def _kinds(self, raw: Rows) -> dict[str, Flags]:
        """Which rows are ends of which kind."""
        flagged = self.rollout.terminated is not None or self.rollout.truncated is not None
        last = raw.last & flagged
        ends = {"a termination": raw.terminated, "a truncation": raw.truncated, "the end of the buffer": last}
        return ends | {"rows that do not count": raw.gap}

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
        stored = 64 * rows.rounding.fine * np.abs(returns) + self._halves(returns, returns)
        return rows.live & (errors > rows.tolerance(1.0, 1.0) + stored)

    def _unexplained(self) -> None:
        rows = self.rows
        fit = fitted_discounts(rows, scaled=False, gamma=self.rollout.gamma, lam=self.rollout.lam)
        if fit is None or (self._looks_whitened() and self._says_little(fit)):
            self.notes.append("there are too few rows inside episodes to tell γ and λ")
            return
        off = self._ends_off(rows, fit)
        self.add("not_gae", off, self._residual(rows, fit, off))

    def _says_little(self, fit: Fit) -> bool:
        """Whether there are too few rows, or too equal ones, to tell how whitened advantages were before."""
        known = self.rows.live & np.isfinite(self.rows.expected(fit.gamma, fit.lam))
        scaled = fitted_discounts(self.rows, scaled=True, gamma=fit.gamma, lam=fit.lam)
        return bool(self.rows.inside.sum() < ENOUGH or known.sum() < ENOUGH) or scaled is None

    def _turned(self, fit: Fit | None) -> bool:
        """Whether time is axis 1: most rows are wrong as they are, and right the other way round."""
        arrays = self.rollout.arrays()
        if arrays["rewards"].ndim < 2 or (fit is not None and not self.contradicted):
            return False
        if fit is None:
            plain = self._plain(self.rows) or fitted_discounts(self.rows, scaled=False)
            off = np.zeros(1) if plain is None else self._ends_off(self.rows, plain)[self.rows.inside]
            if plain is not None and len(off) and off.mean() < 0.3 and not self.contradicted:
                return False
        turned: dict[str, Any] = {name: np.swapaxes(x, 0, 1) for name, x in arrays.items()}
        other = Judging(self.rollout._replace(**turned))
        other.rows = rows_of(other.rollout)
        broken, inside = other.broken(other.rows), other.rows.inside
        return bool(inside.sum() >= ENOUGH and broken.sum() < 0.1 * inside.sum() and other.explained_by(other.rows))


def _unwhitened(x: Floats) -> float:
    """How far the mean is from 0, or the deviation from 1."""
    if len(x) < 2:
        return float("inf")
    return max(abs(float(x.mean())), min(abs(float(x.std(ddof=d)) - 1) for d in (0, 1)))
