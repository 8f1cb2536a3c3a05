"""``hpcrl evaluate``: what a policy earns on bars that it has not seen, and whether that is skill or luck.

hpcrl evaluate checkpoints/dist_run_20260102_030405 --split validation
hpcrl evaluate checkpoints/dist_run_20260102_030405/checkpoint_epoch_40.pt --json
hpcrl evaluate policy.onnx --data other_market.h5
hpcrl evaluate checkpoints/dist_run_20260102_030405 --walk-forward --split validation
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hpcrl.cli_options import Json
from hpcrl.types import HpcrlError


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
    walk_forward: Annotated[
        bool,
        typer.Option(
            "--walk-forward", help="Train the run's config anew per fold, play what comes after it."
        ),
    ] = False,
    folds: Annotated[int, typer.Option(min=1, help="Of --walk-forward.")] = 5,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Local ranks of each training of --walk-forward.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play the deterministic policy over a held-out split, against baselines, after costs.

    Shows 95 % intervals and the Sharpe ratio deflated by the trials of the run's population.
    """
    if walk_forward:
        _walk_forward(run, split, folds, ranks, as_json, {"--data": data, "--epoch": epoch, "--plot": plot})
    from hpcrl.evaluate.evaluate import evaluate_run, print_evaluation
    from hpcrl.evaluate.plot import plot_path

    path = plot_path(plot, run, split, checkpoint_epoch=epoch, data=data)
    result = evaluate_run(run, split, checkpoint_epoch=epoch, data=data)
    print_evaluation(result, path, as_json)


def _walk_forward(
    run: Path, split: str, folds: int, ranks: int | None, as_json: bool, others: dict[str, object]
) -> NoReturn:
    from hpcrl.launch.walk_forward import WalkForward, show_walk_forward

    if given := [name for name, value in others.items() if value is not None]:
        raise HpcrlError(f"{given[0]} and --walk-forward exclude each other: folds are the run's own data")
    sys.exit(show_walk_forward(run, WalkForward(folds=folds, split=split, ranks=ranks), as_json))
