"""``hpcrl stage``: from a source of bars to one immutable HDF5 file, and from files to a database.

Verbs that know secrets (Supabase's key, a password) show no error that holds one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hpcrl.cli_options import Json, TablesFile, database_request, group, known_secrets, names
from hpcrl.types import HpcrlError

if TYPE_CHECKING:  # pydantic and numpy: not for --help
    from hpcrl.market.request import DatabaseRequest

stage_app = group("Stage market bars into one immutable HDF5 file.")

Out = Annotated[Path, typer.Option("--out", help="HDF5 file to make.")]
Symbols = Annotated[str, typer.Option(help="A,B,...; default: those of --update, else the six of synthetic.")]
Timeframe = Annotated[str, typer.Option(help="The database's name of the bars' length.")]
Start = Annotated[
    str | None, typer.Option(metavar="DATE", help="Its midnight UTC; or an ISO stamp (without a zone: UTC).")
]
End = Annotated[
    str | None,
    typer.Option(metavar="DATE", help="Its whole day UTC; or an ISO stamp (exclusive). Default: now."),
]
Features = Annotated[str, typer.Option(help="Further columns or indicators as features: a,b")]
Calendar = Annotated[str, typer.Option(help="Exchange calendar, or 24/7.")]
Timezone = Annotated[str | None, typer.Option(help="Zone of timestamps that carry none.")]
Adjusted = Annotated[str, typer.Option(help="unknown, unadjusted, splits or splits_dividends.")]
Strict = Annotated[bool, typer.Option("--strict", help="Reject what would be dropped or flagged.")]
RequireReal = Annotated[
    bool, typer.Option("--require-real", help="Fail rather than make up bars where there is no database.")
]
Update = Annotated[
    Path | None,
    typer.Option("--update", metavar="OLD.h5", help="Fetch what is new since this file was staged."),
]
Indicators = Annotated[
    bool, typer.Option("--indicators/--no-indicators", help="Compare the table of indicators with our own.")
]
Coverage = Annotated[
    bool, typer.Option("--coverage/--no-coverage", help="Draw what is there: a PNG beside the file.")
]
Dsn = Annotated[
    str | None,
    typer.Option("--dsn", help="Connection string without a password; default: DATABASE_URL."),
]


@stage_app.command("files")
def stage_files(
    path: Annotated[Path, typer.Option("--path", help="A CSV or Parquet file, or a folder of them.")],
    out: Out,
    calendar: Calendar = "XNYS",
    bar_seconds: Annotated[int, typer.Option(help="Seconds of a bar.")] = 300,
    features: Annotated[str, typer.Option(help="Further numeric columns as features: a,b")] = "",
    symbols: Annotated[str, typer.Option(help="Only these symbols: A,B")] = "",
    timezone: Timezone = None,
    computed: Annotated[bool, typer.Option(help="Compute the built-in features.")] = True,
    price_adjustment: Adjusted = "unknown",
    strict: Strict = False,
    coverage: Coverage = True,
    as_json: Json = False,
) -> None:
    """CSV and Parquet: columns timestamp, symbol, open, high, low, close, volume."""
    from hpcrl.market.stage import stage_files as run

    result = run(
        path,
        out,
        calendar=calendar,
        bar_seconds=bar_seconds,
        features=names(features, "--features"),
        symbols=names(symbols, "--symbols"),
        timezone=timezone,
        computed=computed,
        price_adjustment=price_adjustment,
        strict=strict,
        coverage=coverage,
    )
    _print_staged(result, as_json)


@stage_app.command("synthetic")
def stage_synthetic(
    out: Out,
    symbols: Annotated[str, typer.Option(help="A,B,...")] = "AAPL,MSFT,GOOGL,TSLA,NVDA,AMZN",
    bars: Annotated[int, typer.Option(min=1, help="Tradable bars per symbol; burn-in comes on top.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other bars.")] = 0,
    as_json: Json = False,
) -> None:
    """A random walk: for first steps and tests; no performance claim follows from it."""
    from hpcrl.market.stage import stage_synthetic as run

    _print_staged(run(out, symbols=names(symbols, "--symbols"), bars=bars, seed=seed), as_json)


@stage_app.command("planted")
def stage_planted(
    out: Out,
    task: Annotated[str, typer.Option(help="L0, L1, L2, L3, L4, L4b, L5 or control.")],
    bars: Annotated[int, typer.Option(min=1, help="Tradable bars per path; burn-in comes on top.")] = 1000,
    paths: Annotated[int, typer.Option(min=1, help="Separate paths, one symbol each.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other bars.")] = 0,
    as_json: Json = False,
) -> None:
    """A market whose best policy is known: does an agent learn it? No performance claim follows from it."""
    from hpcrl.market.stage import stage_planted as run

    _print_staged(run(out, task, bars=bars, paths=paths, seed=seed), as_json)


@stage_app.command("supabase")
def stage_supabase(
    out: Out,
    symbols: Symbols = "",
    timeframe: Timeframe = "5Min",
    start: Start = None,
    end: End = None,
    tables: TablesFile = None,
    features: Features = "",
    calendar: Calendar = "XNYS",
    timezone: Timezone = None,
    price_adjustment: Adjusted = "unknown",
    strict: Strict = False,
    require_real: RequireReal = False,
    update: Update = None,
    indicators: Indicators = True,
    coverage: Coverage = True,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Symbols fetched at once.")] = 4,
    requests_per_second: Annotated[float, typer.Option(min=0.01, max=1e6, help="Of all of them.")] = 20.0,
    patience: Annotated[
        float, typer.Option(min=0, max=1e9, metavar="SECONDS", help="To wait for a server that fails.")
    ] = 300.0,
    page_rows: Annotated[
        int, typer.Option(min=2, help="Asked for at a time; the server may give less.")
    ] = 10000,
    as_json: Json = False,
) -> None:
    """Over PostgREST: SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY from the environment or .env.

    Complete, or an error; run again, it goes on where it was. Without a database, or with an empty one,
    1,000 made-up bars per symbol, said in red and stamped, unless --require-real.
    """
    from hpcrl.config.secrets import SUPABASE

    request = database_request(tables, symbols, features, out=out, timeframe=timeframe, start=start, end=end,
                       calendar=calendar, timezone=timezone, price_adjustment=price_adjustment, strict=strict,
                       require_real=require_real, update=update, indicators=indicators, coverage=coverage,
                       connections=connections, requests_per_second=requests_per_second,
                       patience_seconds=patience, page_rows=page_rows)  # fmt: skip
    with _stoppable(out), known_secrets(SUPABASE) as secrets, _progress(request) as request:
        from hpcrl.market.stage_database import stage_supabase as run

        result = run(secrets, request)
    _print_staged(result, as_json)


@stage_app.command("postgres")
def stage_postgres(
    out: Out,
    dsn: Dsn = None,
    symbols: Symbols = "",
    timeframe: Timeframe = "5Min",
    start: Start = None,
    end: End = None,
    tables: TablesFile = None,
    features: Features = "",
    calendar: Calendar = "XNYS",
    timezone: Timezone = None,
    price_adjustment: Adjusted = "unknown",
    strict: Strict = False,
    require_real: RequireReal = False,
    update: Update = None,
    indicators: Indicators = True,
    coverage: Coverage = True,
    as_json: Json = False,
) -> None:
    """By COPY, for millions of bars: DATABASE_URL, or --dsn and PGPASSWORD (environment, .env) or ~/.pgpass.

    One snapshot, complete or an error. Without a database, or with an empty one: as supabase.
    """
    from hpcrl.config.secrets import POSTGRES

    _check_dsn(dsn, "postgres")
    request = database_request(tables, symbols, features, out=out, timeframe=timeframe, start=start, end=end,
                       calendar=calendar, timezone=timezone, price_adjustment=price_adjustment, strict=strict,
                       require_real=require_real, update=update, indicators=indicators,
                       coverage=coverage)  # fmt: skip
    with _stoppable(out), known_secrets(POSTGRES) as secrets, _progress(request) as request:
        from hpcrl.market.stage_database import stage_postgres as run

        result = run(secrets, dsn, request)
    _print_staged(result, as_json)


@stage_app.command("schema")
def stage_schema(tables: TablesFile = None) -> None:
    """SQL for tables that fit: hpcrl stage schema | psql "$DATABASE_URL", or into Supabase's SQL editor."""
    from hpcrl.config.load_tables import load_tables
    from hpcrl.market.schema import schema_sql

    print(schema_sql(load_tables(tables)), end="")


