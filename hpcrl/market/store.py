"""The HDF5 file of a data set: written once under a temporary name, hashed, renamed; then only read.

Root attributes are JSON texts: format, format_version, source, query, created, timezone, bar_seconds,
price_adjustment, calendar, symbols (rows, present rows, first and last stamp of each), sha256 (of contents),
feature_names, feature_definitions, burn_in, git_commit. Group ``symbols/NAME`` (percent-encoded) holds one
dataset per array of ``bars.SymbolBars``; features lie feature by feature, [F, B], so that they are written as
they are computed, one in memory at a time. ``sha256`` is defined over what the bars mean (arrays, symbols,
features, calendar, bar length, price adjustment, burn-in), not over HDF5's bytes or where they came from:
two ways to stage the same bars give the same hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import h5py
import hdf5plugin
import numpy as np

from hpcrl.market.bars import ARRAYS, SymbolBars
from hpcrl.market.clean import iso
from hpcrl.storage.atomic import fsync_folder, temporary_path, write_error
from hpcrl.types import HpcrlError

FORMAT = "hpcrl-market"
FORMAT_VERSION = 2
HASHED = (
    "format_version",
    "bar_seconds",
    "price_adjustment",
    "calendar",
    "feature_names",
    "feature_definitions",
    "burn_in",
)
NEEDED = (*HASHED, "source", "query", "created", "timezone", "symbols", "sha256", "git_commit")
CHUNK_BYTES = 1 << 20
"""Measured: chunks of 0.5 to 4 MB write and read alike; smaller ones are slower."""
BLOCK_BYTES = 8 << 20
"""Of features that are written at once: twenty of 100,000 bars, two of a million."""
THREAD_BYTES = 1 << 16
"""Measured: 165 ms for 109 MB, against 187 without threads. Below, one is not worth its turn (a guess)."""


class _Sink(io.RawIOBase):
    """The file below HDF5. Keeps the first failure to itself until the file is closed.

    On a full disk HDF5's own driver fails again while closing, keeps the file open, and crashes the
    process at exit; so HDF5 is told that all is well, and the writer raises.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b", buffering=0)
        self.error: OSError | None = None

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        return done

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view) and self.error is None:
            try:
                done += self._file.write(view[done:])
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        """Make durable what is written so far. OSError."""
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Make it durable and close it. OSError: the first failure of any write."""
        try:
            if self.error is not None:
                raise self.error
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class StoreWriter:
    """Writes one file symbol by symbol; ``with`` renames it at the end or leaves nothing behind.

    ``sha256`` is known after ``finish``. RunFailed: the file cannot be written (a full disk).
    """

    def __init__(self, path: str | Path, attributes: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.sha256 = ""
        """Known after ``finish``."""
        self.attributes: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **attributes}
        self._symbols: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, str] = {}
        self._temporary = temporary_path(self.path)
        self._sink: _Sink | None = None
        self._file: h5py.File | None = None
        self._threads = ThreadPoolExecutor(2)
        self._synced: list[Future[None]] = []

    def __enter__(self) -> StoreWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _Sink(self._temporary)
        except OSError as error:
            raise write_error(self.path, error) from None
        # v110: attributes may exceed 64 KiB (thousands of symbols), and old readers are no aim.
        self._file = h5py.File(self._sink, "w", libver=("v110", "v110"))
        return self

    def add(self, bars: SymbolBars, features: Iterable[np.ndarray] | None = None) -> None:
        """Write one symbol; ``features``: float32 [B] each, in place of those of ``bars``.

        HpcrlError: named twice; ValueError: arrays of wrong type or length.
        """
        assert self._file is not None and self._sink is not None
        if bars.symbol in self._symbols:
            raise HpcrlError(f"symbol {bars.symbol} is there twice")
        digest = hashlib.sha256()
        group = self._file.create_group(f"symbols/{_group_name(bars.symbol)}")
        for name, array in bars.arrays():
            if name != "features":
                _check_array(bars, name, array)
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                self._put(_dataset(group, name, array.shape, array.dtype), ..., array, digest)
        self._write_features(group, bars, features, digest)
        self._synced.append(self._threads.submit(self._sink.sync))  # while the next symbol is computed
        self._digests[bars.symbol] = digest.hexdigest()
        self._symbols[bars.symbol] = {
            "rows": len(bars.ts),
            "present": int(bars.present.sum()),
            "first": iso(int(bars.ts[0])),
            "last": iso(int(bars.ts[-1])),
        }

    def _write_features(
        self, group: h5py.Group, bars: SymbolBars, features: Iterable[np.ndarray] | None, digest: Any
    ) -> None:
        """Several features at a time: one call of HDF5 and one hash for a block of BLOCK_BYTES."""
        count, bars_n = len(self.attributes["feature_names"]), len(bars.ts)
        digest.update(f"features <f4 {(count, bars_n)}\n".encode())
        dataset = _dataset(group, "features", (count, bars_n), np.dtype(np.float32))
        block = np.empty((max(min(count, BLOCK_BYTES // (4 * bars_n)), 1), bars_n), dtype=np.float32)
        done = held = 0
        for column in bars.features.T if features is None else features:
            _check_array(bars, "features", column)
            if done + held == count:
                raise ValueError(f"{bars.symbol}: more than {count} features")
            block[held] = column
            held += 1
            if held == len(block) or done + held == count:
                self._put(dataset, slice(done, done + held), block[:held], digest)
                done, held = done + held, 0
        if done != count:
            raise ValueError(f"{bars.symbol}: {done + held} features, {count} expected")

    def _put(self, dataset: h5py.Dataset, at: Any, array: np.ndarray, digest: Any) -> None:
        """Write a part of a dataset while another thread hashes it, where that is worth a thread's turn."""
        array = np.ascontiguousarray(array)
        data = array.reshape(-1).view(np.uint8).data if array.size else b""
        if array.nbytes < THREAD_BYTES:
            digest.update(data)
            dataset[at] = array
        else:
            begun = threading.Event()
            hashed = self._threads.submit(_hash, digest, data, begun)
            begun.wait()  # HDF5 keeps the interpreter to itself while it writes, hashing needs it to begin
            dataset[at] = array
            hashed.result()
        if self._sink is not None and self._sink.error is not None:  # no use in going on
            raise write_error(self.path, self._sink.error)

    def finish(self) -> str:
        """Write the header, close and sync the temporary file; returns the hash of the contents."""
        assert self._file is not None and self._sink is not None
        if not self._symbols:
            raise HpcrlError(f"{self.path}: no symbol to write")
        self.sha256 = contents_hash(self.attributes, self._digests)
        header = {**self.attributes, "symbols": self._symbols, "sha256": self.sha256}
        for key, value in header.items():
            self._file.attrs[key] = json.dumps(value, sort_keys=key != "symbols", allow_nan=False)
        file, self._file = self._file, None
        file.close()
        try:
            for each in self._synced:
                each.result()
            self._sink.finish()
        except OSError as error:
            raise write_error(self.path, error) from None
        return self.sha256

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if not self.sha256:
                    self.finish()
                os.replace(self._temporary, self.path)
                fsync_folder(self.path.parent)
        except OSError as failure:
            raise write_error(self.path, failure) from None
        finally:
            if self._file is not None:
                self._file.close()
                with contextlib.suppress(OSError):
                    self._sink.finish()  # type: ignore[union-attr]
            self._threads.shutdown()
            self._temporary.unlink(missing_ok=True)


