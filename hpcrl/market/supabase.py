"""Bars and indicators from Supabase, or any PostgREST, by supabase-py: a ``Source``.

``prepare`` downloads several symbols at once into a spool beside the output; ``bars`` and ``indicator`` read
from there, so that memory stays small and a killed staging goes on where it stopped. Whole or an error
(``supabase_pages``); what is tried again and what is refused: ``supabase_http``. One table of indicators may
have a row for each (long) or a column for each (wide); a default one that does not exist is none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import numpy as np
from pydantic import SecretStr

from hpcrl.config.secrets import check_key
from hpcrl.config.tables import Tables
from hpcrl.market.source import Columns, Progress, Span
from hpcrl.market.spool import Part, Spool
from hpcrl.market.supabase_fetch import Fetch, columns_of
from hpcrl.market.supabase_http import Rest
from hpcrl.market.supabase_pages import Report, quoted
from hpcrl.market.supabase_tables import Found, find_bars, find_indicators
from hpcrl.types import RunFailed

MOST_SYMBOLS = 100
"""Looked up, one request each, for an error message."""
END_SECONDS = 2.0
"""A thread is waited for when all stop; then it is left to its time-out, and may write no more."""

Job = tuple[str, str, Span]
"""bars or indicators, a symbol, and of which time."""


class Supabase:
    """``key``: of the role service_role. ``spool``: a folder beside the output, made when rows arrive.

    ``connections``: symbols at a time. ``patience_seconds``: how long one request may fail. ``indicators``:
    fetch them, too; features that are no columns of the bars are looked for there in any case.
    """

    kind = "supabase"

    def __init__(
        self,
        url: str,
        key: SecretStr,
        tables: Tables,
        timeframe: str,
        spool: Path,
        features: tuple[str, ...] = (),
        timezone: str | None = None,
        *,
        indicators: bool = True,
        page_rows: int = 10_000,
        connections: int = 4,
        requests_per_second: float = 20.0,
        patience_seconds: float = 300.0,
    ) -> None:
        self._rest = Rest(url, key, connections, requests_per_second, patience_seconds)
        check_key(key, url)
        self._tables, self._timeframe, self._timezone = tables, timeframe, timezone
        self._features, self._wants_indicators = features, indicators
        self._connections = connections
        self._fetcher = Fetch(self._rest, Spool(spool), timeframe, page_rows)
        self._found: dict[str, Found] = {}
        """bars and, where there are any, indicators."""
        self._empty = False
        self._ready: dict[tuple[str, str], tuple[Part, Span]] = {}

    def __reduce__(self) -> NoReturn:
        raise TypeError("a source is not pickled: it holds a key")

    def open(self) -> None:
        self._rest.open()
        bars = find_bars(self._rest, self._tables.bars, self._features, self._timezone)
        if bars is None:
            self._empty = True
            return
        self._found["bars"] = bars
        elsewhere = [name for name in self._features if name not in bars.columns]
        if self._wants_indicators or elsewhere:
            found = find_indicators(self._rest, self._tables.indicators, self._timezone)
            if found is not None:
                self._found["indicators"] = found

    def is_empty(self) -> bool:
        return self._empty

    def symbols(self) -> list[str] | None:
        table = self._tables.bars
        found: list[str] = []
        while len(found) <= MOST_SYMBOLS:
            query = self._rest.table(table.schema_name, table.table).select(quoted(table.symbol))
            if table.timeframe is not None:
                query = query.eq(table.timeframe, self._timeframe)
            if found:
                query = query.gt(table.symbol, found[-1])
            answer = self._rest.read(
                query.order(quoted(table.symbol)).limit(1), f"the symbols of {table.table}"
            )
            if not answer.rows or answer.rows[0][table.symbol] is None:
                return found
            found.append(str(answer.rows[0][table.symbol]))
        return None

    def count(self, symbol: str, span: Span) -> int:
        query = self._fetcher.query(self._found["bars"], symbol)
        return query.count(span, f"{symbol}, {query.table}")

    def fingerprint(self, symbol: str, span: Span) -> str | None:
        return None  # PostgREST sums up nothing unless a project allows it

    def prepare(self, wanted: dict[str, Span], progress: Progress) -> None:
        self._fetcher.spool.open()
        jobs = [(kind, symbol, span) for kind in self._found for symbol, span in wanted.items()]
        abouts = [self._fetcher.about(self._found[kind], symbol, span) for kind, symbol, span in jobs]
        self._fetcher.spool.keep_only(abouts)
        self._fetcher.tell_held((self._found[kind], symbol, span) for kind, symbol, span in jobs)
        self._fetch_all(jobs, progress)

    def _fetch_all(self, jobs: list[Job], progress: Progress) -> None:
        fetches = [partial(self._fetch, *job, tell) for job, tell in _told(jobs, progress)]
        _run(fetches, self._connections, self._rest.stopping)

    def bars(self, symbol: str, span: Span) -> Iterator[Columns]:
        names, done = list(self._found["bars"].columns), 0
        part = self._part("bars", symbol, span)
        for block in part.blocks(span):
            done += len(block)
            yield columns_of(block, names)
        if span == self._ready["bars", symbol][1] and done != part.rows:
            raise RunFailed(
                f"{symbol}: {part.rows:,} rows were fetched, {done:,} are in the spool; stage again"
            )

    def indicator_names(self, symbol: str, span: Span) -> list[str]:
        found = self._found.get("indicators")
        if found is None:
            return []
        part = self._part("indicators", symbol, span)
        return sorted(part.names if found.name else found.columns if part.rows else ())

    def indicator(self, symbol: str, name: str, span: Span) -> tuple[np.ndarray, np.ndarray]:
        stamps, values = [np.empty(0, np.int64)], [np.empty(0)]
        if (found := self._found.get("indicators")) is not None:
            part = self._part("indicators", symbol, span)
            names = part.names if found.name else list(found.columns)
            at = names.index(name) if name in names else -1
            for block in part.blocks(span) if at >= 0 else ():
                value = block["values"][:, 1 if found.name else at]
                there = ~np.isnan(value)
                if found.name:
                    there &= block["values"][:, 0] == at
                stamps.append(block["timestamp"][there].astype(np.int64))
                values.append(value[there])
        return np.concatenate(stamps), np.concatenate(values)

    def remove_spool(self) -> None:
        """The data set is written: what was fetched for it is needed no more."""
        self._ready.clear()
        self._fetcher.spool.remove()

    def close(self) -> None:
        self._rest.close()
        self._fetcher.spool.close()

    def _fetch(self, kind: str, symbol: str, span: Span, tell: Report) -> None:
        part = self._fetcher.read(self._found[kind], symbol, span, tell)
        if kind == "bars":
            self._fetcher.query(self._found[kind], symbol).refuse_unstamped(symbol)
        self._ready[kind, symbol] = part, span

    def _part(self, kind: str, symbol: str, span: Span) -> Part:
        """Fetched by ``prepare``; else now."""
        part, held = self._ready.get((kind, symbol), (None, Span()))
        if part is None or not _inside(span, held):
            self._fetcher.spool.open()
            self._fetch_all([(kind, symbol, span)], lambda *_: None)
            part, _ = self._ready[kind, symbol]
        return part


def _inside(span: Span, held: Span) -> bool:
    starts = held.start_ns is None or (span.start_ns is not None and span.start_ns >= held.start_ns)
    return starts and (held.end_ns is None or (span.end_ns is not None and span.end_ns <= held.end_ns))


def _told(jobs: list[Job], progress: Progress) -> Iterator[tuple[Job, Report]]:
    """Each job with a callback that tells its symbol's rows of all kinds together."""
    lock = threading.Lock()
    counts: dict[str, dict[str, tuple[int, int]]] = {symbol: {} for _, symbol, _ in jobs}
    for job in jobs:

        def tell(rows: int, total: int, job: Job = job) -> None:
            kind, symbol, _ = job
            with lock:
                counts[symbol][kind] = (rows, total or rows)
                done, all_rows = map(sum, zip(*counts[symbol].values(), strict=True))
                progress(symbol, done, all_rows if total or not rows else 0)

        yield job, tell


def _run(jobs: Sequence[Callable[[], None]], threads: int, stopping: threading.Event) -> None:
    """All jobs, several at once; the first failure, or a signal that raises, stops the others.

    Daemon threads: those of a ThreadPoolExecutor would be waited for at the end of the process, a minute
    long where a server does not answer.
    """
    left, ends = deque(jobs), SimpleQueue[BaseException | None]()

    def work() -> None:
        try:
            while not stopping.is_set():
                try:
                    job = left.popleft()
                except IndexError:
                    break
                job()
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    running = [
        threading.Thread(target=work, name=f"fetch {number}", daemon=True)
        for number in range(min(threads, len(jobs)))
    ]
    try:
        for thread in running:
            thread.start()
        for _ in running:
            error = ends.get()
            if error is not None:
                raise error
    except BaseException:
        stopping.set()
        for thread in running:
            thread.join(END_SECONDS / len(running))
        raise
