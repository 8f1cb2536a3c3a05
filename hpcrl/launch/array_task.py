"""Which member a task of a plain job array trains: ``python -m hpcrl.launch.array_task`` in slurm/pbt.sbatch.

The tasks of an array share one population. Whichever starts first makes it; several at once make one each,
and keep the one to which hpcrl_JOB.population, beside the logs, came to be linked: a link is made once. So
nobody waits for anybody, and a task that starts again finds its population whatever the YAML says by now.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from hpcrl.config.load import load_config, overridden
from hpcrl.launch.population import (
    PopulationRequest,
    configured,
    is_finished,
    known_population,
    new_population,
)
from hpcrl.pbt.population import Population
from hpcrl.storage.atomic import write_error
from hpcrl.storage.attempts import read_attempts
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.slurm import restart_count, run_slurm

# A share may show late what another node has made. Guessed: NFS remembers for 60 s at most what is not there.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 90.0, 1.0
_ARRAY = "sbatch --array=0-7%4 slurm/pbt.sbatch"


@dataclass(frozen=True)
class Task:
    """This task of its array, as Slurm's variables tell."""

    array: str
    number: int
    count: int
    """Tasks of the array."""
    last: int
    """The highest task's number."""
    ranks: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Task:
        """HpcrlError: this is no task of an array."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MAX", "SLURM_NTASKS")
        found = [environ.get(name, "") for name in names]
        array = environ.get("SLURM_ARRAY_JOB_ID", "")
        if not array or not all(text.isdigit() for text in found[:3]):
            raise HpcrlError(f"a population is a job array, whose task k is member k: {_ARRAY}")
        number, count, last = (int(text) for text in found[:3])
        return cls(array, number, count, last, int(found[3]) if found[3].isdigit() else 1)

    @property
    def id(self) -> str:
        return f"{self.array}_{self.number}"


def member_of(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[Path, list[str]]:
    """The run folder of this task's member, made where it is not there yet, and words for hpcrl train."""
    said = _parsed(arguments)
    task = Task.of(environ)
    request = PopulationRequest(said.config, tuple(said.set), said.population)
    live: tuple[str, ...] = ()
    if said.population is not None:
        population, live = known_population(request)
    else:
        population = _of_array(request, task, environ)
    if task.number not in population.members:
        last = len(population.members) - 1
        raise HpcrlError(f"{population.path} has the members 0 to {last}, none for task {task.number}")
    return population.folder(task.number), list(live)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise HpcrlError(f"slurm/pbt.sbatch: {message}; it takes --config, --set and --population")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--population", type=Path)
    return parser.parse_args(arguments)


def _of_array(request: PopulationRequest, task: Task, environ: Mapping[str, str]) -> Population:
    """The population of this array, by the first of its tasks to make one."""
    link = Path.cwd() / f"hpcrl_{task.array}.population"
    if link.is_symlink():
        population = _opened(link)
        _refuse_namesake(population, link, task, environ)
        return population
    config = configured(_with_array(request, task, environ))
    made = new_population(config, _places(config.pbt.members, task, environ)).path
    try:
        os.symlink(made, link)
    except FileExistsError:
        if os.readlink(link) != str(made):  # else a file server has told us twice
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise write_error(link, error) from None
    return _opened(link)


def _with_array(request: PopulationRequest, task: Task, environ: Mapping[str, str]) -> PopulationRequest:
    """As many members as the array has tasks, as many ranks as a task has; who says them, says the same."""
    if task.last + 1 != task.count:
        raise HpcrlError(
            f"tasks are members, from 0 on without gaps, in the array of a new population: {_ARRAY}"
        )
    _refuse_other(request, environ, "pbt.members", task.count, f"sbatch --array=0-{task.last}")
    _refuse_other(request, environ, "train.world_size", task.ranks, f"--ntasks-per-node={task.ranks}")
    return replace(request, members=task.count, ranks=task.ranks)


def _refuse_other(
    request: PopulationRequest, environ: Mapping[str, str], key: str, number: int, by: str
) -> None:
    """HpcrlError where --set or GPU_COUNT say another number than the job has."""
    counted = key == "train.world_size" and environ.get("GPU_COUNT")
    if not counted and not overridden(request.overrides, key):
        return
    section, _, name = key.partition(".")
    value = getattr(getattr(load_config(None, request.overrides, environment=environ), section), name)
    if value != number:
        raise HpcrlError(
            f"{key} = {value}, but the job says {number} ({by}): say the same, or only one of them"
        )


def _places(members: int, task: Task, environ: Mapping[str, str]) -> int:
    """Members that can train at the same time: the array's throttle, and all of them where that is unknown.

    Nobody would start one again that has made room where HPCRL_REQUEUE is never.
    """
    if environ.get("HPCRL_REQUEUE") == "never":
        return members
    with contextlib.suppress(HpcrlError):
        for line in run_slurm(["scontrol", "show", "job", task.id]).split():
            key, _, value = line.partition("=")
            if key == "ArrayTaskThrottle" and value.isdigit() and int(value):
                return min(int(value), members)
    return members


def _opened(link: Path) -> Population:
    """The population behind the link. RunFailed where it does not appear."""
    path = Path(os.readlink(link))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (path / "population.json").is_file():
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{link} names the population of this array, {path}, which is not there (any more): restore "
                "it, or remove the link and submit again"
            )
        time.sleep(_PAUSE_SECONDS)
    return Population.open(path)


def _refuse_namesake(population: Population, link: Path, task: Task, environ: Mapping[str, str]) -> None:
    """HpcrlError where an earlier array had this number, as after a cluster was set up anew."""
    run = population.folder(task.number)
    if restart_count(environ) == 0 and any(attempt.job == task.id for attempt in read_attempts(run)):
        raise HpcrlError(
            f"{link}: another array of this number has trained {population.path} already; to go on with it: "
            f"sbatch slurm/pbt.sbatch --population {population.path}; for a new one remove the link first"
        )


def main(arguments: Sequence[str]) -> None:
    """Prints the member's folder, or nothing where it is finished; then words for hpcrl train, one a line."""
    try:
        run, live = member_of(arguments)
        if is_finished(run):
            print(f"member {run.name} of {run.parents[1]} is finished", file=sys.stderr, flush=True)
        else:
            print("\n".join([str(run), *live]), flush=True)
    except HpcrlError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a path that the system itself refuses
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
