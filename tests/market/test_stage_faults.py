"""Whatever a database's service does wrong: a complete file, or no file and the reason; never a short one."""

from __future__ import annotations

import threading
import time

import pandas as pd
import psycopg
import pytest
from servers.postgrest import COLUMNS
from staging import SYMBOLS, check_complete, check_failed, leftovers, loaded

pytestmark = pytest.mark.database
ROWS = 2500
STRUCK = SYMBOLS[1]


def check_struck(postgrest, switch: int) -> None:
    assert postgrest.stats()["acted"][switch] > 0


def label(value: object) -> str:
    return str(value).replace(" ", "").replace("'", "")


BRIEF = [
    ("status", {"status": 429, "requests": 2}),
    ("status", {"status": 500, "requests": 1}),
    ("status", {"status": 502, "requests": 1, "body": "<html>Bad gateway</html>"}),
    ("status", {"status": 503, "requests": 1}),
    ("status", {"status": 504, "requests": 1}),
    ("html", {"requests": 1}),
    ("html", {"requests": 1, "status": 522}),
    ("slow", {"requests": 1, "seconds": 0.3}),
    ("slow_body", {"requests": 1, "seconds": 0.3}),
    ("drop", {"requests": 1}),
    ("drop", {"requests": 1, "how": "close"}),
    ("drop", {"requests": 1, "how": "garbage"}),
    ("drop_body", {"requests": 1}),
    ("drop_body", {"requests": 1, "how": "chunks"}),
    ("cut", {"requests": 1}),
    ("short", {"requests": 1, "rows": 1}),
    ("short", {"requests": None, "rows": 300}),
    ("short", {"requests": None, "chance": 0.5, "seed": 1}),
    ("hole", {"requests": 1}),
    ("hole", {"requests": 1, "rows": 400}),
    ("end", {"requests": 1}),
    ("duplicate", {"requests": 1}),
    ("count", {"requests": 1, "add": 7}),
    ("count", {"requests": 1, "add": -7}),
]


QUICK = [("status", 429), ("drop_body", None), ("cut", None), ("short", None), ("hole", None), ("end", None)]
"""Faults of `make check`, on the second request: the first page."""


def passing():
    for kind, options in BRIEF:
        for first in (1, 2, 3):
            quick = first == 2 and (kind, options.get("status")) in QUICK and len(options) < 3
            marks = () if quick else pytest.mark.slow
            yield pytest.param(kind, options, first, marks=marks, id=f"{kind}-{label(options)}-{first}")


@pytest.mark.parametrize(("kind", "options", "first"), passing())
def test_a_fault_that_passes_leaves_no_trace(stage, postgrest, tmp_path, kind, options, first):
    frame = loaded(postgrest, ROWS)
    switch = postgrest.switch(kind, symbol=STRUCK, first=first, **options)
    code, err = stage()
    assert code == 0, err
    check_struck(postgrest, switch)
    check_complete(tmp_path / "market.h5", frame)
    assert leftovers(tmp_path, spool=False) == ["market.h5", "market.report.json"]


LASTING = [
    ("status", {"status": 429}, "429"),
    ("status", {"status": 500}, "500"),
    ("status", {"status": 503}, "503"),
    ("html", {}, ""),
    ("drop", {}, ""),
    ("drop", {"how": "close"}, ""),
    ("drop_body", {}, ""),
    ("cut", {}, ""),
    ("hole", {}, ""),
    ("end", {}, ""),
    ("count", {"add": 7}, "2,507"),
    ("count", {"add": -7}, "2,493"),
    ("count", {}, "count"),
]


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize(("kind", "options", "reason"), LASTING, ids=label)
def test_a_fault_that_lasts_ends_in_its_reason(stage, postgrest, tmp_path, kind, options, reason, first):
    loaded(postgrest, ROWS)
    switch = postgrest.switch(kind, symbol=STRUCK, first=first, **options)
    code, err = stage("--patience", 2)
    check_struck(postgrest, switch)
    check_failed(code, err, tmp_path, STRUCK, reason)


@pytest.mark.slow
def test_duplicated_rows_for_good_are_seen(stage, postgrest, tmp_path):
    frame = loaded(postgrest, ROWS)
    switch = postgrest.switch("duplicate", symbol=STRUCK)
    code, err = stage()
    check_struck(postgrest, switch)
    if code == 0:
        check_complete(tmp_path / "market.h5", frame)
    else:
        check_failed(code, err, tmp_path, STRUCK, "out of order")


