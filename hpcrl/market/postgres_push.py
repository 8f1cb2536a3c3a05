"""A PostgreSQL table of bars that is written: binary COPY into a temporary table, from there into its own.

All of it is one transaction: others see nothing before it is committed, and nothing is left when it is not.
Two pushes into a table wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
from psycopg import sql
from pydantic import SecretStr

from hpcrl.config.tables import Tables
from hpcrl.market.bars import ACTIONS
from hpcrl.market.postgres_copy import pack_rows
from hpcrl.market.postgres_session import Session, as_float, find_place
from hpcrl.market.postgres_table import Column, find_table, missing_table
from hpcrl.market.push_read import EXTRA, NEEDED
from hpcrl.market.source import Columns, Span

LOCK = 0x68706372
"""First half of the advisory lock's number, a guess at what nobody else uses; the second is the table's."""
NEW = sql.Identifier("pg_temp", "hpcrl_push")
STAMP = sql.Identifier("hpcrl new stamp")


class PostgresTarget:
    """A ``push.Target``."""

    kind = "postgres"
    whole = True

    def __init__(
        self, conninfo: SecretStr, tables: Tables, timeframe: str, timezone: str | None = None
    ) -> None:
        """timezone: of the table's stamps, where they carry none."""
        self.tables = tables
        self._session = Session(conninfo, snapshot=False)
        self._timeframe = timeframe
        self._timezone = timezone
        self._bar_seconds = tables.bar_seconds(timeframe)
        self._values: dict[str, Column] = {}

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a target holds a password, and is not pickled")

    def open(self, names: tuple[str, ...]) -> None:
        self._session.open()
        mapped, connection = self.tables.bars, self._session.connection
        with self._session.told("PostgreSQL"):
            table = find_table(connection, mapped.schema_name, mapped.table)
            if table is None:
                raise missing_table(connection, mapped.schema_name, mapped.table)
            self._bars = find_place(table, mapped, "bars", self._timezone, self._bar_seconds)
            self._values = {}
            for name in names:
                column = getattr(mapped, name) if name in (*NEEDED, *ACTIONS, *EXTRA) else None
                key = "--features" if column is None else f"bars.{name}"
                self._values[name] = table.number(key, column or name)
            self._session.try_columns(self._bars, list(self._values.values()))
            connection.execute(
                "select pg_advisory_xact_lock(%s, %s::regclass::oid::int)", [LOCK, table.quoted]
            )
            fields = [sql.SQL("{} {}").format(STAMP, sql.SQL(self._bars.stamps.kept_as))]
            fields += [sql.SQL("{} float8").format(_new(number)) for number in range(len(names))]
            connection.execute(
                sql.SQL("create temporary table {} ({}) on commit drop").format(
                    sql.Identifier("hpcrl_push"), sql.SQL(", ").join(fields)
                )
            )

    def existing(self, symbol: str, span: Span) -> Iterator[Columns]:
        place = self._bars
        fields = [as_float(column) for column in self._values.values()]
        for block in self._session.copy(place, symbol, fields, place.where(self._timeframe, symbol, span)):
            columns = {"timestamp": place.stamps.to_ns(block["v0"], symbol)}
            for number, name in enumerate(self._values, 1):
                columns[name] = block[f"v{number}"].astype(np.float64)
            yield columns

    def insert(self, symbol: str, rows: Columns, replace: bool) -> int:
        stamps = self._bars.stamps.from_ns(rows["timestamp"], symbol)
        data = pack_rows(stamps, [rows[name] for name in self._values])
        connection = self._session.connection
        with self._session.told(symbol), connection.cursor() as cursor:
            cursor.execute(sql.SQL("truncate {}").format(NEW))
            with cursor.copy(sql.SQL("copy {} from stdin (format binary)").format(NEW)) as copy:
                copy.write(data)
            cursor.execute(self._update(symbol) if replace else self._append(symbol))
            return cursor.rowcount

    def _given(self) -> list[sql.Composable]:
        """The temporary table's values, as the columns take them."""
        return [_cast(_new(number), column) for number, column in enumerate(self._values.values())]

    def _append(self, symbol: str) -> sql.Composed:
        place = self._bars
        fixed = {place.symbol.name: _literal(symbol, place.symbol)}
        if place.timeframe is not None:
            fixed[place.timeframe.name] = _literal(self._timeframe, place.timeframe)
        stamp = sql.SQL("{}::{}").format(STAMP, sql.SQL(place.stamps.column.type))
        columns = [*map(sql.Identifier, fixed), place.stamps.column.sql]
        columns += [column.sql for column in self._values.values()]
        return sql.SQL("insert into {} ({}) select {} from {}").format(
            place.table.sql,
            sql.SQL(", ").join(columns),
            sql.SQL(", ").join([*fixed.values(), stamp, *self._given()]),
            NEW,
        )

    def _update(self, symbol: str) -> sql.Composed:
        place = self._bars
        pairs = zip(self._values.values(), self._given(), strict=True)
        settings = [sql.SQL("{} = {}").format(column.sql, value) for column, value in pairs]
        stamp = sql.SQL("{} = {}::{}").format(
            place.stamps.column.sql, STAMP, sql.SQL(place.stamps.column.type)
        )
        return sql.SQL("update {} set {} from {} where {}").format(
            place.table.sql,
            sql.SQL(", ").join(settings),
            NEW,
            sql.SQL(" and ").join([stamp, *place.where(self._timeframe, symbol, Span())]),
        )

    def commit(self) -> None:
        with self._session.told("PostgreSQL"):
            self._session.connection.commit()

    def rollback(self) -> None:
        self._session.rollback()

    def close(self) -> None:
        self._session.close()


def _new(number: int) -> sql.Identifier:
    return sql.Identifier(f"hpcrl new {number}")


def _cast(value: sql.Composable, column: Column) -> sql.Composable:
    # Straight to numeric, PostgreSQL keeps 15 digits of a float8; its text holds every bit.
    through = sql.SQL("::text") if column.base == "numeric" else sql.SQL("")
    return sql.SQL("{}{}::{}").format(value, through, sql.SQL(column.type))


def _literal(text: str, column: Column) -> sql.Composable:
    if column.base in ("text", "varchar", "bpchar", "name"):
        return sql.Literal(text)  # without a cast, which would cut it off to the column's length
    return sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(column.type))
