"""The run folder: made in one rename, never by accident another's."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hpcrl.storage import run_dir as module
from hpcrl.storage.atomic import temporary_path
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed


def test_new_run_folder_holds_its_config_and_nothing_else(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "checkpoints", "{}")
    assert re.fullmatch(r"dist_run_\d{8}_\d{6}", run.path.name)
    assert os.listdir(run.path) == ["config.json"]
    assert os.listdir(tmp_path / "checkpoints") == [run.path.name]
    assert RunDir.open(run.path) == run


def test_runs_of_the_same_second_get_different_folders(tmp_path: Path) -> None:
    made = {RunDir.create(tmp_path, "{}").path for _ in range(5)}
    assert len(made) == 5 == len(os.listdir(tmp_path))


def test_an_empty_folder_of_that_name_is_not_taken_over(tmp_path: Path, monkeypatch) -> None:
    class Frozen(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 1, 31, 23, 59, 59)

    monkeypatch.setattr(module, "datetime", Frozen)
    (tmp_path / "dist_run_20240131_235959").mkdir()
    assert RunDir.create(tmp_path, "{}").path.name == "dist_run_20240201_000000"
    assert os.listdir(tmp_path / "dist_run_20240131_235959") == []


def test_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HpcrlError, match=r"file/sub: .*file is no folder; name another place"):
        RunDir.create(tmp_path / "file" / "sub", "{}")
    with pytest.raises(RunFailed, match=r"^cannot write /proc/sub/dist_run_\d{8}_\d{6}: "):
        RunDir.create("/proc/sub", "{}")
    assert os.listdir(tmp_path) == ["file"]


def test_missing_foreign_and_file_are_users_errors(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "file").touch()
    for name, says in [("gone", "no such run folder"), ("foreign", "config.json"), ("file", "is a file")]:
        with pytest.raises(HpcrlError, match=says) as caught:
            RunDir.open(tmp_path / name)
        assert name in str(caught.value) and caught.value.exit_code == 2


def test_names_are_unpadded_and_foreign_files_are_not_taken_for_ours(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.portable(7).name == "checkpoint_epoch_7.pt"
    assert run.rank_state(7, 12).name == "checkpoint_epoch_7.rank_12.pt"
    assert run.manifest(7).name == "checkpoint_epoch_7.json"
    for path in (run.portable(7), run.rank_state(7, 12), run.manifest(7), run.manifest(10)):
        path.touch()
    for name in (
        "checkpoint_epoch_07.json",
        "checkpoint_epoch_7.json.bak",
        "checkpoint_epoch_x.pt",
        "notes.pt",
    ):
        (tmp_path / name).touch()
    temporary = temporary_path(run.portable(8))
    temporary.touch()
    temporary_path(run.metrics).touch()
    assert run.manifest_epochs() == [10, 7]
    assert run.checkpoint_files() == {7: {"checkpoint_epoch_7.pt", "checkpoint_epoch_7.rank_12.pt"}}
    assert run.checkpoint_temporaries() == [temporary]
