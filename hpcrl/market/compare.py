"""A database's indicators against our own over the same bars: does it hold what its names say?

Ours are computed over one symbol's present bars, unadjusted as stored. Compared are values at these bars,
after a burn-in of BURN_IN present bars, or of FORGOTTEN time constants of the indicator's exponential means
where that is longer (EMA200: 1,608 bars): two histories that began on different bars agree to 1e-7 by then.
A session's VWAP is compared from the second session on, OBV up to a constant (the median of the differences),
for its level is an accident of the first bar. One indicator is in memory at a time.

A difference is relative to our value, but at least to FLOOR of its root mean square over the compared bars:
where MACD or CCI cross zero they have no scale of their own, and what is left of another start or of rounding
would be found there. A value is the same if it differs by at most LIMIT, or by what rounding to the decimals
that the database keeps leaves open: half a unit of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hpcrl.market.clean import iso
from hpcrl.market.features import BURN_IN
from hpcrl.market.indicators import INDICATORS, Columns, Indicator, find_indicator
from hpcrl.types import HpcrlError

LIMIT = 1e-6
FLOOR = 0.1
FORGOTTEN = 16
"""Time constants: e^-16 is 1e-7."""
MOST_DECIMALS = 8
ROUNDED_SHARE = 0.99
"""So many values must have no further decimals; one that was altered may have any."""
NAMED = 8
"""Indicators that a line of the report names."""

Given = tuple[
    str, np.ndarray, np.ndarray
]  # the database's name; stamps int64 [V], ns UTC; values float64 [V]


def check_names(names: Mapping[str, str]) -> None:
    """HpcrlError: ``indicators.names`` maps to an indicator that is not known, or lacks its period."""
    for theirs, ours in names.items():
        if find_indicator(ours) is None:
            raise HpcrlError(
                f"indicators.names maps {theirs} to {ours!r}, which is no indicator that can be recomputed; "
                f"known are {', '.join(INDICATORS)}, and others of their kinds with their own periods"
            )


def resolve(name: str, names: Mapping[str, str]) -> Indicator | None:
    """What the database calls ``name``; ``names``: the mapping ``indicators.names``. None: not known."""
    return find_indicator(names.get(name, name))


def compare_indicators(
    bars: Columns, ts_R: np.ndarray, given: Iterable[Given], names: Mapping[str, str]
) -> dict[str, Any]:
    """One symbol's part of the report: ``compared`` {name: counts, the worst}, ``not_compared`` {name: why}.

    ``bars``: the present bars as ``indicators`` wants them; ``ts_R``: their stamps, ns UTC, increasing.
    ``given``: in order of time; NaN is no value.
    """
    compared: dict[str, Any] = {}
    passed: dict[str, str] = {}
    for name, ts, values in given:
        ours = resolve(name, names)
        if ours is None:
            passed[name] = "cannot be recomputed"
            continue
        found = _compare(ours, bars, ts_R, ts, values)
        if found["compared"]:
            compared[name] = found
        else:
            passed[name] = f"no value at a bar after the first {found['burn_in']:,}"
    return {"compared": compared, "not_compared": passed}


def _compare(
    ours: Indicator, bars: Columns, ts_R: np.ndarray, ts: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    burn_in = _burn_in(ours, bars["session"])
    value_R = ours(bars)
    row = np.minimum(np.searchsorted(ts_R, ts), len(ts_R) - 1)
    on_bar = ts_R[row] == ts
    keep = on_bar & (row >= burn_in) & ~np.isnan(values) & np.isfinite(value_R[row])
    found = {
        "ours": ours.name,
        "burn_in": burn_in,
        "compared": int(keep.sum()),
        "on_no_bar": int((~on_bar).sum()),
        "differing": 0,
        "rounded": None,
        "first_differing": None,
        "worst": None,
    }
    if keep.any():
        found |= _difference(ours, value_R[row[keep]], values[keep], ts[keep])
    return found


def _difference(ours: Indicator, mine: np.ndarray, theirs: np.ndarray, ts: np.ndarray) -> dict[str, Any]:
    decimals = _decimals(theirs)
    level = mine
    if ours.origin == "history":
        level = mine - mine.mean()
        mine = mine + np.median(theirs - mine)
    rms = math.sqrt(float(np.mean(level * level)))
    scale = np.maximum(np.abs(level), FLOOR * rms)
    gap = np.abs(theirs - mine)
    # Where an indicator is 0 throughout (a dead market), any difference is infinite: the largest number.
    relative = np.divide(gap, scale, out=np.where(gap > 0, np.inf, 0.0), where=scale > 0)
    relative = np.minimum(relative, np.finfo(float).max)
    over = relative > LIMIT
    rounded = None
    if decimals is not None and 10.0**-decimals <= FLOOR * rms:  # coarser, and nothing is left of the values
        excused = over & (gap <= 0.5 * 10.0**-decimals + LIMIT * scale)
        over &= ~excused
        if excused.any():
            rounded = {"decimals": decimals, "values": int(excused.sum())}
            relative[excused] = 0.0
    at = int(np.argmax(relative))
    return {
        "differing": int(over.sum()),
        "rounded": rounded,
        "first_differing": iso(int(ts[np.argmax(over)])) if over.any() else None,
        "worst": {
            "relative": float(relative[at]),
            "timestamp": iso(int(ts[at])),
            "theirs": _number(theirs[at]),
            "ours": _number(mine[at]),
        },
    }


def _burn_in(ours: Indicator, session_R: np.ndarray) -> int:
    """Present bars that are not compared."""
    if ours.origin == "session":  # the first session may have begun before the first bar
        return max(BURN_IN, int(np.count_nonzero(session_R == session_R[0])))
    return max(BURN_IN, math.ceil(FORGOTTEN * ours.memory))


def _decimals(values: np.ndarray) -> int | None:
    """The last decimal that occurs in (nearly) all of them; None: they are not rounded."""
    for decimals in range(MOST_DECIMALS + 1):
        unit = 10.0**decimals
        # Exact: both are whole numbers below 2^53, or the double nearest to the decimal number.
        if np.mean(np.rint(values * unit) / unit == values) >= ROUNDED_SHARE:
            return decimals
    return None


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(value)  # JSON knows no infinity


def differing_rows(symbol: str, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row per indicator that differs, for ``quality.flag(report, "indicator_differs", ...)``."""
    rows = []
    for name, one in found["compared"].items():
        if not one["differing"]:
            continue
        worst = one["worst"]
        what = (
            f"{name} (recomputed {one['ours']}): {one['differing']:,} of {one['compared']:,} values differ, "
            f"at worst by {worst['relative']:.2g} ({worst['theirs']} for {worst['ours']} at "
            f"{worst['timestamp']})"
        )
        rows.append({"symbol": symbol, "timestamp": one["first_differing"], "what": what})
    return rows


