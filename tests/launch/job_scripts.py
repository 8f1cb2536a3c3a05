"""Job scripts run by bash as a job runs them, in a repository with odd characters in its path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = 'it\'s a "repository"'
# Puts what it was called with, and its environment, into NAME.called and NAME.environ, then ends as told.
RECORDER = """#!/usr/bin/env bash
name=$RECORDS/$(basename "$0")
printf '%s\\n' "$@" > "$name.called"
env -0 > "$name.environ"
code=${name##*/}_code
exit "${!code:-0}"
"""


def exported(script: Path) -> list[str]:
    """What of the submitting shell's environment travels."""
    (names,) = re.findall(r"^#SBATCH --export=(\S+)$", script.read_text(), re.M)
    return names.split(",")


def late_directives(script: Path) -> list[str]:
    """Those that sbatch does not see, because they stand behind the first command."""
    lines = script.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    return [line for line in lines[first:] if line.startswith("#SBATCH")]


def executable(path: Path, text: str = RECORDER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Repository:
    """The parts of a clone that a job script reads; hpcrl, its python and Slurm's commands are recorders."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER
        self.records = folder / "records"
        self.records.mkdir(parents=True)
        self.bin = self.path / ".venv/bin"
        for part in ("slurm", "env_modules", "yaml"):
            shutil.copytree(ROOT / part, self.path / part)
        (self.path / "hpcrl").mkdir()
        shutil.copy(ROOT / "hpcrl/__init__.py", self.path / "hpcrl")
        for name in ("hpcrl", "python"):
            executable(self.bin / name)
        self.commands = folder / "commands"
        executable(self.commands / "srun")
        executable(
            self.commands / "scontrol", "#!/bin/sh\nprintf '   Command=%s\\n   WorkDir=/\\n' \"$COMMAND\"\n"
        )
        self.spool = folder / "spool"
        self.spool.mkdir()

    def start(
        self, script: str, *arguments: str, cwd: Path, command: str | None = None, **environ: str
    ) -> subprocess.Popen[str]:
        """slurm/SCRIPT as Slurm runs it, from the spool folder. ``command``: what the job's record says."""
        copy = self.spool / "slurm_script"
        shutil.copy(self.path / "slurm" / script, copy)
        base = {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "HOME": str(cwd),
            "RECORDS": str(self.records),
            "COMMAND": command or f"{self.path}/slurm/{script} {' '.join(arguments)}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_SUBMIT_DIR": str(cwd),
            "HPCRL_MODULES": "none",
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["bash", copy, *arguments], cwd=cwd, env=base | environ, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, script: str, *arguments: str, **rest: Any) -> subprocess.CompletedProcess[str]:
        """The same to its end."""
        process = self.start(script, *arguments, **rest)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return subprocess.CompletedProcess(script, process.returncode, out, err)

    def called(self, name: str) -> list[str] | None:
        """The arguments of the recorder, None if nobody called it."""
        path = self.records / f"{name}.called"
        return path.read_text().splitlines() if path.exists() else None

    def environ(self, name: str) -> dict[str, str]:
        entries = (self.records / f"{name}.environ").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)
