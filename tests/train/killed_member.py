"""``hpcrl train ...`` that is killed without a word once it has written a given line into its journal.

killed_member.py EVENT GENERATION ARGUMENTS of hpcrl
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from hpcrl.pbt.journal import Journal

event, generation = sys.argv[1], int(sys.argv[2])
append = Journal.append


def append_and_die(self: Journal, what: str, which: int, **fields: object) -> dict:
    line = append(self, what, which, **fields)
    if (what, which) == (event, generation):
        os.kill(os.getpid(), signal.SIGKILL)
    return line


Journal.append = append_and_die  # type: ignore[method-assign]
sys.argv = ["hpcrl", *sys.argv[3:]]
runpy.run_module("hpcrl", run_name="__main__", alter_sys=True)
