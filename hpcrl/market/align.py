"""One symbol's clean rows laid on its calendar's grid: gaps masked, off-grid rows put aside, features added.

Rows outside the sessions (before the open, after the close) are put aside, too. Refuses data whose grid is
not the calendar's (more than a fifth of the rows off it, or outside of thinly held sessions, bars longer than
``bar_seconds``, or hardly any of the expected bars there), corporate actions that sit on an off-grid row,
and features that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd

from hpcrl.market.bars import ACTIONS, RawBars, SymbolBars
from hpcrl.market.calendar import SECOND_NS, Grid, Sessions
from hpcrl.market.clean import PRICES, iso
from hpcrl.market.features import BURN_IN, computed_columns
from hpcrl.market.indicators import Columns
from hpcrl.types import HpcrlError

OFF_GRID_LIMIT = 0.20
"""Above this share of off-grid rows the calendar, the time zone or the bar length is wrong (a guess)."""
WELL_HELD = 0.80
"""Extended hours may be many rows; with another time zone the sessions would hardly be filled (a guess)."""
EXTENDED_SECONDS = 6 * 3600
"""Before an open and after a close: 04:00 to 20:00 in New York. A market that never closes has more."""
LEAST_COVERAGE = 0.10
"""Below this share of the expected bars a stamp is astray or the calendar is wrong (a guess)."""
ADVICE = "check --calendar (24/7 for a market that never closes), --timezone and --bar-seconds"
SPLIT_RATIOS = np.array([2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 50, 1.5])
SPLIT_TOLERANCE = 0.04
"""In logs: the overnight move that may come on top of the split (measured: AAPL 2000 and 2005, 0.01)."""


def align(
    raw: RawBars, grid: Grid, bar_seconds: int, features: tuple[str, ...], computed: bool
) -> tuple[SymbolBars, dict[str, RawBars]]:
    """Bars of one symbol with their features, and the rows put aside by kind, as ``lay``."""
    bars, own, aside = lay(raw, grid, bar_seconds, features)
    columns = list(feature_columns(bars, own, computed))
    return replace(bars, features=np.stack(columns, axis=1)), aside


def lay(
    raw: RawBars, grid: Grid, bar_seconds: int, features: tuple[str, ...]
) -> tuple[SymbolBars, dict[str, np.ndarray], dict[str, RawBars]]:
    """(bars without features, own features of the present bars, rows put aside: off_grid, outside_session).

    Uses ``raw`` up: its columns are taken out, so that a million rows are not held twice.
    """
    symbol, stamp_R = raw.symbol, raw.ts
    place_R = np.minimum(np.searchsorted(grid.ts_G, stamp_R), max(len(grid.ts_G) - 1, 0))
    on_R = grid.ts_G[place_R] == stamp_R if len(grid.ts_G) else np.zeros(len(stamp_R), dtype=bool)
    within_R = on_R | _within_sessions(stamp_R, grid, bar_seconds)
    _check_grid(symbol, stamp_R, on_R, within_R, grid, bar_seconds)
    aside = {"off_grid": raw.take(within_R & ~on_R), "outside_session": raw.take(~within_R)}
    for one in aside.values():
        _check_idle(one)
    if not on_R.all():
        used, raw, place_R = raw, raw.take(on_R), place_R[on_R]
        used.columns.clear()
    span = slice(place_R[0], place_R[-1] + 1)
    _check_step(symbol, place_R, grid, bar_seconds)
    _check_share(symbol, raw.ts, int(place_R[-1] - place_R[0]) + 1)
    bars = _fill(raw, place_R - place_R[0], grid, span)
    return bars, {name: raw.columns.pop(name) for name in features}, aside


def _within_sessions(stamp_R: np.ndarray, grid: Grid, bar_seconds: int) -> np.ndarray:
    before_R = np.searchsorted(grid.ts_G, stamp_R, side="right") - 1
    bar_R = grid.ts_G[np.maximum(before_R, 0)] if len(grid.ts_G) else np.zeros_like(stamp_R)
    return (before_R >= 0) & (stamp_R < bar_R + bar_seconds * SECOND_NS)


def _near_sessions(stamp_R: np.ndarray, grid: Grid, bar_seconds: int) -> np.ndarray:
    after_R = np.searchsorted(grid.ts_G, stamp_R, side="right")
    last = len(grid.ts_G) - 1
    since_R = stamp_R - grid.ts_G[np.clip(after_R - 1, 0, last)] - bar_seconds * SECOND_NS
    until_R = grid.ts_G[np.clip(after_R, 0, last)] - stamp_R
    near = EXTENDED_SECONDS * SECOND_NS
    return ((after_R > 0) & (since_R < near)) | ((after_R <= last) & (until_R <= near))


def _check_idle(aside: RawBars) -> None:
    acting = (aside.action("split") != 1.0) | (aside.action("dividend") != 0.0)
    acting |= ~np.isnan(aside.action("delist"))
    if acting.any():
        raise HpcrlError(
            f"{aside.symbol}: the row at {iso(int(aside.ts[acting][0]))} is no bar of a session and carries "
            "a split, dividend or delisting, which dropping it would lose; move it to a bar of the session"
        )


def check_coverage(symbol: str, stamp_R: np.ndarray, sessions: Sessions) -> None:
    """HpcrlError where one stray stamp would make a grid of bars that do not exist. Before the grid is built:
    it may not fit into memory. Bars longer than said are left to ``align``, which names their length."""
    longer = int(pd.Series(np.diff(stamp_R)).mode().iloc[0]) // sessions.step if len(stamp_R) > 1 else 1
    expected = sessions.count(int(stamp_R[0]), int(stamp_R[-1]))
    _check_share(symbol, stamp_R, expected // max(longer, 1))


def _check_share(symbol: str, stamp_R: np.ndarray, expected: int) -> None:
    if len(stamp_R) >= LEAST_COVERAGE * expected:
        return
    ends = [iso(int(stamp_R[row])) for row in (0, 1, -2, -1)]
    raise HpcrlError(
        f"{symbol}: {len(stamp_R):,} rows for the {expected:,} bars that the calendar has between the first "
        f"stamp and the last ({len(stamp_R) / expected:.2%}); its stamps begin {ends[0]}, {ends[1]} and end "
        f"{ends[2]}, {ends[3]}: remove a stray one, or {ADVICE}"
    )


def _check_grid(
    symbol: str, stamp_R: np.ndarray, on_R: np.ndarray, within_R: np.ndarray, grid: Grid, bar_seconds: int
) -> None:
    share = 1.0 - on_R.mean()
    if share <= OFF_GRID_LIMIT:
        return
    if on_R.any():
        lo, hi = np.searchsorted(grid.ts_G, stamp_R[on_R][[0, -1]])
        well_held = on_R.sum() >= WELL_HELD * (hi - lo + 1)
        extended_R = ~within_R & _near_sessions(stamp_R, grid, bar_seconds)
        if well_held and (~on_R & ~extended_R).mean() <= OFF_GRID_LIMIT:
            return
    step = int(pd.Series(np.diff(stamp_R)).mode().iloc[0]) // SECOND_NS if len(stamp_R) > 1 else bar_seconds
    usual = f" (the usual step of its rows is {step} s)" if step != bar_seconds else ""
    raise HpcrlError(
        f"{symbol}: {(~on_R).sum():,} of {len(on_R):,} rows ({share:.0%}) are off the calendar's "
        f"{bar_seconds} s grid, the first at {iso(int(stamp_R[~on_R][0]))}{usual}; {ADVICE}"
    )


def _check_step(symbol: str, place_R: np.ndarray, grid: Grid, bar_seconds: int) -> None:
    """Bars longer than said would all be on the grid, with masked rows between them."""
    same_R = np.diff(grid.session_G[place_R]) == 0
    step = int(np.gcd.reduce(np.diff(place_R)[same_R])) if same_R.sum() >= 20 else 1
    if step > 1:
        raise HpcrlError(
            f"{symbol}: its bars are {step * bar_seconds} s apart, not {bar_seconds} s; "
            f"give --bar-seconds {step * bar_seconds}"
        )


def _fill(raw: RawBars, at_R: np.ndarray, grid: Grid, span: slice) -> SymbolBars:
    n = span.stop - span.start
    whole = len(at_R) == n
    present_B = np.ones(n, dtype=bool)
    if not whole:
        present_B[:] = False
        present_B[at_R] = True

    def spread(value_R: np.ndarray, missing: float) -> np.ndarray:
        if whole:
            return value_R
        out_B = np.full(n, missing)
        out_B[at_R] = value_R
        return out_B

    def action(name: str) -> np.ndarray:
        # A million bars without any action need no memory for saying so.
        found = raw.columns.pop(name, None)
        none = ACTIONS[name]
        return np.broadcast_to(none, (n,)) if found is None else spread(found, none)

    return SymbolBars(
        symbol=raw.symbol,
        ts=grid.ts_G[span],
        present=present_B,
        session=grid.session_G[span],
        session_time=grid.session_time_G[span],
        features=np.empty((n, 0), dtype=np.float32),
        **{name: action(name) for name in ACTIONS},
        **{name: spread(raw.columns.pop(name), np.nan) for name in (*PRICES, "volume")},
    )


def feature_columns(bars: SymbolBars, own: dict[str, np.ndarray], computed: bool) -> Iterator[np.ndarray]:
    """float32 [B], one feature after the other: the computed ones, then ``own`` (float64 [R], present bars).

    A missing bar keeps what was last known. HpcrlError: a feature that is not finite.
    """
    whole = bool(bars.present.all())
    # Row 0 is present, so every bar has a last one.
    last_B = None if whole else np.cumsum(bars.present, dtype=np.int32) - 1
    for value_R in chain(_computed(bars) if computed else (), _own(bars.symbol, own)):
        yield value_R if last_B is None else value_R[last_B]


def present_columns(bars: SymbolBars) -> Columns:
    """Prices, volume and session of the present bars, as features and indicators read them."""
    whole = bool(bars.present.all())
    names = (*PRICES, "volume", "session")
    return {name: getattr(bars, name) if whole else getattr(bars, name)[bars.present] for name in names}


def _computed(bars: SymbolBars) -> Iterator[np.ndarray]:
    whole_or_none = bool(bars.present.all()) or not (bars.split != 1.0).any()
    split_R = bars.split[: int(bars.present.sum())] if whole_or_none else bars.split[bars.present]
    return computed_columns(present_columns(bars), split_R, bars.symbol)


def _own(symbol: str, own: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    for name, value_R in own.items():
        with np.errstate(over="ignore"):  # checked in the next line
            short_R = value_R.astype(np.float32)
        if not np.isfinite(short_R).all():
            raise HpcrlError(f"{symbol}: feature {name} exceeds float32")
        yield short_R


def split_jumps(bars: SymbolBars) -> list[dict]:
    """Sessions that open at a split's ratio to the close before, where the source names no split."""
    rows = np.flatnonzero(bars.present)
    opens = np.flatnonzero(np.diff(bars.session[rows]))
    before, after = rows[opens], rows[opens + 1]
    ratio = np.log(bars.close[before] / bars.open[after])
    near = np.abs(np.abs(ratio)[:, None] - np.log(SPLIT_RATIOS)).min(axis=1) < SPLIT_TOLERANCE
    hit = near & (bars.split[after] == 1.0)
    return [
        {
            "symbol": bars.symbol,
            "timestamp": iso(int(bars.ts[row])),
            "what": f"close {bars.close[last]:g}, next open {bars.open[row]:g}: ratio {np.exp(jump):.3f}",
        }
        for last, row, jump in zip(before[hit], after[hit], ratio[hit], strict=True)
    ]


def census(bars: SymbolBars, grid: Grid) -> dict:
    """Counts of one symbol for the quality report. Sessions: from its first to its last, also those that lack
    all bars; complete: those that lack none."""
    session_D, expected_D = np.unique(grid.session_G, return_counts=True)
    inside_D = (session_D >= bars.session[0]) & (session_D <= bars.session[-1])
    session_D, expected_D = session_D[inside_D], expected_D[inside_D]
    at_D = np.searchsorted(session_D, bars.session[bars.present])
    there_D = np.bincount(at_D, minlength=len(session_D))
    return {
        "first": iso(int(bars.ts[0])),
        "last": iso(int(bars.ts[-1])),
        "bars": len(bars.ts),
        "present": int(bars.present.sum()),
        "missing": int((~bars.present).sum()),
        "zero_volume": int((bars.volume == 0).sum()),
        "sessions": len(session_D),
        "complete_sessions": int((there_D == expected_D).sum()),
        "tradable": max(int(bars.present.sum()) - BURN_IN, 0),
    }
