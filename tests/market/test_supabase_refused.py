"""Over PostgREST: what cannot work is refused in one clear line, and never with the key in it."""

from __future__ import annotations

import logging
import pickle
import socket
import ssl
import threading
import time
from contextlib import closing

import pytest
from rest_source import execute, new_source, opened, rows_of, same, silent
from servers.postgrest import Postgrest, make_key
from staging import SYMBOLS, loaded

from hpcrl.market.source import Span, Unreachable
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database
ONE = SYMBOLS[0]


def refused(server: Postgrest, folder, tables=None, kind: type = HpcrlError, **options) -> str:
    """The message with which opening and reading end."""
    with pytest.raises(kind) as caught, closing(new_source(server, folder, tables, **options)) as source:
        source.open()
        rows_of(source, ONE)
    assert type(caught.value) is not Unreachable or kind is Unreachable
    assert (caught.value.exit_code == 1) == (kind is not HpcrlError)
    message = str(caught.value)
    assert options.get("key", server.key) not in message and "\n" not in message
    return message


KEYS = {
    "anon": (lambda: make_key("anon"), "is an anon key"),
    "no role": (lambda: make_key(""), "is no service_role key"),
    "expired": (lambda: make_key(expires_in=-3600), "expired on"),
    "publishable": (lambda: "sb_publishable_abcdefghijklmnop", "is a publishable key"),
    "cut off": (lambda: make_key()[:40], "is not whole"),
    "two words": (lambda: "sb_secret_ abc", "a space"),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_cannot_work_are_refused_before_any_request(postgrest, tmp_path, case):
    key, reason = KEYS[case]
    assert reason in refused(postgrest, tmp_path, key=key())
    assert postgrest.stats()["requests"] == 0


def test_keys_that_the_server_refuses_are_named(postgrest, tmp_path):
    loaded(postgrest, 3, [ONE])
    message = refused(postgrest, tmp_path, key="sb_secret_thisoneisunknown")
    assert "does not accept SUPABASE_SERVICE_ROLE_KEY" in message and "Invalid API key" in message
    forged = make_key(secret="another secret of some length, 32 bytes")
    postgrest.allow(forged)
    assert "does not accept SUPABASE_SERVICE_ROLE_KEY" in refused(postgrest, tmp_path, key=forged)


@pytest.mark.parametrize("code", ["PGRST301", "PGRST303"])
def test_a_key_that_expires_meanwhile_is_said_to_have_expired(postgrest, tmp_path, code):
    loaded(postgrest, 3000, [ONE])
    body = f'{{"code":"{code}","details":null,"hint":null,"message":"JWT expired"}}'
    postgrest.switch("status", status=401, body=body, symbol=ONE, first=3)
    assert "SUPABASE_SERVICE_ROLE_KEY has expired" in refused(postgrest, tmp_path)


def test_a_key_of_the_new_kind_works(postgrest, tmp_path):
    frame = loaded(postgrest, 3, [ONE])
    postgrest.allow("sb_secret_abcdefghijklmnop")
    same(rows_of(opened(postgrest, tmp_path, key="sb_secret_abcdefghijklmnop"), ONE), frame)


def test_a_role_without_rights_is_named(postgrest, tmp_path):
    loaded(postgrest, 3, [ONE])
    execute(postgrest, "REVOKE ALL ON historical_bars FROM service_role")
    message = refused(postgrest, tmp_path)
    assert "permission denied for table historical_bars" in message and "service_role" in message


def test_a_missing_table_is_named_with_its_mapping(postgrest, tmp_path):
    message = refused(postgrest, tmp_path, {"bars": {"table": "historic_bars"}})
    assert "no table public.historic_bars (bars.table)" in message
    assert "historical_bars" in message and "hpcrl stage schema" in message and "--tables" in message


def test_missing_columns_are_named_with_those_found(postgrest, tmp_path):
    loaded(postgrest, 3, [ONE])
    message = refused(postgrest, tmp_path, {"bars": {"close": "close_price", "split": "splits"}})
    assert "'close_price' (bars.close), 'splits' (bars.split)" in message
    assert "found: symbol, timeframe, timestamp, open, high, low, close, volume" in message
    assert "did you mean 'close'" in message
    columns = {"symbol": "ticker", "timeframe": "bar", "timestamp": "ts"}
    assert "'ticker' (bars.symbol), 'bar' (bars.timeframe), 'ts' (bars.timestamp)" in refused(
        postgrest, tmp_path, {"bars": columns}
    )


def test_missing_columns_of_indicators_are_named(postgrest, tmp_path):
    loaded(postgrest, 3, [ONE])
    execute(
        postgrest,
        "INSERT INTO technical_indicators VALUES ('A', '5Min', now(), 'rsi', 1)",
        "CREATE TABLE texts (symbol text, timeframe text, timestamp timestamptz, note text)",
        "INSERT INTO texts VALUES ('A', '5Min', now(), 'x')",
    )
    message = refused(postgrest, tmp_path, {"indicators": {"layout": "long", "value": "val"}})
    assert "'val' (indicators.value)" in message and "did you mean 'value'" in message
    message = refused(postgrest, tmp_path, {"indicators": {"table": "texts"}})
    assert "public.texts has neither columns 'indicator' and 'value'" in message


def test_a_schema_that_is_not_exposed_is_named(postgrest, tmp_path):
    message = refused(postgrest, tmp_path, {"bars": {"schema_name": "market"}})
    assert "does not expose this schema" in message and "Invalid schema: market" in message


def test_another_schema_is_read(postgrest, tmp_path):
    frame = loaded(postgrest, 1500, [ONE])
    postgrest.set(schemas=["public", "market"])
    execute(
        postgrest,
        "CREATE SCHEMA market",
        "GRANT USAGE ON SCHEMA market TO service_role",
        'ALTER TABLE historical_bars RENAME TO "Bars, all"',
        'ALTER TABLE "Bars, all" SET SCHEMA market',
        'ALTER TABLE market."Bars, all" RENAME volume TO "Volume: shares"',
    )
    names = {"bars": {"schema_name": "market", "table": "Bars, all", "volume": "Volume: shares"}}
    same(rows_of(opened(postgrest, tmp_path, names), ONE), frame)


URLS = [
    "postgresql://user:secret@host/db",
    "https://user:secret@host",
    "project.supabase.co",
    "http://",
    "http://[",
]


@pytest.mark.parametrize("url", URLS)
def test_what_is_no_address_is_refused_and_not_shown(postgrest, tmp_path, url):
    message = refused(postgrest, tmp_path, url=url)
    assert "SUPABASE_URL is no address of a project" in message and "secret" not in message


@pytest.mark.parametrize("proxy", ["socks5://user:secret@127.0.0.1:1", "gopher://user:secret@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_not_shown(postgrest, tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    message = refused(postgrest, tmp_path)
    assert "ALL_PROXY" in message and "secret" not in message


def test_a_redirection_is_not_followed_with_the_key(postgrest, tmp_path):
    postgrest.switch("status", status=301)
    assert "redirects" in refused(postgrest, tmp_path)
    assert postgrest.stats()["requests"] == 1


def test_no_connection_at_the_first_contact_is_unreachable(postgrest, tmp_path):
    postgrest.stop()
    begun = time.monotonic()
    message = refused(postgrest, tmp_path, kind=Unreachable, patience_seconds=300.0)
    assert "cannot be reached" in message and "refused" in message
    assert "cannot be reached" in refused(
        postgrest, tmp_path, kind=Unreachable, url="http://no.such.host.invalid"
    )
    assert time.monotonic() - begun < 30
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_just_starting_is_waited_for(postgrest, tmp_path):
    frame = loaded(postgrest, 3, [ONE])
    postgrest.stop()
    source = new_source(postgrest, tmp_path)
    starting = threading.Timer(0.2, postgrest.start)
    starting.start()
    source.open()
    starting.join()
    same(rows_of(source, ONE), frame)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("status", {"status": 503}),
        ("status", {"status": 429}),
        ("drop", {}),
        ("html", {}),
        ("slow", {"seconds": 9}),
    ],
    ids=str,
)
def test_a_server_that_fails_from_the_first_request_on_is_a_failure_not_unreachable(
    postgrest, tmp_path, kind, options
):
    postgrest.switch(kind, **options)
    begun = time.monotonic()
    message = refused(postgrest, tmp_path, kind=RunFailed, patience_seconds=1.0)
    assert "public.historical_bars" in message and "failed" in message
    assert time.monotonic() - begun < 6


def test_a_server_that_goes_for_good_after_the_first_contact_is_a_failure(postgrest, tmp_path):
    loaded(postgrest, 3, [ONE])
    source = opened(postgrest, tmp_path, patience_seconds=1.0)
    postgrest.stop()
    with pytest.raises(RunFailed, match=rf"^{ONE}, historical_bars: .* failed .* refused") as caught:
        source.prepare({ONE: Span()}, silent)
    assert type(caught.value) is RunFailed


@pytest.fixture
def plain_listener():
    """Takes connections and answers the first bytes with those given; ``listen(answer) -> port``."""
    sockets = []

    def listen(answer: bytes, context: ssl.SSLContext | None = None) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                    with context.wrap_socket(client, server_side=True) if context else client as connection:
                        connection.recv(65536)
                        connection.sendall(answer)
                except OSError:
                    if server.fileno() < 0:
                        return

        threading.Thread(target=serve, daemon=True).start()
        return server.getsockname()[1]

    yield listen
    for server in sockets:
        server.close()


def test_what_speaks_no_tls_or_no_http_is_a_failure_not_unreachable(postgrest, tmp_path, plain_listener):
    port = plain_listener(b"220 mail.example.com ESMTP\r\n")
    for scheme in ("http", "https"):
        url = f"{scheme}://127.0.0.1:{port}"
        assert "failed" in refused(postgrest, tmp_path, kind=RunFailed, url=url, patience_seconds=1.0)


BODIES = ['{"message":null}', '"text"', "[1]", "[null]", "[", "[" * 100_000, "NaN", "1" * 5000, ""]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:20] or "empty")
def test_a_body_that_makes_no_sense_is_never_taken_for_rows(postgrest, tmp_path, body):
    frame = loaded(postgrest, 1500, [ONE])
    postgrest.switch("status", status=200, body=body, symbol=ONE, first=2, requests=1)
    source = opened(postgrest, tmp_path)
    same(rows_of(source, ONE), frame)
    source.close()
    source.remove_spool()
    postgrest.switch("status", status=200, body=body)
    assert "failed" in refused(postgrest, tmp_path, kind=RunFailed, patience_seconds=0.5)


