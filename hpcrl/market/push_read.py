"""What a file offers to a database's table of bars: judged as staging judges it, symbol by symbol.

Refuses what the table would not hold as it is: stamps finer than a microsecond, splits and dividends that no
column takes, bars of another length; and made-up bars, which a database would pass on as real ones.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.config.tables import BarsTable
from hpcrl.market.bars import ACTIONS
from hpcrl.market.clean import PRICES, iso, judge, typed
from hpcrl.market.files import REQUIRED, list_files, read_files
from hpcrl.market.source import Columns
from hpcrl.market.store import is_store, open_store
from hpcrl.market.synthetic import made_up
from hpcrl.types import HpcrlError

NEEDED = (*PRICES, "volume")
EXTRA = ("trade_count", "vwap")
"""Kept by the database only; no feature is made of them."""


@dataclass(frozen=True)
class Offer:
    symbols: dict[str, Columns]
    """timestamp (int64 ns UTC, rising) and ``names`` (float64); every symbol has a row."""
    names: tuple[str, ...]
    """Columns that the table takes."""
    dropped: dict[str, dict[str, Any]]
    """Kind -> count and first rows that were left out: identical duplicates."""


def read_offer(
    path: Path,
    table: BarsTable,
    *,
    bar_seconds: int,
    timezone: str | None,
    symbols: tuple[str, ...],
    features: tuple[str, ...],
    price_adjustment: str,
) -> Offer:
    """The bars of a CSV, Parquet or market file, or of a folder. HpcrlError names what is wrong with them."""
    for name in features:
        if name in REQUIRED or name in ACTIONS or name.startswith("_") or features.count(name) > 1:
            raise HpcrlError(f"feature {name!r}: this name is taken; rename the column")
    if path.is_file() and is_store(path):
        bars, names, dropped = _read_market_file(path, bar_seconds, symbols, features)
    else:
        bars, names, dropped = _read_tables(path, table, timezone, features, price_adjustment)
    missing = [symbol for symbol in symbols if symbol not in bars]
    if missing:
        raise HpcrlError(f"{path}: no rows for symbol {', '.join(missing)}; it has {', '.join(sorted(bars))}")
    bars = {symbol: bars[symbol] for symbol in (dict.fromkeys(symbols) if symbols else bars)}
    for symbol, rows in bars.items():
        _check_stamps(f"{path}: {symbol}", rows["timestamp"], bar_seconds)
        _check_actions(f"{path}: {symbol}", rows, table)
    names = tuple(name for name in names if name not in ACTIONS or getattr(table, name))
    bars = {symbol: {name: rows[name] for name in ("timestamp", *names)} for symbol, rows in bars.items()}
    return Offer(bars, names, dropped)


def _read_tables(
    path: Path, table: BarsTable, timezone: str | None, features: tuple[str, ...], price_adjustment: str
) -> tuple[dict[str, Columns], tuple[str, ...], dict[str, dict[str, Any]]]:
    there = _header(list_files(path)[0])
    extra = (name for name in EXTRA if getattr(table, name) and name in there and name not in features)
    columns = (*features, *extra)
    raw, files = read_files(path, columns)
    frame, dropped = judge(typed(raw, files, columns, timezone), files, columns, price_adjustment)
    names = (*NEEDED, *(name for name in ACTIONS if name in raw.columns), *columns)
    bars = {
        str(symbol): {name: rows[name].to_numpy() for name in ("timestamp", *names)}
        for symbol, rows in frame.groupby("symbol", sort=True)
    }
    return bars, names, dropped.summary()


def _header(file: Path) -> list[str]:
    """Names of a file's columns; none where it cannot be read, of which ``read_files`` says more."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        if file.suffix.lower() != ".csv":
            return list(pyarrow.parquet.read_schema(file).names)
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return [name.strip() for name in next(csv.reader(stream), [])]
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException):
        return []


def _read_market_file(
    path: Path, bar_seconds: int, symbols: tuple[str, ...], features: tuple[str, ...]
) -> tuple[dict[str, Columns], tuple[str, ...], dict[str, dict[str, Any]]]:
    if features:
        raise HpcrlError(
            f"{path}: a market file keeps its features rounded to 32 bits, so {', '.join(features)} cannot "
            "be pushed from it; push the CSV or Parquet file that it was made of"
        )
    names = (*NEEDED, *ACTIONS)
    bars: dict[str, Columns] = {}
    with open_store(path) as (header, stored):
        if made_up(header["source"]):
            raise HpcrlError(
                f"{path}: made-up bars ({header['source']}) do not go into a database of real ones"
            )
        if header["bar_seconds"] != bar_seconds:
            raise HpcrlError(
                f"{path}: its bars are {header['bar_seconds']} s long, those of the timeframe {bar_seconds} s"
            )
        for one in stored:
            if not symbols or one.symbol in symbols:
                values = {name: getattr(one, name)[one.present] for name in names}
                bars[one.symbol] = {"timestamp": one.ts[one.present], **values}
    return bars, names, {}


def _check_stamps(name: str, stamps: np.ndarray, bar_seconds: int) -> None:
    fine = stamps[stamps % 1000 != 0]
    if len(fine):
        raise HpcrlError(f"{name} at {iso(int(fine[0]))}: databases keep stamps to the microsecond only")
    apart = float(np.median(np.diff(stamps))) / 1e9 if len(stamps) > 1 else bar_seconds
    if apart < bar_seconds:
        raise HpcrlError(
            f"{name}: its bars are {apart:g} s apart, but those of the timeframe are {bar_seconds} s long; "
            "name the timeframe that they are of"
        )


def _check_actions(name: str, rows: Columns, table: BarsTable) -> None:
    for action, none in ACTIONS.items():
        if action not in rows or getattr(table, action):
            continue
        told = np.flatnonzero((rows[action] != none) & ~np.isnan(rows[action]))
        if len(told):
            raise HpcrlError(
                f"{name} at {iso(int(rows['timestamp'][told[0]]))}: {action} is "
                f"{rows[action][told[0]]:g}, but the table has no column for it; map one (bars.{action} in "
                "the file of --tables)"
            )
