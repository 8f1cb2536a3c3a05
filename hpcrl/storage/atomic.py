"""Files that exist whole or not at all: temporary name in the same folder, fsync, rename, fsync of folder.

A temporary name is ``.NAME.HOST.PID.COUNT.tmp``, so that writers on several machines never meet and a dead
writer's leftovers are recognised. Every failure to write removes the temporary file and raises ``RunFailed``
naming the path and the reason. ``check_output`` refuses, before any work, a path that must not be written.
Nothing here knows torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpcrl.types import HpcrlError, RunFailed

_COUNT = itertools.count()
_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.\d+\.tmp$")
_READ_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that no other process and no other call uses."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{next(_COUNT)}.tmp")


def temporary_target(name: str) -> str | None:
    """The final name that a temporary file's ``name`` stands for; None if it is no temporary name."""
    found = _TEMPORARY.match(name)
    return found["name"] if found else None


def write_error(path: Path, error: BaseException) -> RunFailed:
    """The one message for every failure to write ``path``."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(path.parent).free:,} bytes free)"
    return RunFailed(f"cannot write {path}: {reason or type(error).__name__}")


def check_output(path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """HpcrlError unless a file can come into being at ``path`` without destroying one of the ``inputs``.

    Refused: a folder, a device, a path below a file, and an input by whatever name it is called.
    """
    path = Path(path)
    try:
        if path.is_dir() or path.name in ("", ".."):
            raise HpcrlError(f"{path}: a folder; name a file to write")
        if path.exists() and not path.is_file():
            raise HpcrlError(f"{path}: no regular file, so it is not written over; name another one")
        above = next((folder for folder in path.absolute().parents if folder.exists()), None)
        if above is not None and not above.is_dir():
            raise HpcrlError(f"{path}: cannot be made, for {above} is no folder")
        there = path.exists()
    except OSError as error:
        raise HpcrlError(f"{path}: cannot be written there: {error.strerror or error}") from None
    for given in inputs:
        try:
            lost = Path(given).exists() and there and os.path.samefile(given, path)
        except OSError as error:
            raise HpcrlError(f"{given}: cannot be read: {error.strerror or error}") from None
        if lost:
            raise HpcrlError(f"{path}: is one of the inputs, and would be lost; name another file")


def check_folder(path: str | Path, name: str = "") -> None:
    """HpcrlError unless a folder is at ``path``, or can come into being there; ``name`` opens the message."""
    path = Path(path)
    try:
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    except OSError as error:
        raise HpcrlError(f"{name}{path}: cannot be made: {error.strerror or error}") from None
    if not there.is_dir():
        raise HpcrlError(f"{name}{path}: {there} is no folder; name another place")


def fsync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` durable; file systems that cannot sync a folder are left alone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


class _Sink:
    """A file that hashes what it is given and never raises while it is written.

    torch's zip writer aborts the whole process when a write fails a second time in its destructor, as it
    does on a full disk; so the first error is kept here and raised once the writer is done.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | MemoryError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self._handle.write(data)
            except (OSError, MemoryError) as error:
                self.error = error
            self._hash.update(data)
            self.bytes += size
        return size

    def flush(self) -> None:
        if self.error is None:
            try:
                self._handle.flush()
            except OSError as error:
                self.error = error

    def sha256(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Staged:
    """A file written and synced under its temporary name, not yet visible under ``path``."""

    path: Path
    temporary: Path
    sha256: str
    bytes: int

    def commit(self) -> None:
        """Rename over ``path``. The folder still has to be synced."""
        try:
            os.replace(self.temporary, self.path)
        except OSError as error:
            self.discard()
            raise write_error(self.path, error) from error

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self.temporary.unlink()


def stage(path: str | Path, write: Callable[[Any], object]) -> Staged:
    """Let ``write(file)`` fill a temporary file beside ``path``; sync it, do not rename it yet."""
    path = Path(path)
    temporary = temporary_path(path)
    try:
        # buffering=0: an error belongs to the write that caused it, and close() has nothing left to fail on.
        with open(temporary, "xb", buffering=0) as handle:
            sink = _Sink(_Whole(handle))  # type: ignore[arg-type]
            write(sink)
            if sink.error is not None:
                raise sink.error
            os.fsync(handle.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    return Staged(path, temporary, sink.sha256(), sink.bytes)


class _Whole:
    """An unbuffered file whose ``write`` writes everything (a raw write may stop short on a full disk)."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._handle.write(view[done:])
        return done

    def flush(self) -> None:
        pass


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, or leave it as it was and raise ``RunFailed``."""
    staged = stage(path, lambda file: file.write(data))
    staged.commit()
    fsync_folder(staged.path.parent)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """``value`` as indented JSON; NaN and infinity raise ValueError (they are not JSON)."""
    write_text(path, to_json(value))


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file's contents. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in ``path``; a missing, unreadable, truncated or foreign file is an ``HpcrlError``.

    So is a key that an object names twice: one of the two values would be lost without a word.
    """
    path = Path(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1)
            raise HpcrlError(f"{path}: the key {doubled!r} occurs twice in one object")
        return found

    try:
        value = json.loads(path.read_bytes().decode(), object_pairs_hook=once)
    except FileNotFoundError as error:
        raise HpcrlError(f"{path}: no such file") from error
    except OSError as error:
        raise HpcrlError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise HpcrlError(f"{path}: not JSON (not UTF-8 text at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise HpcrlError(
            f"{path}: not whole JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error
    except RecursionError:
        raise HpcrlError(f"{path}: its JSON is nested too deeply to be read") from None
    except ValueError as error:  # an integer of thousands of digits
        raise HpcrlError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise HpcrlError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove_dead_temporaries(folder: str | Path, targets: Container[str] | None = None) -> list[str]:
    """Remove temporary files whose writer on this machine is dead; names of those removed.

    ``targets``: only those that stand for these names. Files of other machines stay: whether their writer
    lives cannot be seen from here.
    """
    removed = []
    for entry in sorted(Path(folder).iterdir()):
        found = _TEMPORARY.match(entry.name)
        if found and targets is not None and found["name"] not in targets:
            continue
        if not found or found["host"] != _host() or _alive(int(found["pid"])) or not entry.is_file():
            continue
        with contextlib.suppress(OSError):
            entry.unlink()
            removed.append(entry.name)
    return removed
