"""Memory that ends while a checkpoint is saved or read is no fault of the checkpoint: its error is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from memory_limit import room_for

from hpcrl.checkpoint.contents import load_plain
from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import RunFailed
from hpcrl.world.memory import ran_out
from hpcrl.world.world import World

WORLD = World(0, 1, 0, torch.device("cpu"), "none")
LARGE = 2**25
"""float32 values: 128 MiB, more than an allocator keeps of what other tests have freed."""


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    found = CheckpointManager(RunDir.create(tmp_path, "{}"), WORLD, 2)
    found.save(1, {"w": torch.zeros(LARGE)}, {"rank": 0}, kept=False)
    return found


def test_a_checkpoint_that_does_not_fit_is_not_called_broken(manager: CheckpointManager) -> None:
    newest = manager.newest()
    assert newest is not None
    with room_for(8), pytest.raises((RuntimeError, MemoryError)) as caught:
        manager.load(newest)
    assert ran_out(caught.value) and not isinstance(caught.value, RunFailed)
    assert len(manager.load(newest)[0]["w"]) == LARGE


def test_a_save_that_does_not_fit_says_so_and_spares_the_last_one(manager: CheckpointManager) -> None:
    view = torch.zeros(2, LARGE)[0]  # copied without the rest of its storage
    with room_for(8), pytest.raises((RuntimeError, MemoryError)) as caught:
        manager.save(2, {"w": view}, {"rank": 0}, kept=False)
    assert ran_out(caught.value) and not isinstance(caught.value, RunFailed)
    newest = manager.newest()
    assert newest is not None and newest.epoch == 1


def test_an_error_of_the_writer_itself_is_kept_until_torch_is_done(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr("hpcrl.storage.atomic._Whole.write", full)
    with pytest.raises(MemoryError):
        manager.save(2, {"w": torch.zeros(10)}, {"rank": 0}, kept=False)


def test_a_file_that_is_none_is_still_called_so(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(RunFailed, match="not a checkpoint file"):
        load_plain(tmp_path / "x.pt")
