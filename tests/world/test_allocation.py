"""Ranks and GPUs that do not fit are told before torch loads; a task's variables as Slurm 22.05 sets them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.allocation import check_allocation, check_visible, tasks_here, tasks_per_node
from hpcrl.world.ranks import Ranks


def task(per_node: str, gpus: int | None = None, node: int = 0, **more: str) -> dict[str, str]:
    env = {"SLURM_JOB_ID": "7", "ENVIRONMENT": "BATCH", "SLURM_STEP_TASKS_PER_NODE": per_node}
    env |= {"SLURM_NODEID": str(node), "SLURMD_NODENAME": f"gpu{node}"}
    return env | ({} if gpus is None else {"SLURM_GPUS_ON_NODE": str(gpus)}) | more


def rank(size: int, number: int = 0, launcher="slurm") -> Ranks:
    return Ranks(number, size, number, launcher)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("8", [8]), ("8(x2),4", [8, 8, 4]), ("2,1", [2, 1]), ("", []), ("some", [])],
)
def test_tasks_per_node_are_read_as_slurm_writes_them(text: str, counts: list[int]) -> None:
    assert tasks_per_node({"SLURM_STEP_TASKS_PER_NODE": text}) == counts


def test_a_node_knows_its_own_tasks() -> None:
    assert [tasks_here(task("3,1", node=node)) for node in (0, 1)] == [3, 1]
    assert tasks_here({}) is None and tasks_here({"SLURM_STEP_TASKS_PER_NODE": "3,8"}) == 8


@pytest.mark.parametrize(
    ("size", "env"),
    [
        (8, task("8", 8)),
        (8, task("4(x2)", 4)),
        (2, task("2", 8)),
        (3, task("3", 3, SLURM_STEP_GPUS="1", CUDA_VISIBLE_DEVICES="1")),  # --gpus-per-task=1
        (3, task("2,1", 2)),
        (3, task("2,1", 1, node=1)),
        (8, task("8")),  # a cluster without GPUs, or one that does not manage them
    ],
)
def test_what_fits_is_let_through(size: int, env: dict[str, str]) -> None:
    check_allocation(rank(size), "auto", env)


@pytest.mark.parametrize("number", [0, 7])
def test_eight_ranks_and_four_gpus_are_told_by_every_rank_with_numbers_node_and_fixes(number: int) -> None:
    with pytest.raises(HpcrlError) as caught:
        check_allocation(rank(8, number), "auto", task("8", 4))
    text = str(caught.value)
    numbers = ("8 ranks on gpu0", "granted 4", "SLURM_GPUS_ON_NODE = 4")
    fixes = ("--gres=gpu:8", "--ntasks-per-node=4", "train.world_size=4", "engine.device=cpu")
    assert all(part in text for part in (*numbers, *fixes)), text
    assert "\n" not in text


def test_several_nodes_with_too_few_gpus_each_keep_their_number() -> None:
    with pytest.raises(HpcrlError, match=r"world_size=6"):
        check_allocation(rank(12), "cuda", task("4(x3)", 2, node=2))


def test_uneven_tasks_are_named_as_the_cause() -> None:
    with pytest.raises(HpcrlError, match=r"unevenly.*\[5, 3\].*spread them evenly"):
        check_allocation(rank(8), "auto", task("5,3", 4))


def test_one_gpu_that_several_tasks_of_a_step_share_is_too_few() -> None:
    """srun --gres=gpu:1 and --ntasks-per-gpu=2: each task sees one GPU, but not one of its own."""
    for gpus, env in ((1, task("2", 1, SLURM_STEP_GPUS="0")), (2, task("4", 2, SLURM_STEP_GPUS="1"))):
        with pytest.raises(HpcrlError, match=f"granted {gpus} there"):
            check_allocation(rank(2), "auto", env)


def test_on_cpus_no_gpu_is_missed_and_other_launchers_look_for_themselves() -> None:
    check_allocation(rank(8), "cpu", task("8", 1))
    check_allocation(rank(8, launcher="torchrun"), "auto", task("8", 1))


def test_a_batch_script_without_srun_is_told() -> None:
    lone = rank(1, launcher="none")
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "ENVIRONMENT": "BATCH"}
    with pytest.raises(HpcrlError, match=r"8 tasks \(SLURM_NTASKS\).*put srun"):
        check_allocation(lone, "cpu", batch)
    check_allocation(lone, "cpu", batch | {"SLURM_NTASKS": "1"})
    check_allocation(lone, "cpu", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"})  # salloc's shell
    check_allocation(lone, "auto", {})


def test_a_gpu_that_slurm_gave_and_torch_does_not_see_is_missed() -> None:
    env = task("8", 8, SLURM_STEP_GPUS="0,1,2,3,4,5,6,7")
    check_visible(8, env)
    check_visible(1, task("8", 8, SLURM_STEP_GPUS="3"))
    check_visible(4, {})
    with pytest.raises(RunFailed, match=r"8 GPUs of gpu0 .*torch sees 7.*--exclude"):
        check_visible(7, env)


def test_it_needs_no_torch() -> None:
    code = "import sys, hpcrl.world.allocation, hpcrl.world.rendezvous; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
