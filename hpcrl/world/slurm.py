"""Slurm's commands and a job's own variables: who am I, what does Slurm say of a job, start it again.

Nothing here knows torch. Every failure is one line of one of three kinds: ``NoSlurm`` (no such program here),
``SlurmDown`` (no answer: later it may answer), ``SlurmRefused`` (it answered no). Times are those of the
machine's own zone, as Slurm prints them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from hpcrl.types import HpcrlError, RunFailed

ANSWER_SECONDS = 30.0
"""What a command may take. Guessed: Slurm's own MessageTimeout is 10 s, sites raise it to 60 s and more."""

# A user's own formats would change what the commands print.
_FORMATS = re.compile(r"^(SQUEUE_|SACCT_|SINFO_|SLURM_TIME_FORMAT$|SLURM_CLUSTERS$|SLURM_BITSTR_LEN$)")
# Slurm's words for a controller, or its database, that cannot be reached now.
_DOWN = re.compile(
    r"unable to contact slurm controller|connection refused|connect failure|timed out|"
    r"socket (timeout|error)|communication (shutdown|connection)|zero bytes|"
    r"temporarily (unable|unavailable)|unable to (connect|establish)|connection to slurmdbd|"
    r"slurm backup controller in standby|in_progress|munge",
    re.I,
)
_NO_CLUSTER = re.compile(r"configuration source|fetch config|no cluster is configured", re.I)
# SLURM_CONF, or the site, names a slurm.conf that is not there or cannot be read.
_NO_CONF = re.compile(r"s_p_parse_file|cannot stat|configuration file", re.I)
# Keys whose value goes on to the end of the line, whatever it holds.
_TO_THE_END = {
    "JobName", "Command", "WorkDir", "Comment", "AdminComment", "SystemComment", "StdErr", "StdIn", "StdOut",
    "SubmitLine", "Extra", "Container", "BurstBuffer",
}  # fmt: skip
_KEY = re.compile(r"(?:^|(?<= ))([A-Z][\w:/]*)=")


class NoSlurm(HpcrlError):
    """There is no such program on this machine."""


class SlurmDown(RunFailed):
    """Slurm gave no answer; the same command may succeed later."""


class SlurmRefused(HpcrlError):
    """Slurm answered, and the answer was no."""


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """This process's job, "12", or "12_3" for task 3 of an array; None outside Slurm.

    The last task of an array has the array's own SLURM_JOB_ID, which would name all its tasks.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environ.get("SLURM_JOB_ID") or None


def restart_count(environ: Mapping[str, str] = os.environ) -> int:
    """How often Slurm has started this job again; 0 at its first start and outside Slurm."""
    text = environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdigit() else 0


def run_slurm(argv: Sequence[str], timeout: float = ANSWER_SECONDS) -> str:
    """What the command prints. ``NoSlurm``, ``SlurmDown`` or ``SlurmRefused`` with one line otherwise."""
    name = os.path.basename(argv[0])
    environ = {key: value for key, value in os.environ.items() if not _FORMATS.match(key)}
    environ["LC_ALL"] = "C.UTF-8"
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environ,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise NoSlurm(f"no {name} on PATH: this machine has no Slurm, or its module is not loaded") from None
    except subprocess.TimeoutExpired as error:
        said = _said(name, (error.stderr or b"").decode(errors="replace"))
        if _NO_CONF.search(said):  # it tries for a minute
            raise SlurmDown(f"{name} finds no cluster: {said}") from None
        raise SlurmDown(f"{name} gave no answer within {timeout:g} s; is the Slurm controller up?") from None
    except OSError as error:
        raise NoSlurm(f"{argv[0]} cannot be started: {error.strerror or error}") from None
    if done.returncode == 0:
        return done.stdout
    said = _said(name, done.stderr or done.stdout)
    if _NO_CLUSTER.search(said):
        raise SlurmDown(f"{name} finds no cluster: this machine has no slurm.conf, and none is offered to it")
    if _NO_CONF.search(said):
        raise SlurmDown(f"{name} finds no cluster: {said}")
    if done.returncode < 0:
        raise SlurmDown(f"{name} was ended by signal {-done.returncode}")
    if _DOWN.search(said):
        raise SlurmDown(f"Slurm does not answer: {name}: {said}")
    raise SlurmRefused(f"{name} refused: {said or f'exit code {done.returncode}'}")


def _said(name: str, text: str) -> str:
    """A command's complaint as one line, without its own name in front."""
    lines = [re.sub(rf"^{re.escape(name)}: (error|fatal|warning): ", "", line) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))[:500]


def parse_jobs(text: str) -> list[dict[str, str]]:
    """The records of ``scontrol show job`` (its form of several lines), each key as Slurm writes it.

    The form of several lines, for in that of one line (-o) a Command or Comment that holds ``X=Y`` cannot
    be told from Slurm's keys. The first value of a key counts: a comment's further lines change nothing.
    """
    jobs: list[dict[str, str]] = []
    for line in text.splitlines():
        if line.startswith("JobId="):
            jobs.append({})
        if not jobs:
            continue
        rest = line.strip()
        while (found := _KEY.match(rest)) is not None:
            key, rest = found[1], rest[found.end() :]
            following = None if key in _TO_THE_END else _KEY.search(rest, 1)
            end = following.start() if following else len(rest)
            jobs[-1].setdefault(key, rest[:end].strip())
            rest = rest[end:]
    return jobs


def show_job(job: str, timeout: float = ANSWER_SECONDS) -> dict[str, str]:
    """What the controller knows of a job or of one task of an array: JobState, Reason, EndTime, ...

    Of a whole array the first task that it names. ``SlurmRefused`` for a job that it does not know.
    """
    jobs = parse_jobs(run_slurm(["scontrol", "show", "job", job], timeout))
    if not jobs:
        raise SlurmRefused(f"scontrol says nothing about job {job}")
    return next((record for record in jobs if record.get("JobId") == job), jobs[0])


def requeue(job: str, timeout: float = ANSWER_SECONDS) -> None:
    """Put the job back into the queue: its processes get TERM, and it starts again under the same id."""
    run_slurm(["scontrol", "requeue", job], timeout)
