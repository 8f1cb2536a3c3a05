"""The tests' PostgREST against the real supabase-py: it answers as the service does, and errs as told."""

from __future__ import annotations

import json
import time

import httpx
import numpy as np
import pandas as pd
import psycopg
import pytest
import supabase
from postgrest.exceptions import APIError

from servers.postgrest import load_bars, make_key

pytestmark = pytest.mark.database
BARS = "historical_bars"


def bars(rows: int = 2500, symbol: str = "BTC/USD", seed: int = 0) -> pd.DataFrame:
    values = np.sort(np.random.default_rng(seed).uniform(1e-9, 1e9, (rows, 5)))
    stamps = pd.date_range("2024-01-01", periods=rows, freq="5min", tz="UTC")
    named = pd.DataFrame(values, columns=["low", "open", "close", "high", "volume"])
    return named.assign(symbol=symbol, timestamp=stamps)


@pytest.fixture
def client(postgrest):
    options = supabase.ClientOptions(postgrest_client_retry=False)
    return supabase.create_client(postgrest.url, postgrest.key, options)


def page(client, start: str = "2024-01-01", symbol: str = "BTC/USD", count=None, limit: int = 10_000):
    asked = client.table(BARS).select("timestamp,close", count=count).eq("symbol", symbol)
    return asked.gte("timestamp", start).order("timestamp").limit(limit).execute()


def test_pages_by_key_bring_every_value_to_the_last_bit(postgrest, client):
    frame = pd.concat([bars(), bars(symbol="A,B", seed=1)], ignore_index=True)
    assert load_bars(postgrest.conninfo, frame) == 5000
    for symbol, wanted in frame.groupby("symbol"):
        got, last = [], "2024-01-01T00:00:00+00:00"
        while len(found := page(client, last, symbol).data) > 1:
            got, last = [*got[: len(got) - bool(got)], *found], found[-1]["timestamp"]
        assert np.array_equal([row["close"] for row in got], wanted["close"])
        assert [row["timestamp"] for row in got] == [stamp.isoformat() for stamp in wanted["timestamp"]]
    stats = postgrest.stats(log=True)
    assert stats["symbols"]["A,B"] == {"requests": 4, "rows": 2503} == stats["symbols"]["BTC/USD"]
    assert stats["rows"] == 5006 and len(stats["log"]) == 8


def test_answers_and_ranges_are_those_of_postgrest(postgrest, client):
    load_bars(postgrest.conninfo, bars())
    assert page(client, count="exact").count == 2500 and len(page(client).data) == 1000
    assert client.table(BARS).select("symbol", count="exact", head=True).execute().count == 2500
    head = {"apikey": postgrest.key, "Prefer": "count=exact"}
    with httpx.Client(base_url=f"{postgrest.url}/rest/v1", headers=head) as http:

        def ask(query: str, **headers: str) -> tuple[int, str]:
            answer = http.get(f"/{BARS}?select=symbol&{query}", headers=headers)
            return answer.status_code, answer.headers["Content-Range"]

        assert ask("") == (206, "0-999/2500")
        assert ask("", Prefer="") == (200, "0-999/*")
        assert ask("limit=10&offset=2495") == (206, "2495-2499/2500")
        assert ask("", Range="2000-2001") == (206, "2000-2001/2500")
        assert ask("timestamp=lt.2024-01-01T00:20:00Z") == (200, "0-3/4")
        assert ask("symbol=eq.none") == (200, "*/0")
        assert ask("limit=0") == (206, "*/2500")
        assert ask("offset=2501") == (416, "*/2500")
        assert http.get(f"/{BARS}?limit=-1").json()["code"] == "PGRST103"
        ordered = http.get(f"/{BARS}?select=a:timestamp&order=timestamp.desc&limit=1").json()
        assert ordered == [{"a": "2024-01-09T16:15:00+00:00"}]
    postgrest.set(max_rows=None)
    assert len(page(client).data) == 2500


