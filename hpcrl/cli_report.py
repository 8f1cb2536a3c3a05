"""``hpcrl report``: a run, a checkpoint or a population as one HTML page that needs no network.

hpcrl report checkpoints/dist_run_20260102_030405 --open
hpcrl report checkpoints/pbt_20260102_030405                      the population, and its best member
hpcrl report checkpoints/dist_run_20260102_030405 --split test    opens the sealed split, and logs that
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder, a checkpoint_epoch_X.pt, a population, or policy.onnx."
        ),
    ],
    split: Annotated[
        str, typer.Option(help="validation, or test (sealed: the opening is logged).")
    ] = "validation",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML file; default: RUN/report_SPLIT[_epoch_N][_DATA].html."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    epoch: Annotated[
        int | None,
        typer.Option(
            min=0, help="Checkpoint to take; default: the newest, of a population that of its best record."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="HDF5 file to play instead of the run's own.")] = None,
) -> None:
    """Write one self-contained HTML page: results, trades, training, population, data, warnings."""
    from hpcrl.report.report import open_page, write_report

    written = write_report(run, split, out=out, epoch=epoch, data=data)
    if written.warning:
        print(f"warning: the page shows no evaluation: {written.warning}", file=sys.stderr, flush=True)
    print(written.path)
    if show and (told := open_page(written.path)):
        print(told, file=sys.stderr, flush=True)
