"""Where a run writes: the shared storage, the scratch space, and room for checkpoints and a population."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcrl.config.root import Config
from hpcrl.verify.finding import Doubt, Trouble

SLOW_SYNC = 0.5
"""Seconds of an fsync of 1 MB: slower ones make each checkpoint a wait."""
KEPT = 3
"""Checkpoints that there must be room for: two rolling ones and the one that is being written."""


def nearest_folder(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


@contextmanager
def probe_folder(path: Path) -> Iterator[Path]:
    """An empty folder of our own where runs will be; gone afterwards. Trouble where it cannot be made."""
    base = nearest_folder(path)
    for part in (path.absolute(), *path.absolute().parents):
        if part.exists() and not part.is_dir():
            raise Trouble(f"{part} is a file, a folder is needed there", "set checkpoint.dir to a folder")
    try:
        folder = tempfile.mkdtemp(dir=base, prefix=".hpcrl_verify_")
    except OSError as error:
        fix = "mount it writable, or set checkpoint.dir to a folder that this user may write"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free space or quota there, or set checkpoint.dir to another place"
        raise Trouble(f"{base}: cannot be written: {error.strerror}", fix) from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_storage(config: Config) -> str:
    """Write, sync, rename over, hard link, append: what checkpoints and attempts rely on."""
    place = Path(config.checkpoint.dir)
    with probe_folder(place) as folder:
        old, new = folder / "old", folder / "new"
        seconds = _written(old), _written(new)
        os.replace(new, old)
        if new.exists() or not old.exists():
            raise Trouble(f"{folder.parent}: a rename over a file is not atomic there", _other_place())
        try:
            os.link(old, folder / "link")
        except OSError as error:
            raise Doubt(
                f"{folder.parent}: no hard links there ({error.strerror}): snapshots and resumed attempts "
                "copy checkpoints",
                "works, and takes more room and time; a file system with hard links is better",
            ) from None
        slowest = max(seconds)
    if slowest > SLOW_SYNC:
        raise Doubt(f"{folder.parent}: 1 MB takes {slowest:.1f} s to be safe on disk", _other_place())
    return f"{folder.parent}: rename, hard link; 1 MB safe in {1000 * slowest:.0f} ms"


def _other_place() -> str:
    return "set checkpoint.dir to a folder on storage meant for jobs"


def _written(path: Path) -> float:
    """Seconds for 1 MB, synced."""
    start = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Trouble(
            f"{path.parent.parent}: 1 MB cannot be written: {error.strerror}",
            "free space or quota there, or set checkpoint.dir to another place",
        ) from None
    return time.perf_counter() - start


def check_room(config: Config, checkpoint_bytes: int, members: int = 1) -> str:
    """Free space against what this run, or each of ``members``, will keep."""
    place = nearest_folder(Path(config.checkpoint.dir))
    free = shutil.disk_usage(place).free
    kept = config.train.epochs // config.checkpoint.every_epochs + config.checkpoint.keep_rolling + 1
    needed = kept * checkpoint_bytes * members
    least = KEPT * checkpoint_bytes * members
    said = (
        f"{place}: {free / 2**30:,.1f} GiB free; {kept} checkpoints of {checkpoint_bytes / 2**20:,.0f} MiB"
        f"{f' for each of {members} members' if members > 1 else ''} take {needed / 2**30:,.1f} GiB"
    )
    fix = "free space there, set checkpoint.dir to another place, or raise checkpoint.every_epochs"
    if free < least:
        raise Trouble(said, fix)
    if free < needed:
        raise Doubt(said, fix)
    return said


def check_scratch(config: Config, data_bytes: int) -> str:
    """The node's own disk, where jobs keep a copy of the market file and Python its temporary files."""
    place = nearest_folder(Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()))
    free = shutil.disk_usage(place).free
    needed = data_bytes if config.market.local_copy else 0
    if not os.access(place, os.W_OK):
        raise Doubt(f"{place}: cannot be written", "set TMPDIR to a folder on the node's own disk")
    if free < needed:
        raise Doubt(
            f"{place}: {free / 2**30:,.1f} GiB free, the market file has {needed / 2**30:,.1f} GiB",
            "training reads it from the shared storage: slower to start; or set TMPDIR to a larger disk",
        )
    return f"{place}: {free / 2**30:,.1f} GiB free"
