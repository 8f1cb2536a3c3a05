"""What members tell each other: one file per generation, immutable, complete from the moment it is seen.

A record is written last: the snapshot that it names is there already. A reader trusts nothing: a share may
show files late, or a file whose contents are not there yet. What is torn, foreign or not to be understood is
passed over, and counted by its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hpcrl.pbt.population import Population
from hpcrl.pbt.select import Seen
from hpcrl.storage.atomic import write_text
from hpcrl.types import HpcrlError, RunFailed

FORMAT = 1
ALARM_TURNS = 3
MOST_KNOWN = 2048
"""Records that a reader keeps in memory."""
_NAME = re.compile(r"^(\d{6})\.json$")


def record_name(generation: int) -> str:
    return f"{generation:06d}.json"


def snapshot_name(generation: int) -> str:
    return f"{generation:06d}.pt"


@cache
def _generation(name: str) -> int | None:
    """Of a record's file; None for any other. Remembered: all members use the same names, in each turn."""
    found = _NAME.match(name)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Record:
    population: str
    member: int
    generation: int
    attempt: int
    token: str
    epoch: int
    env_steps: int
    scores: tuple[float, ...]
    """Of each validation window, in their order."""
    hyperparameters: dict[str, float]
    """With which it trained up to here."""
    snapshot: str
    """sha256 of the snapshot's file."""
    snapshot_bytes: int
    parent: tuple[int, int] | None
    """(member, generation) of the donor that it took over last; None: its own from the start."""
    created: str
    sha256: str = field(default="", compare=False)
    """Of this record's own file."""

    @property
    def objective(self) -> float:
        return fmean(self.scores)

    @property
    def spread(self) -> float:
        """Standard error of the objective over windows."""
        return stdev(self.scores) / math.sqrt(len(self.scores))

    def seen(self, usable: bool) -> Seen:
        return Seen(self.member, self.generation, self.sha256, self.scores, usable)

    def write(self, folder: Path) -> str:
        """Its sha256. RunFailed: it cannot be written, or a score is no number."""
        bad = [window for window, score in enumerate(self.scores) if not math.isfinite(score)]
        if bad:
            raise RunFailed(
                f"member {self.member}, epoch {self.epoch}: the score of validation window {bad[0]} is "
                f"{self.scores[bad[0]]}: the policy gives no finite numbers any more"
            )
        value = asdict(self)
        del value["sha256"]
        extra = {"format": FORMAT, "objective": self.objective, "spread": self.spread}
        text = json.dumps(value | extra, sort_keys=True, allow_nan=False) + "\n"
        write_text(folder / record_name(self.generation), text)
        return hashlib.sha256(text.encode()).hexdigest()


def parse(data: bytes, population: Population, member: int, generation: int) -> Record:
    """HpcrlError saying what is wrong with it."""
    try:
        value = json.loads(data.decode())
        if not data.endswith(b"\n"):  # torn by one byte: whole JSON, but its sha256 is that of no file
            raise ValueError
    except (ValueError, RecursionError):
        raise HpcrlError("is no whole JSON") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise HpcrlError(f"is no record of format {FORMAT}")
    try:
        record = _typed(value, hashlib.sha256(data).hexdigest())
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise HpcrlError(f"lacks what a record holds ({error!r})") from None
    if (record.population, record.member, record.generation) != (population.id, member, generation):
        raise HpcrlError("is of another population, member or generation")
    if len(record.scores) != population.windows or not all(map(math.isfinite, record.scores)):
        raise HpcrlError(
            f"holds {len(record.scores)} scores, the population has {population.windows} windows"
        )
    if record.hyperparameters.keys() != population.pbt.space.keys():
        raise HpcrlError("holds other hyperparameters than the population's")
    return record


def _typed(value: dict[str, Any], sha256: str) -> Record:
    parent = value["parent"]
    return Record(
        population=str(value["population"]),
        member=int(value["member"]),
        generation=int(value["generation"]),
        attempt=int(value["attempt"]),
        token=str(value["token"]),
        epoch=int(value["epoch"]),
        env_steps=int(value["env_steps"]),
        scores=tuple(float(score) for score in value["scores"]),
        hyperparameters={
            str(key): value if isinstance(value, int) else float(value)
            for key, value in value["hyperparameters"].items()
        },
        snapshot=str(value["snapshot"]),
        snapshot_bytes=int(value["snapshot_bytes"]),
        parent=None if parent is None else (int(parent[0]), int(parent[1])),
        created=str(value["created"]),
        sha256=sha256,
    )


