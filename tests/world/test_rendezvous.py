"""Where ranks meet; attempts keep apart; who does not come is named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hpcrl.types import HpcrlError
from hpcrl.world.rendezvous import attempt_name, first_host, resolved
from hpcrl.world.rendezvous import rendezvous as address

STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
}


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node1", "node1"),
        ("gpu[007-012,020],login1", "gpu007"),
        ("gpu[3,5]", "gpu3"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]n[05-06]-ib", "rack1n05-ib"),
        ("host.example.org", "host.example.org"),
    ],
)
def test_first_host_of_a_node_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


@pytest.mark.parametrize("nodelist", ["", "gpu[", "gpu[1-2"])
def test_broken_node_list_is_named(nodelist: str) -> None:
    with pytest.raises(HpcrlError, match="SLURM_JOB_NODELIST"):
        first_host(nodelist)


def test_slurm_ranks_meet_on_the_steps_first_node_at_a_port_from_the_job() -> None:
    host, port = address("slurm", STEP)
    other = address("slurm", STEP | {"SLURM_JOB_ID": "4243"})[1]
    assert host == "gpu08"
    assert 15_000 <= port < 30_000 and port != other
    assert address("slurm", STEP | {"MASTER_ADDR": "x", "MASTER_PORT": "9"}) == ("x", 9)


def test_ranks_on_one_node_meet_on_loopback_whatever_slurm_calls_the_node() -> None:
    assert address("slurm", STEP | {"SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"
    assert address("slurm", STEP | {"SLURM_STEP_NUM_NODES": "2"})[0] == "gpu08"


def test_the_tasks_of_an_array_steps_and_attempts_come_to_ports_of_their_own() -> None:
    near = [
        STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": str(restart)}
        for job in range(4242, 4342)
        for step in range(2)
        for restart in range(4)
    ]
    assert len({address("slurm", env)[1] for env in near}) == len(near)
    assert len({attempt_name("slurm", env) for env in near}) == len(near)
    # An array's tasks share SLURM_ARRAY_JOB_ID; its last one has the array's own number as its job id.
    array = {"SLURM_ARRAY_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": "0"}
    first = address("slurm", STEP | array | {"SLURM_JOB_ID": "4243"})
    assert first != address("slurm", STEP | array)
    assert address("slurm", STEP) == address("slurm", STEP | {"SLURM_RESTART_COUNT": "0"})


def test_a_name_that_does_not_resolve_is_told_at_once() -> None:
    assert resolved("127.0.0.1", "none") == "127.0.0.1"
    with pytest.raises(HpcrlError, match=r"'gpu08\.invalid'.*export MASTER_ADDR=\.\.\. for every rank"):
        resolved("gpu08.invalid", "torchrun")
    # A variable of the shell that calls sbatch is not in the script's --export list.
    with pytest.raises(
        HpcrlError, match=r"'gpu08\.invalid'.*MASTER_ADDR=\.\.\. above srun in the job's script"
    ):
        resolved("gpu08.invalid", "slurm")


_MEET = """
import sys
from hpcrl.world import rendezvous
rendezvous.MEET_SECONDS = float(sys.argv[1])
from hpcrl.types import HpcrlError
from hpcrl.world.ranks import start_world, stop_world
from hpcrl.world.collectives import gather_objects
try:
    world = start_world("cpu")
except HpcrlError as error:
    print(error)
    sys.stdout.flush()
    import os; os._exit(error.exit_code)
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
backend = dist.group.WORLD._get_backend(__import__("torch").device("cpu"))
assert backend.options._timeout == rendezvous.ENDLESS, backend.options._timeout
group = dist.new_group([0, 1])
assert group._get_backend(__import__("torch").device("cpu")).options._timeout == rendezvous.ENDLESS
print(gather_objects(world, world.rank))
stop_world(world)
"""


def _step(port: int, rank: int, size: int, restart: int = 0) -> dict[str, str]:
    """The variables of an srun task on one node; a fixed port, as a job script may export it."""
    step = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": size, "SLURM_NODEID": 0}
    step |= {"SLURM_STEP_TASKS_PER_NODE": size, "SLURM_RESTART_COUNT": restart, "MASTER_PORT": port}
    step |= {"SLURM_JOB_ID": 12, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_NODES": 1, "OMP_NUM_THREADS": 1}
    return {key: str(value) for key, value in step.items()}


@pytest.fixture
def task(tmp_path):
    script, running = tmp_path / "meet.py", []
    script.write_text(_MEET)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "MASTER_"))}
    clean["PYTHONPATH"] = str(Path(__file__).parents[2])

    def start(seconds: float, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(seconds)]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=clean | variables, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_rank_that_does_not_come_is_named_within_the_limit(task, port) -> None:
    there = [task(4, **_step(port, rank, 4)) for rank in (0, 2)]
    said = [process.communicate(timeout=60)[0] for process in there]
    assert [process.returncode for process in there] == [1, 1], said
    assert "2 of 4 ranks met at 127.0.0.1" in said[0] and "missing: rank 1, 3." in said[0]


def test_without_rank_0_the_others_say_where_it_should_be(task, port) -> None:
    lonely = task(2, **_step(port, 1, 2))
    said, _ = lonely.communicate(timeout=60)
    assert lonely.returncode == 1 and f"rank 1 of 2 cannot reach rank 0 at 127.0.0.1:{port}" in said


def test_a_rank_of_an_earlier_attempt_is_not_taken_for_one_of_this(task, port) -> None:
    """It reaches the very store of the new attempt, and still is not counted."""
    first = task(60, **_step(port, 0, 2, restart=1))
    stale = task(60, **_step(port, 1, 2, restart=0))
    end = time.monotonic() + 60
    while port not in [
        found.raddr.port for found in psutil.Process(stale.pid).net_connections() if found.raddr
    ]:
        assert stale.poll() is None and first.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    second = task(60, **_step(port, 1, 2, restart=1))
    for rank in (first, second):
        said, err = rank.communicate(timeout=60)
        assert (rank.returncode, said) == (0, "[0, 1]\n"), err
    said, _ = stale.communicate(timeout=60)
    assert stale.returncode == 1 and "rank 1 of 2 cannot" in said


def test_a_port_that_is_taken_is_told_with_its_cure(task) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        first = task(4, **_step(other.getsockname()[1], 0, 2))
        said, _ = first.communicate(timeout=60)
    assert first.returncode == 1 and "in use" in said and "MASTER_PORT=... above srun" in said
