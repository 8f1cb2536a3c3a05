"""A checkpoint by the path a user gives: a run folder, or one checkpoint_epoch_X.pt in it. Not collective."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hpcrl.checkpoint.contents import load_plain
from hpcrl.checkpoint.manifest import Manifest
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

FORMAT = 1
"""Of the portable snapshot."""
KEYS = (
    "format", "epoch", "env_steps", "attempt", "model", "return_scale", "feature_scaler", "pbt",
    "config", "data", "n_entries", "n_assets",
)  # fmt: skip
"""What a portable snapshot holds; see ``train.Trainer.portable``."""
_NAME = re.compile(r"checkpoint_epoch_\d+\.pt")


def load_portable(path: Path, epoch: int | None = None) -> tuple[Path, dict[str, Any]]:
    """(file, contents) of the portable snapshot at ``path``, checked against its manifest.

    A folder means its newest checkpoint, or the one of ``epoch``. HpcrlError or RunFailed naming
    what is missing, truncated or altered.
    """
    path = Path(path)
    if path.is_dir():
        file, refused = find_portable(RunDir.open(path), epoch)
        if refused:  # the user meant the newest; an older one is theirs to choose
            raise RunFailed(f"{refused[0]}; name a checkpoint file to take another, for example {file}")
        return file, read_portable(file)
    if not path.exists():
        raise HpcrlError(f"{path}: no such run folder or checkpoint")
    if not _NAME.fullmatch(path.name):
        raise HpcrlError(f"{path}: expected a run folder or a file checkpoint_epoch_X.pt")
    manifest = path.with_suffix(".json")
    if not manifest.exists():
        raise HpcrlError(f"{path}: has no manifest {manifest.name} beside it, so it was never committed")
    Manifest.read(manifest).check_file(path.parent, path.name)
    return path, read_portable(path)


def find_portable(run: RunDir, epoch: int | None = None) -> tuple[Path, list[str]]:
    """The portable file of ``epoch``, or of the newest good checkpoint, and what was refused on the way.

    Rank states are not looked at: a folder copied without them can still be played.
    """
    there = run.manifest_epochs()
    if epoch is not None:
        if epoch not in there:
            known = ", ".join(map(str, sorted(there))) or "none"
            raise HpcrlError(f"{run.path}: no checkpoint of epoch {epoch}; there are {known}")
        Manifest.read(run.manifest(epoch)).check_file(run.path, run.portable(epoch).name)
        return run.portable(epoch), []
    refused: list[str] = []
    for found in there:
        try:
            Manifest.read(run.manifest(found)).check_file(run.path, run.portable(found).name)
            return run.portable(found), refused
        except RunFailed as error:
            refused.append(f"checkpoint of epoch {found} refused: {error}")
    reason = f" ({refused[0]})" if refused else " yet"
    raise HpcrlError(f"{run.path}: no whole checkpoint{reason}")


def read_portable(file: Path) -> dict[str, Any]:
    """The contents of a portable file; RunFailed if it is another file, or of another format."""
    return check_portable(load_plain(file), str(file))


def check_portable(saved: dict[str, Any], name: str) -> dict[str, Any]:
    if saved.get("format", FORMAT) != FORMAT:
        raise RunFailed(f"{name}: format {saved['format']!r}, this version reads format {FORMAT}")
    missing = [key for key in KEYS if key not in saved]
    if missing:
        raise RunFailed(f"{name}: not a checkpoint of hpcrl (it lacks {', '.join(missing)})")
    return saved
