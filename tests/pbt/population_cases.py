"""Populations without torch: members whose whole training is one number, on real folders and attempts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader, Record, Share, snapshot_name
from hpcrl.pbt.turn import Member, Plan, Snapshot, State
from hpcrl.storage.atomic import sha256_of, write_text
from hpcrl.storage.attempts import Attempt
from hpcrl.storage.run_dir import RunDir

WINDOWS = 16
STEPS = 100
"""Env steps of an epoch."""
INTERVAL = 2
"""Epochs of a generation."""
WHO = {"job": None, "restart_count": 0, "trigger": "user"}


def config(folder: Path, generations: int = 6, **pbt: Any) -> Config:
    """Valid, and small where that counts."""
    tree = {
        "train": {"seed": 5, "epochs": generations * INTERVAL},
        "pbt": {"dir": str(folder), "members": 4, "interval": INTERVAL} | pbt,
    }
    return validate(tree, "test")


def new_population(folder: Path, generations: int = 6, **pbt: Any) -> Population:
    return Population.create(config(folder, generations, **pbt), "d" * 64, WINDOWS)


def a_record(population: Population, member: int, generation: int, **other: Any) -> Record:
    """As the member's first attempt would write it."""
    value = {
        "population": population.id,
        "member": member,
        "generation": generation,
        "attempt": 1,
        "token": "t",
        "epoch": generation * INTERVAL,
        "env_steps": generation * INTERVAL * STEPS,
        "scores": tuple(0.01 * w for w in range(WINDOWS)),
        "hyperparameters": population.start(member),
        "snapshot": "0" * 64,
        "snapshot_bytes": 3,
        "parent": None,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(**(value | other))


def gain(values: dict[str, float], number: int) -> float:
    """What an epoch adds to the weights. The first member has no gift of its own: it copies in each turn."""
    return min(number, 1) + 0.05 / (1 + abs(float(np.log10(values["learn.lr"])) + 3))


class Player:
    """One attempt at a member, as ``train.learn`` and ``launch/member`` drive it, from its claim on."""

    def __init__(self, population: Population, number: int, reader: Reader | None = None) -> None:
        self.population, self.number = population, number
        folder = population.folder(number)
        self.attempt = Attempt.claim(RunDir(folder), 1, WHO)
        self.attempt.adopt()
        self.member = Member(population, number, self.attempt, self.attempt.source.path, reader)
        epochs = self.attempt.folder.manifest_epochs()
        self.epoch, self.weights = 0, 0.0
        self.state = State(0, population.start(number))
        if epochs:
            kept = json.loads(self.attempt.folder.portable(epochs[0]).read_bytes())
            self.epoch, self.weights = kept["epoch"], kept["weights"]
            self.state = State.from_dict(kept["pbt"])
        self.attempt.folder.metrics.write_text("")
        self.attempt.take_over(self.epoch)
        self.plans: list[Plan] = []

    @property
    def folder(self) -> Path:
        """attempts/N/pbt."""
        return self.member.folder

    def train(self, generations: int | None = None) -> Player:
        """Until that generation's turn is over; None: until the last."""
        last = self.population.generations if generations is None else generations
        if self._due():
            self._turn()
        while self.epoch < last * INTERVAL:
            self.weights += gain(self.state.hyperparameters, self.number)
            self.epoch += 1
            if self._due():
                self._save()
                self._turn()
        return self

    def outcome(self) -> dict[str, Any]:
        """What must not depend on where an attempt was cut short."""
        lines = [json.loads(text) for text in self.member.journal.path.read_text().splitlines()]
        own = {line["sha256"] for line in lines if line["event"] == "published"}
        told = [_comparable(line, own) for line in lines if line["event"] not in ("birth", "pruned")]
        records = [self.member.published(g) for g in range(1, self.state.generation + 1)]
        assert all(records), "an own record is missing"
        return {
            "weights": self.weights,
            "state": self.state,
            "lines": told,
            "records": [
                (r.scores, r.hyperparameters, r.env_steps, r.snapshot, r.parent) for r in records if r
            ],
        }

    def _due(self) -> bool:
        return self.epoch // INTERVAL > self.state.generation

    def _save(self) -> None:
        folder = self.attempt.folder
        kept = {"epoch": self.epoch, "weights": self.weights, "pbt": self.state.to_dict()}
        write_text(folder.portable(self.epoch), json.dumps(kept))
        write_text(folder.manifest(self.epoch), "{}")

    def _turn(self) -> None:
        path = self.attempt.folder.portable(self.epoch)
        snapshot = Snapshot(path, sha256_of(path), path.stat().st_size)
        known = self.member.published(self.state.generation + 1)
        scores = known.scores if known else self._scores()
        record = self.member.publish(self.state, self.epoch, self.epoch * STEPS, scores, snapshot)
        plan = self.member.choose(self.state, record)
        if plan.donor is not None:
            self.weights = json.loads(plan.donor.path.read_bytes())["weights"]
            self.member.adopted(plan)
        self.state = plan.state
        self.plans.append(plan)
        self.member.prune(plan.state.generation)

    def _scores(self) -> tuple[float, ...]:
        noise = np.random.default_rng([self.number, self.epoch]).normal(0, 0.05, WINDOWS)
        return tuple((self.weights + noise).tolist())


def _comparable(line: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """Without the time, and without the hash of an own record, which names the attempt that wrote it."""
    value = {key: value for key, value in line.items() if key not in ("time", "sha256")}
    if "records" in value:
        value["records"] = [[m, g, "own" if sha in own else sha, u] for m, g, sha, u in value["records"]]
    return value


def played(folder: Path, generations: int = 6, **pbt: Any) -> Population:
    """All members to the end, a generation each in turn.

    The odd ones begin a new attempt in every third generation; what anybody has published up to the third is
    altered after it, so that members that decide for it have to give up.
    """
    population = new_population(folder, generations, **pbt)
    players = {}
    for generation in range(1, generations + 1):
        for number in population.members:
            if number not in players or (number % 2 and generation % 3 == 0):
                players[number] = Player(population, number)
            players[number].train(generation)
        if generation == 3:
            for player in players.values():
                alter(player.folder / "snapshots" / snapshot_name(3))
    return population


def alter(file: Path) -> None:
    """Other bytes, as many as before, under this name alone."""
    other = bytes(byte ^ 1 for byte in file.read_bytes())
    file.unlink()
    file.write_bytes(other)


class LateShare(Share):
    """Hides what ``hidden`` says, as a share does that shows new files late."""

    def __init__(self, hidden: Callable[[Path], bool]) -> None:
        self.hidden = hidden

    def names(self, folder: Path) -> list[str]:
        return [name for name in super().names(folder) if not self.hidden(folder / name)]

    def read(self, path: Path) -> bytes:
        if self.hidden(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return super().read(path)

    def size(self, path: Path) -> int:
        return -1 if self.hidden(path) else super().size(path)
