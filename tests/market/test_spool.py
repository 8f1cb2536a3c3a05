"""A spool gives back what was put into it, whole records only, and never what belongs to something else."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hpcrl.market.source import Span
from hpcrl.market.spool import BLOCK_ROWS, MAX_AGE_SECONDS, Closed, Part, Spool
from hpcrl.types import HpcrlError, RunFailed

ABOUT = {"symbol": "BTC/USD", "start": None}


def records(part: Part, first: int, rows: int) -> np.ndarray:
    """Stamps ``first`` and up, each value its own."""
    out = np.empty(rows, part.dtype)
    out["timestamp"] = np.arange(first, first + rows)
    out["values"] = out["timestamp"][:, None] * 10.0 + np.arange(out["values"].shape[1])
    return out


def everything(part: Part, span: Span = Span()) -> np.ndarray:
    return np.concatenate([np.empty(0, part.dtype), *part.blocks(span)])


@pytest.fixture
def spool(tmp_path):
    """``spool()``: the folder as a next process would find it; the one before is closed."""
    opened: list[Spool] = []

    def again() -> Spool:
        for one in opened:
            one.close()
        opened.append(Spool(tmp_path / ".market.h5.parts"))
        opened[-1].open()
        return opened[-1]

    yield again
    for one in opened:
        one.close()


def test_rows_come_back_as_they_were_in_blocks_and_spans(spool):
    part = spool().part(ABOUT, 6)
    wanted = records(part, 0, 2 * BLOCK_ROWS + 7)
    for first in range(0, len(wanted), 33_333):
        part.append(wanted[first : first + 33_333])
    part.finish()
    assert [len(block) for block in part.blocks()] == [BLOCK_ROWS, BLOCK_ROWS, 7]
    assert everything(part).tobytes() == wanted.tobytes()
    for start, end in ((5, 9), (None, BLOCK_ROWS + 1), (BLOCK_ROWS, None), (7, 7), (10**9, None)):
        found = everything(part, Span(start, end))
        assert found.tobytes() == wanted[slice(start, end)].tobytes()


@pytest.mark.parametrize("torn", [1, 8, 55])
def test_a_torn_record_is_cut_off_and_writing_goes_on_behind_the_last_whole_one(spool, torn):
    part = spool().part(ABOUT, 6)
    wanted = records(part, 0, 100)
    part.append(wanted[:70])
    with part.path.open("ab") as file:
        file.write(wanted[70:71].tobytes()[:torn])
    part = spool().part(ABOUT, 6)
    assert part.rows == 70 and part.path.stat().st_size == 70 * 56
    part.append(wanted[70:])
    assert everything(part).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("other", [{"symbol": "ETH/USD"}, {"start": 0}, {"url": "http://elsewhere"}])
def test_rows_of_another_identity_are_not_taken_up_and_go(spool, other):
    part = spool().part(ABOUT, 6)
    part.append(records(part, 0, 10))
    again, about = spool(), ABOUT | other
    again.keep_only([about])
    assert again.part(about, 6).rows == 0
    assert spool().part(ABOUT, 6).rows == 0


def test_what_is_asked_for_stays_when_the_rest_goes(spool):
    first = spool()
    for symbol in ("A", "B", "C"):
        part = first.part({"symbol": symbol}, 6)
        part.append(records(part, 0, 10))
    again = spool()
    assert again.part({"symbol": "A"}, 6).rows == 10
    again.keep_only([{"symbol": "B"}])
    found = [again.part({"symbol": symbol}, 6).rows for symbol in ("A", "B", "C")]
    assert found == [10, 10, 0]


@pytest.mark.parametrize(
    ("created", "rows"),
    [
        (lambda now: now - MAX_AGE_SECONDS + 60, 10),
        (lambda now: now - MAX_AGE_SECONDS - 1, 0),
        (lambda now: now + 3600, 0),
        (lambda now: "yesterday", 0),
    ],
    ids=["two hours less a minute", "two hours and a second", "from the future", "no time"],
)
def test_rows_older_than_two_hours_are_thrown_away(spool, created, rows):
    part = spool().part(ABOUT, 6)
    part.append(records(part, 0, 10))
    [path] = part.path.parent.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": created(time.time())}))
    assert MAX_AGE_SECONDS == 7200
    again = spool()
    assert again.held(ABOUT, 6)[0] == rows
    assert again.part(ABOUT, 6).rows == rows


def test_what_an_earlier_run_left_is_told_before_it_is_opened(spool):
    begun = time.time()
    first = spool()
    part = first.part(ABOUT, 6)
    part.append(records(part, 0, 10))
    assert first.held(ABOUT, 6) == (0, 0.0)  # its own rows are no earlier run's
    again = spool()
    rows, since = again.held(ABOUT, 6)
    assert rows == 10 and begun <= since <= time.time()
    assert again.held(ABOUT, 6, end_ns=10)[0] == 10
    for other in ((ABOUT, 6, 9), ({"symbol": "ETH/USD"}, 6)):
        assert again.held(*other) == (0, 0.0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_part_whose_identity_cannot_be_read_is_begun_anew(spool, damage):
    part = spool().part(ABOUT, 6)
    part.append(records(part, 0, 10))
    [path] = part.path.parent.glob("*.json")
    path.write_bytes(damage)
    assert spool().part(ABOUT, 6).rows == 0


def test_zeros_in_the_place_of_rows_are_seen(spool):
    """As a file system leaves them that knew the file's length before its contents."""
    part = spool().part(ABOUT, 6)
    part.append(records(part, 1, 10))
    with part.path.open("r+b") as file:
        file.seek(7 * 56)
        file.write(bytes(3 * 56))
    assert spool().part(ABOUT, 6).rows == 0


