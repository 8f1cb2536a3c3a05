"""A member's turn, without torch: wherever it is cut short, the next attempt comes to the same end."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from population_cases import INTERVAL, STEPS, LateShare, Player, alter, new_population

from hpcrl.pbt import turn
from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, record_name, snapshot_name
from hpcrl.pbt.turn import KEPT_PINS, State, words
from hpcrl.pbt.verify import verify
from hpcrl.storage.atomic import sha256_of
from hpcrl.storage.attempts import Superseded
from hpcrl.types import HpcrlError


def others_first(folder: Path, generations: int = 4, **pbt: object) -> Population:
    """Everybody has finished but member 0, the least gifted one."""
    population = new_population(folder, generations, **pbt)
    for number in population.members[1:]:
        Player(population, number).train()
    return population


def lines_of(player: Player, event: str) -> list[dict]:
    return [line for line in read_journal(player.member.journal.path) if line["event"] == event]


def assert_verified(population: Population) -> None:
    report = verify(population)
    assert report.ok, "\n".join(report.lines())


def test_a_turn_publishes_decides_takes_over_and_explores_in_this_order(tmp_path):
    population = others_first(tmp_path, 2)
    player = Player(population, 0).train()
    told = [(line["event"], line["generation"]) for line in read_journal(player.member.journal.path)]
    assert told == [
        ("birth", 0), ("published", 1), ("decided", 1), ("intent", 1), ("adopted", 1), ("explored", 1),
        ("published", 2), ("finished", 2), ("pruned", 2),
    ]  # fmt: skip
    (intent,), (explored,) = lines_of(player, "intent"), lines_of(player, "explored")
    assert player.plans[0].state == State(1, intent["hyperparameters"], (intent["donor"], 1))
    assert explored["before"] == population.start(0) != explored["after"] == intent["hyperparameters"]
    donor = Reader(population).record(Reader(population).folder(intent["donor"]), intent["donor"], 1)
    assert donor is not None and (donor.sha256, donor.snapshot) == (intent["record"], intent["snapshot"])
    second = player.member.published(2)
    assert second is not None and second.parent == (intent["donor"], 1)
    assert second.hyperparameters == explored["after"]
    assert_verified(population)


class Crash(BaseException):
    """The process is gone: nothing catches it, and nothing is written after it."""


OPERATIONS = ("link", "replace", "unlink", "fsync", "mkdir")


@contextmanager
def crash_at(step: int, torn: bool = False) -> Iterator[list[str]]:
    """Everything that changes a folder, and every sync of a file, is a step; before this one it is over.

    ``torn``: that step is the sync of a file, which loses its last bytes.
    """
    taken: list[str] = []
    real = {name: getattr(os, name) for name in OPERATIONS}

    def counted(name: str) -> Callable:
        def operation(*arguments, **options):
            if len(taken) >= step:
                if torn and len(taken) == step:
                    cut(arguments[0])
                taken.append(name)
                raise Crash
            taken.append(name)
            return None if name == "fsync" else real[name](*arguments, **options)

        return operation

    def cut(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.ftruncate(handle, max(os.fstat(handle).st_size - 5, 0))

    for name in OPERATIONS:
        setattr(os, name, counted(name))
    try:
        yield taken
    except Crash:
        pass
    finally:
        for name, function in real.items():
            setattr(os, name, function)


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> tuple[Population, dict, list[str]]:
    """A population whose member 0 is still to come, how it ends undisturbed, and the steps that it takes."""
    population = others_first(tmp_path_factory.mktemp("course"))
    with crash_at(10**9) as steps:
        outcome = Player(population, 0).train().outcome()
    assert [line["event"] for line in outcome["lines"]].count("explored") == 3
    return population, outcome, steps


def afresh(population: Population) -> None:
    """Member 0 as if it had not begun."""
    shutil.rmtree(population.folder(0))
    population.folder(0).mkdir()


def attempt_until(population: Population, step: int, torn: bool = False) -> bool:
    """Whether it got through to the end."""
    with crash_at(step, torn):
        Player(population, 0).train()
        return True
    return False


def resumed(population: Population) -> dict:
    with crash_at(10**9):  # its syncs cost no time
        return Player(population, 0).train().outcome()


@pytest.mark.slow
def test_a_crash_between_any_two_steps_changes_nothing(course):
    population, outcome, steps = course
    assert len(steps) > 100 and set(steps) == set(OPERATIONS)
    for step in range(len(steps)):
        afresh(population)
        assert not attempt_until(population, step)
        assert resumed(population) == outcome, f"step {step}, {steps[step]}"
        assert_verified(population)


@pytest.mark.slow
def test_a_crash_that_tears_the_file_it_is_about_to_sync_changes_nothing(course):
    population, outcome, steps = course
    for step in [step for step, name in enumerate(steps) if name == "fsync"]:
        afresh(population)
        assert not attempt_until(population, step, torn=True)
        assert resumed(population) == outcome, f"step {step}"
        assert_verified(population)


@pytest.mark.parametrize("seed", range(10))
def test_many_crashes_one_after_the_other_change_nothing(course, seed):
    population, outcome, steps = course
    afresh(population)
    chance = random.Random(seed)
    for _ in range(8):
        attempt_until(population, chance.randrange(len(steps)))
    assert resumed(population) == outcome
    assert_verified(population)


def test_a_share_without_hard_links_gives_the_same(course, monkeypatch):
    population, outcome, _ = course
    afresh(population)

    def no_links(*_arguments, **_options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    player = Player(population, 0).train()
    assert player.outcome() == outcome
    assert all(path.stat().st_nlink == 1 for path in player.folder.rglob("*.pt"))


def until_decided(population: Population) -> dict:
    """Member 0's first attempt ends once it has decided to take over a donor; that decision."""
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        if '"event": "decided"' in Path(os.readlink(f"/proc/self/fd/{handle}")).read_text(errors="replace"):
            raise Crash

    os.fsync = fsync
    try:
        with pytest.raises(Crash):
            Player(population, 0).train()
    finally:
        os.fsync = real
    journal = population.folder(0) / "attempts/1/pbt/journal.jsonl"
    (decided,) = [line for line in read_journal(journal) if line["event"] == "decided"]
    assert decided["outcome"] == "exploit"
    return decided["intent"]


