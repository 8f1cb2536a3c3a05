"""The seal on the test split: every opening is one line in a journal beside the run folders, counted per data
set. Looking often and choosing by what one saw turns a test split into a training split."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

JOURNAL = "sealed_test_openings.jsonl"


def run_folder(path: str | Path) -> Path | None:
    """The run folder that a path is or lies in (or in an attempt of it), links followed; None: in no run."""
    path = Path(path)
    folders = [path.resolve()] if path.is_dir() else [path.parent.resolve(), path.resolve().parent]
    for folder in folders:
        # A checkpoint of a run may be a link to its attempt's.
        own = [folder, folder.parents[1]] if folder.parent.name == "attempts" else [folder]
        for each in own:
            if (each / "config.json").is_file():
                return each
    return None


def journal_folder(path: str | Path) -> Path:
    """Where openings for a run folder or a policy's file are logged: beside the run that it is or lies in,
    however its path is written. For a fold of a walk-forward that is where its run's are; for a file in no
    run its own folder."""
    run = run_folder(path)
    if run is None:
        path = Path(path).resolve()
        return path if path.is_dir() else path.parent
    if (run.parent / "folds.json").is_file():
        return journal_folder(run.parents[1])
    return run.parent


def open_sealed(folder: Path, data_sha256: str, run: str, epoch: int) -> tuple[int, str]:
    """Log one opening in ``folder``; (openings of this data set so far, this one included; a warning or "").

    A folder that cannot be written does not stop the evaluation, but says so.
    """
    path = folder / JOURNAL
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"data_sha256": data_sha256, "run": run, "checkpoint_epoch": epoch, "time": now})
    try:
        # One append of one short line: evaluations that run at once do not tear each other's.
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            content = (_after_torn(handle) + line + "\n").encode()
            if os.write(handle, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
        count = count_openings(folder, data_sha256)
    except OSError as error:
        reason = error.strerror or error
        return 0, f"this opening of the test split could not be logged in {path} ({reason})"
    if count < 2:
        return count, ""
    return count, (
        f"the test split of this data set has been opened {count} times (see {path}): "
        "a result chosen among several looks is better than the truth"
    )


def _after_torn(handle: int) -> str:
    """A line break where the last line has none: what a full disk tore must not swallow this one."""
    end = os.lseek(handle, 0, os.SEEK_END)
    return "\n" if end and os.pread(handle, 1, end - 1) != b"\n" else ""


def count_openings(folder: Path, data_sha256: str) -> int:
    """Lines of the journal for this data set; torn lines are skipped."""
    count = 0
    for line in (folder / JOURNAL).read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        count += isinstance(entry, dict) and entry.get("data_sha256") == data_sha256
    return count
