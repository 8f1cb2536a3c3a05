"""What a population of made-up learners left on disk, judged without ``hpcrl.pbt.verify``.

The weights of every member at every generation are computed again from population.json and what the journals
say of adoptions, and compared with the hashes that were published: a torn or mixed-up load, a course that a
kill has bent, or weights that are not the donor's would show in every hash after it.
"""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from hashlib import sha256
from pathlib import Path

from stress_member import Learner

from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Record, parse, record_name, snapshot_name
from hpcrl.pbt.turn import State
from hpcrl.storage.atomic import sha256_of
from hpcrl.storage.attempts import read_attempts

Line = dict


def final_folder(population: Population, member: int) -> Path:
    """attempts/N/pbt that readers read in the end."""
    attempts = read_attempts(population.folder(member), strict=True)
    return next(a for a in reversed(attempts) if a.ready).path / "pbt"


def open_intent(population: Population, member: int) -> bool | None:
    """Of a member that has just been killed: whether the snapshot that it is about to take over is there.

    None where it is about to take over nothing.
    """
    attempts = read_attempts(population.folder(member))
    folder = next((a.path / "pbt" for a in reversed(attempts) if a.ready), None)
    lines = read_journal(folder / "journal.jsonl") if folder else []
    over = {line["generation"] for line in lines if line["event"] in ("adopted", "abandoned")}
    intents = [line for line in lines if line["event"] == "intent" and line["generation"] not in over]
    if folder is None or not intents:
        return None
    intent = intents[-1]
    name = f"pbt/snapshots/{snapshot_name(intent['donor_generation'])}"
    places = population.folder(intent["donor"]).glob(f"attempts/*/{name}")
    places = [folder / "pins" / snapshot_name(intent["generation"]), *places]
    return any(path.exists() and sha256_of(path) == intent["snapshot"] for path in places)