def donors_snapshot(population: Population, intent: dict) -> Path:
    folder = Reader(population).folder(intent["donor"])
    assert folder is not None
    return folder / "snapshots" / snapshot_name(intent["donor_generation"])


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (Path.unlink, "is gone"),
        (alter, "is not the one that was published"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
        (lambda path: shutil.rmtree(path.parents[3]), "is gone"),
    ],
    ids=["pruned", "altered", "unreadable", "the member's attempts are lost"],
)
def test_a_donor_that_is_lost_after_the_decision_is_given_up_and_the_member_goes_on(tmp_path, harm, why):
    population = others_first(tmp_path, 3)
    intent = until_decided(population)
    harm(donors_snapshot(population, intent))
    player = Player(population, 0).train(1)
    (abandoned,) = lines_of(player, "abandoned")
    assert abandoned["why"].startswith(f"the snapshot 1 of member {intent['donor']} {why}")
    assert player.plans[0].donor is None and player.plans[0].reason == f"kept: {abandoned['why']}"
    assert player.state == State(1, population.start(0), None)
    assert not list((player.folder / "pins").iterdir())
    again = Player(population, 0).train()
    assert lines_of(again, "abandoned")[0] == abandoned, "it is not tried again"
    assert again.member.published(3) is not None
    if (population.folder(intent["donor"]) / "attempts").exists():  # else its records are lost too
        assert_verified(population)


def test_what_was_pinned_is_loaded_though_the_donor_prunes_it(tmp_path):
    population = others_first(tmp_path, 3)
    intent = until_decided(population)
    player = Player(population, 0)
    player.train(1)
    donors_snapshot(population, intent).unlink()
    weights = player.weights
    again = Player(population, 0)
    assert again.state.generation == 0, "the checkpoint is that before the turn"
    again.train(1)
    pin = again.plans[0].donor
    assert pin is not None and sha256_of(pin.path) == intent["snapshot"] and again.weights == weights
    assert lines_of(again, "abandoned") == []


