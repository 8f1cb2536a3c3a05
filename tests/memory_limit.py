"""Memory that ends in this process."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def room_for(mib: int) -> Iterator[None]:
    """This process may hold so much more address space than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
