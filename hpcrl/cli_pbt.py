"""``hpcrl pbt``: run a population on this machine, see how one is doing, recompute its decisions, draw it.

hpcrl pbt run --local --config yaml/pbt.yaml --members 4 --at-once 2
hpcrl pbt run --local --population checkpoints/pbt_20260102_030405     goes on with it
hpcrl pbt status checkpoints/pbt_20260102_030405
hpcrl pbt verify checkpoints/pbt_20260102_030405
hpcrl pbt plot checkpoints/pbt_20260102_030405
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json, Sets, group
from hpcrl.types import HpcrlError

pbt_app = group("Populations: members that copy the best of them.")

Folder = Annotated[Path, typer.Argument(metavar="POPULATION", help="A folder pbt_YYYYMMDD_HHMMSS.")]


@pbt_app.command("run")
def pbt_run(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file, see yaml/pbt.yaml.")] = None,
    sets: Sets = None,
    local: Annotated[bool, typer.Option("--local", help="As processes on this machine.")] = False,
    population: Annotated[
        Path | None, typer.Option("--population", metavar="POPULATION", help="Go on with this one.")
    ] = None,
    members: Annotated[int | None, typer.Option("--members", help="How many: pbt.members.")] = None,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", min=1, help="So many at a time; default: as GPUs, or cores, allow."),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Of each member: train.world_size. Default: 1.")
    ] = None,
) -> None:
    """Train a population: members are ordinary runs, which copy better ones in their turns.

    Ctrl-C or TERM: all save and end with code 75; killed, nothing is lost either. The last line names the
    population's folder.
    """
    if not local:
        raise HpcrlError(
            "hpcrl pbt run runs a population on this machine: add --local; on a cluster it is a job array: "
            "hpcrl submit --pbt (or python tools/submit.py --pbt)"
        )
    from hpcrl.launch.population_run import run_here

    sys.exit(run_here(config, tuple(sets or ()), population, members, at_once, ranks))


@pbt_app.command("status")
def pbt_status(population: Folder, as_json: Json = False) -> None:
    """Show how far each member is, its objective and hyperparameters, and who is best. Changes nothing."""
    from hpcrl.launch.population_status import show

    show(population, as_json)


@pbt_app.command("verify")
def pbt_verify(population: Folder, as_json: Json = False) -> None:
    """Recompute every decision from the records, and compare with the journals. Exit code 1: one differs."""
    from hpcrl.pbt.population import Population
    from hpcrl.pbt.verify import verify

    report = verify(Population.open(population))
    print(json.dumps(report.to_json()) if as_json else "\n".join(report.lines()))
    sys.exit(0 if report.ok else 1)


@pbt_app.command("plot")
def pbt_plot(
    population: Folder,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the PNGs; default: the population's.")
    ] = None,
) -> None:
    """Draw objective.png, hyperparameters.png and lineage.png."""
    from hpcrl.pbt.population import Population
    from hpcrl.report.population_plot import write_plots

    for path in write_plots(Population.open(population), out):
        print(path)
