"""A real PostgreSQL server for the tests: its own folder, a unix socket only, gone when the tests are.

``postgres`` is one server per test process (so one per xdist worker); ``database`` an empty database of its
own for one test. Passwords are asked of the roles that ``user_with_password`` makes, of nobody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = (
    "these tests start a real PostgreSQL server, and its programs (postgres, initdb) are neither in PATH nor "
    "in /usr/lib/postgresql/*/bin; install them: apt-get install postgresql (or as root: make test-system)"
)
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "timezone": "UTC",
}
ASKS = "asked_for_password"


def find_program(name: str) -> str | None:
    """PATH, then Debian's folders, newest version first."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    return shutil.which(name) or (str(versions[-1]) if versions else None)


def _die_with_parent() -> None:
    """SIGQUIT (stop at once) when the test process dies; after the change of user, which would clear it."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


class PostgresServer:
    """``start`` and ``stop``; use the fixture."""

    def __init__(self) -> None:
        self.user = "postgres"
        self._count = itertools.count(1)

    @property
    def conninfo(self) -> str:
        """Of the superuser, without a password; the database `postgres`, which tests leave empty."""
        return self._conninfo("postgres")

    def _conninfo(self, name: str) -> str:
        return f"host={self.folder} user={self.user} dbname={name}"

    def connect(self, conninfo: str | None = None, **options: Any) -> Any:
        """psycopg's connection, each statement committed by itself."""
        import psycopg

        return psycopg.connect(conninfo or self.conninfo, **{"autocommit": True, **options})

    def fresh_database(self) -> str:
        """The conninfo of a new empty database."""
        name = f"test_{next(self._count)}"
        with self.connect() as connection:
            connection.execute(f"create database {name}")
        return self._conninfo(name)

    def user_with_password(self, password: str) -> str:
        """The name of a new role without any right, of whom the server asks this password."""
        name = f"user_{next(self._count)}"
        with self.connect() as connection:
            connection.execute(f"create role {name} login in role {ASKS} password '{password}'")
        return name

    def start(self) -> None:
        initdb, postgres = find_program("initdb"), find_program("postgres")
        if initdb is None or postgres is None:
            pytest.skip(MISSING)  # in CI, where none may be skipped, the session fails (tests/conftest.py)
        # Not TMPDIR: a socket's path has at most 107 bytes, and the other user must get there.
        self.folder = Path(tempfile.mkdtemp(prefix="hpcrl-pg-", dir="/tmp"))
        # Removes the folder when the pipe's other end closes, however the test process came to its end.
        self._broom = subprocess.Popen(
            ["sh", "-c", 'cat; until rm -rf "$0"; do sleep 0.1; done 2>/dev/null', str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        as_whom: dict[str, Any] = {"cwd": self.folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        as_whom["preexec_fn"] = _die_with_parent
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            as_whom |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = self.folder / "data"
        made = subprocess.run(
            [
                initdb,
                "--no-sync",
                "-A",
                "trust",
                "-U",
                self.user,
                "-E",
                "UTF8",
                "--locale=C",
                "-D",
                str(data),
            ],
            capture_output=True,
            text=True,
            **as_whom,
        )
        if made.returncode:
            pytest.fail(f"initdb: {made.stderr.strip()}", pytrace=False)
        (data / "pg_hba.conf").write_text(f"local all +{ASKS} scram-sha-256\nlocal all all trust\n")
        settings = SETTINGS | {"unix_socket_directories": str(self.folder)}
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [postgres, "-D", str(data), *(f"--{key}={value}" for key, value in settings.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                **as_whom,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        import psycopg

        deadline = time.monotonic() + 60
        while True:
            try:
                with self.connect() as connection:
                    connection.execute(f"create role {ASKS} nologin")
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL does not start: {error}\n{self.log()}", pytrace=False)
                time.sleep(0.02)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        if hasattr(self, "_process"):
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        if hasattr(self, "_broom"):
            self._broom.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._broom.wait(60)  # it goes on by itself


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server, shared by the tests of this process: each makes a database of its own."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The conninfo of an empty database, which goes with the test: hundreds of them take long to remove."""
    conninfo = postgres.fresh_database()
    yield conninfo
    with postgres.connect() as connection:
        connection.execute(f"drop database {conninfo.rpartition('=')[2]} with (force)")


def canary() -> str:
    """A password that is found wherever it should not be."""
    return f"canary{secrets.token_hex(8)}"
