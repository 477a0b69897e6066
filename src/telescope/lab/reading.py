"""Read the rows of a rollout: shapes, numbers, flags, resets, padding, and next values at the ends of episodes.

What is wrong becomes a `Finding`. Where it is known what is right, the reading goes on with that, so that one mistake
is not found again as another. Leaves out the advantages (`judging.py`).
"""

# T time, C columns
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from telescope.lab.evidence import Flags, Floats, Rollout, Rows, at, following_rows, matched
from telescope.lab.mistakes import SENTENCES

SAME = 1e-4
"""Values this close, relative to their spread, are the same value."""
RARE = 0.02
"""If fewer rewards than this share are 0, a 0 after every end is no accident."""


class Finding(NamedTuple):
    """One thing that is wrong."""

    name: str
    """Its name, a key of `telescope.lab.mistakes.SENTENCES`."""
    sentence: str
    row: tuple[int, ...] | None
    """The first row that has it, as an index of the arrays; None if it is no matter of a row."""
    rows: int
    """How many rows have it."""
    residual: float | None = None
    """With the mistake taken into account, the largest error of a row that it explains, in units of the advantages'
    spread; None where nothing had to be explained."""

    @property
    def text(self) -> str:
        """As the command prints it."""
        where = "" if self.row is None else f" First at row {', '.join(map(str, self.row))}; rows: {self.rows}."
        if self.residual is not None:
            what = "The best fit is off by" if self.name == "not_gae" else "This explains the numbers up to"
            where += f" {what} {self.residual:.1e} of their spread."
        return f"{self.name}: {self.sentence}.{where}".replace("?.", "?")


class Report(NamedTuple):
    """What an examination found: nothing, if the rollout is right as far as it can be told."""

    findings: list[Finding]
    notes: list[str]
    """What is no mistake but good to know."""


