"""What is wrong with a raw table of bars: named, counted, and never repaired in silence.

``typed`` turns the raw table into numbers; ``judge`` finds the rows that make it unusable (rejected: no
file is written) and the harmless ones (identical duplicates: dropped and reported). Off-grid stamps and
gaps need the exchange's calendar and are ``align``'s part. Stamps are int64 nanoseconds UTC.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.market.bars import ACTIONS, RawBars
from hpcrl.market.files import OPTIONAL
from hpcrl.types import HpcrlError

PRICES = ("open", "high", "low", "close")
NAMED_ROWS = 10
"""Rows that a verdict names; the counts cover all."""
YEARS = (1700, 2200)
"""Stamps outside are mistakes; int64 nanoseconds end in 2262."""
_ZONED = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?\s*(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"


@dataclass
class Verdicts:
    """Rows by kind of finding. ``rows`` holds (place in the input, description), at most NAMED_ROWS each."""

    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, dict]]] = field(default_factory=dict)

    def add(self, kind: str, frame: pd.DataFrame, files: list[str], what: Iterable[str] | str) -> None:
        """Count every row of ``frame`` under ``kind`` and name the first ones."""
        if frame.empty:
            return
        self.counts[kind] = self.counts.get(kind, 0) + len(frame)
        texts = [what] * len(frame) if isinstance(what, str) else list(what)
        named = self.rows.setdefault(kind, [])
        for (place, row), text in zip(frame.head(NAMED_ROWS - len(named)).iterrows(), texts, strict=False):
            named.append((int(place), {**locate(row, files), "what": text}))  # type: ignore[call-overload]

    def summary(self) -> dict[str, dict]:
        return {
            kind: {"count": count, "rows": [row for _, row in self.rows[kind]]}
            for kind, count in self.counts.items()
        }

    def refuse(self, name: str, total: int, why: str = "rejected; nothing was written") -> None:
        """HpcrlError naming counts and the first rows, if there is any finding."""
        if not self.counts:
            return
        first = sorted(((place, kind, row) for kind, rows in self.rows.items() for place, row in rows),
                       key=lambda item: item[0])[:NAMED_ROWS]  # fmt: skip
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        lines = [f"{name}: {counts} among {total:,} rows: {why}"]
        lines += [f"  {row['where']}, {row['symbol']} at {row['timestamp']}: {kind}: {row['what']}"
                  for _, kind, row in first]  # fmt: skip
        if sum(self.counts.values()) > len(first):
            lines.append("  ...")
        raise HpcrlError("\n".join(lines))


def locate(row: pd.Series, files: list[str]) -> dict[str, str]:
    """Where a row came from: file and line (of a database: the table), symbol, stamp."""
    stamp = row["timestamp"]
    if isinstance(stamp, (int, np.integer)):
        stamp = iso(int(stamp))
    if "_line" not in row.index:
        where = files[0]
    elif len(files) < 2:
        where = f"line {row['_line']}"
    else:
        where = f"{files[int(row['_file'])]} line {row['_line']}"
    return {"where": where, "symbol": str(row["symbol"]), "timestamp": str(stamp)}


def iso(ns: int) -> str:
    """2022-04-18T16:02:00Z, with a fraction only where there is one."""
    return pd.Timestamp(ns, tz="UTC").isoformat().replace("+00:00", "Z")


def typed(
    frame: pd.DataFrame, files: list[str], features: tuple[str, ...], timezone: str | None
) -> pd.DataFrame:
    """Numbers for text: ``timestamp`` as int64 ns UTC, values float64, defaults for the optional columns.

    HpcrlError: stamps without a zone (and no ``timezone``), unparsable fields, rows without a symbol.
    """
    name = ", ".join(files)
    bad = Verdicts()
    stamp = _stamps(frame["timestamp"], timezone, name)
    far = stamp.notna() & ~stamp.dt.year.between(*YEARS)
    bad.add("unparsable", frame[far], files, f"the timestamp is outside the years {YEARS[0]} to {YEARS[1]}")
    bad.add("unparsable", frame[stamp.isna()], files, "the timestamp is no point in time")
    no_symbol = frame["symbol"].isna() | (frame["symbol"].astype(str).str.strip() == "")
    bad.add("unparsable", frame[no_symbol], files, "no symbol")
    values = {}
    for column in [*PRICES, "volume", *features, *OPTIONAL]:
        if column not in frame.columns:
            values[column] = np.full(len(frame), ACTIONS[column])
            continue
        number = _numbers(frame[column])
        empty = frame[column].isna()
        wrong = number.isna() & (~empty if column in ACTIONS else True)
        found = frame.loc[wrong, column]
        what = (f"{column} is {'empty' if pd.isna(cell) else repr(cell)}" for cell in found.head(NAMED_ROWS))
        bad.add("unparsable", frame[wrong], files, what)
        values[column] = number.fillna(ACTIONS[column]) if column in ACTIONS else number
    bad.refuse(name, len(frame))
    out = pd.DataFrame(values, index=frame.index)
    out["timestamp"] = pd.DatetimeIndex(stamp).as_unit("ns").asi8
    out["symbol"] = frame["symbol"].astype(str).str.strip()
    out["_file"], out["_line"] = frame["_file"], frame["_line"]
    return out


def _numbers(column: pd.Series) -> pd.Series:
    """float64, NaN where a cell is no number: pandas would take true for 1, and a stamp for nanoseconds."""
    if column.dtype == object:
        number = (str, int, float, np.integer, np.floating, Decimal)
        column = column.where(
            column.map(lambda cell: isinstance(cell, number) and not isinstance(cell, bool))
        )
    elif pd.api.types.is_bool_dtype(column) or not (
        pd.api.types.is_numeric_dtype(column) or pd.api.types.is_string_dtype(column)
    ):
        return pd.Series(np.nan, index=column.index)
    return pd.to_numeric(column, errors="coerce").astype("float64")


def _not_epoch(value: Any, name: str) -> HpcrlError:
    """How to make stamps of numbers; the unit is a guess by size."""
    units = {1e11: "s", 1e14: "ms", 1e17: "us", math.inf: "ns"}
    unit = next(unit for limit, unit in units.items() if abs(float(value)) < limit)
    return HpcrlError(
        f"{name}: timestamps are numbers ({value}); if they are Unix time in {unit}, convert them first: "
        f"pandas.to_datetime(table['timestamp'].astype('int64'), unit='{unit}', utc=True)"
    )


def _stamps(column: pd.Series, timezone: str | None, name: str) -> pd.Series:
    """UTC stamps, NaT where unparsable."""
    if pd.api.types.is_numeric_dtype(column):
        raise _not_epoch(column.iloc[0], name)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column.dt.tz_convert("UTC")
    if pd.api.types.is_datetime64_dtype(column):
        return _localise(column, timezone, name)
    text = column.astype("str").str.strip()
    filled = column.notna() & (text != "")
    zoned = text.str.contains(_ZONED, regex=True, na=False)
    if (zoned | ~filled).all():
        return pd.to_datetime(text.where(filled), utc=True, errors="coerce", format="ISO8601")
    if zoned.any():
        odd = text[filled & ~zoned].iloc[0]
        raise HpcrlError(
            f"{name}: some timestamps carry a zone and some do not (such as {odd!r:.60}); make them alike"
        )
    if filled.any() and re.fullmatch(r"\d{9,}(\.\d+)?", text[filled].iloc[0]):
        raise _not_epoch(text[filled].iloc[0], name)
    naive = pd.to_datetime(text.where(filled), errors="coerce", format="ISO8601")
    if filled.any() and naive[filled].isna().all():
        raise HpcrlError(
            f"{name}: {text[filled].iloc[0]!r:.60} is no timestamp; write them as 2022-04-18T16:00:00Z"
        )
    return _localise(naive, timezone, name)


def _localise(naive: pd.Series, timezone: str | None, name: str) -> pd.Series:
    if timezone is None:
        raise HpcrlError(
            f"{name}: timestamps such as {naive.iloc[0]} carry no time zone; write 2022-04-18T16:00:00Z, "
            "or name the zone they are in (--timezone America/New_York)"
        )
    # The hour that a clock change skips or doubles has no certain UTC time: such rows are unparsable.
    return naive.dt.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT").dt.tz_convert("UTC")


def check_timezone(timezone: str) -> None:
    """HpcrlError unless pandas knows the zone."""
    try:
        pd.Timestamp("2024-01-01").tz_localize(timezone)
    except Exception as error:  # "", "." and "America" each raise another kind
        raise HpcrlError(
            f"timezone {timezone!r} is not known ({' '.join(str(error).split())}); "
            "use a name such as America/New_York"
        ) from None


def judge(
    frame: pd.DataFrame, files: list[str], features: tuple[str, ...], price_adjustment: str
) -> tuple[pd.DataFrame, Verdicts]:
    """Rows in (symbol, time) order without identical duplicates, and what was dropped.

    HpcrlError names every kind of unusable row, the counts and the first rows.
    """
    bad, dropped = Verdicts(), Verdicts()
    _judge_order(frame, files, bad)
    ordered = sift(frame, files, features, price_adjustment, bad, dropped)
    delisted = ordered["delist"].notna().groupby(ordered["symbol"]).cumsum() - ordered["delist"].notna()
    bad.add("after_delisting", ordered[delisted.to_numpy() > 0], files, "the symbol was delisted before")
    bad.refuse(", ".join(files), len(frame))
    return ordered, dropped


def sift(
    frame: pd.DataFrame,
    files: list[str],
    features: tuple[str, ...],
    price_adjustment: str,
    bad: Verdicts,
    dropped: Verdicts,
) -> pd.DataFrame:
    """Rows in (symbol, time) order, each stamp once; the wrong and the superfluous go to the two verdicts."""
    _judge_values(frame, files, features, price_adjustment, bad)
    code = frame["symbol"].astype("category").cat.codes.to_numpy()
    ordered = frame.iloc[np.lexsort((frame["timestamp"].to_numpy(), code))]
    again = ordered.duplicated(["symbol", "timestamp"], keep="first").to_numpy()
    table = ordered[[*PRICES, "volume", *features, *OPTIONAL]].to_numpy()
    same = np.r_[
        False, ((table[1:] == table[:-1]) | (np.isnan(table[1:]) & np.isnan(table[:-1]))).all(axis=1)
    ]
    bad.add("conflicting_duplicate", ordered[again & ~same], files, "an earlier row has other values")
    dropped.add("identical_duplicate", ordered[again & same], files, "the same bar again")
    return ordered[~again]


def raw_bars(ordered: pd.DataFrame, features: tuple[str, ...]) -> Iterator[RawBars]:
    """The symbols of a judged table, by name."""
    names = (*PRICES, "volume", *OPTIONAL, *features)
    for symbol, rows in ordered.groupby("symbol", sort=True):
        yield RawBars(
            str(symbol),
            rows["timestamp"].to_numpy(),
            {name: rows[name].to_numpy(dtype=np.float64) for name in names},
            rows["_file"].to_numpy(),
            rows["_line"].to_numpy(),
        )


def place_rows(raw: RawBars) -> pd.DataFrame:
    """``raw``'s rows as a verdict names them; their places are in the order of the input."""
    table = pd.DataFrame({"timestamp": raw.ts, "symbol": raw.symbol})
    if raw.file is None or raw.line is None:
        return table
    table["_file"], table["_line"] = raw.file, raw.line
    return table.set_index((raw.file.astype(np.int64) << 40) + raw.line)