def test_filters_and_casts(postgrest, client):
    load_bars(postgrest.conninfo, bars(10))
    load_bars(postgrest.conninfo, bars(5, 'Q"x,(y)'))
    table = client.table(BARS)
    assert len(table.select("*").in_("symbol", ['Q"x,(y)', "none"]).execute().data) == 5
    assert len(table.select("*").in_("symbol", []).execute().data) == 0
    assert len(table.select("symbol").neq("symbol", "BTC/USD").is_("close", None).execute().data) == 0
    assert len(table.select("symbol").not_.is_("close", None).execute().data) == 15
    late = table.select("text:close::text,symbol").gt("timestamp", "2024-01-01T00:40:00+00:00").execute().data
    assert float(late[0]["text"]) == bars(10)["close"].iloc[-1]
    with pytest.raises(APIError, match="does not speak"):
        table.select("*").or_("symbol.eq.a,symbol.eq.b").execute()


def test_inserts_and_upserts(postgrest, client):
    rows = json.loads(bars(3).to_json(orient="records", date_format="iso", double_precision=15))
    rows = [{**row, "timeframe": "5Min"} for row in rows]
    table = client.table(BARS)
    assert table.insert(rows, returning="minimal").execute().data == []
    with pytest.raises(APIError) as twice:
        table.insert(rows[:1]).execute()
    assert twice.value.code == "23505"
    changed = [{**row, "volume": 0.1 + 0.2} for row in rows]
    key = "symbol,timeframe,timestamp"
    assert table.upsert(changed, ignore_duplicates=True, on_conflict=key).execute().data == []
    assert len(table.upsert(changed, on_conflict=key, default_to_null=False).execute().data) == 3
    assert {row["volume"] for row in table.select("volume").execute().data} == {0.30000000000000004}
    with pytest.raises(APIError) as unknown:
        table.insert([{**rows[0], "colour": 1}]).execute()
    assert unknown.value.code == "PGRST204"
    assert len(table.delete().eq("symbol", "BTC/USD").execute().data) == 3
    assert table.select("*", count="exact").execute().count == 0


def refused(url: str, key: str, table: str = BARS, columns: str = "*", schema: str = "public"):
    client = supabase.create_client(url, key, supabase.ClientOptions(schema=schema))
    with pytest.raises(APIError) as error:
        client.table(table).select(columns).execute()
    return error.value


def test_errors_are_those_of_the_service(postgrest):
    url, key = postgrest.url, postgrest.key
    assert refused(url, "wrong").message == "Invalid API key"
    expired = make_key(expires_in=-60)
    postgrest.allow(expired)
    assert (refused(url, expired).code, refused(url, expired).message) == ("PGRST303", "JWT expired")
    forged = make_key(secret="another")
    postgrest.allow(forged)
    assert refused(url, forged).code == "PGRST301"
    missing = refused(url, key, "historical_bar")
    assert (missing.code, missing.hint) == (
        "PGRST205",
        "Perhaps you meant the table 'public.historical_bars'",
    )
    column = refused(url, key, columns="price")
    assert (column.code, column.message) == ("42703", "column historical_bars.price does not exist")
    assert refused(url, key, schema="secret").code == "PGRST106"
    load_bars(postgrest.conninfo, bars(5))
    anonymous = supabase.create_client(url, postgrest.anon_key)
    assert anonymous.table(BARS).select("*").execute().data == []  # row level security: no error, no rows
    with psycopg.connect(postgrest.conninfo, autocommit=True) as connection:
        connection.execute("REVOKE ALL ON historical_bars FROM anon")
    assert refused(url, postgrest.anon_key).code == "42501"
    postgrest.allow("sb_secret_abc")
    assert len(supabase.create_client(url, "sb_secret_abc").table(BARS).select("*").execute().data) == 5


