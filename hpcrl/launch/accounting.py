"""What Slurm knows of jobs: the queue, which forgets a job minutes after its end, and accounting.

Either may be missing: then the other answers, and a note says so once. Nothing here raises, or knows torch.
Times are local, as Slurm's. Accounting keeps each start of a requeued job, and who cancelled it.
"""

from __future__ import annotations

import contextlib
import pwd
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from hpcrl.types import HpcrlError
from hpcrl.world.slurm import NoSlurm, SlurmRefused, run_slurm

OVER = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "TIMEOUT", "REVOKED",
))  # fmt: skip
"""States of jobs, or of one start of a job, that are over."""
_ANSWER_SECONDS = 15.0
_QUEUE = (
    "JobArrayID", "State", "Reason", "exit_code", "StartTime", "EndTime", "TimeLimit", "NodeList",
    "RestartCnt", "Dependency", "Name", "STDOUT",
)  # fmt: skip
_BOOKS = ("JobID", "State", "ExitCode", "DerivedExitCode", "Start", "End", "Timelimit", "NodeList", "JobName",
          "Submit", "Reason")  # fmt: skip
_MARK = "\x1f"
"""Between squeue's fields; no name or path holds it."""


@dataclass(frozen=True)
class Start:
    """One start of a job, by accounting: a requeued job has several."""

    state: str
    exit_code: int
    signal: int
    start: datetime | None
    end: datetime | None
    nodes: str


@dataclass(frozen=True)
class JobState:
    """A job as it is now, or as it ended."""

    id: str
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING, CANCELLED, FAILED, ..."""
    exit_code: int = 0
    signal: int = 0
    """Of the batch script; 53: Slurm could not start it."""
    reason: str = ""
    """Why it waits, or ended; "" for none."""
    start: datetime | None = None
    """Of a waiting job: the expected one."""
    end: datetime | None = None
    """Of a running job: its time limit."""
    time_limit: str = ""
    nodes: str = ""
    restarts: int = 0
    dependency: str = ""
    name: str = ""
    output: str = ""
    """The log's path, as far as the controller still knows it; may hold %j and the like."""
    cancelled_by: str | None = None
    """The user's name, where accounting tells."""
    starts: tuple[Start, ...] = field(default=())
    """By accounting, in order of time."""

    @property
    def over(self) -> bool:
        return self.state in OVER


@dataclass(frozen=True)
class Books:
    """``jobs`` by id, without those that Slurm does not know; ``notes``: what could not be asked, and why."""

    jobs: dict[str, JobState]
    notes: tuple[str, ...] = ()
    reachable: bool = True
    """False: neither the controller nor accounting answered, so that a job's absence says nothing."""


def read_jobs(ids: Sequence[str]) -> Books:
    """The states of these jobs (12, or 12_3), by one call of squeue and one of sacct."""
    wanted = list(dict.fromkeys(ids))
    if not wanted:
        return Books({})
    notes: list[str] = []
    queue = _ask(notes, lambda: _read_queue(wanted))
    if queue is None and any("no squeue" in note or "finds no cluster" in note for note in notes):
        return Books({}, tuple(notes), reachable=False)  # sacct would say the same
    starts = _ask(notes, lambda: _read_accounting(wanted))
    jobs: dict[str, JobState] = dict(queue or {})
    for job, found in (starts or {}).items():
        array, _, together = job.partition("_[")
        if not together:
            jobs[job] = _join(jobs.get(job), found)
        elif not any(id.startswith(f"{array}_") for id in queue or ()):  # which tells each that waits
            for task in _tasks(together):
                jobs.setdefault(f"{array}_{task}", replace(_join(None, found), id=f"{array}_{task}"))
    return Books(jobs, tuple(notes), reachable=queue is not None or starts is not None)


def _tasks(text: str) -> list[int]:
    """Of tasks that wait, or were cancelled, together: "0-2,5%2]" is 0, 1, 2, 5."""
    numbers: list[int] = []
    for part in re.findall(r"\d+(?:-\d+)?", text.partition("%")[0]):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _ask(notes: list[str], read: Callable[[], dict]) -> dict | None:
    try:
        return read()
    except HpcrlError as error:
        notes.append(_note(error))
        return None


def _note(error: HpcrlError) -> str:
    text = str(error)
    if "accounting storage is disabled" in text.lower() or (isinstance(error, NoSlurm) and "sacct" in text):
        return "this cluster keeps no accounting: who cancelled a job, or how an older one ended, is unknown"
    return text


