"""What the tests of reading over PostgREST share: an open source, and its rows against the database's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from pydantic import SecretStr
from servers.postgrest import Postgrest

from hpcrl.config.tables import Tables
from hpcrl.market.source import Columns, Span
from hpcrl.market.supabase import Supabase

BARS = ("open", "high", "low", "close", "volume")


def silent(*_: Any) -> None:
    pass


def new_source(server: Postgrest, folder: Path, tables: Any = None, **options: Any) -> Supabase:
    """Not open yet; without the limit of rate, and with little patience."""
    given = {
        "requests_per_second": 1e6,
        "patience_seconds": 3.0,
        "timeframe": "5Min",
        "key": server.key,
    } | options
    key, timeframe = SecretStr(given.pop("key")), given.pop("timeframe")
    names = Tables.model_validate(tables or {})
    url = given.pop("url", server.url)
    return Supabase(url, key, names, timeframe, folder / ".market.h5.parts", **given)


def opened(server: Postgrest, folder: Path, tables: Any = None, **options: Any) -> Supabase:
    source = new_source(server, folder, tables, **options)
    source.open()
    return source


def rows_of(source: Supabase, symbol: str, span: Span = Span()) -> Columns:
    """All blocks as one."""
    blocks = list(source.bars(symbol, span))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def same(found: Columns, frame: pd.DataFrame, names: tuple[str, ...] = BARS) -> None:
    """To the last bit, in order of time; rows of one stamp in any order."""
    stamps = pd.DatetimeIndex(frame["timestamp"]).as_unit("ns").asi8
    wanted = {"timestamp": stamps, **{name: frame[name].to_numpy(np.float64) for name in names}}
    assert list(found) == list(wanted)
    assert (np.diff(found["timestamp"]) >= 0).all()
    assert ordered(found) == ordered(wanted)


def ordered(columns: Mapping[str, np.ndarray]) -> list[bytes]:
    table = np.stack([np.ascontiguousarray(value).view(np.int64) for value in columns.values()], axis=1)
    return sorted(row.tobytes() for row in table)


def execute(server: Postgrest, *statements: str) -> None:
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def asked(server: Postgrest, symbol: str | None = None) -> list[dict[str, Any]]:
    """The requests so far, those of one symbol if it is named."""
    log = server.stats(log=True)["log"]
    return [entry for entry in log if symbol is None or entry["symbol"] == symbol]
