"""Bars with another future, and the places in time where the audit looks.

An altered copy is the same bit for bit up to the bar of the cut; after it prices, volumes and the source's
own columns are drawn anew, bars go missing and a share splits. B rows of one symbol.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hpcrl.audit.pipeline import Case
from hpcrl.market.bars import ARRAYS, SymbolBars
from hpcrl.market.clean import PRICES
from hpcrl.market.dataset import Market

STRETCH = 1500
"""Rows of a stretch: long enough for burn-in and a few sessions, short enough to stage many times over."""


def take(one: SymbolBars, first_ns: int, last_ns: int) -> SymbolBars | None:
    """The rows from ``first_ns`` to ``last_ns`` that lie between two present ones; None if there are none."""
    at = np.flatnonzero(one.present & (one.ts >= first_ns) & (one.ts <= last_ns))
    return rows(one, int(at[0]), int(at[-1]) + 1) if len(at) else None


def rows(one: SymbolBars, lo: int, hi: int) -> SymbolBars:
    return replace(one, **{name: getattr(one, name)[lo:hi] for name in ARRAYS})


def stretches(case: Case, count: int = 3) -> list[tuple[SymbolBars, ...]]:
    """Up to ``count`` stretches of the data set (first, last, and between); all of it where it is short.

    Only symbols with bars after the burn-in are in a stretch, and every stretch has one.
    """
    ts_B = np.unique(np.concatenate([one.ts for one in case.bars]))
    if len(ts_B) <= count * STRETCH:
        return [case.bars]
    found = []
    for lo in np.linspace(0, len(ts_B) - STRETCH, count).astype(int):
        cut = [take(one, ts_B[lo], ts_B[lo + STRETCH - 1]) for one in case.bars]
        there = tuple(one for one in cut if one is not None and one.present.sum() > case.burn_in + 60)
        if there:
            found.append(there)
    return found or [case.bars]


def altered(case: Case, one: SymbolBars, cut_ns: int, seed: int, until_ns: int | None = None) -> SymbolBars:
    """``one`` with another future after the bar that starts at ``cut_ns`` (up to ``until_ns``, included)."""
    later_B = (one.ts > cut_ns) & (one.ts <= (until_ns if until_ns is not None else one.ts[-1]))
    if not later_B.any():
        return one
    rng = np.random.default_rng([seed, int(later_B.argmax())])
    n = len(one.ts)
    move_B = np.exp(np.cumsum(np.where(later_B, 0.01 * rng.standard_normal(n), 0.0)))
    wobble_B2 = np.exp(0.003 * rng.standard_normal((2, n)))
    price = {name: getattr(one, name) * move_B for name in PRICES}
    price["open"], price["close"] = price["open"] * wobble_B2[0], price["close"] * wobble_B2[1]
    price["high"] = np.maximum.reduce([price[name] for name in PRICES])
    price["low"] = np.minimum.reduce([price[name] for name in PRICES])
    fresh = {name: np.where(later_B, value, getattr(one, name)) for name, value in price.items()}
    volume = one.volume * np.exp(rng.standard_normal(n)) + 1.0
    fresh["volume"] = np.where(later_B, volume, one.volume)
    fresh["features"] = one.features.copy()
    for column in (case.names.index(name) for name in sorted(case.own)):  # the others are computed again
        spread = one.features[:, column].std() + np.float32(1e-3)
        drawn = one.features[:, column] + spread * rng.standard_normal(n).astype(np.float32)
        fresh["features"][:, column] = np.where(later_B, drawn, one.features[:, column])
    out = replace(one, **fresh)
    return out if until_ns is not None else _with_events(out, later_B, rng)


def _with_events(one: SymbolBars, later_B: np.ndarray, rng: np.random.Generator) -> SymbolBars:
    """Missing bars and a split among the later rows; the last present row stays."""
    at = np.flatnonzero(later_B & one.present)[:-1]
    if len(at) < 4:
        return one
    gone = rng.choice(at, size=max(len(at) // 10, 1), replace=False)
    kept = np.setdiff1d(at, gone)
    split = one.split.copy()
    split[kept[len(kept) // 2]] *= 2.0
    return without(replace(one, split=split), gone)


def without(one: SymbolBars, gone: np.ndarray) -> SymbolBars:
    """``one`` as if the rows ``gone`` were missing in the source."""
    fresh = {name: getattr(one, name).copy() for name in (*PRICES, "volume", "present", "split", "dividend")}
    for name in (*PRICES, "volume"):
        fresh[name][gone] = np.nan
    fresh["present"][gone] = False
    fresh["split"][gone], fresh["dividend"][gone] = 1.0, 0.0
    return replace(one, **fresh)


def cuts(case: Case, one: SymbolBars) -> np.ndarray:
    """Present rows to cut at: the first, inside warm-ups and burn-in, at a session's last bar and inside
    one, in the middle, and the last but one. A back-fill shows at early cuts only, a centred window at late
    ones."""
    at = np.flatnonzero(one.present)
    last_of_session = at[:-1][one.session[at[1:]] != one.session[at[:-1]]]
    later = last_of_session[last_of_session > at[min(case.burn_in, len(at) - 1)]]
    edges = later[len(later) // 2 :][:1]
    wanted = [0, 20, case.burn_in - 1, case.burn_in + 40, len(at) // 2, len(at) - 2]
    ranks = [rank for rank in wanted if 0 <= rank <= len(at) - 2]
    after = np.searchsorted(at, edges) + 1
    inside = at[np.minimum(after + 5, len(at) - 2)] if len(edges) else np.empty(0, dtype=np.int64)
    return np.unique(np.concatenate([at[ranks], edges, inside]))


def together(market: Market, every: bool, limit: int = 4) -> np.ndarray:
    """Symbols that can be played side by side: all of them, or up to ``limit`` that share the most bars."""
    if every:
        return np.arange(len(market.symbols))
    first_S, last_S = market.first_bar_S, market.last_bar_S
    longest = int(np.argmax(last_S - first_S))
    shared_S = np.minimum(last_S, last_S[longest]) - np.maximum(first_S, first_S[longest])
    fit = np.flatnonzero(2 * shared_S >= max(int(shared_S[longest]), 1))
    fit = fit if len(fit) else np.array([longest])
    return fit[np.unique(np.linspace(0, len(fit) - 1, min(limit, len(fit))).astype(int))]


def sample(bars: tuple[SymbolBars, ...], count: int = 4) -> list[SymbolBars]:
    """Some of the symbols, first and last among them."""
    picked = np.unique(np.linspace(0, len(bars) - 1, min(count, len(bars))).astype(int))
    return [bars[i] for i in picked]