def _read_queue(ids: list[str]) -> dict[str, JobState]:
    fields = ",".join(f"{name}:{_MARK}" for name in _QUEUE)
    try:
        text = run_slurm(
            ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}", "-O", fields],
            _ANSWER_SECONDS,
        )
    except SlurmRefused as error:
        if "invalid job id" in str(error).lower():  # of a single job that it has forgotten
            return {}
        raise
    jobs = {}
    for line in text.splitlines():
        values = line.split(_MARK)
        if len(values) > len(_QUEUE):
            job = _of_queue(dict(zip(_QUEUE, (value.strip() for value in values), strict=False)))
            jobs[job.id] = job
    return jobs


def _of_queue(row: dict[str, str]) -> JobState:
    code, signal = _wait_status(row["exit_code"])
    return JobState(
        id=row["JobArrayID"],
        state=row["State"],
        exit_code=code,
        signal=signal,
        reason=_known(row["Reason"]),
        start=_time(row["StartTime"]),
        end=_time(row["EndTime"]),
        time_limit=_known(row["TimeLimit"]),
        nodes=_known(row["NodeList"]),
        restarts=int(row["RestartCnt"]) if row["RestartCnt"].isdigit() else 0,
        dependency=_known(row["Dependency"]),
        name=row["Name"],
        output=_known(row["STDOUT"]),
    )


def _wait_status(text: str) -> tuple[int, int]:
    """(exit code, signal) of squeue's raw status of wait()."""
    status = int(text) if text.isdigit() else 0
    return (0, status & 0x7F) if status & 0x7F else (status >> 8 & 0xFF, 0)


def _read_accounting(ids: list[str]) -> dict[str, list[dict[str, str]]]:
    fields = ",".join(f"{name}%200" if name in ("State", "JobID") else name for name in _BOOKS)
    text = run_slurm(
        ["sacct", "--noheader", "--parsable2", "--duplicates", "--allocations", f"--jobs={','.join(ids)}",
         f"--format={fields}"],
        _ANSWER_SECONDS,
    )  # fmt: skip
    found: dict[str, list[dict[str, str]]] = {}
    for line in text.splitlines():
        values = line.split("|")
        if len(values) == len(_BOOKS):
            row = dict(zip(_BOOKS, values, strict=True))
            found.setdefault(row["JobID"], []).append(row)
    return found


def _join(queued: JobState | None, rows: list[dict[str, str]]) -> JobState:
    """The queue's record with accounting's starts; accounting alone where the queue has forgotten the job."""
    rows = sorted(rows, key=lambda row: row["Submit"])
    last = rows[-1]
    starts = tuple(_of_books(row) for row in rows if _time(row["Start"]) is not None)
    by = re.match(r"CANCELLED by (\d+)", last["State"])
    who = _user(by[1]) if by else None
    if queued is not None:
        return replace(queued, starts=starts, cancelled_by=who)
    final = _of_books(last)
    return JobState(
        id=last["JobID"], state=final.state, exit_code=final.exit_code, signal=final.signal,
        reason=_known(last["Reason"]), start=final.start, end=final.end, time_limit=_known(last["Timelimit"]),
        nodes=final.nodes, restarts=max(len(starts) - 1, 0), name=last["JobName"], cancelled_by=who,
        starts=starts,
    )  # fmt: skip


def _of_books(row: dict[str, str]) -> Start:
    code, _, signal = row["ExitCode"].partition(":")
    derived = row["DerivedExitCode"].partition(":")[2]
    number = int(code) if code.isdigit() else 0
    # A script that ends with 128 + 9, since a task of its was killed, is written as 9:0 and, derived, 0:9.
    if number and derived == code:
        number += 128
    state = row["State"].split(" ")[0].rstrip("+")
    end = _time(row["End"])
    nodes = _known(row["NodeList"])
    return Start(state, number, int(signal) if signal.isdigit() else 0, _time(row["Start"]), end, nodes)


def _known(text: str) -> str:
    """Slurm has many words for nothing."""
    empty = ("(null)", "None", "N/A", "NONE", "Unknown", "None assigned", "Partition_Limit", "UNLIMITED", "")
    return "" if text in empty else text


def _time(text: str) -> datetime | None:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text)
    return None


def _user(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, OverflowError):
        return f"user {uid}"
