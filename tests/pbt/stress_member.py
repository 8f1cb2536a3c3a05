"""One attempt of a member whose learner is made up; everything else is real. Knows no torch.

The learner's weights are a hash chain over all that happened to it, and a skill that the learning rate moves;
its scores are a pure function of both. So the course of a whole population can be computed again, bit by bit,
from population.json and the journals alone (``stress_course``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stress_faults import Fuse, LateShare

from hpcrl.checkpoint.manifest import FileRecord, Manifest
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader
from hpcrl.pbt.turn import Member, Snapshot, State
from hpcrl.storage.atomic import sha256_of, stage, to_json
from hpcrl.storage.attempts import Attempt, Superseded
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import RunFailed

FINISHED, GAVE_PLACE, SUPERSEDED = 0, 75, 3
STEPS = (64, 72, 80)
"""Env steps of an epoch; members differ, as their numbers of ranks may."""
KEEP_ROLLING = 2


@dataclass
class Learner:
    epoch: int
    env_steps: int
    chain: str
    skill: float
    pbt: dict[str, Any]

    @classmethod
    def begin(cls, population: Population, member: int) -> Learner:
        chain = hashlib.sha256(f"{population.seed} {member}".encode()).hexdigest()
        return cls(0, 0, chain, 0.0, State(0, population.start(member)).to_dict())

    @classmethod
    def of(cls, data: bytes) -> Learner:
        return cls(**json.loads(data))

    def data(self) -> bytes:
        """The same bytes for the same state, 2 kB of it so that a part can be torn off."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode() + b" " * 2000

    def train(self, member: int) -> None:
        """One epoch; the best learning rate moves over time, so that copying it never ends."""
        values = self.pbt["hyperparameters"]
        told = f"{self.chain} {json.dumps(values, sort_keys=True)}"
        self.chain = hashlib.sha256(told.encode()).hexdigest()
        best = -3.7 + 0.8 * math.sin(self.env_steps / 2000)
        fit = math.exp(-2 * (math.log10(values["learn.lr"]) - best) ** 2)
        self.skill += 0.3 * (fit - self.skill)
        self.epoch += 1
        self.env_steps += STEPS[member % len(STEPS)]

    def scores(self, windows: int) -> tuple[float, ...]:
        draw = random.Random(self.chain)
        return tuple(self.skill + draw.gauss(0, 0.2) for _ in range(windows))

    def adopt(self, donor: Learner) -> None:
        """Its weights, but for its place in the run: as ``train.Trainer.adopt`` does."""
        self.chain, self.skill = donor.chain, donor.skill


@dataclass(frozen=True)
class Order:
    """What this attempt is to meet with."""

    seed: int
    fuse: dict[str, Any] | None = None
    lit_at_start: bool = True
    """Else once it has taken over: an old member's history alone is thousands of links."""
    generations: int | None = None
    """After so many it gives its place away."""
    sync: bool = True
    late: bool = True
    """The share shows files late."""


def attempt(path: Path, number: int, order: Order, log: Path) -> int:
    """The exit code. In the order of ``launch/job``: claim, adopt, member, restore, take over, train."""
    population = Population.open(path)
    if not order.sync:
        _without_sync()
    if order.fuse and order.lit_at_start:
        Fuse(**order.fuse, seed=order.seed).arm()
    run = RunDir(population.folder(number))
    own = Attempt.claim(run, 1, {"job": None, "restart_count": 0, "trigger": "user"})
    try:
        return _train(population, number, own, order, log)
    except Superseded:
        return SUPERSEDED
    except Exception as error:
        try:
            own.check()
        except Superseded:  # its files are gone because a newer one has taken over: as in launch/job
            return SUPERSEDED
        raise error


def _without_sync() -> None:
    os.fsync = lambda handle: None  # a process that is killed loses nothing that the kernel has


def _train(population: Population, number: int, own: Attempt, order: Order, log: Path) -> int:
    own.adopt()
    share = LateShare(own.record.path, order.seed) if order.late else None
    member = Member(population, number, own, own.source.path, Reader(population, share))
    found = newest(own.folder)
    learner = found or Learner.begin(population, number)
    own.take_over(learner.epoch if found else None)
    if order.fuse and not order.lit_at_start:
        Fuse(**order.fuse, seed=order.seed).arm()
    turns = 0
    every, total = population.pbt.interval, population.config.train.epochs
    save(own, learner)
    while True:
        if learner.epoch // every > learner.pbt["generation"]:
            began, worked = time.monotonic(), time.process_time()
            take_turn(member, own, learner)
            with log.open("a") as file:
                spent, busy = time.monotonic() - began, time.process_time() - worked
                file.write(f"{number} {learner.pbt['generation']} {spent:.6f} {busy:.6f}\n")
            turns += 1
            if share is not None:
                share.turn()
        if learner.epoch >= total:
            own.end(0, learner.epoch, "finished")
            return FINISHED
        if turns == order.generations:
            own.end(GAVE_PLACE, learner.epoch, "SIGUSR2")
            return GAVE_PLACE
        learner.train(number)
        if learner.epoch % every == 0 or learner.chain[0] in "0123":  # and a rolling one now and then
            save(own, learner)


def take_turn(member: Member, own: Attempt, learner: Learner) -> None:
    """As ``launch/member.MemberTurns.take``, after the checkpoint is saved."""
    state = State.from_dict(learner.pbt)
    portable = own.folder.portable(learner.epoch)
    file = Manifest.read(own.folder.manifest(learner.epoch)).files[portable.name]
    known = member.published(state.generation + 1)
    scores = known.scores if known else learner.scores(member.population.windows)
    snapshot = Snapshot(portable, file.sha256, file.bytes)
    record = member.publish(state, learner.epoch, learner.env_steps, scores, snapshot)
    plan = member.choose(state, record)
    if plan.donor is not None:
        if sha256_of(plan.donor.path) != plan.donor.sha256:
            plan = member.abandon(plan, "is not the snapshot that was published")
        else:
            learner.adopt(Learner.of(plan.donor.path.read_bytes()))
            member.adopted(plan)
    learner.pbt = plan.state.to_dict()
    member.prune(plan.state.generation)
    member.best()


def newest(folder: RunDir) -> Learner | None:
    """The newest whole checkpoint."""
    for epoch in folder.manifest_epochs():
        try:
            Manifest.read(folder.manifest(epoch)).check_files(folder.path)
        except RunFailed:
            continue
        return Learner.of(folder.portable(epoch).read_bytes())
    return None


def save(own: Attempt, learner: Learner) -> None:
    """As ``checkpoint/manager``: the files, then the manifest, then the old ones leave."""
    own.check()
    folder, epoch = own.folder, learner.epoch
    if folder.manifest(epoch).exists():
        if folder.portable(epoch).read_bytes() == learner.data():
            return  # it was loaded from there
        folder.manifest(epoch).unlink()
    files = {folder.portable(epoch): learner.data(), folder.rank_state(epoch, 0): b"rank 0"}
    staged = [stage(path, partial(_write, data)) for path, data in files.items()]
    records = {file.path.name: FileRecord(file.sha256, file.bytes) for file in staged}
    manifest = to_json(Manifest(epoch, 1, False, records, "").to_dict()).encode()
    staged.append(stage(folder.manifest(epoch), partial(_write, manifest)))
    for file in staged:
        file.commit()
    for old in folder.manifest_epochs()[KEEP_ROLLING:]:
        folder.manifest(old).unlink()
        for name in folder.checkpoint_files().get(old, ()):
            (folder.path / name).unlink()


def _write(data: bytes, file: Any) -> None:
    file.write(data)
