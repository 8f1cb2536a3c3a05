"""Faults of packages, clock, storage, data, database and Slurm: each has its check, its cause and its fix."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from findings import SMALL, is_fail, is_pass, is_warn

from hpcrl.checkpoint.provenance import run_record
from hpcrl.launch.job import Request as Training
from hpcrl.launch.job import config_named
from hpcrl.storage.atomic import to_json
from hpcrl.storage.run_dir import RunDir
from hpcrl.verify import cluster, data, environment, places, verify
from hpcrl.verify.finding import Finding, examine
from hpcrl.verify.verify import Request, run_checks

# ---- Python, packages, modules, clock


def test_an_old_python_fails_and_an_untried_one_is_told(monkeypatch):
    is_pass(examine("python", environment.check_python))
    monkeypatch.setattr(sys, "version_info", (3, 10, 9, "final", 0))
    is_fail(examine("python", environment.check_python), "Python 3", "3.11 or newer")
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    is_warn(examine("python", environment.check_python), "is untried", "3.11 and 3.12")


def versions(monkeypatch, **changed: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in changed and changed[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return changed.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_missing_package_is_named(monkeypatch):
    versions(monkeypatch, deepspeed=None, h5py=None)
    found = examine("packages", environment.check_packages)
    is_fail(found, "missing: deepspeed, h5py", "pip install -c constraints.txt")


def test_a_wrong_torch_is_named_with_what_is_needed(monkeypatch):
    versions(monkeypatch, torch="2.4.1")
    found = examine("packages", environment.check_packages)
    is_fail(found, "wrong version: torch 2.4.1 (>=2.11 is needed)", "pip install")


def test_a_package_off_its_pin_is_a_warning(monkeypatch):
    is_pass(examine("packages", environment.check_packages))
    versions(monkeypatch, rich="14.9.9")
    is_warn(examine("packages", environment.check_packages), "rich 14.9.9 (pin", "tried are the pins")


@pytest.mark.slow
def test_a_room_that_cannot_be_imported_is_named():
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from hpcrl.verify import environment; from hpcrl.verify.finding import examine\n"
        "print(examine('rooms', environment.check_rooms).model_dump_json())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    is_fail(Finding(**json.loads(done.stdout)), "cannot be imported: ModuleNotFoundError", "install what is")


def test_another_loaded_module_is_told():
    is_pass(examine("module", lambda: environment.check_module({"LOADEDMODULES": "cuda/12:hpcrl/0.1.0"})))
    found = examine("module", lambda: environment.check_module({"LOADEDMODULES": "hpcrl/0.0.9"}))
    is_warn(found, "module hpcrl/0.0.9 is loaded, but this is hpcrl", "module load hpcrl/")


@pytest.mark.parametrize(("skew", "status"), [(0.0, "pass"), (5.0, "warn"), (-5.0, "warn"), (300.0, "fail")])
def test_a_clock_that_differs_from_the_storages_is_told(place, monkeypatch, skew, status):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    found = examine("clock", lambda: environment.check_clock(place))
    assert found.status == status, found
    if skew:
        side = "ahead of" if skew > 0 else "behind"
        assert f"s {side} the clock that stamps files" in found.found and "NTP" in found.fix


# ---- storage


def test_a_file_in_the_folders_place_fails(config):
    Path("taken").touch()
    found = examine("storage", lambda: places.check_storage(config("checkpoint.dir=taken/runs")))
    is_fail(found, "taken is a file", "set checkpoint.dir")


@pytest.fixture
def mounted(place):
    """A small disk of its own; without the rights to mount one, the test is for another machine."""
    disks = []

    def mount(options: str) -> Path:
        folder = place / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a disk")
        disks.append(folder)
        return folder

    yield mount
    for disk in disks:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_share_fails(config, mounted):
    disk = mounted("ro,size=4m")
    found = examine("storage", lambda: places.check_storage(config(f"checkpoint.dir={disk}")))
    is_fail(found, "cannot be written: Read-only file system", "mount it writable")


def test_a_full_disk_fails_and_nothing_is_left_there(config, mounted):
    disk = mounted("size=256k")
    found = examine("storage", lambda: places.check_storage(config(f"checkpoint.dir={disk}")))
    is_fail(found, "1 MB cannot be written: No space left on device", "free space")
    assert list(disk.iterdir()) == []


def test_a_share_without_hard_links_is_a_warning(config, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    is_pass(examine("storage", lambda: places.check_storage(config())))
    monkeypatch.setattr(os, "link", refuse)
    found = examine("storage", lambda: places.check_storage(config()))
    is_warn(found, "no hard links there (Operation not supported)", "works, and takes more room")


def test_storage_that_takes_long_to_be_safe_is_a_warning(config, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: time.sleep(0.6))
    found = examine("storage", lambda: places.check_storage(config()))
    is_warn(found, "to be safe on disk", "storage meant for jobs")


def test_too_little_room_for_checkpoints_is_told_in_numbers(config, monkeypatch):
    free = {"bytes": 10 << 30}
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free["bytes"]))
    asked = config("train.epochs=1000")  # 20 kept ones, and 2 rolling
    is_pass(examine("room", lambda: places.check_room(asked, 100 << 20)))
    is_warn(examine("room", lambda: places.check_room(asked, 1 << 30)), "10.0 GiB free; 23 check", "every_ep")
    is_fail(examine("room", lambda: places.check_room(asked, 4 << 30)), "take 92.0 GiB", "free space")
    found = examine("room", lambda: places.check_room(asked, 100 << 20, members=8))
    is_warn(found, "for each of 8 members take 18.0 GiB", "free space")


def test_a_scratch_too_small_for_the_data_is_a_warning(config, monkeypatch):
    is_pass(examine("scratch", lambda: places.check_scratch(config(), 1000)))
    found = examine("scratch", lambda: places.check_scratch(config(), 1 << 60))
    is_warn(found, "the market file has", "set TMPDIR to a larger disk")


# ---- data and database


def test_data_that_is_not_there_fails_with_the_verb_that_stages_it(config):
    found = examine("data", lambda: str(data.read_data(config("market.path=nowhere.h5"))))
    is_fail(found, "nowhere.h5: no such file", "hpcrl stage")


def test_altered_data_fails(config, staged, place):
    altered = place / "altered.h5"
    shutil.copyfile(staged, altered)
    altered.chmod(0o644)
    with h5py.File(altered, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        values = file[next(name for name in names if name.endswith("close"))]
        values[5] = values[5] * 1.01
    found = examine("data", lambda: str(data.read_data(config(f"market.path={altered}"))))
    is_fail(found, "altered.h5", "stage the file anew")


def test_made_up_bars_are_a_warning_and_too_few_a_failure(config, staged):
    asked = config()
    market = data.read_data(asked)
    is_warn(examine("data", lambda: data.check_data(asked, market)), "NO REAL DATA", "stage real bars")
    long = config("learn.rollout=4096", "learn.batch_size=4096", "learn.sequence_length=4096")
    found = examine("data", lambda: data.check_data(long, market))
    is_fail(found, "4096", "lower learn.rollout")


def test_without_a_database_the_fallback_is_announced(place):
    found = examine("database", lambda: data.check_database(place))
    is_warn(found, "fall back to 1,000 made-up bars", "a .env of mode 600")


@pytest.mark.database
def test_a_database_that_is_gone_empty_or_refuses_the_key_is_told_without_the_key(
    place, postgrest, monkeypatch
):
    monkeypatch.setattr(data, "PATIENCE", 1.0)
    monkeypatch.setenv("SUPABASE_URL", postgrest.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", postgrest.key)
    found = [examine("database", lambda: data.check_database(place))]
    is_warn(found[0], "holds no row: hpcrl stage supabase would fall back", "hpcrl stage push")
    postgrest.switch("status", status=401)
    found.append(examine("database", lambda: data.check_database(place)))
    assert found[1].status == "fail"
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:9")
    found.append(examine("database", lambda: data.check_database(place)))
    is_warn(found[2], "would fall back", "stage on a login node")
    assert postgrest.key not in "".join(each.model_dump_json() for each in found)


# ---- Slurm

PARTITIONS = (
    "PartitionName=gpu AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=04:00:00 State={state} "
    "TotalCPUs=32 TotalNodes=2 TRES=cpu=32,mem=32000M,node=2,billing=32,gres/gpu=16\n"
    "PartitionName=lo Default=NO MaxNodes=1 MaxTime=UNLIMITED State=UP TotalNodes=2 TRES=cpu=32,node=2\n"
)


@pytest.mark.parametrize(
    ("site", "sets", "state", "cause", "fix"),
    [
        ({"partition": "big"}, (), "UP", "partition big is not known", "use one of: gpu, lo"),
        ({"time": "06:00:00"}, (), "UP", "asks for 06:00:00, partition gpu gives at most 04:00:00", "04:00"),
        ({"time": "01:00:00"}, ("train.world_size=32",), "UP", "need 4 nodes, gpu has TotalNodes 2", "lower"),
        ({"partition": "lo"}, ("train.world_size=16",), "UP", "need 2 nodes, lo has MaxNodes 1", "lower"),
        ({"time": "01:00:00"}, (), "DOWN", "partition gpu is DOWN", "another partition"),
        (
            {"gpus_per_node": 16, "time": "01:00:00"}, ("train.world_size=32",), "UP",
            "partition gpu has 16 GPUs, train.world_size = 32", "lower train.world_size",
        ),
    ],
)  # fmt: skip
def test_a_job_beyond_its_partition_fails(config, slurm, place, site, sets, state, cause, fix):
    slurm.says("scontrol", PARTITIONS.format(state=state))
    file = place / "site.yaml"
    file.write_text(json.dumps(site))
    is_fail(examine("slurm", lambda: cluster.check_slurm(config(*sets), file)), cause, fix)


def test_a_job_that_fits_passes(config, slurm, place):
    slurm.says("scontrol", PARTITIONS.format(state="UP"))
    file = place / "site.yaml"
    file.write_text(json.dumps({"time": "04:00:00"}))
    is_pass(examine("slurm", lambda: cluster.check_slurm(config("train.world_size=16"), file)))


def test_no_slurm_is_a_warning_and_a_controller_that_is_down_fails_where_it_is_needed(config, slurm, place):
    is_warn(
        examine("slurm", lambda: cluster.check_slurm(config(), None)), "no scontrol on PATH", "login node"
    )
    slurm.says("scontrol", "slurm_load_partitions: Unable to contact slurm controller", code=1)
    assert examine("slurm", lambda: cluster.check_slurm(config(), None)).status == "warn"
    file = place / "site.yaml"
    file.write_text("{}")
    is_fail(examine("slurm", lambda: cluster.check_slurm(config(), file)), "contact", "administrators")


def test_in_a_job_slurm_is_not_asked_and_no_database_looked_for(config, slurm, staged, monkeypatch):
    """Its controller may be down for a while, and a job that trains has no keys."""
    slurm.says("scontrol", "slurm_load_partitions: Unable to contact slurm controller", code=1)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node3")
    found = examine("slurm", lambda: cluster.check_slurm(config(), None))
    assert found.status == "pass" and found.found == "job 12 on node3"
    sets = (*SMALL, f"market.path={staged}")
    found = {
        finding.check: finding.status for finding in run_checks(Request(Training(overrides=sets), quick=True))
    }
    assert "database" not in found and found["slurm"] == "pass" and found["data"] == "warn"  # made up


def test_the_config_is_that_of_the_run_that_goes_on(config, place, staged, monkeypatch):
    """Also from another folder than it was begun in: a relative path is one of that folder."""
    shutil.copy(staged, place / "market.h5")
    begun = config("market.path=market.h5", "learn.rollout=64")
    market = {"path": str(place / "market.h5"), "sha256": "0" * 64, "source": "synthetic"}
    run = RunDir.create("checkpoints", to_json(run_record(begun, market, None))).path.absolute()
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    for training in (
        Training(resume=run),
        Training(run=run),
        Training(init=run, overrides=(f"market.path={staged}",)),
    ):
        found = {f.check: f for f in run_checks(Request(training, quick=True))}
        assert found["config"].status == "pass" and "market.h5" in found["data"].found, found
    assert config_named(Training(resume=run)).learn.rollout == 64
    lost = next(f for f in run_checks(Request(Training(resume=place / "lost"))) if f.check == "config")
    is_fail(lost, f"{place}/lost", "the message says")


def test_what_is_written_to_is_looked_at_and_nothing_else(config, place, staged):
    """A run that goes on, and a population's members, write nothing into checkpoint.dir."""
    begun = config("checkpoint.dir=/proc/nowhere", f"pbt.dir={place}/populations")
    record = run_record(begun, {"path": str(staged), "sha256": "0" * 64, "source": "synthetic"}, None)
    run = RunDir.create(str(place / "elsewhere"), to_json(record)).path
    for request in (Request(Training(resume=run), quick=True), Request(Training(run=run), quick=True)):
        found = {finding.check: finding for finding in run_checks(request)}
        assert (
            found["storage"].status == found["clock"].status == "pass" and str(run) in found["storage"].found
        )
    sets = (*SMALL, f"market.path={staged}", "checkpoint.dir=/proc/nowhere", f"pbt.dir={place}")
    alone, population = (
        Request(Training(overrides=sets), quick=True, population=many) for many in (False, True)
    )
    (one,), (many,) = (
        [f for f in run_checks(asked) if f.check == "storage"] for asked in (alone, population)
    )
    assert (one.status, many.status) == ("fail", "pass"), (one, many)


