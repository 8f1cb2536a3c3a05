"""One symbol's bars as columns to compare with: what was known at each bar's close, and what came later.

R present rows. Everything is relative to the last close or a logarithm, so that it neither trends nor has a
unit; splits are carried forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.clean import PRICES

MOST_ROWS = 20_000
EDGES = (20, 96)
"""Rows at the beginning and at the end that are not judged: most of their past or future is cut off."""
BEHIND = 12
FURTHER_BEHIND = (16, 20, 24, 30, 36, 48, 60, 78, 96, 120)
AHEAD = 24
FURTHER_AHEAD = (30, 36, 42, 48, 54, 60, 78, 96)
SIGNS = (1, 3, 6, 12, 24, 78)
SIZE_SUMS = (1, 2, 3, 6, 12, 24, 36, 48, 78)
COARSE_MINUTES = (15, 30, 60, 240)


@dataclass(frozen=True, eq=False)
class Known:
    one: SymbolBars
    at_R: np.ndarray  # rows of ``one``
    bars: dict[str, np.ndarray]  # float64 [R]: prices with splits carried forward, volume likewise
    log_R: dict[str, np.ndarray]  # logarithms of the prices
    session_R: np.ndarray
    past_RK: np.ndarray
    future: dict[str, np.ndarray]
    past_sizes_RK: np.ndarray
    future_sizes: dict[str, np.ndarray]

    def return_R(self, bars: int) -> np.ndarray:
        """The log return over the next ``bars`` bars; cut short at the end."""
        return ago(self.log_R["close"], -bars) - self.log_R["close"]


def ago(value_R: np.ndarray, lag: int) -> np.ndarray:
    """The value ``lag`` rows ago (negative: ahead); the ends repeat."""
    return value_R[np.clip(np.arange(len(value_R)) - lag, 0, len(value_R) - 1)]


def know(one: SymbolBars) -> Known:
    """The last ``MOST_ROWS`` present rows of ``one``."""
    at_R = np.flatnonzero(one.present)[-MOST_ROWS:]
    carried_R = np.cumprod(one.split[at_R])
    bars = {name: getattr(one, name)[at_R] * carried_R for name in PRICES}
    bars["volume"] = one.volume[at_R] / carried_R
    log = {name: np.log(bars[name]) for name in PRICES}
    session_R = one.session[at_R]
    money_R = (bars["high"] + bars["low"] + bars["close"]) / 3 * bars["volume"]
    sums = pd.DataFrame({"m": money_R, "v": bars["volume"]})
    past = _past(one, at_R, log, sums, session_R)
    past_RK = np.nan_to_num(
        np.column_stack([*past.values(), np.log(one.close[at_R])]), posinf=0.0, neginf=0.0
    )
    future = _bars_to_come(log, bars["volume"]) | _sessions(log, sums, session_R) | _coarse(one, at_R, log)
    past_sizes, future_sizes = _sizes(log, bars["volume"])
    past_sizes_RK = np.column_stack(list(past_sizes.values()))
    return Known(one, at_R, bars, log, session_R, past_RK, future, past_sizes_RK, future_sizes)


def _past(
    one: SymbolBars, at_R: np.ndarray, log: dict[str, np.ndarray], sums: pd.DataFrame, session_R: np.ndarray
) -> dict[str, np.ndarray]:
    close_R, volume_R = log["close"], np.log1p(sums["v"].to_numpy())
    step_R = np.diff(close_R, prepend=close_R[0])
    past = {"level": close_R, "volume": volume_R, "size": np.abs(step_R)}
    past |= {name: log[name] - close_R for name in ("open", "high", "low")}
    past |= {f"return {lag}": ago(step_R, lag) for lag in range(BEHIND)}
    past |= {f"level {lag}": close_R - ago(close_R, lag) for lag in FURTHER_BEHIND}
    past |= {f"volume {lag}": ago(volume_R, lag) for lag in (1, 2, 3)}
    past["time"] = one.session_time[at_R].astype(np.float64)
    first_R = pd.Series(close_R).groupby(session_R).transform("first").to_numpy()
    spent = sums.groupby(session_R).cumsum()
    past |= {"session": close_R - first_R, "vwap": _log_ratio(spent["m"], spent["v"]) - close_R}
    return past


def _bars_to_come(log: dict[str, np.ndarray], volume_R: np.ndarray) -> dict[str, np.ndarray]:
    close_R = log["close"]
    step_R = np.diff(close_R, prepend=close_R[0])
    over = {h: ago(close_R, -h) - close_R for h in (*SIGNS, *FURTHER_AHEAD)}
    found = {f"the return of bar t+{ahead}": ago(step_R, -ahead) for ahead in range(1, AHEAD + 1)}
    found |= {f"the return of the next {h} bars": over[h] for h in FURTHER_AHEAD}
    found |= {f"the sign of the next {h} bars' return": np.sign(over[h]) for h in SIGNS}
    found |= {f"the next bar's {name}": ago(log[name], -1) - close_R for name in ("open", "high", "low")}
    return found | {
        "the next bar's volume": ago(np.log1p(volume_R), -1),
        "the next move's size": np.abs(over[1]),
    }


def _sizes(
    log: dict[str, np.ndarray], volume_R: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """How much the market moved and traded, whatever the direction: (in the past, in bars to come)."""
    step_R = np.diff(log["close"], prepend=log["close"][0])
    sizes = {
        "moves' size": np.abs(step_R),
        "squared moves": step_R**2,
        "ranges": log["high"] - log["low"],
        "volume": volume_R,
    }
    past: dict[str, np.ndarray] = {}
    future: dict[str, np.ndarray] = {}
    for name, size_R in sizes.items():
        sum_R = np.cumsum(size_R / max(size_R.mean(), 1e-300))
        past |= {f"{name} {h}": sum_R - ago(sum_R, h) for h in SIZE_SUMS}
        ahead = (*range(1, AHEAD + 1), *FURTHER_AHEAD) if "moves" in name else SIZE_SUMS
        future |= {f"the next {h} bars' {name}": ago(sum_R, -h) - sum_R for h in ahead}
    return past, future


def _sessions(log: dict[str, np.ndarray], sums: pd.DataFrame, session_R: np.ndarray) -> dict[str, np.ndarray]:
    """What a whole session comes to, seen from each of its bars."""
    close_R = log["close"]
    whole = sums.groupby(session_R).transform("sum")
    found = _spans(log, session_R, "the whole session's")
    found["the whole session's VWAP"] = np.nan_to_num(_log_ratio(whole["m"], whole["v"]) - close_R)
    found["the whole session's volume"] = np.log1p(whole["v"].to_numpy())
    return found


def _coarse(one: SymbolBars, at_R: np.ndarray, log: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the longer bar that each bar lies in comes to, before it has closed."""
    found: dict[str, np.ndarray] = {}
    for minutes in COARSE_MINUTES:
        found |= _spans(log, one.ts[at_R] // (minutes * 60 * SECOND_NS), f"the {minutes}-minute bar's")
    return found


def _spans(log: dict[str, np.ndarray], span_R: np.ndarray, whose: str) -> dict[str, np.ndarray]:
    by = pd.DataFrame(log).groupby(span_R)
    parts = (("last close", "close", "last"), ("high", "high", "max"), ("low", "low", "min"))
    return {
        f"{whose} {name}": by[column].transform(how).to_numpy() - log["close"] for name, column, how in parts
    }


def _log_ratio(part: pd.Series, whole: pd.Series) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log((part / whole).to_numpy())
