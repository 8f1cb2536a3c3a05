"""``hpcrl verify``: is everything here that training needs?

hpcrl verify --config yaml/local.yaml           all checks, one to two minutes
hpcrl verify --config yaml/train_8gpu.yaml --site yaml/site/mine.yaml --quick

It takes the options of ``hpcrl train``: the job scripts hand theirs on to it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json, Sets


def verify(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file, see yaml/.")] = None,
    sets: Sets = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="The run that is to go on: its config.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init", metavar="CHECKPOINT", help="What a new run begins from; without --config: its."
        ),
    ] = None,
    ranks: Annotated[int | None, typer.Option("--ranks", min=1, help="So many local ranks.")] = None,
    run: Annotated[Path | None, typer.Option("--run", hidden=True)] = None,
    take_over: Annotated[bool, typer.Option("--take-over", hidden=True)] = False,
    site: Annotated[
        Path | None, typer.Option("--site", help="The cluster's YAML (yaml/site/); default: HPCRL_SITE's.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look only: no ranks, no training, seconds.")
    ] = False,
    pbt: Annotated[bool, typer.Option("--pbt", help="It is to be a population.")] = False,
    as_json: Json = False,
) -> None:
    """Check packages, GPU, data, storage, Slurm and the learner before training. Exit code 1: one failed."""
    from hpcrl.launch.job import Request as Training
    from hpcrl.verify.verify import Request
    from hpcrl.verify.verify import verify as check

    training = Training(config, tuple(sets or ()), ranks, resume, init, run, take_over)
    sys.exit(check(Request(training, site, quick, pbt), as_json))