def _judge_values(
    frame: pd.DataFrame, files: list[str], features: tuple[str, ...], price_adjustment: str, bad: Verdicts
) -> None:
    numbers = [*PRICES, "volume", *features, *OPTIONAL]
    infinite = pd.DataFrame(np.isinf(frame[numbers].to_numpy()), columns=numbers, index=frame.index)
    rows = infinite[infinite.any(axis=1)]
    bad.add(
        "infinite",
        frame.loc[rows.index],
        files,
        (f"{row.idxmax()} is infinite" for _, row in rows.head(NAMED_ROWS).iterrows()),
    )
    price = frame[list(PRICES)]
    low_price = frame[(price <= 0).any(axis=1)]
    bad.add("price_not_positive", low_price, files, _quote(low_price))
    top, bottom = price[["open", "close", "low"]].max(axis=1), price[["open", "close", "high"]].min(axis=1)
    crossed = frame[(price["high"] < top) | (price["low"] > bottom)]
    bad.add("ohlc_order", crossed, files, _quote(crossed))
    negative = frame[frame["volume"] < 0]
    bad.add("negative_volume", negative, files, (f"volume is {value:g}" for value in negative["volume"]))
    odd = frame[~(frame["split"] > 0)]
    bad.add(
        "bad_split",
        odd,
        files,
        (f"split is {value:g}; shares after / before, above 0" for value in odd["split"]),
    )
    if price_adjustment in ("splits", "splits_dividends"):
        twice = frame[frame["split"] != 1.0]
        bad.add(
            "split_twice",
            twice,
            files,
            f"a split, but the prices are said to be adjusted ({price_adjustment})",
        )
    odd = frame[frame["dividend"] < 0]
    bad.add("bad_dividend", odd, files, (f"dividend is {value:g}; at least 0" for value in odd["dividend"]))
    if price_adjustment == "splits_dividends":
        twice = frame[frame["dividend"] != 0.0]
        bad.add(
            "dividend_twice",
            twice,
            files,
            "a dividend, but the prices are said to be adjusted for dividends",
        )
    odd = frame[frame["delist"] < 0]
    bad.add("bad_delist", odd, files, (f"delist is {value:g}; a price >= 0" for value in odd["delist"]))


def _judge_order(frame: pd.DataFrame, files: list[str], bad: Verdicts) -> None:
    """Within a file, a symbol's stamps may not go backwards; files may come in any order."""
    symbol = frame["symbol"].astype("category").cat.codes.to_numpy().astype(np.int64)
    group = frame["_file"].to_numpy().astype(np.int64) * (symbol.max() + 1) + symbol
    order = np.argsort(group, kind="stable")
    stamp = frame["timestamp"].to_numpy()[order]
    back = np.r_[False, (np.diff(group[order]) == 0) & (np.diff(stamp) < 0)]
    rows, before = frame.iloc[order[back]], stamp[np.flatnonzero(back) - 1]
    bad.add("unsorted", rows, files, (f"after {iso(int(ns))}" for ns in before[:NAMED_ROWS]))


def _quote(rows: pd.DataFrame) -> Iterable[str]:
    cells = rows.head(NAMED_ROWS)[list(PRICES)].to_numpy()
    return ("open {:.12g}, high {:.12g}, low {:.12g}, close {:.12g}".format(*row) for row in cells)
