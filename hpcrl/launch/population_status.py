"""``hpcrl pbt status``: how far each member is, what it is worth, what it last decided, and who is best.

Reads files and, for members that Slurm trains, asks Slurm; changes nothing. Knows no torch.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrl.launch.accounting import Books, read_jobs
from hpcrl.launch.logs import read_words
from hpcrl.launch.status_read import RunFiles, jobs_of, read_run
from hpcrl.launch.status_why import judge
from hpcrl.pbt.history import Past, Turn, best_of, read_past
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, Record
from hpcrl.types import HpcrlError

FORMAT = 1
_STATES = {
    "running": "running",
    "starting": "running",
    "finished": "finished",
    "dead": "failed",
}
"""A run's state -> a member's; any other: it waits."""


@dataclass(frozen=True)
class MemberStatus:
    past: Past
    state: str
    """running, waiting (for a place, or to be gone on with), finished or failed."""
    why: str
    """Of one that failed."""
    epoch: int
    job: str | None
    """Of Slurm."""
    pending: bool = False
    """The job is in the queue."""

    @property
    def record(self) -> Record | None:
        return self.past.newest.record if self.past.newest else None

    def to_json(self) -> dict[str, Any]:
        past, record = self.past, self.record
        return {
            "member": past.member,
            "state": self.state,
            "why": self.why or None,
            "job": self.job,
            "epoch": self.epoch,
            "generation": record.generation if record else 0,
            "env_steps": record.env_steps if record else 0,
            "objective": record.objective if record else None,
            "spread": record.spread if record else None,
            "hyperparameters": past.values,
            "parent": list(past.parent) if past.parent else None,
            "last_turn": last_turn(past) or None,
            "exploits": past.exploits,
            "alarms": list(past.alarms),
            "skipped": past.skipped,
            "overhead_seconds": past.seconds,
            "overhead_share": share(past.seconds, past.trained_seconds),
        }


@dataclass(frozen=True)
class PopulationStatus:
    population: Population
    members: tuple[MemberStatus, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Record | None:
        return best_of([member.past for member in self.members])

    def count(self, state: str) -> int:
        return sum(member.state == state for member in self.members)

    @property
    def state(self) -> str:
        """running as long as one member runs; then failed, waiting or finished."""
        return next((each for each in ("running", "failed", "waiting") if self.count(each)), "finished")

    @property
    def overhead(self) -> tuple[float, float | None]:
        """Seconds of all turns, and their share of the members' time."""
        seconds = sum(member.past.seconds for member in self.members)
        return seconds, share(seconds, sum(member.past.trained_seconds for member in self.members))

    @property
    def command(self) -> str:
        """What to type to go on; "" where it runs, waits in Slurm's queue, or is finished."""
        if self.state in ("running", "finished") or any(member.pending for member in self.members):
            return ""
        slurm = (self.population.path / "submission.json").is_file()
        verb = ["submit", "--pbt"] if slurm else ["pbt", "run", "--local"]
        return shlex.join(["hpcrl", *verb, "--population", str(self.population.path)])

    def to_json(self) -> dict[str, Any]:
        population, best = self.population, self.best
        return {
            "format": FORMAT,
            "population": str(population.path),
            "state": self.state,
            "created": population.created,
            "seed": population.seed,
            "generations": population.generations,
            "interval": population.pbt.interval,
            "config_sha256": population.config_sha256,
            "data_sha256": population.data_sha256,
            "best": None if best is None else best.member,
            "members": [member.to_json() for member in self.members],
            "exploits": sum(member.past.exploits for member in self.members),
            "alarms": sum(len(member.past.alarms) for member in self.members),
            "overhead_seconds": self.overhead[0],
            "overhead_share": self.overhead[1],
            "command": self.command or None,
            "notes": list(self.notes),
        }


def read_status(path: Path) -> PopulationStatus:
    """HpcrlError, one line, where ``path`` is no population."""
    population = Population.open(path)
    reader = Reader(population)
    past = read_past(population, reader)
    runs = [_run(population.folder(member)) for member in population.members]
    books = read_jobs([job for run in runs if run is not None for job in jobs_of(run)])
    notes = [f"{file}: {why}" for file, why in sorted(reader.skipped.items())]
    notes += [note for run in runs if run is not None for note in run.notes]
    members = tuple(_member(each, run, books) for each, run in zip(past, runs, strict=True))
    return PopulationStatus(population, members, (*notes, *books.notes))


def _run(folder: Path) -> RunFiles | None:
    """None where the member has not begun."""
    try:
        return read_run(folder)
    except HpcrlError:
        return None


def _member(past: Past, run: RunFiles | None, books: Books) -> MemberStatus:
    if run is None:
        return MemberStatus(past, "waiting", "", 0, None)
    verdict = judge(run, books)
    state = _STATES.get(verdict.state, "waiting")
    why = ""
    if state == "failed":
        why = verdict.why.partition(". It can go on")[0]
        if verdict.cause == "lost" and verdict.job is None:
            told = read_words(run.path / "jobs" / "local.log").error
            why = told or "its process is gone without a word; it can go on from its newest checkpoint"
    return MemberStatus(past, state, why, run.progress.epoch, verdict.job, verdict.state == "pending")


def share(seconds: float, trained: float) -> float | None:
    """Of turns in the time of turns and training; None before the first."""
    return seconds / (seconds + trained) if seconds + trained > 0 else None


def last_turn(past: Past) -> str:
    """What came of it, in words; "" before the first."""
    turn = next((turn for turn in reversed(past.turns) if turn.decided is not None), None)
    if turn is None:
        return ""
    reason = str((turn.decided or {}).get("reason", "")).partition(": not shown")[0]
    return f"{_outcome(turn)} in {turn.record.generation}: {reason}"


def _outcome(turn: Turn) -> str:
    if turn.donor is not None:
        return f"copied member {turn.donor[0]}"
    if turn.abandoned:
        return f"kept ({turn.abandoned})"
    return "kept" if (turn.decided or {}).get("outcome") == "keep" else "about to copy"


def show(path: Path, as_json: bool) -> None:
    """Print what ``hpcrl pbt status PATH`` shows."""
    from hpcrl.launch import population_show
    from hpcrl.launch.status_show import emit

    found = read_status(path)
    emit(found.to_json(), lambda: population_show.page(found), as_json)
