"""Ranks, devices, addresses, the job's end and a suspended job, as a real Slurm gives them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpcrl.types import HUNG
from hpcrl.world.rendezvous import resolved

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240
SRUN = "srun --kill-on-bad-exit=1"

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

_MEET = """
import json, os
from hpcrl.world.collectives import gather_objects
from hpcrl.world.ranks import start_world, stop_world
world = start_world("auto")
mine = [world.rank, world.local_rank, os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]]
found = gather_objects(world, mine)
if world.is_main:
    print(json.dumps([os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], found]), flush=True)
stop_world(world)
"""


@pytest.fixture
def job(slurm, tmp_path):
    """``job(python, *options) -> id``: a script that runs this Python on every task by srun."""

    def start(python: str, *options: str, script: str = "", arguments: str = "") -> str:
        (tmp_path / "task.py").write_text(python)
        text = script or f"{SRUN} {PYTHON} task.py"
        lines = ["#!/bin/bash", f"cd '{tmp_path}'", f"export PYTHONPATH='{ROOT}' OMP_NUM_THREADS=1", text]
        given = ("--output=log", "--open-mode=append", "--time=20", *options)
        return slurm.sbatch("\n".join(lines) + "\n", options=given, cwd=tmp_path)

    start.log = lambda: (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    return start


def met(log: str) -> list:
    return [json.loads(line) for line in log.splitlines() if line.startswith('["')]


def test_ranks_of_two_nodes_meet_and_after_a_requeue_at_another_port(slurm, job):
    script = f"srun {PYTHON} task.py\n[ $((SLURM_RESTART_COUNT + 0)) = 1 ] || sleep 600"
    number = job(_MEET, "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", script=script)
    slurm.poll(lambda: met(job.log()), PATIENCE)
    slurm.run("scontrol", "requeue", number)
    assert slurm.wait(number, timeout=PATIENCE)["JobState"] == "COMPLETED", job.log()
    (address, port, found), (_, other, again) = met(job.log())
    assert port != other and found == again
    assert address == ("node1" if slurm.namespaces else "127.0.0.1")
    assert [entry[:2] for entry in found] == [[0, 0], [1, 1], [2, 0], [3, 1]]
    assert [entry[2] for entry in found] == ["node1", "node1", "node2", "node2"]
    assert job.log().count("Slurm granted 2 GPUs, but torch sees none") == 4, "one line per node and attempt"


def test_tasks_that_see_one_gpu_each_are_no_mistake(slurm, job):
    number = job(_MEET, "--nodes=1", "--ntasks-per-node=2", "--gpus-per-task=1")
    assert slurm.wait(number, timeout=PATIENCE)["JobState"] == "COMPLETED", job.log()
    ((_, _, found),) = met(job.log())
    assert [entry[3] for entry in found] == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "script", "says"),
    [
        (["--ntasks-per-node=8", "--gres=gpu:4"], f"{SRUN} {{}}", "8 ranks on node1 need a GPU each"),
        (["--ntasks-per-node=2", "--gres=gpu:2"], f"{SRUN} --gres=gpu:1 {{}}", "but Slurm granted 1 there"),
        (["--ntasks-per-node=8", "--gres=gpu:8"], "{}", "8 tasks (SLURM_NTASKS), but hpcrl was started once"),
    ],
    ids=["eight ranks, four GPUs", "a step of fewer GPUs", "srun forgotten"],
)  # fmt: skip
def test_an_allocation_that_does_not_fit_is_one_line(slurm, job, tmp_path, options, script, says):
    (tmp_path / "tiny.yaml").write_text("train: {world_size: 8}\n")
    train = f"{PYTHON} -m hpcrl train --config tiny.yaml"
    if options[0] == "--ntasks-per-node=2":
        train += " --set train.world_size=2"
    number = job("", "--nodes=1", *options, script=script.format(train))
    ended = slurm.wait(number, timeout=PATIENCE)
    told = [line for line in job.log().splitlines() if line.startswith("error: ")]
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), job.log()
    assert len([line for line in told if says in line]) == 1 and "Traceback" not in job.log(), job.log()


def test_a_node_whose_name_means_nothing_here_is_found_by_slurms_address(slurm, monkeypatch):
    for key in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(key, slurm.environment()[key])
    assert resolved("node1", "slurm") == ("10.77.0.1" if slurm.namespaces else "127.0.0.1")


_DEADLINE = """
import time
from hpcrl.world.deadline import Deadline
for _ in range(600):
    deadline = Deadline()
    deadline.note(epoch_seconds=900)
    print(deadline.due(), round(deadline.left), flush=True)
    time.sleep(0.5)
"""


def test_the_jobs_end_is_known_and_an_extension_of_it_noticed(slurm, job):
    number = job(_DEADLINE, "--ntasks=1", "--time=20")
    slurm.poll(lambda: "True" in job.log(), PATIENCE)
    answer, left = job.log().split()[:2]
    assert answer == "True" and 1100 < int(left) <= 1200
    slurm.run("scontrol", "update", f"job={number}", "TimeLimit=60")
    slurm.poll(lambda: "False 35" in job.log(), 60)
    slurm.run("scontrol", "update", f"job={number}", "TimeLimit=UNLIMITED")
    slurm.cancel(number)


_HANG = """
import os, sys, time
from hpcrl.monitor.watchdog import Watchdog
dog = Watchdog(2.0, None, int(os.environ["SLURM_PROCID"])).start()
print("begun", flush=True)
for epoch in range(30):
    dog.beat("learn", epoch)
    time.sleep(0.2)
print("worked", flush=True)
def stuck():
    time.sleep(1000)
stuck()
"""


def test_a_suspended_job_has_not_hung_and_one_that_hangs_ends_with_the_code_of_a_hang(slurm, job):
    number = job(_HANG, "--ntasks=1")
    slurm.poll(lambda: "begun" in job.log(), PATIENCE)
    slurm.run("scontrol", "suspend", number)
    slurm.wait(number, "SUSPENDED")
    slurm.run("sleep", "5")  # what is tested: longer than the watchdog's limit
    assert "worked" not in job.log()
    slurm.run("scontrol", "resume", number)
    ended = slurm.wait(number, timeout=PATIENCE)
    assert "worked" in job.log() and "in stuck" in job.log(), job.log()
    assert ended["ExitCode"] == f"{HUNG}:0"
