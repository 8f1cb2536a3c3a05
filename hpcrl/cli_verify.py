"""``hpcrl verify``: is everything here that training needs?

hpcrl verify --config yaml/local.yaml           all checks, one to two minutes
hpcrl verify --config yaml/train_8gpu.yaml --site yaml/site/mine.yaml --quick
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
    from hpcrl.verify.verify import Request
    from hpcrl.verify.verify import verify as run

    sys.exit(run(Request(config, tuple(sets or ()), site, quick, pbt), as_json))
