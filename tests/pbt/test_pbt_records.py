"""Records and journals on disk: what is torn, foreign, late or full is passed over, told, and never wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from population_cases import INTERVAL, STEPS, WINDOWS, LateShare, a_record

from hpcrl.pbt.journal import Journal, read_journal
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import ALARM_TURNS, Reader, Record, Share, parse, record_name, snapshot_name
from hpcrl.types import RunFailed


def attempt(population: Population, member: int, number: int = 1, ready: bool = True) -> Path:
    """attempts/N/pbt of a member."""
    folder = population.folder(member) / "attempts" / str(number)
    for part in ("records", "snapshots"):
        (folder / "pbt" / part).mkdir(parents=True)
    (folder / "attempt.json").write_text(json.dumps({"ready": ready}))
    return folder / "pbt"


def put(population: Population, folder: Path, member: int, generation: int, **other: object) -> Path:
    a_record(population, member, generation, **other).write(folder / "records")
    return folder / "records" / record_name(generation)


def test_a_record_is_read_as_it_was_written(population, tmp_path):
    record = a_record(
        population, 2, 3, parent=(1, 2), hyperparameters={**population.start(2), "learn.lr": 1 / 3e3}
    )
    sha256 = record.write(tmp_path)
    data = (tmp_path / "000003.json").read_bytes()
    found = parse(data, population, 2, 3)
    assert found == record and found.sha256 == sha256
    told = json.loads(data)
    assert told["objective"] == found.objective == fmean(record.scores)
    assert told["spread"] == found.spread == stdev(record.scores) / WINDOWS**0.5


def altered(record: Record, **other: object) -> bytes:
    value = json.loads(
        json.dumps({"format": 1} | {k: getattr(record, k) for k in record.__dataclass_fields__})
    )
    return json.dumps(value | other).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: b"", "is no whole JSON"),
        (lambda r: altered(r)[:-2], "is no whole JSON"),
        (lambda r: altered(r)[:-1], "is no whole JSON"),
        (lambda r: b"\xff" + altered(r), "is no whole JSON"),
        (lambda r: b"[" * 100_000, "is no whole JSON"),
        (lambda r: b"[1]\n", "is no record of format 1"),
        (lambda r: altered(r, format=2), "is no record of format 1"),
        (lambda r: altered(r, epoch=None), "lacks what a record holds"),
        (lambda r: altered(r, env_steps=float("inf")), "lacks what a record holds"),
        (lambda r: altered(r, parent=[1]), "lacks what a record holds"),
        (lambda r: altered(r, hyperparameters=[]), "lacks what a record holds"),
        (lambda r: altered(r, scores="none"), "lacks what a record holds"),
        (lambda r: altered(r).replace(b'"snapshot"', b'"snap"'), "lacks what a record holds"),
        (lambda r: altered(r, population="another"), "is of another population, member or generation"),
        (lambda r: altered(r, member=0), "is of another population, member or generation"),
        (lambda r: altered(r, generation=4), "is of another population, member or generation"),
        (lambda r: altered(r, scores=[1.0] * 15), "holds 15 scores, the population has 16 windows"),
        (lambda r: altered(r, scores=[float("nan")] * 16), "holds 16 scores"),
        (lambda r: altered(r, hyperparameters={"learn.lr": 1e-3}), "holds other hyperparameters"),
    ],
)
def test_a_record_that_is_torn_or_foreign_is_skipped_with_the_reason(population, change, why):
    folder = attempt(population, 1)
    good = put(population, folder, 1, 2)
    bad = put(population, folder, 1, 3)
    bad.write_bytes(change(a_record(population, 1, 3)))
    reader = Reader(population)
    newest = reader.newest(1)
    assert newest is not None and newest[0].generation == 2
    assert list(reader.skipped) == [bad] and why in reader.skipped[bad]
    assert parse(good.read_bytes(), population, 1, 2) == newest[0]


def test_a_record_that_cannot_be_read_is_skipped_with_the_systems_reason(population):
    class Broken(Share):
        def read(self, path: Path) -> bytes:
            if path.name == record_name(3):
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().read(path)

    folder = attempt(population, 1)
    put(population, folder, 1, 2)
    bad = put(population, folder, 1, 3)
    reader = Reader(population, Broken())
    newest = reader.newest(1)
    assert newest is not None and newest[0].generation == 2 and reader.skipped == {bad: "Stale file handle"}


@pytest.mark.parametrize("where", ["attempts", "records"])
def test_a_folder_that_cannot_be_listed_is_skipped_and_the_member_passed_over(population, where):
    class Broken(Share):
        def names(self, folder: Path) -> list[str]:
            if folder.name == where:
                raise OSError(errno.EIO, "Input/output error")
            return super().names(folder)

    put(population, attempt(population, 1), 1, 1)
    reader = Reader(population, Broken())
    assert reader.newest(1) is None
    ((path, why),) = reader.skipped.items()
    assert path.name == where and why == "Input/output error"


def test_names_that_are_no_records_are_not_looked_at(population):
    folder = attempt(population, 1)
    put(population, folder, 1, 7)
    for name in (".000008.json.host.1.0.tmp", "8.json", "0000008.json", "000009.json~", "notes"):
        (folder / "records" / name).write_text("x")
    reader = Reader(population)
    assert reader.generations(folder) == [7] and reader.skipped == {}


def test_a_member_that_never_began_has_no_record_and_is_no_alarm(population):
    (population.folder(2) / "attempts/1").mkdir(parents=True)  # claimed a moment ago
    reader = Reader(population)
    for _ in range(5):
        reader.begin_turn()
        assert reader.newest(1) is None and reader.newest(2) is None
    assert reader.skipped == {} and reader.alarms() == []


def test_the_newest_record_with_no_more_experience_is_read(population):
    folder = attempt(population, 1)
    for generation in range(1, 6):
        put(population, folder, 1, generation)
    reader, of = Reader(population), INTERVAL * STEPS
    for most, generation in ((5 * of, 5), (5 * of - 1, 4), (3 * of, 3), (of, 1)):
        newest = reader.newest(1, most)
        assert newest is not None and newest[0].generation == generation
    assert reader.newest(1, of - 1) is None and reader.newest(1) == (a_record(population, 1, 5), folder)


@pytest.mark.parametrize("seed", range(30))
def test_a_record_far_behind_is_found_whichever_ones_are_torn(population, seed):
    chance = random.Random(seed)
    folder, steps, torn = attempt(population, 1), 0, set()
    of = {}
    for generation in range(1, 41):
        steps += chance.choice([100, 200, 900])
        of[generation] = steps
        path = put(population, folder, 1, generation, env_steps=steps)
        if chance.random() < 0.4:
            path.write_text("torn")
            torn.add(generation)
    most = chance.randrange(steps + 500)
    expected = max((g for g in of if g not in torn and of[g] <= most), default=None)
    newest = Reader(population).newest(1, most)
    assert (newest[0].generation if newest else None) == expected


def test_others_are_read_from_their_newest_attempt_that_has_taken_over(population):
    old = attempt(population, 1, 9)
    put(population, old, 1, 4)
    new = attempt(population, 1, 10, ready=False)
    put(population, new, 1, 2)
    reader = Reader(population)
    assert reader.folder(1) == old
    (new.parent / "attempt.json").write_text('{"ready": tru')
    assert reader.folder(1) == old and new.parent / "attempt.json" in reader.skipped
    (new.parent / "attempt.json").write_text('{"ready": true}')
    put(population, old, 1, 5)  # a stale attempt, late
    newest = reader.newest(1)
    assert newest is not None and newest[1] == new and newest[0].generation == 2


def test_a_donor_is_usable_while_its_snapshot_has_the_size_that_was_published(population):
    folder = attempt(population, 1)
    put(population, folder, 1, 1)
    reader = Reader(population)
    record = a_record(population, 1, 1)
    assert not reader.usable(record, folder)
    snapshot = folder / "snapshots" / snapshot_name(1)
    for content, usable in ((b"ab", False), (b"abc", True), (b"abcd", False)):
        snapshot.write_bytes(content)
        assert reader.usable(record, folder) is usable


def test_the_same_bad_file_is_an_alarm_in_the_third_turn_in_a_row_and_once(population):
    folder = attempt(population, 1)
    bad = put(population, folder, 1, 3)
    bad.write_text("torn")
    reader = Reader(population)
    seen = []
    for _ in range(6):
        reader.begin_turn()
        reader.newest(1)
        reader.newest(1)  # looked at twice in a turn, which counts once
        seen.append(reader.alarms())
    assert seen == [[], [], [bad], [], [], []] and ALARM_TURNS == 3


def test_a_file_that_is_whole_again_or_another_one_begins_a_new_count(population):
    folder = attempt(population, 1)
    bad = put(population, folder, 1, 3)
    whole = bad.read_bytes()
    reader = Reader(population)

    def turn() -> list[Path]:
        reader.begin_turn()
        reader.newest(1)
        return reader.alarms()

    bad.write_text("torn")
    assert not turn() and not turn()
    newer = put(population, folder, 1, 4)  # hides the bad one: it is not looked at in this turn
    assert not turn() and reader.skipped == {}
    newer.unlink()
    assert not turn() and not turn() and turn() == [bad]
    bad.write_bytes(whole)
    assert not turn() and reader.skipped == {}


def test_a_share_that_shows_files_late_shows_older_records_until_then(population):
    hidden: set[str] = {record_name(2), record_name(3)}
    folder = attempt(population, 1)
    for generation in (1, 2, 3):
        put(population, folder, 1, generation)
    reader = Reader(population, LateShare(lambda path: path.name in hidden))
    seen = []
    for name in (None, record_name(2), record_name(3)):
        hidden.discard(str(name))
        newest = reader.newest(1)
        assert newest is not None
        seen.append(newest[0].generation)
    assert seen == [1, 2, 3] and reader.skipped == {}


def test_a_name_that_is_shown_before_its_file_is_skipped_until_the_file_is_there(population):
    class NamesFirst(LateShare):
        def names(self, folder: Path) -> list[str]:
            return Share.names(self, folder)

    hidden = {record_name(2), "attempt.json"}
    folder = attempt(population, 1)
    first, second = put(population, folder, 1, 1), put(population, folder, 1, 2)
    reader = Reader(population, NamesFirst(lambda path: path.name in hidden))
    assert reader.newest(1) is None, "whether it has taken over is not to be seen yet"
    hidden.discard("attempt.json")
    newest = reader.newest(1)
    assert newest is not None and newest[0].generation == 1 and list(reader.skipped) == [second]
    hidden.clear()
    newest = reader.newest(1)
    assert newest is not None and newest[0].generation == 2
    assert first.exists()


def test_a_snapshot_that_is_not_shown_yet_makes_no_donor(population):
    folder = attempt(population, 1)
    (folder / "snapshots" / snapshot_name(1)).write_bytes(b"abc")
    record = a_record(population, 1, 1)
    assert Reader(population).usable(record, folder)
    assert not Reader(population, LateShare(lambda path: path.suffix == ".pt")).usable(record, folder)


def test_a_record_is_parsed_once(population):
    reads = []

    class Counting(Share):
        def read(self, path: Path) -> bytes:
            reads.append(path.name)
            return super().read(path)

    put(population, attempt(population, 1), 1, 1)
    reader = Reader(population, Counting())
    for _ in range(3):
        reader.newest(1)
    assert sorted(reads) == ["000001.json", "attempt.json"]


def test_an_event_is_written_once_in_a_generation(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    first = journal.append("decided", 4, outcome="keep")
    assert journal.append("decided", 4, outcome="exploit") is first
    journal.append("decided", 5, outcome="exploit")
    for _ in range(2):
        journal.append("skipped", 4, file="f")
    lines = read_journal(tmp_path / "journal.jsonl")
    assert [(line["event"], line["generation"]) for line in lines] == [
        ("decided", 4), ("decided", 5), ("skipped", 4), ("skipped", 4),
    ]  # fmt: skip
    assert lines[0] == first and journal.done(4, "decided") == first and journal.done(6, "decided") is None


def test_a_line_is_on_disk_before_append_returns(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append((tmp_path / "journal.jsonl").read_text()), fsync(handle))
    )
    journal.append("finished", 2)
    assert len(synced) == 1 and json.loads(synced[0])["event"] == "finished"


def test_a_new_attempt_goes_on_with_the_lines_of_the_one_before(tmp_path):
    old = Journal(tmp_path / "old")
    old.append("published", 1, sha256="a")
    old.append("decided", 1, outcome="keep")
    new = Journal(tmp_path / "new", read_journal(tmp_path / "old"))
    assert new.done(1, "decided") == old.done(1, "decided")
    new.append("published", 1, sha256="b")
    new.append("published", 2, sha256="c")
    assert (tmp_path / "new").read_text().startswith((tmp_path / "old").read_text())
    assert [line.get("sha256") for line in read_journal(tmp_path / "new")] == ["a", None, "c"]
    assert len(read_journal(tmp_path / "old")) == 2


@pytest.mark.parametrize("torn", ['{"event": "dec', '{"event": "decided", "generation": 2}', "\x00" * 80])
def test_a_torn_last_line_is_no_line(tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    Journal(path).append("published", 1)
    with path.open("a") as file:
        file.write(torn)
    assert [line["event"] for line in read_journal(path)] == ["published"]
    again = Journal(tmp_path / "next", read_journal(path))
    again.append("decided", 2)
    assert [line["event"] for line in read_journal(tmp_path / "next")] == ["published", "decided"]


def test_lines_of_another_kind_are_left_out_and_no_file_is_no_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'[1]\n{"generation": 1}\n\xff\n{"event": "birth", "generation": 0}\n')
    assert [line["event"] for line in read_journal(path)] == ["birth"]
    assert read_journal(tmp_path / "none") == []


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_full_disk_leaves_no_part_of_a_line_and_says_so(tmp_path, room):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("published", 1)
    before = path.read_bytes()
    with (
        room_for(len(before) + room),
        pytest.raises(RunFailed, match=r"^cannot write .*journal\.jsonl: .*bytes free"),
    ):
        journal.append("decided", 1, outcome="keep")
    assert path.read_bytes() == before and journal.done(1, "decided") is None
    journal.append("decided", 1, outcome="exploit")
    assert [line["event"] for line in read_journal(path)] == ["published", "decided"]


def test_a_full_disk_leaves_no_part_of_a_record(population, tmp_path):
    with room_for(100), pytest.raises(RunFailed, match=r"^cannot write .*000001\.json"):
        a_record(population, 0, 1).write(tmp_path)
    assert list(tmp_path.glob("*.json")) == [] and list(tmp_path.glob(".*")) == []


def test_numbers_that_are_not_finite_are_never_written(population, tmp_path):
    for score in (float("nan"), float("inf")):
        with pytest.raises(
            RunFailed, match=rf"member 0, epoch 2: the score of validation window 15 is {score}:"
        ):
            a_record(population, 0, 1, scores=(0.5,) * 15 + (score,)).write(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(tmp_path / "journal").append("decided", 1, p=float("inf"))
    assert (tmp_path / "journal").read_text() == "" and not list(tmp_path.glob("*.json"))


def test_another_file_hash_makes_no_other_record(population):
    record = a_record(population, 0, 1)
    assert replace(record, sha256="x") == record and replace(record, epoch=9) != record
