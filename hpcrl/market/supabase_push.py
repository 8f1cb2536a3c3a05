"""Bars into a table by supabase-py: the ``Target`` of ``push`` over PostgREST.

There is no transaction across requests: what is inserted stays, so ``push`` compares all symbols before the
first insertion, and a run that was cut short is run again. An insertion whose answer was lost is sent again;
so every one names the key of a bar and leaves rows alone that are there (or replaces them, where asked).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from postgrest import ReturnMethod
from pydantic import SecretStr

from hpcrl.config.secrets import check_key
from hpcrl.config.tables import Tables
from hpcrl.market.source import Columns, Span
from hpcrl.market.spool import Spool
from hpcrl.market.supabase_fetch import Fetch, columns_of
from hpcrl.market.supabase_http import Refused, Rest
from hpcrl.market.supabase_pages import quoted
from hpcrl.market.supabase_tables import Found, find_target
from hpcrl.types import HpcrlError

INSERT_ROWS = 1000
_NO_KEY = "42P10"


class SupabaseTarget:
    """``timezone``: of a column of stamps without a zone."""

    kind = "supabase"
    whole = False

    def __init__(
        self,
        url: str,
        key: SecretStr,
        tables: Tables,
        timeframe: str,
        timezone: str | None = None,
        *,
        page_rows: int = 10_000,
        requests_per_second: float = 20.0,
        patience_seconds: float = 300.0,
    ) -> None:
        self._rest = Rest(url, key, 1, requests_per_second, patience_seconds)
        check_key(key, url)
        self.tables = tables
        self._timeframe, self._timezone, self._page_rows = timeframe, timezone, page_rows
        self._found: Found | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a target is not pickled: it holds a key")

    def open(self, names: tuple[str, ...]) -> None:
        self._rest.open()
        self._found = find_target(self._rest, self.tables.bars, names, self._timezone)

    def existing(self, symbol: str, span: Span) -> Iterator[Columns]:
        found = self._opened()
        with tempfile.TemporaryDirectory(prefix="hpcrl-push-") as folder:
            spool = Spool(Path(folder) / "parts")
            spool.open()
            try:
                fetch = Fetch(self._rest, spool, self._timeframe, self._page_rows)
                part = fetch.read(found, symbol, span, lambda *_: None)
                for block in part.blocks(span):
                    yield columns_of(block, list(found.columns))
            finally:
                spool.close()

    def insert(self, symbol: str, rows: Columns, replace: bool) -> int:
        found, table = self._opened(), self.tables.bars
        fixed = {table.symbol: symbol}
        if table.timeframe is not None:
            fixed[table.timeframe] = self._timeframe
        keys = [*fixed, table.timestamp]
        columns: dict[str, list[Any]] = {table.timestamp: found.clock.write(rows["timestamp"])}
        columns |= {column: _cells(rows[name]) for name, column in found.columns.items()}
        records = [
            {**fixed, **dict(zip(columns, cells, strict=True))}
            for cells in zip(*columns.values(), strict=True)
        ]
        for first in range(0, len(records), INSERT_ROWS):
            query = self._rest.table(table.schema_name, table.table).upsert(
                records[first : first + INSERT_ROWS],
                on_conflict=",".join(map(quoted, keys)),
                ignore_duplicates=not replace,
                returning=ReturnMethod.minimal,
            )
            what = f"{symbol}: {first:,} of {len(records):,} rows written to {table.table}"
            try:
                self._rest.write(query, what)
            except Refused as refusal:
                if refusal.code != _NO_KEY:
                    raise
                raise HpcrlError(
                    f"{table.schema_name}.{table.table} has no unique key over {', '.join(keys)}, without "
                    "which an insertion cannot be repeated safely when its answer is lost: make one (hpcrl "
                    "stage schema prints it)"
                ) from None
        return len(records)

    def commit(self) -> None:
        """Every insertion lasts already."""

    def rollback(self) -> None:
        """Nothing can be undone."""

    def close(self) -> None:
        self._rest.close()

    def _opened(self) -> Found:
        if self._found is None:
            raise RuntimeError("SupabaseTarget is not open")
        return self._found


def _cells(values: np.ndarray) -> list[Any]:
    """As JSON: NaN is null, and a whole number has no fraction, which a column of integers would refuse."""
    whole = (np.abs(values) < 2**53) & (values == np.floor(values)) & ~(np.signbit(values) & (values == 0))
    cells = values.astype(object)
    cells[whole] = values[whole].astype(np.int64).astype(object)
    cells[np.isnan(values)] = None
    return cells.tolist()
