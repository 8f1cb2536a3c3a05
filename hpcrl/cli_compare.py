"""``hpcrl compare``: several policies on the same bars, and whether they differ beyond noise.

hpcrl compare checkpoints/dist_run_A checkpoints/dist_run_B               on the sealed test split
hpcrl compare checkpoints/pbt_A checkpoints/dist_run_B --split validation
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|POPULATION...", help="Run folders, checkpoints, ONNX files, populations."
        ),
    ],
    split: Annotated[
        str, typer.Option(help="train, validation, or test (sealed: the opening is logged, once for all).")
    ] = "test",
    members: Annotated[
        bool, typer.Option("--members", help="All members of a population, not its best by validation alone.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="HDF5 file to play instead of the runs' own.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to write; default: comparison_SPLIT.png beside the first run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play several policies over the same bars: table, differences with paired intervals, plot.

    Runs that differ by their seed only are grouped. Sharpe ratios are deflated by the trials of everything
    that is compared; of a population the probability of overfitting is shown.
    """
    from hpcrl.evaluate.compare import compare as compare_runs
    from hpcrl.evaluate.compare_plot import comparison_path, write_comparison_plot
    from hpcrl.evaluate.compare_table import print_comparison

    path = comparison_path(plot, runs, split)
    result = compare_runs(runs, split, data=data, members=members)
    print_comparison(result, write_comparison_plot(result, path), as_json)