def contents_hash(attributes: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """SHA-256 over the header keys that give the arrays their meaning, and each symbol's digest in order."""
    meaning = {key: attributes[key] for key in HASHED}
    return hashlib.sha256(json.dumps([meaning, list(digests.items())], sort_keys=True).encode()).hexdigest()


def _group_name(symbol: str) -> str:
    # A slash would nest groups, and "." is HDF5's name for the group itself.
    return quote(symbol, safe="").replace(".", "%2E")


def _check_array(bars: SymbolBars, name: str, array: np.ndarray) -> None:
    if array.dtype != ARRAYS[name] or len(array) != len(bars.ts):
        raise ValueError(
            f"{bars.symbol}: {name} is {array.dtype} [{len(array)}], {len(bars.ts)} rows expected"
        )


def _dataset(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    rows = max(min(shape[-1], CHUNK_BYTES // dtype.itemsize), 1)
    # Shuffled LZ4: the fastest of the measured filters; shared readers need hdf5plugin.
    blosc = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
    chunks = (*(1 for _ in shape[:-1]), rows)
    return group.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, **blosc)


def _hash(digest: Any, data: Any, begun: threading.Event) -> None:
    begun.set()
    digest.update(data)


def write_store(
    path: str | Path, bars: Mapping[str, SymbolBars] | Iterable[SymbolBars], attributes: Mapping[str, Any]
) -> str:
    """Write all symbols; returns the hash of the contents. RunFailed, and no file, where that fails."""
    with StoreWriter(path, attributes) as writer:
        for one in bars.values() if isinstance(bars, Mapping) else bars:
            writer.add(one)
    return writer.sha256


def is_store(path: str | Path) -> bool:
    """Whether ``path`` is a file that ``StoreWriter`` made, of whatever format version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == json.dumps(FORMAT))
    except (OSError, KeyError, ValueError, RuntimeError):
        return False


def read_store(path: str | Path) -> tuple[dict[str, SymbolBars], dict[str, Any]]:
    """All symbols and the header, contents checked against their hash.

    HpcrlError: missing, foreign, truncated, of another format version, or altered.
    """
    with open_store(path) as (header, symbols):
        bars = {one.symbol: one for one in symbols}
    return bars, header


@contextlib.contextmanager
def open_store(path: str | Path) -> Iterator[tuple[dict[str, Any], Iterator[SymbolBars]]]:
    """The header, and the symbols one by one; as ``read_store``. The hash is checked after the last one."""
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
        raise HpcrlError(f"{path}: {kind}; `hpcrl stage` makes market files")
    try:
        # Readers never lock: network file systems may lack locks, and the file never changes.
        with h5py.File(path, "r", locking=False) as file:
            header = _read_header(file, path)
            yield header, _read_symbols(file, header, path)
    except HpcrlError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise HpcrlError(
            f"{path}: not a whole market file of `hpcrl stage` ({_short(error)}); stage it again"
        ) from None


def read_symbol(
    path: str | Path, symbol: str, names: tuple[str, ...], feature: int | None = None
) -> dict[str, np.ndarray]:
    """Some arrays of one symbol; of the features only one [B] if ``feature`` is given. Nothing is checked:
    for a file that ``open_store`` has read through."""
    with h5py.File(path, "r", locking=False) as file:
        group = file[f"symbols/{_group_name(symbol)}"]
        rows = ... if feature is None else feature
        return {name: group[name][rows if name == "features" else ...] for name in names}


def read_header(path: str | Path) -> dict[str, Any]:
    """The header alone; the contents are not looked at. HpcrlError as ``read_store``."""
    with open_store(path) as (header, _):
        return header


def _read_symbols(file: h5py.File, header: dict[str, Any], path: Path) -> Iterator[SymbolBars]:
    digests = {}
    # Hashing takes as long as reading: a symbol is hashed while the next one is read.
    with ThreadPoolExecutor(1) as hasher:
        for symbol in header["symbols"]:
            arrays = _read_symbol(file, symbol)
            digests[symbol] = hasher.submit(_digest, arrays)
            yield SymbolBars(symbol=symbol, **{**arrays, "features": arrays["features"].T})
        found = contents_hash(header, {symbol: each.result() for symbol, each in digests.items()})
    if found != header["sha256"]:
        raise HpcrlError(
            f"{path}: contents do not match their sha256 (they hash to {found[:12]}, the header says "
            f"{header['sha256'][:12]}); the file was altered or damaged: stage it again"
        )


def _read_header(file: h5py.File, path: Path) -> dict[str, Any]:
    if file.attrs.get("format") != json.dumps(FORMAT):
        raise HpcrlError(
            f"{path}: an HDF5 file, but not one of `hpcrl stage` (no format {FORMAT!r} at its root)"
        )
    header = {key: json.loads(value) for key, value in file.attrs.items()}
    if header.get("format_version") != FORMAT_VERSION:
        version = header.get("format_version")
        raise HpcrlError(f"{path}: format version {version}; {FORMAT_VERSION} is read: stage it again")
    missing = [key for key in NEEDED if key not in header]
    if missing:
        raise HpcrlError(f"{path}: its header lacks {', '.join(missing)}; stage it again")
    return header


def _read_symbol(file: h5py.File, symbol: str) -> dict[str, np.ndarray]:
    group = file[f"symbols/{_group_name(symbol)}"]
    return {name: group[name][...] for name in ARRAYS}


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 160 else text[:157] + "..."
