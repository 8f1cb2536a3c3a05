"""``hpcrl status``: what has become of a run, why, and what to type next.

hpcrl status                                       the newest runs under ./checkpoints
hpcrl status checkpoints/dist_run_20260102_030405  one of them
hpcrl status 4711                                  the run of a job (of a task of an array: 4711_3)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcrl.cli_options import Json


def status(
    target: Annotated[
        str | None,
        typer.Argument(metavar="RUN|JOB", help="A run folder, or a job's id. Default: the newest runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a run's state, progress and attempts; of a dead one, why it died and the command to go on.

    Reads the run folder, Slurm's queue and accounting, and logs; changes nothing. A job's run is looked for
    under ./checkpoints, as are the runs that are shown without RUN or JOB.
    """
    from hpcrl.launch.status import show

    show(target, Path("checkpoints"), as_json)
