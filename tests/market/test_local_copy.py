"""A job's own copy of the market file on its node's disk: made once, checked, never in the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from market_data import ROOT, walk

from hpcrl.config.load import load_config
from hpcrl.config.root import changed_keys
from hpcrl.market.load import load_market
from hpcrl.market.local_copy import is_shared, local_copy
from hpcrl.market.stage import stage_frame
from hpcrl.market.store import read_store
from hpcrl.storage.atomic import temporary_path


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return stage_frame(walk(400), tmp_path_factory.mktemp("shared") / "m.h5", source="test", calendar="24/7")


@pytest.fixture
def local():
    """A folder on another file system than pytest's: memory stands in for a node's disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(tempfile.gettempdir()).st_dev
        yield Path(folder)


def job(local, **more):
    return {"SLURM_JOB_ID": "7", "SLURM_TMPDIR": str(local), **more}


def copies(local):
    return sorted(path.name for path in local.rglob("*.h5"))


def leftovers(local):
    return [path.name for path in local.rglob(".*")]


def test_a_job_reads_a_copy_of_the_same_bytes_that_only_its_user_can_touch(staged, local, capsys):
    copy = local_copy(staged.path, job(local))
    assert copy.parent.parent == local and copy.read_bytes() == staged.path.read_bytes()
    assert copy.name.startswith(staged.sha256) and copy.name.endswith(f"-{copy.stat().st_size}.h5")
    assert copy.stat().st_mode & 0o777 == 0o400 and copy.parent.stat().st_mode & 0o777 == 0o700
    assert read_store(copy)[1] == read_store(staged.path)[1]
    assert leftovers(local) == [] and capsys.readouterr().err == ""


def test_a_good_copy_is_used_again(staged, local):
    first = local_copy(staged.path, job(local))
    before = first.stat()
    assert local_copy(staged.path, job(local, SLURM_JOB_ID="8")) == first
    assert first.stat() == before


def outside_slurm(staged, local):
    return {"SLURM_TMPDIR": str(local), "TMPDIR": str(local)}


def without_a_folder(staged, local):
    return {"SLURM_JOB_ID": "7"}


def with_a_folder_that_is_none(staged, local):
    return job(local / "nowhere", TMPDIR="")


def on_the_same_file_system(staged, local):
    return job(staged.path.parent, TMPDIR=str(staged.path.parent))


@pytest.mark.parametrize(
    "environ", [outside_slurm, without_a_folder, with_a_folder_that_is_none, on_the_same_file_system]
)
def test_where_a_copy_gains_nothing_the_file_itself_is_read(environ, staged, local, capsys):
    assert local_copy(staged.path, environ(staged, local)) == staged.path
    assert copies(local) == [] and capsys.readouterr().err == ""


def test_tmpdir_stands_in_for_slurms_own_folder(staged, local):
    environ = {"SLURM_JOB_ID": "7", "SLURM_TMPDIR": str(staged.path.parent), "TMPDIR": str(local)}
    assert local_copy(staged.path, environ).is_relative_to(local)


def test_network_file_systems_are_told_from_local_ones(tmp_path):
    mounts = {"/": "ext4", str(tmp_path): "nfs4", str(tmp_path / "a/disk"): "xfs"}
    (tmp_path / "a/disk/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/disk")
    assert is_shared(tmp_path / "a", mounts) and not is_shared(tmp_path / "a/disk/deep", mounts)
    assert not is_shared(tmp_path / "link", mounts) and not is_shared(tmp_path.parent, mounts)
    assert is_shared(tmp_path, {"/": "lustre"}) and not is_shared(tmp_path, {})