def test_rows_beyond_the_end_that_is_asked_for_are_not_taken_up(spool):
    part = spool().part(ABOUT, 6)
    part.append(records(part, 0, 10))
    assert spool().part(ABOUT, 6, end_ns=10).rows == 10
    assert spool().part(ABOUT, 6, end_ns=9).rows == 0


@pytest.mark.parametrize("ties", [1, 2, 63, 64, 65, 5000])
@pytest.mark.parametrize("before", [0, 1, 64, 2000])
def test_the_rows_of_the_last_stamp_are_given_back_and_cut_off(spool, ties, before):
    part = spool().part(ABOUT, 2)
    wanted = records(part, 0, before + ties)
    wanted["timestamp"][before:] = before
    part.append(wanted)
    assert part.pop_tail().tobytes() == wanted[before:].tobytes()
    assert part.rows == before and part.path.stat().st_size == before * 24
    assert everything(part).tobytes() == wanted[:before].tobytes()


def test_names_keep_their_codes_and_a_torn_one_never_had_rows(spool):
    about = ABOUT | {"codes": True}
    part = spool().part(about, 2)
    names = ["rsi", "sma, 20\nof close", "rsi", "macd"]
    rows = records(part, 0, 4)
    rows["values"][:, 0] = part.codes(names)
    part.append(rows)
    [path] = part.path.parent.glob("*.names")
    with path.open("ab") as file:
        file.write(b'"bbands')
    part = spool().part(about, 2)
    assert part.rows == 4
    assert [part.names[int(code)] for code in everything(part)["values"][:, 0]] == names
    assert part.codes(["macd", "bbands"]).tolist() == [2, 3]
    part = spool().part(about, 2)
    assert part.names == ["rsi", "sma, 20\nof close", "macd", "bbands"]
    path.write_bytes(b'"rsi"\n')
    assert spool().part(about, 2).rows == 0  # rows whose names are gone are of no use


def test_a_second_staging_of_the_same_output_is_refused(spool, tmp_path):
    first = spool()
    second = Spool(first.folder)
    with pytest.raises(
        HpcrlError, match=rf"\.market\.h5\.parts is being staged by process {os.getpid()} on "
    ):
        second.open()
    first.close()
    second.open()
    second.close()


def test_the_folder_goes_when_it_is_done_or_holds_nothing(spool):
    first = spool()
    first.part(ABOUT, 6)
    first.close()
    assert not first.folder.exists()
    first = spool()
    part = first.part(ABOUT, 6)
    part.append(records(part, 0, 1))
    first.close()
    assert first.folder.exists()
    first.remove()  # after close, as a staging does
    assert not first.folder.exists()
    first.remove()


def test_a_folder_that_another_staging_has_taken_over_is_left_to_it(spool):
    first = spool()
    part = first.part(ABOUT, 6)
    part.append(records(part, 0, 1))
    first.close()
    second = Spool(first.folder)
    second.open()
    first.remove()
    assert second.part(ABOUT, 6).rows == 1
    second.close()


def test_nothing_is_written_once_it_is_closed(spool):
    first = spool()
    part = first.part(ABOUT, 6)
    part.append(records(part, 0, 5))
    first.close()
    for late in (lambda: part.append(records(part, 5, 1)), part.clear, part.pop_tail, part.finish):
        with pytest.raises(Closed):
            late()
    assert spool().part(ABOUT, 6).rows == 5


def test_a_full_disk_is_named_and_leaves_whole_records(tmp_path):
    """In a process of its own, whose files may not grow beyond a limit: writing fails as on a full disk."""
    code = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
from hpcrl.market.spool import Spool
from hpcrl.types import RunFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path({str(tmp_path / ".market.h5.parts")!r}))
spool.open()
part = spool.part({ABOUT!r}, 6)
resource.setrlimit(resource.RLIMIT_FSIZE, (56 * 150 + 20, resource.RLIM_INFINITY))
for first in (0, 100):
    rows = np.zeros(100, part.dtype)
    rows["timestamp"] = np.arange(first, first + 100)
    try:
        part.append(rows)
    except RunFailed as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path}") and "File too large" in done.stdout
    spool = Spool(tmp_path / ".market.h5.parts")
    spool.open()
    assert spool.part(ABOUT, 6).rows == 100
    spool.close()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_killed_writer_leaves_a_whole_beginning(tmp_path):
    code = f"""
from pathlib import Path
import numpy as np
from hpcrl.market.spool import Spool
spool = Spool(Path({str(tmp_path / ".market.h5.parts")!r}))
spool.open()
part = spool.part({ABOUT!r}, 6)
while True:
    rows = np.empty(777, part.dtype)
    rows["timestamp"] = np.arange(part.rows, part.rows + 777)
    rows["values"] = rows["timestamp"][:, None]
    part.append(rows)
    print(part.rows, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        said = 0
        while said < 20_000:
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
    spool = Spool(tmp_path / ".market.h5.parts")
    spool.open()  # the lock died with its holder
    part = spool.part(ABOUT, 6)
    found = everything(part)
    assert part.rows >= said
    assert np.array_equal(found["timestamp"], np.arange(part.rows))
    assert np.array_equal(found["values"], np.repeat(found["timestamp"][:, None], 6, 1))
    spool.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFailed, match=rf"cannot write {tmp_path}/file/\.market\.h5\.parts: Not a directory"
    ):
        Spool(tmp_path / "file" / ".market.h5.parts").open()
