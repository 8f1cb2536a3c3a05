"""SQL that makes the tables which staging reads: ``hpcrl stage schema | psql``, or Supabase's SQL editor.

Run again, it leaves every table that is there as it is. Row level security is on and there is no policy, so
that on Supabase only the service role sees rows; no role is named, so that it works on any PostgreSQL. What
staging would reject in every row (prices in a wrong order, no stamp) the tables refuse at once.
"""

from __future__ import annotations

from psycopg import sql

from hpcrl.config.tables import BarsTable, IndicatorsTable, Tables
from hpcrl.market.indicators import INDICATORS
from hpcrl.types import HpcrlError

LONGEST_NAME = 63
"""Bytes; PostgreSQL cuts longer names off, without an error."""
_NOTE = """\
-- Tables of bars and indicators, made by `hpcrl stage schema`. Tables that are there stay as they are.
-- Row level security is on, without a policy: rows are seen by the tables' owner and by roles that bypass
-- it (superusers; on Supabase service_role) alone. Another role needs a grant of select, and a policy.
"""
_TABLE = """
do {tag}
begin
  if to_regclass({text}) is not null then
    raise notice 'table % is there, and stays as it is', {text};
    return;
  end if;
  create table {table} (
    {columns}
  );
  comment on table {table} is {comment};
{more}  alter table {table} enable row level security;
end
{tag};
"""


def schema_sql(tables: Tables) -> str:
    """The statements. HpcrlError: a name that PostgreSQL cannot hold, or that two columns share."""
    schemas = dict.fromkeys([tables.bars.schema_name, tables.indicators.schema_name])
    parts = [_NOTE]
    for name in schemas:
        if name != "public":
            parts.append(f"\ncreate schema if not exists {_quote(name)};\n")
    parts.append(_bars(tables.bars))
    if tables.indicators.table is not None:
        parts.append(_indicators(tables.indicators, tables.indicators.table))
    return "".join(parts)


def _bars(table: BarsTable) -> str:
    columns = _key_columns(table)
    columns |= {
        getattr(table, name): "double precision not null" for name in ("open", "high", "low", "close")
    }
    columns[table.volume] = "double precision not null"
    kinds = {
        "split": "double precision check ({0} > 0)",
        "dividend": "double precision check ({0} >= 0)",
        "delist": "double precision check ({0} >= 0)",
        "trade_count": "bigint check ({0} >= 0)",
        "vwap": "double precision",
    }
    for name, kind in kinds.items():
        column = getattr(table, name)
        if column is not None:
            columns[column] = kind.format(_quote(column))
    high, low, open_, close = (_quote(getattr(table, name)) for name in ("high", "low", "open", "close"))
    volume = _quote(table.volume)
    checks = [
        # NaN is above every number: these refuse it, too.
        f"check ({low} > 0 and {low} <= least({open_}, {close}))",
        f"check ({high} >= greatest({open_}, {close}) and {high} < 'infinity')",
        f"check ({volume} >= 0 and {volume} < 'infinity')",
        f"check (isfinite({_quote(table.timestamp)}))",
        f"primary key ({', '.join(_key(table))})",
    ]
    comment = "Bars: one row per symbol, timeframe and start (UTC); prices in the currency of the symbol."
    return _table(table.schema_name, table.table, columns, checks, comment)


def _indicators(table: IndicatorsTable, name: str) -> str:
    columns = _key_columns(table)
    checks = [f"check (isfinite({_quote(table.timestamp)}))"]
    if table.layout == "wide":
        fields = {field: getattr(table, field) for field in ("symbol", "timeframe", "timestamp")}
        spelt = {ours: theirs for theirs, ours in table.names.items()}
        theirs = {ours: spelt.get(ours, ours.lower()) for ours in INDICATORS}
        _check_once("indicators", fields | theirs)
        columns |= dict.fromkeys(theirs.values(), "double precision")
        checks.append(f"primary key ({', '.join(_key(table))})")
        comment = "Indicators as of a bar's close: one row per bar, one column per indicator; NULL: none yet."
        return _table(table.schema_name, name, columns, checks, comment)
    columns[table.name] = 'text collate "C" not null'
    columns[table.value] = "double precision"
    *first, stamp = _key(table)
    checks.append(f"primary key ({', '.join([*first, stamp, _quote(table.name)])})")
    comment = "Indicators as of a bar's close: one row per bar and indicator; NULL: no value yet."
    # One indicator of one symbol in order of time; the primary key serves all of them, page by page.
    index = ", ".join([*first, _quote(table.name), stamp])
    more = f"  create index on {_quote(table.schema_name, name)} ({index});\n"
    return _table(table.schema_name, name, columns, checks, comment, more)


def _key_columns(table: BarsTable | IndicatorsTable) -> dict[str, str]:
    # Ordered by bytes: keys compare fast, and alike whatever the server's locale.
    columns = {table.symbol: 'text collate "C" not null'}
    if table.timeframe is not None:
        columns[table.timeframe] = 'text collate "C" not null'
    return columns | {table.timestamp: "timestamptz not null"}


def _key(table: BarsTable | IndicatorsTable) -> list[str]:
    return [_quote(name) for name in (table.symbol, table.timeframe, table.timestamp) if name is not None]


def _table(
    schema: str, name: str, columns: dict[str, str], checks: list[str], comment: str, more: str = ""
) -> str:
    lines = [f"{_quote(column)} {kind}" for column, kind in columns.items()]
    table = _quote(schema, name)
    body = ",\n    ".join([*lines, *checks])
    tag = "$make$"
    while tag in table + body:  # a name may hold it
        tag = tag.replace("make", "make_")
    return _TABLE.format(
        text=_literal(table), table=table, columns=body, comment=_literal(comment), more=more, tag=tag
    )


def _check_once(section: str, fields: dict[str, str | None]) -> None:
    taken: dict[str, str] = {}
    for field, column in fields.items():
        if column is None:
            continue
        if column in taken:
            raise HpcrlError(
                f"{section}.{field} and {section}.{taken[column]} are both the column {column!r}"
            )
        taken[column] = field


def _quote(*names: str) -> str:
    for name in names:
        if not name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise HpcrlError(f"{name!r:.80} is no name that PostgreSQL can hold: 1 to {LONGEST_NAME} bytes")
    return sql.Identifier(*names).as_string()


def _literal(text: str) -> str:
    return sql.Literal(text).as_string()
