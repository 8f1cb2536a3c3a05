"""Check of stamps: a bar is labelled by its start, for every symbol alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS

SESSIONS = 5
"""Fewer sessions do not tell a habit from an accident."""
MISSING = 0.9
"""Share of sessions without their first bar, though the second is there, above which it is a habit."""
LAGGED = 0.2
"""Correlation of one symbol's return with another's one bar later: honest lead and lag over 5-minute bars
stays below (liquid pairs: below 0.1), a label off by a bar moves the whole common part there."""
ROWS = 200
"""Common returns that a comparison of two symbols needs."""
PAIRS = 12


def labelled_by_start(case: Case) -> Iterator[Finding]:
    """Bars that are labelled by their end lack every session's first bar, or run ahead of other symbols."""
    check = "labelled_by_start"
    for one in case.bars:
        lacking, sessions = _first_bars(one)
        if sessions >= SESSIONS and lacking / sessions > MISSING:
            yield Finding(
                check,
                "leak",
                f"{one.symbol}: {lacking} of {sessions} sessions have their second bar but not their first, "
                f"as bars that are labelled by their end would (from {stamp(one.ts[0] / SECOND_NS)} on)",
                "label bars by their start: subtract bar_seconds from the source's stamps",
                {"symbol": one.symbol, "values": [lacking, sessions]},
            )
            return
    names = len(case.bars)
    pairs = [(i, j) for i in range(names) for j in range(i + 1, names)]
    picked = pairs[:: max(len(pairs) // PAIRS, 1)]
    for i, j in picked:
        found = _out_of_step(case.bars[i], case.bars[j])
        if found is not None:
            ahead, behind, now, later = found
            yield Finding(
                check,
                "leak",
                f"{ahead}'s return goes with {behind}'s of the next bar (correlation {later:.2f}, of the "
                f"same bar {now:.2f}): their bars are not labelled alike",
                f"label both by the bar's start: {behind}'s bars seem to carry their end",
                {"symbol": behind, "values": [later, now]},
            )
            return
    yield Finding(
        check, "pass", f"{names} symbols: first bars of sessions are there, {len(picked)} pairs in step"
    )


def _first_bars(one: SymbolBars) -> tuple[int, int]:
    """(sessions whose second bar is present and first is not, sessions whose second bar is present)."""
    start_B = np.r_[True, one.session[1:] != one.session[:-1]]
    first = np.flatnonzero(start_B)
    first = first[(first > 0) & (first + 1 < len(one.ts))]  # where the file begins says nothing
    first = first[one.session[first + 1] == one.session[first]]
    second = one.present[first + 1]
    return int((second & ~one.present[first]).sum()), int(second.sum())


def _out_of_step(one: SymbolBars, two: SymbolBars) -> tuple[str, str, float, float] | None:
    """(symbol ahead, symbol behind, correlation of the same bar, with the next bar) where that is larger."""
    ts, a, b = np.intersect1d(one.ts, two.ts, assume_unique=True, return_indices=True)
    log_1, log_2 = np.log(one.close[a]), np.log(two.close[b])
    step = np.r_[False, np.diff(ts) == np.median(np.diff(ts))] if len(ts) > 2 else np.zeros(len(ts), bool)
    r_1, r_2 = np.diff(log_1, prepend=np.nan), np.diff(log_2, prepend=np.nan)
    usable = np.isfinite(r_1) & np.isfinite(r_2) & step
    both = usable[1:] & usable[:-1]
    if both.sum() < ROWS:
        return None
    now = _correlation(r_1[1:][both], r_2[1:][both])
    for ahead, behind, lead, lag in ((one, two, r_1, r_2), (two, one, r_2, r_1)):
        later = _correlation(lead[:-1][both], lag[1:][both])
        sure = abs(later) * np.sqrt(both.sum()) > 10
        if sure and abs(later) > LAGGED and abs(later) > 2 * abs(now):
            return ahead.symbol, behind.symbol, now, later
    return None


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, of returns cut at 5 deviations: one crash is not a habit."""
    x, y = (np.clip(v, v.mean() - 5 * v.std(), v.mean() + 5 * v.std()) for v in (x, y))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0
