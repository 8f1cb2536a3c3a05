"""A symbol's rows of a found table, from PostgREST's JSON into a part of a spool, whole or an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from hpcrl.market.source import Columns, Span
from hpcrl.market.spool import Part, Spool
from hpcrl.market.supabase_http import Rest
from hpcrl.market.supabase_pages import Query, Reader, Report
from hpcrl.market.supabase_rows import numbers
from hpcrl.market.supabase_tables import Found
from hpcrl.types import HpcrlError


@dataclass(frozen=True)
class Fetch:
    """Of one timeframe, through one conversation, into one spool."""

    rest: Rest
    spool: Spool
    timeframe: str
    page_rows: int

    def query(self, found: Found, symbol: str) -> Query:
        table = found.table
        equal = [(table.symbol, symbol)]
        if table.timeframe is not None:
            equal.append((table.timeframe, self.timeframe))
        return Query(
            self.rest,
            table.schema_name,
            found.table_name,
            table.timestamp,
            texts=(found.name,) if found.name else (),
            numbers=tuple(dict.fromkeys(found.columns.values())),
            equal=tuple(equal),
            clock=found.clock,
            then=(found.name,) if found.name else (),
        )

    def about(self, found: Found, symbol: str, span: Span) -> dict[str, Any]:
        """What the rows of a part are: with another answer to any of these they would be others."""
        return {
            "format": 1,
            "url": self.rest.url,
            "table": found.table.model_dump(mode="json"),
            "columns": found.columns,
            "codes": found.name is not None,
            "timeframe": self.timeframe,
            "clock": [found.clock.kind, found.clock.timezone],
            "symbol": symbol,
            "start": span.start_ns,
        }

    def tell_held(self, wanted: Iterable[tuple[Found, str, Span]]) -> None:
        """Say on stderr what an earlier run left in the spool, if it did."""
        each = [
            self.spool.held(self.about(found, symbol, span), _width(found), span.end_ns)
            for found, symbol, span in wanted
        ]
        rows = sum(count for count, _ in each)
        if rows:
            since = time.strftime("%H:%M", time.localtime(min(created for count, created in each if count)))
            print(f"going on from {rows:,} rows fetched at {since}", file=sys.stderr, flush=True)

    def read(self, found: Found, symbol: str, span: Span, report: Report) -> Part:
        """All rows; the spool may hold some of them already. ``report``: rows so far, and in all."""
        query = self.query(found, symbol)
        coded = found.name is not None
        part = self.spool.part(self.about(found, symbol, span), _width(found), span.end_ns)
        columns = [query.stamp, *query.texts, *found.columns.values()]
        named = [f"{query.table}.{column}" for column in columns]
        pick = itemgetter(*columns)

        def records(rows: list[dict[str, Any]]) -> np.ndarray:
            out = np.empty(len(rows), part.dtype)
            if rows:
                stamps, *cells = zip(*map(pick, rows), strict=True)
                out["timestamp"] = found.clock.read(stamps)
                if coded:
                    out["values"][:, 0] = part.codes(_texts(cells.pop(0), named[1]))
                for at in range(len(cells)):
                    out["values"][:, at + coded] = numbers(cells[at], named[1 + coded + at])
            return out

        Reader(query, symbol, part, span, self.page_rows, records, report).read()
        return part


def _width(found: Found) -> int:
    """Values of a record."""
    return len(found.columns) + (found.name is not None)


def _texts(cells: Sequence[Any], where: str) -> Sequence[str]:
    odd = [cell for cell in cells if not isinstance(cell, str)]
    if odd:
        raise HpcrlError(f"{where} holds {odd[0]!r:.60}: an indicator's name must be text")
    return cells


def columns_of(block: np.ndarray, names: Sequence[str]) -> Columns:
    """A block of a part, as arrays of their own."""
    values = {name: block["values"][:, at].copy() for at, name in enumerate(names)}
    return {"timestamp": block["timestamp"].astype(np.int64), **values}