@stage_app.command("push")
def stage_push(
    file: Annotated[Path, typer.Argument(help="CSV, Parquet, a folder of them, or a file of hpcrl stage.")],
    to: Annotated[Literal["supabase", "postgres"], typer.Option("--to", help="Where to, and how.")],
    dsn: Dsn = None,
    timeframe: Timeframe = "5Min",
    tables: TablesFile = None,
    symbols: Annotated[str, typer.Option(help="Only these symbols: A,B")] = "",
    features: Annotated[str, typer.Option(help="Further numeric columns that the table has, too: a,b")] = "",
    timezone: Timezone = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over rows that are there with other values.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bars of a file into the database's own table; make it by hpcrl stage schema.

    Rows that are there already with the same values are left alone; with other values they are an error.
    """
    from hpcrl.config.secrets import POSTGRES, SUPABASE

    _check_dsn(dsn, to)
    request = database_request(tables, symbols, features, out=file, timeframe=timeframe, timezone=timezone)
    with (
        known_secrets(SUPABASE if to == "supabase" else POSTGRES) as secrets,
        _progress(request, "pushed") as request,
    ):
        from hpcrl.market.push_to import push_to as run

        result = run(to, secrets, dsn, file, request, replace)
    _print_pushed(result, as_json)


def _check_dsn(dsn: str | None, kind: str) -> None:
    """HpcrlError, before anything is read."""
    from hpcrl.config.dsn import check_dsn

    if dsn is not None:
        check_dsn(dsn)
        if kind != "postgres":
            raise HpcrlError("--dsn is for --to postgres; Supabase's address comes from SUPABASE_URL")


@contextlib.contextmanager
def _progress(request: DatabaseRequest, done: str = "fetched") -> Iterator[DatabaseRequest]:
    """The request with somebody who watches the rows arrive."""
    from dataclasses import replace

    from hpcrl.market.progress import show_progress

    with show_progress(done=done) as progress:
        yield replace(request, progress=progress)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is then cleaned up after as Ctrl-C is."""


@contextlib.contextmanager
def _never_ignored() -> Iterator[None]:
    """A KeyboardInterrupt that lands in a destructor, where Python ignores it, is raised once more."""
    ignored: list[BaseException] = []

    def again(_number: int, _frame: FrameType | None) -> None:
        raise ignored.pop()

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            ignored.append(unraisable.exc_value)
            signal.signal(signal.SIGALRM, again)
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # a little later: here it would be ignored too
        else:
            hook_before(unraisable)

    hook_before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        if ignored:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end it with one line, and the exit code that they have without any of this."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with _never_ignored():
            yield
    except KeyboardInterrupt as stop:
        from hpcrl.market.stage_database import spool_folder

        kept = spool_folder(out).is_dir()
        more = "what was fetched is kept, run it again to go on" if kept else "run it again to begin anew"
        print(f"stopped; {more}", file=sys.stderr, flush=True)
        if isinstance(stop, _Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_staged(result, as_json: bool) -> None:
    from rich.console import Console

    from hpcrl.market.quality import render_report

    if as_json:
        print(json.dumps({"path": str(result.path), "sha256": result.sha256, "report": result.report}))
        return
    Console().print(render_report(result.report))
    print(result.path)


def _print_pushed(result, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(result)))
        return
    for symbol, rows in result.symbols.items():
        replaced = f", {rows.replaced:,} replaced" if rows.replaced else ""
        told = f"{rows.inserted:,} rows written{replaced}, {rows.skipped:,} there before"
        print(f"{result.table} {symbol}: {told}")
    for kind, entry in result.dropped.items():
        print(f"left out: {entry['count']:,} {kind.replace('_', ' ')}")
