"""Which failure to connect is which, and that no password shows in any of them."""

from __future__ import annotations

import contextlib
import pickle
import socket
import subprocess
import sys
import threading
import traceback

import pytest
from databases import fill, joined, make_bars, make_tables, source
from psycopg import sql
from pydantic import SecretStr
from servers.postgres import canary

from hpcrl.config.tables import IndicatorsTable, Tables
from hpcrl.market import postgres_connect
from hpcrl.market.postgres_connect import connect
from hpcrl.market.source import Span, Unreachable
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database


def refusal(conninfo: str, password: str = "") -> HpcrlError:
    """The error, of which neither text nor traceback nor anything behind it holds the password."""
    with pytest.raises(HpcrlError) as caught:
        connect(SecretStr(conninfo)).close()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    if password:
        assert password not in shown
        assert password.encode() not in pickle.dumps(caught.value)
    return caught.value


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "conninfo, words",
    [
        ("host=/nowhere user=me", "cannot reach PostgreSQL at /nowhere.*No such file"),
        ("host=127.0.0.1 user=me port={closed}", "cannot reach PostgreSQL at 127.0.0.1.*Connection refused"),
        ("host=no-such-host.invalid user=me", "cannot reach PostgreSQL at no-such-host.invalid"),
        ("postgresql://me:{password}@127.0.0.1:{closed}/db", "cannot reach .*database db, user me"),
    ],
)
def test_nobody_there_is_unreachable(conninfo, words):
    password = canary()
    error = refusal(conninfo.format(closed=closed_port(), password=password), password)
    assert isinstance(error, Unreachable)
    with pytest.raises(Unreachable, match=words):
        raise error


@pytest.mark.parametrize("kind", ["tcp", "tcp by variables", "socket"])
def test_a_server_that_takes_connections_and_never_answers_is_a_failure(monkeypatch, tmp_path, kind):
    """Somebody is there: bars are not to be made up."""
    monkeypatch.setattr(postgres_connect, "CONNECT_SECONDS", 2)  # the least that libpq takes
    password = canary()
    with socket.socket(socket.AF_UNIX if kind == "socket" else socket.AF_INET) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.5432") if kind == "socket" else ("127.0.0.1", 0))
        listener.listen()
        place = f"host={tmp_path}"
        if kind == "tcp":
            place = f"host=127.0.0.1 port={listener.getsockname()[1]}"
        elif kind == "tcp by variables":
            monkeypatch.setenv("PGHOST", "127.0.0.1")
            monkeypatch.setenv("PGPORT", str(listener.getsockname()[1]))
            place = ""
        error = refusal(f"{place} user=me password={password}", password)
    assert isinstance(error, RunFailed) and not isinstance(error, Unreachable)
    assert "accepts connections but does not answer" in str(error)


def test_a_host_that_takes_no_connection_in_time_is_unreachable(monkeypatch):
    monkeypatch.setattr(postgres_connect, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(postgres_connect, "PROBE_SECONDS", 1.0)
    password = canary()
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):  # its queue is full: the system drops whoever comes now, as a firewall does
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        error = refusal(f"host=127.0.0.1 port={port} user=me password={password}", password)
    assert isinstance(error, Unreachable)
    assert "timeout expired" in str(error)


def test_a_server_that_hangs_up_is_a_failure_but_not_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = f"import socket; c = socket.create_connection(('127.0.0.1', {port})); c.close()"
        subprocess.run([sys.executable, "-c", script], check=True)  # the queue works, then the door is shut

        def hang_up() -> None:
            for _ in range(4):  # with and without encryption, and the visitor above
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        error = refusal(f"host=127.0.0.1 port={port} user=me sslmode=disable gssencmode=disable")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert isinstance(error, RunFailed) and not isinstance(error, Unreachable)
    assert "server closed the connection unexpectedly" in str(error)


def test_wrong_and_missing_passwords(postgres, monkeypatch):
    monkeypatch.delenv("PGPASSWORD", raising=False)
    password, wrong = canary(), canary()
    user = postgres.user_with_password(password)
    place = f"host={postgres.folder} dbname=postgres user={user}"
    connect(SecretStr(f"{place} password={password}")).close()
    error = refusal(f"{place} password={wrong}", wrong)
    assert not isinstance(error, RunFailed)
    assert "password authentication failed" in str(error) and f"user {user}" in str(error)
    error = refusal(place)
    assert not isinstance(error, RunFailed)
    assert "no password supplied (PGPASSWORD, ~/.pgpass or DATABASE_URL gives one)" in str(error)
    monkeypatch.setenv("PGPASSWORD", password)
    connect(SecretStr(place)).close()


