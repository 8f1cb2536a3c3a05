"""The cluster that the other tests here stand on: real, alone, able to fail, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import slurm as module
from servers.slurm import poll

pytestmark = pytest.mark.cluster

TESTS = Path(module.__file__).parents[1]
START = """
import sys; sys.path.insert(0, sys.argv[1])
from servers.slurm import SlurmCluster
cluster = SlurmCluster(); cluster.start()
script = "#!/bin/bash\\nsrun sh -c 'echo started > started; setsid sleep 1000'"
job = cluster.sbatch(script, options=["--output=/dev/null"], cwd=cluster.root)
if sys.argv[2] == "leave":
    cluster.wait(job, "RUNNING")
    while not (cluster.root / "started").exists():
        pass
    print(cluster.root, flush=True); sys.stdin.read()
cluster.cancel(job); shown = cluster.wait(job); accounted = cluster.sacct(job)[0]["State"]
cluster.reset(); cluster.stop()
print(cluster.root, shown["JobState"], accounted)
"""
# Each start appends a line; ends when the file `enough` is there.
LOOP = """#!/bin/bash
#SBATCH --output=job.log --open-mode=append
trap : TERM
srun --kill-on-bad-exit=1 sh -c 'while [ ! -e enough ]; do echo "$SLURM_RESTART_COUNT $(hostname)" >> beats; sleep 0.2; done'
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
    poll(lambda: len(slurm.sacct(job)) == 2, 30, lambda: str(slurm.sacct(job)))


def test_after_a_power_failure_the_job_runs_elsewhere(slurm, tmp_path):
    job = slurm.sbatch(LOOP, options=["--nodelist=node1"], cwd=tmp_path)
    # A node by name would be waited for.
    poll(lambda: beats(tmp_path), 60, slurm.report)
    slurm.run("scontrol", "update", f"jobid={job}", "reqnodelist=", check=False)
    slurm.kill_node(1)
    before = len(beats(tmp_path))
    slurm.wait_nodes("down", "down*", nodes=["node1"])
    (tmp_path / "enough").touch()
    assert len(beats(tmp_path)) == before or slurm.show(job)["Restarts"] != "0"


def test_a_node_without_network_runs_on_beside_the_second_attempt(slurm, tmp_path):
    job = slurm.sbatch(LOOP, cwd=tmp_path)
    first = poll(lambda: beats(tmp_path), 60, slurm.report)[0].split()[-1]
    slurm.cut(int(first[-1]))
    poll(lambda: any(not line.endswith(first) for line in beats(tmp_path)), 120, slurm.report)
    seen = len(beats(tmp_path))
    poll(
        lambda: {line.split()[-1] for line in beats(tmp_path)[seen:]} > {first},
        20,
        lambda: str(beats(tmp_path)),
    )
    assert slurm.show(job)["Restarts"] == "1"


def test_a_controller_that_starts_again_finds_its_jobs(slurm, tmp_path):
    job = slurm.sbatch(LOOP, cwd=tmp_path)
    slurm.wait(job, "RUNNING")
    slurm.stop_controller()
    (tmp_path / "enough").touch()
    assert slurm.run("squeue", check=False).returncode != 0
    slurm.start_controller()
    assert slurm.wait(job)["Restarts"] == "0"


def test_a_killed_test_process_leaves_neither_daemon_nor_job_nor_folder():
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(TESTS), "leave"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    root = process.stdout.readline().strip()
    assert Path(root, "state").is_dir() and len(processes_of(root)) > 8
    process.kill()
    process.communicate()
    poll(
        lambda: not processes_of(root) and not Path(root).exists(),
        60,
        lambda: f"{root}: {processes_of(root)}",
    )
