"""Reading over PostgREST with the real supabase-py: every row, once, in order, whatever a page holds."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from rest_source import asked, execute, new_source, opened, rows_of, same, silent
from servers.postgrest import load_bars
from staging import ROOT, SYMBOLS, environment, loaded, walk

from hpcrl.market.source import Span
from hpcrl.market.spool import BLOCK_ROWS
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database
ONE = SYMBOLS[0]
NO_KEY = "ALTER TABLE historical_bars DROP CONSTRAINT historical_bars_pkey"


def test_all_rows_of_several_symbols_come_whatever_the_cap(postgrest, tmp_path):
    frame = loaded(postgrest, 3001)
    for cap, page_rows in ((1000, 10_000), (None, 10_000), (10_000, 700), (2, 10_000)):
        postgrest.set(max_rows=cap)
        if cap == 2:
            frame = frame.groupby("symbol").head(40)
            execute(postgrest, f"DELETE FROM historical_bars WHERE timestamp > '{frame['timestamp'].max()}'")
        source = opened(postgrest, tmp_path, page_rows=page_rows)
        told: list[tuple[str, int, int]] = []
        source.prepare(dict.fromkeys(SYMBOLS[:3], Span()), lambda *each, told=told: told.append(each))
        for symbol, rows in frame.groupby("symbol"):
            same(rows_of(source, symbol), rows)
            done, total = zip(*[each[1:] for each in told if each[0] == symbol], strict=True)
            assert list(done) == sorted(done) and done[-1] == len(rows) and set(total) == {len(rows)}
        source.close()
        source.remove_spool()
        assert list(tmp_path.iterdir()) == []


def test_spans_are_half_open_and_exact_to_the_microsecond(postgrest, tmp_path):
    frame = loaded(postgrest, 300, [ONE])
    stamps = pd.DatetimeIndex(frame["timestamp"]).as_unit("ns").asi8
    source = opened(postgrest, tmp_path)
    bounds = [
        (stamps[10], stamps[20]),
        (stamps[10] + 1, stamps[20] + 1),
        (stamps[10] - 1, stamps[20] - 1),
        (None, stamps[5]),
        (stamps[290], None),
    ]
    for start, end in bounds:
        first = 0 if start is None else int(np.searchsorted(stamps, start))
        last = 300 if end is None else int(np.searchsorted(stamps, end))
        span = Span(None if start is None else int(start), None if end is None else int(end))
        assert source.count(ONE, span) == last - first
        same(rows_of(source, ONE, span), frame.iloc[first:last])


def test_a_part_of_what_was_prepared_is_not_asked_for_again(postgrest, tmp_path):
    frame = loaded(postgrest, 300, [ONE])
    stamps = pd.DatetimeIndex(frame["timestamp"]).as_unit("ns").asi8
    source = opened(postgrest, tmp_path)
    source.prepare({ONE: Span()}, silent)
    before = len(asked(postgrest))
    same(rows_of(source, ONE, Span(int(stamps[7]), int(stamps[9]))), frame.iloc[7:9])
    assert len(asked(postgrest)) == before


def test_blocks_have_no_more_than_100_000_rows(postgrest, tmp_path):
    frame = loaded(postgrest, BLOCK_ROWS + 5, [ONE])
    postgrest.set(max_rows=50_000)
    source = opened(postgrest, tmp_path, page_rows=50_000)
    blocks = list(source.bars(ONE, Span()))
    assert [len(block["timestamp"]) for block in blocks] == [BLOCK_ROWS, 5]
    same({name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}, frame)


@pytest.mark.parametrize("cap", [5, 6, 7, 100])
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_one_stamp_that_a_page_tears_apart_all_arrive(postgrest, tmp_path, cap, seed):
    """A table without a key, up to 4 rows at a stamp, some of them identical."""
    execute(postgrest, NO_KEY)
    rng = np.random.default_rng(seed)
    frame = walk(60, [ONE], seed)
    frame = frame.iloc[np.repeat(np.arange(60), rng.integers(1, 5, 60))].reset_index(drop=True)
    frame["volume"] = rng.integers(0, 3, len(frame)).astype(float)
    load_bars(postgrest.conninfo, frame)
    postgrest.set(max_rows=cap)
    same(rows_of(opened(postgrest, tmp_path), ONE), frame)


@pytest.mark.parametrize("page_rows", [4, 10_000])
def test_a_page_full_of_one_stamp_is_an_error_that_names_it(postgrest, tmp_path, page_rows):
    execute(postgrest, NO_KEY)
    frame = walk(20, [ONE])
    frame = frame.iloc[np.r_[0:20, [7] * 4]]
    load_bars(postgrest.conninfo, frame)
    postgrest.set(max_rows=4)
    with pytest.raises(RunFailed) as caught:
        rows_of(opened(postgrest, tmp_path, page_rows=page_rows), ONE)
    assert "expected 24 rows" in str(caught.value) and ONE in str(caught.value)
    assert "4 rows at 2023-03-01T00:35:00Z fill a page" in str(caught.value)


def test_pages_begin_at_the_last_stamp_and_the_count_is_asked_for_before_and_after(postgrest, tmp_path):
    frame = loaded(postgrest, 2500, [ONE])
    source = opened(postgrest, tmp_path)
    postgrest.reset()
    source.prepare({ONE: Span()}, silent)
    log = asked(postgrest, ONE)
    starts = [parse_qs(urlsplit(entry["path"]).query).get("timestamp") for entry in log]
    last = [frame["timestamp"][row].isoformat() for row in (999, 1998, 2499)]
    assert starts == [None, [f"gte.{last[0]}"], [f"gte.{last[1]}"], [f"gte.{last[2]}"], None, ["is.null"]]
    assert [entry["rows"] for entry in log] == [1000, 1000, 502, 1, 1, 0]
    assert [entry["status"] for entry in log] == [206, 200, 200, 200, 206, 200]  # 206: a count was asked for


def test_a_symbol_without_rows_is_none_and_the_others_are_named(postgrest, tmp_path):
    loaded(postgrest, 5)
    execute(postgrest, "UPDATE historical_bars SET timeframe = '1Day' WHERE symbol = 'CCC/USD'")
    source = opened(postgrest, tmp_path)
    assert source.count("ZZZ", Span()) == 0 and source.count("CCC/USD", Span()) == 0
    assert source.symbols() == ["AAA/USD", "BBB/USD"]
    assert list(source.bars("ZZZ", Span())) == []
    assert not source.is_empty()


def test_a_list_of_symbols_that_would_take_long_is_not_made(postgrest, tmp_path):
    loaded(postgrest, 1, [f"S{number:03}" for number in range(100)])
    assert len(opened(postgrest, tmp_path).symbols()) == 100
    loaded(postgrest, 1, ["T"])
    assert opened(postgrest, tmp_path).symbols() is None


def test_an_empty_table_is_empty_and_one_that_shows_no_rows_is_not(postgrest, tmp_path):
    assert opened(postgrest, tmp_path).is_empty()
    loaded(postgrest, 5)
    postgrest.switch("end", requests=1)
    assert not opened(postgrest, tmp_path).is_empty()
    postgrest.switch("end")
    with pytest.raises(RunFailed, match="historical_bars: has rows by its exact count"):
        opened(postgrest, tmp_path)


def test_so_many_symbols_at_once_as_there_are_connections(postgrest, tmp_path):
    loaded(postgrest, 3000, SYMBOLS)
    postgrest.switch("slow", seconds=0.05)
    for connections, least in ((1, 1), (3, 3), (16, 6)):
        source = opened(postgrest, tmp_path / str(connections), connections=connections)
        postgrest.reset()
        source.prepare(dict.fromkeys(SYMBOLS, Span()), silent)
        assert least <= postgrest.stats()["peak"] <= connections
        source.close()


def test_the_limit_of_rate_holds_for_all_threads_and_for_repeated_requests(postgrest, tmp_path):
    loaded(postgrest, 2000, SYMBOLS)
    postgrest.switch("status", status=503, chance=0.3, seed=1)
    source = opened(postgrest, tmp_path, connections=6, requests_per_second=40, patience_seconds=60)
    source.prepare(dict.fromkeys(SYMBOLS, Span()), silent)
    at = np.sort([entry["at"] for entry in asked(postgrest)])
    assert len(at) > 30
    # The gate spaces the requests; on the way they may bunch a little.
    assert (at[20:] - at[:-20]).min() > 19 / 40


@pytest.mark.parametrize("retry_after", ["1", "date", "soon", "-5", "1e99"])
def test_retry_after_is_waited_for_up_to_the_patience(postgrest, tmp_path, retry_after):
    frame = loaded(postgrest, 50, [ONE])
    source = opened(postgrest, tmp_path)
    if retry_after == "date":
        moment = pd.Timestamp.now("UTC").ceil("s") + pd.Timedelta("1s")
        retry_after = moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
    postgrest.switch("status", status=429, retry_after=retry_after, symbol=ONE, requests=1)
    same(rows_of(source, ONE), frame)
    refused, again = (entry["at"] for entry in asked(postgrest, ONE)[:2])
    if retry_after == "1e99":
        assert 2.5 < again - refused < 10
    else:
        assert (again - refused > 0.95) == (retry_after not in ("soon", "-5"))


KILLED = """
import signal, sys
from pathlib import Path
from pydantic import SecretStr
from hpcrl.config.tables import Tables
from hpcrl.market.source import Span
from hpcrl.market.supabase import Supabase
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
url, folder, *symbols = sys.argv[1:]
source = Supabase(url, SecretStr(sys.stdin.readline().strip()), Tables(), "5Min", Path(folder),
                  requests_per_second=1e6, patience_seconds=60)