def test_unknown_database_and_unknown_user(postgres):
    error = refusal(f"host={postgres.folder} user=postgres dbname=nowhere")
    assert not isinstance(error, RunFailed)
    assert 'database "nowhere" does not exist' in str(error)
    error = refusal(f"host={postgres.folder} user=nobody_at_all dbname=postgres")
    assert not isinstance(error, RunFailed)
    assert 'role "nobody_at_all" does not exist' in str(error)


def test_a_server_without_a_free_place_is_a_failure(postgres, database):
    name = sql.Identifier(database.rpartition("dbname=")[2])
    user = postgres.user_with_password("sesame")
    with postgres.connect() as connection:
        connection.execute(sql.SQL("alter database {} connection limit 0").format(name))
    error = refusal(f"{database} user={user} password=sesame")
    assert isinstance(error, RunFailed) and not isinstance(error, Unreachable)
    assert "too many connections" in str(error)


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://me:{password}@word@127.0.0.1/db",
        "postgresql://me:{password}/word@127.0.0.1/db",
        "postgresql://me:12/{password}@127.0.0.1/db",
        "postgresql://me:{password}#word@127.0.0.1:port/db",
        "{password}",
        "password={password} word",
        "{password}=word",
        "mysql://me:{password}@127.0.0.1/db",
        "postgresql://me:{password}\0@127.0.0.1/db",
        "host=127.0.0.1 port={password}",
    ],
)
def test_a_string_that_is_none_shows_nothing_of_it(conninfo):
    password = canary()
    error = refusal(conninfo.format(password=password), password)
    assert not isinstance(error, RunFailed)
    assert "word" not in str(error).replace("PASSWORD", "").replace("password", "")


def test_a_table_that_one_may_not_read(postgres, database):
    user = postgres.user_with_password("sesame")
    with postgres.connect(database) as connection:
        make_tables(connection, Tables(indicators=IndicatorsTable(table=None)))
        connection.execute("alter table historical_bars disable row level security")
        reader = source(f"{database} user={user} password=sesame")
        with pytest.raises(
            HpcrlError, match="PostgreSQL: permission denied for table historical_bars"
        ) as caught:
            reader.open()
        assert not isinstance(caught.value, RunFailed)
        reader.close()
        connection.execute(sql.SQL("grant select on historical_bars to {}").format(sql.Identifier(user)))
        reader = source(f"{database} user={user} password=sesame")
        reader.open()
        reader.close()


def test_row_level_security_that_hides_rows_is_an_error_not_an_empty_table(postgres, database):
    user = postgres.user_with_password("sesame")
    with postgres.connect(database) as connection:
        make_tables(connection, Tables())
        fill(connection, "A", make_bars(3))
        name = sql.Identifier(user)
        connection.execute(
            sql.SQL("grant select on historical_bars, technical_indicators to {}").format(name)
        )
        reader = source(f"{database} user={user} password=sesame")
        with pytest.raises(HpcrlError, match=r"row-level security policy .*BYPASSRLS"):
            reader.open()
        reader.close()
        connection.execute(sql.SQL("alter role {} bypassrls").format(name))
    reader = source(f"{database} user={user} password=sesame")
    reader.open()
    assert len(joined(reader.bars("A", Span()))["open"]) == 3
    reader.close()


def test_no_password_in_repr_pickle_or_the_servers_eyes(postgres, database):
    password = canary()
    user = postgres.user_with_password(password)
    with postgres.connect(database) as connection:
        make_tables(connection, Tables())
        name = sql.Identifier(user)
        connection.execute(sql.SQL("alter role {} bypassrls").format(name))
        connection.execute(
            sql.SQL("grant select on historical_bars, technical_indicators to {}").format(name)
        )
        reader = source(f"{database} user={user} password={password}")
        reader.open()
        seen = connection.execute("select * from pg_stat_activity where usename = %s", [user]).fetchall()
        assert len(seen) == 1 and password not in repr(seen)
    held = [repr(reader), repr(vars(reader)), str(vars(reader))]
    reader.close()
    assert all(password not in text for text in held)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(source(f"password={password}"))
