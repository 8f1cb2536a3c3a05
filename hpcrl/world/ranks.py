"""Which rank this process is, from torchrun's or Slurm's variables; joining the ranks, and leaving them.

Reading the ranks needs no torch, so a mistaken launch is told before the slow imports.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from hpcrl.types import HpcrlError, RunFailed

if TYPE_CHECKING:
    import torch

    from hpcrl.world.world import World

Launcher = Literal["none", "torchrun", "slurm"]

# Steps that Slurm numbers from 0xfffffff0 up are no srun steps: batch, extern, interactive (salloc's shell).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Below the usual ephemeral ports (32768 up), above the registered services that clusters run.
_PORT_BASE, _PORT_SPAN = 15_000, 15_000


LAUNCHER_PID = "HPCRL_LAUNCHER_PID"
"""Set by ``hpcrl train --ranks K`` for its ranks."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Ranks(NamedTuple):
    rank: int
    size: int
    local_rank: int
    launcher: Launcher


def _number(env: Mapping[str, str], key: str) -> int:
    value = env.get(key, "")
    if not re.fullmatch(r"\d+", value):
        raise HpcrlError(f"environment variable {key} = {value!r} must be a whole number from 0 up")
    return int(value)


def in_slurm_step(env: Mapping[str, str] | None = None) -> bool:
    """True for a task that srun started; a batch script or salloc's shell has variables, but is no task."""
    env = os.environ if env is None else env
    if not {"SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"} <= env.keys():
        return False
    return _number(env, "SLURM_STEP_ID") < _FIRST_SPECIAL_STEP


def read_ranks(env: Mapping[str, str] | None = None) -> Ranks:
    """(rank, size, local_rank, launcher). torchrun's variables win over Slurm's: srun may start torchrun."""
    env = os.environ if env is None else env
    if "RANK" in env:
        if "WORLD_SIZE" not in env:
            raise HpcrlError("RANK is set but WORLD_SIZE is not; a launcher sets both, or unset RANK")
        rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
        found = Ranks(rank, size, local, "torchrun")
    elif in_slurm_step(env):
        local = _number(env, "SLURM_LOCALID") if "SLURM_LOCALID" in env else 0
        found = Ranks(_number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS"), local, "slurm")
    else:
        return Ranks(0, 1, 0, "none")
    if not found.rank < found.size:
        raise HpcrlError(
            f"{found.launcher} gave rank {found.rank} of {found.size}; ranks run from 0 to size - 1"
        )
    return found


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: ``gpu[007-012,020],login1`` -> ``gpu007``."""
    depth, end = 0, len(nodelist)
    for index, char in enumerate(nodelist):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            end = index
            break
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodelist[:end].strip())
    if not host or "[" in host or "]" in host:
        raise HpcrlError(f"SLURM_JOB_NODELIST = {nodelist!r} is no list of hosts")
    return host


def rendezvous(launcher: Launcher, env: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Address and port at which the ranks meet; MASTER_ADDR and MASTER_PORT win where they are set."""
    env = os.environ if env is None else env
    missing = [key for key in ("MASTER_ADDR", "MASTER_PORT") if key not in env]
    if launcher == "torchrun" and missing:
        raise HpcrlError(
            f"RANK and WORLD_SIZE are set but {' and '.join(missing)} not; a launcher sets them all"
        )
    if "MASTER_ADDR" in env:
        host = env["MASTER_ADDR"]
    elif env.get("SLURM_STEP_NUM_NODES") == "1":
        # Slurm's name of a node need not be a name of the network.
        host = "127.0.0.1"
    else:
        # Rank 0 lives on the step's first node, which need not be the job's first.
        host = first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
    if "MASTER_PORT" in env:
        return host, _number(env, "MASTER_PORT")
    seed = _number(env, "SLURM_JOB_ID") * 7 + _number(env, "SLURM_STEP_ID")
    return host, _PORT_BASE + seed % _PORT_SPAN


def check_name(host: str) -> None:
    """HpcrlError if this machine cannot resolve ``host``; torch would try for five minutes."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise HpcrlError(
            f"the ranks cannot meet at {host!r}: {socket.gethostname()} cannot resolve that name "
            f"({error.strerror or error}); set MASTER_ADDR to an address of rank 0's node"
        ) from None


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


def _local_size(env: Mapping[str, str] | None = None) -> int:
    """Ranks on this machine as far as the launcher says, else 1; the largest if Slurm's nodes differ."""
    env = os.environ if env is None else env
    if "RANK" in env:
        return _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else 1
    # Slurm: 8(x2),4 means two nodes with eight tasks and one with four.
    tasks = re.sub(r"\(x\d+\)", "", env.get("SLURM_STEP_TASKS_PER_NODE", "")) if in_slurm_step(env) else ""
    return max((int(part) for part in tasks.split(",") if part.isdigit()), default=1)


def _device(choice: str, ranks: Ranks) -> torch.device:
    import torch

    if choice not in ("auto", "cpu", "cuda"):
        raise HpcrlError(f"engine.device = {choice!r} must be auto, cpu or cuda")
    available = choice != "cpu" and torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise HpcrlError("engine.device = cuda, but torch sees no CUDA device here; use auto or cpu")
    if not available:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # Under Slurm each task may see its own GPU only (--gpus-per-task): then it is number 0 for everyone.
    alone = ranks.launcher == "slurm" and count == 1
    index = 0 if alone else ranks.local_rank
    # All ranks of a machine look at their number, so that all of them, rank 0 included, find the mistake.
    wanted = 1 if alone else max(index + 1, _local_size())
    if wanted > count:
        raise HpcrlError(
            f"{wanted} ranks on this machine need a GPU each, but it shows {count}; start at most {count} "
            "ranks per machine (for Slurm: ask for as many GPUs as tasks), or use engine.device = cpu"
        )
    return torch.device("cuda", index)


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
    address = rendezvous(ranks.launcher) if ranks.size > 1 else None
    if address is not None:
        check_name(address[0])

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
    if address is None:
        if not dist.is_initialized():  # a notebook trains several times in one process
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            atexit.register(dist.destroy_process_group)
    else:
        host, port = address
        os.environ.setdefault("MASTER_ADDR", host)
        os.environ.setdefault("MASTER_PORT", str(port))
        try:
            dist.init_process_group(
                backend, init_method=f"tcp://{host}:{port}", rank=ranks.rank, world_size=ranks.size
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RunFailed(
                f"rank {ranks.rank} of {ranks.size} cannot meet the others at {host}:{port}: {reason}"
            ) from error
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
