"""One connection to PostgreSQL, and its failures in words: out of reach, refused, broken off, not permitted.

Passwords stay in the SecretStr: no message, no exception behind a message, and no setting holds one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import errors
from pydantic import SecretStr

from hpcrl.config.dsn import options_of
from hpcrl.config.secrets import Secrets, redact
from hpcrl.market.source import Unreachable
from hpcrl.types import HpcrlError, RunFailed

CONNECT_SECONDS = 15
"""For each of the addresses that a host's name has; a guess."""
PROBE_SECONDS = 3.0
SOCKET_FOLDERS = ("/var/run/postgresql", "/tmp")
"""Where libpq looks where no host is named."""
SETTINGS = {
    "statement_timeout": "4h",  # of one symbol's rows; servers often allow two minutes
    "lock_timeout": "1min",  # a table that somebody is altering
    "idle_in_transaction_session_timeout": "0",  # features are computed between two symbols
    "transaction_timeout": "0",
    "row_security": "off",  # an error, where row level security would leave rows out in silence
    "jit": "off",  # compiling costs more than such plain queries take
    "extra_float_digits": "1",  # floats as text to the last bit
}
"""For a transaction; those that the server knows."""
_ALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # ms
}
_NOT_REACHED = (
    "failed to resolve host",
    "could not translate host name",
    "Connection refused",
    "No such file or directory\n\tIs the server running",
    "timeout expired",
    "No route to host",
    "Network is unreachable",
)
_USERS_MISTAKE = (
    "password",
    "does not exist",
    "pg_hba.conf",
    "authentication failed",
    "Tenant or user not found",
    "is not permitted to log in",
    "permission denied",
)


def connect(conninfo: SecretStr) -> psycopg.Connection[tuple]:
    """A connection on which no statement has run yet.

    Unreachable: nobody is there; HpcrlError: a server refused, or the connection string is no such thing;
    RunFailed: anything else, such as a server that takes the connection and says nothing.
    """
    options = _checked(conninfo)
    defaults: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": "hpcrl", **_ALIVE}
    extra = {name: value for name, value in defaults.items() if name not in options}
    try:
        # Prepared statements would not survive a pooler in front of the server.
        return psycopg.connect(
            conninfo.get_secret_value(), prepare_threshold=None, client_encoding="utf8", **extra
        )
    except psycopg.Error as error:
        failure = _refusal(error, options, conninfo)
    raise failure  # out of the except clause: psycopg's exception knows the password


def _checked(conninfo: SecretStr) -> dict[str, Any]:
    """The parts of a connection string; HpcrlError, which shows none of them, unless it can be one."""
    options = options_of(conninfo.get_secret_value())
    wrong = options is None or not str(options.get("port") or "0").replace(",", "").isdigit()
    # The rest of a password with a bare @ or / lands in one of these.
    wrong = wrong or any("@" in str((options or {}).get(name, "")) for name in ("host", "port", "dbname"))
    if options is None or wrong:
        raise HpcrlError(
            "PostgreSQL's connection string is none: expected postgresql://USER:PASSWORD@HOST:5432/DATABASE "
            "(special characters of the password as %XX, such as %40 for @)"
        )
    return options


def _refusal(error: psycopg.Error, options: dict[str, Any], conninfo: SecretStr) -> HpcrlError:
    text = str(error)
    where = "PostgreSQL at {}, database {}, user {}".format(
        options.get("host") or "the local socket",
        options.get("dbname") or "of the user's name",
        options.get("user") or "of this account",
    )
    # libpq prefixes each line with the address; the reason comes last.
    lines = [line.strip() for line in text.splitlines() if "failed: " in line] or [" ".join(text.split())]
    reason = lines[-1].rpartition("failed: ")[2].removeprefix("FATAL:").strip()
    reached = "FATAL" in text or "fe_sendauth" in text
    late = isinstance(error, errors.ConnectionTimeout)
    late = late or "timeout expired" in text
    if not reached and late and _accepts(options):
        reached, reason = True, f"accepts connections but does not answer ({reason})"
    message = redact(f"{where}: {reason}", Secrets(database_url=conninfo))
    if not reached and (late or any(sign in text for sign in _NOT_REACHED)):
        return Unreachable(f"cannot reach {message}")
    if any(sign in text for sign in _USERS_MISTAKE):
        hint = " (PGPASSWORD, ~/.pgpass or DATABASE_URL gives one)" if "no password supplied" in text else ""
        return HpcrlError(f"{message}{hint}")
    return RunFailed(message)


def _accepts(options: dict[str, Any]) -> bool:
    """Whether anybody takes a connection at one of the hosts, whatever is said on it."""
    return any(_connects(host, port) for host, port in _places(options))


def _places(options: dict[str, Any]) -> list[tuple[str, int]]:
    """Hosts (a folder: of a socket) and ports, as libpq reads them from ``options`` and its variables."""

    def of(name: str, variable: str) -> list[str]:
        return str(options.get(name) or os.environ.get(variable) or "").split(",")

    hosts = of("hostaddr", "PGHOSTADDR")
    if hosts == [""]:
        hosts = of("host", "PGHOST")
    ports = of("port", "PGPORT")
    pairs = zip(hosts, itertools.cycle(ports) if len(ports) == 1 else ports, strict=False)
    named = [([host] if host else SOCKET_FOLDERS, int(port or 5432)) for host, port in pairs]
    return [(host, port) for places, port in named for host in places]


def _connects(host: str, port: int) -> bool:
    try:
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(PROBE_SECONDS)
                local.connect(f"{host}/.s.PGSQL.{port}")
        else:
            socket.create_connection((host, port), PROBE_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def begin(connection: psycopg.Connection[tuple], *, snapshot: bool) -> None:
    """Begin the one transaction; snapshot: all of it sees the database as it is now, and writes nothing."""
    if snapshot:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
    names, values = list(SETTINGS), list(SETTINGS.values())
    connection.execute(
        "select set_config(name, wanted.value, true) from pg_catalog.pg_settings "
        "join unnest(%s::text[], %s::text[]) as wanted (setting, value) on name = wanted.setting",
        [names, values],
    )


@contextlib.contextmanager
def told(what: Callable[[], str], conninfo: SecretStr) -> Iterator[None]:
    """psycopg's errors inside as HpcrlError or RunFailed, which begin with ``what`` was being done."""
    try:
        yield
        return
    except psycopg.Error as error:
        failure = _failure(error, what(), conninfo)
    raise failure


def _failure(error: psycopg.Error, what: str, conninfo: SecretStr) -> HpcrlError:
    reason = error.diag.message_primary or " ".join(str(error).split())
    kind: type[HpcrlError] = RunFailed
    if isinstance(error, errors.InsufficientPrivilege):
        kind = HpcrlError
        if "row-level security" in reason:
            reason += "; connect as the table's owner, or as a role that bypasses it (BYPASSRLS)"
    elif isinstance(error, (errors.DataError, errors.ProgrammingError, errors.IntegrityError)):
        kind = HpcrlError
    elif isinstance(error, errors.QueryCanceled):
        reason = f"the server broke off the query: {reason}"
    elif isinstance(error, errors.LockNotAvailable):
        reason = f"somebody holds a lock on the table: {reason}"
    elif isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or error.sqlstate is None:
        reason = f"the connection was lost: {reason}"
    return kind(redact(f"{what}: {reason}", Secrets(database_url=conninfo)))
