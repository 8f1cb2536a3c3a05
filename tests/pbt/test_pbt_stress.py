"""A population whose processes are killed and frozen anywhere, on a share that shows files late and torn.

``stress_population`` runs it, with made-up learners and real files; ``stress_course`` judges what is on disk.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from population_cases import a_record
from stress_course import Course, spoil
from stress_member import SUPERSEDED

from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, parse, record_name
from hpcrl.pbt.verify import verify
from hpcrl.types import HpcrlError

HERE = Path(__file__).parent
PLACES = (
    "checkpoint_epoch_10.json",
    "snapshots/000005.pt",
    "records/000005.json",
    '"event": "published", "generation": 5',
    '"event": "decided", "generation": 5',
    '"event": "intent"',
    "pins/000003.pt",
    '"event": "adopted"',
)
"""Where the first attempt is frozen: after it last asked whether it is still the newest."""


def run(script: str, *arguments: object, limit: float = 300) -> list[dict[str, Any]]:
    """What a script of this folder prints, line by line."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def stressed(tmp_path_factory) -> dict[str, Any]:
    """Six members, of which the last starts when all others have finished."""
    folder = tmp_path_factory.mktemp("stress") / "run"
    return run(
        "stress_population.py", folder, "--members", 6, "--generations", 40, "--late-at", 1, "--reach", 3
    )[0]


def judge(told: dict[str, Any], record_property: Callable[[str, object], None]) -> Course:
    """Everything that must hold of a run that ``stress_population`` told of."""
    population = Population.open(told["population"])
    course = Course(population)
    course.check()
    assert told["finished"] >= len(population.members), "somebody was blocked"
    assert told["of these, snapshots that were gone"] == 0
    report = verify(population)
    assert report.ok, report.lines()[:5]
    turns = [line.split() for line in (population.path.parent / "log" / "turns.txt").read_text().splitlines()]
    busy = sorted(float(turn[3]) for turn in turns)
    assert busy[-1] < 5, "a turn took too long"
    counts = told | {f"lines {event}": n for event, n in sorted(course.counts.items())}
    counts |= {"decisions verified": report.decisions, "given up": report.abandoned}
    counts |= {"median CPU ms of a turn": 1e3 * busy[len(busy) // 2], "longest": 1e3 * busy[-1]}
    for name, value in counts.items():
        if name != "population":
            record_property(f"stress: {name}", value)
    return course


def test_killed_and_frozen_members_end_where_their_journals_say_and_block_nobody(stressed, record_property):
    course = judge(stressed, record_property)
    assert stressed["killed"] >= 3 and stressed["processes"] > len(course.members) + 3
    assert course.counts["adopted"] >= 3 and course.counts["skipped"] >= 3


def test_a_record_that_was_changed_fails_the_verification_of_each_decision_that_read_it(stressed):
    population = Population.open(stressed["population"])
    course, draw = Course(population), random.Random(1)
    lines = [(m, turn["decided"]) for m in course.members for turn in course.turns[m][:-1]]
    member, line = draw.choice([(m, line) for m, line in lines if line["outcome"] == "exploit"])
    other, generation, sha256, _ = line["records"][1]
    folder = Reader(population).folder(other)
    assert folder is not None
    path = folder / "records" / record_name(generation)
    whole = path.read_bytes()
    spoil(path)
    problems = verify(population).problems
    with path.open("r+b") as file:
        file.write(whole)
        file.truncate()
    named = {(p.member, p.generation) for p in problems if "decided" in p.text}
    readers = {
        (m, line["generation"])
        for m, line in lines
        if [other, generation, sha256] in [entry[:3] for entry in line["records"]]
    }
    assert (member, line["generation"]) in readers <= named
    assert verify(population).ok, "and the old record is right again"


@pytest.mark.parametrize("mode", ["ready", "inheriting"])
def test_what_a_stale_attempt_writes_when_it_wakes_is_referred_to_by_no_newer_one(tmp_path, mode):
    late = []
    for told in run("stress_freeze.py", tmp_path / "frozen", mode, *PLACES):
        assert told["code"] == SUPERSEDED, told
        population = Population.open(told["population"])
        course = Course(population)
        course.check()
        members = course.members if mode == "ready" else [0]
        referred = {sha for m in members for sha in course.referred(m)}
        assert not referred & set(told["late_records"]), told
        late += told["late"]
    assert "pbt/records/000005.json" in late and "pbt/pins/000003.pt" in late, (
        "else nothing was put to the test"
    )


def test_no_part_of_a_record_passes_for_the_whole(population: Population, tmp_path):
    a_record(population, 1, 3).write(tmp_path)
    data = (tmp_path / record_name(3)).read_bytes()
    assert parse(data, population, 1, 3).generation == 3
    for length in range(len(data)):
        with pytest.raises(HpcrlError, match="is no whole JSON"):
            parse(data[:length], population, 1, 3)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_soak_sixteen_members_by_a_thousand_generations(tmp_path, record_property):
    """Processes do not wait for the disk: what a killed process has written, the kernel has."""
    (told,) = run(
        "stress_population.py",
        tmp_path / "run",
        "--members",
        16,
        "--generations",
        1000,
        "--no-sync",
        limit=7000,
    )
    course = judge(told, record_property)
    assert told["killed"] >= 200 and told["superseded"] >= 10 and told["intents that a kill left open"] >= 10
    assert course.counts["adopted"] >= 500 and course.counts["alarm"] >= 1
