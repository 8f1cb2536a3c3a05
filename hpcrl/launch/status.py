"""``hpcrl status``: what has become of a run, of a job, or of the newest runs under ./checkpoints.

Reads files and asks Slurm; changes nothing, and works where torch or Slurm are absent. A run's folder that is
torn or half copied is shown as far as it can be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcrl.launch.accounting import Books, JobState, read_jobs
from hpcrl.launch.logs import named_log, usual_log
from hpcrl.launch.status_cause import removed_run, unstarted
from hpcrl.launch.status_read import RunFiles, jobs_of, moment, read_run
from hpcrl.launch.status_waits import advice_waiting, release, waits_for
from hpcrl.launch.status_why import Verdict, attempt_cause, judge
from hpcrl.storage.attempts import AttemptRecord
from hpcrl.types import HpcrlError

FORMAT = 1
NEWEST = 10
"""Runs in the table."""
_JOB = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True)
class Report:
    """A run with all that is known of it."""

    run: RunFiles
    verdict: Verdict
    books: Books

    def attempt_ends(self) -> list[tuple[AttemptRecord, str]]:
        """Each attempt, and how it ended; "" for one that may still run."""
        ends = []
        for attempt in self.run.attempts:
            live = attempt is self.run.newest and self.verdict.state == "running"
            text = "" if live and attempt.end is None else attempt_cause(self.run, attempt, self.books).text
            ends.append((attempt, text))
        return ends

    def to_json(self) -> dict[str, Any]:
        run, verdict, progress = self.run, self.verdict, self.run.progress
        jobs = [job | _job_json(self.books.jobs.get(job["id"])) for job in run.jobs]
        return {
            "format": FORMAT,
            "run": str(run.path),
            "state": verdict.state,
            "cause": verdict.cause,
            "why": verdict.why,
            "advice": verdict.advice,
            "command": verdict.command,
            "job": verdict.job,
            "epoch": progress.epoch,
            "epochs": progress.epochs,
            "checkpoint_epoch": run.checkpoint,
            "reward": progress.reward,
            "loss": progress.loss,
            "steps_per_second": progress.steps_per_second,
            "seconds_left": progress.seconds_left if verdict.state == "running" else None,
            "heartbeat": run.heartbeat,
            "attempts": [
                {
                    "number": attempt.number,
                    "job": attempt.job,
                    "restart_count": attempt.restart_count,
                    "trigger": attempt.trigger,
                    "host": attempt.host,
                    "world_size": attempt.world_size,
                    "started": attempt.started,
                    "base_epoch": attempt.base_epoch,
                    "end": attempt.end,
                    "ended": ended or None,
                }
                for attempt, ended in self.attempt_ends()
            ],
            "jobs": jobs,
            "notes": [*run.notes, *self.books.notes],
        }


def _job_json(job: JobState | None) -> dict[str, Any]:
    if job is None:
        return {"state": None}
    return {
        "state": job.state,
        "reason": job.reason or None,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "restarts": job.restarts,
        "nodes": job.nodes or None,
        "start": _iso(job.start),
        "end": _iso(job.end),
        "cancelled_by": job.cancelled_by,
    }


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone().isoformat()


def report(path: Path) -> Report:
    """HpcrlError, one line, where ``path`` is no run folder."""
    run = read_run(path)
    books = read_jobs(jobs_of(run))
    return Report(run, judge(run, books), books)


def newest_runs(parent: Path) -> list[Report]:
    """The newest runs in ``parent``, the newest first; Slurm is asked once for all."""
    runs = []
    for path in sorted(parent.glob("dist_run_*"), reverse=True):
        try:
            runs.append(read_run(path))
        except HpcrlError:
            continue
        if len(runs) == NEWEST:
            break
    books = read_jobs([job for run in runs for job in jobs_of(run)])
    return [Report(run, judge(run, books), books) for run in runs]


def is_job(target: str) -> bool:
    return _JOB.fullmatch(target) is not None


def runs_of_job(parent: Path, job: str) -> list[Path]:
    """Runs and members in ``parent`` that the job, or a task of the array ``job``, is for or has trained."""
    found = []
    for path in (*sorted(parent.glob("dist_run_*"), reverse=True), *sorted(parent.glob("pbt_*/members/*"))):
        try:
            jobs = jobs_of(read_run(path))
        except HpcrlError:
            continue
        if any(known == job or known.startswith(f"{job}_") for known in jobs):
            found.append(path)
    return found


@dataclass(frozen=True)
class JobReport:
    """A job that no run is known of: Slurm's word, and what follows from it."""

    id: str
    job: JobState | None
    why: str
    advice: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        shown = {"format": FORMAT, "run": None, "job": self.id, "why": self.why, "advice": self.advice}
        return shown | _job_json(self.job) | {"notes": list(self.notes)}


def report_job(job_id: str) -> list[JobReport]:
    """One; of an array, one for each task. HpcrlError where neither a run nor Slurm knows the job."""
    books = read_jobs([job_id])
    tasks = [job for id, job in books.jobs.items() if id == job_id or id.startswith(f"{job_id}_")]
    if not tasks:
        why = "Slurm does not know it (any more)" if books.reachable else "; ".join(books.notes)
        raise HpcrlError(
            f"job {job_id}: no run under ./checkpoints names it, and {why}; name the run's folder"
        )
    tasks.sort(key=lambda job: [int(part) for part in re.findall(r"\d+", job.id)])
    return [_report_job(job, books.notes) for job in tasks]


def _report_job(job: JobState, notes: tuple[str, ...]) -> JobReport:
    why = advice = ""
    if job.state == "PENDING":
        why = waits_for(job)
        advice = "; ".join(part for part in (advice_waiting(job), release(job)) if part)
        if (run := removed_run(job)) is not None:
            why, advice = f"its run folder {run} was removed", f"scancel {job.id}, then submit again"
    elif job.over and job.state != "COMPLETED":
        log = named_log(job.output, job.id, job.name) or usual_log(job.id, Path.cwd())
        cause, advice = unstarted(job, log)
        why = cause.text
        if cause.kind not in ("cancelled", "dependency", "never_started"):
            where = f" (log: {log})" if log else ""
            advice = f"{advice or 'look into its log'}{where}, then submit it again"
    return JobReport(job.id, job, why, advice, notes)


def show(target: str | None, parent: Path, as_json: bool) -> None:
    """Print what ``hpcrl status TARGET`` shows; ``parent`` holds the runs."""
    from hpcrl.launch import status_show

    if target is None:
        shown = newest_runs(parent)
        if not shown and not as_json:
            raise HpcrlError(f"{parent}: no runs there; name one: hpcrl status RUN")
        status_show.emit([each.to_json() for each in shown], lambda: status_show.table(shown), as_json)
        return
    paths: Sequence[Path] = [Path(target)]
    if is_job(target) and not Path(target).is_dir():
        paths = runs_of_job(parent, target)
        if not paths:
            alone = report_job(target)
            said = [each.to_json() for each in alone]
            status_show.emit(
                said[0] if len(said) == 1 else said, lambda: status_show.jobs_page(alone), as_json
            )
            return
    reports = [report(path) for path in paths]
    if len(reports) == 1:
        status_show.emit(reports[0].to_json(), lambda: status_show.page(reports[0]), as_json)
    else:
        status_show.emit([each.to_json() for each in reports], lambda: status_show.table(reports), as_json)


def local_time(stamp: Any) -> str:
    """A file's stamp in the reader's zone, to the minute."""
    when = moment(stamp)
    return f"{when.astimezone():%m-%d %H:%M}" if when is not None else "?"
