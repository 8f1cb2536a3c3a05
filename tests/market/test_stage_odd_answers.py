"""Answers that no PostgREST gives, but proxies and wrong addresses do: never a file made of them."""

from __future__ import annotations

import time

import psycopg
import pytest
from staging import SYMBOLS, check_complete, check_failed, leftovers, loaded

pytestmark = pytest.mark.database
ROWS = 2500
STRUCK = SYMBOLS[1]
NUMBERS = '"open":1,"high":1,"low":1,"close":1,"volume":1'
BODIES = {
    "nothing": "",
    "null": "null",
    "object": '{"message":"ok"}',
    "text": '"text"',
    "numbers": "[1]",
    "nulls": "[null]",
    "half": "[",
    "bare rows": "[{}]",
    "missing columns": '[{"timestamp":"2023-03-01T00:00:00+00:00"}]',
    "no stamp": f'[{{"timestamp":null,{NUMBERS}}}]',
    "odd stamp": f'[{{"timestamp":"nonsense",{NUMBERS}}}]',
    "odd price": f'[{{"timestamp":"2023-03-01T00:00:00+00:00",{NUMBERS}}}]'.replace('"open":1', '"open":"x"'),
}


def check_refused(code: int, err: str, folder) -> None:
    assert code in (1, 2) and leftovers(folder) == [] and "synthetic" not in err, err


@pytest.mark.slow
@pytest.mark.parametrize("symbol", [None, STRUCK])
@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_is_no_list_of_rows(stage, postgrest, tmp_path, body, symbol):
    loaded(postgrest, ROWS)
    first = 1 if symbol is None else 3
    switch = postgrest.switch("status", status=200, body=BODIES[body], symbol=symbol, first=first)
    code, err = stage("--patience", 1)
    assert postgrest.stats()["acted"][switch] > 0
    check_refused(code, err, tmp_path)
    assert symbol is None or symbol in err


@pytest.mark.slow
@pytest.mark.parametrize("symbol", [None, STRUCK])
@pytest.mark.parametrize("status", [204, 301, 303, 307, 404, 408, 451, 520, 599])
def test_a_status_that_is_not_expected(stage, postgrest, tmp_path, status, symbol):
    loaded(postgrest, ROWS)
    postgrest.switch("status", status=status, symbol=symbol, body="{}")
    code, err = stage("--patience", 1)
    check_refused(code, err, tmp_path)
    assert str(status) in err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("end", {}), ("hole", {}), ("short", {"rows": 1})])
def test_a_server_that_keeps_rows_from_everybody(stage, postgrest, tmp_path, kind, options):
    """No row at all with a count of some is not an empty table."""
    loaded(postgrest, ROWS)
    postgrest.switch(kind, **options)
    check_refused(*stage("--patience", 1), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("to", [-5, "0/0", 10**20])
def test_a_count_that_cannot_be(stage, postgrest, tmp_path, to):
    loaded(postgrest, ROWS)
    postgrest.switch("count", to=to, symbol=STRUCK)
    code, err = stage("--patience", 1)
    check_refused(code, err, tmp_path)
    assert STRUCK in err


@pytest.mark.slow
@pytest.mark.parametrize("symbol", [None, STRUCK])
@pytest.mark.parametrize("kind", ["slow", "slow_body"])
def test_a_server_that_falls_silent_is_given_up(stage, postgrest, tmp_path, kind, symbol):
    loaded(postgrest, ROWS)
    postgrest.switch(kind, seconds=60, symbol=symbol)
    began = time.monotonic()
    code, err = stage("--patience", 2)
    check_failed(code, err, tmp_path, symbol or "")
    assert time.monotonic() - began < 20


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_most", [1000, 700, 10])
def test_any_limit_of_rows_pages_right_without_a_unique_key(stage, postgrest, tmp_path, rows_at_most):
    frame = loaded(postgrest, 1500, SYMBOLS[:2])
    with psycopg.connect(postgrest.conninfo, autocommit=True) as database:
        database.execute("ALTER TABLE historical_bars DROP CONSTRAINT historical_bars_pkey")
        database.execute(
            "INSERT INTO historical_bars SELECT * FROM historical_bars WHERE timestamp = '2023-03-01 01:00Z'"
        )
    postgrest.set(max_rows=rows_at_most, gzip=True)
    code, err = stage(symbols=SYMBOLS[:2])
    assert code == 0, err
    check_complete(tmp_path / "market.h5", frame)
    assert "identical" in (tmp_path / "market.report.json").read_text()


def test_a_server_that_gives_one_row_at_a_time_cannot_be_paged(stage, postgrest, tmp_path):
    loaded(postgrest, 400)
    postgrest.set(max_rows=1)
    code, err = stage("--patience", 1, symbols=SYMBOLS[:1])
    check_failed(code, err, tmp_path, SYMBOLS[0], "400")


RETRY_AFTER = ["Thu, 01 Jan 1970 00:00:00 GMT", "-5", "nonsense", "1e400", "nan", ""]


@pytest.mark.slow
@pytest.mark.parametrize("after", RETRY_AFTER)
def test_an_odd_retry_after_is_as_none(stage, postgrest, tmp_path, after):
    frame = loaded(postgrest, 400)
    switch = postgrest.switch("status", status=429, retry_after=after, symbol=STRUCK, requests=1)
    began = time.monotonic()
    code, err = stage("--patience", 5)
    assert postgrest.stats()["acted"][switch] == 1 and time.monotonic() - began < 10
    if code == 0:
        check_complete(tmp_path / "market.h5", frame)
    else:
        check_failed(code, err, tmp_path, STRUCK, "429")


@pytest.mark.slow
def test_a_retry_after_beyond_the_patience_ends_at_once(stage, postgrest, tmp_path):
    loaded(postgrest, 400)
    postgrest.switch("status", status=429, retry_after=86400, symbol=STRUCK)
    began = time.monotonic()
    code, err = stage("--patience", 5)
    check_failed(code, err, tmp_path, STRUCK, "429")
    assert time.monotonic() - began < 10


def test_no_more_requests_at_once_than_connections(stage, postgrest, tmp_path):
    frame = loaded(postgrest, 3000, SYMBOLS)
    postgrest.switch("slow", seconds=0.03)
    code, err = stage("--connections", 2, symbols=SYMBOLS)
    assert code == 0, err
    assert postgrest.stats()["peak"] == 2
    check_complete(tmp_path / "market.h5", frame)
