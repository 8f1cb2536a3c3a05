"""Bars from files into a database's table of bars: all of them, or none as far as the database can promise.

Rows that the table has with the same values are left alone. Other values for a stamp that it has are
refused, and named, unless they are to be replaced. Afterwards every row is read back: columns may be too
narrow for the numbers, and triggers may change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcrl.config.tables import BarsTable, Tables
from hpcrl.market.bars import ACTIONS
from hpcrl.market.clean import NAMED_ROWS, check_timezone, iso
from hpcrl.market.push_read import read_offer
from hpcrl.market.source import Columns, Progress, Span
from hpcrl.types import HpcrlError, RunFailed

CHUNK_ROWS = 50_000
"""Rows of one insertion."""


class Target(Protocol):
    """A table of bars of one timeframe that can be written. ``open`` first; errors as of a ``Source``."""

    tables: Tables
    kind: str
    """supabase or postgres."""
    whole: bool
    """Whether nothing at all is written before ``commit``; else ``insert`` writes for good."""

    def open(self, names: tuple[str, ...]) -> None:
        """Reach it, and check that the table takes ``names``: columns by our names, or own features.

        Unreachable; HpcrlError lists the columns found; one for a missing table says how to make it:
        `hpcrl stage schema | psql`.
        """

    def existing(self, symbol: str, span: Span) -> Iterator[Columns]:
        """Blocks of the rows there, in order of time: timestamp and the names of ``open``; NaN for NULL."""
        ...

    def insert(self, symbol: str, rows: Columns, replace: bool) -> int:
        """Write ``rows`` (timestamp and names, in order of time); NaN becomes NULL. Returns rows written.

        replace: every stamp is there, and its row gets these values; else none is there.
        """
        ...

    def commit(self) -> None:
        """Make all insertions last."""

    def rollback(self) -> None:
        """Undo all insertions, where ``whole``; after whatever went wrong, also before ``open``."""

    def close(self) -> None:
        """Give up connections; may be called twice, and without ``commit``."""


@dataclass(frozen=True)
class Pushed:
    """Rows of one symbol."""

    inserted: int = 0
    skipped: int = 0
    """There before, with the same values."""
    replaced: int = 0


@dataclass(frozen=True)
class PushResult:
    table: str
    symbols: dict[str, Pushed]
    dropped: dict[str, dict[str, Any]]
    """Kind -> count and first rows of the file that were left out: identical duplicates."""


def table_name(table: BarsTable) -> str:
    """As messages name it."""
    return f"{table.schema_name}.{table.table}"


def push(
    path: str | Path,
    target: Target,
    *,
    bar_seconds: int,
    timezone: str | None = None,
    symbols: tuple[str, ...] = (),
    replace: bool = False,
    features: tuple[str, ...] = (),
    price_adjustment: str = "unknown",
    progress: Progress | None = None,
) -> PushResult:
    """Write the bars of ``path`` (CSV, Parquet, a folder of them, or a market file of `hpcrl stage`).

    bar_seconds: of the target's timeframe. timezone: of stamps in the file that carry none.
    symbols: these only; empty: all. features: numeric columns of the file that the table has, too.
    progress: called with a symbol, its rows written so far, and those to write.
    HpcrlError: rows that staging would reject, other values in the table, or what it cannot hold.
    """
    if timezone is not None:
        check_timezone(timezone)
    table = target.tables.bars
    offer = read_offer(
        Path(path),
        table,
        bar_seconds=bar_seconds,
        timezone=timezone,
        symbols=symbols,
        features=features,
        price_adjustment=price_adjustment,
    )
    done = {}
    try:
        target.open(offer.names)
        plans = {symbol: _compare(target, symbol, rows) for symbol, rows in offer.symbols.items()}
        if not replace:
            _refuse_others(plans, offer.symbols, f"{path}: ", table)
        for symbol, rows in offer.symbols.items():
            done[symbol] = _write(target, symbol, rows, plans[symbol], progress)
            if done[symbol].inserted or done[symbol].replaced:
                _verify(target, symbol, rows)
        target.commit()
    except BaseException:
        target.rollback()
        raise
    finally:
        target.close()
    return PushResult(table_name(table), done, offer.dropped)


@dataclass(frozen=True)
class _Plan:
    """Rows of the file [R]: new to the table, or there with other values; the rest is there and equal."""

    new: np.ndarray
    other: np.ndarray
    found: list[tuple[int, str]]
    """The first of the others: stamp, and what the table has."""


def _compare(target: Target, symbol: str, rows: Columns) -> _Plan:
    """The table's rows of the same stamps against ``rows``, to the last bit."""
    stamps = rows["timestamp"]
    new, other = np.ones(len(stamps), dtype=bool), np.zeros(len(stamps), dtype=bool)
    found: list[tuple[int, str]] = []
    for there in target.existing(symbol, Span(int(stamps[0]), int(stamps[-1]) + 1)):
        place = np.searchsorted(stamps, there["timestamp"])
        known = stamps[place] == there["timestamp"]  # within bounds: the span ends at the last stamp
        place = place[known]
        new[place] = False
        for name in there:
            if name == "timestamp":
                continue
            held, given = _or_none(name, there[name][known]), _or_none(name, rows[name][place])
            for row in np.flatnonzero((held != given) & ~(np.isnan(held) & np.isnan(given))):
                other[place[row]] = True
                if len(found) < NAMED_ROWS:
                    stamp = int(stamps[place[row]])
                    found.append((stamp, f"{name} is {float(held[row])!r} there, {float(given[row])!r} here"))
    return _Plan(new, other, found)


