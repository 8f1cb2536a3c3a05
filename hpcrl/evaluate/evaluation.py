"""The result of an evaluation: rows of metrics, curves of the total account, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcrl.evaluate.track import Track

AGENT, HOLD, EQUAL = "agent", "buy_and_hold", "equal_weight"
CROSS, FLAT, RANDOM = "moving_average_cross", "flat", "matched_random"
STRATEGIES = (AGENT, HOLD, EQUAL, CROSS, FLAT, RANDOM)
"""In the order in which they are shown. Equal weight is one account over all symbols: it has a total only,
and is there only where several symbols play."""


@dataclass(frozen=True)
class Row:
    """``symbol`` None: all accounts together. For matched random: means (of ratios medians) of the draws."""

    strategy: str
    symbol: str | None
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Curves:
    """Total equity / start, at the first decision's close and after each step, [T + 1]."""

    ts_T: np.ndarray  # int64, unix seconds of the bar whose close it is
    session_T: np.ndarray  # days since 1970-01-01
    equity: dict[str, np.ndarray]  # by strategy; matched random: mean of the draws
    band: tuple[np.ndarray, np.ndarray]  # matched random, 5th and 95th percentile
    agent_band: tuple[np.ndarray, np.ndarray] | None = None  # agent, 95 % of redrawn bars; None: too few bars


@dataclass(frozen=True, eq=False)
class Evaluation:
    rows: tuple[Row, ...]
    curves: Curves
    meta: dict[str, Any]
    tracks: dict[str, Track]
    """Accounts of agent and buy and hold, step by step, in the order of ``meta["accounts"]``."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """Those that have a total row, in the order in which they are shown."""
        there = {row.strategy for row in self.rows if row.symbol is None}
        return tuple(strategy for strategy in STRATEGIES if strategy in there)

    def row(self, strategy: str, symbol: str | None = None) -> dict[str, float]:
        for row in self.rows:
            if row.strategy == strategy and row.symbol == symbol:
                return row.metrics
        raise KeyError(f"{strategy}, {symbol}")

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is null. Curves at each session's end."""
        last = np.flatnonzero(np.diff(self.curves.session_T, append=self.curves.session_T[-1] + 1))
        keep = np.unique(np.concatenate([[0], last]))
        curves = {name: _plain(curve[keep].tolist()) for name, curve in self.curves.equity.items()}
        for name, band in ((f"{RANDOM}_5", 0), (f"{RANDOM}_95", 1)):
            curves[name] = _plain(self.curves.band[band][keep].tolist())
        if self.curves.agent_band is not None:
            for name, band in ((f"{AGENT}_low", 0), (f"{AGENT}_high", 1)):
                curves[name] = _plain(self.curves.agent_band[band][keep].tolist())
        return {
            "meta": _plain(self.meta),
            "rows": [
                {"strategy": row.strategy, "symbol": row.symbol, **_plain(row.metrics)} for row in self.rows
            ],
            "curves": {"ts": self.curves.ts_T[keep].tolist(), **curves},
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
