"""``hpcrl watch``: a run or a population, live on the terminal.

hpcrl watch checkpoints/dist_run_20260102_030405          until Ctrl-C
hpcrl watch checkpoints/pbt_20260102_030405 --once        one page, for scripts
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    path: Annotated[Path, typer.Argument(metavar="RUN|POPULATION", help="A run folder or a population.")],
    once: Annotated[bool, typer.Option("--once", help="One page, then end; so it does on a pipe.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show how a run or a population trains, drawn anew as it goes on. Reads files, changes nothing."""
    from hpcrl.launch.watch import watch as show

    show(path, every, once)