source.open()
source.prepare(dict.fromkeys(symbols, Span()), lambda *told: print(*told, flush=True))
"""


def child(postgrest, folder, symbols, until) -> subprocess.Popen[str]:
    """A process that fetches; when this returns, it has told of so many pages."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, postgrest.url, str(folder / ".market.h5.parts"), *symbols],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(postgrest.key + "\n")
    process.stdin.flush()
    for _ in range(until):
        assert process.stdout.readline(), process.stderr.read()
    return process


@pytest.mark.parametrize("pages", [1, 7, 20])
def test_a_killed_run_is_taken_up_where_it_stopped(postgrest, tmp_path, pages):
    frame = loaded(postgrest, 10_000)
    opened(postgrest, tmp_path / "anew").prepare(dict.fromkeys(SYMBOLS[:3], Span()), silent)
    anew = postgrest.stats()
    postgrest.switch("slow", seconds=0.02)
    process = child(postgrest, tmp_path, SYMBOLS[:3], pages)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    postgrest.clear()
    begun = time.time()  # the server may still be at work on what the killed run had asked
    source = opened(postgrest, tmp_path)
    source.prepare(dict.fromkeys(SYMBOLS[:3], Span()), silent)
    for symbol, rows in frame.groupby("symbol"):
        same(rows_of(source, symbol), rows)
    # Going on begins a row earlier than the killed run's next page, which may add one at the end.
    again = [entry for entry in asked(postgrest) if entry["at"] >= begun]
    assert len(again) <= anew["requests"] - pages + 3
    assert sum(entry["rows"] for entry in again) <= anew["rows"] - 998 * pages + 3


