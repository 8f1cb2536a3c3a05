"""What has become of a run, and why: its files, Slurm's word and a log's last words, weighed in this order.

A job that Slurm still holds is what Slurm says. One that is over is what its newest attempt came to
(``status_cause``). Where Slurm cannot be asked, or has nothing to do with the run, its process and its
heartbeat tell whether it lives. Knows no torch.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hpcrl.launch.accounting import Books, JobState, Start
from hpcrl.launch.again import resume_command
from hpcrl.launch.logs import LogWords, read_words
from hpcrl.launch.status_alive import FRESH_SECONDS, current_job, heartbeat_age, lives
from hpcrl.launch.status_cause import Cause, advice_for, unstarted, why_ended
from hpcrl.launch.status_read import RunFiles, moment, spell
from hpcrl.launch.status_waits import advice_waiting, release, waits_for
from hpcrl.storage.attempts import AttemptRecord


@dataclass(frozen=True)
class Verdict:
    """A run's state: pending, starting, running, stopped, finished, dead or unknown."""

    state: str
    cause: str
    why: str
    command: str = ""
    """What to type, "" where nothing is to be done."""
    advice: str = ""
    """What to do before that."""
    job: str | None = None
    """The newest training job."""


def judge(run: RunFiles, books: Books, now: datetime | None = None) -> Verdict:
    """What a run's files and Slurm say together."""
    now = now or datetime.now(UTC)
    job_id = current_job(run, books, now)
    job = books.jobs.get(job_id) if job_id is not None else None
    newest = run.newest
    own = newest if newest is not None and _of_start(newest, job_id, job) else None
    if job is not None and not job.over:
        return _pending(run, books, job) if job.state == "PENDING" else _running(run, job, own, now)
    if own is not None and job is None and (how := lives(run, books, now)):
        stop = f"kill {own.pid}" if own.job is None else f"scancel {own.job}"
        return Verdict("running", "running", how + _pulse(run, now), "", _stalled(run, stop, now), own.job)
    if own is None and newest is None and job is None:
        return _never_begun(run, books, job_id)
    if own is None and job is not None:
        return _before_training(run, books, job)
    assert newest is not None
    cause = attempt_cause(run, newest, books)
    state = "finished" if cause.kind == "finished" else "stopped" if cause.saved else "dead"
    return _verdict(run, state, cause, job_id, now, books)


def attempt_cause(run: RunFiles, attempt: AttemptRecord, books: Books) -> Cause:
    """How one attempt ended; one that runs has no cause yet, and is not asked about."""
    job = books.jobs.get(attempt.job) if attempt.job else None
    slurm: JobState | Start | None = None
    if job is not None and (attempt.restart_count == job.restarts and job.over):
        slurm = job
    elif job is not None and attempt.restart_count < len(job.starts):
        slurm = job.starts[attempt.restart_count]
    words = LogWords()
    if attempt.job is not None:
        words = read_words(run.log_of(attempt.job, job.output if job else ""), attempt.restart_count)
    return why_ended(attempt.end, slurm, words, job.cancelled_by if job and slurm is job else None)


def _of_start(attempt: AttemptRecord, job_id: str | None, job: JobState | None) -> bool:
    """Whether it belongs to the newest start of the newest job."""
    return attempt.job == job_id and (job is None or attempt.restart_count >= job.restarts)


def _pending(run: RunFiles, books: Books, job: JobState) -> Verdict:
    if job.reason.startswith("DependencyNeverSatisfied"):
        return _dependency(run, books, job, f"scancel {job.id}; ")
    kinds = {known["id"]: known["kind"] for known in run.jobs}
    text = f"job {job.id} waits: {waits_for(job, kinds)}"
    if job.start is not None:
        text += f"; expected start {job.start:%Y-%m-%d %H:%M}"
    if run.newest is not None:
        text += f". Attempt {run.newest.number}: {attempt_cause(run, run.newest, books).text}"
    return Verdict("pending", "waiting", text, release(job), advice_waiting(job), job.id)


def _running(run: RunFiles, job: JobState, own: AttemptRecord | None, now: datetime) -> Verdict:
    where = f"job {job.id} on {job.nodes}" if job.nodes else f"job {job.id}"
    if own is None:
        text = f"{where} has started, training has not begun yet"
        return Verdict("starting", "running", text, job=job.id)
    if own.end is not None:
        return Verdict("running", "ending", f"{where} is about to end", job=job.id)
    text = where + _pulse(run, now)
    if job.state in ("RUNNING", "COMPLETING"):
        return Verdict("running", "running", text, "", _stalled(run, f"scancel {job.id}", now), job.id)
    return Verdict("running", "running", f"{text} ({job.state})", job=job.id)


