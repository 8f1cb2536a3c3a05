"""A population as one job array of Slurm: its task k trains member k, so many of them at a time.

``hpcrl submit --pbt``. POP/jobs/ holds the array's script, pickles and a log per member and rank;
POP/submission.json says which arrays there are, and a member's own which tasks of them are its: to status, to
the requeue and to ``hpcrl submit --resume`` it is a run like any other. In the job: ``array_task``.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

import hpcrl
from hpcrl.config.load import overridden
from hpcrl.config.load_site import SITE, load_site, site_of
from hpcrl.config.root import Config
from hpcrl.config.site import Site
from hpcrl.launch import task
from hpcrl.launch.plan import (
    Plan,
    SubmitRequest,
    fit,
    python_of,
    read_submission,
    readable,
    refuse_secrets,
    with_measured_lead,
)
from hpcrl.launch.population import (
    PopulationRequest,
    configured,
    is_finished,
    known_population,
    new_population,
)
from hpcrl.launch.scripts import setup, verify_first
from hpcrl.launch.status_alive import refuse_if_trained
from hpcrl.launch.submit import (
    cleaned_environment,
    make_executor,
    need_slurm,
    new_record,
    now,
    refusal,
    write_record,
)
from hpcrl.pbt.population import NAME, Population
from hpcrl.storage.atomic import write_error, write_text
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError
from hpcrl.world.slurm import run_slurm

_MEMORY_GB = 8
"""Of a rank, where members share nodes and the site says no size but all of one. As in slurm/pbt.sbatch."""


@dataclass(frozen=True)
class ArrayRequest:
    """The options of ``hpcrl submit --pbt``."""

    config: Path | None = None
    """None: yaml/pbt.yaml of the repository."""
    overrides: tuple[str, ...] = ()
    site: Path | None = None
    population: Path | None = None
    """One to go on with."""
    members: int | None = None
    gpus_per_member: int | None = None
    """Ranks of each: train.world_size."""
    throttle: int = 4
    """Members that train at the same time."""
    words: tuple[str, ...] = ()
    """As typed, for the record."""


@dataclass(frozen=True)
class ArrayPlan:
    """An array that can be submitted."""

    job: Plan
    """Of one member; its config is the population's."""
    throttle: int
    population: Population | None
    """None: it is made at submission."""
    live: tuple[str, ...] = ()
    """Further words for hpcrl train: live keys that were said now."""

    @property
    def members(self) -> list[int]:
        """Those that are to train."""
        everybody = range(self.job.config.pbt.members)
        return [m for m in everybody if self.population is None or not is_finished(self.population.folder(m))]

    @property
    def tasks(self) -> str:
        """As --array takes it: 0-7%4, 1,3,5%2."""
        return f"{_ranges(self.members)}%{min(self.throttle, len(self.members))}"

    @property
    def places(self) -> int:
        """Members that can be in training at the same time, as the population's slices are to see it."""
        config, requeue = self.job.config, self.job.site.requeue
        # Nobody would start a member again that has made room.
        return config.pbt.members if requeue == "never" else min(self.throttle, config.pbt.members)

    def words_of(self, population: Population, member: int) -> tuple[str, ...]:
        """Of ``hpcrl``, in the member's task."""
        return (*self.job.arguments("train", population.folder(member)), *self.live)


def plan_array(request: ArrayRequest) -> ArrayPlan:
    """HpcrlError, one line, for everything that can be known to be wrong here; makes nothing."""
    folder = readable(Path.cwd(), "the folder of submission", "\\")
    refuse_secrets(request.words)
    _refuse_numbers(request)
    asked = PopulationRequest(
        config=request.config,
        overrides=request.overrides,
        population=request.population,
        members=request.members,
        ranks=request.gpus_per_member,
    )
    population: Population | None = None
    live: tuple[str, ...] = ()
    if request.population is None:
        asked = replace(asked, config=request.config or _usual_config())
        config = configured(asked)
    else:
        population, live = known_population(asked)
        config = population.config
    site = _fitted(config, _site(request), request)
    for key, path in (("market.path", config.market.path), ("pbt.dir", config.pbt.dir)):
        readable(Path(path), key, "%\\")
    if not Path(config.market.path).is_file():
        raise HpcrlError(f"market.path = {config.market.path}: no such file; stage it first (hpcrl stage)")
    job = Plan(
        config=config, site=site, chain=("train",), stage=(), evaluate=(), folder=folder,
        python=python_of(site), words=request.words,
    )  # fmt: skip
    plan = ArrayPlan(job, request.throttle, population, live)
    return plan if population is None else _going_on(plan, population)


