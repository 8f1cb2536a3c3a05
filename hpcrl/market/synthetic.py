"""Made-up bars: a random walk that looks like a market."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd

from hpcrl.market.calendar import ALWAYS, forward_grid
from hpcrl.types import HpcrlError

SYMBOLS = ("AAPL", "MSFT", "GOOGL", "TSLA", "NVDA", "AMZN")
START = "2016-01-04"
"""First session of every made-up market: past, so that no calendar has to foresee holidays."""
YEARLY_VOLATILITY = 0.30
OVERNIGHT_SHARE = 0.30
"""Share of a day's variance that falls between close and open (a guess; equities show 0.2 to 0.4)."""
SESSION_BARS = 78
SESSIONS_A_YEAR = 252


def made_up(source: str) -> bool:
    """Whether bars of this source are no market's: a random walk or a planted market."""
    return source.startswith(("synthetic", "planted"))


def random_walk(
    symbol: str, bars: int, seed: int, calendar: str = "XNYS", bar_seconds: int = 300
) -> pd.DataFrame:
    """``bars`` bars (raw table) of a geometric random walk without drift or memory; volume is heavy-tailed.

    Depends on symbol and seed only, not on which other symbols are made.
    """
    if bars < 1:
        raise HpcrlError(f"bars is {bars}; at least 1 is needed")
    grid = forward_grid(calendar, bar_seconds, START, bars)
    rng = np.random.default_rng([seed, zlib.crc32(symbol.encode())])
    day = YEARLY_VOLATILITY / np.sqrt(SESSIONS_A_YEAR)
    sigma = day * np.sqrt((1 - OVERNIGHT_SHARE) / SESSION_BARS)
    starts = np.r_[False, np.diff(grid.session_G) != 0]
    gap = np.where(starts & (calendar != ALWAYS), day * np.sqrt(OVERNIGHT_SHARE), 0.0) * rng.standard_normal(
        bars
    )
    move = sigma * rng.standard_normal(bars)
    log_close = np.log(rng.uniform(50, 400)) + np.cumsum(gap + move)
    open_, close = np.exp(log_close - move), np.exp(log_close)
    wick = sigma / 2 * np.abs(rng.standard_normal((2, bars)))
    busy = 1 + 2 * (2 * grid.session_time_G.astype(np.float64) - 1) ** 2  # a session's ends trade more
    volume = np.round(rng.uniform(5e4, 5e5) * busy * np.exp(0.5 * rng.standard_normal(bars)))
    return pd.DataFrame(
        {
            "timestamp": pd.DatetimeIndex(grid.ts_G, tz="UTC"),
            "symbol": symbol,
            "open": open_,
            "high": np.maximum(open_, close) * np.exp(wick[0]),
            "low": np.minimum(open_, close) * np.exp(-wick[1]),
            "close": close,
            "volume": volume,
        }
    )
