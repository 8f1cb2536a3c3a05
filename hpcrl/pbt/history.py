"""What a population's files tell of its past: each member's turns, who copied whom, what it cost.

Reads the newest attempt of each member that has taken over, changes nothing. Knows no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.mutate import Values
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, Record
from hpcrl.storage.atomic import read_json
from hpcrl.types import HpcrlError

Point = tuple[int, int]
"""(member, generation)."""


@dataclass(frozen=True)
class Turn:
    """A generation of a member: what it published, and what came of it."""

    record: Record
    decided: dict[str, Any] | None
    """The journal's line; None while there is none, and in the last generation."""
    donor: Point | None
    """Whom the member took over after it published this record; None where it went on as it was."""
    abandoned: str
    """Why it went on as it was, although it was to take over another; "" elsewhere."""
    after: Values
    """Hyperparameters from here on."""


@dataclass(frozen=True)
class Past:
    """Of one member."""

    member: int
    start: Values
    """The hyperparameters that it began with."""
    turns: tuple[Turn, ...] = ()
    """Ascending, without records that cannot be read."""
    alarms: tuple[str, ...] = ()
    """Files that could not be read in three turns in a row, and why."""
    skipped: int = 0
    """Times that a record could not be read."""
    seconds: float = 0.0
    """Of all turns."""
    trained_seconds: float = 0.0
    """Between them."""

    @property
    def newest(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    @property
    def values(self) -> Values:
        """The hyperparameters that it has now."""
        return self.newest.after if self.newest else self.start

    @property
    def parent(self) -> Point | None:
        """Whom it took over last."""
        return next((turn.donor for turn in reversed(self.turns) if turn.donor), None)

    @property
    def exploits(self) -> int:
        return sum(turn.donor is not None for turn in self.turns)


def read_past(population: Population, reader: Reader | None = None) -> tuple[Past, ...]:
    """Of every member; one that has not begun has no turns. ``reader.skipped`` names what cannot be read."""
    reader = reader or Reader(population)
    return tuple(_past(population, reader, member) for member in population.members)


def _past(population: Population, reader: Reader, member: int) -> Past:
    start = population.start(member)
    folder = reader.folder(member)
    if folder is None:
        return Past(member, start)
    lines = read_journal(folder / "journal.jsonl")
    told: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        told.setdefault((line["event"], line.get("generation", 0)), line)
    turns = []
    for generation in reversed(reader.generations(folder)):
        record = reader.record(folder, member, generation)
        if record is not None:
            turns.append(_turn(record, told))
    overheads = [line for line in lines if line["event"] == "overhead"]
    return Past(
        member,
        start,
        tuple(turns),
        alarms=tuple(f"{line.get('file')}: {line.get('why')}" for line in lines if line["event"] == "alarm"),
        skipped=sum(line["event"] == "skipped" for line in lines),
        seconds=_total(overheads, "seconds"),
        trained_seconds=_total(overheads, "trained_seconds"),
    )


def _total(lines: list[dict[str, Any]], key: str) -> float:
    return sum(float(value) for line in lines if isinstance(value := line.get(key), int | float))


def _turn(record: Record, told: dict[tuple[str, int], dict[str, Any]]) -> Turn:
    generation = record.generation
    intent, adopted = told.get(("intent", generation)), told.get(("adopted", generation))
    took = intent is not None and adopted is not None
    return Turn(
        record,
        told.get(("decided", generation)),
        donor=(intent["donor"], intent["donor_generation"]) if intent and took else None,
        abandoned=str(told.get(("abandoned", generation), {}).get("why", "")),
        after=dict(intent["hyperparameters"]) if intent and took else record.hyperparameters,
    )


def best_of(past: Sequence[Past]) -> Record | None:
    """The best of all members' newest records; None before the first."""
    newest = [each.newest.record for each in past if each.newest]
    return max(newest, key=lambda record: record.objective, default=None)


def ancestry(past: Sequence[Past], member: int) -> list[Point]:
    """The records whose weights live on in the member's newest one, that one first; generation 0: a start."""
    donors = {(each.member, turn.record.generation): turn.donor for each in past for turn in each.turns}
    newest = past[member].newest
    here = (member, newest.record.generation if newest else 0)
    line = [here]
    while here[1] > 0:
        before = (here[0], here[1] - 1)
        here = donors.get(before) or before
        if here in line:  # no population does that; files that were altered may say so
            break
        line.append(here)
    return line


def data_source(population: Population) -> str | None:
    """Where the bars come from, as a member that has begun tells; None while none has."""
    for member in population.members:
        with contextlib.suppress(HpcrlError, KeyError, TypeError):
            return str(read_json(population.folder(member) / "config.json")["data"]["source"])
    return None
