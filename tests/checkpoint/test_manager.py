"""One rank's checkpoints: what is refused, what is taken, what survives pruning, and re-saving."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.storage.atomic import sha256_of, temporary_path
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import RunFailed
from hpcrl.world.world import World

WORLD = World(0, 1, 0, torch.device("cpu"), "none")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, "{}")


def manager(run: RunDir, keep_rolling: int = 2) -> CheckpointManager:
    return CheckpointManager(run, WORLD, keep_rolling)


def save(target: CheckpointManager, epoch: int, kept: bool = False, mark: int | None = None) -> None:
    mark = epoch if mark is None else mark
    target.save(epoch, {"mark": mark, "w": torch.full((50,), float(mark))}, {"rank_mark": mark}, kept=kept)


def epochs(run: RunDir) -> list[int]:
    return sorted(run.manifest_epochs())


def files_on_disk(run: RunDir) -> set[str]:
    return set(os.listdir(run.path)) - {"config.json"}


def test_saved_state_comes_back_and_the_files_are_those_of_the_run_folder(run: RunDir) -> None:
    path = manager(run).save(3, {"a": torch.arange(4)}, {"b": 5}, kept=True)
    assert path == run.path / "checkpoint_epoch_3.pt"
    assert files_on_disk(run) == {
        "checkpoint_epoch_3.pt",
        "checkpoint_epoch_3.rank_0.pt",
        "checkpoint_epoch_3.json",
    }
    found = manager(run).newest()
    assert found is not None and (found.epoch, found.world_size, found.kept) == (3, 1, True)
    for name, record in found.files.items():
        assert (
            record.sha256 == sha256_of(run.path / name) and record.bytes == (run.path / name).stat().st_size
        )
    portable, state = manager(run).load(found)
    assert torch.equal(portable["a"], torch.arange(4)) and state == {"b": 5}


def test_an_empty_run_has_no_newest(run: RunDir) -> None:
    assert manager(run).newest() is None


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("name", ["checkpoint_epoch_2.pt", "checkpoint_epoch_2.rank_0.pt"])
def test_a_harmed_checkpoint_is_refused_by_name_and_the_older_one_taken(
    run: RunDir, harm, name: str, caplog
) -> None:
    target = manager(run)
    save(target, 1)
    save(target, 2)
    harm(run.path / name)
    with caplog.at_level(logging.WARNING):
        found = manager(run).newest()
    assert found is not None and found.epoch == 1
    assert name in caplog.text and "epoch 2 refused" in caplog.text
    assert manager(run).load(found)[0]["mark"] == 1


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format": 1,', b"[]", b'{"format": 2}', b'{"format": 1, "files": {}}'],
)
def test_a_torn_or_foreign_manifest_is_refused_and_the_older_one_taken(
    run: RunDir, content: bytes, caplog
) -> None:
    target = manager(run)
    save(target, 1)
    save(target, 2)
    run.manifest(2).write_bytes(content)
    found = manager(run).newest()
    assert found is not None and found.epoch == 1
    assert "checkpoint_epoch_2.json" in caplog.text


def test_a_manifest_that_names_foreign_files_is_refused(run: RunDir) -> None:
    save(manager(run), 1)
    text = run.manifest(1).read_text().replace("checkpoint_epoch_1.pt", "../../etc/x.pt")
    run.manifest(1).write_text(text)
    assert manager(run).newest() is None


def test_an_altered_file_is_refused_even_between_newest_and_load(run: RunDir) -> None:
    save(manager(run), 1)
    found = manager(run).newest()
    assert found is not None
    _flip(run.portable(1))
    with pytest.raises(RunFailed, match=r"checkpoint_epoch_1\.pt: altered"):
        manager(run).load(found)


class _Planted:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_planted_pickle_with_a_matching_manifest_is_not_run(run: RunDir, tmp_path: Path) -> None:
    save(manager(run), 1)
    torch.save({"mark": _Planted(tmp_path / "owned")}, run.portable(1))
    manifest = json.loads(run.manifest(1).read_text())
    size = run.portable(1).stat().st_size
    manifest["files"]["checkpoint_epoch_1.pt"] = {"sha256": sha256_of(run.portable(1)), "bytes": size}
    run.manifest(1).write_text(json.dumps(manifest))
    found = manager(run).newest()
    assert found is not None
    with pytest.raises(RunFailed, match=r"checkpoint_epoch_1\.pt: holds more than tensors"):
        manager(run).load(found)
    assert not (tmp_path / "owned").exists()


def test_another_number_of_ranks_gets_the_portable_part_only(run: RunDir) -> None:
    save(manager(run), 1)
    two = json.loads(run.manifest(1).read_text())
    two["world_size"] = 2
    two["files"]["checkpoint_epoch_1.rank_1.pt"] = two["files"]["checkpoint_epoch_1.rank_0.pt"]
    (run.path / "checkpoint_epoch_1.rank_1.pt").write_bytes(run.rank_state(1, 0).read_bytes())
    run.manifest(1).write_text(json.dumps(two))
    found = manager(run).newest()
    assert found is not None and found.world_size == 2
    portable, state = manager(run).load(found)
    assert portable["mark"] == 1 and state is None


def test_kept_ones_stay_and_of_the_rolling_ones_the_newest_two(run: RunDir) -> None:
    target = manager(run, keep_rolling=2)
    for epoch in range(8):
        save(target, epoch, kept=epoch in (0, 3))
    assert epochs(run) == [0, 3, 6, 7]
    assert len(files_on_disk(run)) == 4 * 3
    assert all(manager(run)._verified(epoch, warn=False) for epoch in epochs(run))


def test_leftovers_of_a_killed_save_are_cleared_by_the_next_one(run: RunDir) -> None:
    target = manager(run)
    save(target, 1)
    leftovers = [run.portable(2), run.rank_state(2, 5), temporary_path(run.portable(2))]
    other_host = temporary_path(run.manifest(2)).name.replace(".tmp", "0.tmp")
    for path in [*leftovers, run.path / other_host]:
        path.write_bytes(b"torn")
    foreign = run.path / "notes.pt"
    foreign.touch()
    assert manager(run).newest().epoch == 1
    save(target, 3)
    assert files_on_disk(run) == {"notes.pt"} | {
        f"checkpoint_epoch_{epoch}{end}" for epoch in (1, 3) for end in (".pt", ".rank_0.pt", ".json")
    }


def test_saving_the_same_state_again_only_makes_it_kept(run: RunDir) -> None:
    target = manager(run)
    save(target, 5)
    before = sha256_of(run.portable(5))
    save(target, 5, kept=True)
    assert sha256_of(run.portable(5)) == before and manager(run).newest().kept
    save(target, 5, kept=False)
    assert manager(run).newest().kept


def test_after_a_resume_the_loaded_epoch_is_not_written_anew(run: RunDir) -> None:
    save(manager(run), 0)
    again = manager(run)
    again.load(again.newest())
    save(again, 0, mark=99)
    assert manager(run).load(manager(run).newest())[0]["mark"] == 0


def test_the_only_good_checkpoint_is_never_replaced(run: RunDir, caplog) -> None:
    save(manager(run), 4)
    save(manager(run), 4, mark=99)
    assert manager(run).load(manager(run).newest())[0]["mark"] == 4
    assert "only good checkpoint" in caplog.text


def test_an_abandoned_future_is_replaced_and_what_lies_beyond_it_removed(run: RunDir, caplog) -> None:
    first = manager(run, keep_rolling=9)
    for epoch in (1, 2, 3):
        save(first, epoch, kept=epoch == 3)
    again = manager(run, keep_rolling=9)
    again.load(again._verified(1, warn=False))
    save(again, 2, mark=22)
    assert epochs(run) == [1, 2]
    found = manager(run).newest()
    assert found.epoch == 2 and manager(run).load(found)[0]["mark"] == 22
    assert "epoch 3 is removed" in caplog.text


def test_a_corrupt_checkpoint_of_the_same_epoch_is_replaced(run: RunDir) -> None:
    save(manager(run), 1)
    save(manager(run), 2)
    _flip(run.portable(2))
    again = manager(run)
    assert again.newest().epoch == 1
    again.load(again.newest())
    save(again, 2, mark=22)
    assert manager(run).load(manager(run).newest())[0]["mark"] == 22


def test_a_state_that_cannot_be_saved_names_its_key_and_changes_nothing(run: RunDir) -> None:
    target = manager(run)
    save(target, 1)
    before = files_on_disk(run)
    with pytest.raises(RunFailed, match=r"state\['bad'\]: set cannot be saved"):
        target.save(2, {"bad": {1}}, {}, kept=False)
    assert files_on_disk(run) == before and manager(run).newest().epoch == 1


def test_saving_touches_no_random_stream(run: RunDir) -> None:
    import random

    import numpy as np

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    target = manager(run)
    save(target, 1)
    target.load(target.newest())
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
