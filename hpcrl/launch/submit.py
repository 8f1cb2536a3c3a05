"""Jobs of a plan: their scripts, submission through submitit, and the job that follows one that was stopped.

RUN/jobs/ holds the frozen config.yaml, each job's script, pickle and logs (one per rank, attempts appended);
RUN/submission.json says which jobs there are. Where sbatch refuses, nothing of it stays.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import submitit
import yaml
from submitit.core.utils import FailedJobError, FailedSubmissionError

import hpcrl
from hpcrl.config.load import load_config
from hpcrl.config.load_site import site_of
from hpcrl.config.site import Kind
from hpcrl.config.yaml_file import read_mapping
from hpcrl.launch import task
from hpcrl.launch.plan import FORMAT, Plan, expanded, python_of, read_submission, with_measured_lead
from hpcrl.launch.scripts import EXPORT, STAGE_EXPORT, setup, teardown, verify_first
from hpcrl.launch.status_alive import refuse_if_trained
from hpcrl.storage.atomic import to_json, write_error, write_text
from hpcrl.storage.revision import git_commit
from hpcrl.storage.run_dir import NAME, RunDir
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.slurm import NoSlurm, job_id, run_slurm

# sbatch runs with these gone, so that no secret and no option of another job reaches the new one. Slurm's own
# address book is kept.
_FOREIGN = re.compile(
    r"(SUPABASE_|PG|SBATCH_|SRUN_|SUBMITIT_|SLURM_(?!CONF$|CLUSTERS$|JWT$))|(DATABASE_URL|RANK|WORLD_SIZE|"
    r"LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|HPCRL_RUN|HPCRL_SUCCESSOR_OF|TRAINING_MODE|"
    r"GPU_COUNT|ENVS_PER_GPU)$"
)
_ADVICE = (
    ("account", "see sacctmgr show associations user=$USER; the site's keys are account and partition"),
    ("partition", "see sinfo -s; the site's key is partition"),
    ("qos", "see sacctmgr show associations user=$USER format=account,qos; the site's key is qos"),
    ("time limit", "see sinfo -o '%P %l'; the site's key is time"),
    ("gres", "see sinfo -o '%n %G'; the site's key is gres (none where there are no GPUs)"),
    ("feature", "see sinfo -o '%n %f'; the site's key is constraint"),
    ("memory", "see sinfo -o '%n %m'; the site's key is mem"),
    ("node configuration", "see sinfo -Nel; the site's keys are gpus_per_node, cpus_per_task and mem"),
    ("node count", "see sinfo -s; fewer nodes: --ranks, --nodes"),
    ("", "the site's keys and --site FILE say what is asked for; --dry-run shows the script"),
)
"""A word of sbatch's refusal -> where to look."""
_DOWN = re.compile(
    r"unable to contact|connect|timed out|communication|configuration (source|file)|fetch.config|"
    r"s_p_parse_file",
    re.I,
)


class _Executor(submitit.SlurmExecutor):
    @classmethod
    def affinity(cls) -> int:
        """Scripts can be shown where there is no Slurm."""
        return 2


class _TrainExecutor(_Executor):
    @property
    def _submitit_command_str(self) -> str:
        """Through our module, whose signal handlers stand before submitit's imports."""
        return f"{self.python} -u -m {task.__name__} {shlex.quote(str(self.folder))}"