class Share:
    """The shared disk as a reader sees it."""

    def names(self, folder: Path) -> list[str]:
        """[] where the folder is not there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.listdir(folder)
        return []

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def size(self, path: Path) -> int:
        """-1 where it is not there."""
        try:
            return path.stat().st_size
        except OSError:
            return -1


class Reader:
    """The members' records, each read once; lives as long as an attempt does."""

    def __init__(self, population: Population, share: Share | None = None) -> None:
        self.population, self.share = population, share or Share()
        self._known: dict[Path, Record] = {}
        self._ready: dict[Path, bool] = {}
        self.skipped: dict[Path, str] = {}
        """What could not be read in this turn, and why."""
        self._streak: dict[Path, int] = {}
        self._listed: dict[Path, list[int]] | None = None
        """In a member's turn each folder is listed once; None: no turn has begun, each time."""

    def begin_turn(self) -> None:
        self._listed = {}
        self._streak = {path: self._streak.get(path, 0) + 1 for path in self.skipped}
        self.skipped = {}

    def alarms(self) -> list[Path]:
        """Files that could not be read in this turn and the two before it."""
        return sorted(path for path in self.skipped if self._streak.get(path, 0) == ALARM_TURNS - 1)

    def newest(self, member: int, most_steps: float = math.inf) -> tuple[Record, Path] | None:
        """The newest record with at most so many env steps, and the folder (attempts/N/pbt) it is in."""
        folder = self.folder(member)
        generations = self.generations(folder) if folder is not None else []
        while folder is not None and generations:
            record = self.record(folder, member, generations[0])
            if record is None:
                generations = generations[1:]
            elif record.env_steps <= most_steps:
                return record, folder
            else:  # far ahead of us: its records are many, and steps grow with generations
                generations = generations[self._first(folder, member, generations, most_steps) :]
        return None

    def _first(self, folder: Path, member: int, generations: list[int], most_steps: float) -> int:
        """The place of the newest that may have no more steps; one that cannot be read may."""

        def may(generation: int) -> bool:
            record = self.record(folder, member, generation)
            return record is None or record.env_steps <= most_steps

        return bisect_left(generations, True, key=may)

    def folder(self, member: int) -> Path | None:
        """attempts/N/pbt of the newest attempt that has taken over; None while there is none."""
        attempts = self.population.folder(member) / "attempts"
        try:
            numbers = sorted((int(n) for n in self.share.names(attempts) if n.isdigit()), reverse=True)
        except OSError as error:
            self.skipped[attempts] = error.strerror or str(error)
            return None
        for number in numbers:
            if self._is_ready(attempts / str(number) / "attempt.json"):
                return attempts / str(number) / "pbt"
        return None

    def _is_ready(self, path: Path) -> bool:
        if not self._ready.get(path):
            try:
                self._ready[path] = json.loads(self.share.read(path)).get("ready") is True
            except FileNotFoundError:  # claimed a moment ago
                return False
            except (OSError, ValueError, AttributeError) as error:
                self.skipped[path] = str(error)
                return False
        return self._ready[path]

    def generations(self, folder: Path) -> list[int]:
        """Newest first."""
        if self._listed is not None and folder in self._listed:
            return self._listed[folder]
        try:
            names = self.share.names(folder / "records")
        except OSError as error:
            self.skipped[folder / "records"] = error.strerror or str(error)
            return []
        found = sorted((number for name in names if (number := _generation(name)) is not None), reverse=True)
        if self._listed is not None:
            self._listed[folder] = found
        return found

    def record(self, folder: Path, member: int, generation: int) -> Record | None:
        path = folder / "records" / record_name(generation)
        if path not in self._known:
            try:
                self._known[path] = parse(self.share.read(path), self.population, member, generation)
                while len(self._known) > MOST_KNOWN:  # the longest known; read again if it is asked for
                    del self._known[next(iter(self._known))]
            except OSError as error:
                self.skipped[path] = error.strerror or str(error)
                return None
            except HpcrlError as error:
                self.skipped[path] = str(error)
                return None
        return self._known[path]

    def usable(self, record: Record, folder: Path) -> bool:
        """Whether its snapshot is there, as far as its size tells; what it holds, its sha256 tells later."""
        return (
            self.share.size(folder / "snapshots" / snapshot_name(record.generation)) == record.snapshot_bytes
        )
