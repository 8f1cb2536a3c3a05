"""The parser of binary COPY on streams that are torn, foreign or damaged; no server needed."""

from __future__ import annotations

import numpy as np
import pytest

from hpcrl.market import postgres_copy
from hpcrl.market.postgres_copy import SIGNATURE, TRAILER, pack_rows, read_rows, row_type
from hpcrl.types import RunFailed


def stream(rows: int, floats: int = 5) -> tuple[bytes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    stamps, values = rng.integers(-(2**62), 2**62, rows), rng.standard_normal((floats, rows))
    return pack_rows(stamps, list(values)), stamps, values


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("piece", [1, 7, 73, 74, 75, 740, 10_000])
def test_pieces_may_end_anywhere(monkeypatch, rows, piece):
    monkeypatch.setattr(postgres_copy, "BLOCK_ROWS", 10)
    data, stamps, values = stream(rows)
    blocks = list(read_rows((data[at : at + piece] for at in range(0, len(data), piece)), 5))
    assert all(0 < len(block) <= 10 for block in blocks)
    if rows:
        table = np.concatenate(blocks)
        assert (table["v0"] == stamps).all()
        assert all((table[f"v{place}"] == values[place - 1]).all() for place in range(1, 6))
    else:
        assert blocks == []


def test_what_is_cut_off_is_noticed_wherever_it_was_cut():
    data, _, _ = stream(3, floats=1)
    for end in range(len(data)):
        with pytest.raises(RunFailed, match=r"end too early|binary format"):
            list(read_rows([data[:end]], 1))


def test_rows_of_another_form_are_refused():
    data, _, _ = stream(4, floats=2)
    for floats in (1, 3):
        with pytest.raises(RunFailed, match="one size"):
            list(read_rows([data], floats))
    null = pack_rows(np.arange(4), [np.ones(4), np.array([1, np.nan, 1, 1])])
    with pytest.raises(RunFailed, match="one size"):
        list(read_rows([null], 2))
    with pytest.raises(RunFailed, match="binary format"):
        list(read_rows([b"1\t2\n"], 2))
    with pytest.raises(RunFailed, match="end too early"):
        list(read_rows([data, b"\0"], 2))


@pytest.mark.parametrize("offset", [0, 2, 5, 14, 17])  # counts and lengths of a row's fields
def test_one_wrong_byte_in_the_frame_of_a_row_is_noticed(offset):
    data = bytearray(stream(5, floats=1)[0])
    at = len(SIGNATURE) + 3 * row_type(1).itemsize + offset
    data[at] ^= 1
    with pytest.raises(RunFailed, match="one size"):
        list(read_rows([data], 1))


def test_nan_is_packed_as_null_which_has_no_bytes():
    packed = pack_rows(np.array([7]), [np.array([np.nan]), np.array([1.5])])
    body = packed.removeprefix(SIGNATURE).removesuffix(TRAILER)
    assert body == (
        b"\0\3" b"\0\0\0\10" b"\0\0\0\0\0\0\0\7" b"\xff\xff\xff\xff" b"\0\0\0\10" b"\x3f\xf8\0\0\0\0\0\0"
    )  # fmt: skip
