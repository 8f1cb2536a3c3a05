"""Bars and indicators of a PostgreSQL database, in bulk: psycopg's binary COPY, parsed by numpy.

Everything is read in one read-only transaction that sees one state of the database, whatever others write
meanwhile. Row level security that would hide rows is an error. Stamps are ns UTC, values float64 as the
database's ``::float8`` gives them; NaN stands for NULL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
from psycopg import errors, sql
from pydantic import SecretStr

from hpcrl.config.tables import BarsTable, IndicatorsTable, Tables
from hpcrl.market.bars import ACTIONS
from hpcrl.market.postgres_session import Session, as_float, find_place, where
from hpcrl.market.postgres_table import NUMBERS, Column, find_table, missing_table
from hpcrl.market.source import Columns, Progress, Span
from hpcrl.types import HpcrlError

NEEDED = ("open", "high", "low", "close", "volume")
SYMBOLS_SECONDS = 5
"""For the list of symbols, which only an error message shows."""


class Postgres:
    """A ``Source``. One connection, from one thread; ``bars`` is read to its end, or given up, before the
    next call."""

    kind = "postgres"

    def __init__(
        self,
        conninfo: SecretStr,
        tables: Tables,
        timeframe: str,
        features: tuple[str, ...] = (),
        timezone: str | None = None,
    ) -> None:
        self._session = Session(conninfo, snapshot=True)
        self._tables = tables
        self._timeframe = timeframe
        self._features = features
        self._timezone = timezone
        self._bar_seconds = tables.bar_seconds(timeframe)
        self._progress: Progress | None = None
        self._totals: dict[str, int] = {}
        self._values: dict[str, Column] = {}
        self._indicators: dict[str, Column] | None = None
        """Wide: by the database's name; long: ``name`` and ``value``."""
        self._long = False

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a source holds a password, and is not pickled")

    def open(self) -> None:
        self._session.open()
        with self._session.told("PostgreSQL"):
            self._open_bars(self._tables.bars)
            self._open_indicators(self._tables.indicators)

    def _open_bars(self, mapped: BarsTable) -> None:
        table = find_table(self._session.connection, mapped.schema_name, mapped.table)
        if table is None:
            raise missing_table(self._session.connection, mapped.schema_name, mapped.table)
        self._bars = find_place(table, mapped, "bars", self._timezone, self._bar_seconds)
        names = [*NEEDED, *(name for name in ACTIONS if getattr(mapped, name) is not None)]
        self._values = {name: table.number(f"bars.{name}", getattr(mapped, name)) for name in names}
        for name in self._features:
            if name in table.columns:  # else an indicator's, of which each symbol may have others
                self._values[name] = table.number("--features", name)
        self._session.try_columns(self._bars, list(self._values.values()))

    def _open_indicators(self, mapped: IndicatorsTable) -> None:
        if mapped.table is None:
            return
        table = find_table(self._session.connection, mapped.schema_name, mapped.table)
        if table is None:
            if mapped.table == IndicatorsTable().table:
                return  # nobody asked for it by name
            raise missing_table(self._session.connection, mapped.schema_name, mapped.table)
        place = find_place(table, mapped, "indicators", self._timezone, self._bar_seconds)
        both = mapped.name in table.columns and mapped.value in table.columns
        self._long = mapped.layout == "long" or (mapped.layout == "auto" and both)
        if self._long:
            name = table.column("indicators.name", mapped.name)
            self._indicators = {"name": name, "value": table.number("indicators.value", mapped.value)}
        else:
            free = [column for column in table.columns.values() if column not in place.keys]
            self._indicators = {
                column.name: column
                for column in free
                if column.base in NUMBERS and not column.identity and column.name != "id"
            }
        self._indicators_at = place
        self._session.try_columns(place, list(self._indicators.values()))

    def is_empty(self) -> bool:
        table = self._bars.table
        query = sql.SQL("select not exists (select from {})").format(table.sql)
        return bool(self._session.ask(query, str(table))[0][0])

    def symbols(self) -> list[str] | None:
        place, connection = self._bars, self._session.connection
        limit = sql.SQL("set local statement_timeout = {}").format(int(SYMBOLS_SECONDS * 1000))
        query = sql.SQL("select distinct {}::text from {} {}").format(
            place.symbol.sql, place.table.sql, where(place.where(self._timeframe, None, Span()))
        )
        with self._session.told(str(place.table)):
            try:
                with connection.transaction(force_rollback=True):  # which gives the limit up
                    connection.execute(limit)
                    return sorted(name for (name,) in connection.execute(query) if name is not None)
            except errors.QueryCanceled:
                return None

    def count(self, symbol: str, span: Span) -> int:
        return self._count(symbol, self._bars.where(self._timeframe, symbol, span))

    def _count(self, symbol: str, conditions: list[sql.Composable]) -> int:
        query = sql.SQL("select count(*) from {} {}").format(self._bars.table.sql, where(conditions))
        return int(self._session.ask(query, symbol)[0][0])

    def fingerprint(self, symbol: str, span: Span) -> str | None:
        """Of each column the sum of a hash of its values and their stamps, worked out by the server."""
        place = self._bars
        stamp = sql.SQL("hashfloat8extended(extract(epoch from {})::float8, 0)").format(
            place.stamps.column.sql
        )
        sums = [
            sql.SQL("sum(hashfloat8extended({}, {}))").format(as_float(column), stamp)
            for column in self._values.values()
        ]
        query = sql.SQL("select concat_ws(',', {}) from {} {}").format(
            sql.SQL(", ").join(sums), place.table.sql, where(place.where(self._timeframe, symbol, span))
        )
        return self._session.ask(query, symbol)[0][0]

    def prepare(self, wanted: dict[str, Span], progress: Progress) -> None:
        """Only who watches is remembered: COPY is as fast later."""
        self._progress = progress
        self._totals = {symbol: self.count(symbol, span) for symbol, span in wanted.items()}

    def bars(self, symbol: str, span: Span) -> Iterator[Columns]:
        place, done = self._bars, 0
        self._refuse_unstamped(symbol)
        fields = [as_float(column) for column in self._values.values()]
        for block in self._session.copy(place, symbol, fields, place.where(self._timeframe, symbol, span)):
            columns = {"timestamp": place.stamps.to_ns(block["v0"], symbol)}
            for number, name in enumerate(self._values, 1):
                columns[name] = block[f"v{number}"].astype(np.float64)
            done += len(block)
            if self._progress is not None:
                self._progress(symbol, done, max(done, self._totals.get(symbol, 0)))
            yield columns

    def _refuse_unstamped(self, symbol: str) -> None:
        """A span leaves rows without a stamp out in silence."""
        column = self._bars.stamps.column
        if column.not_null:
            return
        conditions = self._bars.where(self._timeframe, symbol, Span())
        count = self._count(symbol, [*conditions, sql.SQL("{} is null").format(column.sql)])
        if count:
            raise HpcrlError(f"{symbol}: {count:,} rows of {self._bars.table} have no {column.name} (NULL)")

    def indicator_names(self, symbol: str, span: Span) -> list[str]:
        if self._indicators is None:
            return []
        if not self._long:
            return sorted(self._indicators)
        place = self._indicators_at
        query = sql.SQL("select distinct {}::text from {} {}").format(
            self._indicators["name"].sql, place.table.sql, where(place.where(self._timeframe, symbol, span))
        )
        return sorted(name for (name,) in self._session.ask(query, symbol) if name is not None)

    def indicator(self, symbol: str, name: str, span: Span) -> tuple[np.ndarray, np.ndarray]:
        stamps: list[np.ndarray] = [np.empty(0, np.int64)]
        values: list[np.ndarray] = [np.empty(0)]
        if self._indicators is not None and (self._long or name in self._indicators):
            place = self._indicators_at
            conditions = place.where(self._timeframe, symbol, span)
            if self._long:
                key = self._indicators["name"].sql
                conditions.append(sql.SQL("{} = {}").format(key, sql.Literal(name)))
            value = self._indicators["value" if self._long else name]
            for column in (value, place.stamps.column):
                conditions.append(sql.SQL("{} is not null").format(column.sql))
            for block in self._session.copy(place, symbol, [as_float(value)], conditions):
                there = ~np.isnan(block["v1"])
                stamps.append(place.stamps.to_ns(block["v0"], symbol)[there])
                values.append(block["v1"].astype(np.float64)[there])
        return np.concatenate(stamps), np.concatenate(values)

    def close(self) -> None:
        self._session.close()
