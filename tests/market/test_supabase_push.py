"""Pushing over PostgREST by the real supabase-py: every bar once, whatever is lost on the way."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pandas as pd
import psycopg
import pytest
from pydantic import SecretStr
from rest_source import execute, opened, rows_of, same
from staging import SYMBOLS, loaded, walk

from hpcrl.config.tables import Tables
from hpcrl.market.push import Pushed, push
from hpcrl.market.supabase_push import SupabaseTarget
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database
ONE = SYMBOLS[0]


@pytest.fixture
def pushing(postgrest, tmp_path):
    """``pushing(frame, ...)``: its bars pushed from a CSV file; the result."""

    def run(frame: pd.DataFrame, tables=None, patience: float = 3.0, timezone=None, **options):
        frame.to_csv(tmp_path / "bars.csv", index=False)
        target = SupabaseTarget(
            postgrest.url, SecretStr(postgrest.key), Tables.model_validate(tables or {}), "5Min", timezone,
            requests_per_second=1e6, patience_seconds=patience,
        )  # fmt: skip
        return push(tmp_path / "bars.csv", target, bar_seconds=300, **options)

    return run


def table(postgrest) -> pd.DataFrame:
    with psycopg.connect(postgrest.conninfo) as connection:
        rows = connection.execute("SELECT * FROM historical_bars ORDER BY symbol, timestamp")
        return pd.DataFrame(rows.fetchall(), columns=[column.name for column in rows.description])


def check(postgrest, folder, frame: pd.DataFrame) -> None:
    source = opened(postgrest, folder)
    for symbol, rows in frame.groupby("symbol"):
        same(rows_of(source, symbol), rows)
    source.close()
    source.remove_spool()
    assert len(table(postgrest)) == len(frame)


def test_bars_are_there_to_the_last_bit_and_pushing_again_changes_nothing(postgrest, pushing, tmp_path):
    frame = walk(2500, SYMBOLS[:2])
    told = []
    done = pushing(frame, progress=lambda *each: told.append(each))
    assert done.symbols == dict.fromkeys(SYMBOLS[:2], Pushed(inserted=2500))
    assert told[-1] == (SYMBOLS[1], 2500, 2500)
    check(postgrest, tmp_path, frame)
    postgrest.reset()
    assert pushing(frame).symbols == dict.fromkeys(SYMBOLS[:2], Pushed(skipped=2500))
    assert all(entry["method"] == "GET" for entry in postgrest.stats(log=True)["log"])


def test_rows_that_were_missing_are_added(postgrest, pushing, tmp_path):
    frame = walk(2500, [ONE])
    pushing(frame.iloc[np.r_[0:700, 900:2500:2]])
    assert pushing(frame).symbols[ONE] == Pushed(inserted=1000, skipped=1500)
    check(postgrest, tmp_path, frame)


def test_other_values_are_refused_for_all_symbols_before_anything_is_written(postgrest, pushing, tmp_path):
    frame = walk(1500, SYMBOLS[:3])
    before = loaded(postgrest, 1500, SYMBOLS[1:2])
    execute(postgrest, "UPDATE historical_bars SET volume = 7 WHERE timestamp = '2023-03-01 00:05Z'")
    changed = frame[frame["symbol"] != SYMBOLS[1]]
    both = pd.concat([changed, before], ignore_index=True)
    with pytest.raises(
        HpcrlError, match=rf"1 of 4,500 rows have other values(.|\n)*{SYMBOLS[1]} at 2023-03-01T00:05"
    ):
        pushing(both)
    assert len(table(postgrest)) == 1500
    assert pushing(both, replace=True).symbols[SYMBOLS[1]] == Pushed(skipped=1499, replaced=1)
    check(postgrest, tmp_path, both)


LOST = {
    "429": ("status", {"status": 429, "requests": 2}),
    "503": ("status", {"status": 503, "requests": 2}),
    "reset": ("drop", {"requests": 2}),
    "closed": ("drop", {"requests": 2, "how": "close"}),
    # The client gives up waiting and sends it again, while the server still writes the first.
    "late": ("slow", {"seconds": 2.5, "requests": 1}),
}


def posts(postgrest) -> list[int]:
    """Statuses of the insertions that the server has come to an end with."""
    return [entry["status"] for entry in postgrest.stats(log=True)["log"] if entry["method"] == "POST"]


@pytest.mark.parametrize("case", LOST)
def test_an_insertion_whose_answer_is_lost_is_sent_again_without_harm(postgrest, pushing, tmp_path, case):
    kind, options = LOST[case]
    switch = postgrest.switch(kind, method="POST", first=2, **options)
    frame = walk(2500, [ONE])
    assert pushing(frame, patience=2.0 if case == "late" else 5.0).symbols == {ONE: Pushed(inserted=2500)}
    assert postgrest.stats()["acted"][switch] == options["requests"]
    deadline = time.monotonic() + 20
    while len(insertions := posts(postgrest)) < 3 + options["requests"] and time.monotonic() < deadline:
        time.sleep(0.05)  # the late one is still on its way
    assert len(insertions) == 3 + options["requests"]
    assert insertions.count(201) == (4 if case == "late" else 3)
    check(postgrest, tmp_path, frame)


def test_a_push_that_fails_half_way_is_finished_by_the_next(postgrest, pushing, tmp_path):
    frame = walk(3500, SYMBOLS[:2])
    postgrest.switch("status", status=500, method="POST", first=6)
    with pytest.raises(RunFailed, match=rf"{SYMBOLS[1]}: 1,000 of 3,500 rows written to historical_bars"):
        pushing(frame, patience=0.5)
    assert len(table(postgrest)) == 4500
    postgrest.clear()
    done = pushing(frame).symbols
    assert done == {SYMBOLS[0]: Pushed(skipped=3500), SYMBOLS[1]: Pushed(inserted=2500, skipped=1000)}
    check(postgrest, tmp_path, frame)


def test_a_table_without_a_key_is_refused_before_anything_is_written(postgrest, pushing):
    execute(postgrest, "ALTER TABLE historical_bars DROP CONSTRAINT historical_bars_pkey")
    with pytest.raises(HpcrlError, match="has no unique key over symbol, timeframe, timestamp"):
        pushing(walk(5, [ONE]))
    assert len(table(postgrest)) == 0


def test_columns_that_round_are_noticed(postgrest, pushing):
    execute(postgrest, "ALTER TABLE historical_bars ALTER close TYPE numeric(12, 4)")
    with pytest.raises(HpcrlError, match=f"{ONE} at 2023-03-01T00:00:00Z after writing: close is "):
        pushing(walk(5, [ONE]))


def test_mapped_names_types_and_optional_columns(postgrest, pushing, tmp_path):
    execute(
        postgrest,
        'CREATE TABLE "my bars" (id bigint generated always as identity, ticker text, ts timestamp, '
        'o numeric, h float8, l float8, c float8, "vol, traded" bigint, splits float8, d float8, '
        "ends float8, rsi float8, PRIMARY KEY (ticker, ts))",
    )
    names = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "vol, traded", "split": "splits"}
    names |= {"symbol": "ticker", "timestamp": "ts", "timeframe": None, "table": "my bars"}
    names |= {"dividend": "d", "delist": "ends"}
    frame = walk(30, [ONE]).assign(volume=12_345_678_901.0, split=1.0, dividend=0.0, delist=np.nan, rsi=-0.0)
    frame.loc[29, ["split", "dividend", "delist"]] = [2.0, 0.25, 7.5]
    with pytest.raises(HpcrlError, match="holds stamps without a time zone"):
        pushing(frame, {"bars": names}, features=("rsi",))
    for expected in (Pushed(inserted=30), Pushed(skipped=30)):
        done = pushing(frame, {"bars": names}, features=("rsi",), timezone="America/New_York")
        assert done.symbols == {ONE: expected}
    source = opened(postgrest, tmp_path, {"bars": names}, timezone="America/New_York", features=("rsi",))
    found = rows_of(source, ONE)
    same(found, frame, ("open", "high", "low", "close", "volume", "split", "dividend", "delist", "rsi"))
    with psycopg.connect(postgrest.conninfo) as connection:
        first = connection.execute('SELECT min(ts)::text FROM "my bars"').fetchone()
    assert first == ("2023-02-28 19:00:00",)


TEXT = """
DROP TABLE historical_bars; CREATE TABLE historical_bars (symbol text, timeframe text, timestamp text,
open float8, high float8, low float8, close float8, volume float8)
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DROP TABLE historical_bars", r"no table public\.historical_bars \(bars\.table\)"),
        ("ALTER TABLE historical_bars DROP volume", "volume.* does not exist; needed: symbol, timeframe"),
        (TEXT, "timestamp is of type text"),
        ("REVOKE INSERT ON historical_bars FROM service_role", "permission denied"),
        ("ALTER TABLE historical_bars ALTER timestamp TYPE date", "holds dates only, not 2023-03-01T00:05"),
    ],
)
def test_an_empty_table_that_does_not_fit_is_told_so(postgrest, pushing, change, reason):
    execute(postgrest, change)
    with pytest.raises(HpcrlError, match=reason):
        pushing(walk(5, [ONE]))


def test_a_table_with_rows_that_misses_a_column_lists_those_found(postgrest, pushing):
    loaded(postgrest, 3, [ONE])
    execute(postgrest, "ALTER TABLE historical_bars RENAME volume TO shares")
    with pytest.raises(HpcrlError, match=r"no column 'volume' \(bars\.volume\); found: symbol, .*shares"):
        pushing(walk(5, [ONE]))


def test_the_target_is_not_pickled(postgrest):
    target = SupabaseTarget(postgrest.url, SecretStr(postgrest.key), Tables(), "5Min")
    with pytest.raises(TypeError, match="holds a key"):
        pickle.dumps(target)
    assert postgrest.key not in repr(target) + repr(vars(target))
    target.close()
