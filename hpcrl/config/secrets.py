"""Keys and passwords: from the environment, else from a ``.env`` that only its owner can read.

``SUPABASE_URL``, ``SUPABASE_SERVICE_ROLE_KEY``, ``DATABASE_URL``, ``PGPASSWORD``; the environment wins over
the file, an empty value counts as none. Nothing here writes a secret anywhere: not into os.environ, not into
a message, not into a pickle. Refused: a ``.env`` that others can read, addresses and keys that cannot work.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, quote_plus, urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr

from hpcrl.config.dsn import check_dsn, options_of, secret_parts, with_password
from hpcrl.types import HpcrlError

URL, KEY = "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"
DATABASE_URL, PGPASSWORD = "DATABASE_URL", "PGPASSWORD"
ENV_FILE = "HPCRL_ENV_FILE"
"""Path of another file than .env, as hpcrl submit hands it to staging jobs."""
SUPABASE = (URL, KEY)
POSTGRES = (DATABASE_URL, PGPASSWORD)
HIDDEN = "***"
_WHERE = "Supabase's dashboard, Settings > API"
_LIKE_A_SECRET = re.compile(
    # user:password of an address; Path leaves one slash of two
    r"(?:(?<=://)|(?<=[a-z]:/)(?!/))[^\s:/]*:\S*(?=@)"
    r"|(?<=password=)[^\s&;]+|(?<=apikey=)[^\s&;]+"
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]+|sb_secret_\w+",  # keys of Supabase
    re.IGNORECASE,
)


class Secrets(BaseModel):
    """What ``read_secrets`` found. Its repr and its JSON show stars, and it cannot be pickled."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    supabase_url: str | None = None
    supabase_key: SecretStr | None = None
    database_url: SecretStr | None = None
    """As given; with the password of PGPASSWORD where it names none itself."""
    pg_password: SecretStr | None = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("secrets are not pickled: read them anew where they are needed")


def read_secrets(
    folder: Path, environ: Mapping[str, str] = os.environ, names: Sequence[str] = SUPABASE + POSTGRES
) -> Secrets:
    """The secrets of ``names`` that the environment gives, or ``folder``/.env, or in its place the file that
    HPCRL_ENV_FILE names; the others stay None.

    HpcrlError: a .env that others can read or that cannot be understood, an address that cannot be right,
    half of what Supabase needs. The key itself is looked at by ``check_key``.
    """
    found = {name: environ[name] for name in names if environ.get(name, "").strip()}
    origin = dict.fromkeys(found, "the environment")
    path = Path(environ.get(ENV_FILE) or folder / ".env")
    if environ.get(ENV_FILE) and not path.exists():
        raise HpcrlError(f"{ENV_FILE} = {path}: no such file")
    for name, value in _read_env_file(path, [name for name in names if name not in found]).items():
        found[name], origin[name] = value, str(path)
    for name in SUPABASE:
        other = URL if name == KEY else KEY
        if name in found and other in names and other not in found:
            raise HpcrlError(
                f"{name} is set ({origin[name]}) but {other} is not: set both (environment or {path}) or none"
            )
    url, key = found.get(URL), found.get(KEY)
    if url is not None:
        _check_url(url.strip(), origin[URL])
    password, dsn = found.get(PGPASSWORD), found.get(DATABASE_URL)
    for name in POSTGRES:
        if not _is_text(found.get(name, "")):
            raise HpcrlError(f"{name} ({origin[name]}) is not UTF-8 text")
    return Secrets(
        supabase_url=None if url is None else url.strip(),
        supabase_key=None if key is None else SecretStr(key.strip()),
        database_url=None if dsn is None else SecretStr(with_password(dsn.strip(), password)),
        pg_password=None if password is None else SecretStr(password),
    )


