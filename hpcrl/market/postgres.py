"""Bars and indicators of a PostgreSQL database, in bulk: psycopg's binary COPY, parsed by numpy.

Everything is read in one read-only transaction that sees one state of the database, whatever others write
meanwhile. Row level security that would hide rows is an error. Stamps are ns UTC, values float64 as the
database's ``::float8`` gives them; NaN stands for NULL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import psycopg
from psycopg import errors, sql
from pydantic import SecretStr

from hpcrl.config.tables import BarsTable, IndicatorsTable, Tables
from hpcrl.market.bars import ACTIONS
from hpcrl.market.postgres_connect import begin, connect, told
from hpcrl.market.postgres_copy import read_rows
from hpcrl.market.postgres_stamps import Stamps
from hpcrl.market.postgres_table import NUMBERS, Column, Table, find_table, missing_table
from hpcrl.market.source import Columns, Progress, Span
from hpcrl.types import HpcrlError, RunFailed

NUMBER_COLUMNS = ("open", "high", "low", "close", "volume")
SYMBOLS_SECONDS = 5
"""For the list of symbols, which only an error message shows."""


@dataclass(frozen=True)
class _Kept:
    """A table of which the rows of one timeframe are read."""

    table: Table
    symbol: Column
    timeframe: Column | None
    stamps: Stamps

    def where(self, timeframe: str, symbol: str | None, span: Span) -> list[sql.Composable]:
        conditions: list[sql.Composable] = []
        if symbol is not None:
            conditions.append(sql.SQL("{} = {}").format(self.symbol.sql, sql.Literal(symbol)))
        if self.timeframe is not None:
            conditions.append(sql.SQL("{} = {}").format(self.timeframe.sql, sql.Literal(timeframe)))
        return conditions + self.stamps.within(span)


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
        self._conninfo = conninfo
        self._tables = tables
        self._timeframe = timeframe
        self._features = features
        self._timezone = timezone
        if timeframe not in tables.timeframes:
            known = ", ".join(tables.timeframes)
            raise HpcrlError(f"timeframe {timeframe!r} is not known; known: {known} (timeframes in --tables)")
        self._bar_seconds = tables.timeframes[timeframe]
        self._connection: psycopg.Connection[tuple] | None = None
        self._values: dict[str, Column] = {}
        self._indicators: dict[str, Column] | None = None  # wide: by name; long: ``name`` and ``value``
        self._long = False

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a source holds a password, and is not pickled")

    def open(self) -> None:
        self._connection = connection = connect(self._conninfo)
        with told(lambda: "PostgreSQL", self._conninfo):
            begin(connection, snapshot=True)
            self._open_bars(connection, self._tables.bars)
            self._open_indicators(connection, self._tables.indicators)

    def _open_bars(self, connection: psycopg.Connection[tuple], mapped: BarsTable) -> None:
        table = find_table(connection, mapped.schema_name, mapped.table)
        if table is None:
            raise missing_table(connection, mapped.schema_name, mapped.table)
        self._bars = self._keep(table, mapped, "bars")
        names = [*NUMBER_COLUMNS, *(name for name in ACTIONS if getattr(mapped, name) is not None)]
        self._values = {name: table.number(f"bars.{name}", getattr(mapped, name)) for name in names}
        for name in self._features:
            if name in table.columns:  # else an indicator's, of which each symbol may have others
                self._values[name] = table.number("--features", name)
        self._try(connection, self._bars, list(self._values.values()))

    def _open_indicators(self, connection: psycopg.Connection[tuple], mapped: IndicatorsTable) -> None:
        if mapped.table is None:
            return
        table = find_table(connection, mapped.schema_name, mapped.table)
        if table is None:
            if mapped.table == IndicatorsTable().table:
                return  # nobody asked for it by name
            raise missing_table(connection, mapped.schema_name, mapped.table)
        self._kept_indicators = kept = self._keep(table, mapped, "indicators")
        both = mapped.name in table.columns and mapped.value in table.columns
        self._long = mapped.layout == "long" or (mapped.layout == "auto" and both)
        if self._long:
            name = table.column("indicators.name", mapped.name)
            self._indicators = {"name": name, "value": table.number("indicators.value", mapped.value)}
        else:
            keys = [kept.symbol, kept.timeframe, kept.stamps.column]
            free = [column for column in table.columns.values() if column not in keys]
            self._indicators = {
                column.name: column
                for column in free
                if column.base in NUMBERS and not column.identity and column.name != "id"
            }
        self._try(connection, kept, list(self._indicators.values()))

    def _keep(self, table: Table, mapped: BarsTable | IndicatorsTable, section: str) -> _Kept:
        frame = mapped.timeframe
        stamp = table.stamp(f"{section}.timestamp", mapped.timestamp, self._timezone, self._bar_seconds)
        return _Kept(
            table,
            table.column(f"{section}.symbol", mapped.symbol),
            None if frame is None else table.column(f"{section}.timeframe", frame),
            Stamps(stamp, self._timezone),
        )

    @staticmethod
    def _try(connection: psycopg.Connection[tuple], kept: _Kept, columns: list[Column]) -> None:
        """Rights, and row level security, show before any work is done."""
        keys = [column for column in (kept.symbol, kept.timeframe, kept.stamps.column) if column is not None]
        fields = sql.SQL(", ").join(column.sql for column in [*keys, *columns])
        connection.execute(sql.SQL("select {} from {} limit 0").format(fields, kept.table.sql))

    def is_empty(self) -> bool:
        query = sql.SQL("select not exists (select from {})").format(self._bars.table.sql)
        return bool(self._ask(query, str(self._bars.table))[0][0])

    def symbols(self) -> list[str] | None:
        kept, limit = self._bars, sql.SQL("set local statement_timeout = {}").format(SYMBOLS_SECONDS * 1000)
        query = sql.SQL("select distinct {}::text from {} {}").format(
            kept.symbol.sql, kept.table.sql, _where(kept.where(self._timeframe, None, Span()))
        )
        connection = self._opened()
        with told(lambda: str(kept.table), self._conninfo):
            try:
                with connection.transaction(force_rollback=True):  # which gives the limit up
                    connection.execute(limit)
                    return sorted(name for (name,) in connection.execute(query) if name is not None)
            except errors.QueryCanceled:
                return None

    def count(self, symbol: str, span: Span) -> int:
        kept = self._bars
        query = sql.SQL("select count(*) from {} {}").format(
            kept.table.sql, _where(kept.where(self._timeframe, symbol, span))
        )
        return int(self._ask(query, symbol)[0][0])

    def prepare(self, wanted: dict[str, Span], progress: Progress) -> None:
        """Nothing: COPY is as fast later."""

    def bars(self, symbol: str, span: Span) -> Iterator[Columns]:
        kept = self._bars
        self._refuse_unstamped(kept, symbol)
        fields = [_or_nan(column) for column in self._values.values()]
        for block in self._copy(kept, symbol, fields, kept.where(self._timeframe, symbol, span)):
            columns = {"timestamp": kept.stamps.to_ns(block["v0"], symbol)}
            for place, name in enumerate(self._values, 1):
                columns[name] = block[f"v{place}"].astype(np.float64)
            yield columns

    def _refuse_unstamped(self, kept: _Kept, symbol: str) -> None:
        column = kept.stamps.column
        if column.not_null:
            return
        conditions = kept.where(self._timeframe, symbol, Span())
        conditions.append(sql.SQL("{} is null").format(column.sql))
        query = sql.SQL("select count(*) from {} {}").format(kept.table.sql, _where(conditions))
        count = self._ask(query, symbol)[0][0]
        if count:
            raise HpcrlError(f"{symbol}: {count:,} rows of {kept.table} have no {column.name} (NULL)")

    def indicator_names(self, symbol: str, span: Span) -> list[str]:
        if self._indicators is None:
            return []
        if not self._long:
            return sorted(self._indicators)
        kept = self._kept_indicators
        name = self._indicators["name"].sql
        query = sql.SQL("select distinct {}::text from {} {}").format(
            name, kept.table.sql, _where(kept.where(self._timeframe, symbol, span))
        )
        return sorted(found for (found,) in self._ask(query, symbol) if found is not None)

    def indicator(self, symbol: str, name: str, span: Span) -> tuple[np.ndarray, np.ndarray]:
        stamps: list[np.ndarray] = [np.empty(0, np.int64)]
        values: list[np.ndarray] = [np.empty(0)]
        if self._indicators is not None and (self._long or name in self._indicators):
            kept = self._kept_indicators
            conditions = kept.where(self._timeframe, symbol, span)
            if self._long:
                key = self._indicators["name"].sql
                conditions.append(sql.SQL("{} = {}").format(key, sql.Literal(name)))
            value = self._indicators["value" if self._long else name]
            conditions += [sql.SQL("{} is not null").format(value.sql)]
            conditions += [sql.SQL("{} is not null").format(kept.stamps.column.sql)]
            for block in self._copy(kept, symbol, [_or_nan(value)], conditions):
                there = ~np.isnan(block["v1"])
                stamps.append(kept.stamps.to_ns(block["v0"], symbol)[there])
                values.append(block["v1"].astype(np.float64)[there])
        return np.concatenate(stamps), np.concatenate(values)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _opened(self) -> psycopg.Connection[tuple]:
        if self._connection is None:
            raise RuntimeError("Postgres is not open")
        return self._connection

    def _ask(self, query: sql.Composed, what: str) -> list[tuple]:
        connection = self._opened()
        with told(lambda: what, self._conninfo), connection.transaction():
            return connection.execute(query).fetchall()

    def _copy(
        self, kept: _Kept, symbol: str, fields: list[sql.Composable], conditions: list[sql.Composable]
    ) -> Iterator[np.ndarray]:
        """Blocks of rows in order of time: the stamp, then ``fields``, float8 without NULL."""
        stamp = kept.stamps
        query = sql.SQL("copy (select {} from {} {} order by {}) to stdout (format binary)").format(
            sql.SQL(", ").join([stamp.sql, *fields]), kept.table.sql, _where(conditions), stamp.column.sql
        )
        connection, done = self._opened(), 0
        # The savepoint lets the transaction go on when the rows are not read to their end.
        with (
            told(lambda: f"{symbol}: after {done:,} rows of {kept.table}", self._conninfo),
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            with cursor.copy(query) as copy:
                for block in read_rows(copy, len(fields)):
                    done += len(block)
                    yield block
            if cursor.rowcount != done:
                raise RunFailed(
                    f"{symbol}: {done:,} of {cursor.rowcount:,} rows of {kept.table} were received"
                )


def _or_nan(column: Column) -> sql.Composable:
    return sql.SQL("coalesce({}::float8, 'NaN'::float8)").format(column.sql)


def _where(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL("where {}").format(sql.SQL(" and ").join(conditions)) if conditions else sql.SQL("")