@pytest.mark.parametrize(
    ("failing", "code"),
    [("storage", 0), ("packages", 0), ("cuda", 0), ("config", 1), ("data", 1), ("gpu", 1)],
)
def test_a_fault_of_the_node_or_the_moment_ends_no_job(place, monkeypatch, capsys, failing, code):
    found = [Finding(check=name, status="pass", found="well") for name in ("python", "config", "data")]
    found.append(Finding(check=failing, status="fail", found="not well", fix="mend it"))
    monkeypatch.setattr(verify, "run_checks", lambda request: iter(found))
    monkeypatch.setattr(verify.signal, "signal", lambda *a: None)
    assert verify.verify(Request(), as_json=False) == 1
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    capsys.readouterr()
    assert verify.verify(Request(), as_json=False) == code
    out = capsys.readouterr().out
    assert f"fail {failing}: not well" in out and ("training is tried" in out) == (code == 0)


def test_ended_by_slurm_it_leaves_nothing(place, staged):
    sets = [word for item in (*SMALL, f"market.path={staged}") for word in ("--set", item)]
    child = subprocess.Popen(
        [sys.executable, "-m", "hpcrl", "verify", *sets], cwd=place, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    line = next(line for line in child.stdout if line.startswith("pass rooms"))
    while not (probes := list(place.glob(".hpcrl_verify_*"))) and child.poll() is None:
        time.sleep(0.01)
    child.terminate()
    child.communicate(timeout=60)
    assert line and probes and child.returncode == 143 and not list(place.glob(".hpcrl_verify_*"))