def _is_text(value: str) -> bool:
    """Whether it can be handed on: os.environ gives bytes that are not UTF-8 as lone surrogates."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _read_env_file(path: Path, wanted: Sequence[str]) -> dict[str, str]:
    """The non-empty values of ``wanted`` in a .env; {} where there is none."""
    if not wanted:
        return {}
    try:
        # Without O_NONBLOCK a named pipe in that place would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise HpcrlError(f"{path}: cannot be read ({error.strerror})") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise HpcrlError(f"{path}: is no regular file; keys are read from a file of mode 600")
    with open(descriptor, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        text = file.read()
    if not _is_text(text):
        raise HpcrlError(f"{path}: is not a text file (UTF-8)")
    found = _parse(path, text, wanted)
    if found:
        _check_private(path, status, next(iter(found)))
    return found


def _check_private(path: Path, status: os.stat_result, name: str) -> None:
    """HpcrlError where others than its owner may have read or written what is used of the file."""
    if status.st_uid not in (os.geteuid(), 0):
        raise HpcrlError(
            f"{path}: gives {name} but belongs to user {status.st_uid}; make it your own: "
            f"chown {os.geteuid()} {path}"
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise HpcrlError(
            f"{path}: gives {name} but has mode {mode:04o}, open to others: chmod 600 {path} "
            "(and change the key if others may have seen it)"
        )


def _parse(path: Path, text: str, wanted: Sequence[str]) -> dict[str, str]:
    """Values as they stand: ``$`` means nothing. Errors name lines, never what is in them."""
    from dotenv.parser import parse_stream  # dotenv_values would log a malformed line and go on

    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for binding in parse_stream(io.StringIO(text)):
        statement = binding.original.string
        blank = statement[: len(statement) - len(statement.lstrip())]
        line = binding.original.line + len(re.findall(r"\r\n|\n|\r", blank))
        name, value = binding.key, binding.value
        if binding.error or (name is not None and value is None):
            raise HpcrlError(f"{path}, line {line}: not understood; expected NAME=value, or a # comment")
        if name is None or value is None or name not in wanted:
            continue
        if name in lines:
            raise HpcrlError(f"{path}: {name} is given twice, in lines {lines[name]} and {line}")
        lines[name] = line
        if value.strip():
            found[name] = value
    return found


def _check_url(url: str, origin: str) -> None:
    """HpcrlError unless it is the address of a project, and nothing but that."""
    example = "https://PROJECT.supabase.co"
    bad = HpcrlError(f"{URL} ({origin}) is no address of a project: expected {example}")
    host, port = None, None
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    if not host:  # raised here, for urllib's own error quotes from the text and would stay its context
        raise bad
    # Until here it may be anything pasted into the wrong place, a key or a DSN: it is not shown.
    if parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
        raise bad
    if parts.username is not None or parts.password is not None:
        raise HpcrlError(
            f"{URL} ({origin}) holds a user or password: expected {example}; the key goes into {KEY}"
        )
    if parts.query or parts.fragment or any(character in url for character in " ?#"):
        raise bad
    path = re.sub(r"(/rest(/v\d+)?)?/*$", "", parts.path)
    server = f"[{host}]" if ":" in host else host
    project = re.fullmatch(r"/dashboard/project/([a-z0-9]+).*", parts.path)
    if host in ("supabase.com", "app.supabase.com") and project:
        raise HpcrlError(f"{URL} is {url}, the dashboard's address: write https://{project[1]}.supabase.co")
    if path != parts.path:
        right = f"{parts.scheme}://{server}{'' if port is None else f':{port}'}{path}"
        raise HpcrlError(f"{URL} is {url}: write {right}, without what follows it")


def check_key(key: SecretStr, url: str | None = None) -> None:
    """HpcrlError where the key says of itself that it cannot read all rows: of the wrong role, expired, of
    another project than ``url``.

    A JWT is decoded, not verified: only the server can do that. Opaque keys pass.
    """
    text = key.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise HpcrlError(f"{KEY} holds a space or a character that no key has: copy it anew ({_WHERE})")
    if text.startswith("sb_publishable_"):
        raise HpcrlError(
            f"{KEY} is a publishable key: row level security would hide rows; use a secret key "
            f"(sb_secret_...) or the service_role key ({_WHERE})"
        )
    if not text.startswith("eyJ"):  # base64 of '{"': how every JWT begins
        return
    import jwt

    claims: dict[str, Any] | None = None
    with contextlib.suppress(jwt.InvalidTokenError, ValueError, RecursionError):
        claims = jwt.decode(text, options={"verify_signature": False})
    if claims is None:
        raise HpcrlError(f"{KEY} begins like a JWT but is not whole: copy it anew ({_WHERE})")
    role = claims.get("role")
    if role != "service_role":
        what = f"an {role} key" if role in ("anon", "authenticated") else "no service_role key"
        raise HpcrlError(
            f"{KEY} is {what}: row level security would hide rows; use the service_role key ({_WHERE})"
        )
    expires = claims.get("exp")
    if isinstance(expires, (int, float)) and expires <= time.time():
        raise HpcrlError(f"{KEY} expired on {_day(expires)}: make a new one ({_WHERE})")
    host = (urlsplit(url or "").hostname or "").split(".")
    if isinstance(claims.get("ref"), str) and host[1:] == ["supabase", "co"] and host[0] != claims["ref"]:
        raise HpcrlError(
            f"{KEY} is of another project than {URL} = {url}: take both from one project ({_WHERE})"
        )


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "a day long past"


def conninfo(secrets: Secrets, dsn: str | None = None) -> SecretStr | None:
    """How to connect: ``--dsn`` if given, else DATABASE_URL, with PGPASSWORD's password; None: not said."""
    if dsn is not None:
        check_dsn(dsn)
        password = secrets.pg_password.get_secret_value() if secrets.pg_password else None
        return SecretStr(with_password(dsn, password))
    if secrets.database_url is not None and options_of(secrets.database_url.get_secret_value()) is None:
        raise HpcrlError(
            f"{DATABASE_URL} is no connection string of PostgreSQL: expected "
            "postgresql://USER:PASSWORD@HOST:5432/DATABASE (special characters of the password as %XX)"
        )
    return secrets.database_url


def redact(text: str, secrets: Secrets) -> str:
    """``text`` with *** for every secret, also as URLs, connection strings and Python spell it."""
    plain: set[str] = set()
    for secret in (secrets.supabase_key, secrets.pg_password):
        if secret is not None:
            plain.add(secret.get_secret_value())
    if secrets.database_url is not None:
        plain |= secret_parts(secrets.database_url.get_secret_value())
    # A JWT's signature is what makes it one; the parts before it are no secret alone.
    plain |= {value.rpartition(".")[2] for value in plain if value.startswith("eyJ")}
    forms: set[str] = set()
    for value in plain:
        octets = value.encode(errors="surrogateescape")
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        forms |= {
            value,
            quote(octets),
            quote(octets, safe=""),
            quote_plus(octets),
            escaped,
            repr(value)[1:-1],
        }
    for form in sorted(forms - {""}, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def without_secrets(tree: Any) -> Any:
    """The tree with stars for what looks like a password or a key in any text of it.

    No key of the config takes a secret; a path or a name may hold what was pasted into the wrong place.
    """
    if isinstance(tree, dict):
        return {_LIKE_A_SECRET.sub(HIDDEN, str(key)): without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_secrets(value) for value in tree]
    return _LIKE_A_SECRET.sub(HIDDEN, tree) if isinstance(tree, str) else tree
