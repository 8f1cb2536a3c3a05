"""Which tables and columns a PostgREST server has, as far as staging needs them.

One row of each table tells its columns and whether its stamps carry a zone. Refused, with what was found and
what to map: a missing table or column. A default table of indicators that is not there is none.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from postgrest import CountMethod

from hpcrl.config.tables import BarsTable, IndicatorsTable
from hpcrl.market.bars import ACTIONS
from hpcrl.market.clean import PRICES
from hpcrl.market.supabase_http import Refused, Rest
from hpcrl.market.supabase_pages import counted, quoted
from hpcrl.market.supabase_rows import Clock
from hpcrl.types import HpcrlError, RunFailed

SAMPLE_ROWS = 100
TRIES = 3
"""Of a look at a table that has rows but shows none."""
KEYS = ("symbol", "timeframe", "timestamp")
_SPELLED = {
    "timestamp with time zone": "2000-01-01T00:00:00+00:00",
    "timestamp without time zone": "2000-01-01T00:00:00",
    "date": "2000-01-01",
}
_NO_COLUMN = ("42703", "PGRST204")
_NO_TABLE = ("42P01", "PGRST205")


@dataclass(frozen=True)
class Found:
    """A table that is there and has rows."""

    table: BarsTable | IndicatorsTable
    table_name: str
    columns: dict[str, str]
    """Our name -> the table's; float64 columns, in order."""
    clock: Clock
    name: str | None = None
    """The column of an indicator's name (long layout); its value is then the one of ``columns``."""


def find_bars(rest: Rest, table: BarsTable, features: tuple[str, ...], timezone: str | None) -> Found | None:
    """None: the table holds no row at all. ``features`` that it has no column for are left out.

    HpcrlError: no such table, or columns are missing.
    """
    rows = _sample_of_bars(rest, table)
    if not rows:
        return None
    mapped = _mapped(table, (*PRICES, "volume", *ACTIONS))
    _check_columns(_mapped(table, KEYS) | mapped, rows[0], table.schema_name, table.table, "bars")
    own = {name: name for name in features if name in rows[0]}
    clock = _clock(rows, table.timestamp, table.table, timezone)
    return Found(table, table.table, mapped | own, clock)


def find_target(rest: Rest, table: BarsTable, names: tuple[str, ...], timezone: str | None) -> Found:
    """A table to write ``names`` to: fields of the mapping, or its own columns. It may hold no row yet."""
    fields = tuple(name for name in names if name in BarsTable.model_fields)
    columns = _mapped(table, fields) | {name: name for name in names if name not in fields}
    needed = _mapped(table, KEYS) | columns
    rows = _sample_of_bars(rest, table)
    if rows:
        _check_columns(needed, rows[0], table.schema_name, table.table, "bars")
        return Found(table, table.table, columns, _clock(rows, table.timestamp, table.table, timezone))
    chosen = rest.table(table.schema_name, table.table).select(*map(quoted, needed.values()))
    try:
        rest.read(chosen.limit(1), table.table)
    except Refused as refusal:
        if refusal.code not in _NO_COLUMN:
            raise
        raise HpcrlError(
            f"{table.schema_name}.{table.table}: {refusal.text}; needed: {', '.join(needed.values())} "
            "(map the names by --tables FILE; hpcrl stage schema prints a table that fits)"
        ) from None
    return Found(table, table.table, columns, _clock_of_empty(rest, table, timezone))


def _clock_of_empty(rest: Rest, table: BarsTable, timezone: str | None) -> Clock:
    """Without a row to look at, PostgreSQL's complaint about a senseless question tells a column's type."""
    query = rest.table(table.schema_name, table.table).select(quoted(table.timestamp))
    try:
        rest.read(query.is_(table.timestamp, True).limit(1), table.table)
        kind = "boolean"
    except Refused as refusal:
        told = re.search(r"not type ([a-z ]+)", refusal.text)
        if refusal.code != "42804" or told is None:
            raise
        kind = told[1]
    where = f"{table.table}.{table.timestamp}"
    if kind not in _SPELLED:
        raise HpcrlError(f"{where} is of type {kind}: make the column a timestamptz")
    return Clock.of(_SPELLED[kind], timezone, where)


