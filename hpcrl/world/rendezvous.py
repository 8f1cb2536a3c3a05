"""Where the ranks meet, and the meeting: several nodes, several attempts at one job, ranks that never come.

The address is rank 0's node, the port follows from job, step and attempt, so that jobs on one node, the tasks
of an array and a port that an earlier attempt still holds do not get in each other's way. Each attempt meets
under a name of its own: a rank of an earlier one that lives on is never taken for one of this.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.slurm import restart_count, run_slurm

if TYPE_CHECKING:
    import torch

    from hpcrl.world.ranks import Launcher, Ranks

MEET_SECONDS = 300.0
"""What the ranks may come apart: Python and torch load slowly from a busy file system. Guessed."""
ENDLESS = timedelta(days=30)
"""How long a collective waits once the ranks have met. Hangs are the watchdog's business: it tells a job that
Slurm suspended from one that hangs, which gloo's and nccl's own limits (30 and 10 minutes) do not."""

# Below the usual ephemeral ports (32768 up), above the registered services that clusters run.
_PORT_BASE, _PORT_SPAN = 15_000, 15_000
# Primes: neighbouring jobs, steps and attempts come to different ports.
_PER_JOB, _PER_ATTEMPT = 7, 4001


def number(env: Mapping[str, str], key: str) -> int:
    """A variable that holds a whole number; HpcrlError if it does not."""
    value = env.get(key, "")
    if not re.fullmatch(r"\d+", value):
        raise HpcrlError(f"environment variable {key} = {value!r} must be a whole number from 0 up")
    return int(value)


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
        return host, number(env, "MASTER_PORT")
    # Each task of an array has a SLURM_JOB_ID of its own.
    seed = number(env, "SLURM_JOB_ID") * _PER_JOB + number(env, "SLURM_STEP_ID")
    return host, _PORT_BASE + (seed + restart_count(env) * _PER_ATTEMPT) % _PORT_SPAN


def attempt_name(launcher: Launcher, env: Mapping[str, str] | None = None) -> str:
    """What only the ranks of this step of this attempt know as theirs."""
    env = os.environ if env is None else env
    if launcher != "slurm":
        return "ranks"
    return f"job {env['SLURM_JOB_ID']} step {env['SLURM_STEP_ID']} restart {restart_count(env)}"


def resolved(host: str, launcher: Launcher) -> str:
    """``host`` if this machine can resolve it, else the address that Slurm has for the node of that name.

    HpcrlError at once where neither is known; torch would try for five minutes.
    """
    reason = _unresolved(host)
    if reason is None:
        return host
    if launcher == "slurm":
        try:
            found = re.search(r"\bNodeAddr=(\S+)", run_slurm(["scontrol", "show", "node", host]))
        except HpcrlError:
            found = None
        if found and _unresolved(found[1]) is None:
            return found[1]
    raise HpcrlError(
        f"the ranks cannot meet at {host!r}: {socket.gethostname()} cannot resolve that name "
        f"({reason}); {_by_hand('MASTER_ADDR', launcher)}, an address of rank 0's node"
    )


def _unresolved(host: str) -> str | None:
    """Why the name means nothing here; None if it does."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return error.strerror or str(error)
    return None


def meet(ranks: Ranks, host: str, port: int, device: torch.device, backend: str) -> None:
    """Join the default process group once all ranks are there, and see alike devices. Collective.

    RunFailed after ``MEET_SECONDS``, with the ranks that did not come. The group then waits ``ENDLESS``.
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    os.environ.setdefault("MASTER_ADDR", host)  # for whoever else asks
    os.environ.setdefault("MASTER_PORT", str(port))
    limit, where = timedelta(seconds=MEET_SECONDS), f"{host}:{port}"
    # torchrun's own agent keeps the store for its ranks.
    serves = ranks.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        server = dist.TCPStore(host, port, ranks.size, serves, limit, wait_for_workers=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(_no_way(ranks, where, serves, _first_line(error))) from error
    store = dist.PrefixStore(attempt_name(ranks.launcher), server)
    try:
        _wait_for_all(store, ranks, device, where, limit)
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=limit)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(
            f"rank {ranks.rank} of {ranks.size} cannot meet the others at {where}: {_first_line(error)}; if "
            "none ended before, name the network between the nodes (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
        ) from error
    server.set_timeout(ENDLESS)
    c10d._set_pg_timeout(ENDLESS)
    # DeepSpeed makes groups of its own, with torch's defaults.
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = ENDLESS


def _no_way(ranks: Ranks, where: str, serves: bool, reason: str) -> str:
    if not serves:
        return f"rank {ranks.rank} of {ranks.size} cannot reach rank 0 at {where}: {reason}"
    return (
        f"rank 0 of {ranks.size} cannot open {where}, where the others would meet it: {reason}; if another "
        f"program holds that port, {_by_hand('MASTER_PORT', ranks.launcher)}"
        + (", or start a new job: it comes to another port" if ranks.launcher == "slurm" else "")
    )


def _by_hand(variable: str, launcher: Launcher) -> str:
    """How to say it oneself: the shell that calls sbatch hands on what the script's --export names only."""
    where = "above srun in the job's script" if launcher == "slurm" else "for every rank"
    return f"export {variable}=... {where}"


def _wait_for_all(store: Any, ranks: Ranks, device: torch.device, where: str, limit: timedelta) -> None:
    import torch.distributed as dist

    keys = [f"rank {rank}" for rank in range(ranks.size)]
    store.set(keys[ranks.rank], f"{device.type} {socket.gethostname()}")
    if store.add("arrived", 1) == ranks.size:
        store.set("all", "")
    try:
        store.wait(["all"], limit)
    except dist.DistStoreError:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise RunFailed(
            f"{ranks.size - len(missing)} of {ranks.size} ranks met at {where} within {limit.seconds} s; "
            f"missing: rank {_some(missing)}. Look for what they wrote; who cannot reach that address says so"
        ) from None
    found = [value.decode().split(" ", 1) for value in store.multi_get(keys)]
    without = [(rank, host) for rank, (kind, host) in enumerate(found) if kind == "cpu"]
    if 0 < len(without) < ranks.size:
        raise HpcrlError(
            f"rank {_some([rank for rank, _ in without])} (on {without[0][1]}) sees no CUDA device, the "
            "others do; leave that node out (sbatch --exclude), or train on CPUs (--set engine.device=cpu)"
        )


def _some(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:16])) + (" ..." if len(ranks) > 16 else "")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