def _refuse_numbers(request: ArrayRequest) -> None:
    """HpcrlError: a number that cannot be, or that is said twice."""
    if request.throttle < 1:
        raise HpcrlError(
            f"--throttle {request.throttle}: at least one member must be able to train; as many as may "
            "at the same time, for example --throttle 4"
        )
    if request.members is not None and request.members < 2:
        raise HpcrlError(f"--members {request.members}: a population needs at least 2 members to compare")
    size = request.gpus_per_member
    if size is not None and size < 1:
        raise HpcrlError(f"--gpus-per-member {size}: a member needs at least 1 rank")
    said = (("--members", request.members, "pbt.members"), ("--gpus-per-member", size, "train.world_size"))
    for option, value, key in said:
        if value is not None and overridden(request.overrides, key):
            raise HpcrlError(f"{option} {value} stands for --set {key}={value}: give one of them")
    count = os.environ.get("GPU_COUNT")
    if size is not None and count and count != str(size):
        raise HpcrlError(f"--gpus-per-member {size}, but GPU_COUNT = {count}: unset it, or give that number")


def _usual_config() -> Path:
    """yaml/pbt.yaml of the installation, or of the repository that this package is in."""
    for root in (os.environ.get("HPCRL_ROOT"), Path(hpcrl.__file__).parents[1]):
        path = Path(root or "") / "yaml" / "pbt.yaml"
        if root and path.is_file():
            return path
    raise HpcrlError("submit --pbt needs --config FILE (for example yaml/pbt.yaml), or --population to go on")


def _site(request: ArrayRequest) -> Site:
    """Of --site or HPCRL_SITE; a population that goes on without either keeps its own."""
    record = request.population and request.population / "submission.json"
    if request.site is not None or os.environ.get(SITE) or not record or not record.is_file():
        return load_site(request.site)
    assert request.population is not None
    return site_of(dict(read_submission(request.population)["site"]), str(record))


def _fitted(config: Config, site: Site, request: ArrayRequest) -> Site:
    """The site as a member sees it: one node, and its share of the memory."""
    size, most = config.train.world_size, site.gpus_per_node
    if request.population is not None and request.gpus_per_member not in (None, size):
        raise HpcrlError(
            f"--gpus-per-member {request.gpus_per_member}: members of {request.population} have {size}; "
            "leave it out"
        )
    if size > most:
        raise HpcrlError(
            f"a member of {size} ranks (--gpus-per-member, train.world_size) does not fit the site: a node "
            f"takes at most gpus_per_node = {most} ranks, and a member is on one node"
        )
    if site.requeue == "successor":
        raise HpcrlError(
            "the site's requeue = successor is not for populations: a successor would not be a task of the "
            "array any more, nor wait for its turn. Use requeue: requeue, or never (members then run to "
            "their end; hpcrl submit --pbt --population goes on)"
        )
    _, site = fit(config, site, SubmitRequest(nodes=1))
    if site.job("train").mem == "0" and size < most:  # all of a node would keep the other members out
        site = site.model_copy(
            update={"train": site.train.model_copy(update={"mem": f"{_MEMORY_GB * size}G"})}
        )
    return site


def _going_on(plan: ArrayPlan, population: Population) -> ArrayPlan:
    """Checked against what the members are doing; the warning before the limit is the longest of theirs."""
    if not plan.members:
        raise HpcrlError(f"{population.path}: all {len(population.members)} members are finished")
    site = plan.job.site
    for member in plan.members:
        folder = population.folder(member)
        refuse_if_trained(folder)
        measured = with_measured_lead(plan.job.site, RunDir(folder))
        site = max(site, measured, key=lambda found: found.signal_seconds)
    return replace(plan, job=replace(plan.job, site=site))


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def name_of_next(plan: ArrayPlan) -> Path:
    """The population's folder that a submission would make now, or goes on with."""
    if plan.population is not None:
        return plan.population.path
    return Path(plan.job.config.pbt.dir) / datetime.now().strftime(NAME)


