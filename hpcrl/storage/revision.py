"""Which code this is, for the record of a run or a data set."""

from __future__ import annotations

import subprocess
from pathlib import Path

import hpcrl


def git_commit() -> str:
    """Commit of the checkout that the package runs from, with "+changes" where files differ.

    "" for an installed package: the repository that its environment lies in is not its own.
    """
    folder = Path(hpcrl.__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return ""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
