"""Ranks from torchrun's and Slurm's variables; disagreements are told with their fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcrl.types import HpcrlError
from hpcrl.world import ranks
from hpcrl.world.ranks import Ranks

STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
}


def test_a_plain_process_is_the_only_rank() -> None:
    assert ranks.read_ranks({}) == (0, 1, 0, "none")


def test_torchruns_variables_are_read_and_win_over_slurms() -> None:
    env = STEP | {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2"}
    assert ranks.read_ranks(env) == (5, 6, 2, "torchrun")


def test_an_srun_task_counts_the_steps_tasks_not_the_jobs() -> None:
    assert ranks.read_ranks(STEP) == (3, 8, 1, "slurm")


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_ID": "4294967291"},  # batch
        {"SLURM_STEP_ID": "4294967290"},  # salloc's interactive step
        {"SLURM_STEP_NUM_TASKS": None},
        {"SLURM_PROCID": None},
        {"SLURM_STEP_ID": None},
    ],
)
def test_batch_scripts_and_allocation_shells_are_no_tasks(change: dict[str, str | None]) -> None:
    env = {key: value for key, value in (STEP | change).items() if value is not None}
    assert ranks.read_ranks(env) == (0, 1, 0, "none")


def test_a_world_size_exported_by_a_job_script_does_not_hide_slurms_rank() -> None:
    assert ranks.read_ranks(STEP | {"WORLD_SIZE": "99"}).rank == 3


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK = 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2"),
    ],
)
def test_half_set_variables_are_users_errors(env: dict[str, str], says: str) -> None:
    with pytest.raises(HpcrlError, match=says):
        ranks.read_ranks(env)


@pytest.mark.parametrize(
    ("env", "size"),
    [
        ({}, 1),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "8"}, 8),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "8"}, 8),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 4),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,8(x12),2"}, 8),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,8(x12),2", "SLURM_NODEID": "13"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "8"}, 1),
    ],
)
def test_the_ranks_of_one_machine_are_counted(env: dict[str, str], size: int) -> None:
    assert ranks._local_size(env) == size


@pytest.mark.parametrize("rank", [0, 7])
def test_too_few_gpus_are_found_by_every_rank(rank: int, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(HpcrlError, match="8 ranks on this machine need a GPU each, but it shows 4"):
        ranks._device("auto", Ranks(rank, 8, rank, "torchrun"))


@pytest.mark.parametrize("launcher", ["none", "torchrun", "slurm"])
def test_another_world_size_names_both_numbers_and_the_fix(launcher) -> None:
    size = 1 if launcher == "none" else 2
    with pytest.raises(HpcrlError) as caught:
        ranks.check_size(Ranks(0, size, 0, launcher), 8)
    text = str(caught.value)
    assert "train.world_size = 8" in text and f"world_size={size}" in text
    assert ("--ranks 8" in text) == (launcher == "none")
    ranks.check_size(Ranks(0, size, 0, launcher), size)


def test_reading_the_ranks_and_installing_the_stop_flag_import_no_torch() -> None:
    code = (
        "import sys, hpcrl.world.ranks as r, hpcrl.world.stop as s; r.read_ranks(); s.StopFlag().install(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_plain())


def _plain() -> dict[str, str]:
    dropped = ("SLURM_", "RANK", "WORLD_SIZE", "MASTER_", "LOCAL_RANK")
    root = str(Path(__file__).resolve().parents[2])
    return {k: v for k, v in os.environ.items() if not k.startswith(dropped)} | {"PYTHONPATH": root}


_SINGLE = """
import socket
def refuse(*a, **k): raise AssertionError("a port was opened")
socket.socket.bind = refuse
from hpcrl.world.ranks import start_world, stop_world
from hpcrl.world.stop import StopFlag
from hpcrl.world import collectives as c
import torch
world = start_world("cpu", 1)
assert (world.rank, world.size, world.launcher, world.device.type) == (0, 1, "none", "cpu"), world
assert c.all_max(world, 3) == 3 and c.broadcast_object(world, "a") == "a"
assert c.gather_objects(world, 1) == [1]
assert c.all_sum(world, torch.tensor([1, 2])).dtype == torch.float64
assert not StopFlag().agreed(world)
c.barrier(world)
stop_world(world, 0)
import os; assert "RANK" not in os.environ and "MASTER_PORT" not in os.environ
print("returned")
"""


def test_one_process_needs_no_port_and_returns_from_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", _SINGLE], env=_plain(), capture_output=True, text=True)
    assert done.stdout.strip() == "returned", done.stderr


def test_unknown_and_absent_devices_are_users_errors() -> None:
    import torch

    with pytest.raises(HpcrlError, match=r"engine\.device = 'tpu'"):
        ranks._device("tpu", Ranks(0, 1, 0, "none"))
    if not torch.cuda.is_available():
        with pytest.raises(HpcrlError, match="no CUDA device"):
            ranks._device("cuda", Ranks(0, 1, 0, "none"))


_PAIR = """
import os, signal, sys, torch
from hpcrl.world.ranks import start_world, stop_world
from hpcrl.world.stop import StopFlag
from hpcrl.world import collectives as c
stop = StopFlag().install()
world = start_world("cpu", 2)
assert c.all_max(world, world.rank) == 1
assert c.all_sum(world, torch.tensor([1.0, world.rank])).tolist() == [2.0, 1.0]
assert c.broadcast_object(world, f"from {world.rank}") == "from 0"
assert c.gather_objects(world, world.rank) == [0, 1]
assert not stop.agreed(world)
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGUSR2)
assert stop.requested == (world.rank == 1)
assert stop.agreed(world)
print("told", world.rank)
stop_world(world, 75)
print("never")
"""


def test_two_ranks_agree_on_a_stop_that_only_one_was_told(tmp_path: Path, run_on_ranks) -> None:
    script = tmp_path / "pair.py"
    script.write_text(_PAIR)
    done = run_on_ranks(script, expect=75)
    assert [result.stdout.split() for result in done] == [["told", "0"], ["told", "1"]]
