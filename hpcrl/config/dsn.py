"""Connection strings of PostgreSQL, taken apart by libpq itself; nothing of a bad one is ever shown."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import urlsplit

from hpcrl.types import HpcrlError

SECRET_OPTIONS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""libpq's connection options that are secrets."""


def check_dsn(text: str) -> None:
    """HpcrlError unless ``--dsn`` is a connection string without a password: every user of the machine can
    read a process's arguments."""
    options = options_of(text)
    if options is None:
        raise HpcrlError(
            "--dsn is no connection string of PostgreSQL: expected postgresql://USER@HOST:5432/DATABASE, "
            'or "host=HOST dbname=DATABASE user=USER"'
        )
    secret = next((name for name in SECRET_OPTIONS if options.get(name)), None)
    if secret is not None:
        raise HpcrlError(
            f"--dsn holds a {secret}, which every user of this machine can read in the list of processes: "
            "leave it out and use PGPASSWORD (environment or .env), ~/.pgpass, or the whole as DATABASE_URL"
        )


def options_of(dsn: str) -> dict[str, Any] | None:
    """A connection string's parts; None where it is none, for libpq's own message quotes from it."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    if "\0" in dsn:
        return None
    try:
        return dict(conninfo_to_dict(dsn))
    except (ProgrammingError, UnicodeError):
        return None


def with_password(dsn: str, password: str | None) -> str:
    """``dsn`` with this password, unless it names one; libpq itself would not look into .env."""
    if password is None:
        return dsn
    options = options_of(dsn)
    if options is None or options.get("password"):
        return dsn
    from psycopg.conninfo import make_conninfo

    return make_conninfo(dsn, password=password)


def secret_parts(dsn: str) -> set[str]:
    """Its secrets, decoded and as they stand; all of it where it cannot be taken apart."""
    options = options_of(dsn)
    found = {dsn} if options is None else {str(options[n]) for n in SECRET_OPTIONS if options.get(n)}
    with contextlib.suppress(ValueError):
        found.add(urlsplit(dsn).password or "")
    return found