def _or_none(name: str, values: np.ndarray) -> np.ndarray:
    """No split is a split of 1, no dividend one of 0: a table may have NULL for either."""
    return np.where(np.isnan(values), ACTIONS[name], values) if name in ACTIONS else values


def _refuse_others(plans: dict[str, _Plan], bars: dict[str, Columns], name: str, table: BarsTable) -> None:
    count = sum(int(plan.other.sum()) for plan in plans.values())
    if not count:
        return
    total = sum(len(rows["timestamp"]) for rows in bars.values())
    found = [f"  {symbol} at {iso(ns)}: {what}" for symbol, plan in plans.items() for ns, what in plan.found]
    head = (
        f"{name}{count:,} of {total:,} rows have other values in {table_name(table)}; nothing was written "
        "(--replace writes over them)"
    )
    raise HpcrlError("\n".join([head, *found[:NAMED_ROWS]]))


def _write(target: Target, symbol: str, rows: Columns, plan: _Plan, progress: Progress | None) -> Pushed:
    total, done = int(plan.new.sum() + plan.other.sum()), 0
    for mask, replace in ((plan.new, False), (plan.other, True)):
        chosen = np.flatnonzero(mask)
        for first in range(0, len(chosen), CHUNK_ROWS):
            part = chosen[first : first + CHUNK_ROWS]
            written = target.insert(symbol, {name: values[part] for name, values in rows.items()}, replace)
            if written < len(part):
                raise RunFailed(f"{target.kind}: {symbol}: {written:,} of {len(part):,} rows were written")
            done += len(part)
            if progress is not None:
                progress(symbol, done, total)
    return Pushed(int(plan.new.sum()), len(plan.new) - total, int(plan.other.sum()))


def _verify(target: Target, symbol: str, rows: Columns) -> None:
    """HpcrlError, RunFailed: the table does not hold what was written."""
    plan, table = _compare(target, symbol, rows), table_name(target.tables.bars)
    undone = "nothing was written" if target.whole else "the rows stay as they are now"
    if plan.new.any():
        stamp = iso(int(rows["timestamp"][np.flatnonzero(plan.new)[0]]))
        count = f"{int(plan.new.sum()):,} rows of {symbol}"
        raise RunFailed(f"{table}: {count} are not there after writing, the first at {stamp}; {undone}")
    if plan.other.any():
        ns, what = plan.found[0]
        raise HpcrlError(
            f"{table}: {symbol} at {iso(ns)} after writing: {what}: the column does not hold such numbers "
            f"(double precision does); {undone}"
        )
