"""Every decision of a population computed again, from population.json, the records and the journals alone.

Each attempt's journal is judged by itself, from its first line to its last: an attempt that a newer one has
replaced may have lines that the newer one never saw, and both are right if their records bear them out.
Whether a snapshot was there (``usable``) cannot be seen afterwards: it is taken from the decision's own line.
For what the decision must come to, nobody's word is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcrl.pbt.evidence import Chapter, Evidence, Line, Problem
from hpcrl.pbt.journal import ONCE
from hpcrl.pbt.mutate import Values, stream
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Record
from hpcrl.pbt.select import decide
from hpcrl.pbt.turn import intent_of
from hpcrl.types import HpcrlError

SAME = 1e-9
"""Relative; for p, objective and spread, whose last digits depend on the library. All else is exact."""
ORDER = ("published", "finished", "decided", "intent", "adopted", "explored", "abandoned")
"""Of a generation's lines, as far as they are there."""
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass
class Report:
    path: Path
    members: int
    started: int = 0
    """Members that have an attempt."""
    attempts: int = 0
    records: int = 0
    decisions: int = 0
    """Different ``decided`` lines; an attempt copies those of the one before."""
    exploits: int = 0
    abandoned: int = 0
    """Exploits that could not be carried out."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.decisions - self.exploits

    @property
    def ok(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        """For people: the counts, every problem, the verdict."""
        counts = (
            f"{self.path}: {self.started} of {self.members} members, {self.attempts} attempts, "
            f"{self.records} records; {self.decisions} decisions computed again: {self.kept} to keep, "
            f"{self.exploits} to take over a donor ({self.abandoned} of them given up)"
        )
        if self.ok:
            return [counts, "Verified: each is what its records come to."]
        return [counts, *map(str, self.problems), f"NOT verified: {len(self.problems)} problems, see above"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "kept": self.kept, "ok": self.ok}


def verify(population: Population) -> Report:
    """Reads every attempt of every member, and changes nothing."""
    evidence = Evidence(population)
    report = Report(population.path, len(population.members), records=evidence.records)
    if population.config.digest() != population.config_sha256:
        evidence.problem(0, 0, "population.json", "config_sha256 is not that of its config")
    for chapters in evidence.chapters.values():
        report.started += bool(chapters)
        report.attempts += len(chapters)
        decided = {id(line): (chapter, line) for chapter, line in _of(chapters, "decided")}
        report.decisions += len(decided)
        report.exploits += sum(line.get("outcome") == "exploit" for _, line in decided.values())
        report.abandoned += len({id(line) for _, line in _of(chapters, "abandoned")})
        for chapter, line in decided.values():
            for text in _recompute(evidence, chapter.member, line):
                evidence.problem(chapter.member, line["generation"], chapter.journal, f"decided: {text}")
        for chapter in chapters:
            _Course(evidence, chapter).judge()
    report.problems = evidence.problems
    return report


def _of(chapters: list[Chapter], event: str) -> Iterator[tuple[Chapter, Line]]:
    return ((chapter, line) for chapter in chapters for line in chapter.lines if line["event"] == event)


def _recompute(evidence: Evidence, member: int, line: Line) -> list[str]:
    """What is wrong with a decision."""
    try:
        return list(_differences(evidence, member, line))
    except HpcrlError as error:
        return [str(error)]
    except _MALFORMED as error:
        return [f"does not hold what a decision holds ({error!r})"]


def _differences(evidence: Evidence, member: int, line: Line) -> Iterator[str]:
    population, generation = evidence.population, line["generation"]
    records = [evidence.record(m, g, sha256) for m, g, sha256, _ in line["records"]]
    own, others = records[0], records[1:]
    if (own.member, own.generation) != (member, generation):
        yield f"begins with record {own.generation} of member {own.member}, not with its own"
    if len({record.member for record in records}) < len(records):
        yield "names a member twice"
    for other in others:
        if other.env_steps > own.env_steps:
            name = f"record {other.generation} of member {other.member}"
            yield f"{name} has {other.env_steps} env steps, more than its own {own.env_steps}"
    rng = stream(population.seed, member, generation)
    seen = [record.seen(usable) for record, (*_, usable) in zip(records, line["records"], strict=True)]
    decision = decide(seen[0], seen[1:], population.pbt, rng)
    intent = None
    if decision.donor is not None:
        donor = records[seen.index(decision.donor)]
        intent = intent_of(donor, population.pbt, rng)
    if line["outcome"] != decision.outcome:
        yield f"outcome is {line['outcome']}, computed {decision.outcome} ({decision.reason})"
    if not _close(line["p"], decision.p):
        yield f"p is {line['p']}, computed {decision.p}"
    yield from _unequal("intent", line["intent"], intent)


class _Course:
    """One journal from its first generation to its last, and the hyperparameters in force on the way."""

    def __init__(self, evidence: Evidence, chapter: Chapter) -> None:
        self.evidence, self.chapter, self.member = evidence, chapter, chapter.member
        self.population = evidence.population
        self.births = [at for at, line in enumerate(chapter.lines) if line["event"] == "birth"]
        self.values: Values = self.population.start(self.member)
        self.parent: tuple[int, int] | None = None
        self.last: Record | None = None
        self.turns: dict[int, dict[str, int]] = {}
        """generation -> event -> its place among the lines."""

    def wrong(self, generation: int, text: str) -> None:
        self.evidence.problem(self.member, generation, self.chapter.journal, text)

    def line(self, generation: int, event: str) -> Line:
        """{}: there is none."""
        at = self.turns.get(generation, {}).get(event)
        return {} if at is None else self.chapter.lines[at]

    def judge(self) -> None:
        for at, line in enumerate(self.chapter.lines):
            if line["event"] in ONCE:
                turn = self.turns.setdefault(line["generation"], {})
                if turn.setdefault(line["event"], at) != at:
                    self.wrong(line["generation"], f"has two lines {line['event']}")
        newest = max(self.turns, default=0)
        for generation in self.turns.keys() - set(range(1, newest + 1)):
            self.wrong(generation, "there is no such generation")
        before = -1
        for generation in range(1, newest + 1):
            turn = self.turns.get(generation, {})
            places = [before, *(turn[event] for event in ORDER if event in turn)]
            if places != sorted(places):
                self.wrong(generation, f"its lines stand in another order than {', '.join(ORDER)}")
            before = max(places)
            try:
                self._published(generation)
                self._ended(generation, newest)
                self._carried_out(generation, newest)
            except _MALFORMED as error:
                self.wrong(generation, f"a line does not hold what it should ({error!r})")

    def _published(self, generation: int) -> None:
        line = self.line(generation, "published")
        if not line:
            return self.wrong(generation, "a hole: has no line published")
        try:
            record = self.evidence.record(self.member, generation, line["sha256"])
        except HpcrlError as error:
            return self.wrong(generation, f"published: {error}")
        own = self.line(generation, "decided").get("records", [[None, None, record.sha256]])[0][2]
        if own != record.sha256:
            self.wrong(generation, f"published {record.sha256[:12]}..., but decided by {own[:12]}...")
        expected, raw = self.evidence.sums(record)
        for name, told in (("published", line), ("the record", raw)):
            for key, value in expected.items():
                if not _close(told[key], value):
                    self.wrong(generation, f"{name}: {key} is {told[key]}, not {value}")
        for text in self._implausible(record):
            self.wrong(generation, f"the record: {text}")
        self.last = record

    def _implausible(self, record: Record) -> Iterator[str]:
        """What a record cannot say after what went before it."""
        yield from _unequal("hyperparameters", record.hyperparameters, self.values)
        if record.parent != self.parent:
            yield f"parent is {record.parent}, expected {self.parent}"
        for key, bounds in self.population.pbt.space.items():
            if not bounds.low <= record.hyperparameters[key] <= bounds.high:
                yield f"{key} = {record.hyperparameters[key]} is outside {bounds.low} to {bounds.high}"
        if record.epoch != record.generation * self.population.pbt.interval:
            yield f"epoch is {record.epoch}, expected {record.generation * self.population.pbt.interval}"
        if record.env_steps <= (least := self.last.env_steps if self.last else 0):
            yield f"env_steps is {record.env_steps}, before it was {least}"
        if record.snapshot_bytes <= 0:
            yield f"snapshot_bytes is {record.snapshot_bytes}"
        births = [self.chapter.lines[at] for at in self.births]
        if (record.attempt, record.token) not in [(line["attempt"], line["token"]) for line in births]:
            yield f"attempt {record.attempt} with token {record.token} has no line birth in this journal"

    def _ended(self, generation: int, newest: int) -> None:
        over = generation >= self.population.generations
        due, other = ("finished", "decided") if over else ("decided", "finished")
        if self.line(generation, other):
            last = self.population.generations
            self.wrong(generation, f"is {other}, but the population has {last} generations")
        if not self.line(generation, due) and generation < newest:
            self.wrong(generation, f"a hole: is not {due}, but there are lines of generation {newest}")

    def _carried_out(self, generation: int, newest: int) -> None:
        """Intent, then adopted and explored; or abandoned, perhaps by a later attempt."""
        turn, decided = self.turns.get(generation, {}), self.line(generation, "decided")
        if decided.get("outcome") != "exploit":
            for event in sorted(turn.keys() & {"intent", "adopted", "explored", "abandoned"}):
                self.wrong(generation, f"is {event}, but no donor was decided on")
            return
        intent = decided["intent"]
        for text in self._unlike(generation, intent):
            self.wrong(generation, text)
        if "abandoned" in turn:
            between = [at for at in self.births if turn.get("adopted", -1) < at < turn["abandoned"]]
            if "adopted" in turn and not between:
                self.wrong(generation, "is adopted, then abandoned, with no new attempt in between")
            return
        if "explored" in turn:
            self.values = dict(intent["hyperparameters"])
            self.parent = (intent["donor"], intent["donor_generation"])
        elif generation < newest:
            self.wrong(generation, "a hole: the donor is neither taken over (explored) nor abandoned")

    def _unlike(self, generation: int, intent: dict[str, Any]) -> Iterator[str]:
        """Where the lines after a decision say something else than it did."""
        told, adopted, explored = (
            self.line(generation, event) for event in ("intent", "adopted", "explored")
        )
        if told:
            told = {key: value for key, value in told.items() if key not in ("event", "generation", "time")}
            yield from _unequal("intent", told, intent)
        elif adopted or explored or self.line(generation, "abandoned"):
            yield "was carried out without a line intent"
        if adopted:
            for key in ("donor", "snapshot"):
                if adopted[key] != intent[key]:
                    yield f"adopted: {key} is {adopted[key]}, expected {intent[key]}"
        if explored:
            yield from _unequal("explored: before", explored["before"], self.values)
            yield from _unequal("explored: after", explored["after"], intent["hyperparameters"])
            if not adopted:
                yield "is explored, but was not adopted"


def _close(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=SAME))


def _unequal(name: str, found: dict[str, Any] | None, expected: dict[str, Any] | None) -> Iterator[str]:
    """Each key whose value is another."""
    if found is None or expected is None:
        if found != expected:
            yield f"{name} is {found}, expected {expected}"
        return
    for key in sorted(found.keys() | expected.keys()):
        a, b = found.get(key), expected.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _unequal(f"{name}.{key}", a, b)
        elif a != b:
            yield f"{name}: {key} is {a}, expected {b}"
