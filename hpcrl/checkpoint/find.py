"""A checkpoint by the path a user gives: a run folder, or one checkpoint_epoch_X.pt in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hpcrl.checkpoint.contents import load_plain
from hpcrl.checkpoint.manifest import Manifest
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

_NAME = re.compile(r"checkpoint_epoch_(\d+)\.pt")


def load_portable(path: Path, epoch: int | None = None) -> tuple[Path, dict[str, Any]]:
    """(file, contents) of the portable snapshot at ``path``, checked against its manifest; not collective.

    A folder means its newest good checkpoint, or the one of ``epoch``. HpcrlError or RunFailed naming
    what is missing, truncated or altered.
    """
    path = Path(path)
    if path.is_dir():
        file = _newest(RunDir.open(path), epoch)
    elif not path.exists():
        raise HpcrlError(f"{path}: no such run folder or checkpoint")
    elif not _NAME.fullmatch(path.name):
        raise HpcrlError(f"{path}: expected a run folder or a file checkpoint_epoch_X.pt")
    else:
        file = path
    manifest = file.with_suffix(".json")
    if not manifest.exists():
        raise HpcrlError(f"{file}: has no manifest {manifest.name} beside it, so it was never committed")
    Manifest.read(manifest).check_file(file.parent, file.name)
    return file, load_plain(file)


def _newest(run: RunDir, epoch: int | None) -> Path:
    epochs = run.manifest_epochs()
    if epoch is not None:
        if epoch not in epochs:
            there = ", ".join(map(str, sorted(epochs))) or "none"
            raise HpcrlError(f"{run.path}: no checkpoint of epoch {epoch}; there are: {there}")
        return run.portable(epoch)
    reasons = []
    for found in epochs:
        try:
            Manifest.read(run.manifest(found)).check_file(run.path, run.portable(found).name)
            return run.portable(found)
        except RunFailed as error:
            reasons.append(str(error))
    raise HpcrlError(
        f"{run.path}: no usable checkpoint" + (f" ({'; '.join(reasons)})" if reasons else " yet")
    )
