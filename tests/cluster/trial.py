"""A small run that trains on the cluster while something goes wrong, and what must hold once it is over."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import runs
from servers.slurm import ENDED, SlurmCluster, poll

from hpcrl.checkpoint.manifest import Manifest
from hpcrl.monitor.metrics import read_metrics
from hpcrl.storage.attempts import AttemptRecord, read_attempts
from hpcrl.storage.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
EPOCHS, LONG = 30, 250  # about 0.2 s each
# One thread per rank, as in the reference: sums of several threads differ in their last bits.
# A rolling checkpoint after every epoch, so that a crash may cost one epoch at most; the learning rate is
# constant, so that a longer run begins like a shorter one.
CONFIG = runs.TINY.replace("lr_schedule: linear", "lr_schedule: constant")
# Two Pythons that import torch, on two cores that other tests use, too.
PATIENCE = 300


def furnish(folder: Path, market_file: Path) -> Path:
    runs.furnish(folder, market_file)
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def arguments(epochs: int, *sets: str) -> list[str]:
    sets = (f"train.epochs={epochs}", f"train.world_size={RANKS}", *sets)
    return ["--config", "tiny.yaml", *(word for item in sets for word in ("--set", item))]


class Trial:
    """One job of slurm/train.sbatch in ``place``, and its run."""

    def __init__(
        self,
        slurm: SlurmCluster,
        place: Path,
        epochs: int,
        *options: str,
        sets: Iterable[str] = (),
        **environ: str,
    ) -> None:
        """``options`` of sbatch, ``sets`` of hpcrl train."""
        self.slurm, self.place, self.epochs, self.environ = slurm, place, epochs, environ
        self.options = (
            f"--ntasks-per-node={RANKS}",
            "--gres=gpu:2",
            "--mem=4G",
            "--cpus-per-task=1",
            *options,
        )
        self.job = self.submit(*arguments(epochs, *sets))

    def submit(self, *words: str) -> str:
        environ = {
            "HPCRL_BIN": str(Path(sys.executable).parent),
            "HPCRL_MODULES": "none",
            "HPCRL_VERIFY": "never",
        } | self.environ
        return self.slurm.sbatch(
            ROOT / "slurm/train.sbatch", *words,
            options=self.options, cwd=self.place, **environ,
        )  # fmt: skip

    # Looking

    @property
    def run(self) -> Path:
        return runs.only_run(self.place)

    @property
    def metrics(self) -> list[dict]:
        found = list(self.place.glob("checkpoints/dist_run_*/metrics.jsonl"))
        return read_metrics(found[0]) if found else []

    @property
    def attempts(self) -> list[AttemptRecord]:
        """None before the run folder is there."""
        return [
            attempt for run in self.place.glob("checkpoints/dist_run_*") for attempt in read_attempts(run)
        ]

    @property
    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.place.glob("hpcrl_*.log")))

    @property
    def node(self) -> int:
        """Where the job's only node is: 1 to 4."""
        return int(self.slurm.show(self.job)["NodeList"].removeprefix("node"))

    def ranks(self) -> dict[int, int]:
        """{rank: pid of this host} of the job's living ranks, whichever attempt's."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                # Clusters of other test processes have jobs of the same id.
                here = (path / "cwd").readlink() == self.place
                words = (path / "cmdline").read_bytes().split(b"\0")
                environ = dict(
                    word.split(b"=", 1)
                    for word in (path / "environ").read_bytes().split(b"\0")
                    if b"=" in word
                )
            except (OSError, ValueError):
                continue
            of_job = here and environ.get(b"SLURM_JOB_ID") == self.job.encode() and b"train" in words
            if of_job and environ.get(b"SLURM_STEP_ID") == b"0" and b"SLURM_PROCID" in environ:
                found[int(environ[b"SLURM_PROCID"])] = int(path.name)
        return found

    def kill(self, number: signal.Signals, *ranks: int) -> None:
        living = self.ranks()
        for rank in ranks or living:
            os.kill(living[rank], number)

    def preempt(self) -> None:
        """A job in ``hi`` needs all nodes, and ends at once."""
        options = ("--partition=hi", "--nodes=4", "--exclusive", "--output=/dev/null")
        hurried = self.slurm.sbatch("#!/bin/sh\ntrue\n", options=options, cwd=self.place)
        self.slurm.wait(hurried, "COMPLETED", timeout=PATIENCE)

    def status(self) -> dict:
        """What hpcrl status says of the job's run, or of the job where it has none."""
        words = (sys.executable, "-m", "hpcrl", "status", self.job, "--json")
        return json.loads(self.slurm.run(*words, cwd=self.place).stdout)

    def ended(self) -> list[str | None]:
        """How each attempt ended, by hpcrl status; None for one that runs."""
        return [attempt["ended"] for attempt in self.status()["attempts"]]

    # Waiting

    def wait_epoch(self, epoch: int) -> None:
        """Until so many epochs are done; fails if the job ends before."""

        def probe() -> bool:
            if len(self.metrics) >= epoch:
                return True
            state = self.slurm.state(self.job)
            return pytest.fail(f"{state} before epoch {epoch}:\n{self.log}") if state in ENDED else False

        poll(probe, PATIENCE, lambda: f"epoch {epoch} does not come: {self.log}\n{self.slurm.show(self.job)}")

    def wait_attempt(self, number: int) -> AttemptRecord:
        """Until attempt ``number`` has taken over."""

        def probe() -> AttemptRecord | None:
            found = next((a for a in self.attempts if a.number >= number and a.ready), None)
            if found is None and (state := self.slurm.state(self.job)) in ENDED:
                pytest.fail(f"{state} before attempt {number}:\n{self.log}")
            return found

        return poll(probe, PATIENCE, lambda: f"no attempt {number}: {self.log}\n{self.slurm.show(self.job)}")

    def wait(self, *states: str, timeout: float = PATIENCE) -> str:
        return self.slurm.wait(self.job, states or ENDED, timeout=timeout)["JobState"]

    # What must hold

    def assert_whole(self, reference: Path) -> None:
        """The run is finished, no epoch is missing or there twice, every checkpoint is good, and the course
        is that of the run that nothing happened to, bit for bit.
        """
        assert [line["epoch"] for line in self.metrics] == list(range(1, self.epochs + 1)), self.log
        found, wanted = runs.comparable_metrics(self.run), runs.comparable_metrics(reference)
        assert found[: len(wanted)] == wanted[: len(found)]
        self.assert_checkpoints_good()
        assert RunDir(self.run).manifest_epochs()[0] == self.epochs
        if len(found) == len(wanted):
            runs.assert_same_course(self.run, reference, self.epochs, RANKS)

    def assert_checkpoints_good(self) -> None:
        newest = next(a.path for a in reversed(self.attempts) if a.ready)
        for folder in (RunDir(self.run), RunDir(newest)):
            assert folder.manifest_epochs(), folder.path
            for epoch in folder.manifest_epochs():
                Manifest.read(folder.manifest(epoch)).check_files(folder.path)

    def assert_nothing_lost(self, at_most: int = 0) -> None:
        """Each attempt began where the one before it stood, or ``at_most`` epochs earlier."""
        started = {line["time/attempt"]: line["epoch"] for line in reversed(self.metrics)}
        ready = [a for a in self.attempts if a.ready]
        for before, after in itertools.pairwise(ready):
            if before.end and before.end.get("epoch") is not None:
                assert (after.base_epoch or 0) >= before.end["epoch"] - at_most, (before, after)
            if after.number in started:
                assert started[after.number] == (after.base_epoch or 0) + 1
