"""Files are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcrl.storage import atomic
from hpcrl.types import HpcrlError, RunFailed


def test_written_file_holds_the_data_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"b": 1})
    atomic.write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert os.listdir(tmp_path) == ["a.json"]


def test_nan_is_refused_as_json_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"b": 1})
    with pytest.raises(ValueError):
        atomic.write_json(path, {"b": float("nan")})
    assert atomic.read_json(path) == {"b": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_staged_file_is_invisible_until_committed_and_knows_its_hash(tmp_path: Path) -> None:
    staged = atomic.stage(tmp_path / "x", lambda file: file.write(b"abc"))
    assert not (tmp_path / "x").exists()
    assert atomic.temporary_target(staged.temporary.name) == "x"
    staged.commit()
    assert atomic.sha256_of(tmp_path / "x") == staged.sha256
    assert staged.bytes == 3


def _fill_disk_limit(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


_WRITE_BIG = """
import sys, torch
from hpcrl.storage import atomic
from hpcrl.types import RunFailed
path, how = sys.argv[1:]
try:
    if how == "bytes":
        atomic.write_bytes(path, b"x" * 200_000)
    else:
        atomic.stage(path, lambda file: torch.save({"a": torch.zeros(50_000)}, file))
except RunFailed as error:
    print(error)
    sys.exit(1)
"""


@pytest.mark.parametrize("how", ["bytes", "torch"])
def test_too_large_a_file_is_one_clear_error_and_the_old_one_stays(tmp_path: Path, how: str) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_BIG, str(path), how],
        preexec_fn=lambda: _fill_disk_limit(100_000),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert str(path) in done.stdout and os.strerror(errno.EFBIG) in done.stdout and "free" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["big.bin"]


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(folder)]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root; the limit on file size is tested above")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("how", ["bytes", "torch"])
def test_full_disk_is_one_clear_error_and_nothing_half_written(small_disk: Path, how: str) -> None:
    path = small_disk / "big.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", _WRITE_BIG, str(path), how], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert os.strerror(errno.ENOSPC) in done.stdout and str(path) in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["big.bin"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no such file"), (b'{"a": 1', "not whole JSON"), (b"\xff\xfe", "not UTF-8"), (b"[1]", "list")],
)
def test_bad_json_is_a_users_error_naming_the_file(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HpcrlError, match=says) as caught:
        atomic.read_json(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_unwritable_folder_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"nowhere/a\.json: No such file"):
        atomic.write_json(tmp_path / "nowhere" / "a.json", {})


def test_only_dead_writers_leftovers_are_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = atomic.temporary_path(tmp_path / "a.json").name
    theirs = mine.replace(f".{os.getpid()}.", f".{child.pid}.")
    elsewhere = mine.replace(atomic._host(), "otherhost")
    for name in (mine, theirs, elsewhere, "a.json", ".hidden.tmp"):
        (tmp_path / name).touch()
    assert atomic.remove_dead_temporaries(tmp_path) == []
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert atomic.remove_dead_temporaries(tmp_path) == [theirs]
    assert set(os.listdir(tmp_path)) == {mine, elsewhere, "a.json", ".hidden.tmp"}
