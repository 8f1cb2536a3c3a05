"""Replay's table form: bars, weights and costs as tables instead of one JSON case.

Bars: timestamp, symbol, open, high, low, close, volume and, where wanted, sigma, split, dividend, delist,
halted. The grid is every timestamp that any symbol has; a symbol without a row there (or with four empty
prices) has no bar. Weights: timestamp, symbol, weight; a weight counts from the close of its bar until the
symbol's next row, and before its first row a symbol is flat. Costs: the keys of a case's ``config``.

Timestamps are ISO 8601 or whole unix seconds; ISO without a zone counts as UTC, in both tables or in none.
Nothing is repaired, sorted or dropped: a mistake is an HpcrlError that names file, line, symbol and value.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.config.yaml_file import read_mapping
from hpcrl.evaluate.case import (
    BAR_DEFAULTS,
    BAR_KEYS,
    LAST_TS,
    PRICES,
    Case,
    check_known,
    fail,
    quote,
    read_bar,
    read_number,
    read_rules,
)
from hpcrl.market.files import read_table

BAR_COLUMNS = ("timestamp", "symbol", *PRICES, "volume")
WEIGHT_COLUMNS = ("timestamp", "symbol", "weight")
ACCOUNT = ("cash", "equity", "equity_raw", "fees", "spread_cost", "impact_cost", "financing", "dividends")
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.IGNORECASE | re.ASCII
)
_HALTED = {"true": True, "1": True, "false": False, "0": False}


def case_of_tables(
    bars: pd.DataFrame | str | Path, weights: pd.DataFrame | str | Path, costs: dict | str | Path
) -> Case:
    """The case that the tables make; files or frames, a file or a dictionary. HpcrlError as above."""
    costs_name = "costs" if isinstance(costs, dict) else str(costs)
    config = costs if isinstance(costs, dict) else read_mapping(costs)
    bar_rows = _Rows(bars, "bars", BAR_COLUMNS, BAR_KEYS)
    ts_B, assets, columns = _read_bars(bar_rows)
    rules = read_rules(config, costs_name, assets)
    weight_TA = _read_weights(_Rows(weights, "weights", WEIGHT_COLUMNS), bar_rows, ts_B, assets)[:-1]
    return Case.of(bar_rows.name, rules, assets, ts_B, columns, weight_TA)


@dataclass
class _Rows:
    """The rows of one table, in order, each with the words by which an error names it."""

    table: pd.DataFrame | str | Path
    what: str
    needed: tuple[str, ...]
    known: tuple[str, ...] = ()
    name: str = ""
    zone: str = ""  # whether the stamps carry one: "with" or "without"; unix seconds say neither
    _seconds: dict[Any, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
        """(where, unix seconds, symbol, other cells that are not empty) of every row."""
        frame, line = self._frame()
        columns = [column for column in frame.columns if column not in ("timestamp", "symbol")]
        number = frame["_line"].tolist() if "_line" in frame.columns else range(len(frame))
        cells = [_cells(frame[column]) for column in columns if column != "_line"]
        names = [column for column in columns if column != "_line"]
        last: dict[str, tuple[int, str]] = {}
        rows = zip(number, _cells(frame["timestamp"]), _cells(frame["symbol"]), *cells, strict=True)
        for n, stamp, given, *values in rows:
            where = f"{self.name}, {line} {n}"
            symbol = str(given).strip() if isinstance(given, (str, int)) and given is not True else ""
            if not symbol:
                raise fail(where, f"symbol = {quote(given)} is no name; give a text such as MSFT")
            ts = self._unix(stamp, f"{where}, {symbol}")
            if symbol in last and ts <= last[symbol][0]:
                again = "again, as in" if ts == last[symbol][0] else "which is before"
                raise fail(f"{where}, {symbol}", f"timestamp = {quote(stamp)} {again} {last[symbol][1]}")
            last[symbol] = (ts, f"{line} {n}")
            where = f"{where}, {symbol} at {iso(ts)}"
            yield where, ts, symbol, {k: v for k, v in zip(names, values, strict=True) if v is not None}

    def _frame(self) -> tuple[pd.DataFrame, str]:
        if isinstance(self.table, pd.DataFrame):
            self.name, frame, line = self.what, self.table, "row"
        else:
            self.name, frame = str(self.table), read_table(self.table)
            line = "line" if self.name.lower().endswith(".csv") else "row"
        found = [column for column in frame.columns if column != "_line"]
        check_known(found, tuple(dict.fromkeys((*self.needed, *self.known))), self.name, "column")
        for column in self.needed:
            if column not in found:
                needed = ", ".join(self.needed)
                raise fail(self.name, f"column {column!r} is missing; {self.what} need {needed}")
        if frame.empty:
            raise fail(self.name, "has a header but no rows")
        return frame, line

    def _unix(self, cell: Any, where: str) -> int:
        if isinstance(cell, bool) or not isinstance(cell, (str, int, float, datetime)):
            raise fail(where, f"timestamp = {quote(cell)} is no point in time")
        if cell not in self._seconds:
            self._seconds[cell] = self._read_stamp(cell, where)
        return self._seconds[cell]

    def _read_stamp(self, cell: Any, where: str) -> int:
        if isinstance(cell, str) and not re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", cell):
            try:
                if not _ISO.fullmatch(cell.strip()):  # fromisoformat itself lets much through
                    raise ValueError
                cell = datetime.fromisoformat(cell.strip())
            except ValueError:
                said = (
                    f"timestamp = {quote(cell)} is neither ISO 8601 (2022-04-18T16:00:00Z) nor unix seconds"
                )
                raise fail(where, said) from None
        if isinstance(cell, datetime):
            zone = "without" if cell.tzinfo is None else "with"
            self.zone = self.zone or zone
            if zone != self.zone:
                raise fail(where, f"timestamp = {cell} is {zone} a zone, those before it {self.zone} one")
            seconds = cell.replace(tzinfo=cell.tzinfo or UTC).timestamp()
        elif isinstance(cell, str) and re.fullmatch(r"(19|20)\d{6}", cell.strip()):
            raise fail(where, f"timestamp = {quote(cell)} is a date without dashes; write 2022-04-18")
        else:
            seconds = read_number(cell, where, "timestamp")
        if seconds != int(seconds):
            raise fail(where, f"timestamp = {cell} must be whole seconds")
        if abs(seconds) > LAST_TS:
            raise fail(where, f"timestamp = {cell} must be unix seconds; this is after the year 5000")
        return int(seconds)


def _cells(column: pd.Series) -> list[Any]:
    """Plain Python values, None where empty."""
    cells = column.astype(object).where(column.notna(), None).tolist()
    return [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]


def iso(ts: int) -> str:
    """2022-04-18T16:00:00Z"""
    return datetime.fromtimestamp(ts, UTC).isoformat().replace("+00:00", "Z")


def _read_bars(rows: _Rows) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """The grid, the symbols in order of appearance, and [B, A] of every bar key."""
    read: list[tuple[int, int, dict[str, float]]] = []
    code: dict[str, int] = {}
    ended: set[str] = set()
    for where, ts, symbol, entry in rows:
        if "halted" in entry:
            entry["halted"] = _halted(entry["halted"], where)
        bar = read_bar(entry, where, symbol in ended)
        read.append((ts, code.setdefault(symbol, len(code)), bar))
        if "delist" in bar:
            ended.add(symbol)
    ts_B = np.unique(np.array([ts for ts, _, _ in read], dtype=np.int64))
    row_R = np.searchsorted(ts_B, [ts for ts, _, _ in read])
    columns = {key: np.full((len(ts_B), len(code)), BAR_DEFAULTS.get(key, np.nan)) for key in BAR_KEYS}
    for b, (_, a, bar) in zip(row_R.tolist(), read, strict=True):
        for key, value in bar.items():
            columns[key][b, a] = value
    return ts_B, list(code), columns


def _halted(cell: Any, where: str) -> bool:
    word = str(cell).strip().lower().removesuffix(".0")
    if word not in _HALTED:
        raise fail(where, f"halted = {quote(cell)} must be true or false")
    return _HALTED[word]


def _read_weights(rows: _Rows, bars: _Rows, ts_B: np.ndarray, assets: list[str]) -> np.ndarray:
    """[B, A]: each weight carried forward, 0 before the first."""
    weight_BA = np.full((len(ts_B), len(assets)), np.nan)
    place = {int(ts): b for b, ts in enumerate(ts_B)}
    code = {asset: a for a, asset in enumerate(assets)}
    for where, ts, symbol, entry in rows:
        if bars.zone and rows.zone and rows.zone != bars.zone:
            raise fail(where, f"the timestamp is {rows.zone} a zone, those of {bars.name} {bars.zone} one")
        if symbol not in code:
            near = difflib.get_close_matches(symbol, assets, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(assets[:10])}"
            raise fail(where, f"symbol {quote(symbol)} is not in {bars.name}; {hint}")
        if ts not in place:
            raise fail(where, f"{iso(ts)} is no bar of {bars.name}{_neighbours(ts, ts_B)}")
        if "weight" not in entry:
            raise fail(where, "weight is empty; 0 is flat, and a weight holds until the symbol's next row")
        weight_BA[place[ts], code[symbol]] = read_number(entry["weight"], where, "weight")
    return pd.DataFrame(weight_BA).ffill().fillna(0.0).to_numpy(copy=True)


def _neighbours(ts: int, ts_B: np.ndarray) -> str:
    b = int(np.searchsorted(ts_B, ts))
    if b in (0, len(ts_B)):
        return f", which reach from {iso(int(ts_B[0]))} to {iso(int(ts_B[-1]))}"
    return f"; the nearest are {iso(int(ts_B[b - 1]))} and {iso(int(ts_B[b]))}"


def _ledger_columns(case: Case) -> list[str]:
    per_asset = [
        f"{key}:{asset}" for asset in case.assets for key in ("position", "qty", "price", "commission")
    ]
    return ["bar", "timestamp", *ACCOUNT, "reward", "flags", *per_asset]


def _ledger_lines(ledger: dict, case: Case) -> Iterator[dict[str, Any]]:
    for row in ledger["rows"]:
        line = {key: row[key] for key in ("bar", *ACCOUNT, "reward")}
        line |= {"timestamp": iso(int(case.ts_B[row["bar"]])), "flags": " ".join(row["flags"])}
        line |= {f"position:{asset}": value for asset, value in row["position"].items()}
        for fill in row["fills"]:
            line |= {f"{key}:{fill['asset']}": fill[key] for key in ("qty", "price", "commission")}
        yield line


def ledger_csv(ledger: dict, case: Case) -> str:
    """The ledger as CSV, one row per bar, numbers with every digit of their float64.

    Columns: bar, timestamp, the account's fields, flags (joined by spaces), then of each asset its position
    and the fill of the step: qty (signed), price, commission, empty where there was none.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _ledger_columns(case), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_ledger_lines(ledger, case))
    return text.getvalue()


def ledger_frame(ledger: dict, case: Case) -> pd.DataFrame:
    """The ledger as ``ledger_csv``'s columns: timestamps in UTC, NaN where there was no fill (and for the
    first row's reward)."""
    frame = pd.DataFrame(list(_ledger_lines(ledger, case)), columns=_ledger_columns(case))
    numbers = [column for column in frame if column not in ("bar", "timestamp", "flags")]
    return frame.assign(timestamp=pd.to_datetime(frame["timestamp"], utc=True)).astype(
        dict.fromkeys(numbers, np.float64)
    )
