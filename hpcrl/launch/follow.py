"""Waiting for submitted jobs: what becomes of each is told as it happens.

Slurm is asked by scontrol, and by accounting for jobs that it has forgotten; submitit's own results are not
used, for a job that dies leaves none. A training job that ended early goes on in its successor.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from hpcrl.launch.local_job import last_words
from hpcrl.launch.submit import OVER, read_submission
from hpcrl.types import HpcrlError
from hpcrl.world.slurm import NoSlurm, SlurmDown, SlurmRefused, run_slurm, show_job

_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.5, 10.0
UNKNOWN = "UNKNOWN"
"""The state of a job that Slurm has forgotten, without accounting to ask."""


class State(NamedTuple):
    name: str
    """Slurm's: PENDING, RUNNING, COMPLETED, ..."""
    about: str = ""
    """Why it waits, where it runs, or its exit code."""

    @property
    def over(self) -> bool:
        return self.name in OVER or self.name == UNKNOWN


def state_of(job: str) -> State:
    """What Slurm says of a job now. SlurmDown: it does not answer."""
    try:
        shown = show_job(job)
    except SlurmRefused:
        return _accounted(job)
    name = shown.get("JobState", UNKNOWN)
    if name == "PENDING":
        return State(name, shown.get("Reason", ""))
    if name in OVER:
        code, _, number = shown.get("ExitCode", "").partition(":")
        return State(name, f"signal {number}" if number not in ("", "0") else f"exit code {code}")
    return State(name, shown.get("NodeList", ""))


def _accounted(job: str) -> State:
    with contextlib.suppress(HpcrlError):
        said = run_slurm(["sacct", "-X", "-P", "-n", "-j", job, "--format=State,ExitCode"])
        name, _, code = said.strip().rpartition("\n")[2].partition("|")
        if name:
            return State(name.split()[0], f"exit code {code.partition(':')[0]}")
    return State(UNKNOWN, "Slurm no longer knows it, and there is no accounting to ask")


def follow(run: Path, ids: list[str], show_table: bool = True) -> int:
    """Wait for the jobs ``ids`` of a run, in their order, and their successors.

    0: all are COMPLETED. 1: one is not, and those after it are cancelled. Ctrl-C ends the waiting, not the
    jobs: 130.
    """
    look = f"hpcrl status {shlex.quote(str(run))}"
    try:
        for place, first in enumerate(ids):
            job, state = _last_of(run, first)
            kind = _entry(run, job)["kind"]
            if state.name != "COMPLETED":
                _cancel(run, ids[place + 1 :])
                _tell_failure(run, job, kind, state, len(ids) - place - 1)
                say(f"to look: {look}")
                return 1
        if show_table and kind == "evaluate":
            print(table_of(log_of(run, job)), flush=True)
    except KeyboardInterrupt:
        jobs = read_submission(run)["jobs"]
        rest = [each["id"] for each in jobs if each["id"] in ids or each["successor_of"] in ids]
        say(f"\nno longer waiting; the jobs go on. To look: {look}; to cancel: scancel {' '.join(rest)}")
        return 130
    return 0


def _last_of(run: Path, job: str) -> tuple[str, State]:
    """The job, or the last of its successors, once it is over; each change is told."""
    seconds, quiet = _FIRST_POLL_SECONDS, False
    told: State | None = None
    while True:
        try:
            state = state_of(job)
        except (SlurmDown, NoSlurm) as error:
            if not quiet:
                say(f"{error}; still waiting")
            quiet, state = True, None
        if state is not None:
            quiet, seen_before = False, state == told
            if not seen_before:
                say(f"{_entry(run, job)['kind']} {job}: {state.name} {state.about}".rstrip())
                told, seconds = state, _FIRST_POLL_SECONDS
            # A job that is being requeued may look ended for a moment.
            if state.name == "COMPLETED" or (state.over and seen_before):
                # Noted before its predecessor ends.
                following = [e["id"] for e in read_submission(run)["jobs"] if e["successor_of"] == job]
                if not following:
                    return job, state
                job, told = following[-1], None
                continue
        time.sleep(seconds)
        seconds = min(1.5 * seconds, _LAST_POLL_SECONDS)


def _tell_failure(run: Path, job: str, kind: str, state: State, rest: int) -> None:
    log = log_of(run, job)
    after = "; the jobs after it were cancelled" if rest else ""
    about = f" ({state.about})" if state.about else ""
    say(f"error: the {kind} job {job} ended as {state.name}{about}: {last_words(log)}{after}. Log: {log}")


def _cancel(run: Path, ids: list[str]) -> None:
    """Slurm cancels them too, for what they depend on cannot come any more; but in its own time."""
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
