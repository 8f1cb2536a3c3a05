"""One symbol's bars on its exchange's grid: the record between staging, the file and the market."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SymbolBars:
    """B rows: every bar that the calendar expects from the symbol's first to its last, both present.

    Missing bars are rows with ``present`` False, NaN prices and volume, and the last known features.
    """

    symbol: str
    ts: np.ndarray  # int64 [B], nanoseconds UTC, bar start, strictly increasing
    open: np.ndarray  # float64 [B]
    high: np.ndarray  # float64 [B]
    low: np.ndarray  # float64 [B]
    close: np.ndarray  # float64 [B]
    volume: np.ndarray  # float64 [B]
    present: np.ndarray  # bool [B]
    session: np.ndarray  # int32 [B], days since 1970-01-01 of the session's date
    session_time: np.ndarray  # float32 [B], 0 (first bar of the session) to 1 (last)
    split: np.ndarray  # float64 [B], shares after / before at the bar's open, 1 where none
    dividend: np.ndarray  # float64 [B], cash per share at the bar's open, 0 where none
    delist: np.ndarray  # float64 [B], price paid for a delisted share, NaN where none
    features: np.ndarray  # float32 [B, F], unscaled

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) in the order of the file and of the hash."""
        for name in ARRAYS:
            yield name, getattr(self, name)


ARRAYS: dict[str, type] = {
    "ts": np.int64,
    "open": np.float64,
    "high": np.float64,
    "low": np.float64,
    "close": np.float64,
    "volume": np.float64,
    "present": np.bool_,
    "session": np.int32,
    "session_time": np.float32,
    "split": np.float64,
    "dividend": np.float64,
    "delist": np.float64,
    "features": np.float32,
}
"""Name and type of every array of a symbol."""
