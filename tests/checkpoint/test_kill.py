"""SIGKILL at any moment of saving: a whole checkpoint is always there, and saving goes on from it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.storage.run_dir import RunDir
from hpcrl.world.world import World

LOOP = Path(__file__).with_name("save_loop.py")
WORLD = World(0, 1, 0, torch.device("cpu"), "none")


def _kill_once(run: RunDir, start: int, seed: int) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    child = subprocess.Popen(
        [sys.executable, str(LOOP), str(run.path), str(start), "100000"],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        assert child.stdout.readline().startswith("ready")
        while not run.manifest_epochs():  # the first one has to be there before anything can be lost
            assert child.poll() is None
        time.sleep(random.Random(seed).uniform(0.0, 0.15))
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def _kill_and_check(folder: Path, kills: int) -> None:
    run = RunDir.create(folder, "{}")
    reached = -1
    for kill in range(10 * kills):
        if kill >= kills and reached > kills:  # on a slow machine it takes more kills to get on
            break
        _kill_once(run, 0 if kill == 0 else -1, seed=kill)
        manager = CheckpointManager(run, WORLD, 2)
        found = manager.newest()
        assert found is not None and found.epoch >= reached, (found, reached)
        portable, own = manager.load(found)
        assert portable["epoch"] == found.epoch and torch.equal(
            portable["w"], torch.full((5000,), float(found.epoch))
        )
        assert own == {"epoch": found.epoch, "rank": 0}
        reached = found.epoch
    assert reached > kills
    unnamed = [epoch for epoch in run.checkpoint_files() if epoch not in run.manifest_epochs()]
    assert len(unnamed) <= 2, unnamed  # an unfinished save and an unfinished pruning


@pytest.mark.slow
def test_four_kills_lose_no_committed_checkpoint(tmp_path: Path) -> None:
    _kill_and_check(tmp_path, 4)


@pytest.mark.soak
def test_forty_kills_lose_no_committed_checkpoint(tmp_path: Path) -> None:
    _kill_and_check(tmp_path, 40)


@pytest.mark.parametrize("after", range(12))
def test_a_stop_after_any_step_of_a_save_leaves_the_old_or_the_new_one(
    tmp_path: Path, after: int, monkeypatch
) -> None:
    """Every rename and removal is a step; the process 'dies' after ``after`` of them, while it re-saves."""
    run = RunDir.create(tmp_path, "{}")
    first = CheckpointManager(run, WORLD, 1)
    for epoch in (1, 2, 3):
        first.save(epoch, {"mark": epoch}, {}, kept=epoch == 1)
    again = CheckpointManager(run, WORLD, 1)
    again.load(again._verified(1, warn=False))  # goes back: epoch 3 is of an abandoned future

    class Died(BaseException):
        pass

    steps = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal steps
            if steps >= after:
                raise Died
            steps += 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            again.save(3, {"mark": 33}, {}, kept=False)
        except Died:
            pass
        else:
            assert after > 4
    survivor = CheckpointManager(run, WORLD, 1)
    found = survivor.newest()
    assert found is not None
    assert survivor.load(found)[0]["mark"] in {1: {1}, 3: {3, 33}}[found.epoch]
    survivor.save(4, {"mark": 4}, {}, kept=False)
    assert survivor.newest().epoch == 4
    assert set(os.listdir(run.path)) == {"config.json"} | {
        f"checkpoint_epoch_{epoch}{end}" for epoch in (1, 4) for end in (".pt", ".rank_0.pt", ".json")
    }
