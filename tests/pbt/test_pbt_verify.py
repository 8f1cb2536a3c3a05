"""Verification: a population that is as its members left it passes; whatever is altered is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from population_cases import Player, new_population

from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader
from hpcrl.pbt.verify import Report, verify
from hpcrl.storage.atomic import read_json, sha256_of, write_json

Lines = list[dict[str, Any]]


def newest_journal(population: Population, member: int) -> Path:
    folder = Reader(population).folder(member)
    assert folder is not None
    return folder / "journal.jsonl"


def rewrite(path: Path, change: Callable[[Lines], object]) -> None:
    lines = read_journal(path)
    change(lines)
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def texts(report: Report) -> str:
    return "\n".join(map(str, report.problems))


def exploit_of(population: Population, member: int = 0) -> tuple[int, dict]:
    """The first generation whose donor was taken over, and its decision."""
    lines = read_journal(newest_journal(population, member))
    done = {line["generation"] for line in lines if line["event"] == "explored"}
    return next(
        (line["generation"], line)
        for line in lines
        if line["event"] == "decided" and line["generation"] in done
    )


def test_a_population_as_its_members_left_it_passes(copy_of_played):
    population = copy_of_played()
    report = verify(population)
    assert report.ok and report.problems == []
    assert (report.members, report.started, report.attempts, report.records) == (5, 5, 9, 30)
    assert (report.decisions, report.exploits, report.kept, report.abandoned) == (25, 4, 21, 1)
    counts, verdict = report.lines()
    assert counts.startswith(
        f"{population.path}: 5 of 5 members, 9 attempts, 30 records; 25 decisions computed again"
    )
    assert "21 to keep, 4 to take over a donor (1 of them given up)" in counts and verdict.startswith(
        "Verified"
    )
    told = json.loads(json.dumps(report.to_json()))
    assert told["ok"] is True and told["kept"] == 21 and told["problems"] == []


def test_it_changes_nothing(copy_of_played):
    population = copy_of_played()
    before = {path: path.stat().st_mtime_ns for path in population.path.rglob("*")}
    verify(population)
    assert {path: path.stat().st_mtime_ns for path in population.path.rglob("*")} == before


def test_a_population_that_nobody_has_begun_or_that_is_under_way_passes(population):
    assert verify(population).ok and verify(population).decisions == 0
    Player(population, 1).train(3)
    report = verify(population)
    assert report.ok and (report.started, report.attempts, report.decisions) == (1, 1, 3)


def record_files(population: Population) -> dict[tuple[int, int], list[Path]]:
    """(member, generation) -> the names that its record has, in whichever attempts."""
    found: dict[tuple[int, int], list[Path]] = {}
    for path in sorted(population.path.glob("members/*/attempts/*/pbt/records/*.json")):
        found.setdefault((int(path.parts[-6]), int(path.stem)), []).append(path)
    return found


def deciders(population: Population, member: int, generation: int) -> set[tuple[int, int]]:
    """Members and generations whose decision read that record."""
    return {
        (reader, line["generation"])
        for reader in population.members
        for line in read_journal(newest_journal(population, reader))
        if line["event"] == "decided" and [member, generation] in [each[:2] for each in line["records"]]
    }


def test_one_altered_byte_of_any_record_is_found_and_each_decision_by_it_named(copy_of_played):
    population = copy_of_played()
    files = record_files(population)
    assert len(files) == 30
    for number, ((member, generation), paths) in enumerate(files.items()):
        whole = paths[0].read_bytes()
        at = (number * 37) % len(whole)
        paths[0].write_bytes(
            whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        )  # in place: of all its names
        report = verify(population)
        named = {(p.member, p.generation) for p in report.problems if p.text.startswith("decided: ")}
        assert named == deciders(population, member, generation)
        assert any((p.member, p.generation) == (member, generation) for p in report.problems)
        assert all(
            f"record {generation} of member {member}" in p.text
            for p in report.problems
            if "decided" in p.text
        )
        assert report.lines()[-1].startswith("NOT verified")
        paths[0].write_bytes(whole)
    assert verify(population).ok


def test_an_altered_copy_in_one_attempt_is_found_though_another_attempt_has_the_record(copy_of_played):
    population = copy_of_played()
    (key, paths) = next((key, paths) for key, paths in record_files(population).items() if len(paths) > 1)
    for path in paths:
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole.replace(b'"epoch": ', b'"epoch":  '))
        report = verify(population)
        named = {(p.member, p.generation) for p in report.problems if p.text.startswith("decided: ")}
        assert named == deciders(population, *key)
        assert [p.file for p in report.problems if p.text.startswith("published with sha256")] == [
            str(path.relative_to(population.path))
        ]
        path.write_bytes(whole)
    assert verify(population).ok


def numbers(value: Any, place: tuple = ()) -> list[tuple]:
    """Where the numbers of a JSON value are."""
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in numbers(each, (*place, key))]
    if isinstance(value, list):
        return [found for at, each in enumerate(value) for found in numbers(each, (*place, at))]
    return [place] if isinstance(value, int | float) and not isinstance(value, bool) else []


def raise_by(value: Any, place: tuple, by: float) -> None:
    *way, last = place
    for key in way:
        value = value[key]
    value[last] = value[last] * (1 + by) if isinstance(value[last], float) else value[last] + 1


def test_every_number_of_a_record_counts(copy_of_played):
    population = copy_of_played()
    path = record_files(population)[3, 4][0]
    whole = path.read_text()
    places = numbers(json.loads(whole))
    assert len(places) > 25
    for place in places:
        value = json.loads(whole)
        raise_by(value, place, 1e-12)
        path.write_text(json.dumps(value, sort_keys=True) + "\n")
        assert not verify(population).ok, place
    path.write_text(whole)


def test_every_number_of_a_decision_counts(copy_of_played):
    population = copy_of_played()
    journal = newest_journal(population, 0)
    generation, decided = exploit_of(population)
    whole = journal.read_text()
    for place in numbers(decided):
        if place == ("generation",):
            continue

        def change(lines: Lines, place: tuple = place) -> None:
            line = next(x for x in lines if x["event"] == "decided" and x["generation"] == generation)
            raise_by(line, place, 1e-6)

        rewrite(journal, change)
        report = verify(population)
        found = [p for p in report.problems if p.generation == generation and p.text.startswith("decided: ")]
        assert found and found[0].member == 0, place
        journal.write_text(whole)
    assert verify(population).ok


def at(event: str, generation: int | None = None) -> Callable[[Lines], int]:
    """Where that line is; of the generation whose donor was taken over unless one is given."""

    def find(lines: Lines) -> int:
        explored = next(line["generation"] for line in lines if line["event"] == "explored")
        wanted = explored if generation is None else generation
        return next(
            i for i, line in enumerate(lines) if (line["event"], line["generation"]) == (event, wanted)
        )

    return find


def drop(event: str, generation: int | None = None) -> Callable[[Lines], object]:
    return lambda lines: lines.pop(at(event, generation)(lines))


def twice(event: str) -> Callable[[Lines], object]:
    return lambda lines: lines.insert(at(event)(lines) + 1, dict(lines[at(event)(lines)]) | {"time": "later"})


def swap(one: str, other: str) -> Callable[[Lines], object]:
    def change(lines: Lines) -> None:
        i, j = at(one)(lines), at(other)(lines)
        lines[i], lines[j] = lines[j], lines[i]

    return change


def put(event: str, *place: object, value: object) -> Callable[[Lines], object]:
    def change(lines: Lines) -> None:
        target: Any = lines[at(event)(lines)]
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value

    return change


def insert(event: str, after: str, **fields: object) -> Callable[[Lines], object]:
    def change(lines: Lines) -> None:
        i = at(after)(lines)
        lines.insert(i + 1, {"event": event, "generation": lines[i]["generation"], "time": "now"} | fields)

    return change


def unusable(lines: Lines) -> None:
    line = lines[at("decided")(lines)]
    next(record for record in line["records"] if record[0] == line["intent"]["donor"])[3] = False


def to_keep(lines: Lines) -> None:
    line = lines[at("decided")(lines)]
    line |= {"outcome": "keep", "intent": None}


ALTERED = {
    "no published line": (drop("published"), "a hole: has no line published"),
    "no decided line": (drop("decided"), "a hole: is not decided, but there are lines of generation 6"),
    "no intent line": (drop("intent"), "was carried out without a line intent"),
    "no adopted line": (drop("adopted"), "is explored, but was not adopted"),
    "no explored line": (drop("explored"), "a hole: the donor is neither taken over (explored) nor"),
    "published twice": (twice("published"), "has two lines published"),
    "decided twice": (twice("decided"), "has two lines decided"),
    "decided before it was published": (swap("published", "decided"), "its lines stand in another order"),
    "adopted before the intent": (swap("intent", "adopted"), "its lines stand in another order"),
    "finished too early": (insert("finished", "published"), "is finished, but the population has 6 "),
    "abandoned by the same attempt": (insert("abandoned", "explored", why=""), "adopted, then abandoned"),
    "another outcome": (to_keep, "decided: outcome is keep, computed exploit (place "),
    "another outcome in name": (put("decided", "outcome", value="keep"), "outcome is keep, computed exploit"),
    "no p": (put("decided", "p", value=None), "decided: p is None, computed "),
    "another donor in the intent": (put("intent", "donor", value=1), "intent: donor is 1, expected "),
    "another donor's snapshot": (put("adopted", "snapshot", value="a" * 64), "adopted: snapshot is aaa"),
    "a donor adopted that is another": (put("adopted", "donor", value=1), "adopted: donor is 1, expected "),
    "explored to another value": (
        put("explored", "after", "learn.lr", value=1e-3),
        "explored: after: learn.lr is 0.001",
    ),
    "explored from another value": (
        put("explored", "before", "learn.lr", value=1e-3),
        "explored: before: learn.lr is 0.001",
    ),
    "an intent with another value": (
        put("intent", "hyperparameters", "learn.lr", value=1e-3),
        "intent.hyperparameters: learn.lr is 0.001",
    ),
    "an unusable donor": (unusable, "decided: intent: donor is "),
    "another objective": (put("published", "objective", value=9.0), "published: objective is 9.0, not "),
    "another spread": (put("published", "spread", value=9.0), "published: spread is 9.0, not "),
    "other env steps": (put("published", "env_steps", value=1), "published: env_steps is 1, not "),
    "another record": (put("published", "sha256", value="b" * 64), "published with sha256 bbb"),
    "its own record is another": (put("decided", "records", 0, 2, value="c" * 64), "decided: record "),
    "another member's record first": (
        lambda lines: lines[at("decided")(lines)]["records"].reverse(),
        "decided: begins with record",
    ),
    "a member twice": (
        lambda lines: lines[at("decided")(lines)].update(records=2 * lines[at("decided")(lines)]["records"]),
        "decided: names a member twice",
    ),
    "a record that is none": (put("decided", "records", value=[[0]]), "decided: does not hold what a"),
    "a decision without records": (put("decided", "records", value=[]), "decided: does not hold what a"),
    "an intent that is none": (put("intent", "donor", value=None), "intent: donor is None"),
    "a published line without hash": (put("published", "sha256", value=None), "published with sha256 None"),
    "a generation that is none": (put("explored", "generation", value=0), "there is no such generation"),
    "no line of birth": (
        lambda lines: lines.__setitem__(slice(None), [x for x in lines if x["event"] != "birth"]),
        "has no line birth in this journal",
    ),
    "a generation after the last": (
        lambda lines: lines.append({"event": "decided", "generation": 7, "records": [], "outcome": "keep"}),
        "generation 7: ",
    ),
}


@pytest.mark.parametrize(("change", "words"), ALTERED.values(), ids=list(ALTERED))
def test_an_altered_journal_is_found_and_the_generation_named(copy_of_played, change, words):
    population = copy_of_played()
    rewrite(newest_journal(population, 0), change)
    report = verify(population)
    assert not report.ok and words in texts(report)
    journal = str(newest_journal(population, 0).relative_to(population.path))
    problem = next(p for p in report.problems if words in str(p))
    assert problem.member == 0 and (problem.file == journal or "/records/" in problem.file)


@pytest.mark.parametrize("text", [b"{torn\n", b"[1]\n", b'{"event": "decided"}\n', b"\xff\n", b"\n"])
def test_a_line_that_is_none_is_named_unless_it_is_torn_off_at_the_end(copy_of_played, text):
    population = copy_of_played()
    journal = newest_journal(population, 0)
    whole = journal.read_bytes()
    journal.write_bytes(whole + text.rstrip(b"\n"))
    assert verify(population).ok
    journal.write_bytes(text + whole)
    assert "line 1 is no line of a journal" in texts(verify(population))


def test_what_follows_an_altered_record_whose_hashes_were_altered_too_is_found(copy_of_played):
    """Whoever rewrites a record and every hash of it still has to answer for what was decided by it."""
    population = copy_of_played()
    for key, value, words in (
        ("env_steps", 10**9, "has 1000000000 env steps, more than its own"),
        ("epoch", 5, "epoch is 5, expected 4"),
        ("parent", [0, 1], "parent is (0, 1), expected None"),
        ("hyperparameters", {"learn.lr": 0.5}, "learn.lr = 0.5 is outside 1e-05 to 0.003"),
        ("hyperparameters", {"learn.lr": 1e-3}, "hyperparameters: learn.lr is 0.001, expected "),
        ("snapshot_bytes", 0, "snapshot_bytes is 0"),
        ("token", "x", "with token x has no line birth in this journal"),
        ("objective", 9.0, "the record: objective is 9.0, not "),
        ("population", "another", "is of another population, member or generation"),
        ("scores", [0.0] * 16, "decided: "),
    ):
        forged = copy_of_played()
        path = record_files(forged)[4, 2][0]
        old = sha256_of(path)
        record = json.loads(path.read_text())
        record[key] = record[key] | value if isinstance(value, dict) else value
        path.write_text(json.dumps(record, sort_keys=True) + "\n")
        for journal in forged.path.rglob("journal.jsonl"):
            journal.write_text(journal.read_text().replace(old, sha256_of(path)))
        report = verify(forged)
        assert words in texts(report), (key, texts(report))
        shutil.rmtree(forged.path)
    assert verify(population).ok


def test_steps_that_do_not_grow_are_found(copy_of_played):
    population = copy_of_played()
    path = record_files(population)[4, 2][0]
    old = sha256_of(path)
    record = json.loads(path.read_text()) | {"env_steps": 200}
    path.write_text(json.dumps(record, sort_keys=True) + "\n")
    for journal in population.path.rglob("journal.jsonl"):
        journal.write_text(journal.read_text().replace(old, sha256_of(path)))
    assert "the record: env_steps is 200, before it was 200" in texts(verify(population))


def test_a_lost_record_is_found(copy_of_played):
    population = copy_of_played()
    for path in record_files(population)[1, 2]:
        path.unlink()
    report = verify(population)
    assert "now it is not there" in texts(report)
    assert {(p.member, p.generation) for p in report.problems if "decided: " in p.text} == deciders(
        population, 1, 2
    )


def test_a_lost_journal_is_found_but_not_that_of_an_attempt_that_never_took_over(copy_of_played):
    population = copy_of_played()
    attempts = newest_journal(population, 1).parents[2]
    begun = attempts / "99"
    shutil.copytree(newest_journal(population, 1).parents[1], begun)
    (begun / "pbt/journal.jsonl").unlink()
    assert "99/pbt/journal.jsonl: is not there, yet its attempt took over" in texts(verify(population))
    (begun / "attempt.json").write_text('{"ready": false}')
    assert verify(population).ok and verify(population).attempts == 9
    newest_journal(population, 1).unlink()
    assert "is not there, yet its attempt took over" in texts(verify(population))


@pytest.mark.parametrize(
    ("section", "key", "value"), [("train", "seed", 6), ("pbt", "quantile", 0.2), ("pbt", "level", 1e-12)]
)
def test_another_config_does_not_come_to_the_same_decisions(copy_of_played, section, key, value):
    population = copy_of_played()
    tree = read_json(population.path / "population.json")
    tree["config"][section][key] = value
    write_json(population.path / "population.json", tree)
    report = verify(Population.open(population.path))
    assert "population.json: config_sha256 is not that of its config" in texts(report)
    assert any(p.generation > 0 for p in report.problems)


def test_two_attempts_that_both_carried_out_a_generation_are_each_judged_by_their_own_records(tmp_path):
    population = new_population(tmp_path, 4)
    others = [Player(population, number).train(2) for number in (1, 2, 3)]
    stale = Player(population, 0).train(1)
    newer = Player(population, 0)
    stale.attempt.check = lambda: None  # type: ignore[method-assign]
    stale.weights -= 1
    stale.train()
    for player in (*others, newer):
        player.train()
    report = verify(population)
    assert report.ok, texts(report)
    assert report.decisions == 3 * 4 + 2, "two of the stale attempt's are its own"
    twice = [
        paths for (member, _), paths in record_files(population).items() if member == 0 and len(paths) > 1
    ]
    assert len({path.read_bytes() for paths in twice for path in paths}) > len(twice)
    stales = next(line for line in read_journal(stale.member.journal.path) if line["generation"] == 2)

    def by_the_stale_attempts_record(lines: Lines) -> None:
        lines[at("decided", 2)(lines)]["records"][0][2] = stales["sha256"]

    rewrite(newer.member.journal.path, by_the_stale_attempts_record)
    assert f"but decided by {stales['sha256'][:12]}..." in texts(verify(population))
