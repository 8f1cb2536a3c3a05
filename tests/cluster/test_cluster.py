"""The cluster that the other tests here stand on: real, alone, able to fail, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import slurm as module
from servers.slurm import PACKAGES, poll

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TESTS = Path(module.__file__).parents[1]
# A cluster of its own with one job; then argv[2]: wait to be killed, or end everything as a test would.
START = """
import os, sys; sys.path.insert(0, sys.argv[1])
from servers.slurm import SlurmCluster
if sys.argv[3] == "plain" and os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
cluster = SlurmCluster(); cluster.start()
script = "#!/bin/bash\\nsrun sh -c 'echo $SLURMD_NODENAME > started; setsid sleep 1000'"
job = cluster.sbatch(script, options=["--output=/dev/null", "--gres=gpu:8"], cwd=cluster.root)
cluster.poll(lambda: (cluster.root / "started").exists(), 60)
print(cluster.root, flush=True)
if sys.argv[2] == "killed":
    sys.stdin.read()
cluster.cancel(job); shown = cluster.wait(job); accounted = cluster.sacct(job)[0]["State"]
cluster.reset(); cluster.stop()
print(shown["JobState"], accounted)
"""
# Says which start it is and where it runs; ends when the file `enough` is there.
LOOP = """#!/bin/bash
#SBATCH --output=job.log --open-mode=append
trap : TERM
srun sh -c 'while [ ! -e enough ]; do
    echo "${SLURM_RESTART_COUNT:-0} $(hostname)" >> beats; sleep 0.2
done'
"""


def processes_of(root: str) -> set[int]:
    """Processes whose command or environment names the folder."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if root.encode() in text and int(entry.name) != os.getpid():
            found.add(int(entry.name))
    return found


def start(end: str, layout: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(TESTS), end, layout]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def beats(folder: Path) -> list[str]:
    return (folder / "beats").read_text().splitlines() if (folder / "beats").exists() else []


def test_eight_tasks_see_eight_gpus_and_accounting_knows_them(slurm, tmp_path):
    script = "#!/bin/bash\nsrun sh -c 'echo $SLURM_PROCID $(hostname) $CUDA_VISIBLE_DEVICES'"
    options = ["--ntasks=8", "--gres=gpu:8", "--output=out"]
    job = slurm.sbatch(script, options=options, cwd=tmp_path)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    lines = sorted((tmp_path / "out").read_text().splitlines())
    (node,) = {line.split()[1] for line in lines}
    assert lines == [f"{rank} {node} 0,1,2,3,4,5,6,7" for rank in range(8)]
    accounted = poll(
        lambda: [line for line in slurm.sacct(job) if line["End"] != "Unknown"], 30, slurm.report
    )
    assert [line["State"] for line in accounted] == ["COMPLETED"]


def test_nodes_have_names_and_addresses_that_reach_each_other(slurm, tmp_path):
    script = "#!/bin/bash\nsrun python3 -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'"
    job = slurm.sbatch(script, options=["--nodes=4", "--output=out"], cwd=tmp_path)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    addresses = set((tmp_path / "out").read_text().split())
    assert len(addresses) == (4 if slurm.namespaces else 1)


def test_gloo_meets_over_two_nodes(slurm, tmp_path):
    (tmp_path / "ranks.py").write_text(
        "import torch, torch.distributed as dist\n"
        "from hpcrl.world.ranks import start_world, stop_world\n"
        "world = start_world('cpu', 2)\n"
        "total = torch.ones(1); dist.all_reduce(total); print(int(total))\n"
        "stop_world(world)\n"
    )
    script = f"#!/bin/bash\nsrun {sys.executable} ranks.py"
    job = slurm.sbatch(
        script, options=["--nodes=2", "--ntasks-per-node=1", "--output=out", "--error=log"], cwd=tmp_path
    )
    assert slurm.wait(job)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert (tmp_path / "out").read_text().split() == ["2", "2"]


def test_a_requeued_job_starts_again_and_accounting_has_both(slurm, tmp_path):
    job = slurm.sbatch(LOOP, cwd=tmp_path)
    slurm.wait(job, "RUNNING")
    slurm.run("scontrol", "requeue", job)
    slurm.wait_start(job, 1)
    (tmp_path / "enough").touch()
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    slurm.poll(lambda: len(slurm.sacct(job)) == 2, 30)


@pytest.mark.soak
def test_jobs_without_power_or_network_start_elsewhere_and_the_one_without_network_runs_on(slurm, tmp_path):
    dark, cut = tmp_path / "dark", tmp_path / "cut"
    jobs = {}
    for folder in (dark, cut):
        folder.mkdir()
        jobs[folder] = slurm.sbatch(LOOP, options=["--exclusive"], cwd=folder)
    first = {folder: slurm.poll(lambda folder=folder: beats(folder), 60)[0] for folder in jobs}
    slurm.kill_node(int(first[dark][-1]))
    slurm.cut(int(first[cut][-1]))
    before = len(beats(dark))
    for folder in jobs:
        slurm.poll(lambda folder=folder: beats(folder)[-1].startswith("1 "), 120)
        assert slurm.show(jobs[folder])["Restarts"] == "1"
    assert {line.split()[0] for line in beats(dark)[before:]} == {"1"}
    seen = len(beats(cut))
    slurm.poll(lambda: len({line.split()[1] for line in beats(cut)[seen:]}) == 2, 20)


def test_a_controller_that_starts_again_finds_its_jobs(slurm, tmp_path):
    job = slurm.sbatch(LOOP, cwd=tmp_path)
    slurm.wait(job, "RUNNING")
    slurm.poll(lambda: beats(tmp_path), 60)
    slurm.stop_controller()
    seen = len(beats(tmp_path))
    poll(lambda: len(beats(tmp_path)) > seen, 60, lambda: "the job stands still")
    slurm.start_controller()
    assert slurm.state(job) == "RUNNING"
    (tmp_path / "enough").touch()
    assert slurm.wait(job)["Restarts"] == "0"


@pytest.mark.parametrize("layout", ["own", "plain"])
def test_a_killed_test_process_leaves_neither_daemon_nor_job_nor_folder(slurm_session, layout):
    process = start("killed", layout)
    root = process.stdout.readline().strip()
    assert Path(root, "state").is_dir() and len(processes_of(root)) > 8
    process.kill()
    process.communicate()
    poll(
        lambda: not processes_of(root) and not Path(root).exists(),
        60,
        lambda: f"{root}: {processes_of(root)}",
    )


def test_another_user_has_a_cluster_on_one_host(slurm_session):
    process = start("ends", "plain")
    out, _ = process.communicate(timeout=120)
    root, *states = out.split()
    assert states[0] == "CANCELLED" and states[1] == "CANCELLED"
    assert not processes_of(root) and not Path(root).exists()


def test_what_is_missing_is_installed_by_the_script():
    script = (TESTS / "servers" / "install.sh").read_text()
    assert all(f"{program}:{package}" in script for program, package in PACKAGES.items())
