"""A run folder: every path and file name in it, and how it comes into being. Holds no other logic.

dist_run_YYYYMMDD_HHMMSS/
  config.json                    resolved config, hashes, lineage: present from the folder's first moment
  metrics.jsonl                  one line per epoch
  tensorboard/                   the same for TensorBoard, the newest attempt's tensorboard.events
  run.lock                       held by the process that trains here
  attempts/N/                    attempt N's checkpoints and metrics, which the names here are links to
  jobs/, submission.json         what hpcrl submit made, and the logs of its jobs
  checkpoint_epoch_X.pt          portable snapshot; X = finished epochs, unpadded
  checkpoint_epoch_X.rank_R.pt   rank R's environments, token histories, counters
  checkpoint_epoch_X.json        manifest, written last: what it names is the checkpoint
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hpcrl.storage.atomic import (
    check_folder,
    fsync_folder,
    temporary_path,
    temporary_target,
    write_error,
    write_text,
)
from hpcrl.types import HpcrlError

_CHECKPOINT = re.compile(
    r"^checkpoint_epoch_(?P<epoch>0|[1-9]\d*)(?:\.rank_(?P<rank>0|[1-9]\d*))?\.(pt|json)$"
)
NAME = "dist_run_%Y%m%d_%H%M%S"


@dataclass(frozen=True)
class RunDir:
    path: Path

    @classmethod
    def create(cls, parent: str | Path, config_json: str) -> RunDir:
        """Make ``parent``/dist_run_YYYYMMDD_HHMMSS (local time) with config.json in it, in one rename.

        A name that is taken moves on to the next second. RunFailed when it cannot be written.
        """
        return cls(new_folder(Path(parent), NAME, {"config.json": config_json}))

    @classmethod
    def reserve(cls, parent: str | Path) -> RunDir:
        """An empty run folder, for a job that will ``begin`` there. RunFailed when it cannot be made."""
        return cls(new_folder(Path(parent), NAME, {}))

    def begin(self, config_json: str) -> None:
        """config.json of a reserved folder. HpcrlError if it has one: then it is a run already."""
        if self.config.exists():
            raise HpcrlError(f"{self.path} holds a run already; go on with it by --resume")
        write_text(self.config, config_json)

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run folder; HpcrlError if it is missing or holds no config.json."""
        path = Path(path)
        if not path.exists():
            raise HpcrlError(f"{path}: no such run folder")
        if not path.is_dir():
            raise HpcrlError(f"{path}: a run folder was expected, this is a file")
        if not (path / "config.json").is_file():
            raise HpcrlError(f"{path}: not a run folder (it holds no config.json)")
        return cls(path.absolute())

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """An attempt's file for TensorBoard. Without ``tfevents`` in its name, by which that knows its files:
        it is to find a run once, by ``shown_events`` of the run folder."""
        return self.path / "tensorboard.events"

    def shown_events(self, attempt: int) -> Path:
        """TensorBoard reads on in the file whose name comes next."""
        return self.path / "tensorboard" / f"events.out.tfevents.{attempt:06d}"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    def portable(self, epoch: int) -> Path:
        return self.path / f"checkpoint_epoch_{epoch}.pt"

    def rank_state(self, epoch: int, rank: int) -> Path:
        return self.path / f"checkpoint_epoch_{epoch}.rank_{rank}.pt"

    def manifest(self, epoch: int) -> Path:
        return self.path / f"checkpoint_epoch_{epoch}.json"

    def manifest_epochs(self) -> list[int]:
        """Epochs that have a manifest, newest first. Says nothing about their contents."""
        found = []
        for name in os.listdir(self.path):
            match = _CHECKPOINT.match(name)
            if match and name.endswith(".json") and match["rank"] is None:
                found.append(int(match["epoch"]))
        return sorted(found, reverse=True)

    def checkpoint_files(self) -> dict[int, set[str]]:
        """Epoch -> names of its .pt files on disk, with or without a manifest."""
        found: dict[int, set[str]] = {}
        for name in os.listdir(self.path):
            match = _CHECKPOINT.match(name)
            if match and name.endswith(".pt"):
                found.setdefault(int(match["epoch"]), set()).add(name)
        return found

    def checkpoint_temporaries(self) -> list[Path]:
        """Temporary files that stand for a checkpoint's file or manifest, whoever wrote them."""
        found = []
        for name in sorted(os.listdir(self.path)):
            target = temporary_target(name)
            if target is not None and _CHECKPOINT.match(target):
                found.append(self.path / name)
        return found


def new_folder(parent: Path, pattern: str, files: dict[str, str]) -> Path:
    """Make ``parent``/NAME with ``files`` in it, in one rename; NAME is ``pattern`` filled with local time.

    A name that is taken moves on to the next second. RunFailed when it cannot be written.
    """
    check_folder(parent)
    moment = datetime.now()
    staged = temporary_path(parent / pattern.partition("%")[0].strip("_"))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir()
    except OSError as error:
        raise write_error(parent / moment.strftime(pattern), error) from error
    try:
        for name, text in files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(staged / name, text)
        while not _claim(staged, parent / moment.strftime(pattern)):
            moment += timedelta(seconds=1)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(parent / moment.strftime(pattern), error) from error
        raise
    fsync_folder(parent)
    return (parent / moment.strftime(pattern)).absolute()


def _claim(staged: Path, target: Path) -> bool:
    """Rename the staged folder to ``target`` unless that name is taken."""
    if target.exists():  # rename would silently replace an empty folder
        return False
    with contextlib.suppress(FileExistsError):
        try:
            os.rename(staged, target)
            return True
        except OSError as error:
            if not target.exists():
                raise error
    return False
