"""Collectives over ranks of this node: do they meet, how fast are they, and is one of them slow?

python -m hpcrl.verify.ranks DEVICE     one rank, by RANK and WORLD_SIZE; rank 0 prints one line of JSON
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from statistics import median
from typing import Any

from hpcrl.config.root import Config
from hpcrl.verify.finding import Doubt, Trouble

SECONDS = 60.0
"""For all ranks to start, meet and measure."""
MEGABYTES = 16
WORK = 100
"""Products of each rank's own work: some 0.1 to 0.5 s."""
SLOWER = 1.5
"""A rank whose own work takes so many times the median is told."""


def check_ranks(config: Config) -> str:
    """As many ranks as this node's share, at most 8; two at least, so that collectives are tried."""
    import torch

    cuda = config.engine.device != "cpu" and torch.cuda.is_available()
    most = torch.cuda.device_count() if cuda else 2
    count = max(1 if cuda else 2, min(config.train.world_size, most, 8))
    figures = _measure(count, "cuda" if cuda else "cpu")
    spent = figures["seconds"]
    slow = max(range(count), key=spent.__getitem__)
    if count > 2 and spent[slow] > SLOWER * median(spent):
        raise Doubt(
            f"rank {slow} on {figures['nodes'][slow]} is slow: {spent[slow]:.2f} s of the same work, "
            f"the others' median is {median(spent):.2f} s",
            "look there with nvidia-smi and top for another job, heat or a power cap",
        )
    kind = "nccl" if cuda else "gloo"
    return f"{count} ranks meet over {kind}; all_reduce {figures['gigabytes_per_second']:.2f} GB/s"


def _measure(count: int, device: str) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    shared = base | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "hpcrl.verify.ranks", device]
    ranks = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    fix = "check the network interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME) and the GPUs of this node"
    try:
        dead = _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
    told = [rank.communicate() for rank in ranks]
    if dead is not None:
        said = (told[dead][1].strip().splitlines() or ["no message"])[-1][:200]
        raise Trouble(f"rank {dead} ended with code {ranks[dead].returncode}: {said}", fix)
    if any(rank.returncode for rank in ranks):
        raise Trouble(f"{count} ranks of this node do not meet within {SECONDS:.0f} s", fix)
    found: dict[str, Any] = json.loads(told[0][0].strip().splitlines()[-1])
    return found


def _wait(ranks: list[subprocess.Popen[str]]) -> int | None:
    """Until all have ended, or time is up; or the first that ended badly: the others would wait for it."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        codes = [rank.poll() for rank in ranks]
        bad = next((number for number, code in enumerate(codes) if code), None)
        if bad is not None or all(code == 0 for code in codes):
            return bad
        time.sleep(0.05)
    return None


def _rank(device: str) -> None:
    import torch
    import torch.distributed as dist

    from hpcrl.world.collectives import gather_objects
    from hpcrl.world.ranks import start_world, stop_world

    world = start_world(device)
    tensor = torch.ones(MEGABYTES * 250_000, device=world.device)
    width = 4096 if world.device.type == "cuda" else 256
    work = torch.randn(width, width, device=world.device)

    def wait() -> None:
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    def rounds(count: int) -> float:
        nonlocal work
        wait()
        start = time.perf_counter()
        for _ in range(count):
            work = torch.tanh(work @ work)
        wait()
        return time.perf_counter() - start

    rounds(5)  # libraries load, clocks rise
    own = rounds(WORK)
    times = []
    for _ in range(5):
        wait()
        start = time.perf_counter()
        if world.size > 1:
            dist.all_reduce(tensor)
        wait()
        times.append(time.perf_counter() - start)
    if not bool((tensor == float(world.size) ** 5).all()):
        raise SystemExit("all_reduce gives a wrong sum")
    ranks = gather_objects(world, (own, platform.node()))
    if world.is_main:
        figures = {
            "seconds": [seconds for seconds, _ in ranks],
            "nodes": [node for _, node in ranks],
            "gigabytes_per_second": MEGABYTES / 1e3 / max(median(times), 1e-9),
        }
        print(json.dumps(figures), flush=True)
    stop_world(world)


if __name__ == "__main__":
    _rank(sys.argv[1])
