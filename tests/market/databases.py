"""Tables of bars for the tests that read or write a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from psycopg import sql
from pydantic import SecretStr

from hpcrl.config.tables import Tables
from hpcrl.market.postgres import Postgres
from hpcrl.market.schema import schema_sql

START_NS = 1_709_251_200_000_000_000  # 2024-03-01T00:00:00Z
STEP_NS = 300_000_000_000
NAMES = ("open", "high", "low", "close", "volume")
EXTREMES = (
    5e-324,
    2.2250738585072014e-308,
    0.1,
    1 / 3,
    1.0 + 2**-52,
    279.8599853515625,
    1e22,
    1.7976931348623157e308,
)
"""Prices whose bits are easily lost."""


def make_bars(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """timestamp int64 ns and values float64 that pass the tables' checks; all bits of the values in use."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(0.001 * rng.standard_normal(rows)))
    open_ = close * (1 + 0.001 * rng.standard_normal(rows))
    return {
        "timestamp": START_NS + STEP_NS * np.arange(rows),
        "open": open_,
        "high": np.maximum(open_, close) * 1.001,
        "low": np.minimum(open_, close) * 0.999,
        "close": close,
        "volume": rng.uniform(0, 1e6, rows),
    }


def make_tables(connection: Any, tables: Tables) -> None:
    """What `hpcrl stage schema` prints, run."""
    connection.execute(schema_sql(tables))


def fill(
    connection: Any,
    symbol: str,
    columns: dict[str, np.ndarray],
    timeframe: str = "5Min",
    table: str = "historical_bars",
) -> None:
    """Insert rows by psycopg's own COPY, value by value: no code of ours."""
    names = [sql.Identifier(name) for name in ("symbol", "timeframe", *columns)]
    query = sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(table), sql.SQL(", ").join(names))
    stamps = np.datetime_as_string(columns["timestamp"].view("datetime64[ns]").astype("datetime64[us]"))
    with connection.cursor().copy(query) as copy:
        for row, stamp in enumerate(stamps):
            rest = [float(value[row]) for name, value in columns.items() if name != "timestamp"]
            copy.write_row([symbol, timeframe, f"{stamp}Z", *rest])


def source(conninfo: str, tables: Tables | None = None, timeframe: str = "5Min", **options: Any) -> Postgres:
    return Postgres(SecretStr(conninfo), tables or Tables(), timeframe, **options)


def joined(blocks: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(blocks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
