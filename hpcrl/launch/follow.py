"""Waiting for submitted jobs: what becomes of each is told as it happens.

Slurm is asked (``accounting``), not submitit: a job that dies leaves no result. A training job that ended
early goes on in its successor.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from hpcrl.launch.accounting import JobState, read_jobs
from hpcrl.launch.local_job import last_words
from hpcrl.launch.plan import read_submission
from hpcrl.types import STOPPED_EARLY, HpcrlError
from hpcrl.world.slurm import run_slurm

_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.5, 10.0


def follow(run: Path, ids: list[str], show_table: bool = True) -> int:
    """Wait for the jobs ``ids`` of a run, in their order, and their successors.

    0: all are COMPLETED. 1: one is not, and those after it are cancelled; 75: it stopped early, and nothing
    goes on with it. Ctrl-C ends the waiting, not the jobs: 130.
    """
    look = f"hpcrl status {shlex.quote(str(run))}"
    told: set[str] = set()
    try:
        for place, first in enumerate(ids):
            state = _last_of(run, first, told)
            kind = _entry(run, state.id)["kind"]
            if state.state != "COMPLETED":
                _cancel(ids[place + 1 :])
                _tell_failure(run, kind, state, len(ids) - place - 1)
                say(f"to look: {look}")
                return STOPPED_EARLY if state.exit_code == STOPPED_EARLY else 1
        if show_table and kind == "evaluate":
            print(table_of(log_of(run, state.id)), flush=True)
    except KeyboardInterrupt:
        jobs = read_submission(run)["jobs"]
        rest = [each["id"] for each in jobs if each["id"] in ids or each["successor_of"] in ids]
        say(f"\nno longer waiting; the jobs go on. To look: {look}; to cancel: scancel {' '.join(rest)}")
        return 130
    return 0


def _last_of(run: Path, job: str, told: set[str]) -> JobState:
    """The job, or the last of its successors, once it is over; each change and note is told once."""
    seconds, before = _FIRST_POLL_SECONDS, ""
    while True:
        books = read_jobs([job])
        for note in books.notes:
            if note not in told:
                say(f"note: {note}")
                told.add(note)
        if books.reachable:
            state = books.jobs.get(job, JobState(job, "UNKNOWN", reason="Slurm no longer knows it"))
            line = f"{_entry(run, job)['kind']} {job}: {state.state} {_about(state)}".rstrip()
            seen_before = line == before
            if not seen_before:
                say(line)
                before, seconds = line, _FIRST_POLL_SECONDS
            # A job that is being requeued may look ended for a moment.
            if state.state == "COMPLETED" or ((state.over or state.state == "UNKNOWN") and seen_before):
                following = [e["id"] for e in read_submission(run)["jobs"] if e["successor_of"] == job]
                if not following:  # a successor is noted before its predecessor ends
                    return state
                job, before = following[-1], ""
                continue
        time.sleep(seconds)
        seconds = min(1.5 * seconds, _LAST_POLL_SECONDS)


def _about(state: JobState) -> str:
    """Why it waits, where it runs, how it ended."""
    if state.state in ("PENDING", "UNKNOWN"):
        return state.reason
    if state.state == "COMPLETED":
        return ""
    if state.over:
        return f"signal {state.signal}" if state.signal else f"exit code {state.exit_code}"
    return state.nodes


def _tell_failure(run: Path, kind: str, state: JobState, rest: int) -> None:
    log = log_of(run, state.id)
    after = "; the jobs after it are cancelled" if rest else ""
    about = f" ({_about(state)})" if _about(state) else ""
    ended = f"the {kind} job {state.id} ended as {state.state}{about}"
    say(f"error: {ended}: {last_words(log)}{after}. Log: {log}")


def _cancel(ids: list[str]) -> None:
    """Slurm cancels them too, for what they wait for cannot come any more; but in its own time."""
    if ids:
        with contextlib.suppress(HpcrlError):
            run_slurm(["scancel", *ids])


def _entry(run: Path, job: str) -> dict[str, Any]:
    return next(entry for entry in read_submission(run)["jobs"] if entry["id"] == job)


def log_of(run: Path, job: str) -> Path:
    """Of rank 0, which also has the script's own lines."""
    return run / _entry(run, job)["log"].replace("%t", "0")


def table_of(log: Path) -> str:
    """What the last attempt at an evaluation printed."""
    lines = log.read_text(errors="replace").splitlines()
    starts = [index for index, line in enumerate(lines) if re.match(r"start \d{4}-", line)]
    last = lines[starts[-1] + 1 :] if starts else lines
    return "\n".join(line for line in last if not re.match(r"submitit |end \d{4}-", line))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
