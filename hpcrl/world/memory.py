"""Out of memory, on a GPU or in the host's: which errors say so, and what this rank had and asked for.

Torch-free at import. Numbers are bytes.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from hpcrl.types import RunFailed

if TYPE_CHECKING:
    import torch

    from hpcrl.world.world import World

GIB = 2**30
# CUDA's allocator, its driver and libraries; torch's allocator of the host, C++'s, and the system's own word.
_GPU = re.compile(r"cuda.*out of memory|_ALLOC_FAILED", re.I)
_HOST = re.compile(r"can't allocate memory|bad_alloc|cannot allocate memory|unable to allocate")
_ASKED = re.compile(r"(?:Tried|tried|Unable) to allocate (?P<size>[\d.]+) (?P<unit>bytes|[KMGTP]i?B)")
# At the moment of the failure; what is told later lacks what has been freed since.
_IN_TENSORS = re.compile(r"(?P<size>[\d.]+) (?P<unit>[KMGTP]iB|bytes) is allocated by PyTorch")
_SPARE = re.compile(r"(?P<size>[\d.]+) (?P<unit>[KMGTP]iB|bytes) is reserved by PyTorch but unallocated")
_UNITS = {"bytes": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


@dataclass(frozen=True)
class Shortage:
    """What a rank had when memory ran out."""

    rank: int
    node: str
    device: str
    """cuda:1 and its name, or "host memory"."""
    on_gpu: bool
    asked: int
    """0: not told."""
    used: int
    """By this process: of the GPU's memory by tensors, of the host's all it holds."""
    total: int
    """What there is; 0: not known."""
    spare: int = 0
    """Of a GPU: reserved by torch's allocator, and in no tensor."""
    others: int = 0
    """Of a GPU: in use by other processes, and by CUDA itself."""
    limit: str = ""
    """Of the host's memory: what sets ``total``."""

    def __str__(self) -> str:
        head = f"out of memory on rank {self.rank} ({self.device} of {self.node}): "
        head += f"{size(self.asked)} asked for, " if self.asked else ""
        if not self.on_gpu:
            return f"{head}{size(self.used)} in use of {size(self.total)} ({self.limit})"
        parts = [f"{size(self.used)} of {size(self.total)} in tensors"]
        parts += [f"{size(self.spare)} reserved and in none"] if self.spare else []
        parts += [f"{size(self.others)} held by CUDA and other processes"] if self.others else []
        return head + ", ".join(parts)


class OutOfMemory(RunFailed):
    """A rank's memory does not suffice. The same would happen again."""

    def __init__(self, shortage: Shortage, text: str = "") -> None:
        super().__init__(text or str(shortage))
        self.shortage = shortage


def size(count: int) -> str:
    """3_221_225_472 -> "3.00 GiB"."""
    for unit, one in (("GiB", GIB), ("MiB", 2**20)):
        if count >= one:
            return f"{count / one:,.{2 if count < 100 * one else 0}f} {unit}"
    return f"{count:,} bytes"


def shortage_of(error: BaseException, world: World) -> Shortage | None:
    """What the error says of memory and this process has of it; None for any other error."""
    if isinstance(error, OutOfMemory):
        return error.shortage
    text, raised = str(error), isinstance(error, RuntimeError)
    on_gpu = type(error).__name__ == "OutOfMemoryError" or (raised and _GPU.search(text) is not None)
    on_host = isinstance(error, MemoryError) or (raised and _HOST.search(text) is not None)
    on_host = on_host or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not (on_gpu or on_host):
        return None
    if on_gpu and world.device.type == "cuda":
        return _of_gpu(text, world.rank, world.device)
    used, total, limit = _host()
    asked = _told(_ASKED, text) or 0
    return Shortage(world.rank, socket.gethostname(), "host memory", False, asked, used, total, limit=limit)


def _told(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(float(found["size"]) * _UNITS[found["unit"].rstrip("iB")]) if found else None


def _of_gpu(text: str, rank: int, device: torch.device) -> Shortage:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    used, spare = _told(_IN_TENSORS, text), _told(_SPARE, text)
    if used is None or spare is None:  # not torch's allocator, but the driver or a library
        used = torch.cuda.memory_allocated(device)
        spare = reserved - used
    name = f"{device}, {torch.cuda.get_device_name(device)},"
    others = max(0, total - free - reserved)
    asked = _told(_ASKED, text) or 0
    return Shortage(rank, socket.gethostname(), name, True, asked, used, total, spare, others)


def _host() -> tuple[int, int, str]:
    """In use, what may be in use, and what says so: the tightest of ulimit -v, the cgroup and the machine."""
    memory = psutil.Process().memory_info()
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    machine = psutil.virtual_memory()
    found = [(memory.rss, machine.total, f"the machine's; {size(machine.available)} of it available")]
    if (group := _cgroup_limit()) is not None:
        found.append((memory.rss, group, "the limit of its cgroup, that of the job's --mem"))
    if allowed != resource.RLIM_INFINITY:
        found.append((memory.vms, allowed, "address space, ulimit -v"))
    return min(found, key=lambda each: each[1] - each[0])


def _cgroup_limit() -> int | None:
    """Of this process, or of a folder above it, as far as it can see them (version 2)."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
    except (OSError, StopIteration):
        return None
    folder = Path("/sys/fs/cgroup") / own[3:].lstrip("/")
    limits = []
    for each in (folder, *folder.parents):
        try:
            limits.append(int((each / "memory.max").read_text()))
        except (OSError, ValueError):  # "max": none
            continue
        if os.path.samefile(each, "/sys/fs/cgroup"):
            break
    return min(limits, default=None)
