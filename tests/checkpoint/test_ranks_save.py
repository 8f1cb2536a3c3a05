"""Two ranks save together: all of it or none, and one rank's full disk is everybody's error, never a hang."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.storage.run_dir import RunDir
from hpcrl.world.world import World

LOOP = Path(__file__).with_name("save_loop.py")
WORLD = World(0, 1, 0, torch.device("cpu"), "none")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_full_disk_fails_the_save_on_all_and_spares_the_last_one(
    tmp_path: Path, run_on_ranks, rank: int
) -> None:
    run = RunDir.create(tmp_path, "{}")
    results = run_on_ranks(LOOP, run.path, 0, 3, rank, 700, expect=1, timeout=60)
    for done in results:
        assert "failed: " in done.stdout, done.stderr
        assert f"rank {rank}: cannot write {run.path}/checkpoint_epoch_2." in done.stdout
        assert os.strerror(errno.EFBIG) in done.stdout and "bytes free" in done.stdout
    found = CheckpointManager(run, WORLD, 2).newest()
    assert found is not None and (found.epoch, found.world_size) == (1, 2)
    names = set(os.listdir(run.path))
    assert not [name for name in names if "epoch_2" in name], names
    # Both ranks resume from it, with their own states.
    for done in run_on_ranks(LOOP, run.path, -1, 2):
        assert done.stdout.split()[:2] == ["ready", "1"]
    newest = CheckpointManager(run, WORLD, 2).newest()
    assert newest is not None and newest.epoch == 2
