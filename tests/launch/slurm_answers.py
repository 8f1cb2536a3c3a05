"""Slurm's programs, answering with what a real Slurm (22.05) printed; the real ones are in tests/cluster."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

SHOWN = """JobId={job} JobName=hpcrl
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=2026-11-23T01:34:02 EndTime={end} Deadline=N/A
   PreemptEligibleTime=2026-11-23T01:34:02 PreemptTime={preempted}
   Command=/home/me/slurm/train.sbatch --config yaml/train_8gpu.yaml
   WorkDir=/home/me
   StdOut=/home/me/hpcrl_{job}.log

"""


class Answers:
    """Programs in ``folder``, the only ones that the process finds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def program(self, name: str, script: str) -> None:
        path = self.folder / name
        calls = shlex.quote(str(self.folder / "calls"))
        path.write_text(f'#!/bin/sh\nPATH=/bin:/usr/bin\necho "{name} $*" >> {calls}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def says(self, name: str, text: str = "", code: int = 0) -> None:
        """``text`` on stdout, or with an exit code on stderr."""
        (self.folder / f"{name}.txt").write_text(text)
        to = " >&2" if code else ""
        self.program(name, f"cat {shlex.quote(str(self.folder))}/{name}.txt{to}\nexit {code}")

    def scontrol(self, refuses: str = "", **fields: object) -> None:
        """``scontrol show job`` with these fields; requeue succeeds unless it ``refuses``."""
        known = {"job": "12", "state": "RUNNING", "reason": "None", "restarts": 0, "end": "Unknown"}
        text = SHOWN.format(**(known | {"preempted": "None"} | fields))
        (self.folder / "shown.txt").write_text(text)
        no = f"echo {shlex.quote(refuses)} >&2; exit 1" if refuses else "exit 0"
        shown = shlex.quote(str(self.folder / "shown.txt"))
        self.program("scontrol", f"case $1 in requeue) {no} ;; show) cat {shown} ;; esac")

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []
