"""What a cluster's jobs need that a run's config does not say: partition, resources, modules, policies.

``hpcrl submit --site FILE``. Top-level keys hold for every kind of job; the sections ``stage``, ``train`` and
``evaluate`` override them for one. Formats are Slurm's own. No secrets: a site file is shared, and its values
go into scripts; the keys of a database stay in the .env that ``env_file`` names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hpcrl.config.base import Mistake, Section

Kind = Literal["stage", "train", "evaluate"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
_OWN_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "nodes": "nodes", "cpus-per-task": "cpus_per_task", "mem": "mem", "time": "time", "requeue": "requeue",
    "no-requeue": "requeue", "gres": "gres", "gpus": "gpus_per_node", "gpus-per-node": "gpus_per_node",
    "gpus-per-task": "gpus_per_node", "signal": "signal_seconds",
}  # fmt: skip
"""Options of sbatch that a key of the site stands for."""
_SET_OPTIONS = {
    "job-name", "output", "error", "input", "open-mode", "export", "export-file", "get-user-env", "ntasks",
    "ntasks-per-node", "chdir", "dependency", "kill-on-invalid-dep", "array", "wrap", "test-only", "wait",
    "parsable",
}  # fmt: skip
"""Options that ``hpcrl submit`` sets or reads itself."""


def seconds_of(time: str) -> int:
    """Slurm's time, such as 90 (minutes), 90:00, 24:00:00, 2-12 or 2-12:00:00. Mistake for anything else."""
    found = _TIME.fullmatch(time)
    if found is None:
        raise Mistake('a time is needed as Slurm writes it: "90" (minutes), "24:00:00" or "2-12:00:00"')
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    total = ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise Mistake("a time above 0 is needed")
    return total


def _time(text: str) -> str:
    seconds_of(text)
    return text


def _quoted(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise Mistake('a text in quotes is needed, "24:00:00": without them YAML reads it as a number')
    return value


def _line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise Mistake("one line of text is needed, which is not empty")
    return text


def _mem(text: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", text):
        raise Mistake('a size is needed as Slurm writes it: "64G", "800M", or "0" for all of a node')
    return text


def _gres(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w.-]*(:[A-Za-z][\w.-]*)?", text):
        raise Mistake("a name is needed, such as gpu or gpu:a100, or none; the number is gpus_per_node")
    return text


def _path(text: str) -> str:
    if not re.match(r"[/~$]", _line(text)):
        raise Mistake("an absolute path is needed (or one that begins with ~ or $NAME): jobs start elsewhere")
    return text


Line = Annotated[str, AfterValidator(_line)]
Place = Annotated[str, AfterValidator(_path)]
"""A path; $NAME in it is read where it is used: in the job, or for venv and env_file at submission."""


class JobSite(Section):
    """What may differ between kinds of jobs; null takes the top-level key, then the built-in default."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    gres: Annotated[str, AfterValidator(_gres)] | None = None
    """Slurm's name of the GPUs, such as gpu or gpu:a100; none: jobs ask for no GPUs. Default: gpu; stage jobs
    ask for none unless their own section says so."""
    cpus_per_task: int | None = Field(None, ge=1, le=4096)
    """Of each rank; also its OMP_NUM_THREADS. Default: 2."""
    mem: Annotated[str, AfterValidator(_mem)] | None = None
    """Of each node; "0" is all of it. Default: train all of it, evaluate and stage 8G."""
    time: Annotated[Annotated[str, AfterValidator(_time)] | None, BeforeValidator(_quoted)] = None
    """Time limit, in quotes. Default: train 24:00:00, evaluate 02:00:00, stage 08:00:00."""


_DEFAULTS: dict[str, JobSite] = {
    "stage": JobSite(gres="none", cpus_per_task=2, mem="8G", time="08:00:00"),
    "train": JobSite(gres="gpu", cpus_per_task=2, mem="0", time="24:00:00"),
    "evaluate": JobSite(gres="gpu", cpus_per_task=2, mem="8G", time="02:00:00"),
}
"""Those of the scripts in slurm/: eight ranks fit a node of 16 CPUs."""


class Modules(Section):
    init: Place | None = None
    """Script that defines ``module``; null: the usual places are tried."""
    use: tuple[Place, ...] = ()
    """Folders of modulefiles."""
    load: tuple[Line, ...] = ()
    """Empty: no module is touched. Where there is no module system, the job says so and goes on."""


class Site(JobSite):
    nodes: int | None = Field(None, ge=1, le=65536)
    """Nodes of a training job; null: as few as train.world_size needs."""
    gpus_per_node: int = Field(8, ge=1, le=1024)
    """GPUs of one node, hence most ranks on it; with gres none simply the most ranks on one node."""
    modules: Modules = Modules()
    venv: Place | None = None
    """Virtual environment in which hpcrl is installed; null: the one that runs ``hpcrl submit``."""
    scratch: Place | None = None
    """Folder on each node's own disk for a copy of the market file (market.local_copy), as SLURM_TMPDIR."""
    requeue: Literal["requeue", "successor", "never"] = "requeue"
    """How a training job that was stopped, crashed or hung goes on: the same job again; a new one, where the
    site forbids requeueing; or not by itself."""
    signal_seconds: int = Field(120, ge=0, le=65535)
    """Warning before the time limit: more than an epoch and a save. A resumed run measures it instead."""
    env_file: Place | None = None
    """.env (mode 600) that stage jobs read; null: .env in the folder where hpcrl submit is called."""
    sbatch: dict[str, Any] = Field(default={})
    """Further options of sbatch, for all jobs: {mail-type: END, exclusive: true}."""
    stage: JobSite = JobSite()
    train: JobSite = JobSite()
    evaluate: JobSite = JobSite()

    @model_validator(mode="after")
    def _options(self) -> Site:
        for name, value in self.sbatch.items():
            key = f"sbatch.{name}"
            option = name.replace("_", "-")
            if option in _OWN_OPTIONS:
                raise Mistake(f"{key} = {value!r}: write it as the site's key {_OWN_OPTIONS[option]}", key)
            if option in _SET_OPTIONS:
                raise Mistake(f"{key} = {value!r}: hpcrl submit sets --{option} itself; leave it out", key)
            if not re.fullmatch(r"[a-z][a-z-]+", option):
                raise Mistake(f"{key} = {value!r}: a long option of sbatch is needed, such as mail-type", key)
            if value is not True and (
                type(value) not in (str, int, float) or not str(value).strip() or not str(value).isprintable()
            ):
                raise Mistake(f"{key} = {value!r}: a value in one line is needed, or true", key)
        return self

    @model_validator(mode="after")
    def _warning(self) -> Site:
        time = self.job("train").time
        assert time is not None
        if self.signal_seconds >= seconds_of(time):
            raise Mistake(
                f"signal_seconds = {self.signal_seconds} must be less than the time limit of train, {time}",
                "signal_seconds",
            )
        return self

    def job(self, kind: Kind) -> JobSite:
        """What holds for jobs of this kind: its section, else the top-level keys, else the defaults."""
        own: JobSite = getattr(self, kind)
        default = _DEFAULTS[kind]
        found = {}
        for name in JobSite.model_fields:
            everybody = None if (kind, name) == ("stage", "gres") else getattr(self, name)
            values = (getattr(own, name), everybody, getattr(default, name))
            found[name] = next((value for value in values if value is not None), None)
        return JobSite(**found)
