"""PostgreSQL's binary COPY to numpy and back: rows of one stamp and k floats.

A row is its number of fields (int16), then length (int32) and value of each; everything is big-endian. NULL
has the length -1 and no value, so only rows without it are of one size: what is read must hold none. Stamps
are int64 microseconds since 2000-01-01.
https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from hpcrl.types import RunFailed

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""No flags, no extension."""
TRAILER = b"\xff\xff"
BLOCK_ROWS = 100_000


def row_type(floats: int) -> np.dtype:
    """n: number of fields; l0, v0: length and value of the stamp; l1, v1 and so on: of the floats."""
    fields = [("n", ">i2"), ("l0", ">i4"), ("v0", ">i8")]
    for place in range(1, floats + 1):
        fields += [(f"l{place}", ">i4"), (f"v{place}", ">f8")]
    return np.dtype(fields)


def read_rows(stream: Iterable[bytes | bytearray | memoryview], floats: int) -> Iterator[np.ndarray]:
    """Blocks of at most BLOCK_ROWS rows of ``row_type``, from pieces of the stream that may end anywhere.

    RunFailed: the stream is of another form, or ends too early.
    """
    row = row_type(floats)
    enough = BLOCK_ROWS * row.itemsize
    pending = bytearray()
    begun = False
    for piece in stream:
        pending += piece
        if len(pending) < enough + len(SIGNATURE):
            continue
        if not begun:
            del pending[: _signature(pending)]
            begun = True
        yield _rows(pending[:enough], row, floats)
        del pending[:enough]
    if not begun:
        del pending[: _signature(pending)]
    for first in range(0, len(pending) - len(TRAILER), enough):
        yield _rows(pending[first : min(first + enough, len(pending) - len(TRAILER))], row, floats)
    if pending[-len(TRAILER) :] != TRAILER:
        raise RunFailed("the rows of COPY end too early")


def _signature(pending: bytearray) -> int:
    if not pending.startswith(SIGNATURE):
        raise RunFailed("the answer to COPY is not in PostgreSQL's binary format")
    return len(SIGNATURE)


def _rows(data: bytearray, row: np.dtype, floats: int) -> np.ndarray:
    if len(data) % row.itemsize:
        raise RunFailed("the rows of COPY end too early, or are not of one size")
    table = np.frombuffer(data, dtype=row)
    right = (table["n"] == floats + 1).all() and all(
        (table[f"l{place}"] == 8).all() for place in range(floats + 1)
    )
    if not right:
        raise RunFailed("the rows of COPY are not of one size")
    return table


def pack_rows(stamp_us_R: np.ndarray, values: Iterable[np.ndarray]) -> bytes:
    """A whole stream of rows; values float64 [R], NaN as NULL."""
    columns = list(values)
    row = row_type(len(columns))
    table = np.zeros(len(stamp_us_R), dtype=row)
    table["n"], table["l0"], table["v0"] = len(columns) + 1, 8, stamp_us_R
    there = np.ones((len(table), row.itemsize), dtype=bool)
    for place, column in enumerate(columns, 1):
        null = np.isnan(column)
        table[f"l{place}"], table[f"v{place}"] = np.where(null, -1, 8), column
        offset = row.fields[f"v{place}"][1]  # type: ignore[index]
        there[null, offset : offset + 8] = False
    octets = table.view(np.uint8).reshape(there.shape)
    return SIGNATURE + (octets.tobytes() if there.all() else octets[there].tobytes()) + TRAILER
