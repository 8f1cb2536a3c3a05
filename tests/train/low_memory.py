"""hpcrl, whose memory ends at a chosen moment: run by test_out_of_memory.py.

python low_memory.py PHASE EPOCH RANK MIB ARGUMENTS

From the watchdog's beat of PHASE in EPOCH on, rank RANK may hold MIB more address space than it has.
"""

from __future__ import annotations

import os
import resource
import sys

import psutil

from hpcrl.cli import main
from hpcrl.monitor.watchdog import Watchdog

PHASE, EPOCH, RANK, MIB = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
beat = Watchdog.beat


def limited(self: Watchdog, phase: str, epoch: int) -> None:
    beat(self, phase, epoch)
    if (phase, epoch, os.environ.get("RANK", "0")) == (PHASE, EPOCH, RANK):
        most = psutil.Process().memory_info().vms + MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


Watchdog.beat = limited  # type: ignore[method-assign]
sys.argv = ["hpcrl", *sys.argv[5:]]
main()
