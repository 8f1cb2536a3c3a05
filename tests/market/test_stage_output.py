"""Where a data set may be written, and that a staging that fails leaves everything as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from market_data import walk

from hpcrl.market import build as staging
from hpcrl.market.stage import stage_files, stage_synthetic
from hpcrl.market.store import is_store
from hpcrl.storage.atomic import temporary_path
from hpcrl.types import HpcrlError


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "in" / "bars.csv"
    path.parent.mkdir()
    walk(300).to_csv(path, index=False)
    return path


def stage(path, out):
    return stage_files(path, out, calendar="24/7")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", ["in/bars.csv", "soft", "hard"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_data_set_is_not_written_over_its_own_source(name, folder, source, tmp_path):
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    before = tree(tmp_path)
    with pytest.raises(HpcrlError, match="one of the inputs"):
        stage(source.parent if folder else source, tmp_path / name)
    assert tree(tmp_path) == before
    stage(source.parent, source.parent / "market.h5")


@pytest.mark.parametrize("name", ["notes.txt", "empty.h5", "other.h5"])
def test_a_file_that_is_no_data_set_is_not_written_over(name, source, tmp_path):
    (tmp_path / "notes.txt").write_text("years of work")
    (tmp_path / "empty.h5").touch()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    before = tree(tmp_path)
    for make in (lambda out: stage(source, out), lambda out: stage_synthetic(out, symbols=("A",), bars=1)):
        with pytest.raises(HpcrlError, match=f"{name}: exists and is no market file") as caught:
            make(tmp_path / name)
        assert caught.value.exit_code == 2
    assert tree(tmp_path) == before


def test_an_older_data_set_is_replaced_whatever_its_version(source, tmp_path):
    out = tmp_path / "m.h5"
    first = stage_synthetic(out, symbols=("A",), bars=1)
    with h5py.File(out, "a") as file:
        file.attrs["format_version"] = "99"
    assert is_store(out)
    assert stage(source, out).sha256 != first.sha256


@pytest.mark.parametrize("name", ["", ".", "..", "folder", "in/bars.csv/m.h5"])
def test_an_out_that_is_no_file_is_one_error_and_nothing_is_made(name, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    for make in (lambda out: stage(source, out), lambda out: stage_synthetic(out, symbols=("A",), bars=1)):
        with pytest.raises(HpcrlError, match=r"a folder; name a file|is no folder"):
            make(name)
    assert tree(tmp_path) == before


def test_a_report_that_cannot_be_replaced_is_told_before_the_work(source, tmp_path):
    (tmp_path / "m.report.json").mkdir()
    with pytest.raises(HpcrlError, match=r"m\.report\.json: a folder"):
        stage(source, tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_no_report_is_left_where_the_data_file_cannot_be_renamed(source, tmp_path, monkeypatch):
    out = tmp_path / "m.h5"
    real = os.replace

    def replace(old, new):
        if Path(new) == out:
            raise PermissionError(13, "Permission denied", str(new))
        real(old, new)

    before = tree(tmp_path)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(HpcrlError, match=r"cannot write .*m\.h5: Permission denied$"):
        stage(source, out)
    assert tree(tmp_path) == before


def test_no_data_file_is_left_where_its_report_cannot_be_written(source, tmp_path, monkeypatch):
    def fail(path, write):
        raise HpcrlError("no room")

    before = tree(tmp_path)
    monkeypatch.setattr(staging, "stage_output", fail)
    with pytest.raises(HpcrlError, match="no room"):
        stage(source, tmp_path / "m.h5")
    assert tree(tmp_path) == before


def test_leftovers_of_a_killed_staging_go_with_the_next_one_of_the_same_file(source, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left = []
    for name in ("m.h5", "m.report.json", "other.h5"):
        mine = temporary_path(tmp_path / name)
        left.append(mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{child.pid}.")))
        left[-1].touch()
    stage(source, tmp_path / "m.h5")
    assert [path.exists() for path in left] == [False, False, True]
