"""Populations without training: members take real turns over scores that are drawn, not played."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpcrl.config.load import load_config
from hpcrl.config.root import Config
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Record
from hpcrl.pbt.turn import Member, Snapshot, State
from hpcrl.storage.atomic import sha256_of, write_json
from hpcrl.storage.attempts import Attempt
from hpcrl.storage.run_dir import RunDir

WINDOWS = 24
STEPS = 16_384
"""Env steps of a generation."""


def made_config(folder: Path, *sets: str) -> Config:
    """12 generations of 5 epochs, unless told otherwise."""
    base = (f"pbt.dir={folder}", "train.epochs=60", "train.world_size=1", "engine.device=cpu")
    return load_config(None, (*base, *sets), environment={})


@dataclass
class Taker:
    """A member in an attempt of its own, and where it has got to."""

    member: Member
    attempt: Attempt
    state: State


def begin(population: Population, number: int) -> Taker:
    """The member's next attempt; its hyperparameters are the first ones again."""
    run = RunDir(population.folder(number))
    if not run.config.exists():
        write_json(run.config, {"data": {"source": "planted:L2"}})
    attempt = Attempt.claim(run, 1, {"job": None, "restart_count": 0, "trigger": "user"})
    member = Member(population, number, attempt, attempt.source.path)
    attempt.take_over(None)
    done = max(member.reader.generations(member.folder), default=0)
    return Taker(member, attempt, State(done, population.start(number)))


def publish(taker: Taker, scores: Sequence[float]) -> Record:
    """These scores; the member goes on as it is."""
    member, generation = taker.member, taker.state.generation + 1
    file = taker.attempt.folder.path / f"weights_{generation}.pt"
    file.write_text(f"{member.number} {generation}")
    snapshot = Snapshot(file, sha256_of(file), file.stat().st_size)
    epoch = generation * member.population.pbt.interval
    record = member.publish(taker.state, epoch, generation * STEPS, tuple(map(float, scores)), snapshot)
    taker.state = replace(taker.state, generation=generation)
    return record


def turn(taker: Taker, scores: Sequence[float]) -> None:
    """Publish these scores, and do what comes of them."""
    before, member = taker.state, taker.member
    record = publish(taker, scores)
    plan = member.choose(before, record)
    if plan.donor is not None:
        member.adopted(plan)
    member.journal.append("overhead", record.generation, seconds=0.5, trained_seconds=49.5, share=0.01)
    taker.state = plan.state


def make_population(
    folder: Path, *sets: str, generations: int | None = None, late: tuple[int, ...] = (), seed: int = 0
) -> Population:
    """All members but ``late`` ones take so many turns, side by side; default: all.

    A member's weights learn the faster the nearer lr is to 3e-4; a copy brings what the donor has learnt.
    """
    population = Population.create(made_config(folder, *sets), "0" * 64, WINDOWS)
    rng = np.random.default_rng(seed)
    luck_W = rng.normal(0, 0.004, WINDOWS)
    takers = {number: begin(population, number) for number in population.members if number not in late}
    skill = dict.fromkeys(takers, 0.0)
    for generation in range(1, (generations or population.generations) + 1):
        for number, taker in takers.items():
            off = abs(np.log10(taker.state.hyperparameters["learn.lr"] / 3e-4))
            skill[number] += 0.002 * np.exp(-(off**2)) / generation**0.5
            turn(taker, skill[number] + luck_W + rng.normal(0, 0.0015, WINDOWS))
        for number, taker in takers.items():
            if taker.state.parent and taker.state.parent[1] == generation:
                skill[number] = skill[taker.state.parent[0]]
    return population


def newest_attempt(population: Population, number: int) -> Path:
    return max((population.folder(number) / "attempts").iterdir(), key=lambda path: int(path.name))


def end(population: Population, number: int, code: int, reason: str = "finished") -> None:
    """The member's newest attempt says how it ended."""
    told = {"code": code, "epoch": 5, "reason": reason, "ended": "2026-01-02T03:04:05+00:00"}
    (newest_attempt(population, number) / "end.json").write_text(json.dumps(told))


def lose(population: Population, number: int) -> None:
    """Its process is gone, and said nothing."""
    file = newest_attempt(population, number) / "attempt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 2**22 + 1}))
