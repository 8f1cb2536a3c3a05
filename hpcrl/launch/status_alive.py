"""Whether somebody trains a run now: its newest attempt, or a job that is queued for it.

Where Slurm knows the attempt's job, Slurm is believed; elsewhere the process, on this machine, and the
heartbeat. Knows no torch.
"""

from __future__ import annotations

import shlex
import socket
from datetime import UTC, datetime
from pathlib import Path

from hpcrl.launch.accounting import Books, read_jobs
from hpcrl.launch.status_read import RunFiles, jobs_of, moment, read_run, spell
from hpcrl.types import HpcrlError

FRESH_SECONDS = 90.0
"""A younger heartbeat says that the run lives; it is written every 15 s. Guessed, for slow shares."""


def lives(run: RunFiles, books: Books, now: datetime) -> str:
    """How it is known that the newest attempt trains; "" where it has ended, or seems to."""
    attempt = run.newest
    if attempt is None or attempt.end is not None:
        return ""
    job = books.jobs.get(attempt.job) if attempt.job else None
    if job is not None:
        runs = not job.over and job.state != "PENDING" and attempt.restart_count >= job.restarts
        return f"job {job.id} trains it ({job.state})" if runs else ""
    if attempt.job is None and attempt.host == socket.gethostname():
        return f"process {attempt.pid} on {attempt.host}" if _is_hpcrl(attempt.pid) else ""
    age = heartbeat_age(run, now)
    forgotten = attempt.job is not None and books.reachable
    if age is None and not forgotten and (began := moment(attempt.started)) is not None:
        age = (now - began).total_seconds()  # its first heartbeat is still to come
    fresh = age is not None and age < FRESH_SECONDS
    return f"its heartbeat on {attempt.host} is {spell(age or 0.0)} old" if fresh else ""


def heartbeat_age(run: RunFiles, now: datetime) -> float | None:
    """Seconds since the newest attempt's heartbeat."""
    beat = moment((run.heartbeat or {}).get("time"))
    return None if beat is None else max((now - beat).total_seconds(), 0.0)


def current_job(run: RunFiles, books: Books, now: datetime) -> str | None:
    """The job that trains this run, else the one that is to, else the newest; None for a run outside Slurm.

    The last one submitted may have failed while an older one, or one by plain sbatch, trains.
    """
    newest = run.newest
    if newest is not None and lives(run, books, now):
        return newest.job
    trains = [job for job in run.jobs if job["kind"] == "train"]
    ids = [*([newest.job] if newest and newest.job else []), *(job["id"] for job in trains)]
    known = [job for id in ids if (job := books.jobs.get(id)) is not None and not job.over]
    active = [job for job in known if not job.reason.startswith("DependencyNever")]
    if active:
        return ([job for job in active if job.state != "PENDING"] or active)[-1].id
    if not trains:
        return newest.job if newest else None
    if newest is None or newest.job in [job["id"] for job in trains]:
        return trains[-1]["id"]
    submitted, started = moment(trains[-1].get("submitted")), moment(newest.started)
    later = submitted is not None and started is not None and submitted > started
    return trains[-1]["id"] if later else newest.job


def refuse_if_trained(path: Path) -> None:
    """HpcrlError if the run is trained now, or a job of it is queued: two would train it in turns."""
    try:
        run = read_run(path)
    except HpcrlError:  # whether there is anything to go on with, others tell
        return
    books = read_jobs(jobs_of(run))
    look = f"wait for it ({shlex.join(['hpcrl', 'status', str(path)])}), or"
    trains = [job["id"] for job in run.jobs if job["kind"] == "train"]
    for id in (*trains, run.newest and run.newest.job):
        job = books.jobs.get(id or "")
        if job is not None and not job.over:
            words = f"job {job.id} trains it ({job.state}); {look} cancel it first: scancel {job.id}"
            raise HpcrlError(f"{path}: {words}")
    if run.newest is not None and (how := lives(run, books, datetime.now(UTC))):
        raise HpcrlError(f"{path}: attempt {run.newest.number} trains it ({how}); {look} stop it first")


def _is_hpcrl(pid: int) -> bool:
    """Whether the process lives and is no other that got its number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"python" in words or b"hpcrl" in words
    except OSError:
        return False