def _pulse(run: RunFiles, now: datetime) -> str:
    """How long a heartbeat is missing, or what it does takes."""
    age, beat = heartbeat_age(run, now), run.heartbeat
    if beat is None or age is None:
        return ""
    stuck = ((moment(beat.get("time")) or now) - (moment(beat.get("since")) or now)).total_seconds()
    phase = f"{beat.get('phase')} of epoch {beat.get('epoch')}"
    if age >= FRESH_SECONDS:
        return f"; no heartbeat for {spell(age)} (last: {phase})"
    return f"; in {phase} for {spell(stuck)}" if stuck >= FRESH_SECONDS else ""


def _stalled(run: RunFiles, stop: str, now: datetime) -> str:
    """What to do where it is said to run, without a heartbeat; ``stop``: the command that ends it."""
    if (heartbeat_age(run, now) or 0.0) < FRESH_SECONDS:
        return ""
    return (
        "it is suspended, or its node or the storage of its folder does not answer: see whether they do. If "
        f"it stays so: {stop}, and go on from the newest checkpoint: {resume_command(run.path)}"
    )


def _never_begun(run: RunFiles, books: Books, job_id: str | None) -> Verdict:
    done, total = run.progress.epoch, run.progress.epochs
    if run.begun:
        text = "its attempts folder is not there (a copy?), so how it ended is unknown"
        state = "finished" if total and done >= total else "stopped"
        return Verdict(state, "unknown", text, "" if state == "finished" else resume_command(run.path, None))
    if job_id is None:
        return Verdict("unknown", "unknown", "the folder is prepared, and no job of it is known")
    if not books.reachable:
        return Verdict("unknown", "unknown", f"submitted as job {job_id}; no attempt has begun", job=job_id)
    if failed := _failed_before(run, books, job_id):
        return _dependency(run, books, failed, "")
    text = f"job {job_id} never began to train, and Slurm no longer knows it"
    return Verdict("dead", "lost", text, resume_command(run.path, job_id), job=job_id)


def _failed_before(run: RunFiles, books: Books, job_id: str) -> JobState | None:
    """The job that this one waits for, if that has failed."""
    after = next((job["after"] for job in run.jobs if job["id"] == job_id), None)
    before = books.jobs.get(after) if after else None
    return before if before is not None and before.over and before.state != "COMPLETED" else None


def _before_training(run: RunFiles, books: Books, job: JobState) -> Verdict:
    """The newest start of the job is over, and came to no attempt."""
    command = resume_command(run.path, job.id)
    if job.reason.startswith("Dependency") or _failed_before(run, books, job.id):
        return _dependency(run, books, job, "")
    cause, advice = unstarted(job, run.log_of(job.id, job.output))
    if cause.kind == "cancelled" and run.newest is not None:
        by = f" by {job.cancelled_by}" if job.cancelled_by else ""
        cause = replace(cause, text=f"job {job.id} was cancelled{by} before it trained again")
    return Verdict("dead", cause.kind, cause.text, command, advice, job.id)


def _dependency(run: RunFiles, books: Books, job: JobState, first: str) -> Verdict:
    """A job before this one in the chain has failed."""
    before = _failed_before(run, books, job.id)
    if before is None:
        text = f"job {job.id} cannot run: what it waits for ({job.dependency or job.reason}) cannot come"
        command = resume_command(run.path, job.id)
        return Verdict("dead", "dependency", text, command, first.removesuffix("; "), job.id)
    name = next((known["kind"] for known in run.jobs if known["id"] == before.id), "job")
    log = run.log_of(before.id, before.output)
    words = read_words(log, before.restarts)
    ended = f"exit code {before.exit_code}" if before.state == "FAILED" else before.state
    detail = f": {words.error}" if words.error else ""
    text = f"its {name} job {before.id} failed ({ended}){detail}; so the training job {job.id} never ran"
    # The chain as it was typed: a run that is resumed stages nothing.
    command = shlex.join(["hpcrl", *run.submit_words])
    if run.submit_folder:  # where its relative paths begin
        command = f"{shlex.join(['cd', run.submit_folder])} && {command}"
    return Verdict(
        "dead", "dependency", text, command, f"{first}mend that{f' (log: {log})' if log else ''}", job.id
    )


def _verdict(
    run: RunFiles, state: str, cause: Cause, job: str | None, now: datetime, books: Books
) -> Verdict:
    newest = run.newest
    assert newest is not None
    text = cause.text
    if cause.kind == "finished":
        return Verdict(
            state,
            "finished",
            "all epochs are done",
            shlex.join(["hpcrl", "evaluate", str(run.path)]),
            job=job,
        )
    if cause.kind == "lost":
        age = heartbeat_age(run, now)
        where = f"process {newest.pid} on {newest.host}"
        text = (
            f"{where} is gone and left no result"
            if newest.job is None
            else f"job {newest.job} left no result"
        )
        if not books.reachable and newest.job is not None:
            text = f"Slurm cannot be asked; {where} has not said how it ended"
        if age is not None:
            text += f"; its last heartbeat is {spell(age)} old"
    command = resume_command(run.path)
    if run.checkpoint is not None:
        text += f". It can go on after epoch {run.checkpoint}"
    return Verdict(state, cause.kind, text, command, advice_for(cause), job)
