"""One transaction on a PostgreSQL server: questions, and rows of one symbol by binary COPY.

A question that fails, and rows that are not read to their end, leave the transaction as it was before them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import sql
from pydantic import SecretStr

from hpcrl.config.tables import BarsTable, IndicatorsTable
from hpcrl.market.postgres_connect import begin, connect, told
from hpcrl.market.postgres_copy import read_rows
from hpcrl.market.postgres_stamps import Stamps
from hpcrl.market.postgres_table import Column, Table
from hpcrl.market.source import Span
from hpcrl.types import RunFailed


@dataclass(frozen=True)
class Place:
    """A table, and the columns that tell its rows apart."""

    table: Table
    symbol: Column
    timeframe: Column | None
    stamps: Stamps

    @property
    def keys(self) -> list[Column]:
        return [column for column in (self.symbol, self.timeframe, self.stamps.column) if column is not None]

    def where(self, timeframe: str, symbol: str | None, span: Span) -> list[sql.Composable]:
        conditions: list[sql.Composable] = []
        if symbol is not None:
            conditions.append(sql.SQL("{} = {}").format(self.symbol.sql, sql.Literal(symbol)))
        if self.timeframe is not None:
            conditions.append(sql.SQL("{} = {}").format(self.timeframe.sql, sql.Literal(timeframe)))
        return conditions + self.stamps.within(span)


def find_place(
    table: Table, mapped: BarsTable | IndicatorsTable, section: str, timezone: str | None, bar_seconds: int
) -> Place:
    """HpcrlError: a column is missing, or of a type that will not do."""
    frame = mapped.timeframe
    return Place(
        table,
        table.column(f"{section}.symbol", mapped.symbol),
        None if frame is None else table.column(f"{section}.timeframe", frame),
        Stamps(table.stamp(f"{section}.timestamp", mapped.timestamp, timezone, bar_seconds), timezone),
    )


def where(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL("where {}").format(sql.SQL(" and ").join(conditions)) if conditions else sql.SQL("")


def as_float(column: Column) -> sql.Composable:
    """A field for ``Session.copy``."""
    return sql.SQL("coalesce({}::float8, 'NaN'::float8)").format(column.sql)


class Session:
    """``open`` first. ``snapshot``: the transaction sees one state of the database and writes nothing."""

    def __init__(self, conninfo: SecretStr, snapshot: bool) -> None:
        self._conninfo = conninfo
        self._snapshot = snapshot
        self._connection: psycopg.Connection[tuple] | None = None

    def open(self) -> None:
        """As ``connect``."""
        self._connection = connect(self._conninfo)
        with self.told("PostgreSQL"):
            begin(self._connection, snapshot=self._snapshot)

    @property
    def connection(self) -> psycopg.Connection[tuple]:
        if self._connection is None:
            raise RuntimeError("the session is not open")
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def rollback(self) -> None:
        """Also where there is no connection, or none any more: then the server has done it."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.rollback()

    def told(self, what: str) -> contextlib.AbstractContextManager[None]:
        """psycopg's errors as ours, about ``what``."""
        return told(lambda: what, self._conninfo)

    def try_columns(self, place: Place, columns: list[Column]) -> None:
        """Rights, and row level security, show before any work is done."""
        fields = sql.SQL(", ").join(column.sql for column in [*place.keys, *columns])
        self.ask(sql.SQL("select {} from {} limit 0").format(fields, place.table.sql), "PostgreSQL")

    def ask(self, query: sql.Composed, what: str) -> list[tuple]:
        with self.told(what), self.connection.transaction():
            cursor = self.connection.execute(query)
            return cursor.fetchall() if cursor.description is not None else []

    def copy(
        self, place: Place, symbol: str, fields: list[sql.Composable], conditions: list[sql.Composable]
    ) -> Iterator[np.ndarray]:
        """Blocks of ``read_rows``, in order of time: the stamp, then ``fields``, which have no NULL."""
        stamps, name = place.stamps, place.table
        query = sql.SQL("copy (select {} from {} {} order by {}) to stdout (format binary)").format(
            sql.SQL(", ").join([stamps.sql, *fields]), name.sql, where(conditions), stamps.column.sql
        )
        done = 0
        with (
            told(lambda: f"{symbol}: after {done:,} rows of {name}", self._conninfo),
            self.connection.transaction(),  # a savepoint
            self.connection.cursor() as cursor,
        ):
            with cursor.copy(query) as rows:
                pieces = _Pieces(rows)
                for block in read_rows(pieces, len(fields)):
                    done += len(block)
                    yield block
            if pieces.sent != done:
                raise RunFailed(f"{symbol}: {done:,} of {pieces.sent or 0:,} rows of {name} were received")


class _Pieces:
    """What a COPY to stdout sends; ``sent`` rows, as the server says at the end.

    psycopg's ``read`` waits, so that a signal is heard, and raises; but it takes four calls for each row. So
    the rows that have arrived meanwhile are taken from libpq (measured: half of the time that we spend).
    """

    def __init__(self, rows: psycopg.Copy) -> None:
        self._rows = rows
        self.sent: int | None = None

    def __iter__(self) -> Iterator[memoryview]:
        pgconn = self._rows.connection.pgconn
        while len(piece := self._rows.read()):
            yield memoryview(piece)
            size, data = pgconn.get_copy_data(1)
            while size > 0:
                yield data
                size, data = pgconn.get_copy_data(1)
            if size < 0:  # that was the last one: the outcome follows
                self.sent = self._outcome(pgconn)
                return
        self.sent = self._rows.cursor.rowcount

    def _outcome(self, pgconn: psycopg.pq.abc.PGconn) -> int | None:
        found = pgconn.get_result()
        while (more := pgconn.get_result()) is not None:
            found = more
        if found is None or found.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(found) if found else psycopg.OperationalError("no outcome")
        return found.command_tuples
