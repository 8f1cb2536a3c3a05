"""Out of memory, on a GPU or in the host's: which errors say so, and what this rank had and asked for.

Torch-free at import. Numbers are bytes.
"""

from __future__ import annotations

import contextlib
import errno
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
_DISK = re.compile(r"no space left", re.I)  # /dev/shm is full: files, and no memory of the process
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
    """By this process: of the GPU's memory by tensors, of the host's all it holds, or its cgroup."""
    total: int
    """What there is; 0: not known, nor what is used."""
    spare: int = 0
    """Of a GPU: reserved by torch's allocator, and in no tensor."""
    others: int = 0
    """Of a GPU: in use by other processes, and by CUDA itself."""
    limit: str = ""
    """Of the host's memory: what sets ``total``."""

    def __str__(self) -> str:
        head = f"out of memory on rank {self.rank} ({self.device} of {self.node}): "
        head += f"{size(self.asked)} asked for, " if self.asked else ""
        if not self.total:
            return f"{head}what is in use could not be measured"
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
    if not ran_out(error):
        return None
    on_gpu = _on_gpu(error) and world.device.type == "cuda"
    device = str(world.device) if on_gpu else "host memory"
    try:
        text = str(error)
        if on_gpu:
            return _of_gpu(text, world.rank, world.device)
        used, total, limit = _host()
        asked = _told(_ASKED, text) or 0
        return Shortage(world.rank, socket.gethostname(), device, False, asked, used, total, limit=limit)
    except Exception:  # to measure takes memory, too, and a device that answers
        return Shortage(world.rank, socket.gethostname(), device, on_gpu, 0, 0, 0)


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out."""
    if isinstance(error, OutOfMemory | MemoryError) or _on_gpu(error):
        return True
    if isinstance(error, RuntimeError):
        text = str(error)
        return _HOST.search(text) is not None and _DISK.search(text) is None
    return isinstance(error, OSError) and error.errno == errno.ENOMEM


def _on_gpu(error: BaseException) -> bool:
    said = isinstance(error, RuntimeError) and _GPU.search(str(error)) is not None
    return said or type(error).__name__ == "OutOfMemoryError"


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
    """In use, what may be in use, and what says so: ulimit -v, or the tighter of the cgroup and the machine.

    Only ulimit -v makes an allocation fail as a rule: where a cgroup's memory ends, the system kills.
    """
    memory = psutil.Process().memory_info()
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        return memory.vms, allowed, "address space, ulimit -v"
    machine = psutil.virtual_memory()
    group = min(_cgroups(), key=lambda each: each[1] - each[0], default=None)
    if group is not None and group[1] - group[0] < machine.available:
        return *group, "all processes of its cgroup, and its limit, that of the job's --mem"
    return memory.rss, machine.total, f"the machine's; {size(machine.available)} of it available"


def _cgroups(root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """In use and limit of this process's cgroup and of those above it, where there is one (version 2)."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
    except (OSError, StopIteration):
        return []
    folder, found = root / own[3:].lstrip("/"), []
    for each in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # "max": none
            found.append((int((each / "memory.current").read_text()), int((each / "memory.max").read_text())))
        if each == root:
            break
    return found
