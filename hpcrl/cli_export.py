"""``hpcrl export``: a checkpoint as one ONNX file for onnxruntime.

hpcrl export checkpoints/dist_run_20260102_030405 --out policy.onnx
hpcrl export RUN/checkpoint_epoch_40.pt --out policy.onnx
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a checkpoint_epoch_X.pt in one."),
    ],
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    epoch: Annotated[int | None, typer.Option(min=0, help="Checkpoint to take; default: the newest.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the run's own HDF5 file lies, if not where it was.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the deterministic policy as one ONNX file, checked against torch before it is written.

    One step: a token of raw features in, target weights out, with the memory as inputs and outputs.
    """
    from hpcrl.export.export import export_policy

    done = export_policy(run, out, epoch=epoch, data=data)
    if as_json:
        print(json.dumps(done.to_json(), allow_nan=False))
        return
    seen = done.differences
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(
        f"{done.metadata.run}, epoch {done.metadata.epoch}, {done.bytes:,} bytes; onnxruntime against torch "
        f"over {seen.decisions:,} decisions: at most {seen.params:.1e} apart, {seen.near_ties} near ties"
    )
    print(done.path)


def bench_export(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN|CHECKPOINT|ONNX]", help="Default: the default model, untrained."),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Measured steps of each batch size.")] = 500,
    batches: Annotated[str, typer.Option(help="Batch sizes, in turn.")] = "1,8,64",
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime and torch.")] = 1,
    as_json: Json = False,
) -> None:
    """Latency of one exported step, beside torch's, and the memory that many steps leave behind."""
    from hpcrl.bench.export import bench_export as measure
    from hpcrl.bench.export import render

    result = measure(run, steps=steps, batches=batches, threads=threads)
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    from rich.console import Console

    Console().print(render(result))