def indicator_lines(indicators: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for the caption of the quality report; ``indicators``: symbol -> ``compare_indicators``."""
    each = [(name, one) for found in indicators.values() for name, one in found["compared"].items()]
    passed = {name: why for found in indicators.values() for name, why in found["not_compared"].items()}
    lines = []
    if each:
        values, differing = (sum(one[key] for _, one in each) for key in ("compared", "differing"))
        verdict = f"{differing:,} different" if differing else "none different"
        names = _list(dict.fromkeys(name for name, _ in each))
        lines.append(f"indicators: {values:,} values compared with recomputed ones, {verdict} ({names})")
    decimals: dict[int, dict[str, None]] = {}
    for name, one in each:
        if one["rounded"]:
            decimals.setdefault(one["rounded"]["decimals"], {})[name] = None
    lines += [f"  rounded to {count} decimals: {_list(names)}" for count, names in sorted(decimals.items())]
    astray = sum(one["on_no_bar"] for _, one in each)
    if astray:
        lines.append(f"  {astray:,} values at stamps of no bar")
    reasons: dict[str, list[str]] = {}
    for name, why in passed.items():
        reasons.setdefault(why, []).append(name)
    lines += [f"  not compared ({why}): {_list(names)}" for why, names in reasons.items()]
    return lines


def _list(names: Iterable[str]) -> str:
    named = list(names)
    more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
    return ", ".join([*named[:NAMED], *more])