def array_script(plan: ArrayPlan, path: Path) -> str:
    """Exactly what is submitted for a population at ``path``."""
    executor = _executor(plan, path)
    executor.parameters["map_count"] = plan.job.config.pbt.members  # as it is set in a batch
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _executor(plan: ArrayPlan, path: Path) -> submitit.SlurmExecutor:
    job = plan.job
    executor = make_executor(job, "train", path, None, {})
    given = executor.parameters
    executor.update_parameters(
        setup=[
            *setup("train", job.site, path, job.python, {}),
            "# Task k of the array is member k.",
            'HPCRL_RUN=$HPCRL_RUN/members/$(printf %02d "$SLURM_ARRAY_TASK_ID")',
            'echo "member $SLURM_ARRAY_TASK_ID: job ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID, $HPCRL_RUN"',
            *verify_first(job.python, "--pbt"),
        ],
        additional_parameters=given["additional_parameters"] | {"array": plan.tasks},
    )
    return executor


def submit_array(plan: ArrayPlan) -> tuple[Population, str]:
    """Make or take the population, submit its members; the population and the array's job id.

    Where anything fails, nothing of it stays.
    """
    need_slurm("hpcrl pbt run --local runs a population here, --dry-run shows the script")
    with _prepared(plan) as population:
        array = _submit(plan, population)
        try:
            _record(plan, population, array)
        except BaseException:
            with contextlib.suppress(HpcrlError):
                run_slurm(["scancel", array])
            raise
    return population, array


@contextlib.contextmanager
def _prepared(plan: ArrayPlan) -> Iterator[Population]:
    """The population with jobs/ in it; put back as it was where the block fails."""
    parent = Path(plan.job.config.pbt.dir)
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    population = plan.population or new_population(plan.job.config, plan.places)
    jobs = population.path / "jobs"
    before = set(jobs.iterdir()) if jobs.is_dir() else set()
    records = [folder / "submission.json" for folder in _folders(population)]
    kept = {record: record.read_text() for record in records if record.is_file()}
    try:
        try:
            jobs.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(jobs, error) from None
        yield population
    except BaseException:
        if plan.population is None:
            shutil.rmtree(population.path, ignore_errors=True)
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        with contextlib.suppress(OSError, HpcrlError):
            for path in set(jobs.iterdir()) - before:
                path.unlink()
            for record in records:
                if record not in kept:
                    record.unlink(missing_ok=True)
                elif record.read_text() != kept[record]:
                    write_text(record, kept[record])
        raise


def _folders(population: Population) -> list[Path]:
    return [population.path, *(population.folder(member) for member in population.members)]


def _submit(plan: ArrayPlan, population: Population) -> str:
    """The array's job id. HpcrlError with what sbatch said."""
    executor = _executor(plan, population.path)
    jobs: list[submitit.Job] = []
    try:
        # submitit shows what sbatch said, and passes on os.environ.
        with contextlib.redirect_stderr(io.StringIO()), cleaned_environment(), executor.batch():
            # A pickle for each member, that of task k being the k-th; the script's --array says who trains.
            for member in population.members:
                jobs.append(executor.submit(task.run, *plan.words_of(population, member)))
    except (FailedJobError, FailedSubmissionError) as error:
        raise refusal(str(error), "population's") from None
    except OSError as error:
        raise write_error(population.path / "jobs", error) from None
    return jobs[0].job_id.partition("_")[0]


def _record(plan: ArrayPlan, population: Population, array: str) -> None:
    """submission.json of the population and of each member that trains."""
    common: dict[str, Any] = {"kind": "train", "submitted": now(), "after": None, "successor_of": None}
    whole = {
        "id": array,
        **common,
        "members": plan.members,
        "throttle": plan.throttle,
        "script": f"jobs/{array}_submission.sh",
        "log": f"jobs/{array}_%a_%t_log.out",
    }
    record = new_record(plan.job, population.path)
    for member in plan.members:
        run = population.folder(member)
        mine = {
            "id": f"{array}_{member}",
            **common,
            "script": f"../../jobs/{array}_submission.sh",
            "log": f"../../jobs/{array}_{member}_%t_log.out",
        }
        earlier = read_submission(run)["jobs"] if (run / "submission.json").is_file() else []
        write_record(run, record | {"jobs": [*earlier, mine]})
    write_record(population.path, record | {"jobs": [*record["jobs"], whole]})
