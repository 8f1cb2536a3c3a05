"""A key or a password is nowhere but where it was given: in no file, output, process title or exception."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from servers.postgres import canary
from servers.postgrest import Postgrest, make_key
from staging import SECRET_NAMES, SYMBOLS, arguments, environment, loaded, start, walk

from hpcrl.config.secrets import Secrets
from hpcrl.market.request import DatabaseRequest
from hpcrl.types import HpcrlError

pytestmark = pytest.mark.database


def pieces(secret: str) -> list[bytes]:
    """What must not be found: the secret, and of a JWT its signature alone."""
    return [secret.encode(), secret.rpartition(".")[2].encode()]


def traces(process: subprocess.Popen[str]) -> set[bytes]:
    """What every user of the machine can read of a running process."""
    found = set()
    for name in ("cmdline", "comm"):
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{process.pid}/{name}").read_bytes())
    return found


def run(args: list[str], env: dict[str, str], folder: Path, crash_after: float | None = None):
    """(exit code, everything that the process showed to anybody)."""
    process, seen, begun = start(args, env, folder), set(), time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 60:
        seen |= traces(process)
        if crash_after is not None and time.monotonic() - begun > crash_after:
            process.send_signal(signal.SIGABRT)
            crash_after = None
        time.sleep(0.02)
    out, err = process.communicate(timeout=60)
    return process.returncode, b"\n".join([*seen, out.encode(), err.encode()])


def check_nowhere(secret: str, shown: bytes, folder: Path) -> None:
    for piece in pieces(secret):
        assert piece not in shown
        for path in folder.rglob("*"):
            assert piece not in os.fsencode(path)
            if path.is_file() and path.name != ".env":
                assert piece not in path.read_bytes(), path


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def give(where: str, folder: Path, **secrets: str) -> dict[str, str]:
    """The environment of a command that finds the secrets there, or in a .env in its folder."""
    if where == "environment":
        return environment(None, **secrets)
    path = folder / ".env"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}='{value}'\n" for name, value in secrets.items()))
    return environment()


KEYS = {"legacy": lambda: make_key(expires_in=3600), "new": lambda: f"sb_secret_{canary()}"}
WAYS = [("environment", "legacy"), ("file", "new")]


def set_up(case: str, server: Postgrest, key: str) -> tuple[str, int, list[object]]:
    """(address, exit code to expect, further options)."""
    if case != "wrong key":
        server.allow(key)
    if case == "wrong key":
        return server.url, 2, []
    if case == "500":
        server.switch("status", status=500)
        return server.url, 1, ["--patience", 1]
    if case == "echo":  # a server that sends back what it got
        server.switch("status", status=400, body=f'{{"message":"bad header apikey: {key}","code":"{key}"}}')
        return server.url, 2, []
    if case == "unreachable":
        return f"http://127.0.0.1:{closed_port()}", 0, []
    if case == "abort":
        server.switch("slow", seconds=30)
        return server.url, -signal.SIGABRT, []
    if case == "full":  # a failure of the system while writing
        return server.url, 1, []
    return server.url, 0, []


CASES = ["success", "wrong key", "500", "echo", "abort", "unreachable", "full"]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "kind"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_no_key_leaves_a_staging(postgrest, tmp_path, where, kind, case):
    loaded(postgrest, 600)
    key = KEYS[kind]()
    url, expected, more = set_up(case, postgrest, key)
    env = give(where, tmp_path, SUPABASE_URL=url, SUPABASE_SERVICE_ROLE_KEY=key)
    out = tmp_path / "market.h5"
    if case == "full":
        out = Path("/proc/market.h5")
    args = arguments("supabase", out, SYMBOLS[:3], *more)
    code, shown = run(args, env, tmp_path, 4.0 if case == "abort" else None)
    assert code == expected, shown.decode()
    assert ("synthetic" in shown.decode()) == (case == "unreachable")
    check_nowhere(key, shown, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "kind"), WAYS)
@pytest.mark.parametrize("case", ["success", "wrong key", "echo", "unreachable"])
def test_no_key_leaves_a_push(postgrest, tmp_path, where, kind, case):
    walk(50).to_csv(tmp_path / "bars.csv", index=False)
    key = KEYS[kind]()
    url, expected, _ = set_up(case, postgrest, key)
    env = give(where, tmp_path, SUPABASE_URL=url, SUPABASE_SERVICE_ROLE_KEY=key)
    code, shown = run(["stage", "push", "bars.csv", "--to", "supabase"], env, tmp_path)
    assert code == (1 if case == "unreachable" else expected), shown.decode()
    check_nowhere(key, shown, tmp_path)


def test_the_schema_needs_no_secret_and_tells_none(hpcrl, monkeypatch, tmp_path):
    secret = canary()
    for name in SECRET_NAMES:
        monkeypatch.setenv(name, secret)
    code, out, err = hpcrl("stage", "schema")
    assert code == 0
    check_nowhere(secret, (out + err).encode(), tmp_path)


@pytest.fixture
def password(postgres, postgrest) -> Iterator[tuple[str, str, str]]:
    """(canary, user, database) of a role that may read and write the bars."""
    secret = canary()
    user = postgres.user_with_password(secret)
    database = psycopg.conninfo.conninfo_to_dict(postgrest.conninfo)["dbname"]
    with psycopg.connect(postgrest.conninfo, autocommit=True) as connection:
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}")
        connection.execute(f"ALTER ROLE {user} BYPASSRLS")
    yield secret, user, str(database)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["postgres", "push"])
@pytest.mark.parametrize(
    ("way", "where"),
    [("url", "environment"), ("url", "file"), ("PGPASSWORD", "file"), ("dsn", "environment")],
)
@pytest.mark.parametrize("case", ["success", "wrong", "unreachable", "missing table"])
def test_no_password_leaves_the_process(postgres, postgrest, tmp_path, password, verb, way, where, case):
    secret, user, database = password
    if case == "wrong":
        secret = canary()
    host = postgres.folder if case != "unreachable" else tmp_path / "nowhere"
    if case == "missing table":
        with psycopg.connect(postgrest.conninfo, autocommit=True) as connection:
            connection.execute("DROP TABLE historical_bars")
    if verb == "push":
        walk(50).to_csv(tmp_path / "bars.csv", index=False)
        args = ["stage", "push", "bars.csv", "--to", "postgres"]
    else:
        if case != "missing table":
            loaded(postgrest, 600)
        args = arguments("postgres", tmp_path / "market.h5")
    bare = f"host={host} user={user} dbname={database}"
    given = {
        "url": {"DATABASE_URL": f"postgresql://{user}:{secret}@/{database}?host={host}"},
        "PGPASSWORD": {"DATABASE_URL": bare, "PGPASSWORD": secret},
        "dsn": {"PGPASSWORD": secret},
    }[way]
    env = give(where, tmp_path, **given)
    code, shown = run([*args, "--dsn", bare] if way == "dsn" else args, env, tmp_path)
    fallback = verb == "postgres" and case == "unreachable"
    assert (code == 0) == (case == "success" or fallback), shown.decode()
    assert ("synthetic" in shown.decode()) == fallback
    check_nowhere(secret, shown, tmp_path)


def test_a_password_in_dsn_is_refused_without_being_shown(hpcrl, tmp_path):
    secret = canary()
    for dsn in (f"postgresql://me:{secret}@localhost/db", f"host=localhost password={secret}"):
        code, out, err = hpcrl(*arguments("postgres", tmp_path / "market.h5"), "--dsn", dsn)
        assert code == 2 and "password" in err.lower()
        check_nowhere(secret, (out + err).encode(), tmp_path)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and all that Python tells of behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


FAULTS = {
    "wrong key": None,
    "status": {"status": 500},
    "echo": {"status": 400},
    "drop": {},
    "html": {},
    "count": {"add": 1},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_exception_holds_the_key(postgrest, tmp_path, fault):
    from hpcrl.market.stage_database import stage_supabase

    key = KEYS["legacy"]()
    loaded(postgrest, 600)
    if fault != "wrong key":
        postgrest.allow(key)
        options = {"body": f'{{"message":"{key}","hint":"{key}"}}'} if fault == "echo" else {}
        postgrest.switch("status" if fault == "echo" else fault, **(FAULTS[fault] or {}), **options)
    secrets = Secrets(supabase_url=postgrest.url, supabase_key=SecretStr(key))
    request = DatabaseRequest(
        tmp_path / "market.h5", SYMBOLS[:3], calendar="24/7", patience_seconds=1, requests_per_second=1000
    )
    with pytest.raises(HpcrlError) as caught:
        stage_supabase(secrets, request)
    for error in chain(caught.value):
        told = [str(error), repr(error), repr(error.args), repr(vars(error))]
        told += traceback.format_exception(error)
        for piece in pieces(key):
            assert piece.decode() not in "\n".join(told)
    check_nowhere(key, repr(secrets).encode(), tmp_path)