def _sample_of_bars(rest: Rest, table: BarsTable) -> list[dict[str, Any]]:
    try:
        return _sample(rest, table.schema_name, table.table)
    except Refused as refusal:
        raise _no_table(refusal, table.schema_name, table.table, "bars.table") or refusal from None


def _mapped(table: BarsTable | IndicatorsTable, fields: tuple[str, ...]) -> dict[str, str]:
    """Field -> column, of those that the table has."""
    return {field: getattr(table, field) for field in fields if getattr(table, field) is not None}


def find_indicators(rest: Rest, table: IndicatorsTable, timezone: str | None) -> Found | None:
    """None: there are none. HpcrlError: a table of a name of the user's own is missing, or columns are."""
    if table.table is None:
        return None
    standard = IndicatorsTable()
    try:
        rows = _sample(rest, table.schema_name, table.table)
    except Refused as refusal:
        error = _no_table(refusal, table.schema_name, table.table, "indicators.table")
        if error is None:
            raise refusal from None
        if (table.schema_name, table.table) == (standard.schema_name, standard.table):
            return None
        raise error from None
    if not rows:
        return None
    layout = table.layout
    if layout == "auto":
        layout = "long" if table.name in rows[0] and table.value in rows[0] else "wide"
    needed = _mapped(table, (*KEYS, *(("name", "value") if layout == "long" else ())))
    _check_columns(needed, rows[0], table.schema_name, table.table, "indicators")
    clock = _clock(rows, table.timestamp, table.table, timezone)
    if layout == "long":
        return Found(table, table.table, {"value": table.value}, clock, table.name)
    taken = {*needed.values(), "id"}
    columns = {name: name for name in rows[0] if name not in taken and _is_number(rows, name)}
    if not columns:
        raise HpcrlError(
            f"{table.schema_name}.{table.table} has neither columns {table.name!r} and {table.value!r} "
            f"(indicators.name, indicators.value) nor numeric ones of indicators; found: {', '.join(rows[0])}"
        )
    return Found(table, table.table, columns, clock)


def _is_number(rows: list[dict[str, Any]], column: str) -> bool:
    """By a sample; a column without any value yet may become one."""
    cells = [row[column] for row in rows if row[column] is not None]
    return all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in cells)


def _sample(rest: Rest, schema: str, table: str) -> list[dict[str, Any]]:
    """Some rows; [] only where the exact count is 0, too."""
    for _ in range(TRIES):
        query = rest.table(schema, table).select("*").limit(SAMPLE_ROWS)
        found = rest.read(query, f"{schema}.{table}").rows
        if found:
            return found
        query = rest.table(schema, table).select("*", count=CountMethod.exact).limit(1)
        if not counted(rest.read(query, table), table):
            return []
    raise RunFailed(f"{schema}.{table}: has rows by its exact count, but the server gives none")


def _check_columns(
    needed: dict[str, str], row: dict[str, Any], schema: str, table: str, section: str
) -> None:
    missing = {field: column for field, column in needed.items() if column not in row}
    if not missing:
        return
    named = ", ".join(f"{column!r} ({section}.{field})" for field, column in missing.items())
    near = difflib.get_close_matches(next(iter(missing.values())), list(row), 1)
    hint = f"; did you mean {near[0]!r}" if near else ""
    raise HpcrlError(
        f"{schema}.{table} has no column {named}; found: {', '.join(row)}{hint}; map the names by "
        "--tables FILE"
    )


def _no_table(refusal: Refused, schema: str, table: str, key: str) -> HpcrlError | None:
    """None: it was refused for another reason."""
    if refusal.code not in _NO_TABLE:
        return None
    return HpcrlError(
        f"there is no table {schema}.{table} ({key}): {refusal.text}; map its name by --tables FILE, or make "
        "it: hpcrl stage schema (just made? NOTIFY pgrst, 'reload schema')"
    )


def _clock(rows: list[dict[str, Any]], column: str, table: str, timezone: str | None) -> Clock:
    cell = next((row[column] for row in rows if row[column] is not None), None)
    return Clock.of(cell, timezone, f"{table}.{column}")
