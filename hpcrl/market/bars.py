"""One symbol's bars: as a source has them (``RawBars``), and on its exchange's grid (``SymbolBars``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ACTIONS: dict[str, float] = {"split": 1.0, "dividend": 0.0, "delist": np.nan}
"""Corporate actions, columns that a source may lack, and the value that stands for none."""


@dataclass(frozen=True)
class RawBars:
    """R judged rows in order of time, each stamp once; not yet held against a calendar."""

    symbol: str
    ts: np.ndarray  # int64 [R], nanoseconds UTC, bar start, strictly increasing
    columns: dict[str, np.ndarray]
    """float64 [R]: open, high, low, close, volume; those of ACTIONS that the source has; own features."""
    file: np.ndarray | None = None  # int32 [R], place in the source's list of files; None: a database
    line: np.ndarray | None = None  # int64 [R], line in that file

    def take(self, rows_R: np.ndarray) -> RawBars:
        """The rows that a mask or a list of places chooses."""
        columns = {name: value[rows_R] for name, value in self.columns.items()}
        file, line = (None if each is None else each[rows_R] for each in (self.file, self.line))
        return RawBars(self.symbol, self.ts[rows_R], columns, file, line)

    def action(self, name: str) -> np.ndarray:
        """float64 [R], of ACTIONS; a view of one number where the source has no such column."""
        found = self.columns.get(name)
        return np.broadcast_to(ACTIONS[name], self.ts.shape) if found is None else found


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
    features: np.ndarray  # float32 [B, F], unscaled; [B, 0] while they are being computed

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
