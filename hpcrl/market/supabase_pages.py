"""One symbol of one table, read page by page over PostgREST until it is proved whole.

A server gives at most max-rows (often 1,000) and says nothing of the rest. So a page begins at the last stamp
of the one before, whose rows it replaces: neither a short page nor rows of one stamp that a page's end cuts
apart lose anything, and the end is only where a page brings no later stamp. The exact count is asked for
before and after and must be the rows received, else the symbol is read anew; then RunFailed with the counts.
Rows that change behind the reading without changing the count are not noticed: REST has no snapshot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from postgrest import CountMethod

from hpcrl.market.clean import iso
from hpcrl.market.source import Span
from hpcrl.market.spool import Part
from hpcrl.market.supabase_http import Answer, Refused, Rest
from hpcrl.market.supabase_rows import Clock
from hpcrl.types import HpcrlError, RunFailed

READINGS = 4
"""Once, and three times anew where the table changed meanwhile."""
MOST_REPEATS = 20
"""Stamps of a page that occur more often than they should and are counted one by one."""
PAGE_TRIES = 3
"""Of a page that ends too early: an answer may have been cut off."""
_NO_FLOAT = ("22P02", "22003", "22023", "42846")
"""PostgreSQL: text that is no number, out of range, JSON that is none, no cast."""

Report = Callable[[int, int], None]
"""Called with the rows so far and in all; in all 0: they are an earlier run's."""


def quoted(name: str) -> str:
    """A column's name as ``select`` and ``order`` take it."""
    if re.fullmatch(r"\w+", name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True)
class Query:
    """Rows of one symbol (where ``equal`` says so) between two stamps."""

    rest: Rest
    schema: str
    table: str
    stamp: str
    """The column; its rows come in order of it."""
    texts: tuple[str, ...]
    """Columns fetched as they are, beside the stamp."""
    numbers: tuple[str, ...]
    """Columns fetched as float8, so that a real or a numeric comes as the database's cast has it."""
    equal: tuple[tuple[str, str], ...]
    clock: Clock
    then: tuple[str, ...] = ()
    """Columns that order the rows of one stamp."""

    def columns(self, plain: bool) -> list[str]:
        cast = "" if plain else "::float8"
        texts, numbers = ((quoted(name) for name in names) for names in (self.texts, self.numbers))
        return [quoted(self.stamp), *texts, *(name + cast for name in numbers)]

    def filtered(self, builder: Any, span: Span) -> Any:
        for column, value in self.equal:
            builder = builder.eq(column, value)
        if span.start_ns is not None:
            builder = builder.gte(self.stamp, self.clock.spell(span.start_ns))
        if span.end_ns is not None:
            builder = builder.lt(self.stamp, self.clock.spell(span.end_ns))
        return builder

    def count(self, span: Span, what: str) -> int:
        builder = self.rest.table(self.schema, self.table).select(quoted(self.stamp), count=CountMethod.exact)
        return counted(self.rest.read(self.filtered(builder, span).limit(1), what), what)

    def refuse_unstamped(self, symbol: str) -> None:
        """A span leaves rows without a stamp out in silence. HpcrlError: there are some."""
        builder = self.rest.table(self.schema, self.table).select(quoted(self.stamp), count=CountMethod.exact)
        builder = self.filtered(builder, Span()).is_(self.stamp, "null")
        what = f"{symbol}, {self.table}: rows without a {self.stamp}"
        count = counted(self.rest.read(builder.limit(1), what), what)
        if count:
            raise HpcrlError(f"{symbol}: {count:,} rows of {self.table} have no {self.stamp} (NULL)")

    def page(self, span: Span, rows: int, count: bool, plain: bool, what: str) -> Answer:
        table = self.rest.table(self.schema, self.table)
        builder = table.select(*self.columns(plain), count=CountMethod.exact if count else None)
        builder = self.filtered(builder, span)
        for column in (self.stamp, *self.then):
            builder = builder.order(quoted(column))
        return self.rest.read(builder.limit(rows), what)


def counted(answer: Answer, what: str) -> int:
    if answer.total is None:
        raise RunFailed(
            f"{what}: the server told no exact count (header Content-Range), so that nothing could prove the "
            "rows complete"
        )
    return answer.total


class _Changed(Exception):
    """The table, or the server's mind, changed while it was read."""


class _Counts(NamedTuple):
    received: int
    before: int


