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
    [
        (None, "no such file"),
        (b'{"a": 1', "not whole JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "list"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a": {"price": 1, "size": 2, "price": 3}}', "key 'price' occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable JSON"),
    ],
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


def test_free_bytes_are_told_where_there_was_no_room_and_only_there(tmp_path: Path) -> None:
    for code, told in (
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EEXIST, False),
        (errno.EACCES, False),
    ):
        said = str(atomic.write_error(tmp_path / "x", OSError(code, os.strerror(code))))
        assert ("bytes free" in said) is told and os.strerror(code) in said


@pytest.mark.parametrize("name", ["", ".", "..", "folder", "folder/..", "missing/.."])
def test_a_folder_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(HpcrlError, match="a folder; name a file"):
        atomic.check_output(name)


def test_devices_and_paths_below_a_file_are_no_outputs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, says in (
        ("/dev/null", "no regular file"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "file" / "below" / "x", "file is no folder"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(HpcrlError, match=says) as caught:
            atomic.check_output(path)
        assert caught.value.exit_code == 2
    atomic.check_output(tmp_path / "file")
    atomic.check_output(tmp_path / "new" / "folder" / "x")


def test_an_input_is_no_output_whatever_it_is_called(tmp_path: Path) -> None:
    given = tmp_path / "in.csv"
    given.touch()
    (tmp_path / "soft").symlink_to(given)
    (tmp_path / "hard").hardlink_to(given)
    for path in (given, tmp_path / "soft", tmp_path / "hard", tmp_path / ".." / tmp_path.name / "in.csv"):
        with pytest.raises(HpcrlError, match="one of the inputs"):
            atomic.check_output(path, [tmp_path / "missing", given])
    atomic.check_output(given, [tmp_path / "soft" / "missing"])


def test_an_input_that_cannot_be_looked_at_is_named_not_the_output(tmp_path: Path) -> None:
    given = tmp_path / ("x" * 300)  # a folder without permission would not stop root
    with pytest.raises(HpcrlError) as caught:
        atomic.check_output(tmp_path / "out.h5", [given])
    said = str(caught.value)
    assert said.startswith(f"{given}: cannot be read: ") and "too long" in said and "out.h5" not in said


def test_leftovers_of_other_files_stay_where_names_are_given(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    names = [
        atomic.temporary_path(tmp_path / name).name.replace(f".{os.getpid()}.", f".{child.pid}.")
        for name in ("a.json", "b.json")
    ]
    for name in names:
        (tmp_path / name).touch()
    assert atomic.remove_dead_temporaries(tmp_path, {"a.json"}) == names[:1]
    assert os.listdir(tmp_path) == names[1:]


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