class Course:
    """Of all members; AssertionError naming the member and generation where something does not hold."""

    def __init__(self, population: Population, members: list[int] | None = None) -> None:
        self.population = population
        self.members = list(population.members) if members is None else members
        self.folders = {m: final_folder(population, m) for m in self.members}
        self.journals = {m: read_journal(self.folders[m] / "journal.jsonl") for m in self.members}
        self.turns = {m: self._turns(m) for m in self.members}
        self.records = {m: self._own_records(m) for m in self.members}
        self.counts: Counter[str] = Counter()
        for journal in self.journals.values():
            self.counts.update(line["event"] for line in journal)

    def _turns(self, member: int) -> list[dict[str, Line]]:
        """event -> line, by generation from 1; no hole, nothing twice, nothing in another order."""
        population, turns = self.population, [dict[str, Line]() for _ in range(self.population.generations)]
        told = ("published", "decided", "intent", "adopted", "explored", "abandoned", "finished")
        for line in self.journals[member]:
            if line["event"] in told:
                turn = turns[line["generation"] - 1]
                assert line["event"] not in turn, f"member {member}: twice {line}"
                turn[line["event"]] = line
        for generation, turn in enumerate(turns, 1):
            events = list(turn)
            if generation == population.generations:
                expected = [["published", "finished"]]
            elif turn.get("decided", {}).get("outcome") == "keep":
                expected = [["published", "decided"]]
            else:
                begun = ["published", "decided", "intent"]
                taken = [*begun, "adopted", "explored"]
                # Taken over, then lost with the machine, and the donor's snapshot gone: given up after all.
                expected = [taken, [*begun, "abandoned"], [*taken, "abandoned"]]
            assert events in expected, f"member {member}, generation {generation}: {events}"
        return turns

    def _own_records(self, member: int) -> dict[int, Record]:
        found = {}
        for generation, turn in enumerate(self.turns[member], 1):
            data = (self.folders[member] / "records" / record_name(generation)).read_bytes()
            found[generation] = parse(data, self.population, member, generation)
            assert found[generation].sha256 == turn["published"]["sha256"], (member, generation)
        return found

    def check(self) -> None:
        self._decisions()
        self._weights()
        self._snapshots()

    def _decisions(self) -> None:
        """Each record that was read is there, with no more experience; a donor is one of them, and usable."""
        known = self._all_records()
        for member in self.members:
            for generation, turn in enumerate(self.turns[member][:-1], 1):
                where, line = f"member {member}, generation {generation}", turn["decided"]
                read = [known[tuple(entry[:3])] for entry in line["records"]]
                assert read[0] == self.records[member][generation], where
                assert all(other.env_steps <= read[0].env_steps for other in read), where
                assert len({record.member for record in read}) == len(read), where
                if line["outcome"] == "exploit":
                    intent = line["intent"]
                    assert intent.items() <= turn["intent"].items(), where
                    entry = [intent["donor"], intent["donor_generation"], intent["record"], True]
                    assert entry in line["records"], where
                    assert known[tuple(entry[:3])].snapshot == intent["snapshot"], where

    def _all_records(self) -> dict[tuple[int, int, str], Record]:
        """Of every attempt, whatever became of it."""
        known = {}
        for member in self.members:
            seen = set()
            for path in self.population.folder(member).glob("attempts/*/pbt/records/0*.json"):
                if path.stat().st_ino not in seen:
                    seen.add(path.stat().st_ino)
                    record = parse(path.read_bytes(), self.population, member, int(path.stem))
                    known[member, record.generation, record.sha256] = record
        return known

    def _weights(self) -> None:
        """Every published snapshot's hash, and the scores that came of it, computed again."""
        published: dict[tuple[int, int], Learner] = {}
        now = {m: Learner.begin(self.population, m) for m in self.members}
        while True:
            before = len(published)
            for member, learner in now.items():
                while self._advance(member, learner, published):
                    pass
            if len(published) == before:
                break
        assert len(published) == len(self.members) * self.population.generations

    def _advance(self, member: int, learner: Learner, published: dict[tuple[int, int], Learner]) -> bool:
        """On to the next generation, once its donor has got there; whether it went on."""
        generation = learner.pbt["generation"] + 1
        if generation > self.population.generations:
            return False
        if (member, generation) not in published:
            while learner.epoch < generation * self.population.pbt.interval:
                learner.train(member)
            record, where = self.records[member][generation], f"member {member}, generation {generation}"
            assert sha256(learner.data()).hexdigest() == record.snapshot, where
            assert len(learner.data()) == record.snapshot_bytes, where
            assert learner.scores(self.population.windows) == record.scores, where
            published[member, generation] = deepcopy(learner)
        turn, state = self.turns[member][generation - 1], State.from_dict(learner.pbt)
        values, parent = state.hyperparameters, state.parent
        if "explored" in turn and "abandoned" not in turn:
            intent = turn["intent"]
            parent = (intent["donor"], intent["donor_generation"])
            if parent not in published:
                return False
            learner.adopt(published[parent])
            values = intent["hyperparameters"]
        learner.pbt = State(generation, values, parent).to_dict()
        return True

    def _snapshots(self) -> None:
        """What is left of them is what their records say, and the newest is there."""
        for member, folder in self.folders.items():
            left = {path.name: path for path in (folder / "snapshots").iterdir()}
            assert snapshot_name(self.population.generations) in left, member
            for generation, record in self.records[member].items():
                path = left.get(snapshot_name(generation))
                if path is not None:
                    assert sha256(path.read_bytes()).hexdigest() == record.snapshot, path

    def referred(self, member: int) -> set[str]:
        """sha256 of every record that its journal names."""
        lines = [turn["decided"] for turn in self.turns[member][:-1]]
        named = {entry[2] for line in lines for entry in line["records"]}
        return named | {turn["published"]["sha256"] for turn in self.turns[member]}


def spoil(path: Path) -> None:
    """One score of a record becomes another, and nothing else."""
    value = json.loads(path.read_text())
    value["scores"][0] += 1.0
    with path.open("r+") as file:  # in place: every attempt's link shows it
        json.dump(value, file, sort_keys=True)
        file.truncate()
