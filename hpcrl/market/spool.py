"""Rows as they arrive from a server, kept on disk until the data set made of them is whole.

Owns the folder ``.NAME.parts/`` beside the output, which one staging at a time holds (flock), and in it per
part (the bars, or the indicators, of one symbol) a file of fixed-size records in order of time, appended
only, and its identity as JSON. So a staging that was killed goes on where it stopped. A torn record at the
end is cut off; a part of another identity, begun hours ago or out of order is thrown away. A record is an
int64 stamp, ns UTC, and float64 values; of indicators in the long layout a code and a value, whose names
stand one a line in a third file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hpcrl.market.source import Span
from hpcrl.storage.atomic import read_json, write_error, write_json
from hpcrl.storage.lock import hold
from hpcrl.types import HpcrlError, RunFailed

MAX_AGE_SECONDS = 2 * 3600
"""Values that were corrected meanwhile are not seen: only counts and the overlap are compared."""
BLOCK_ROWS = 100_000
SYNC_BYTES = 32 << 20
_LOCK = "lock"


class Closed(RunFailed):
    """The spool was given up while a thread still wrote to it."""


def identity_of(about: dict[str, Any]) -> str:
    """SHA-256 over what the rows are; ``about`` must hold no key."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Spool:
    """The folder. ``open`` before any other call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: TextIO | None = None
        self._parts: dict[str, Part] = {}

    def open(self) -> None:
        """HpcrlError where another process stages the same output. May be called again."""
        if self._lock is not None:
            return
        lock = self.folder / _LOCK
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_error(self.folder, error) from None
            self._lock = hold(lock, "staged")
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._lock.fileno()), lock.stat()):
                    return
            self._lock.close()  # its holder ended, and removed the folder, between our two calls

    def part(self, about: dict[str, Any], width: int, end_ns: int | None = None) -> Part:
        """The part of that identity, with what an earlier run left of it; ``width``: values of a record.

        What reaches to ``end_ns`` or beyond was fetched for a longer span, and is thrown away.
        """
        key = identity_of(about)
        part = self._parts.setdefault(key, Part(self.folder / key[:32], about, width))
        part.load(end_ns)
        return part

    def held(self, about: dict[str, Any], width: int, end_ns: int | None = None) -> tuple[int, float]:
        """Rows of an earlier run that ``part`` will take up, and since when they came, in unix seconds."""
        key = identity_of(about)
        if key in self._parts:
            return 0, 0.0
        return Part(self.folder / key[:32], about, width).held(end_ns)

    def keep_only(self, abouts: Collection[dict[str, Any]]) -> None:
        """Throw away what an earlier run left and nobody asks for now."""
        kept = {_LOCK} | {key[:32] for key in self._parts} | {identity_of(about)[:32] for about in abouts}
        for path in self.folder.iterdir():
            if path.name.split(".")[0] not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def remove(self) -> None:
        """The data set is written: nothing of this is needed any more. Also after ``close``."""
        self._close_parts()
        if not self.folder.is_dir():
            return
        with contextlib.suppress(HpcrlError):  # another staging has begun meanwhile: then it is its own
            self.open()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Write no more, and let another process in; the rows stay. A folder without rows goes."""
        self._close_parts()
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            if not any(path.stat().st_size for path in self.folder.glob("*.rows")):
                shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def _close_parts(self) -> None:
        for part in self._parts.values():
            part.close()
        self._parts.clear()