def job_script(plan: Plan, kind: Kind, run: Path, after: str | None = None) -> str:
    """Exactly what is submitted."""
    executor = make_executor(plan, kind, run, f"afterok:{after}" if after else None, {})
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def make_executor(
    plan: Plan, kind: Kind, run: Path, dependency: str | None, exports: Mapping[str, str]
) -> submitit.SlurmExecutor:
    """What submits the job; its script, pickle and logs go to ``run``/jobs."""
    site, job = plan.site, plan.site.job(kind)
    train = kind == "train"
    tasks = plan.ranks_per_node if train else 1
    exports = dict(exports)
    if kind == "stage" and site.env_file is not None:
        exports["HPCRL_ENV_FILE"] = str(Path(expanded(site.env_file)).absolute())
    options: dict[str, Any] = {
        **site.sbatch,
        "export": ",".join(STAGE_EXPORT if kind == "stage" else EXPORT),
        "chdir": str(plan.folder),
        ("requeue" if site.requeue == "requeue" else "no-requeue"): True,
    }
    if not train:
        options["signal"] = "TERM@60"  # no rank that would save on a warning: simply end in good time
    if dependency and dependency.startswith("afterok"):
        options["kill-on-invalid-dep"] = "yes"
    cpu = job.gres == "none" or plan.config.engine.device == "cpu"
    made = _TrainExecutor if train else _Executor
    executor = made(run / "jobs", python=shlex.quote(str(plan.python)))
    executor.update_parameters(
        job_name=run.name if train else f"{run.name}_{kind}",
        partition=job.partition,
        account=job.account,
        qos=job.qos,
        constraint=job.constraint,
        nodes=site.nodes if train else 1,
        ntasks_per_node=tasks,
        gres=None if cpu else f"{job.gres}:{tasks}",
        cpus_per_task=job.cpus_per_task,
        mem=job.mem,
        time=job.time,
        signal_delay_s=site.signal_seconds,
        dependency=dependency,
        wckey=None,
        stderr_to_stdout=True,
        setup=[*setup(kind, site, run, plan.python, exports), *(verify_first(plan.python) if train else ())],
        teardown=teardown(kind, plan.python),
        # Since 22.05 srun does not inherit cpus-per-task; one dead rank ends the step.
        srun_args=["--open-mode=append", "--kill-on-bad-exit=1", f"--cpus-per-task={job.cpus_per_task}"],
        additional_parameters=options,
    )
    return executor


def submit(plan: Plan) -> Path:
    """Make or take the run folder, write what the jobs need, submit them all; the run folder."""
    need_slurm("--local runs the job here, --dry-run shows its script")
    if plan.resume is not None and "train" in plan.chain:
        refuse_if_trained(plan.resume.path)
    with prepared(plan) as run:
        record = new_record(plan, run)
        known = len(record["jobs"])  # of earlier submissions
        try:
            for kind in plan.chain:
                after = record["jobs"][-1]["id"] if record["jobs"] and kind != plan.chain[0] else None
                _submit_one(plan, kind, run, record, after and f"afterok:{after}", after=after)
            write_record(run, record)
        except BaseException:
            for job in record["jobs"][known:]:
                with contextlib.suppress(HpcrlError):
                    run_slurm(["scancel", job["id"]])
            raise
    return run


def need_slurm(otherwise: str) -> None:
    """NoSlurm where jobs cannot be submitted; ``otherwise``: what works here."""
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise NoSlurm(
                f"no {program} on PATH: jobs are submitted where Slurm is (a login node; module loaded?); "
                f"{otherwise}"
            )