@pytest.mark.parametrize("count", ["abc", "", "1e3", "-5", "99999999999999999999"])
def test_a_count_that_is_none_is_no_proof(postgrest, tmp_path, count):
    loaded(postgrest, 50, [ONE])
    postgrest.switch("count", to=count, symbol=ONE)
    message = refused(postgrest, tmp_path, kind=RunFailed, patience_seconds=0.5)
    assert ONE in message


def test_a_server_that_tells_the_key_gets_it_nowhere(postgrest, tmp_path):
    loaded(postgrest, 3, [ONE])
    for status in (400, 401, 403, 500):
        body = f'{{"code":"X","message":"no {postgrest.key} here","hint":"{postgrest.key}","details":null}}'
        switch = postgrest.switch("status", status=status, body=body)
        refused(postgrest, tmp_path, kind=RunFailed if status == 500 else HpcrlError, patience_seconds=0.5)
        assert postgrest.stats()["acted"][switch]
        postgrest.clear()


def test_the_key_is_in_no_log_repr_pickle_or_file(postgrest, tmp_path, caplog):
    loaded(postgrest, 1500, [ONE])
    with caplog.at_level(logging.DEBUG):
        source = opened(postgrest, tmp_path)
        rows_of(source, ONE)
        postgrest.switch("drop")
        with pytest.raises(RunFailed):
            source.count(ONE, Span())
    assert len(caplog.records) > 5
    for record in caplog.records:
        assert postgrest.key not in record.getMessage() + repr(record.args) + repr(record.exc_info)
    assert postgrest.key not in repr(source) + repr(vars(source))
    with pytest.raises(TypeError, match="holds a key"):
        pickle.dumps(source)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert postgrest.key.encode() not in path.read_bytes()


def test_closing_leaves_no_thread_and_no_connection(postgrest, tmp_path):
    loaded(postgrest, 1500)
    before = threading.active_count()
    source = opened(postgrest, tmp_path)
    source.prepare(dict.fromkeys(SYMBOLS[:3], Span()), silent)
    source.close()
    source.close()
    for thread in threading.enumerate():
        if thread.name.startswith("fetch"):
            thread.join(5)
    assert threading.active_count() == before
    with pytest.raises(RunFailed):
        source.count(ONE, Span())