class Part:
    """One file of rows. Written by one thread; ``close``, from any, ends the writing."""

    def __init__(self, stem: Path, about: dict[str, Any], width: int) -> None:
        self.path = stem.with_name(stem.name + ".rows")
        self._about_path = stem.with_name(stem.name + ".json")
        self._names_path = stem.with_name(stem.name + ".names")
        self._about = about
        self.dtype = np.dtype([("timestamp", "<i8"), ("values", "<f8", (width,))])
        self.rows = 0
        """Records in the file."""
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._file: Any = None
        self._unsynced = 0
        self._guard = threading.Lock()
        self._closed = False

    def load(self, end_ns: int | None = None) -> None:
        """Take up what is there, if it is whole and of use; else begin anew."""
        try:
            if self._created() is None:
                return self.clear()
            size = self.path.stat().st_size
            self.rows = size // self.dtype.itemsize
            self._open("r+b")
            self._file.truncate(self.rows * self.dtype.itemsize)
            self._load_names()
            if not self._in_order(end_ns):
                self.clear()
        except OSError as error:
            raise write_error(self.path, error) from None

    def held(self, end_ns: int | None = None) -> tuple[int, float]:
        """Rows that ``load`` will find, and since when they came; by a look at the last one alone."""
        created = self._created()
        with contextlib.suppress(OSError):
            rows = 0 if created is None else self.path.stat().st_size // self.dtype.itemsize
            if created is not None and rows:
                with open(self.path, "rb") as file:
                    file.seek((rows - 1) * self.dtype.itemsize)
                    last = np.fromfile(file, self.dtype, 1)["timestamp"][0]
                if end_ns is None or last < end_ns:
                    return rows, created
        return 0, 0.0

    def _created(self) -> float | None:
        """When it was begun, in unix seconds; None: it is not ours, or of no use any more."""
        try:
            found = read_json(self._about_path)
            created = float(found["created"])
            ours = found["identity"] == identity_of(self._about)
        except (HpcrlError, KeyError, TypeError, ValueError):
            return None
        ours = ours and 0 <= time.time() - created < MAX_AGE_SECONDS and self.path.exists()
        return created if ours else None

    def _load_names(self) -> None:
        self.names = []
        if self._names_path.exists():
            *lines, _torn = self._names_path.read_bytes().split(b"\n")
            with contextlib.suppress(ValueError):
                self.names = [json.loads(line) for line in lines]
            # A torn last line named rows that were never written.
            self._names_path.write_bytes(b"".join(line + b"\n" for line in lines))
        self._codes = {name: code for code, name in enumerate(self.names)}

    def _in_order(self, end_ns: int | None) -> bool:
        """A machine that lost its power may leave zeros in the place of rows."""
        last, coded = np.iinfo(np.int64).min, self._about.get("codes")
        for block in self._records():
            stamps = block["timestamp"]
            if stamps[0] < last or (np.diff(stamps) < 0).any():
                return False
            if coded and not (block["values"][:, 0] < len(self.names)).all():
                return False
            last = stamps[-1]
        return end_ns is None or last < end_ns

    def clear(self) -> None:
        """Begin anew."""
        with self._guard:
            self._check_open()
            try:
                for path in (self._about_path, self.path, self._names_path):
                    path.unlink(missing_ok=True)
                self.rows, self.names, self._codes, self._unsynced = 0, [], {}, 0
                self._open("w+b")
            except OSError as error:
                raise write_error(self.path, error) from None
            about = {"identity": identity_of(self._about), "created": time.time(), "rows_of": self._about}
            write_json(self._about_path, about)

    def _open(self, mode: str) -> None:
        if self._file is not None:
            self._file.close()
        self._file = open(self.path, mode, buffering=0)  # noqa: SIM115  kept open while rows arrive

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"{self.path}: given up")

    def append(self, records: np.ndarray) -> None:
        """RunFailed where the disk is full: the file then ends with the last whole record."""
        with self._guard:
            self._check_open()
            data = memoryview(records.tobytes())
            end = self.rows * self.dtype.itemsize
            try:
                self._file.seek(end)
                while data:
                    data = data[self._file.write(data) :]
                self._unsynced += records.nbytes
                if self._unsynced >= SYNC_BYTES:
                    self._sync()
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)
                raise write_error(self.path, error) from None
            self.rows += len(records)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def pop_tail(self) -> np.ndarray:
        """Cut off the rows of the last stamp and return them: what is read next begins at that stamp."""
        with self._guard:
            self._check_open()
            step, first = 64, self.rows
            while first > 0:
                first = max(0, self.rows - step)
                self._file.seek(first * self.dtype.itemsize)
                tail = np.frombuffer(self._file.read((self.rows - first) * self.dtype.itemsize), self.dtype)
                same = int(np.searchsorted(tail["timestamp"], tail["timestamp"][-1]))
                if same > 0 or first == 0:
                    self.rows = first + same
                    self._file.truncate(self.rows * self.dtype.itemsize)
                    return tail[same:].copy()
                step *= 16
            return np.empty(0, self.dtype)

    def codes(self, names: Sequence[str]) -> np.ndarray:
        """float64 [R]: the number of each name; new ones are written down before any row uses them."""
        new = [name for name in dict.fromkeys(names) if name not in self._codes]
        if new:
            with self._guard:
                self._check_open()
                try:
                    with open(self._names_path, "ab") as file:
                        file.write("".join(json.dumps(name) + "\n" for name in new).encode())
                        file.flush()
                        os.fsync(file.fileno())
                except OSError as error:
                    raise write_error(self._names_path, error) from None
                for name in new:
                    self._codes[name] = len(self.names)
                    self.names.append(name)
        return np.fromiter((self._codes[name] for name in names), np.float64, len(names))

    def finish(self) -> None:
        """All rows are there."""
        with self._guard:
            self._check_open()
            try:
                self._sync()
            except OSError as error:
                raise write_error(self.path, error) from None
            self._file.close()
            self._file = None

    def close(self) -> None:
        with self._guard:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def blocks(self, span: Span = Span()) -> Iterator[np.ndarray]:
        """The records of ``span``, at most BLOCK_ROWS at a time."""
        for block in self._records():
            stamps = block["timestamp"]
            first = 0 if span.start_ns is None else np.searchsorted(stamps, span.start_ns)
            last = len(stamps) if span.end_ns is None else np.searchsorted(stamps, span.end_ns)
            if first < last:
                yield block[first:last]

    def _records(self) -> Iterator[np.ndarray]:
        left = self.rows
        with open(self.path, "rb") as file:
            while left > 0:
                block = np.fromfile(file, self.dtype, min(left, BLOCK_ROWS))
                if len(block) == 0:
                    raise RunFailed(f"{self.path}: {left:,} of {self.rows:,} rows are gone; stage again")
                left -= len(block)
                yield block
