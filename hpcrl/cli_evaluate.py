"""``hpcrl evaluate``: what a policy earns on bars that it has not seen, and whether that is skill or luck.

hpcrl evaluate checkpoints/dist_run_20260102_030405 --split validation
hpcrl evaluate checkpoints/dist_run_20260102_030405/checkpoint_epoch_40.pt --json
hpcrl evaluate policy.onnx --data other_market.h5
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|ONNX",
            help="A run folder, a checkpoint_epoch_X.pt in one, or an exported .onnx file.",
        ),
    ],
    split: Annotated[
        str, typer.Option(help="train, validation, or test (sealed: openings are logged).")
    ] = "test",
    data: Annotated[Path | None, typer.Option(help="HDF5 file to play instead of the run's own.")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, help="Checkpoint to take; default: the newest.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to write; default: RUN/evaluation_SPLIT[_epoch_N][_DATA].png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play the deterministic policy over a held-out split, against baselines, after costs.

    Shows 95 % intervals and the Sharpe ratio deflated by the trials of the run's population.
    """
    from hpcrl.evaluate.evaluate import evaluate_run, print_evaluation
    from hpcrl.evaluate.plot import plot_path

    path = plot_path(plot, run, split, checkpoint_epoch=epoch, data=data)
    result = evaluate_run(run, split, checkpoint_epoch=epoch, data=data)
    print_evaluation(result, path, as_json)
