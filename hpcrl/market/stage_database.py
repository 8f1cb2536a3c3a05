"""From a database to one immutable HDF5 file: complete, or an error; made-up bars never in silence.

The fallback steps in where a database is out of reach or empty, never for part of the data, and never over
real bars. Secrets stay in the source; nothing of them reaches the file or a message.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from hpcrl.config.secrets import Secrets, conninfo
from hpcrl.market.align import present_columns
from hpcrl.market.bars import SymbolBars
from hpcrl.market.build import Build, StageResult, prepare_output
from hpcrl.market.calendar import DAY_NS, check_calendar
from hpcrl.market.clean import iso
from hpcrl.market.compare import check_names, compare_indicators
from hpcrl.market.quality import add_indicators
from hpcrl.market.read_rows import Rows
from hpcrl.market.request import DatabaseRequest
from hpcrl.market.source import Source, Span, Unreachable
from hpcrl.market.span import read_span
from hpcrl.market.stage import stage_synthetic
from hpcrl.market.store import is_store, read_header
from hpcrl.market.synthetic import SYMBOLS
from hpcrl.market.update import Update
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.tell import red

FALLBACK = "synthetic-fallback"
"""The ``source`` of made-up bars that stand in for a database's; it is stamped on all that comes of them."""
FALLBACK_BARS = 1000
"""Tradable bars per symbol."""


FUTURE_NS = 2 * DAY_NS
"""Beyond the last finished bar; less may be a clock that is wrong."""


class Rejected(HpcrlError):
    """Rows that were fetched whole cannot be used."""


class Empty(RunFailed):
    """The table of bars holds no row at all."""


def stage_supabase(secrets: Secrets, request: DatabaseRequest) -> StageResult:
    """Stage over PostgREST. HpcrlError, RunFailed: nothing was written."""
    out, span = _check(request)
    if secrets.supabase_url is None or secrets.supabase_key is None:
        missing = "SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are not set (environment or .env)"
        return stage_database(Unreachable(missing), request)
    from hpcrl.market.supabase import Supabase

    source = Supabase(
        secrets.supabase_url,
        secrets.supabase_key,
        request.tables,
        request.timeframe,
        spool_folder(out),
        features=request.features,
        timezone=request.timezone,
        indicators=request.indicators,
        page_rows=request.page_rows,
        connections=request.connections,
        requests_per_second=request.requests_per_second,
        patience_seconds=request.patience_seconds,
    )
    try:
        result = stage_database(source, request, span)
    except Rejected:
        source.remove_spool()  # the rows have to be put right, and then fetched anew
        raise
    source.remove_spool()
    return result


def stage_postgres(secrets: Secrets, dsn: str | None, request: DatabaseRequest) -> StageResult:
    """Stage by COPY. HpcrlError, RunFailed: nothing was written."""
    _, span = _check(request)
    target = conninfo(secrets, dsn)
    if target is None:
        missing = "neither DATABASE_URL (environment or .env) nor --dsn is given"
        return stage_database(Unreachable(missing), request)
    from hpcrl.market.postgres import Postgres

    source = Postgres(target, request.tables, request.timeframe, request.features, request.timezone)
    return stage_database(source, request, span)


def spool_folder(out: Path) -> Path:
    """Where a download waits for its end; a later run of the same query goes on from there."""
    return out.with_name(f".{out.name}.parts")


def _check(request: DatabaseRequest) -> tuple[Path, Span]:
    """All that can be refused before any connection."""
    _ = request.options
    check_names(request.tables.indicators.names)
    check_calendar(request.calendar)
    inputs = [] if request.update is None else [request.update]
    span = read_span(request.start, request.end)
    finished = request.finished(span).end_ns
    if span.start_ns is not None and finished is not None and span.start_ns >= finished:
        raise HpcrlError(
            f"--start {request.start} is after the last bar that can be finished ({iso(finished)})"
        )
    return prepare_output(request.out, inputs), span


def stage_database(
    source: Source | Unreachable, request: DatabaseRequest, span: Span | None = None
) -> StageResult:
    """Stage what ``request`` asks of ``source``, or the fallback where there is nothing to ask."""
    span = span or read_span(request.start, request.end)
    update = None
    if request.update is not None:
        update = Update.of(request, span)
        span = Span(update.start_ns, span.end_ns)
    if not request.symbols:
        request = request.with_symbols(update.symbols if update is not None else SYMBOLS)
    if isinstance(source, Unreachable):
        return _fallback(request, source)
    with closing(source):
        try:
            source.open()
            if source.is_empty():
                raise Empty(f"the table {request.tables.bars.table} holds no row")
        except (Unreachable, Empty) as reason:
            return _fallback(request, reason)
        return _stage(source, request, request.finished(span), update)


def _stage(source: Source, request: DatabaseRequest, span: Span, update: Update | None) -> StageResult:
    counts = _check_symbols(source, request, span)
    spans = {} if update is None else update.spans(source, request.symbols, span)
    for symbol in request.symbols:
        total = source.count(symbol, spans[symbol]) if symbol in spans else counts[symbol]
        request.progress(symbol, 0, total)
    source.prepare(dict.fromkeys(request.symbols, span) | spans, request.progress)
    try:
        return _build(source, request, span, spans, update)
    except RunFailed:
        raise
    except HpcrlError as error:
        raise Rejected(str(error)) from None