def submit_again(run: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The job that goes on where this process's job stops, once that has ended; its id.

    What waits for the old job waits for the new one then. HpcrlError: ``run`` was not made by
    ``hpcrl submit``, or sbatch refuses.
    """
    record = read_submission(run)
    old = job_id(environ)
    site = site_of(record["site"], str(run / "submission.json"))
    with contextlib.suppress(HpcrlError):  # too long for the time limit: better a successor with a short one
        site = with_measured_lead(site, RunDir(run))
    config = load_config(base=read_mapping(run / "jobs" / "config.yaml"), environment={})
    plan = Plan(
        config=config, site=site, chain=("train",), stage=(), evaluate=(), folder=Path(record["folder"]),
        python=python_of(site), resume=RunDir(run), take_over=record.get("take_over", False),
    )  # fmt: skip
    exports = {"HPCRL_SUCCESSOR_OF": old} if old else {}
    new = _submit_one(plan, "train", run, record, "singleton", successor_of=old, **exports)
    write_record(run, record)
    for job in record["jobs"]:
        if old is not None and job["after"] == old:
            update = ["scontrol", "update", f"JobId={job['id']}", f"Dependency=afterok:{new}"]
            try:
                run_slurm(update)
                job["after"] = new
            except HpcrlError as error:
                print(f"warning: {error}; by hand: {shlex.join(update)}", file=sys.stderr, flush=True)
    write_record(run, record)
    return new


def _submit_one(
    plan: Plan,
    kind: Kind,
    run: Path,
    record: dict[str, Any],
    dependency: str | None,
    after: str | None = None,
    successor_of: str | None = None,
    **exports: str,
) -> str:
    """Submit one job and note it in ``record``; its id. HpcrlError with what sbatch said."""
    executor = make_executor(plan, kind, run, dependency, exports)
    try:
        # submitit shows what sbatch said, and passes on os.environ.
        with contextlib.redirect_stderr(io.StringIO()), cleaned_environment():
            job: submitit.Job = executor.submit(task.run, *plan.arguments(kind, run))
    except (FailedJobError, FailedSubmissionError) as error:
        raise refusal(str(error), kind) from None
    except OSError as error:
        raise write_error(run / "jobs", error) from None
    record["jobs"].append(
        {
            "id": job.job_id,
            "kind": kind,
            "submitted": now(),
            "after": after,
            "script": f"jobs/{job.job_id}_submission.sh",
            "log": f"jobs/{job.job_id}_%t_log.out",
            "successor_of": successor_of,
        }
    )
    return job.job_id


def refusal(text: str, kind: str) -> HpcrlError:
    """sbatch's refusal as one line, and where to look."""
    said = _said(text)[:400] or "it gave no reason"
    if _DOWN.search(said):
        return RunFailed(f"Slurm does not answer: {said}; is the controller up? sinfo tells. Nothing stays")
    advice = next(advice for word, advice in _ADVICE if word in said.lower())
    return HpcrlError(f"sbatch refused the {kind} job: {said}; {advice}. Nothing stays")


def _said(text: str) -> str:
    lines = [re.sub(r"^sbatch: ((error|fatal): )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


@contextlib.contextmanager
def cleaned_environment() -> Iterator[None]:
    """os.environ without secrets and without what belongs to another job."""
    before = dict(os.environ)
    try:
        for name in before:
            if _FOREIGN.match(name):
                del os.environ[name]
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def prepared(plan: Plan) -> Iterator[Path]:
    """The run folder with jobs/config.yaml in it; put back as it was where the block fails."""
    parent = Path(plan.config.checkpoint.dir)
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    run = (plan.resume or RunDir.reserve(parent)).path
    jobs = run / "jobs"
    config = jobs / "config.yaml"
    before = set(jobs.iterdir()) if jobs.is_dir() else None
    old = config.read_text() if config.is_file() else None
    try:
        try:
            jobs.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(jobs, error) from None
        if "train" in plan.chain:
            text = yaml.safe_dump(plan.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_text(
                config, f"# The run's config as it was at submission; hpcrl {hpcrl.__version__}\n{text}"
            )
        yield run
    except BaseException:
        if plan.resume is None:
            shutil.rmtree(run, ignore_errors=True)
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        with contextlib.suppress(OSError):
            for path in set(jobs.iterdir()) - (before or set()):
                path.unlink()
            if old is not None:
                write_text(config, old)
            if before is None:
                jobs.rmdir()
        raise


def new_record(plan: Plan, run: Path) -> dict[str, Any]:
    """submission.json without the new jobs; those of earlier submissions are kept."""
    commit = git_commit()
    record = {
        "format": FORMAT,
        "created": now(),
        "folder": str(plan.folder),
        "site": plan.site.model_dump(mode="json", exclude_none=True),
        "arguments": list(plan.words),
        "code": {
            "version": hpcrl.__version__,
            "git_commit": commit.removesuffix("+changes"),
            "dirty": commit.endswith("+changes"),
        },
        "requeue": plan.site.requeue,
        "take_over": plan.take_over,  # a lock that this job passed is in the way of its successor, too
        "jobs": [],
    }
    if (run / "submission.json").is_file():
        record["jobs"] = read_submission(run)["jobs"]
    return record


def write_record(run: Path, record: dict[str, Any]) -> None:
    write_text(run / "submission.json", to_json(record))


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def name_of_next(plan: Plan) -> Path:
    """The run folder that a submission would make now."""
    return (
        plan.resume.path if plan.resume else Path(plan.config.checkpoint.dir) / datetime.now().strftime(NAME)
    )


def lint(script: str, kind: str) -> str:
    """What ``sbatch --test-only`` says of a script, or why it was not asked. HpcrlError where it refuses."""
    if shutil.which("sbatch") is None:
        return "not checked: no sbatch on PATH"
    # A job that the dependency names does not exist yet.
    text = re.sub(r"^#SBATCH --(dependency|kill-on-invalid-dep)=.*\n", "", script, flags=re.M)
    try:
        with cleaned_environment():
            done = subprocess.run(
                ["sbatch", "--test-only"], input=text, capture_output=True, text=True, timeout=60
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not checked: {error}"
    said = _said(done.stderr)
    if done.returncode == 0:
        return f"sbatch --test-only: {said}"
    if _DOWN.search(said):
        return f"not checked, for no cluster answers: {said.partition(';')[0]}"
    raise refusal(done.stderr, kind)
