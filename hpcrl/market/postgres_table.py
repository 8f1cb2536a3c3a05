"""A table of PostgreSQL as it is: which columns of which types, and which of them can be read.

Views, partitioned and foreign tables count as tables. The error for a name that is not there lists what is.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import psycopg
from psycopg import sql

from hpcrl.types import HpcrlError

NUMBERS = ("int2", "int4", "int8", "numeric", "float4", "float8")
STAMPS = ("timestamptz", "timestamp", "date")
_CATALOG = """
select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity <> '', (
    with recursive up (oid) as (
        select a.atttypid
        union all
        select t.typbasetype from pg_catalog.pg_type t join up on t.oid = up.oid where t.typtype = 'd'
    )
    select t.typname from up join pg_catalog.pg_type t on t.oid = up.oid
    where t.typtype <> 'd' and t.typnamespace = 'pg_catalog'::regnamespace
)
from pg_catalog.pg_attribute a
join pg_catalog.pg_class c on c.oid = a.attrelid
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
where s.nspname = %s and c.relname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""
_TABLES = """
select c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace s on s.oid = c.relnamespace
where s.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f') order by c.relname limit 1001
"""


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    """As SQL spells it: numeric(10,4)."""
    base: str | None
    """PostgreSQL's own type below all domains, such as float8; None: a type that somebody added."""
    not_null: bool
    identity: bool
    """Numbered by the database itself."""

    @property
    def sql(self) -> sql.Composable:
        return sql.Identifier(self.name)


@dataclass(frozen=True)
class Table:
    schema: str
    name: str
    columns: dict[str, Column]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> sql.Composable:
        return sql.Identifier(self.schema, self.name)

    @property
    def quoted(self) -> str:
        return self.sql.as_string()

    def column(self, key: str, name: str) -> Column:
        """The column that ``key`` of the mapping names. HpcrlError lists the columns found."""
        if name not in self.columns:
            near, has = nearest(name, self.columns), ", ".join(self.columns)
            raise HpcrlError(f"table {self} has no column {name!r} ({key} in --tables){near}; it has: {has}")
        return self.columns[name]

    def number(self, key: str, name: str) -> Column:
        """A column of numbers; HpcrlError: another type."""
        column = self.column(key, name)
        if column.base not in NUMBERS:
            raise HpcrlError(f"{self}: column {name!r} ({key}) is of type {column.type}, which is no number")
        return column

    def stamp(self, key: str, name: str, timezone: str | None, bar_seconds: int) -> Column:
        """The column of stamps; HpcrlError: its type says no point in time."""
        column = self.column(key, name)
        what = f"{self}: column {name!r} ({key}) is of type {column.type}"
        if column.base not in STAMPS:
            raise HpcrlError(f"{what}; timestamp with time zone is needed")
        if column.base == "timestamp" and timezone is None:
            raise HpcrlError(
                f"{what}; name the zone that its stamps are in (--timezone UTC, --timezone America/New_York)"
            )
        if column.base == "date" and bar_seconds % 86_400:
            raise HpcrlError(f"{what}, which does not tell bars of {bar_seconds} s apart")
        return column


def find_table(connection: psycopg.Connection[tuple], schema: str, name: str) -> Table | None:
    """None: there is no such table."""
    rows = connection.execute(_CATALOG, [schema, name]).fetchall()
    columns = {found: Column(found, kind, base, fixed, own) for found, kind, fixed, own, base in rows}
    return Table(schema, name, columns) if columns else None


def missing_table(connection: psycopg.Connection[tuple], schema: str, name: str) -> HpcrlError:
    """Lists the tables that are there."""
    there = [found for (found,) in connection.execute(_TABLES, [schema])]
    listed = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    return HpcrlError(
        f"there is no table {schema}.{name}{nearest(name, there)}; schema {schema} has: "
        f"{listed or 'no tables'} (names in --tables; `hpcrl stage schema | psql` makes such tables)"
    )


def nearest(name: str, names: list[str] | dict[str, Column]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