def _build(
    source: Source, request: DatabaseRequest, span: Span, spans: dict[str, Span], update: Update | None
) -> StageResult:
    """From the rows to the file; ``spans``: of the symbols that ``update`` goes on with."""
    options, table = request.options, request.tables.bars.table
    rows = Rows(table, options)
    received: dict[str, int] = {}
    fingerprints: dict[str, str | None] = {}
    query = {
        "table": table,
        "mapping": request.tables.bars.model_dump(),
        "timeframe": request.timeframe,
        "start": None if span.start_ns is None else iso(span.start_ns),
        "end": request.end,
        "symbols": list(request.symbols),
        "received": received,
        "fingerprints": fingerprints,
    }
    with Build(request.out, options, source.kind, [table], query) as build:
        build.dropped = rows.dropped
        for symbol in request.symbols:
            if update is not None and symbol in update.first_ns:
                raw, counted = update.go_on(source, symbol, span, rows, request.progress)
            else:
                raw, counted = rows.symbol(source, symbol, span)
            if raw is None or rows.bad.counts:
                continue  # the others are judged, too: one error names all bad rows
            tail, hand_over = raw.ts[-1000:].copy(), [raw]
            del raw  # of a million rows the stamps alone take 8 MB
            bars = build.add(hand_over.pop())
            # Rows up to the last bar, so that an update can ask whether there are still as many.
            received[symbol] = counted - int((tail > bars.ts[-1]).sum())
            fingerprints[symbol] = source.fingerprint(symbol, Span(span.start_ns, int(bars.ts[-1]) + 1))
            if request.indicators:
                _compare(source, request, bars, spans.get(symbol, span), build.report)
        rows.bad.refuse(table, rows.read)
        if update is not None:
            build.report["update"] = update.summary()
        return build.finish(rows.read)


def _compare(
    source: Source, request: DatabaseRequest, bars: SymbolBars, span: Span, report: dict[str, Any]
) -> None:
    """The database's indicators against recomputed ones, where it has any."""
    names = source.indicator_names(bars.symbol, span)
    if names:
        given = ((name, *source.indicator(bars.symbol, name, span)) for name in names)
        ts_R = bars.ts if bool(bars.present.all()) else bars.ts[bars.present]
        mapped = request.tables.indicators.names
        found = compare_indicators(present_columns(bars), ts_R, given, mapped)
        add_indicators(report, bars.symbol, found)


def _check_symbols(source: Source, request: DatabaseRequest, span: Span) -> dict[str, int]:
    """Rows of each symbol. RunFailed: of one there are none; HpcrlError: some are of the future."""
    counts = {symbol: source.count(symbol, span) for symbol in request.symbols}
    if request.end is None and span.end_ns is not None:
        _refuse_future(source, request, Span(span.end_ns + FUTURE_NS))
    missing = [symbol for symbol, count in counts.items() if not count]
    if not missing:
        return counts
    there = source.symbols()
    known = "" if there is None else f"; the table has {', '.join(there) or 'no symbol of this timeframe'}"
    bounds = [iso(ns) for ns in span if ns is not None]
    when = f"between {bounds[0]} and {bounds[1]}" if len(bounds) == 2 else f"before {bounds[-1]}"
    raise RunFailed(
        f"{request.tables.bars.table}: no rows for {', '.join(missing)} at timeframe {request.timeframe} "
        f"{when}{known}; nothing was written"
    )


def _refuse_future(source: Source, request: DatabaseRequest, span: Span) -> None:
    """Bars of days to come are stamped wrongly; left out in silence, they would be missing elsewhere."""
    for symbol in request.symbols:
        count = source.count(symbol, span)
        if count > 0:
            raise HpcrlError(
                f"{request.tables.bars.table}: {symbol}: {count:,} rows are stamped after "
                f"{iso(span.start_ns or 0)}, which is yet to come; put them right, or leave them out by --end"
            )


def _fallback(request: DatabaseRequest, reason: RunFailed) -> StageResult:
    """Made-up bars instead; RunFailed where they are not wanted, or real ones were begun or are there."""
    out, parts = request.out, spool_folder(request.out)
    if request.require_real:
        raise RunFailed(f"{reason}; real data are required (--require-real), nothing was written")
    if request.update is not None:
        raise RunFailed(f"{reason}; {request.update} cannot be updated, nothing was written")
    if parts.is_dir() and any(parts.iterdir()):
        raise RunFailed(
            f"{reason}; {parts} holds a part of the real data, so no made-up bars take their place: run it "
            "again when the database is back, or remove that folder"
        )
    if is_store(out) and (source := read_header(out)["source"]) != FALLBACK:
        raise RunFailed(
            f"{reason}; {out} holds bars of source {source}, which made-up ones do not replace; "
            "nothing was written"
        )
    shout = (
        f"NO REAL DATA: {reason}. Staging {FALLBACK_BARS:,} MADE-UP bars per symbol instead "
        f"(data_source: {FALLBACK}); no result from them says anything about a market. "
        "--require-real refuses this."
    )
    print(red(shout), file=sys.stderr, flush=True)
    return stage_synthetic(
        out,
        symbols=request.symbols,
        bars=FALLBACK_BARS,
        calendar=request.calendar,
        bar_seconds=request.bar_seconds,
        source=FALLBACK,
    )
