"""What the log of a job says of its end: the line that tells best, the rank that crashed, Slurm's own words.

Reads only, the last of a long log, and never fails. Knows no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAIL_BYTES = 256 * 1024
_START = re.compile(r"^start \S+ job (?P<job>\S+) attempt (?P<attempt>\d+) on ")
_END = re.compile(r"^end \S+ exit code (?P<code>\d+)$")
_STAMP = re.compile(r"(start|end) \d{4}-|job \S+ is ")
# In a file's name: of this width, which thing.
_SIGN = re.compile(r"%(\d*)(.)")
# Most telling first.
_ERRORS = (
    re.compile(r"^error: (?P<say>rank \d+.* hangs: .*)"),
    re.compile(r"^error: (?:rank \d+: )?(?P<say>out of memory on rank .*)"),
    re.compile(r"(?P<say>CUDA out of memory.*|.*OutOfMemoryError.*|.*can't allocate memory.*)"),
    re.compile(
        r"(?:^slurmstepd\S* error: |^)(?P<say>Exceeded job memory limit|.*oom[-_ ]kill event.*|"
        r".*exceeded memory limit.*)",
        re.I,
    ),
    re.compile(r"^error: (?!.*lost another rank)(?P<say>.*)"),
    re.compile(r"^fail (?P<say>\w+: .*)"),  # of hpcrl verify, which a job runs first
    re.compile(r"^(?P<say>Fatal Python error: .*)"),
    re.compile(r"^(?P<say>[A-Za-z_][\w.]*(?:Error|Exception)(?:: .*)?)$"),
)
_CRASH = re.compile(r"^srun: error: (?P<node>\S+): tasks? (?P<task>[\d,-]+): (?P<what>.*)")
_OF_OTHERS = re.compile(r"Terminated|Exited with exit code (1|2|75|143)$")
# By Slurm, or by hpcrl.launch.again.
_PREEMPTED = re.compile(r"DUE TO PREEMPTION|^.*job \S+ .*\(preempted; ")
_LEFT = re.compile(r"^job \S+ (?:is not|could not be) started again: (?P<say>.*)")
_SLURM = re.compile(r"^slurmstepd[^:]*: error: (?P<say>\*\*\* JOB .*\*\*\*)")


@dataclass(frozen=True)
class LogWords:
    """What a log says of an end, as far as it does."""

    error: str = ""
    """The line that tells best what went wrong."""
    last: str = ""
    """The last line but the script's own."""
    crash: str = ""
    """The rank that ended first of itself, by srun: "rank 3 on node1: Segmentation fault"."""
    slurm: str = ""
    """Slurm's own stars: "JOB 12 ON node1 CANCELLED AT ... DUE TO TIME LIMIT"."""
    preempted: bool = False
    left: str = ""
    """Why hpcrl.launch.again did not have the job start again."""
    code: int | None = None
    """Exit code that the script stamped at its end."""


def usual_log(job: str, *folders: Path) -> Path | None:
    """Of sbatch slurm/train.sbatch, which writes it where it was called, if it is in one of the folders."""
    paths = [folder / f"hpcrl_{job.partition('_')[0]}.log" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def log_of(run: Path, jobs: Iterable[Mapping[str, Any]], job: str, output: str = "") -> Path | None:
    """The log of ``job``: rank 0's of a submitted run, else the one that Slurm names, or the usual one.

    ``jobs``: submission.json's; ``output``: Slurm's word, where it knows one.
    """
    logs = [str(known["log"]) for known in jobs if known["id"] == job and known["log"]]
    candidates = [run / log.replace("%t", "0") for log in logs]
    if (named := named_log(output, job)) is not None:
        candidates.append(named)
    there = next((path for path in candidates if path.is_file()), None)
    return there or usual_log(job, run.parent.parent, Path.cwd())  # most often beside the checkpoints


def named_log(output: str, job: str, name: str = "") -> Path | None:
    """A log's path as Slurm tells it, %j, %x, %4a and the like replaced; None where it cannot be known."""
    number, _, task = job.partition("_")
    known = {"j": number, "J": number, "A": number, "a": task, "x": name, "t": "0", "n": "0", "%": "%"}
    signs = [found[2] for found in _SIGN.finditer(output)]
    if not output or any(not known.get(sign) for sign in signs):
        return None
    return Path(_SIGN.sub(lambda found: known[found[2]].zfill(int(found[1] or 0)), output))


def read_words(log: Path | None, restart: int | None = None) -> LogWords:
    """Of the start with this restart count, or of the last one; a job's starts are stamped in its log."""
    lines = _section(_tail(log) if log is not None else [], restart)
    ends = [found for found in map(_END.match, lines) if found]
    return LogWords(
        error=_best(lines, _ERRORS),
        last=next((line[:400] for line in reversed(lines) if line and not _STAMP.match(line)), ""),
        crash=_crash(lines),
        slurm=_best(lines, (_SLURM,)),
        left=_best(lines, (_LEFT,)),
        preempted=any(_PREEMPTED.search(line) for line in lines),
        code=int(ends[-1]["code"]) if ends else None,
    )


def _crash(lines: list[str]) -> str:
    """The first rank that srun names before Slurm itself ended the job, and not for another's sake."""
    stopped = next((k for k, line in enumerate(lines) if _SLURM.match(line)), len(lines))
    ended = [
        found
        for found in map(_CRASH.match, lines[:stopped])
        if found and not _OF_OTHERS.search(found["what"])
    ]
    # KILL is also what srun sends, in the end, to those that outlive a dead rank.
    first = next((found for found in ended if "Killed" not in found["what"]), next(iter(ended), None))
    return f"rank {first['task']} on {first['node']}: {first['what']}" if first else ""


def _section(lines: list[str], restart: int | None) -> list[str]:
    starts = [(k, int(found["attempt"]) - 1) for k, line in enumerate(lines) if (found := _START.match(line))]
    wanted = [k for k, count in starts if restart is None or count == restart]
    if not wanted:
        return lines if not starts else []
    ends = [k for k, _ in starts if k > wanted[-1]]
    return lines[wanted[-1] : ends[0] if ends else len(lines)]


def _best(lines: list[str], patterns: tuple[re.Pattern[str], ...]) -> str:
    for pattern in patterns:
        for line in lines:  # the first: what follows is most often its consequence
            if found := pattern.search(line):
                return found["say"].strip()[:400]
    return ""


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return ["".join(c for c in line if c.isprintable()).rstrip() for line in plain.splitlines()]