def test_a_pin_of_another_decision_is_replaced(tmp_path):
    """An attempt that was cut off may leave one whose decision the next attempt never saw."""
    population = others_first(tmp_path, 3)
    intent = until_decided(population)
    player = Player(population, 0)
    (player.folder / "pins" / snapshot_name(1)).write_text("another")
    player.train(1)
    assert player.plans[0].donor is not None and lines_of(player, "abandoned") == []
    assert sha256_of(player.folder / "pins" / snapshot_name(1)) == intent["snapshot"]


def test_a_donor_whose_load_fails_on_all_ranks_is_given_up(tmp_path):
    population = others_first(tmp_path, 2)
    player = Player(population, 0)
    player.member.adopted = lambda plan: None  # type: ignore[method-assign]
    player.train(1)
    plan = player.plans[0]
    kept = player.member.abandon(plan, "rank 1 could not read it")
    assert kept.state == State(1, population.start(0)) and kept.donor is None
    assert kept.reason == "kept: rank 1 could not read it"
    assert player.member.choose(plan.before, player.member.published(1)).donor is None


def test_the_last_turn_publishes_and_decides_nothing(tmp_path):
    population = others_first(tmp_path, 1)
    player = Player(population, 0).train()
    assert player.plans[0].reason == "finished" and lines_of(player, "decided") == []
    assert lines_of(player, "finished")[0]["generation"] == 1


def test_a_late_starter_reads_records_of_its_own_experience_and_finds_their_snapshots(tmp_path):
    population = others_first(tmp_path, 5)
    player = Player(population, 0).train()
    decided = lines_of(player, "decided")
    assert [[g for _, g, _, _ in line["records"]] for line in decided] == [[g] * 4 for g in range(1, 5)]
    assert all(usable for line in decided for *_, usable in line["records"])
    assert [line["outcome"] for line in decided] == ["exploit"] * 4


def test_a_member_that_never_starts_blocks_nobody_and_costs_no_snapshot(tmp_path):
    population = new_population(tmp_path, 4)
    for generation in range(1, 5):
        for number in (0, 1, 2):
            player = Player(population, number).train(generation)
    report = verify(population)
    assert report.ok and report.started == 3 and report.decisions == 9
    for number in (0, 1, 2):
        folder = Reader(population).folder(number)
        assert folder is not None
        assert sorted(path.name for path in (folder / "snapshots").iterdir()) == [
            snapshot_name(g) for g in range(1, 5)
        ]
    newest = [newest[0] for number in (0, 1, 2) if (newest := Reader(population).newest(number))]
    assert player.member.best() == max(newest, key=lambda record: sum(record.scores))


def kept(population: Population, number: int) -> list[int]:
    folder = Reader(population).folder(number)
    assert folder is not None
    return sorted(int(path.stem) for path in (folder / "snapshots").iterdir())


def test_snapshots_are_pruned_once_everybody_has_more_experience(tmp_path):
    population = new_population(tmp_path, 6, members=3)
    ahead = Player(population, 2).train(4)
    Player(population, 1).train(3)
    assert kept(population, 2) == [1, 2, 3, 4] and lines_of(ahead, "pruned") == [], "member 0 has nothing yet"
    Player(population, 0).train(2)
    ahead.train(5)
    assert kept(population, 2) == [2, 3, 4, 5], "member 0 may read the second in its next turn"
    (line,) = lines_of(ahead, "pruned")
    assert (line["generation"], line["snapshots"]) == (5, [1])
    assert sorted(int(p.stem) for p in (ahead.folder / "records").iterdir()) == [1, 2, 3, 4, 5]


