"""One attempt at a run as all ranks share it: claimed, filled, taken over and ended together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.checkpoint.provenance import read_record, recorded_config
from hpcrl.config.root import Config, changed_live
from hpcrl.launch.again import LOST_A_PEER
from hpcrl.monitor.metrics import MetricsFile
from hpcrl.monitor.tensorboard import EventFile
from hpcrl.storage.attempts import Attempt, attempt_folder, refuse_if_taken_over, who_begins, write_end
from hpcrl.storage.lock import hold
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError
from hpcrl.world.agree import all_or_none
from hpcrl.world.collectives import broadcast_object
from hpcrl.world.slurm import job_id
from hpcrl.world.world import World


class Session:
    """``open`` claims the next attempt, which older ones notice; a run is checked for fitness before that."""

    def __init__(self, world: World, run: RunDir, attempt: Attempt | None, lock: TextIO | None) -> None:
        self.world, self.run = world, run
        self.attempt, self._lock = attempt, lock
        self.number = broadcast_object(world, attempt.record.number if attempt else 0)
        self.folder = attempt_folder(run, self.number)
        """Where this attempt's checkpoints and metrics are."""
        self.source = RunDir(broadcast_object(world, attempt.source.path if attempt else None))
        """The folder whose history it takes over."""

    @classmethod
    def open(cls, world: World, run: RunDir, config: Config, take_over: bool) -> Session:
        """Collective. HpcrlError naming who holds the run."""

        def claim() -> tuple[Attempt | None, TextIO | None]:
            if not world.is_main:
                return None, None
            job = job_id(os.environ)
            who = who_begins(os.environ, job)
            refuse_if_taken_over(run.path, who, os.environ.get("HPCRL_SUCCESSOR_OF"))
            lock = hold(run.lock, job=job, requeued=who["restart_count"] > 0, take_over=take_over)
            known = changed_live(recorded_config(read_record(run)), config)
            return Attempt.claim(run, world.size, who | {"live": known} | _geometry()), lock

        return cls(world, run, *all_or_none(world, claim))

    @property
    def heartbeat(self) -> Path | None:
        """Rank 0's file that says what it does at the moment."""
        return None if self.attempt is None else self.folder.path / "heartbeat.json"

    def manager(self, config: Config) -> CheckpointManager:
        """Of the attempt's own folder, filled with the history so far. Collective."""
        attempt = self.attempt
        all_or_none(self.world, lambda: attempt.adopt() if attempt else None)
        keep = config.checkpoint.keep_rolling
        if attempt is None:
            return CheckpointManager(self.folder, self.world, keep)
        return CheckpointManager(self.folder, self.world, keep, attempt.check, attempt.publish)

    def take_over(
        self, epoch: int, restored: bool, config: Config, say: Callable[[str], None]
    ) -> MetricsFile | None:
        """Training goes on after ``epoch``; the metrics file, on rank 0. Collective."""
        attempt = self.attempt
        base = epoch if restored else None

        def start() -> MetricsFile | None:
            if attempt is None:
                return None
            attempt.refuse_if_fruitless(base)
            log = MetricsFile(self.folder.metrics, epoch, self.source.metrics, attempt.check)
            if config.monitor.tensorboard:
                log.also = EventFile(self.folder.events, log.kept, say).write
            attempt.take_over(base)
            return log

        return all_or_none(self.world, start)

    def superseded(self) -> HpcrlError | None:
        """What rank 0 has to say where a newer attempt has begun; not collective."""
        try:
            if self.attempt is not None:
                self.attempt.check()
        except HpcrlError as error:
            return error
        return None

    def tell_end(self, code: int, reason: str) -> None:
        """Say on any rank why the attempt ends: rank 0 may be killed without having learnt it."""
        if self.attempt is None:
            write_end(self.folder.path, code, None, reason)

    def end(self, code: int, epoch: int | None, reason: str) -> None:
        """Say how it ended, and let go of the run. What the rank that was lost has told stays."""
        told = reason == LOST_A_PEER and (self.folder.path / "end.json").exists()
        if self.attempt is not None and not told:
            self.attempt.end(code, epoch, reason)
        if self._lock is not None:
            self._lock.close()


def _geometry() -> dict[str, int | None]:
    """What Slurm gave this step, so that the command that goes on can ask for the same."""
    words = {"nodes": "SLURM_STEP_NUM_NODES", "gpus_per_node": "SLURM_GPUS_ON_NODE"}
    found = {name: os.environ.get(key, "") for name, key in words.items()}
    return {name: int(text) if text.isdigit() else None for name, text in found.items()}
