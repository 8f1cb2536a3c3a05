"""What submitit calls in a job: ``python -m hpcrl ARGUMENTS`` in that process, with the same exit code.

The pickle holds the arguments as strings, and nothing else. submitit's own signal handlers would save on rank
0 alone; ours stand before its imports and take their place after them. submitit writes its result only for
exit code 0 in a job of one process: how a run went, ``hpcrl status`` tells.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from types import FrameType

from hpcrl.world.ranks import LAUNCHER_PID
from hpcrl.world.stop import install_early

_HANDED_ON = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


def run(*arguments: str) -> int:
    """Returns 0, or in a local job the exit code; every other code of a Slurm job ends the process."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return _run_child(arguments)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    if arguments[0] == "train":
        install_early()
    sys.argv = ["hpcrl", *arguments]
    try:
        runpy.run_module("hpcrl", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    return 0


def _run_child(arguments: tuple[str, ...]) -> int:
    """As one rank of the local executor, which hands on no exit codes: they travel as results.

    Ctrl-C reaches the child from the terminal; the other signals are handed on.
    """
    from submitit import JobEnvironment

    job, environment = JobEnvironment(), dict(os.environ)
    if job.num_tasks > 1:
        environment |= {"RANK": str(job.global_rank), "WORLD_SIZE": str(job.num_tasks)}
        environment |= {"LOCAL_RANK": str(job.local_rank), "LOCAL_WORLD_SIZE": str(job.num_tasks)}
    environment[LAUNCHER_PID] = str(os.getpid())  # the rank ends when this process is killed
    child: subprocess.Popen | None = None
    waiting: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if child is None:
            waiting.append(number)
        else:
            child.send_signal(number)

    for number in _HANDED_ON:
        signal.signal(number, hand_on)
    child = subprocess.Popen([sys.executable, "-m", "hpcrl", *arguments], env=environment)
    for arrived in waiting:
        child.send_signal(arrived)
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":  # a rank of a training job: python -m hpcrl.launch.task FOLDER
    install_early()
    from submitit.core.submission import submitit_main

    submitit_main()
