"""What a population left on disk, as ``verify`` looks at it: every attempt's journal, and every record.

Records are told apart by the sha256 of their files. What an attempt published lies in its own folder; a copy
that has changed spoils that record for everybody, whatever other copies say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, Record, parse, record_name
from hpcrl.types import HpcrlError

Line = dict[str, Any]
SUMS = ("objective", "spread", "env_steps")
"""What a record and its line ``published`` say of it."""


@dataclass(frozen=True)
class Problem:
    member: int
    generation: int
    """0: of none."""
    file: str
    """Relative to the population's folder."""
    text: str

    def __str__(self) -> str:
        return f"member {self.member}, generation {self.generation}: {self.file}: {self.text}"


@dataclass(frozen=True)
class Chapter:
    """What one attempt of a member left."""

    member: int
    folder: Path
    """attempts/N/pbt, relative to the population's."""
    lines: list[Line]
    """A line that several attempts have is the same object."""
    files: dict[int, str]
    """generation -> sha256 of its record's file."""

    @property
    def journal(self) -> str:
        return str(self.folder / "journal.jsonl")

    def record(self, generation: int) -> str:
        return str(self.folder / "records" / record_name(generation))


class Evidence:
    """Read once, at the start. ``problems``: what was wrong with the files themselves."""

    def __init__(self, population: Population) -> None:
        self.population = population
        self.problems: list[Problem] = []
        self._named: set[tuple[int, int, str]] = set()
        self._data: dict[tuple[int, int, str], bytes] = {}
        self._of_inode: dict[tuple[int, int], str] = {}
        self._spoilt: dict[tuple[int, int, str], str] = {}
        self._parsed: dict[tuple[int, int, str], Record] = {}
        self._sums: dict[tuple[int, int, str], tuple[dict[str, Any], dict[str, Any]]] = {}
        self.chapters = {member: list(self._read_member(member)) for member in population.members}
        """Of each member, by attempt."""
        for chapters in self.chapters.values():
            for chapter in chapters:
                self._compare_published(chapter)

    @property
    def records(self) -> int:
        """Different record files."""
        return len(self._data)

    def problem(self, member: int, generation: int, file: str, text: str) -> None:
        """Once, however many attempts have copied a line."""
        if (member, generation, text) not in self._named:
            self._named.add((member, generation, text))
            self.problems.append(Problem(member, generation, file, text))

    def record(self, member: int, generation: int, sha256: str) -> Record:
        """HpcrlError saying why that record cannot be relied on."""
        key = (member, generation, sha256)
        name = f"record {generation} of member {member} (sha256 {sha256[:12]}...)"
        if key in self._spoilt:
            raise HpcrlError(f"{name}: {self._spoilt[key]}")
        if key not in self._parsed:
            if key not in self._data:
                raise HpcrlError(f"{name}: no attempt of that member has it")
            try:
                self._parsed[key] = parse(self._data[key], self.population, member, generation)
            except HpcrlError as error:
                raise HpcrlError(f"{name}: {error}") from None
        return self._parsed[key]

    def sums(self, record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
        """objective, spread and env_steps: as they follow from the record, and as its file has them."""
        key = (record.member, record.generation, record.sha256)
        if key not in self._sums:
            raw = json.loads(self._data[key])
            self._sums[key] = (
                {name: getattr(record, name) for name in SUMS},
                {name: raw[name] for name in SUMS},
            )
        return self._sums[key]

    def _read_member(self, member: int) -> Iterator[Chapter]:
        attempts = self.population.folder(member) / "attempts"
        reader, known = Reader(self.population), dict[bytes, Line | None]()
        for number in sorted(int(name) for name in reader.share.names(attempts) if name.isdigit()):
            folder = attempts / str(number) / "pbt"
            if not (journal := folder / "journal.jsonl").exists():
                if folder == reader.folder(member):  # else it ended before it began
                    self.problem(
                        member, 0, self._relative(journal), "is not there, yet its attempt took over"
                    )
                continue
            files = {}
            for generation in sorted(reader.generations(folder)):
                path = folder / "records" / record_name(generation)
                try:
                    files[generation] = self._add(path, member, generation)
                except OSError as error:
                    why = f"cannot be read: {error.strerror or error}"
                    self.problem(member, generation, self._relative(path), why)
            lines = self._read_journal(member, journal, known)
            yield Chapter(member, Path(self._relative(folder)), lines, files)

    def _add(self, path: Path, member: int, generation: int) -> str:
        """sha256 of a record's file; one that two attempts have linked is read once."""
        status = path.stat()
        inode = (status.st_dev, status.st_ino)
        if inode not in self._of_inode:
            data = path.read_bytes()
            self._of_inode[inode] = sha256(data).hexdigest()
            self._data[member, generation, self._of_inode[inode]] = data
        return self._of_inode[inode]

    def _read_journal(self, member: int, path: Path, known: dict[bytes, Line | None]) -> list[Line]:
        """A crash tears the last line alone: it has no line break. Nothing else may be unreadable."""
        lines = []
        try:
            texts = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            self.problem(member, 0, self._relative(path), f"cannot be read: {error.strerror or error}")
            return []
        for number, text in enumerate(texts, 1):
            if text not in known:
                known[text] = _line(text)
            line = known[text]
            if line is None:
                self.problem(member, 0, self._relative(path), f"line {number} is no line of a journal")
            else:
                lines.append(line)
        return lines

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.population.path)

    def _compare_published(self, chapter: Chapter) -> None:
        for line in chapter.lines:
            if line["event"] != "published":
                continue
            member, generation, stated = chapter.member, line["generation"], str(line.get("sha256"))
            found = chapter.files.get(generation)
            if found != stated:
                file = chapter.record(generation)
                stands = "it is not there" if found is None else f"its sha256 is {found[:12]}..."
                why = f"published with sha256 {stated[:12]}..., now {stands}"
                self.problem(member, generation, file, why)
                self._spoilt.setdefault((member, generation, stated), f"{file}: {why}")


def _line(text: bytes) -> Line | None:
    """None: no line of a journal."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    whole = isinstance(value, dict) and isinstance(value.get("event"), str)
    return value if whole and type(value.get("generation")) is int else None