@pytest.mark.parametrize("kind", ["end", "count"])
def test_an_answer_without_rows_is_no_empty_table_where_there_are_some(stage, postgrest, tmp_path, kind):
    """Only of requests for a symbol: that the table has rows the first look told."""
    loaded(postgrest, ROWS)
    for symbol in SYMBOLS[:3]:
        postgrest.switch(kind, symbol=symbol, **({"to": 0} if kind == "count" else {}))
    code, err = stage()
    assert code in (1, 2) and leftovers(tmp_path) == [] and "synthetic" not in err, err
    assert any(symbol in err for symbol in SYMBOLS[:3]), err


@pytest.mark.slow
def test_retry_after_is_waited_for(stage, postgrest, tmp_path):
    frame = loaded(postgrest, ROWS)
    postgrest.switch("status", status=429, retry_after=1, symbol=STRUCK, first=2, requests=1)
    assert stage()[0] == 0
    check_complete(tmp_path / "market.h5", frame)
    asked = [entry for entry in postgrest.stats(log=True)["log"] if entry["symbol"] == STRUCK]
    (refused,) = [at for at, entry in enumerate(asked) if entry["status"] == 429]
    pauses = [entry["at"] - asked[refused]["at"] for entry in asked[refused + 1 :]]
    assert pauses and min(pauses) >= 1


@pytest.mark.slow
def test_a_service_that_never_answers_is_a_failure_and_not_the_fallback(stage, postgrest, tmp_path):
    loaded(postgrest, ROWS)
    for kind, options in (("status", {"status": 503}), ("status", {"status": 429}), ("drop", {})):
        postgrest.switch(kind, **options)
        code, err = stage("--patience", 2)
        check_failed(code, err, tmp_path)
        postgrest.clear()


@pytest.mark.parametrize(
    "status", [401, *(pytest.param(code, marks=pytest.mark.slow) for code in (400, 403, 404))]
)
def test_the_users_mistake_is_not_tried_again(stage, postgrest, tmp_path, status):
    loaded(postgrest, ROWS)
    body = '{"code":"PGRST303","details":null,"hint":null,"message":"JWT expired"}'
    switch = postgrest.switch("status", status=status, body=body, symbol=STRUCK, first=2)
    code, err = stage()
    assert code in (1, 2) and leftovers(tmp_path) == [], err
    assert "JWT expired" in err and "synthetic" not in err
    assert 1 <= postgrest.stats()["acted"][switch] <= 4  # at most one for each connection


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_is_waited_for(stage, postgrest, tmp_path):
    frame = loaded(postgrest, ROWS)
    postgrest.switch("slow", seconds=0.3)

    def restart():
        while not postgrest.stats()["rows"]:
            time.sleep(0.01)
        postgrest.stop()
        time.sleep(1)
        postgrest.start()

    thread = threading.Thread(target=restart)
    thread.start()
    code, err = stage("--patience", 20)
    thread.join()
    assert code == 0, err
    check_complete(tmp_path / "market.h5", frame)