def test_the_snapshot_that_a_slower_member_reads_next_is_kept_where_steps_differ(tmp_path, monkeypatch):
    population = new_population(tmp_path, 6, members=2)
    Player(population, 0).train(2)  # 2 x 200 steps
    monkeypatch.setattr("population_cases.STEPS", 150)
    Player(population, 1).train(
        4
    )  # at 300, 600, ...: with 600 steps member 0 reads the second, with 500 the first
    assert kept(population, 1) == [1, 2, 3, 4]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_keep_gb_is_all_that_a_populations_snapshots_take(tmp_path, room):
    size = len(json.dumps({"epoch": 10, "weights": 1.2345678901234567, "pbt": State(1, {}).to_dict()})) + 200
    population = new_population(tmp_path, 6, members=2, keep_gb=2 * room * size / 1e9)
    player = Player(population, 0)
    for generation in range(1, 7):
        player.train(generation)
        there = list((player.folder / "snapshots").iterdir())
        assert sum(path.stat().st_size for path in there) <= room * size
        assert snapshot_name(generation) in {path.name for path in there}
    assert len(there) >= room
    pruned = [g for line in lines_of(player, "pruned") for g in line["snapshots"]]
    assert sorted(pruned + kept(population, 0)) == [1, 2, 3, 4, 5, 6]


def test_the_newest_snapshot_stays_however_little_room_there_is(tmp_path):
    population = new_population(tmp_path, 3, members=2, keep_gb=1e-9)
    Player(population, 0).train()
    assert kept(population, 0) == [3]


def test_a_pruned_donor_is_no_candidate(tmp_path):
    population = others_first(tmp_path, 2)
    for number in (1, 2, 3):
        folder = Reader(population).folder(number)
        assert folder is not None
        (folder / "snapshots" / snapshot_name(1)).unlink()
    player = Player(population, 0).train(1)
    (decided,) = lines_of(player, "decided")
    assert [usable for *_, usable in decided["records"]] == [True, False, False, False]
    assert decided["reason"] == "place 4 of 4, but no snapshot of the best is left"
    assert_verified(population)


def test_pins_are_let_go_after_a_while(tmp_path):
    generations = KEPT_PINS + 4
    population = others_first(tmp_path, generations)
    player = Player(population, 0).train()
    pins = sorted(int(path.stem) for path in (player.folder / "pins").iterdir())
    assert pins == list(range(generations - KEPT_PINS, generations))
    earlier = Player(population, 0)
    assert sorted(int(path.stem) for path in (earlier.folder / "pins").iterdir()) == pins


def test_pruning_frees_the_room_in_the_attempts_before_too(tmp_path):
    population = new_population(tmp_path, 4, members=2)
    Player(population, 0).train(2)
    Player(population, 0).train(3)
    Player(population, 1).train(3)
    Player(population, 0).train(4)
    assert [p.name for p in population.folder(0).glob("attempts/*/pbt/snapshots/000001.pt")] == []
    assert len(list(population.folder(0).glob("attempts/*/pbt/records/000001.json"))) == 3


def hashes(folder: Path) -> set[str]:
    return {sha256_of(path) for part in ("records", "snapshots") for path in (folder / part).iterdir()}


def unleashed(stale: Player) -> Player:
    """It looked before a newer attempt began, and writes on."""
    stale.attempt.check = lambda: None  # type: ignore[method-assign]
    return stale


def test_a_stale_attempt_ends_and_has_written_nothing(tmp_path):
    population = others_first(tmp_path)
    stale = Player(population, 0).train(1)
    Player(population, 0)
    before = {path: path.stat().st_mtime_ns for path in stale.folder.rglob("*")}
    with pytest.raises(Superseded, match="is superseded by attempt 2"):
        stale.train()
    assert {path: path.stat().st_mtime_ns for path in stale.folder.rglob("*")} == before


def test_an_attempt_that_is_replaced_after_it_has_published_decides_nothing(tmp_path):
    population = others_first(tmp_path)
    stale = Player(population, 0)
    choose = stale.member.choose

    def choose_late(state, record):
        Player(population, 0)
        return choose(state, record)

    stale.member.choose = choose_late  # type: ignore[method-assign]
    with pytest.raises(Superseded):
        stale.train()
    assert lines_of(stale, "published") and not lines_of(stale, "decided")