def flip(copy):
    with copy.open("r+b") as file:
        file.seek(copy.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def shorten(copy):
    os.truncate(copy, copy.stat().st_size - 1)


def remove(copy):
    copy.unlink()


def lose_the_record(copy):
    Path(f"{copy}.json").unlink()


def spoil_the_record(copy):
    Path(f"{copy}.json").write_text("{")


@pytest.mark.parametrize("damage", [flip, shorten, remove, lose_the_record, spoil_the_record])
def test_a_damaged_copy_is_made_anew(damage, staged, local, capsys):
    copy = local_copy(staged.path, job(local))
    copy.chmod(0o600)
    damage(copy)
    assert local_copy(staged.path, job(local)) == copy
    assert copy.read_bytes() == staged.path.read_bytes() and copy.stat().st_mode & 0o777 == 0o400
    assert len(copies(local)) == 1 and leftovers(local) == [] and capsys.readouterr().err == ""


def test_a_new_version_and_the_same_contents_of_another_source_are_other_copies(staged, local, tmp_path):
    path = tmp_path / "m.h5"
    versions = [
        stage_frame(walk(400, seed), path, source=source, calendar="24/7")
        and local_copy(path, job(local)).read_bytes() == path.read_bytes()
        for seed, source in ((0, "one"), (0, "two"), (1, "one"))
    ]
    assert versions == [True] * 3 and len(copies(local)) == 3


def test_what_is_no_market_file_is_left_to_the_reader(local, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("timestamp,open\n")
    for name in ("text.h5", "nowhere.h5", "."):
        assert local_copy(tmp_path / name, job(local)) == tmp_path / name
    assert copies(local) == [] and leftovers(local) == [] and capsys.readouterr().err == ""


def too_large(path, local):
    os.truncate(path, 1 << 43)  # a hole of 8 TB at the end, which HDF5 does not mind
    return job(local), "8,796,093,022,208 bytes are needed"


def unwritable(path, local):
    return job("/proc"), "No such file or directory"


def another_users(path, local):
    (local / f"hpcrl-{os.getuid()}").mkdir()
    (local / f"hpcrl-{os.getuid()}").chmod(0o777)
    return job(local), "no folder that is ours alone"


def a_link(path, local):
    (local / f"hpcrl-{os.getuid()}").symlink_to(path.parent)
    return job(local), "no folder that is ours alone"


@pytest.mark.parametrize("hindrance", [too_large, unwritable, another_users, a_link])
def test_what_hinders_a_copy_costs_one_line_and_the_shared_file_is_read(
    hindrance, staged, local, tmp_path, capsys
):
    path = tmp_path / "m.h5"
    path.write_bytes(staged.path.read_bytes())
    environ, reason = hindrance(path, local)
    assert local_copy(path, environ) == path
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"WARNING: no local copy of {path} in {environ['SLURM_TMPDIR']}") and reason in line
    )
    assert copies(local) == [] and leftovers(local) == []
    assert local_copy(path, environ | {"SLURM_LOCALID": "3"}) == path
    assert local_copy(path, environ | {"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}) == path
    assert capsys.readouterr().err == ""  # once per node, not once per rank


START = """
import os, resource, sys
from hpcrl.market.local_copy import local_copy
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
print("ready", flush=True)
sys.stdin.readline()
copy = local_copy(sys.argv[1])
print(copy, os.stat(copy).st_ino, flush=True)
"""


def start(path, environ, *arguments):
    command = [sys.executable, "-c", START, str(path), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environ, text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_disk_that_fills_up_costs_one_line(staged, local):
    """A limit on file size stands in for the full disk."""
    done = start(staged.path, job(local), 20_000)
    out, err = done.communicate("\n", timeout=60)
    assert out.split()[0] == str(staged.path) and done.returncode == 0
    assert err.count("\n") == 1 and "File too large" in err
    assert copies(local) == [] and leftovers(local) == []


@pytest.mark.slow
def test_of_eight_ranks_one_copies_and_the_others_wait(staged, local):
    ranks = [start(staged.path, job(local, SLURM_LOCALID=str(n))) for n in range(8)]
    for rank in ranks:
        rank.stdin.write("\n")
        rank.stdin.flush()
    answers = {rank.communicate(timeout=60) for rank in ranks}
    # A second copy would be another file under the same name.
    copy = local_copy(staged.path, job(local))
    assert answers == {(f"{copy} {copy.stat().st_ino}\n", "")}
    assert copies(local) == [copy.name] and leftovers(local) == []


def test_what_a_rank_left_that_is_still_dying_is_removed(staged, local):
    """The lock of a killed process is free before its number is: what lies there is nobody's."""
    copy = local_copy(staged.path, job(local))
    copy.unlink()
    temporary_path(copy).write_bytes(b"half")  # of a process that is there: this one
    assert local_copy(staged.path, job(local)) == copy and copies(local) == [copy.name]
    assert leftovers(local) == []


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_copies_leaves_the_work_to_the_next(staged, local, tmp_path):
    path = tmp_path / "m.h5"
    shutil.copy(staged.path, path)
    with path.open("ab") as file:
        file.write(bytes(400_000_000))  # time to be killed in; HDF5 does not mind
    first, second = (start(path, job(local)) for _ in range(2))
    for rank in (first, second):
        rank.stdin.write("\n")
        rank.stdin.flush()
        while not (half := leftovers(local)) and rank.poll() is None:
            pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert half and copies(local) == []
    out, err = second.communicate(timeout=120)
    copy = Path(out.split()[0])
    assert err == "" and copy.is_relative_to(local) and copy.stat().st_size == path.stat().st_size
    assert leftovers(local) == [] and read_store(copy)[1]["sha256"] == staged.sha256


def test_a_market_is_loaded_from_the_copy_and_never_means_never(staged, local, monkeypatch):
    for name, value in job(local).items():
        monkeypatch.setenv(name, value)
    config = load_config(overrides=[f"market.path={staged.path}"], environment={}).market
    never = config.model_copy(update={"local_copy": "never"})
    assert load_market(never).sha256 == staged.sha256 and copies(local) == []
    assert load_market(config).sha256 == staged.sha256 and len(copies(local)) == 1


def test_a_resume_may_change_it():
    one, other = (
        load_config(overrides=[f"market.local_copy={way}"], environment={}) for way in ("auto", "never")
    )
    assert one.digest() == other.digest() and changed_keys(one, other) == []
