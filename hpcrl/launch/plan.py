"""What ``hpcrl submit`` is asked for, checked as far as a login node can; makes nothing, knows no torch."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrl.checkpoint.provenance import read_record, recorded_config, resumed_tree
from hpcrl.config.load import load_config, overridden
from hpcrl.config.load_site import SITE, load_site, looks_secret, site_of
from hpcrl.config.root import Config, changed_keys
from hpcrl.config.site import KINDS, Kind, Site, seconds_of
from hpcrl.config.yaml_file import read_mapping
from hpcrl.monitor.metrics import read_metrics
from hpcrl.storage.atomic import read_json
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

FORMAT = 1
"""Of submission.json."""
# Slurm sends its warning within 30 s before the time, never after it; measured: up to 17 s early.
_MARGIN_SECONDS = 60
_MOST_SIGNAL_SECONDS = 65535


@dataclass(frozen=True)
class SubmitRequest:
    """The options of ``hpcrl submit``."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    site: Path | None = None
    ranks: int | None = None
    nodes: int | None = None
    resume: Path | None = None
    take_over: bool = False
    init: Path | None = None
    chain: tuple[str, ...] = ("train",)
    stage: tuple[str, ...] = ("supabase",)
    """Words after ``hpcrl stage``, without --out: the data goes to market.path."""
    evaluate: tuple[str, ...] = ()
    """Words after ``hpcrl evaluate RUN``."""
    local: bool = False
    words: tuple[str, ...] = ()
    """As typed, for the record."""


@dataclass(frozen=True)
class Plan:
    """Jobs that can be submitted."""

    config: Config
    """Resolved, with absolute paths and the number of ranks."""
    site: Site
    """With the number of nodes of the training job."""
    chain: tuple[Kind, ...]
    stage: tuple[str, ...]
    evaluate: tuple[str, ...]
    folder: Path
    """Where jobs start: the folder of submission."""
    python: Path
    resume: RunDir | None = None
    take_over: bool = False
    """Although another process, say on a lost node, holds the run."""
    init: Path | None = None
    words: tuple[str, ...] = ()

    @property
    def ranks_per_node(self) -> int:
        return self.config.train.world_size // (self.site.nodes or 1)

    def arguments(self, kind: Kind, run: Path) -> tuple[str, ...]:
        """Of ``hpcrl``, in the job."""
        if kind == "stage":
            return ("stage", *self.stage, "--out", self.config.market.path)
        if kind == "evaluate":
            return ("evaluate", str(run), *self.evaluate)
        init = ("--init", str(self.init)) if self.init else ()
        take_over = ("--take-over",) if self.take_over else ()
        return ("train", "--config", str(run / "jobs" / "config.yaml"), "--run", str(run), *init, *take_over)


def make_plan(request: SubmitRequest, folder: Path | None = None) -> Plan:
    """HpcrlError, one line, for everything that can be known to be wrong here."""
    folder = readable(folder or Path.cwd(), "the folder of submission", "\\")
    chain = _chain(request)
    refuse_secrets(request.words)
    resume = None
    if request.resume is not None:
        resume = RunDir(readable(request.resume.absolute(), "--resume", "%\\"))
    site = _site(request, resume)
    config = _new_config(request) if resume is None else _resumed_config(request, resume)
    config, site = fit(config, site, request)
    config = _absolute(config, folder, resume)
    if request.init is not None and not request.init.exists():
        raise HpcrlError(f"--init {request.init}: no such run folder or checkpoint")
    if "stage" not in chain and not Path(config.market.path).is_file():
        raise HpcrlError(
            f"market.path = {config.market.path}: no such file; stage it first (hpcrl stage), or as a job: "
            "--chain stage,train"
        )
    if "stage" in chain and site.env_file is not None and not Path(expanded(site.env_file)).is_file():
        raise HpcrlError(f"env_file = {site.env_file}: no such file; stage jobs would read their keys there")
    if resume is not None:
        site = with_measured_lead(site, resume)
    return Plan(
        config=config,
        site=site,
        chain=chain,
        stage=request.stage,
        evaluate=request.evaluate,
        folder=folder,
        python=python_of(site),
        resume=resume,
        take_over=request.take_over,
        init=None if request.init is None else request.init.absolute(),
        words=request.words,
    )