def test_a_snapshot_whose_record_never_came_gives_way_to_the_one_that_is_published(tmp_path):
    population = others_first(tmp_path)
    player = Player(population, 0)
    snapshot = player.folder / "snapshots" / snapshot_name(1)
    snapshot.write_text("of an attempt that ended between the two")
    player.train(1)
    record = player.member.published(1)
    assert record is not None and sha256_of(snapshot) == record.snapshot


def test_what_a_stale_attempt_writes_late_is_never_referred_to(tmp_path):
    population = new_population(tmp_path, 5)
    players = {number: Player(population, number).train(2) for number in population.members}
    stale = unleashed(players[3])
    known = hashes(stale.folder)
    newer = Player(population, 3)
    stale.weights += 100  # it would be everybody's donor
    stale.train()
    late = hashes(stale.folder) - known
    assert len(late) == 6, "records and snapshots of three generations"
    for generation in range(3, 6):
        for player in (*list(players.values())[:3], newer):
            player.train(generation)
    told = [
        path.read_text() for path in population.path.rglob("*.json*") if not path.is_relative_to(stale.folder)
    ]
    pins = {
        sha256_of(path)
        for path in population.path.rglob("pins/*.pt")
        if not path.is_relative_to(stale.folder)
    }
    assert not [sha256 for sha256 in late if any(sha256 in text for text in told)] and not late & pins
    assert_verified(population)


def test_a_stale_attempt_that_writes_while_the_next_one_takes_over_leaves_it_no_hole(tmp_path, monkeypatch):
    """What its journal tells of when it is read is linked after that, never before."""
    population = others_first(tmp_path)
    stale = unleashed(Player(population, 0).train(1))
    calls = []

    def between(function):
        def called(*arguments):
            calls.append(function)
            if len(calls) == 2:
                stale.train(2)
            return function(*arguments)

        return called

    for name in ("read_journal", "_inherit"):
        monkeypatch.setattr(turn, name, between(getattr(turn, name)))
    newer = Player(population, 0)
    assert len(calls) == 2 and stale.state.generation == 2
    monkeypatch.undo()
    newer.train()
    published = {line["generation"]: line["sha256"] for line in lines_of(newer, "published")}
    assert published.keys() == {1, 2, 3, 4}
    for generation, sha256 in published.items():
        assert sha256_of(newer.folder / "records" / record_name(generation)) == sha256
    assert_verified(population)


def test_a_record_that_is_there_is_not_written_again(tmp_path):
    """Others may have read it."""
    population = others_first(tmp_path)
    player = Player(population, 0).train(2)
    before = player.member.published(2)
    again = Player(population, 0).train()
    assert again.member.published(2) == before and before is not None
    assert again.member.published(2).sha256 == before.sha256
    assert (before.attempt, again.member.published(3).attempt) == (1, 2)


def test_records_that_the_share_does_not_show_yet_take_no_part(tmp_path):
    population = others_first(tmp_path)
    late = LateShare(lambda path: path.name == record_name(2) and "members/00" not in str(path))
    player = Player(population, 0, Reader(population, late)).train()
    decided = lines_of(player, "decided")
    assert [[g for _, g, _, _ in line["records"]] for line in decided] == [[1] * 4, [2, 1, 1, 1], [3] * 4]
    assert_verified(population)


def test_bad_files_are_told_in_the_journal_and_the_third_time_is_an_alarm(tmp_path):
    population = others_first(tmp_path, 6)
    folder = Reader(population).folder(2)
    assert folder is not None
    bad = folder / "records" / record_name(6)
    bad.write_text("torn")
    player = Player(population, 0).train()
    name = os.path.relpath(bad, population.path)
    assert {(line["file"], line["why"]) for line in lines_of(player, "skipped")} == {
        (name, "is no whole JSON")
    }
    assert [line["generation"] for line in lines_of(player, "skipped")] == [1, 2, 3, 4, 5]
    assert [line["generation"] for line in lines_of(player, "alarm")] == [3]
    told = [note for plan in player.plans for note in plan.notes]
    assert told == [f"ALARM: {bad} could not be read in three turns in a row: is no whole JSON"]