class Reading:
    def __init__(self, rollout: Rollout) -> None:
        self.rollout, self.findings, self.notes = rollout, list[Finding](), list[str]()
        self.rows: Rows
        self.contradicted = False
        """Whether next values are nearly nowhere the values of the next rows."""
        self.scrambled: Flags | None = None
        """Where values then stand in other rows than they belong to."""
        self.early: tuple[Rows, Flags] | None = None
        """If flags are one row too early: the rows as they were given, and where their flags are wrong."""
        self.batch = np.shape(rollout.rewards)[1:]

    # what was found

    def add(self, name: str, where: Flags | None, residual: float | None = None, **words: str) -> None:
        sentence = SENTENCES[name].format(**words)
        row, count = (None, 0) if where is None or not where.any() else (self.first(where), int(where.sum()))
        self.findings.append(Finding(name, sentence, row, count, residual))

    def first(self, where: Flags) -> tuple[int, ...]:
        """The index of the first marked row in the arrays as they were given."""
        t, column = (int(x) for x in np.argwhere(where)[0])
        return (t, *(int(i) for i in np.unravel_index(column, self.batch))) if self.batch else (t,)

    # can it be read?

    def readable(self) -> bool:
        arrays = self.rollout.arrays()
        shape = arrays["rewards"].shape
        for name, x in arrays.items():
            if x.shape != shape or x.ndim == 0:
                self.add("shapes", None, detail=f"{name} has shape {x.shape}, rewards {shape}")
                return False
        live = np.ones(shape, bool)
        for name in ("mask", "terminated", "truncated"):
            if name not in arrays:
                continue
            x = arrays[name]
            wrong = (x != 0) & (x != 1)
            if wrong.any():
                self.add("flags", wrong.reshape(len(wrong), -1), detail=name)
                return False
            live = live & (x != 0) if name == "mask" else live
        if not live.any():
            self.notes.append("no row counts")
            return False
        for name in ("rewards", "values", "next_values", "advantages", "returns"):
            if name not in arrays:
                continue
            read = live if name != "next_values" or "terminated" not in arrays else live & (arrays["terminated"] == 0)
            wrong = read & ~np.isfinite(arrays[name].astype(np.float64))
            if wrong.any():
                self.add("not_finite", wrong.reshape(len(wrong), -1), detail=name)
                return False
        return True

    # the rows themselves

    def read_rows(self) -> None:
        rows = self.rows
        stray = ~rows.live & (rows.rewards != 0) & np.isfinite(rows.rewards)
        if stray.any():
            self.add("padding_reward", stray)
        self._reset_rows()
        if self.rollout.next_values is not None:
            self._flags_by_values()
            self._values_at_ends()

    def _reset_rows(self) -> None:
        """Rows of a next-step autoreset that are not masked: right after an end, with reward 0 and no flag."""
        rows = self.rows
        ended = rows.terminated | rows.truncated
        after = np.zeros_like(ended)
        after[1:] = ended[:-1]
        after &= rows.live
        plain = rows.live & ~after & ~ended
        if not after.any() or not plain.any() or (rows.rewards[after] != 0).any() or (after & ended).any():
            return
        if (after & self.broken(rows)).any():
            return  # an episode ends there: the flags are early
        carried = self._same(at(rows.values, self._next_time()), rows.reached) & rows.truncated & at_flags(after)
        truncated = rows.truncated & at_flags(after) & np.isfinite(rows.reached)
        proved = truncated.any() and carried[truncated].all() and self._telling()
        if proved or (not truncated.any() and (rows.rewards[plain] == 0).mean() < RARE):
            self.add("reset_row", after)
            live = rows.live & ~after
            next_row = following_rows(live)
            last = live & (next_row == len(live)) & ~ended
            following, later = at(rows.values, next_row), at(rows.advantages, next_row)
            self.rows = rows._replace(live=live, next_row=next_row, following=following, later=later, last=last)

    def _next_time(self) -> np.ndarray:
        steps, columns = self.rows.live.shape
        return np.broadcast_to(np.arange(1, steps + 1)[:, None], (steps, columns))

    def _telling(self) -> bool:
        """Whether values differ, so that equal ones mean something."""
        values = self.rows.values[self.rows.live]
        return len(np.unique(values)) > max(2, 0.5 * len(values))

    def _same(self, x: Floats, y: Floats) -> Flags:
        spread = float(np.nanstd(self.rows.values[self.rows.live]))
        rounding = self.rows.rounding
        close = SAME * spread if rounding.of_values == rounding.fine else 0.0
        return np.asarray(np.abs(x - y) <= close + 8 * rounding.fine * (np.abs(x) + np.abs(y)) + self._halves(x, y))

    def _halves(self, x: Floats, y: Floats) -> Floats:
        """What numbers of half precision may differ by though they are the same."""
        coarse = self.rows.rounding.of_values
        return np.zeros(1) if coarse == self.rows.rounding.fine else coarse * np.maximum(np.abs(x), np.abs(y))

    def _flags_by_values(self) -> None:
        """Inside an episode the next value is that of the next row; where it is not, the episode ended."""
        rows = self.rows
        known = rows.inside & np.isfinite(rows.reached + rows.following)
        broken = known & ~self._same(rows.reached, rows.following)
        if not broken.any():
            return
        for words, shifted in self._shifted():
            told = shifted.inside & np.isfinite(shifted.reached + shifted.following)
            if not self.broken(shifted).any() and told.sum() > 0.5 * known.sum():
                self._flags_moved(words, shifted, self._against_values())
                return
        if broken.sum() > 0.5 * known.sum():
            self.contradicted = True
            self.scrambled = moved_flags(broken, 1)  # the next row's value
            inside = rows.live & rows.inside
            spread = float(np.std(rows.values[rows.live]))
            if matched(rows.reached[inside], rows.following[inside], SAME * spread) < 0.8:
                self.scrambled = None
                self.notes.append("next_values are not the values of the next rows: another critic made them")
        else:
            self.add("missing_flag", broken)
            self.rows = self._with_flags(rows.terminated, rows.truncated | broken)

    def broken(self, rows: Rows) -> Flags:
        known = rows.inside & np.isfinite(rows.reached + rows.following)
        return known & ~self._same(rows.reached, rows.following)

    def _shifted(self) -> Iterator[tuple[str, Rows]]:
        """The rows with flags one step earlier or later, or in each other's place. A flag that fell out is unknown."""
        rows = self.rows
        flags = {"terminated": rows.terminated, "truncated": rows.truncated}
        for step, words in ((-1, "late"), (1, "early")):
            for names in (("terminated", "truncated"), ("terminated",), ("truncated",)):
                if all(flags[name].any() for name in names):
                    moved = {name: moved_flags(x, step) if name in names else x for name, x in flags.items()}
                    who = " and ".join(names) + (" are" if len(names) > 1 else " is")
                    yield (
                        f"{who} one row too {words}",
                        self._with_flags(moved["terminated"], moved["truncated"], lost=step),
                    )

    def _with_flags(self, terminated: Flags, truncated: Flags, lost: int = 0) -> Rows:
        """The rows with these flags. `lost` −1 or 1: those of the last or of the first rows are not known."""
        rows = self.rows
        ended = terminated | truncated
        last = rows.live & (rows.next_row == len(rows.live)) & ~ended
        terminated, truncated = terminated & rows.live, truncated & rows.live & ~terminated
        reached, following = rows.reached, rows.following
        if lost:  # nothing is expected there
            unknown = last if lost < 0 else np.arange(len(last))[:, None] == 0
            reached, following = (np.where(unknown, np.nan, x) for x in (reached, following))
        return rows._replace(
            terminated=terminated, truncated=truncated, last=last, reached=reached, following=following
        )

    def _flags_moved(self, words: str, shifted: Rows, contradicted: Flags) -> None:
        """Flags stand in wrong rows. The first rows' own flags may have fallen out: there the numbers decide."""
        rows = self.rows
        wrong = (rows.terminated != shifted.terminated) | (rows.truncated != shifted.truncated)
        if "early" in words:
            wrong[0] = contradicted[0]
            self.early = rows, wrong
        self.add("shifted_flags", wrong, detail=words)
        self.rows = shifted

    def _against_values(self) -> Flags:
        """Rows whose flags contradict the next value: flagged though it is that of the next row, or the reverse."""
        rows = self.rows
        known = rows.live & np.isfinite(rows.reached + rows.following)
        return known & (self._same(rows.reached, rows.following) == (rows.terminated | rows.truncated))

    def _values_at_ends(self) -> None:
        rows = self.rows
        values = rows.values[rows.live]
        if not values.any():
            return
        followed = rows.truncated & np.isfinite(rows.following + rows.reached)
        if followed.any() and self._telling() and self._same(rows.reached, rows.following)[followed].all():
            self.add("reset_state_value", followed, end="a truncation")
        for end, name in ((rows.truncated, "truncation_as_termination"), (rows.last, "end_as_termination")):
            if end.any() and (rows.reached[end] == 0).all():
                self.add(name, end)


def moved_flags(flags: Flags, step: int) -> Flags:
    """Flags [T, C] moved by `step` rows; what enters is False."""
    moved = np.zeros_like(flags)
    if step > 0:
        moved[step:] = flags[:-step]
    else:
        moved[:step] = flags[-step:]
    return moved


def at_flags(after: Flags) -> Flags:
    """Rows [T, C] whose next row in time is marked."""
    return moved_flags(after, -1)
