"""A member's turn: publish, read the others, decide, take over a better one. On rank 0; knows no torch.

Every step is on disk before the next begins, and each is done once: an attempt that a crash cut short is
followed by one that finds its lines in the journal and carries out again what they say. Nobody waits for
anybody; a member that vanishes is a record that grows old.

What the ranks do together (playing the validation windows, saving, loading a donor's snapshot) is
``launch/member``'s.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcrl.config.pbt import PbtConfig
from hpcrl.pbt.journal import Journal, read_journal
from hpcrl.pbt.mutate import Values, explore, stream
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, Record, record_name, snapshot_name
from hpcrl.pbt.select import decide
from hpcrl.storage.atomic import fsync_folder, sha256_of, stage, write_error
from hpcrl.types import HpcrlError, RunFailed

_SNAPSHOT = re.compile(r"^\d{6}\.pt$")
KEPT_PINS = 4
"""Generations for which a donor's snapshot stays pinned: as far back as a run may have to resume."""


@dataclass(frozen=True)
class State:
    """What a member's checkpoint has to keep."""

    generation: int
    """The last one whose turn is over."""
    hyperparameters: Values
    parent: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        parent = None if self.parent is None else list(self.parent)
        return {
            "generation": self.generation,
            "hyperparameters": dict(self.hyperparameters),
            "parent": parent,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> State:
        parent = value["parent"]
        pair = None if parent is None else (parent[0], parent[1])
        return cls(value["generation"], dict(value["hyperparameters"]), pair)


@dataclass(frozen=True)
class Snapshot:
    """A portable checkpoint that is on disk."""

    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What comes of a turn; the same on all ranks."""

    before: State
    state: State
    """From now on."""
    donor: Snapshot | None = None
    """To be loaded first; None: the member keeps what it has."""
    reason: str = ""
    notes: tuple[str, ...] = field(default=())
    """For the log."""


class Owner(Protocol):
    """The attempt that a member writes for (``storage/attempts.Attempt``)."""

    record: Any  # number, token, path

    def check(self) -> None:
        """Raises where a newer attempt has taken over."""


class Member:
    """One member in one attempt. ``source``: the attempt folder whose history it goes on with."""

    def __init__(
        self, population: Population, number: int, owner: Owner, source: Path, reader: Reader | None = None
    ) -> None:
        self.population, self.number, self.owner = population, number, owner
        self.reader = reader or Reader(population)
        self.folder = Path(owner.record.path) / "pbt"
        # The lines first: an attempt before that still writes must not leave us one without its files.
        lines = read_journal(source / "pbt" / "journal.jsonl")
        _inherit(source / "pbt", self.folder, lines)
        self.journal = Journal(self.folder / "journal.jsonl", lines)
        self._tidy = False
        self.journal.append("birth", 0, attempt=owner.record.number, token=owner.record.token)

    def published(self, generation: int) -> Record | None:
        """This member's record of that generation, of whichever of its attempts."""
        return self.reader.record(self.folder, self.number, generation)

    def publish(
        self, state: State, epoch: int, env_steps: int, scores: tuple[float, ...], snapshot: Snapshot
    ) -> Record:
        """Snapshot, then record, then the journal's line."""
        generation = state.generation + 1
        record = self.published(generation)
        if record is None and self.journal.done(generation, "published"):
            file = self.folder / "records" / record_name(generation)
            why = self.reader.skipped.get(file, "missing")
            raise RunFailed(
                f"{file}: is published, says its journal, but it cannot be read ({why}); others may have "
                "decided by it. Restore it from an earlier attempt's folder"
            )
        if record is None:
            self.owner.check()
            target = self.folder / "snapshots" / snapshot_name(generation)
            target.unlink(missing_ok=True)  # of an attempt that did not come to write its record
            _put(snapshot.path, target)
            record = Record(
                population=self.population.id,
                member=self.number,
                generation=generation,
                attempt=self.owner.record.number,
                token=self.owner.record.token,
                epoch=epoch,
                env_steps=env_steps,
                scores=scores,
                hyperparameters=state.hyperparameters,
                snapshot=snapshot.sha256,
                snapshot_bytes=snapshot.bytes,
                parent=state.parent,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            record = replace(record, sha256=record.write(self.folder / "records"))
        told = {"sha256": record.sha256, "objective": record.objective, "spread": record.spread}
        self.journal.append("published", generation, **told, env_steps=record.env_steps)
        self.reader.begin_turn()
        return record

    def choose(self, state: State, record: Record) -> Plan:
        """Decide, and make sure of the donor's snapshot."""
        generation, journal = record.generation, self.journal
        after = replace(state, generation=generation)
        if generation >= self.population.generations:
            journal.append("finished", generation)
            return Plan(state, after, reason="finished")
        notes: list[str] = []
        decided = journal.done(generation, "decided") or self._decide(record, notes)
        if decided["outcome"] == "keep" or journal.done(generation, "abandoned"):
            return Plan(state, after, reason=decided["reason"], notes=tuple(notes))
        intent = journal.append("intent", generation, **decided["intent"])
        pin = self.folder / "pins" / snapshot_name(generation)
        snapshot = Snapshot(pin, intent["snapshot"], intent["snapshot_bytes"])
        try:
            self._pin(intent, snapshot)
        except HpcrlError as error:
            return self.abandon(Plan(state, after, notes=tuple(notes)), str(error))
        after = replace(
            after,
            hyperparameters=dict(intent["hyperparameters"]),
            parent=(intent["donor"], intent["donor_generation"]),
        )
        return Plan(state, after, snapshot, decided["reason"], tuple(notes))

    def _decide(self, record: Record, notes: list[str]) -> dict[str, Any]:
        generation, population = record.generation, self.population
        found = {}
        for member in population.members:
            if member != self.number and (newest := self.reader.newest(member, record.env_steps)):
                found[member] = newest
        seen = [record.seen(True)]
        seen += [other.seen(self.reader.usable(other, folder)) for other, folder in found.values()]
        rng = stream(population.seed, self.number, generation)
        decision = decide(seen[0], seen[1:], population.pbt, rng)
        self._tell_skipped(generation, notes)
        self.owner.check()
        return self.journal.append(
            "decided",
            generation,
            records=[[each.member, each.generation, each.sha256, each.usable] for each in seen],
            outcome=decision.outcome,
            p=decision.p,
            reason=decision.reason,
            intent=None
            if decision.donor is None
            else intent_of(found[decision.donor.member][0], population.pbt, rng),
        )

    def _tell_skipped(self, generation: int, notes: list[str]) -> None:
        for path, why in sorted(self.reader.skipped.items()):
            self.journal.append("skipped", generation, file=self._name(path), why=why)
        for path in self.reader.alarms():
            why = self.reader.skipped[path]
            self.journal.append("alarm", generation, file=self._name(path), why=why)
            notes.append(f"ALARM: {path} could not be read in three turns in a row: {why}")

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.population.path)

    def _pin(self, intent: dict[str, Any], pin: Snapshot) -> None:
        """The donor's snapshot under a name of our own, safe from its pruning; HpcrlError: it is gone."""
        name = f"the snapshot {intent['donor_generation']} of member {intent['donor']}"
        try:
            if _holds(pin):
                return
            pin.path.unlink(missing_ok=True)  # pinned by an attempt before, which decided otherwise
            folder = self.reader.folder(intent["donor"])
            if folder is None:
                raise FileNotFoundError
            _put(folder / "snapshots" / snapshot_name(intent["donor_generation"]), pin.path)
            if _holds(pin):
                return
            pin.path.unlink(missing_ok=True)
        except FileNotFoundError:
            raise HpcrlError(f"{name} is gone") from None
        except OSError as error:
            raise HpcrlError(f"{name} cannot be read: {error.strerror or error}") from None
        raise HpcrlError(f"{name} is not the one that was published")

    def adopted(self, plan: Plan) -> None:
        """The donor's weights, moments and statistics are in place on all ranks."""
        generation, donor = plan.state.generation, plan.state.parent
        assert plan.donor is not None and donor is not None
        self.journal.append("adopted", generation, donor=donor[0], snapshot=plan.donor.sha256)
        before, after = plan.before.hyperparameters, plan.state.hyperparameters
        self.journal.append("explored", generation, before=before, after=after)

    def abandon(self, plan: Plan, why: str) -> Plan:
        """The donor could not be taken over: the member goes on as it is."""
        self.journal.append("abandoned", plan.state.generation, why=why)
        after = replace(plan.before, generation=plan.state.generation)
        return Plan(plan.before, after, reason=f"kept: {why}", notes=plan.notes)

    def prune(self, generation: int) -> None:
        """Own snapshots that nobody will ask for any more, or that there is no room for. Never the newest.

        Who has S env steps behind it asks for the newest of ours with no more: all before that one may go.
        """
        newest = [self.reader.newest(m) for m in self.population.members if m != self.number]
        asked = self.reader.newest(self.number, min(found[0].env_steps if found else 0 for found in newest))
        first = asked[0].generation if asked else 0
        folder = self.folder / "snapshots"
        there = [int(name[:-3]) for name in reversed(_names(folder)) if _SNAPSHOT.match(name)]
        room = self.population.pbt.keep_gb * 1e9 / len(self.population.members)
        gone = []
        for g in there:  # newest first
            room -= (folder / snapshot_name(g)).stat().st_size
            if g != there[0] and (g < first or room < 0):
                gone.append(g)
        if gone:
            self.owner.check()
            self.journal.append("pruned", generation, snapshots=sorted(gone))
        for g in gone:
            self._remove(f"pbt/snapshots/{snapshot_name(g)}")
        for name in _names(self.folder / "pins"):
            if name < snapshot_name(max(generation - KEPT_PINS, 0)):
                self._remove(f"pbt/pins/{name}")
        self._drop_copies()

    def _drop_copies(self) -> None:
        """Where the share has no hard links, what this attempt took over is a copy: the older ones go."""
        own = Path(self.owner.record.path)
        older = [] if self._tidy else [a for a in own.parent.iterdir() if a.name.isdigit()]
        for attempt in older:
            for part in ("snapshots", "pins"):
                for name in _names(attempt / "pbt" / part) if int(attempt.name) < int(own.name) else ():
                    path = attempt / "pbt" / part / name
                    with contextlib.suppress(OSError):
                        if path.stat().st_nlink == 1:
                            path.unlink()
        self._tidy = True

    def _remove(self, name: str) -> None:
        """From this attempt's folder and those before it, which hold links to the same file."""
        own = Path(self.owner.record.path)
        for attempt in own.parent.iterdir():
            if attempt.name.isdigit() and int(attempt.name) <= int(own.name):
                with contextlib.suppress(OSError):
                    (attempt / name).unlink()

    def best(self) -> Record | None:
        """Of all members' newest records; None before the first."""
        found = [seen[0] for m in self.population.members if (seen := self.reader.newest(m))]
        return max(found, key=lambda record: record.objective, default=None)


def intent_of(donor: Record, pbt: PbtConfig, rng: np.random.Generator) -> dict[str, Any]:
    """What a decision for this donor comes to, as the journal tells it."""
    return {
        "donor": donor.member,
        "donor_generation": donor.generation,
        "record": donor.sha256,
        "snapshot": donor.snapshot,
        "snapshot_bytes": donor.snapshot_bytes,
        "hyperparameters": explore(donor.hyperparameters, pbt, rng),
    }


def words(record: Record) -> str:
    """member 3 (generation 12, objective 0.0123 +- 0.0021, lr 3e-4, gamma 0.99)"""
    values = ", ".join(
        f"{key.rpartition('.')[2]} {value:.4g}" for key, value in record.hyperparameters.items()
    )
    return (
        f"member {record.member} (generation {record.generation}, objective {record.objective:.4g} +- "
        f"{record.spread:.2g}, {values})"
    )


def _inherit(source: Path, own: Path, lines: list[dict[str, Any]]) -> None:
    """Records, snapshots and pins of the attempt before, by hard link; nothing where there was none.

    Also what its journal speaks of: another node's list of a folder may be half a minute old.
    """
    told: dict[str, set[str]] = {
        "records": {record_name(line["generation"]) for line in lines if line["event"] == "published"},
        "snapshots": {snapshot_name(line["generation"]) for line in lines if line["event"] == "published"},
        "pins": {snapshot_name(line["generation"]) for line in lines if line["event"] == "intent"},
    }
    try:
        for part, names in told.items():
            (own / part).mkdir(parents=True, exist_ok=True)
            for name in sorted(names.union(_names(source / part))):
                if name[0] != ".":
                    with contextlib.suppress(FileNotFoundError):  # pruned at this moment
                        _link(source / part / name, own / part / name)
            fsync_folder(own / part)
    except OSError as error:
        raise write_error(own, error) from None


def _holds(pin: Snapshot) -> bool:
    try:
        return sha256_of(pin.path) == pin.sha256
    except FileNotFoundError:
        return False


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(folder))
    return []


def _put(source: Path, target: Path) -> None:
    """``_link``, durable."""
    _link(source, target)
    fsync_folder(target.parent)


def _link(source: Path, target: Path) -> None:
    """``target`` as another name of ``source``, or a copy where the share has no hard links.

    FileNotFoundError: there is no ``source``. RunFailed: it cannot be written.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise
    except OSError:
        with source.open("rb") as file:
            stage(target, partial(shutil.copyfileobj, file)).commit()