def test_the_state_survives_a_checkpoint():
    for state in (State(3, {"learn.lr": 1e-3, "learn.ppo_epochs": 4}, (1, 2)), State(0, {"learn.lr": 1.0})):
        assert State.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_the_best_is_named_with_its_objective_and_hyperparameters(tmp_path):
    population = others_first(tmp_path, 2)
    player = Player(population, 0).train()
    best = player.member.best()
    assert best is not None and best.member != 0 and best.generation == 2
    assert words(best).startswith(f"member {best.member} (generation 2, objective ")
    assert " +- " in words(best) and ", lr " in words(best) and ", gamma " in words(best)
    assert best.env_steps == 2 * INTERVAL * STEPS


@contextmanager
def full_from(step: int) -> Iterator[None]:
    """From this step on the disk takes nothing more; what is there can be removed."""
    taken = 0
    writing = ("link", "replace", "fsync", "mkdir")
    real = {name: getattr(os, name) for name in writing}

    def limited(name: str) -> Callable:
        def operation(*arguments, **options):
            nonlocal taken
            taken += 1
            if taken > step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return None if name == "fsync" else real[name](*arguments, **options)

        return operation

    for name in writing:
        setattr(os, name, limited(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


@pytest.mark.slow
def test_a_full_disk_at_any_step_ends_the_attempt_with_one_line_and_the_next_one_goes_on(course):
    population, _, steps = course
    ended = []
    for step in range(len(steps)):
        afresh(population)
        with full_from(step):
            try:
                Player(population, 0).train()
            except HpcrlError as error:
                ended.append(str(error))
                assert re.match(r"^cannot write .*No space left on device", ended[-1]), ended[-1]
        with crash_at(10**9):
            player = Player(population, 0).train()
        assert player.state.generation == 4 and player.member.published(4) is not None
        assert_verified(population)
    assert len(ended) > 80 and not any("\n" in text for text in ended)


def test_a_new_attempt_has_what_its_journal_speaks_of_though_the_share_lists_it_late(tmp_path, monkeypatch):
    population = others_first(tmp_path)
    first = Player(population, 0).train(2)
    assert lines_of(first, "intent")
    known = [first.member.published(g) for g in (1, 2)]
    listed = turn._names
    monkeypatch.setattr(
        turn, "_names", lambda folder: [] if folder.is_relative_to(first.folder) else listed(folder)
    )
    second = Player(population, 0)
    assert [second.member.published(g) for g in (1, 2)] == known != [None, None]
    assert all(
        (second.folder / "pins" / snapshot_name(line["generation"])).exists()
        for line in lines_of(first, "intent")
    )
    second.train()
    assert_verified(population)


def test_a_published_record_that_is_lost_is_not_written_anew(tmp_path):
    population = others_first(tmp_path)
    first = Player(population, 0).train(1)
    first.attempt.folder.manifest(INTERVAL).unlink()  # goes back to before the turn
    (first.folder / "records" / record_name(1)).unlink()
    with pytest.raises(HpcrlError, match=r"records/000001.json: is published, says its journal.* Restore it"):
        Player(population, 0).train(1)


def test_copies_of_earlier_attempts_are_dropped_where_there_are_no_hard_links(tmp_path, monkeypatch):
    population = new_population(tmp_path, 6)
    Player(population, 1).train(1)  # never gets on: nothing of ours is pruned

    def no_links(source: object, target: object) -> None:
        if not Path(str(source)).exists():
            raise FileNotFoundError
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for generation in range(1, 6):
        player = Player(population, 0).train(generation)
    there = list(population.folder(0).glob("attempts/*/pbt/snapshots/*.pt"))
    assert len(there) == 5 and {path.parents[2] for path in there} == {player.folder.parent}
    assert_verified(population)