def test_switches_act_on_the_requests_that_they_name(postgrest, client):
    load_bars(postgrest.conninfo, pd.concat([bars(), bars(symbol="ETH/USD")]))
    number = postgrest.switch("status", status=429, retry_after=7, symbol="ETH/USD", first=2, requests=1)
    asked = [*("BTC/USD",) * 3, *("ETH/USD",) * 3]
    codes = []
    for symbol in asked:
        try:
            page(client, symbol=symbol)
            codes.append(200)
        except APIError as error:
            codes.append(error.message)
    assert codes == [200] * 4 + ["the tests' server was told to fail", 200]
    assert postgrest.stats()["acted"] == {number: 1}
    assert postgrest.stats()["statuses"] == {"200": 5, "429": 1}
    postgrest.clear()
    drawn = postgrest.switch("status", status=500, chance=0.5, seed=3)
    failed = 0
    for _ in range(40):
        try:
            page(client, limit=1)
        except APIError:
            failed += 1
    assert failed == postgrest.stats()["acted"][drawn] and 10 < failed < 30
    with pytest.raises(ValueError, match="no switch 'nonsense'"):
        postgrest.switch("nonsense")


@pytest.mark.parametrize(
    ("kind", "options", "rows", "count"),
    [
        ("short", {"rows": 400}, 400, 2500),
        ("hole", {"rows": 3}, 997, 2500),
        ("end", {}, 0, 2500),
        ("duplicate", {"rows": 4}, 1004, 2500),
        ("count", {"add": 5}, 1000, 2505),
        ("count", {"to": 0}, 1000, 0),
        ("count", {}, 1000, None),
    ],
)
def test_answers_that_lie(postgrest, client, kind, options, rows, count):
    load_bars(postgrest.conninfo, bars())
    postgrest.switch(kind, **options)
    found = page(client, count="exact")
    assert (len(found.data), found.count) == (rows, count)
    assert len({row["timestamp"] for row in found.data}) == min(rows, 1000)


@pytest.mark.parametrize("gzip", [False, True])
def test_answers_that_break(postgrest, client, gzip):
    load_bars(postgrest.conninfo, bars())
    postgrest.set(gzip=gzip)
    for kind, options, error in (
        ("drop", {}, httpx.ReadError),
        ("drop", {"how": "close"}, httpx.RemoteProtocolError),
        ("drop", {"how": "garbage"}, httpx.RemoteProtocolError),
        ("drop_body", {}, httpx.RemoteProtocolError),
        ("drop_body", {"how": "chunks"}, httpx.RemoteProtocolError),
    ):
        postgrest.switch(kind, requests=1, **options)
        with pytest.raises(error):
            page(client)
        assert len(page(client).data) == 1000, kind
    postgrest.switch("cut", requests=1)
    assert isinstance(page(client).data, str)  # supabase-py gives what is no JSON as a text
    postgrest.switch("html", requests=1)
    assert "Error code 522" in page(client).data
    for kind in ("slow", "slow_body"):
        postgrest.switch(kind, seconds=0.3, requests=1)
        started = time.perf_counter()
        assert len(page(client).data) == 1000 and time.perf_counter() - started > 0.3


def test_rows_that_change_between_pages(postgrest, client):
    load_bars(postgrest.conninfo, bars())
    text = "DELETE FROM historical_bars WHERE symbol = %(symbol)s AND timestamp = %(cursor)s"
    postgrest.switch("sql", sql=text, symbol="BTC/USD", first=2, requests=1)
    before = page(client, count="exact")
    after = page(client, before.data[-1]["timestamp"], count="exact")
    assert (before.count, after.count) == (2500, 1500)
    assert after.data[0]["timestamp"] > before.data[-1]["timestamp"]


def test_a_stopped_server_refuses_and_comes_back(postgrest, client):
    url = postgrest.url
    postgrest.stop()
    with pytest.raises(httpx.ConnectError):
        page(client)
    postgrest.start()
    assert postgrest.url == url and page(client).data == []
