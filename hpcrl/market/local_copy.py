"""A Slurm job's own copy of the market file on its node's disk: read once over the network, then locally.

Of the ranks of a node one copies, the others wait for it (``flock``, which local disks have). The copy's name
holds the hash of the contents, of the whole header (two sources may have the same contents) and the size. Its
bytes are hashed while they are written, read back from the disk and compared; a record beside it keeps what
the file system says of the good copy, so that one that was touched since is made anew. Whatever stands in the
way of a copy costs one line of warning, never the job: then the shared file is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hpcrl.market.store import read_header
from hpcrl.storage.atomic import (
    fsync_folder,
    read_json,
    sha256_of,
    temporary_path,
    temporary_target,
    to_json,
    write_json,
)
from hpcrl.types import HpcrlError, RunFailed

BLOCK_BYTES = 4 << 20
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "pvfs", "orangefs", "panfs",
           "wekafs", "9p", "afs", "fuse.sshfs", "fuse.ceph", "fuse.gluster")  # fmt: skip
"""What the names of shared file systems begin with: a copy there would gain nothing."""


class _NoCopy(Exception):
    """Why there is none."""


class _Unfit(Exception):
    """No market file."""


def local_copy(path: str | Path, environ: Mapping[str, str] = os.environ) -> Path:
    """``path``, or in a Slurm job whose SLURM_TMPDIR or TMPDIR is a local disk, the copy of it there.

    A file that is no market file is left to the reader to refuse.
    """
    path = Path(path)
    folder = _local_folder(path, environ)
    if folder is None:
        return path
    try:
        return _copy_into(_own_folder(folder), path)
    except _Unfit:
        return path
    except (_NoCopy, RunFailed, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")) == "0":
            line = f"WARNING: no local copy of {path} in {folder} ({reason}); the shared file is read"
            print(line, file=sys.stderr, flush=True)
        return path


def _local_folder(path: Path, environ: Mapping[str, str]) -> Path | None:
    """The first of the job's folders that is on another file system than ``path``, and no shared one."""
    if "SLURM_JOB_ID" not in environ or not path.is_file():
        return None
    for key in ("SLURM_TMPDIR", "TMPDIR"):
        folder = Path(environ.get(key) or "/nowhere")
        if folder.is_dir() and folder.stat().st_dev != path.stat().st_dev and not _on_network(folder):
            return folder
    return None


def _on_network(folder: Path) -> bool:
    import psutil

    return is_shared(folder, {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)})


def is_shared(folder: Path, mounts: Mapping[str, str]) -> bool:
    """Whether ``folder`` lies on a network file system; ``mounts``: mount point -> type."""
    real = folder.resolve()
    above = (mounts[str(place)] for place in (real, *real.parents) if str(place) in mounts)
    return next(above, "").startswith(NETWORK)


def _own_folder(folder: Path) -> Path:
    """A folder that no other user of the node can write to: TMPDIR may be everybody's /tmp."""
    own = folder / f"hpcrl-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise _NoCopy(f"{own.name} there is no folder that is ours alone")
    return own


def _copy_into(folder: Path, path: Path) -> Path:
    with path.open("rb", buffering=0) as source:
        try:
            header = read_header(path)
        except HpcrlError:
            raise _Unfit from None
        size = os.fstat(source.fileno()).st_size
        if not os.path.samestat(os.fstat(source.fileno()), path.stat()):
            raise _NoCopy("it was replaced at this moment")
        whole = hashlib.sha256(to_json(header).encode()).hexdigest()
        copy = folder / f"{header['sha256']}-{whole[:16]}-{size}.h5"
        with _locked(folder / f"{copy.name}.lock"):
            record = folder / f"{copy.name}.json"
            if not _is_good(copy, record):
                record.unlink(missing_ok=True)
                _write(source, size, copy)
                write_json(record, _facts(copy))
    return copy


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_good(copy: Path, record: Path) -> bool:
    """Whether the copy is as it was when its bytes were checked."""
    try:
        return read_json(record) == _facts(copy)
    except (HpcrlError, OSError):
        return False


def _facts(copy: Path) -> dict[str, Any]:
    found = copy.lstat()
    names = ("st_size", "st_ino", "st_mtime_ns", "st_ctime_ns", "st_uid", "st_mode")
    return {name: getattr(found, name) for name in names}


def _write(source: BinaryIO, size: int, copy: Path) -> None:
    """OSError or _NoCopy, and nothing left behind, unless ``copy`` holds the source's bytes."""
    for entry in copy.parent.iterdir():
        if temporary_target(entry.name) == copy.name:  # its writer is gone, or is going: we hold the lock
            entry.unlink(missing_ok=True)
    free = shutil.disk_usage(copy.parent).free
    if free < size:
        raise _NoCopy(f"{size:,} bytes are needed, {free:,} are free")
    temporary = temporary_path(copy)
    try:
        with temporary.open("xb", buffering=0) as file:
            written = _pour(source, file, size)
            os.fchmod(file.fileno(), 0o400)
            os.fsync(file.fileno())
            # So that reading back asks the disk, not the memory.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if sha256_of(temporary) != written:
            raise _NoCopy("its bytes were not read back as they were written")
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(copy.parent)


def _pour(source: BinaryIO, file: Any, size: int) -> str:
    """The hash of what was copied."""
    digest, block, done = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES)), 0
    source.seek(0)
    while count := source.readinto(block):  # type: ignore[attr-defined]
        part = block[:count]
        digest.update(part)
        while part:
            part = part[file.write(part) :]
        done += count
    if done != size:
        raise _NoCopy(f"{done:,} of its {size:,} bytes could be read")
    return digest.hexdigest()
