"""A population whose processes are killed, frozen and woken at random, until every member has finished.

    python tests/pbt/stress_population.py FOLDER --members 16 --generations 1000 --no-sync

Makes the population in FOLDER and prints one JSON object: what happened to its processes. ``stress_course``
then looks at what is on disk. A member's process is forked from this one, which has the imports behind it: a
thousand restarts would be a thousand times a second of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scipy.stats  # noqa: F401  before the fork
from stress_course import open_intent
from stress_member import FINISHED, GAVE_PLACE, SUPERSEDED, Order, attempt

from hpcrl.config.load import validate
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import record_name
from hpcrl.storage.attempts import read_attempts

INTERVAL = 2
WINDOWS = 20
WITHIN_AN_EXPLOIT = [f'"event": "{event}"' for event in ("intent", "adopted", "explored")]
"""Of ten thousand changes of the disk few are there: some processes are killed before one of these."""
MOST_TURNS = 40
"""Of a process, if nothing else ends it."""
SNAPSHOT_BYTES = 2300
KEPT_SNAPSHOTS = 60
"""For which there is room, of each member: those that the late starter would need may be gone."""
LITTER = 8
"""Records that are torn or foreign, and stay so."""


def make(folder: Path, members: int, generations: int, seed: int) -> Population:
    pbt: dict[str, Any] = {"dir": str(folder), "members": members, "interval": INTERVAL}
    pbt |= {"explore": "resample", "keep_gb": members * KEPT_SNAPSHOTS * SNAPSHOT_BYTES / 1e9}
    train = {"epochs": generations * INTERVAL, "seed": seed}
    tree = {"pbt": pbt, "train": train, "learn": {"lr": 2e-5}}  # a bad one: member 0 begins with it
    return Population.create(validate(tree, "stress"), "0" * 64, WINDOWS)


@dataclass
class Child:
    member: int
    pid: int
    kill_at: float | None
    frozen: bool = False
    wake_at: float = 0.0


@dataclass
class Driver:
    population: Population
    seed: int
    sync: bool
    at_once: int = 3
    late_at: float = 0.5
    """The last member starts when the others have done this share of their generations."""
    reach: float = 3.3
    """A process that is to be ended is so after 10 to 10**reach changes of the disk."""
    children: dict[int, Child] = field(default_factory=dict)
    told: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.unfinished = set(self.population.members)
        self.log = self.population.path.parent / "log"
        self.log.mkdir()

    def run(self) -> Counter:
        try:
            while self.unfinished or self.children:
                self._look()
        finally:
            for child in self.children.values():
                os.kill(child.pid, signal.SIGKILL)
        return self.told

    def _look(self) -> None:
        while (member := self._next()) is not None:
            self._start(member)
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if pid:
            self._heard(self.children[pid], status)
        else:
            self._disturb()
            time.sleep(0.001)

    def _next(self) -> int | None:
        """A member that is to be started now, by lot; a frozen one's successor begins while it is frozen."""
        at_work = {child.member for child in self.children.values() if not child.frozen}
        free = sorted(self.unfinished - at_work)
        last = self.population.members[-1]
        if last in free and not self._late_may_start():
            free.remove(last)
        return self.random.choice(free) if free and len(at_work) < self.at_once else None

    def _late_may_start(self) -> bool:
        if self.told["late member started"]:
            return True
        others = self.population.members[:-1]
        wanted = int(self.late_at * self.population.generations)
        far = sum(self._has(member, wanted) for member in others)
        self.told["late member started"] = int(far == len(others))
        return far == len(others)

    def _has(self, member: int, generation: int) -> bool:
        """Whether any of its attempts has published that much."""
        attempts = self.population.folder(member) / "attempts"
        folders = sorted(attempts.iterdir(), key=lambda path: -int(path.name)) if attempts.exists() else []
        return any((folder / "pbt" / "records" / record_name(generation)).exists() for folder in folders)

    def _start(self, member: int) -> None:
        draw, fuse, kill_at = self.random, None, None
        fate = draw.random()
        calls = int(10 ** draw.uniform(1, self.reach))
        if fate < 0.5:
            fuse = {"signal": int(signal.SIGKILL), "calls": calls}
        elif fate < 0.65:
            fuse = {"signal": int(signal.SIGKILL), "at": draw.choice(WITHIN_AN_EXPLOIT)}
        elif fate < 0.8:
            fuse = {"signal": int(signal.SIGSTOP), "calls": calls}
        elif fate < 0.9:
            kill_at = time.monotonic() + draw.uniform(0.0, 0.5)
        generations = draw.randint(1, MOST_TURNS)
        order = Order(draw.getrandbits(32), fuse, draw.random() < 0.3, generations, self.sync)
        pid = fork(self.population.path, member, order, self.log)
        self.children[pid] = Child(member, pid, kill_at)
        self.told["processes"] += 1

    def _heard(self, child: Child, status: int) -> None:
        told, draw = self.told, self.random
        if os.WIFSTOPPED(status):
            told["frozen"] += 1
            child.frozen, child.wake_at = True, time.monotonic() + draw.uniform(0.0, 0.6)
            return
        del self.children[child.pid]
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) != signal.SIGKILL:
                raise RuntimeError(f"member {child.member} died of signal {os.WTERMSIG(status)}")
            told["killed"] += 1
            there = open_intent(self.population, child.member)
            told["intents that a kill left open"] += there is not None
            told["of these, snapshots that were gone"] += there is False
            return
        code = os.WEXITSTATUS(status)
        if code == FINISHED:
            self.unfinished.discard(child.member)
        names = {FINISHED: "finished", GAVE_PLACE: "gave their place", SUPERSEDED: "superseded"}
        if code not in names:
            raise RuntimeError("".join(path.read_text() for path in self.log.glob("error*")))
        told[names[code]] += 1

    def _disturb(self) -> None:
        now = time.monotonic()
        for child in list(self.children.values()):
            if child.frozen and child.wake_at < now:
                child.frozen = False
                os.kill(child.pid, signal.SIGCONT)
            elif child.kill_at is not None and child.kill_at < now:
                child.kill_at = None
                os.kill(child.pid, signal.SIGKILL)
        if self.told["bad records laid"] < LITTER and self.random.random() < 0.01:
            self._litter()

    def _litter(self) -> None:
        """A torn and a foreign record where records are, of generations that nobody has reached."""
        attempts = read_attempts(self.population.folder(self.random.choice(self.population.members)))
        if attempts and attempts[-1].ready:
            name = record_name(999_990 + self.random.randrange(10))
            text = self.random.choice(['{"format": 1, "popul', '{"format": 1, "population": "other"}'])
            (attempts[-1].path / "pbt" / "records" / name).write_text(text)
            self.told["bad records laid"] += 1


def fork(path: Path, member: int, order: Order, log: Path) -> int:
    """The process id of a new attempt."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = attempt(path, member, order, log / "turns.txt")
    except BaseException:
        (log / f"error.{os.getpid()}").write_text(f"member {member}, {order}\n{traceback.format_exc()}")
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--late-at", type=float, default=0.5)
    parser.add_argument("--reach", type=float, default=3.3)
    parser.add_argument("--no-sync", action="store_true", help="processes do not wait for the disk")
    given = parser.parse_args()
    population = make(given.folder, given.members, given.generations, given.seed)
    driver = Driver(population, given.seed, not given.no_sync, late_at=given.late_at, reach=given.reach)
    began = time.monotonic()
    told = driver.run()
    seconds = round(time.monotonic() - began, 1)
    json.dump({"population": str(population.path), "seconds": seconds, **told}, sys.stdout)


if __name__ == "__main__":
    main()
