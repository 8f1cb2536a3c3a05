"""A small population that trains as a job array of the real cluster, and what must hold once it is over."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from servers.slurm import SlurmCluster, poll
from trial import PATIENCE, ROOT

from hpcrl.pbt.journal import read_journal
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader
from hpcrl.storage.attempts import AttemptRecord, read_attempts

# Windows of 8 bars in the 150 validation bars of the market file: 16 are needed. The lower half copies the
# upper one for next to no reason, so that much is copied in few generations.
CONFIG = runs.TINY + "pbt: {interval: 2, quantile: 0.5, level: 0.9, objective: {window_bars: 8}}\n"
BIN = Path(sys.executable).parent
FINAL = {"FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"}
"""States after which Slurm starts no task again by itself."""


def furnish(folder: Path, market_file: Path) -> Path:
    runs.furnish(folder, market_file)
    (folder / "pbt.yaml").write_text(CONFIG)
    return folder


class PopulationTrial:
    """The population of one array, whose members' tasks are JOB_0, JOB_1, ..."""

    def __init__(self, slurm: SlurmCluster, place: Path, job: str) -> None:
        self.slurm, self.place, self.job = slurm, place, job

    @classmethod
    def sbatch(
        cls, slurm: SlurmCluster, place: Path, *arguments: str, options: tuple[str, ...], **environ: str
    ) -> PopulationTrial:
        """Of slurm/pbt.sbatch."""
        environ = {"HPCRL_BIN": str(BIN), "HPCRL_MODULES": "none", "HPCRL_VERIFY": "never"} | environ
        usual = ("--cpus-per-task=1", "--mem=2G")
        job = slurm.sbatch(
            ROOT / "slurm/pbt.sbatch", "--config", "pbt.yaml", *arguments,
            options=(*usual, *options), cwd=place, **environ,
        )  # fmt: skip
        return cls(slurm, place, job)

    # Looking

    @property
    def population(self) -> Population:
        (path,) = self.place.glob("checkpoints/pbt_*")  # one, however many tasks began at once
        return Population.open(path)

    def attempts(self, member: int) -> list[AttemptRecord]:
        """None before the population is there."""
        return [
            attempt
            for folder in self.place.glob(f"checkpoints/pbt_*/members/{member:02d}")
            for attempt in read_attempts(folder)
        ]

    def generation(self, member: int) -> int:
        """Of its newest record; 0 before the first."""
        if not list(self.place.glob("checkpoints/pbt_*/population.json")):
            return 0
        newest = Reader(self.population).newest(member)
        return newest[0].generation if newest else 0

    def shown(self, member: int) -> dict[str, str]:
        return self.slurm.show(f"{self.job}_{member}")

    def node(self, member: int) -> int:
        return int(self.shown(member)["NodeList"].removeprefix("node"))

    @property
    def log(self) -> str:
        """Of all members."""
        paths = sorted([*self.place.glob("hpcrl_*_*.log"), *self.place.glob("checkpoints/pbt_*/jobs/*.out")])
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in paths)

    def starts(self) -> list[tuple[str, int]]:
        """(time, member) of each attempt that was claimed, in order."""
        return sorted(
            (a.started, member) for member in self.population.members for a in self.attempts(member)
        )

    def hpcrl(self, *words: str, code: int = 0) -> str:
        """A command's output, in the folder where the array was submitted."""
        done = subprocess.run(
            [sys.executable, "-m", "hpcrl", *words],
            cwd=self.place, env=self.slurm.environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # Waiting

    def states(self) -> dict[int, str]:
        """Slurm's word for each member's task."""
        words = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={self.job}", "--format=%K %T")
        lines = self.slurm.run(*words).stdout.splitlines()
        return {int(number): state for number, state in map(str.split, lines)}

    def wait(self, *members: int, timeout: float = PATIENCE) -> None:
        """Until these members' tasks have COMPLETED; fails when one ends otherwise."""

        def probe() -> bool:
            states = {member: state for member, state in self.states().items() if member in members}
            if FINAL & set(states.values()):
                pytest.fail(f"{states}:\n{self.log}")
            return set(states.values()) == {"COMPLETED"}

        poll(probe, timeout, lambda: f"{self.slurm.report()}\n{self.log}")

    def preempt(self) -> None:
        """All that run, for a moment: a job in ``hi`` needs all nodes."""
        options = ("--partition=hi", "--nodes=4", "--exclusive", "--output=/dev/null")
        hurried = self.slurm.sbatch("#!/bin/sh\ntrue\n", options=options, cwd=self.place)
        self.slurm.wait(hurried, "COMPLETED", timeout=PATIENCE)

    def verdict(self) -> str:
        """Of hpcrl pbt verify, which must find nothing."""
        return self.hpcrl("pbt", "verify", str(self.population.path))

    # What must hold

    def assert_whole(self, *members: int) -> None:
        """These members are finished, their journals have no holes, and everything can be computed again."""
        population = self.population
        for member in members:
            attempts = self.attempts(member)
            assert attempts[-1].end["code"] == 0, self.log
            journal = read_journal(attempts[-1].path / "pbt" / "journal.jsonl")
            assert_no_holes(journal, population.generations, f"member {member}: {journal}")
            records = Reader(population)
            for generation in range(1, population.generations + 1):
                record = records.record(attempts[-1].path / "pbt", member, generation)
                assert record is not None and record.generation == generation
        assert "Verified: " in self.verdict()

    def assert_best_is_named(self, *members: int) -> int:
        """By the last member that finished, as the records have it; which one it is."""
        population = self.population
        reader = Reader(population)
        newest = [found[0] for m in members if (found := reader.newest(m))]
        best = max(newest, key=lambda record: record.objective)
        named = re.findall(r"PBT: Best performer: member (\d+) \(generation (\d+), objective (\S+)", self.log)
        assert named, self.log
        line = f"PBT: Best performer: member {best.member} (generation {best.generation}, "
        assert line in self.log, (best, named)
        shown = json.loads(self.hpcrl("pbt", "status", str(population.path), "--json"))
        assert shown["best"] == best.member, shown
        return best.member


def assert_no_holes(journal: list[dict], generations: int, told: str) -> None:
    """Each generation was published, decided and, where a better one was found, carried out."""
    found: dict[int, dict[str, dict]] = {}
    for line in journal:
        found.setdefault(line["generation"], {})[line["event"]] = line
    for generation in range(1, generations + 1):
        lines = found.get(generation, {})
        assert "published" in lines, told
        if generation == generations:
            assert "finished" in lines, told
            continue
        assert "decided" in lines, told
        if lines["decided"]["outcome"] == "exploit":
            assert "intent" in lines, told
            assert {"adopted", "explored"} <= lines.keys() or "abandoned" in lines, told