CHANGES = {
    "up to the overlap": "UPDATE historical_bars SET volume = volume + 1 WHERE timestamp <= %s",
    "overlap gone": "DELETE FROM historical_bars WHERE timestamp = %s",
    "earlier gone": "DELETE FROM historical_bars WHERE timestamp < %s::timestamptz - interval '1 h'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_changed_since_the_interruption_is_read_anew(postgrest, tmp_path, change):
    frame = loaded(postgrest, 4000, [ONE])
    source = opened(postgrest, tmp_path)
    switch = postgrest.switch("drop", symbol=ONE, first=4)
    with pytest.raises(RunFailed, match=r"2,99\d of 4,000 rows received"):
        source.prepare({ONE: Span()}, silent)
    source.close()
    assert postgrest.stats()["acted"][switch]
    postgrest.clear()
    # The rows of a page's last stamp are not kept: the last one in the spool is the 2,997th.
    execute(postgrest, CHANGES[change].replace("%s", f"'{frame['timestamp'][2996]}'"))
    left = frame
    if change == "up to the overlap":
        left.loc[:2996, "volume"] += 1
    elif change == "overlap gone":
        left = frame.drop(2996)
    else:
        left = frame[frame["timestamp"] >= frame["timestamp"][2996] - pd.Timedelta("1h")]
    same(rows_of(opened(postgrest, tmp_path), ONE), left)


@pytest.mark.parametrize("kind", ["end", "short"])
def test_an_answer_that_ends_early_costs_a_request_and_not_all_rows_again(postgrest, tmp_path, kind):
    frame = loaded(postgrest, 4000, [ONE])
    source = opened(postgrest, tmp_path)
    postgrest.switch(kind, rows=1, symbol=ONE, first=3, requests=1)
    same(rows_of(source, ONE), frame)
    assert [entry["rows"] for entry in asked(postgrest, ONE)].count(1000) == 4


def test_rows_that_came_since_the_interruption_are_added(postgrest, tmp_path):
    frame = walk(3000, [ONE])
    load_bars(postgrest.conninfo, frame[:2000])
    source = opened(postgrest, tmp_path)
    source.prepare({ONE: Span()}, silent)
    source.close()
    load_bars(postgrest.conninfo, frame[2000:])
    postgrest.reset()
    source, told = opened(postgrest, tmp_path), []
    source.prepare({ONE: Span()}, lambda *each: told.append(each))
    assert told[:2] == [(ONE, 2000, 0), (ONE, 2999, 3000)]  # what was there has not just arrived
    same(rows_of(source, ONE), frame)
    assert postgrest.stats()["rows"] < 1200


def test_another_start_column_or_zone_takes_up_nothing(postgrest, tmp_path):
    frame = loaded(postgrest, 500, [ONE])
    start = int(frame["timestamp"][10].value)
    opened(postgrest, tmp_path).prepare({ONE: Span()}, silent)
    for tables, span in (
        ({}, Span(start, None)),
        ({"bars": {"volume": "close", "close": "volume"}}, Span()),
        ({"bars": {"timeframe": None}}, Span()),
    ):
        source = new_source(postgrest, tmp_path / "other", tables)
        (tmp_path / "other").mkdir(exist_ok=True)
        source.open()
        postgrest.reset()
        source.prepare({ONE: span}, silent)
        assert postgrest.stats()["rows"] >= 490
        source.close()


def test_two_at_once_into_one_output_is_refused(postgrest, tmp_path):
    loaded(postgrest, 5, [ONE])
    first, second = opened(postgrest, tmp_path), opened(postgrest, tmp_path)
    first.prepare({ONE: Span()}, silent)
    with pytest.raises(HpcrlError, match="is being staged by process"):
        second.prepare({ONE: Span()}, silent)
    first.close()
    second.prepare({ONE: Span()}, silent)


def test_the_first_failure_stops_the_others_at_once_and_they_write_no_more(postgrest, tmp_path):
    loaded(postgrest, 3000)
    source = opened(postgrest, tmp_path, patience_seconds=60)
    postgrest.switch("slow", seconds=30, symbol=SYMBOLS[0], first=2)
    postgrest.switch("status", status=400, symbol=SYMBOLS[1], first=2)
    begun = time.monotonic()
    with pytest.raises(HpcrlError, match=f"{SYMBOLS[1]}.*HTTP 400"):
        source.prepare(dict.fromkeys(SYMBOLS[:3], Span()), silent)
    source.close()
    assert time.monotonic() - begun < 10
    rows = {path.name: path.stat().st_size for path in tmp_path.rglob("*.rows")}
    assert sum(size > 0 for size in rows.values()) >= 2  # what came stays for the next run
    for thread in threading.enumerate():
        assert thread is threading.main_thread() or thread.daemon


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_a_server_is_silent(postgrest, tmp_path, number):
    frame = loaded(postgrest, 3000)
    postgrest.switch("slow", seconds=45, symbol=SYMBOLS[0], first=2)
    process = child(postgrest, tmp_path, SYMBOLS[:3], 7)
    begun = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == -number
    postgrest.clear()
    source = opened(postgrest, tmp_path)
    begun = time.time()
    for symbol, rows in frame.groupby("symbol"):
        same(rows_of(source, symbol), rows)
    again = [entry["rows"] for entry in asked(postgrest) if entry["at"] >= begun]
    assert sum(again) < 9000 - 4 * 990  # some of the 7 told of the same rows, at a symbol's end