def refuse_secrets(words: tuple[str, ...]) -> None:
    """HpcrlError where an argument looks like one."""
    if any(looks_secret(word) for word in words):
        raise HpcrlError(
            "an argument looks like a secret; it would be kept in scripts and records: "
            "leave it to the .env of mode 600 that stage jobs read (env_file of the site)"
        )


def _site(request: SubmitRequest, resume: RunDir | None) -> Site:
    """Of --site or HPCRL_SITE; a run that goes on without either keeps the one that it was submitted with."""
    said = request.site is not None or os.environ.get(SITE)
    if said or resume is None or not (resume.path / "submission.json").is_file():
        return load_site(request.site)
    tree = dict(read_submission(resume.path)["site"])
    if request.ranks or request.nodes:
        tree.pop("nodes", None)  # was computed from the number of ranks
    return site_of(tree, str(resume.path / "submission.json"))


def _chain(request: SubmitRequest) -> tuple[Kind, ...]:
    known = ",".join(KINDS)
    unknown = [kind for kind in request.chain if kind not in KINDS]
    ordered = tuple(kind for kind in KINDS if kind in request.chain)
    if unknown or request.chain != ordered:
        raise HpcrlError(f"--chain {','.join(request.chain)}: expected some of {known}, in this order")
    if "train" not in ordered and not (ordered == ("evaluate",) and request.resume):
        other = "sbatch slurm/stage.sbatch" if "stage" in ordered else "--resume RUN --chain evaluate"
        raise HpcrlError(f"--chain {','.join(ordered)}: there is no train in it; for that alone: {other}")
    if request.resume is not None and "stage" in ordered:
        raise HpcrlError("--resume goes on with the run's own data: leave stage out of --chain")
    if request.take_over and (request.resume is None or "train" not in ordered):
        raise HpcrlError("--take-over is for a training job that goes on with a run: give --resume RUN")
    if request.resume is not None and request.init is not None:
        raise HpcrlError("--resume goes on with a run, --init starts a new one: give one of them")
    return ordered


def _new_config(request: SubmitRequest) -> Config:
    if request.config is None and request.init is None:
        raise HpcrlError(
            "submit needs --config FILE (for example yaml/train_8gpu.yaml), --resume RUN or --init"
        )
    base = None
    if request.init is not None and request.config is None:
        donor = request.init if request.init.is_dir() else request.init.parent
        base = read_record(RunDir.open(donor))["config"]
    return load_config(request.config, request.overrides, ranks=request.ranks, base=base)


def _resumed_config(request: SubmitRequest, run: RunDir) -> Config:
    """What the run was begun with, and the live keys that are said now; any number of ranks is allowed."""
    frozen = run.path / "jobs" / "config.yaml"
    if frozen.is_file() and not run.config.is_file():  # submitted, but its job never began
        return load_config(request.config, request.overrides, ranks=request.ranks, base=read_mapping(frozen))
    record = read_record(RunDir.open(run.path))
    old = recorded_config(record)
    base = resumed_tree(run, record)
    config = load_config(request.config, request.overrides, ranks=request.ranks, base=base)
    changed = changed_keys(old, config)
    if changed:
        raise HpcrlError(
            f"{run.path.name} cannot be resumed with another {', '.join(changed[:5])}; resume it without, or "
            f"start a new run from its weights: --init {run.path}"
        )
    recorded = record["data"].get("path", "")
    if not Path(config.market.path).is_file() and Path(recorded).is_file():
        # A relative path is one of the folder that the run was started in.
        config = _with(config, "market", path=recorded)
    said = request.ranks or overridden(request.overrides, "train.world_size") or os.environ.get("GPU_COUNT")
    return config if said else _with(config, "train", world_size=record.get("world_size", 1))