@pytest.mark.slow
def test_a_server_that_goes_for_good_fails_and_what_came_is_not_fetched_again(stage, postgrest, tmp_path):
    frame = loaded(postgrest, 20_000)
    switch = postgrest.switch("drop", symbol=STRUCK, first=6)
    code, err = stage("--patience", 2)
    check_failed(code, err, tmp_path, STRUCK)
    check_struck(postgrest, switch)
    postgrest.clear()
    postgrest.reset()
    assert stage()[0] == 0
    check_complete(tmp_path / "market.h5", frame)
    assert postgrest.stats()["rows"] < 2 * 20_000  # the struck symbol's rest; of the others a page or two
    assert not (tmp_path / ".market.h5.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_many_faults_at_once_delay_and_nothing_more(stage, postgrest, tmp_path, seed):
    frame = loaded(postgrest, 6000, SYMBOLS)
    faults = [
        ("status", {"status": 429}),
        ("status", {"status": 500}),
        ("drop", {}),
        ("drop", {"how": "close"}),
    ]
    faults += [("drop_body", {}), ("drop_body", {"how": "chunks"}), ("cut", {}), ("html", {})]
    for at, (kind, options) in enumerate(faults):
        postgrest.switch(kind, chance=0.02, seed=100 * seed + at, **options)
    postgrest.switch("short", chance=0.3, seed=seed)
    code, err = stage("--patience", 60, symbols=SYMBOLS)
    assert code == 0, err
    assert sum(postgrest.stats()["acted"].values()) > 10
    check_complete(tmp_path / "market.h5", frame)


ROW = "symbol = %(symbol)s AND timestamp = %(cursor)s"
EARLIER = f"{ROW}::timestamptz - interval '50 min'"
LATER = f"{ROW}::timestamptz + interval '50 min'"
CHANGES = {
    "insert before": "INSERT INTO historical_bars SELECT * FROM aside WHERE timestamp < %(cursor)s",
    "insert after": "INSERT INTO historical_bars SELECT * FROM aside WHERE timestamp > %(cursor)s",
    "delete before": f"DELETE FROM historical_bars WHERE {EARLIER}",
    "delete at": f"DELETE FROM historical_bars WHERE {ROW}",
    "delete after": f"DELETE FROM historical_bars WHERE {LATER}",
    "update at": f"UPDATE historical_bars SET volume = volume + 1 WHERE {ROW}",
    "update after": f"UPDATE historical_bars SET volume = volume + 1 WHERE {LATER}",
}
"""What somebody else does to the table while it is read, seen from where the next page begins.

Not here: a row that was read already gets another value. No count tells of it, and a service without
snapshots cannot; `hpcrl stage postgres` reads one snapshot.
"""
SET_ASIDE = """
CREATE TABLE aside AS WITH gone AS (
  DELETE FROM historical_bars WHERE symbol = %s
  AND timestamp IN ('2023-03-02 00:00Z', '2023-03-05 00:00Z', '2023-03-09 00:00Z') RETURNING *)
SELECT * FROM gone
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", [2, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_change_between_pages_end_in_the_table_as_it_then_is(
    stage, postgrest, tmp_path, change, page
):
    loaded(postgrest, ROWS)
    with psycopg.connect(postgrest.conninfo, autocommit=True) as database:
        database.execute(SET_ASIDE, (STRUCK,))
        switch = postgrest.switch(
            "sql", sql=CHANGES[change], symbol=STRUCK, counting=False, first=page, requests=1
        )
        code, err = stage()
        assert code == 0, err
        check_struck(postgrest, switch)
        check_complete(tmp_path / "market.h5", as_it_is(database))


def as_it_is(database: psycopg.Connection) -> pd.DataFrame:
    names = ["symbol", "timestamp", *COLUMNS]
    rows = database.execute(
        f"SELECT {', '.join(names)} FROM historical_bars ORDER BY symbol, timestamp"
    ).fetchall()
    return pd.DataFrame(rows, columns=names)


def test_a_table_that_never_rests_fails_with_its_counts(stage, postgrest, tmp_path):
    loaded(postgrest, ROWS)
    text = """
        INSERT INTO historical_bars SELECT symbol, timeframe, timestamp - interval '5 min',
        open, high, low, close, volume FROM historical_bars WHERE symbol = %(symbol)s
        ORDER BY timestamp LIMIT 1
    """
    switch = postgrest.switch("sql", sql=text, symbol=STRUCK)
    code, err = stage()
    check_struck(postgrest, switch)
    check_failed(code, err, tmp_path, STRUCK, "2,5")


INDICATORS = """
INSERT INTO technical_indicators SELECT symbol, timeframe, timestamp, name, close
FROM historical_bars, (VALUES ('rsi'), ('ema_12')) names(name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("status", {"status": 500}),
        ("hole", {}),
        ("end", {}),
        ("count", {"add": 3}),
        ("cut", {}),
        ("drop", {}),
    ],
    ids=label,
)
def test_indicators_are_whole_or_there_is_no_file(stage, postgrest, tmp_path, kind, options):
    loaded(postgrest, ROWS)
    with psycopg.connect(postgrest.conninfo, autocommit=True) as database:
        database.execute(INDICATORS)
    switch = postgrest.switch(kind, table="technical_indicators", symbol=STRUCK, **options)
    code, err = stage("--patience", 1)
    check_struck(postgrest, switch)
    check_failed(code, err, tmp_path, STRUCK, "technical_indicators")


@pytest.mark.slow
def test_an_older_file_outlives_a_staging_that_fails(stage, postgrest, tmp_path):
    frame = loaded(postgrest, ROWS)
    assert stage()[0] == 0
    before = (tmp_path / "market.h5").read_bytes()
    postgrest.switch("status", status=500, symbol=STRUCK, first=2)
    code, err = stage("--patience", 1)
    assert code == 1 and STRUCK in err
    assert (tmp_path / "market.h5").read_bytes() == before
    check_complete(tmp_path / "market.h5", frame)
