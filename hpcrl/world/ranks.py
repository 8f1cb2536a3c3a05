"""Which rank this process is, from torchrun's or Slurm's variables; joining the ranks, and leaving them.

Reading the ranks needs no torch, so a mistaken launch is told before the slow imports.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.allocation import check_allocation, check_visible, gpus_here, tasks_here
from hpcrl.world.rendezvous import meet, number, rendezvous, resolved

if TYPE_CHECKING:
    import torch

    from hpcrl.world.world import World

Launcher = Literal["none", "torchrun", "slurm"]

# Steps that Slurm numbers from 0xfffffff0 up are no srun steps: batch, extern, interactive (salloc's shell).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


LAUNCHER_PID = "HPCRL_LAUNCHER_PID"
"""Set by ``hpcrl train --ranks K`` for its ranks."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Ranks(NamedTuple):
    rank: int
    size: int
    local_rank: int
    launcher: Launcher


def in_slurm_step(env: Mapping[str, str] | None = None) -> bool:
    """True for a task that srun started; a batch script or salloc's shell has variables, but is no task."""
    env = os.environ if env is None else env
    if not {"SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"} <= env.keys():
        return False
    return number(env, "SLURM_STEP_ID") < _FIRST_SPECIAL_STEP


def read_ranks(env: Mapping[str, str] | None = None) -> Ranks:
    """(rank, size, local_rank, launcher). torchrun's variables win over Slurm's: srun may start torchrun."""
    env = os.environ if env is None else env
    if "RANK" in env:
        if "WORLD_SIZE" not in env:
            raise HpcrlError("RANK is set but WORLD_SIZE is not; a launcher sets both, or unset RANK")
        rank, size = number(env, "RANK"), number(env, "WORLD_SIZE")
        local = number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
        found = Ranks(rank, size, local, "torchrun")
    elif in_slurm_step(env):
        local = number(env, "SLURM_LOCALID") if "SLURM_LOCALID" in env else 0
        found = Ranks(number(env, "SLURM_PROCID"), number(env, "SLURM_STEP_NUM_TASKS"), local, "slurm")
    else:
        return Ranks(0, 1, 0, "none")
    if not found.rank < found.size:
        raise HpcrlError(
            f"{found.launcher} gave rank {found.rank} of {found.size}; ranks run from 0 to size - 1"
        )
    return found


def check_size(ranks: Ranks, world_size: int) -> None:
    """HpcrlError naming both numbers and the fix, if the launcher and the config disagree."""
    if ranks.size == world_size:
        return
    if ranks.launcher == "none":
        raise HpcrlError(
            f"train.world_size = {world_size}, but this is one process without a launcher; start it with "
            f"--ranks {world_size} (or torchrun or srun with {world_size} tasks), or --set train.world_size=1"
        )
    name = {"torchrun": "torchrun", "slurm": "srun"}[ranks.launcher]
    option = {"torchrun": "--nproc-per-node", "slurm": "--ntasks"}[ranks.launcher]
    raise HpcrlError(
        f"{name} started {ranks.size} ranks, but train.world_size = {world_size}; "
        f"use --set train.world_size={ranks.size}, or start {world_size} tasks ({option}={world_size} in all)"
    )


def _device(choice: str, ranks: Ranks) -> torch.device:
    import torch

    if choice not in ("auto", "cpu", "cuda"):
        raise HpcrlError(f"engine.device = {choice!r} must be auto, cpu or cuda")
    available = choice != "cpu" and torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise HpcrlError("engine.device = cuda, but torch sees no CUDA device here; use auto or cpu")
    if not available:
        granted = gpus_here(os.environ) if ranks.launcher == "slurm" else None
        if choice == "auto" and granted and ranks.local_rank == 0:
            print(f"WARNING: Slurm granted {granted} GPUs, but torch sees none: training on CPUs", flush=True)
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if ranks.launcher == "slurm" and gpus_here(os.environ) is not None:
        check_visible(count)
        # check_allocation found a GPU for each task of this node. Where each is bound to its own
        # (--gpus-per-task), it sees no others, and counts them from 0.
        return torch.device("cuda", ranks.local_rank % count)
    # All ranks of a machine look at their number, so that all of them, rank 0 included, find the mistake.
    wanted = max(ranks.local_rank + 1, _local_size())
    if wanted > count:
        raise HpcrlError(
            f"{wanted} ranks on this machine need a GPU each, but it shows {count}; start at most {count} "
            "ranks per machine (for Slurm: ask for as many GPUs as tasks), or use engine.device = cpu"
        )
    return torch.device("cuda", ranks.local_rank)


def _local_size(env: Mapping[str, str] | None = None) -> int:
    """Ranks on this machine as far as the launcher says, else 1."""
    env = os.environ if env is None else env
    if "RANK" in env:
        return number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else 1
    return (tasks_here(env) or 1) if in_slurm_step(env) else 1


def die_with_launcher() -> None:
    """End this rank at once when its own launcher is killed; two attempts must not write one run folder."""
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher != str(os.getppid()):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(launcher):  # it died in between
        os._exit(1)


def start_world(device_choice: str = "auto", world_size: int | None = None) -> World:
    """Join the ranks and pick the device. One process meets itself in memory: no port, no network name.

    ``world_size`` is what the config says; None skips the comparison with the launcher.
    """
    die_with_launcher()
    ranks = read_ranks()
    if world_size is not None:
        check_size(ranks, world_size)
    check_allocation(ranks, device_choice)
    if ranks.size > 1:
        host, port = rendezvous(ranks.launcher)
        host = resolved(host, ranks.launcher)

    import torch
    import torch.distributed as dist

    from hpcrl.world.world import World

    device = _device(device_choice, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo beside nccl: flags and names travel without touching the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if dist.is_initialized() and ranks.size > 1:
        raise RunFailed("the process group exists already; start_world is called once per rank")
    if ranks.size > 1:
        meet(ranks, host, port, device, backend)
    elif not dist.is_initialized():  # a notebook trains several times in one process
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)
    return World(ranks.rank, ranks.size, ranks.local_rank, device, ranks.launcher)


def stop_world(world: World, exit_code: int = 0) -> None:
    """Leave the ranks. With several ranks this ends the process with ``exit_code`` and does not return.

    gloo's threads abort now and then while the interpreter shuts down (1 in 12), which would turn a good
    run's exit code bad; hence ``os._exit`` after everything is flushed. One process has no such threads:
    it returns, and the caller ends with the code; its group stays until the interpreter ends, because
    DeepSpeed holds on to the first one that it saw.
    """
    import torch.distributed as dist

    from hpcrl.world.collectives import barrier

    agreed = exit_code in (0, 75)
    if dist.is_initialized() and world.size > 1:
        try:
            # After a failure the others may be gone or stuck: no rank waits for them.
            if agreed:
                barrier(world)
                dist.destroy_process_group()
        except RuntimeError as error:
            print(f"rank {world.rank}: leaving the process group failed: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if world.size > 1:
        os._exit(exit_code)
