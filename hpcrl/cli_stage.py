"""``hpcrl stage``: from a source of bars to one immutable HDF5 file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json

stage_app = typer.Typer(no_args_is_help=True, help="Stage market bars into one immutable HDF5 file.")

Out = Annotated[Path, typer.Option("--out", help="HDF5 file to make.")]


@stage_app.command("files")
def stage_files(
    path: Annotated[Path, typer.Option("--path", help="A CSV or Parquet file, or a folder of them.")],
    out: Out,
    calendar: Annotated[str, typer.Option(help="Exchange calendar, or 24/7.")] = "XNYS",
    bar_seconds: Annotated[int, typer.Option(help="Seconds of a bar.")] = 300,
    features: Annotated[str, typer.Option(help="Further numeric columns as features: a,b")] = "",
    symbols: Annotated[str, typer.Option(help="Only these symbols: A,B")] = "",
    timezone: Annotated[str | None, typer.Option(help="Zone of timestamps that carry none.")] = None,
    computed: Annotated[bool, typer.Option(help="Compute the built-in features.")] = True,
    price_adjustment: Annotated[
        str, typer.Option(help="unknown, unadjusted, splits or splits_dividends.")
    ] = "unknown",
    strict: Annotated[bool, typer.Option("--strict", help="Reject what would be dropped.")] = False,
    as_json: Json = False,
) -> None:
    """CSV and Parquet: columns timestamp, symbol, open, high, low, close, volume."""
    from hpcrl.market.stage import stage_files as run

    result = run(
        path,
        out,
        calendar=calendar,
        bar_seconds=bar_seconds,
        features=_names(features),
        symbols=_names(symbols),
        timezone=timezone,
        computed=computed,
        price_adjustment=price_adjustment,
        strict=strict,
    )
    _print_staged(result, as_json)


@stage_app.command("synthetic")
def stage_synthetic(
    out: Out,
    symbols: Annotated[str, typer.Option(help="A,B,...")] = "AAPL,MSFT,GOOGL,TSLA,NVDA,AMZN",
    bars: Annotated[int, typer.Option(min=1, help="Tradable bars per symbol; burn-in comes on top.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """A random walk: for first steps and tests; no performance claim follows from it."""
    from hpcrl.market.stage import stage_synthetic as run

    _print_staged(run(out, symbols=_names(symbols), bars=bars, seed=seed), as_json)


@stage_app.command("planted")
def stage_planted(
    out: Out,
    task: Annotated[str, typer.Option(help="L0, L1, L2, L3, L4, L4b, L5 or control.")],
    bars: Annotated[int, typer.Option(min=1, help="Tradable bars per path; burn-in comes on top.")] = 1000,
    paths: Annotated[int, typer.Option(min=1, help="Separate paths, one symbol each.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """A market whose best policy is known: does an agent learn it? No performance claim follows from it."""
    from hpcrl.market.stage import stage_planted as run

    _print_staged(run(out, task, bars=bars, paths=paths, seed=seed), as_json)


def _print_staged(result, as_json: bool) -> None:
    from rich.console import Console

    from hpcrl.market.quality import render_report

    if as_json:
        print(json.dumps({"path": str(result.path), "sha256": result.sha256, "report": result.report}))
        return
    Console().print(render_report(result.report))
    print(result.path)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
