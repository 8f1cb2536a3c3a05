"""One symbol's rows out of a database: block by block through the same judgement as a file's.

Owns joining the blocks and own features that are indicators. Refuses NULLs, and a source whose rows are not
in order of time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from hpcrl.market.bars import ACTIONS, RawBars
from hpcrl.market.clean import NAMED_ROWS, PRICES, Verdicts, iso, sift
from hpcrl.market.features import BURN_IN
from hpcrl.market.options import StageOptions
from hpcrl.market.source import Columns, Source, Span
from hpcrl.types import HpcrlError, RunFailed

NUMBERS = (*PRICES, "volume")


@dataclass
class Rows:
    """What reading has found so far, over all symbols."""

    table: str
    options: StageOptions
    bad: Verdicts = field(default_factory=Verdicts)
    dropped: Verdicts = field(default_factory=Verdicts)
    read: int = 0

    def symbol(
        self, source: Source, symbol: str, span: Span, burn_in: int = BURN_IN
    ) -> tuple[RawBars | None, int]:
        """The judged rows of ``span`` (None: some are unusable, see ``bad``), and how many were read.

        Own features that are indicators may lack a value in the first ``burn_in`` rows (0 then).
        RunFailed: there are no rows.
        """
        kept = _Kept(source.count(symbol, span))
        known, before, held = sum(self.bad.counts.values()), self.read, None
        for block in source.bars(symbol, span):
            self.read += len(block["timestamp"])
            block = _join(held, block)
            _check_order(symbol, block, kept)
            # The rows of the last stamp wait for the next block, so that no duplicate is torn apart.
            front = int(np.searchsorted(block["timestamp"], block["timestamp"][-1]))
            held = {name: value[front:].copy() for name, value in block.items()}
            if front:
                kept.add(self._judge(symbol, {name: value[:front] for name, value in block.items()}))
        if held is None:
            raise RunFailed(f"{symbol}: the table {self.table} has lost its rows meanwhile; run it again")
        kept.add(self._judge(symbol, held))
        counted = self.read - before
        if sum(self.bad.counts.values()) > known:
            return None, counted
        columns = kept.columns()
        ts_R = columns.pop("timestamp")
        self._check_delisting(symbol, ts_R, columns)
        for name in self.options.features:
            if name not in columns:
                columns[name] = _indicator_feature(source, symbol, name, span, ts_R, burn_in)
        fine = sum(self.bad.counts.values()) == known
        return (RawBars(symbol, ts_R, columns) if fine else None), counted

    def _judge(self, symbol: str, block: Columns) -> Columns:
        frame = pd.DataFrame({**block, "symbol": symbol})
        for name, none in ACTIONS.items():
            frame[name] = frame[name].fillna(none) if name in block else none
        null = frame[[name for name in block if name not in ACTIONS]].isna().any(axis=1)
        what = (
            f"{next(name for name in block if name not in ACTIONS and pd.isna(row[name]))} is empty"
            for _, row in frame[null].head(NAMED_ROWS).iterrows()
        )
        self.bad.add("unparsable", frame[null], [self.table], what)
        features = tuple(name for name in self.options.features if name in block)
        adjustment = self.options.price_adjustment
        ordered = sift(frame[~null], [self.table], features, adjustment, self.bad, self.dropped)
        return {name: ordered[name].to_numpy().copy() for name in block}

    def _check_delisting(self, symbol: str, ts_R: np.ndarray, columns: Columns) -> None:
        if "delist" in columns:
            after = np.cumsum(~np.isnan(columns["delist"])) - ~np.isnan(columns["delist"]) > 0
            rows = pd.DataFrame({"timestamp": ts_R[after], "symbol": symbol})
            self.bad.add("after_delisting", rows, [self.table], "the symbol was delisted before")


def _join(held: Columns | None, block: Columns) -> Columns:
    if held is None:
        return block
    return {name: np.concatenate([held[name], value]) for name, value in block.items()}


class _Kept:
    """Rows as they come, in arrays as long as the source counts: no second copy at the end, and no holes."""

    def __init__(self, expected: int) -> None:
        self._room, self._rows = expected, 0
        self._arrays: Columns = {}

    def add(self, part: Columns) -> None:
        end = self._rows + len(part["timestamp"])
        for name, value in part.items():
            array = self._arrays.get(name)
            if array is None or end > len(array):
                grown = np.empty(max(end, self._room), dtype=value.dtype)
                if array is not None:
                    grown[: self._rows] = array[: self._rows]
                array = self._arrays[name] = grown
            array[self._rows : end] = value
        self._rows = end

    def columns(self) -> Columns:
        return {name: array[: self._rows] for name, array in self._arrays.items()}

    def last(self) -> int | None:
        """Stamp of the last row."""
        return int(self._arrays["timestamp"][self._rows - 1]) if self._rows else None


def _check_order(symbol: str, block: Columns, kept: _Kept) -> None:
    ts_R, last = block["timestamp"], kept.last()
    if (np.diff(ts_R) < 0).any() or (last is not None and ts_R[0] < last):
        raise RunFailed(f"{symbol}: the database's rows are not in order of time near {iso(int(ts_R[0]))}")


def _indicator_feature(
    source: Source, symbol: str, name: str, span: Span, ts_R: np.ndarray, burn_in: int
) -> np.ndarray:
    """float64 [R]: an indicator as a feature; 0 in the burn-in where it has no value yet."""
    ts_I, value_I = source.indicator(symbol, name, span)
    if not len(ts_I):
        names = ", ".join(source.indicator_names(symbol, span)) or "none"
        raise HpcrlError(
            f"{symbol}: feature {name!r} is neither a column of the bars nor one of the indicators ({names})"
        )
    at_I = np.searchsorted(ts_R, ts_I)
    on_I = (at_I < len(ts_R)) & (ts_R[np.minimum(at_I, len(ts_R) - 1)] == ts_I)
    doubled = np.flatnonzero(np.diff(ts_I) == 0)
    if len(doubled):
        raise HpcrlError(f"{symbol}: indicator {name} has two values at {iso(int(ts_I[doubled[0]]))}")
    out_R = np.full(len(ts_R), np.nan)
    out_R[at_I[on_I]] = value_I[on_I]
    empty_R = np.isnan(out_R)
    late = np.flatnonzero(empty_R[burn_in:])
    if len(late):
        raise HpcrlError(
            f"{symbol}: feature {name} has no value at {len(late):,} of {len(ts_R):,} bars, the first at "
            f"{iso(int(ts_R[burn_in + late[0]]))}; only a symbol's first {BURN_IN} bars may lack one"
        )
    out_R[empty_R] = 0.0
    return out_R
