"""``hpcrl stage push``: which database the secrets lead to, and the bars of a file into it."""

from __future__ import annotations

from pathlib import Path

from hpcrl.config.secrets import Secrets, conninfo
from hpcrl.market.push import PushResult, Target, push
from hpcrl.market.request import DatabaseRequest
from hpcrl.types import HpcrlError


def push_to(
    kind: str, secrets: Secrets, dsn: str | None, path: Path, request: DatabaseRequest, replace: bool
) -> PushResult:
    """``kind``: supabase or postgres. Of the request count tables, timeframe, symbols, features, timezone (of
    the file's stamps, and of a column's, that carry none) and progress. HpcrlError as of ``push``."""
    if kind == "supabase":
        target = _supabase(secrets, request)
    else:
        target = _postgres(secrets, dsn, request)
    return push(
        path,
        target,
        bar_seconds=request.bar_seconds,
        timezone=request.timezone,
        symbols=request.symbols,
        replace=replace,
        features=request.features,
        progress=request.progress,
    )


def _supabase(secrets: Secrets, request: DatabaseRequest) -> Target:
    if secrets.supabase_url is None or secrets.supabase_key is None:
        raise HpcrlError("SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are not set (environment or .env)")
    from hpcrl.market.supabase_push import SupabaseTarget

    url, key = secrets.supabase_url, secrets.supabase_key
    return SupabaseTarget(url, key, request.tables, request.timeframe, request.timezone)


def _postgres(secrets: Secrets, dsn: str | None, request: DatabaseRequest) -> Target:
    where = conninfo(secrets, dsn)
    if where is None:
        raise HpcrlError("neither DATABASE_URL (environment or .env) nor --dsn is given")
    from hpcrl.market.postgres_push import PostgresTarget

    return PostgresTarget(where, request.tables, request.timeframe, request.timezone)