def fit(config: Config, site: Site, request: SubmitRequest) -> tuple[Config, Site]:
    """Ranks spread evenly over as few nodes as hold them, or over the nodes that were asked for."""
    single = config.train.training_mode == "single"
    size = 1 if single else config.train.world_size
    most = site.gpus_per_node
    nodes = request.nodes or (1 if request.local else site.nodes) or math.ceil(size / most)
    fits = [k for k in range(math.ceil(size / most), size + 1) if size % k == 0]
    if size % nodes or size // nodes > most:
        ways = (
            f"--nodes {fits[0]} ({size // fits[0]} ranks on each), or --ranks {nodes * most}" if fits else ""
        )
        raise HpcrlError(
            f"train.world_size = {size} does not fit {nodes} node{'s' * (nodes > 1)}: a node takes at most "
            f"gpus_per_node = {most} ranks, all nodes the same number; use {ways}"
        )
    if request.local and nodes > 1:
        raise HpcrlError(
            f"--local runs on this machine: train.world_size = {size} on {nodes} nodes is no job for it"
        )
    if config.engine.device == "cuda" and site.job("train").gres == "none" and not request.local:
        raise HpcrlError("engine.device = cuda, but the site's training jobs have gres = none; name its GPUs")
    return _with(config, "train", world_size=size), site.model_copy(update={"nodes": nodes})


def _absolute(config: Config, folder: Path, resume: RunDir | None) -> Config:
    """Frozen at submission: a job does not depend on where it starts."""
    data = folder / Path(config.market.path).expanduser()
    parent = resume.path.parent if resume else folder / Path(config.checkpoint.dir).expanduser()
    for path, key in ((data, "market.path"), (parent, "checkpoint.dir")):
        readable(path, key, "%\\")
    return _with(_with(config, "market", path=str(data)), "checkpoint", dir=str(parent))


def readable(path: Path, key: str, signs: str = "") -> Path:
    """A path that stands in a job's script. HpcrlError: it holds one of ``signs``, or a control character.

    After a line break the rest of an #SBATCH line would be a command. Slurm reads a backslash as its own
    sign, and replaces %j and the like in the name of a log.
    """
    if any(sign in str(path) for sign in signs) or not str(path).isprintable():
        named = "".join(f"{sign}, " for sign in signs)
        raise HpcrlError(
            f"{key} = {str(path)!r}: {named}line breaks and other control characters in a path cannot stand "
            "in a job's script; rename it"
        )
    return path


def _with(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def with_measured_lead(site: Site, run: RunDir) -> Site:
    """The warning before the time limit: twice the longest epoch of the run, and a margin.

    The ranks answer at the end of their epoch; the rest is for the save, which no metric tells.
    """
    taken = [line["time/epoch"] for line in read_metrics(run.metrics) if "time/epoch" in line]
    if not taken:
        return site
    lead = math.ceil(2 * max(taken)) + _MARGIN_SECONDS
    limit = site.job("train").time
    assert limit is not None
    if lead >= seconds_of(limit):
        raise HpcrlError(
            f"time = {limit}: an epoch of {run.path.name} took {max(taken):.0f} s; the time limit "
            f"must be longer than twice that and {_MARGIN_SECONDS} s"
        )
    return site.model_copy(update={"signal_seconds": min(lead, _MOST_SIGNAL_SECONDS)})


def read_submission(run: Path) -> dict[str, Any]:
    """submission.json; HpcrlError where there is none, or it is of another format."""
    path = run / "submission.json"
    if not path.is_file():
        raise HpcrlError(f"{run}: was not made by hpcrl submit (it holds no submission.json)")
    record = read_json(path)
    if record.get("format") != FORMAT:
        raise HpcrlError(f"{path}: format {record.get('format')!r}, this version reads format {FORMAT}")
    jobs = record.get("jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, dict) and "id" in job for job in jobs):
        raise HpcrlError(f"{path}: not what hpcrl submit wrote (jobs is missing, or no list of jobs)")
    if not isinstance(record.get("site"), dict):
        raise HpcrlError(f"{path}: not what hpcrl submit wrote (site is missing or no object)")
    return record


def expanded(path: str) -> str:
    """A site's path that is used here, not in the job. HpcrlError: a variable in it is not set."""
    found = os.path.expanduser(os.path.expandvars(path))
    if "$" in found:
        raise HpcrlError(f"{path}: a variable in it is not set here")
    return str(readable(Path(found), path))


def python_of(site: Site) -> Path:
    """The interpreter that jobs run; HpcrlError where the site's venv has none."""
    if site.venv is None:
        return readable(Path(sys.executable), "python")
    python = Path(expanded(site.venv)) / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise HpcrlError(f"venv = {site.venv}: there is no {python}; name an environment that holds hpcrl")
    return python
