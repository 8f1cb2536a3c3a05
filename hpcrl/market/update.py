"""Going on from an older file: what of it still stands, and where fetching has to start.

The past may have been filled or rewritten meanwhile (late bars, prices adjusted for a split). So the database
must still count as many old rows as were received then, and the newest of them must be what they were; else
the symbol is fetched anew, and the report says so. Where the database can sum its values up (PostgreSQL, both
times), any change is seen; else one of an older value that leaves the count and the last OVERLAP bars is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.market.bars import ACTIONS, RawBars
from hpcrl.market.clean import PRICES, iso
from hpcrl.market.features import BURN_IN
from hpcrl.market.read_rows import Rows
from hpcrl.market.request import DatabaseRequest
from hpcrl.market.source import Progress, Source, Span
from hpcrl.market.store import open_store, read_symbol
from hpcrl.types import HpcrlError

OVERLAP = 500
"""Bars that are fetched again and compared: less than a page of PostgREST's."""


@dataclass
class Update:
    path: Path
    header: dict[str, Any]
    features: tuple[str, ...]
    first_ns: dict[str, int] = field(default_factory=dict)
    """Per symbol that goes on: the old bar at which fetching starts."""
    before: dict[str, int] = field(default_factory=dict)
    """Old bars before that one."""
    last_ns: dict[str, int] = field(default_factory=dict)
    restaged: dict[str, str] = field(default_factory=dict)
    """Symbols whose past is no longer what it was, and how that was seen."""

    @staticmethod
    def of(request: DatabaseRequest, span: Span) -> Update:
        """Of ``request.update``, its contents checked. HpcrlError: it is of another query."""
        assert request.update is not None
        path = request.update
        with open_store(path) as (header, symbols):
            for _ in symbols:
                pass
        query = header["query"]
        if header["source"] not in ("supabase", "postgres") or "received" not in query:
            raise HpcrlError(
                f"{path}: holds bars of source {header['source']}; only a file staged from a database can be "
                "updated"
            )
        start = "the first row" if span.start_ns is None else iso(span.start_ns)
        started = query["start"] or "the first row"
        options = request.options
        for name, was, now in (
            ("table", query["table"], request.tables.bars.table),
            ("the mapping", query["mapping"], request.tables.bars.model_dump()),
            ("timeframe", query["timeframe"], request.timeframe),
            ("start", started, started if span.start_ns is None else start),
            ("bar seconds", header["bar_seconds"], options.bar_seconds),
            ("calendar", header["calendar"], options.calendar),
            ("price adjustment", header["price_adjustment"], options.price_adjustment),
            ("features", header["feature_names"], list(options.feature_names)),
        ):
            if was != now:
                raise HpcrlError(
                    f"{path}: was staged with {name} {was}, not {now}; say the same, or stage anew"
                )
        return Update(path, header, request.features)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self.header["symbols"])

    @property
    def start_ns(self) -> int | None:
        start = self.header["query"]["start"]
        return None if start is None else pd.Timestamp(start).value

    def spans(self, source: Source, symbols: tuple[str, ...], span: Span) -> dict[str, Span]:
        """Where to fetch, of symbols that go on. HpcrlError: ``span`` ends before the old file does."""
        found = {}
        for symbol in (each for each in symbols if each in self.header["symbols"]):
            old = read_symbol(self.path, symbol, ("ts", "present"))
            ts_R = old["ts"][old["present"]]
            if span.end_ns is not None and ts_R[-1] >= span.end_ns:
                raise HpcrlError(
                    f"{self.path}: {symbol} reaches to {iso(int(ts_R[-1]))}, beyond the end "
                    f"{iso(span.end_ns)} that is asked for; stage anew"
                )
            self.last_ns[symbol] = int(ts_R[-1])
            was = self.header["query"]["received"][symbol]
            past = Span(span.start_ns, int(ts_R[-1]) + 1)
            now = source.count(symbol, past)
            if now != was:
                self.restaged[symbol] = f"{was:,} rows up to {iso(int(ts_R[-1]))} have become {now:,}"
                continue
            mark = self.header["query"]["fingerprints"][symbol]
            if mark is not None and mark != (source.fingerprint(symbol, past) or mark):
                self.restaged[symbol] = f"values up to {iso(int(ts_R[-1]))} are no longer what they were"
                continue
            self.first_ns[symbol] = int(ts_R[-min(OVERLAP, len(ts_R))])
            self.before[symbol] = max(0, len(ts_R) - OVERLAP)
            found[symbol] = Span(self.first_ns[symbol], span.end_ns)
        return found

    def go_on(
        self, source: Source, symbol: str, span: Span, rows: Rows, progress: Progress
    ) -> tuple[RawBars | None, int]:
        """As ``Rows.symbol`` of the whole ``span``, but only the end is fetched if the past still stands."""
        burn_in = max(0, BURN_IN - self.before[symbol])
        new, counted = rows.symbol(source, symbol, Span(self.first_ns[symbol], span.end_ns), burn_in)
        if new is None:
            return None, counted
        merged = self._merge(new)
        if merged is not None:
            fresh = int((new.ts > self.last_ns[symbol]).sum())
            return merged, self.header["query"]["received"][symbol] + fresh
        source.prepare({symbol: span}, progress)
        return rows.symbol(source, symbol, span)

    def _merge(self, new: RawBars) -> RawBars | None:
        """Old rows, then ``new``; None where a bar that both have is not the same."""
        old = self._old(new.symbol, tuple(new.columns))
        first = int(np.searchsorted(old.ts, self.first_ns[new.symbol]))
        again = old.take(np.arange(first, len(old.ts)))
        at = np.minimum(np.searchsorted(new.ts, again.ts), len(new.ts) - 1)
        for name, was in ({"ts": again.ts} | again.columns).items():
            now = (new.ts if name == "ts" else new.columns[name])[at]
            if name in self.features:
                now = now.astype(np.float32)
            bad = (was != now) & ~((was != was) & (now != now))
            if bad.any():
                row = int(np.argmax(bad))
                when = iso(int(again.ts[row]))
                self.restaged[new.symbol] = (
                    f"the bar at {when} is gone" if name == "ts" else
                    f"{name} at {when} was {was[row]:.12g} and is {now[row]:.12g}"
                )  # fmt: skip
                return None
        columns = {
            name: np.concatenate([old.columns[name][:first], value]) for name, value in new.columns.items()
        }
        return RawBars(new.symbol, np.concatenate([old.ts[:first], new.ts]), columns)

    def _old(self, symbol: str, names: tuple[str, ...]) -> RawBars:
        """The present bars of the old file, as a source would give them."""
        stored = read_symbol(self.path, symbol, ("ts", "present", *PRICES, "volume", *ACTIONS))
        there = stored["present"]
        columns = {name: stored[name][there] for name in names if name not in self.features}
        for name in self.features:
            row = self.header["feature_names"].index(name)
            columns[name] = read_symbol(self.path, symbol, ("features",), row)["features"][there].astype(
                float
            )
        return RawBars(symbol, stored["ts"][there], {name: columns[name] for name in names})

    def summary(self) -> dict[str, Any]:
        """For the quality report."""
        going_on = [symbol for symbol in self.first_ns if symbol not in self.restaged]
        return {"of": str(self.path), "sha256": self.header["sha256"], "continued": going_on,
                "restaged": self.restaged}  # fmt: skip
