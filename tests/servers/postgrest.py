"""A server that speaks the part of PostgREST that supabase-py uses, before a real PostgreSQL, with switches.

``with Postgrest(conninfo) as server`` starts it in a process of its own, so that its work is not the
client's; pytest's fixture is ``postgrest``. What it answers comes from PostgreSQL (numbers as json_agg writes
them); what the service adds in front of PostgREST (keys, 401s, HTML pages of a proxy) is its own.
``postgrest_faults`` has the switches.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every run of pytest imports this module, most without need of theirs
    import numpy as np
    import pandas as pd

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
COLUMNS = ("open", "high", "low", "close", "volume")
ROLES = """
DO $$ BEGIN
  CREATE ROLE anon NOLOGIN; CREATE ROLE authenticated NOLOGIN; CREATE ROLE service_role NOLOGIN BYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
GRANT ALL ON ALL TABLES IN SCHEMA public TO anon, authenticated, service_role;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
"""
"""As Supabase sets them up; tables made later get the same grants."""


def make_key(role: str = "service_role", expires_in: float = 10 * 365 * 86400, secret: str = SECRET) -> str:
    """A legacy key: a JWT, signed by HS256."""
    now = int(time.time())
    claims = {"iss": "supabase", "ref": "tests", "role": role, "iat": now, "exp": now + int(expires_in)}
    parts = [
        json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    ]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


class Postgrest:
    """Serves the database ``conninfo`` at ``url``; ``key`` is its service_role key, ``anon_key`` the other.

    ``keys`` are further ones (text -> role), for instance of the new kind, ``sb_secret_...``.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        max_rows: int | None = 1000,
        schemas: tuple[str, ...] = ("public",),
        keys: dict[str, str] | None = None,
        gzip: bool = False,
        symbol_column: str = "symbol",
        timestamp_column: str = "timestamp",
    ) -> None:
        self.conninfo = conninfo
        self.key, self.anon_key = make_key(), make_key("anon")
        self._settings = {
            "conninfo": conninfo,
            "port": 0,
            "max_rows": max_rows,
            "schemas": list(schemas),
            "keys": {self.key: "service_role", self.anon_key: "anon", **(keys or {})},
            "jwt_secret": SECRET,
            "expired_code": "PGRST303",  # PGRST301 before PostgREST 13
            "gzip": gzip,
            "symbol_column": symbol_column,
            "timestamp_column": timestamp_column,
        }
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._settings['port']}"

    def __enter__(self) -> Postgrest:
        import psycopg

        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute(ROLES)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Also after ``stop``: on the same port, switches and counters anew."""
        command = [sys.executable, "-m", "servers.postgrest_http"]
        folder = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        # The settings hold keys, so they go by no argument and no environment variable.
        self._process.stdin.write(json.dumps(self._settings) + "\n")
        self._process.stdin.flush()
        port = self._process.stdout.readline()
        if not port:
            raise RuntimeError(f"the tests' PostgREST did not start: exit code {self._process.wait()}")
        self._settings["port"] = int(port)

    def stop(self) -> None:
        """From now on connections are refused."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def switch(self, kind: str, **options: Any) -> int:
        """Turn a fault on; its number. Options: see ``postgrest_faults``.

        status (status, retry_after, body), html (status), slow (seconds), drop (how=reset|close|garbage),
        sql (sql: run before the answer, with %(symbol)s and %(cursor)s of the request); of answers with rows:
        short (rows kept), hole (rows), end, cut (at), duplicate (rows), drop_body (at, how=length|chunks),
        slow_body (seconds); of those that count some: count (add or to; neither: no count).
        """
        return int(self._control("switch", kind=kind, **options))

    def clear(self) -> None:
        self._control("clear")

    def set(self, **settings: Any) -> None:
        """Change max_rows, gzip, schemas, keys, expired_code, symbol_column, timestamp_column."""
        assert settings.keys() <= self._settings.keys(), settings
        self._settings |= settings
        self._control("set", **settings)

    def allow(self, key: str, role: str = "service_role") -> None:
        """One more key that the gateway takes."""
        self.set(keys={**self._settings["keys"], key: role})

    def reset(self) -> None:
        """Counters to zero."""
        self._control("reset")

    def stats(self, log: bool = False) -> dict[str, Any]:
        """requests, rows, peak at once, symbols (name -> requests, rows), statuses, acted (switch -> times).

        log: every request (method, path, at, seconds, symbol, status, rows).
        """
        found: dict[str, Any] = self._control("stats", log=log)
        found["acted"] = {int(number): times for number, times in found["acted"].items()}
        return found

    def _control(self, do: str, **given: Any) -> Any:
        body = json.dumps({"do": do, **given}).encode()
        asked = urllib.request.Request(f"{self.url}/_control", body, method="POST")
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from None


def load_bars(
    conninfo: str, frame: pd.DataFrame, timeframe: str | None = "5Min", table: str = "historical_bars"
) -> int:
    """Copy bars (symbol, timestamp, open, high, low, close, volume) into an own table; rows loaded.

    By COPY, binary: the values arrive to the last bit, a million of them in a second or two.
    """
    import pandas as pd
    import psycopg
    from psycopg import sql

    stamps = pd.DatetimeIndex(pd.to_datetime(frame["timestamp"], utc=True)).as_unit("us")
    micros = stamps.asi8 - 946_684_800_000_000  # PostgreSQL counts from 2000
    names = ["symbol", *(["timeframe"] if timeframe else []), "timestamp", *COLUMNS]
    copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    with psycopg.connect(conninfo) as connection:
        with connection.cursor().copy(copy) as stream:
            stream.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for symbol, rows in frame.groupby("symbol", sort=False).indices.items():
                stream.write(_records(str(symbol), timeframe, micros[rows], frame.iloc[rows]))
            stream.write(b"\xff\xff")
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(*table.split("."))))
    return len(frame)


def _records(symbol: str, timeframe: str | None, micros: np.ndarray, rows: pd.DataFrame) -> bytes:
    import numpy as np

    texts = [text.encode() for text in (symbol, timeframe) if text]
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    for at, text in enumerate(texts):
        fields += [(f"size{at}", ">i4"), (f"text{at}", f"S{len(text)}")]
    for name, kind in (("timestamp", ">i8"), *((name, ">f8") for name in COLUMNS)):
        fields += [(f"size_{name}", ">i4"), (name, kind)]
    packed = np.zeros(len(rows), dtype=fields)
    packed["fields"] = len(texts) + 1 + len(COLUMNS)
    for at, text in enumerate(texts):
        packed[f"size{at}"], packed[f"text{at}"] = len(text), text
    packed["timestamp"], packed["size_timestamp"] = micros, 8
    for name in COLUMNS:
        packed[name], packed[f"size_{name}"] = rows[name].to_numpy(float), 8
    return packed.tobytes()


@pytest.fixture
def postgrest(database: str) -> Iterator[Postgrest]:
    """Before a database of its own with the tables that ``hpcrl stage schema`` makes, both empty."""
    import psycopg

    from hpcrl.config.tables import Tables
    from hpcrl.market.schema import schema_sql

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(schema_sql(Tables()))
    with Postgrest(database) as server:
        yield server