class Reader:
    """Brings one query's rows into a part. ``label``: the symbol, for messages."""

    def __init__(
        self,
        query: Query,
        label: str,
        part: Part,
        span: Span,
        page_rows: int,
        records: Callable[[list[dict[str, Any]]], np.ndarray],
        report: Report,
    ) -> None:
        self._query, self._label, self._part, self._span = query, label, part, span
        self._page_rows, self._records, self._report = page_rows, records, report
        self._plain = False
        self._expected: int | None = None
        """By the count at the beginning."""
        self._largest = 0
        """Rows of the largest page."""

    def read(self) -> None:
        """Go on from what the part holds, to the end. RunFailed: it cannot be had whole."""
        if self._part.rows:
            self._report(self._part.rows, 0)
        why = ""
        for reading in range(READINGS):
            if reading:
                self._part.clear()
            try:
                counts = self._read_once()
            except _Changed as change:
                why = str(change)
                continue
            after = self._query.count(self._span, self._what())
            if counts.received == counts.before == after:
                self._part.finish()
                return
            why = f"expected {counts.before:,} rows ({after:,} at the end), received {counts.received:,}"
        raise RunFailed(
            f"{self._label}, {self._query.table}: {why}; read {READINGS} times. Either the table changes "
            "while it is read, or the server leaves rows out"
        )

    def _what(self) -> str:
        done = f"{self._part.rows:,}" + ("" if self._expected is None else f" of {self._expected:,}")
        return f"{self._label}, {self._query.table}: {done} rows received"

    def _read_once(self) -> _Counts:
        part, tries = self._part, 0
        held = part.pop_tail()
        """Rows of the last stamp so far: perhaps not all of them."""
        self._expected = None
        while True:
            rows = self._page(held)
            same = int(np.searchsorted(rows["timestamp"], held["timestamp"][0], "right")) if len(held) else 0
            received, expected = part.rows + len(rows), self._expected or 0
            ended, intact = len(rows) == same, _within(held, rows[:same])
            if not intact or (ended and received != expected):
                tries += 1
                if tries < PAGE_TRIES and received < expected:
                    continue
                raise self._not_whole(held, rows, intact)
            tries = 0
            if len(rows) == same:
                part.append(rows)
                self._tell(part.rows)
                return _Counts(part.rows, expected)
            cut = int(np.searchsorted(rows["timestamp"], rows["timestamp"][-1]))
            part.append(rows[:cut])
            held = rows[cut:].copy()
            self._tell(received)

    def _tell(self, received: int) -> None:
        self._report(received, max(received, self._expected or 0))

    def _page(self, held: np.ndarray) -> np.ndarray:
        """The records from ``held``'s stamp on; the first page's count completes what is expected."""
        first = self._expected is None
        start = int(held["timestamp"][0]) if len(held) else self._span.start_ns
        span = Span(start, self._span.end_ns)
        try:
            answer = self._query.page(span, self._page_rows, first, self._plain, self._what())
        except Refused as refusal:
            if self._plain or refusal.code not in _NO_FLOAT:
                raise
            self._plain = True  # uncast, the cell itself can be seen, and named
            return self._page(held)
        if first:
            self._expected = self._part.rows + counted(answer, self._what())
        try:
            rows = self._records(answer.rows)
        except HpcrlError as error:
            raise type(error)(f"{self._label}, {error}") from None
        except KeyError as missing:
            raise RunFailed(f"{self._what()}: a row came without the column {missing}") from None
        self._largest = max(self._largest, len(rows))
        stamps = rows["timestamp"]
        ends = (np.iinfo(np.int64).min if start is None else start, span.end_ns)
        if len(rows) and (
            (np.diff(stamps) < 0).any()
            or stamps[0] < ends[0]
            or (ends[1] is not None and stamps[-1] >= ends[1])
        ):
            raise _Changed(
                f"expected {self._expected or 0:,} rows, received {self._part.rows + len(rows):,}, "
                "out of order or outside what was asked for"
            )
        self._check_repeats(rows)
        return rows

    def _check_repeats(self, rows: np.ndarray) -> None:
        """A row given twice for one left out keeps the count: the server must have as many of a stamp."""
        stamps = rows["timestamp"]
        same = stamps[1:] == stamps[:-1]
        if self._query.then:  # the name's code: a row for each is as it should be
            same &= rows["values"][1:, 0] == rows["values"][:-1, 0]
        again = np.unique(stamps[1:][same])
        if not len(again):
            return
        spans = [(int(ns), int(ns)) for ns in again]
        if len(again) > MOST_REPEATS:
            spans = [(int(again[0]), int(again[-1]))]
        for first, last in spans:
            here = int(((stamps >= first) & (stamps <= last)).sum())
            there = self._query.count(Span(first, last + 1000), self._what())
            if here > there or (here < there and last < stamps[-1]):
                raise _Changed(f"expected {there:,} rows from {iso(first)} to {iso(last)}, received {here:,}")

    def _not_whole(self, held: np.ndarray, rows: np.ndarray, intact: bool) -> _Changed:
        received = f"expected {self._expected or 0:,} rows, received {self._part.rows + len(rows):,}"
        if not intact:
            return _Changed(
                f"{received}; those at {iso(int(held['timestamp'][0]))} changed between two pages"
            )
        if 1 < len(rows) == self._largest:
            when = iso(int(rows["timestamp"][0]))
            return _Changed(f"{received}; {len(rows):,} rows at {when} fill a page, and hide what follows")
        return _Changed(received)


def _within(held: np.ndarray, rows: np.ndarray) -> bool:
    """Whether every record of ``held`` is among ``rows``, as often, to the last bit."""
    if len(held) == 1 and len(rows) == 1:
        return held.tobytes() == rows.tobytes()
    return not Counter(row.tobytes() for row in held) - Counter(row.tobytes() for row in rows)
