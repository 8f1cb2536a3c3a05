"""Does Slurm's allocation fit what was asked for? Read from variables, so it is told before torch loads.

Every rank of a node finds the same mistake. What a task may rely on (Slurm 20.11 and later): inside a step
SLURM_GPUS_ON_NODE counts the step's GPUs on this node, however they are bound to tasks (--gres, --gpus,
--gpus-per-task, an srun of fewer), while CUDA_VISIBLE_DEVICES and SLURM_STEP_GPUS name those of this task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpcrl.types import HpcrlError, RunFailed

if TYPE_CHECKING:
    from hpcrl.world.ranks import Ranks

_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def tasks_per_node(env: Mapping[str, str]) -> list[int]:
    """The step's tasks on each of its nodes: "8(x2),4" is [8, 8, 4]. Empty where Slurm does not say."""
    found = [_COUNT.fullmatch(part) for part in env.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")]
    return [int(part[1]) for part in found if part for _ in range(int(part[2] or 1))]


def tasks_here(env: Mapping[str, str]) -> int | None:
    """The step's tasks on this node."""
    counts, node = tasks_per_node(env), env.get("SLURM_NODEID", "")
    if node.isdigit() and int(node) < len(counts):
        return counts[int(node)]
    return max(counts, default=None)


def gpus_here(env: Mapping[str, str]) -> int | None:
    """The step's GPUs on this node; None where Slurm granted none, or does not manage them."""
    given = env.get("SLURM_GPUS_ON_NODE", "")
    return int(given) if given.isdigit() else None


def check_allocation(ranks: Ranks, device_choice: str, environ: Mapping[str, str] = os.environ) -> None:
    """HpcrlError with both numbers, their variable and the fix, where ranks and allocation disagree."""
    if ranks.launcher == "none":
        _check_one_process(environ)
    if ranks.launcher != "slurm" or device_choice == "cpu":
        return
    tasks, gpus, counts = tasks_here(environ), gpus_here(environ), tasks_per_node(environ)
    if tasks is None or gpus is None or tasks <= gpus:
        return
    node, nodes = environ.get("SLURMD_NODENAME", "this node"), max(1, len(counts))
    fewer = f"start {gpus} (--ntasks-per-node={gpus} --set train.world_size={gpus * nodes})"
    uneven = ""
    if len(set(counts)) > 1:
        uneven = f", and the tasks lie unevenly on the nodes (SLURM_STEP_TASKS_PER_NODE = {counts})"
        fewer = "spread them evenly (--ntasks-per-node)"
    raise HpcrlError(
        f"{tasks} ranks on {node} need a GPU each, but Slurm granted {gpus} there (SLURM_GPUS_ON_NODE = "
        f"{gpus}){uneven}; ask for as many GPUs as tasks (sbatch --ntasks-per-node={tasks} "
        f"--gres=gpu:{tasks}), or {fewer}, or train on CPUs (--set engine.device=cpu)"
    )


def check_visible(count: int, environ: Mapping[str, str] = os.environ) -> None:
    """RunFailed if a task sees fewer GPUs than Slurm gave it: one has failed, or a container hides it."""
    given = [part for part in environ.get("SLURM_STEP_GPUS", "").split(",") if part]
    if count < len(given):
        raise RunFailed(
            f"Slurm gave this task {len(given)} GPUs of {environ.get('SLURMD_NODENAME', 'this node')} "
            f"(SLURM_STEP_GPUS = {','.join(given)}), but torch sees {count}; look at nvidia-smi there, or "
            "leave that node out (sbatch --exclude)"
        )


def _check_one_process(env: Mapping[str, str]) -> None:
    """A batch script whose srun was forgotten would train with one of its tasks and leave the others idle.

    A person in salloc's shell may well try something with one process.
    """
    tasks = env.get("SLURM_NTASKS", "")
    if env.get("ENVIRONMENT") == "BATCH" and "SLURM_JOB_ID" in env and tasks.isdigit() and int(tasks) > 1:
        raise HpcrlError(
            f"this job has {tasks} tasks (SLURM_NTASKS), but hpcrl was started once, as one process; put "
            "srun in front of it, or ask for one task (sbatch --ntasks=1, and --ranks for local ones)"
        )
