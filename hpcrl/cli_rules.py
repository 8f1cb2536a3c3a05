"""``hpcrl bench rules``; cli_bench registers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json


def bench_rules(
    columns: Annotated[str, typer.Option(help="Numbers of columns, in turn.")] = "1,100,1000",
    bars: Annotated[int, typer.Option(help="Bars of each column.")] = 5_000,
    threads: Annotated[int, typer.Option(help="Threads of the simulator.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds; figures are their medians.")] = 3,
    peers: Annotated[
        Path | None,
        typer.Option(help="Python with vectorbt; default: .venv-peers (make peers) if it is there."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rules through the simulator, many columns at once: bar-steps per second, beside vectorbt."""
    from hpcrl.bench.rules import bench_rules as run
    from hpcrl.bench.rules import numbers, render

    result = run(numbers(columns), bars=bars, threads=threads, rounds=rounds, peers=peers)
    if as_json:
        print(json.dumps(result))
    else:
        from rich.console import Console

        Console().print(render(result))
