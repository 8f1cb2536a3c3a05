"""Pushed and staged by either way, the same bars give the same file: the source's, to the last bit."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from servers.postgrest import Postgrest
from staging import SECRET_NAMES, SYMBOLS, arguments, check_complete, leftovers, walk

from hpcrl.config.tables import Tables
from hpcrl.market.schema import schema_sql
from hpcrl.market.store import read_store

pytestmark = pytest.mark.database

ODD_VOLUMES = (0.0, -0.0, 5e-324, 2.0**53 + 2, 0.1 + 0.2, 1e15 + 0.125)
"""What a detour over text or JSON might round, or give another sign."""


@pytest.fixture
def both(hpcrl, postgres, tmp_path, monkeypatch):
    """``both(rows)``: 6 symbols through both ways in and both ways out; sha256 of the four files."""
    for name in SECRET_NAMES:
        monkeypatch.delenv(name, raising=False)

    def run(*given: object) -> None:
        code, _, err = hpcrl(*given)
        assert code == 0, err

    def through(rows: int) -> set[str]:
        frame = walk(rows, SYMBOLS)
        for at, volume in enumerate(ODD_VOLUMES):
            frame.loc[frame["symbol"] == SYMBOLS[at], "volume"] = frame["volume"].where(
                frame.index % 7 != at, volume
            )
        source = tmp_path / "bars.parquet"
        frame.to_parquet(source, index=False)
        found = set()
        for into in ("supabase", "postgres"):
            database = postgres.fresh_database()
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(schema_sql(Tables()))
            with Postgrest(database) as server:
                monkeypatch.setenv("SUPABASE_URL", server.url)
                monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", server.key)
                monkeypatch.setenv("DATABASE_URL", database)
                run("stage", "push", source, "--to", into)
                for out_of in ("supabase", "postgres"):
                    out = tmp_path / f"{into}_{out_of}.h5"
                    run(*arguments(out_of, out, SYMBOLS))
                    found.add(check_complete(out, frame, out_of))
                    out.unlink()
                    out.with_suffix(".report.json").unlink()
        out = tmp_path / "files.h5"
        run("stage", "files", "--path", source, "--calendar", "24/7", "--out", out, "--no-coverage")
        found.add(str(read_store(out)[1]["sha256"]))
        assert leftovers(tmp_path, spool=False) == ["bars.parquet", "files.h5", "files.report.json"]
        return found

    return through


@pytest.mark.slow
def test_two_thousand_bars_of_six_symbols(both):
    assert len(both(2000)) == 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_bars_of_six_symbols(both):
    assert len(both(100_000)) == 1


def test_a_push_that_is_cut_off_is_finished_by_the_next(hpcrl, postgrest, tmp_path: Path, monkeypatch):
    """Over HTTP there is no transaction: what arrived stays, and is left alone the next time."""
    frame = walk(2000, SYMBOLS[:2])
    frame.to_parquet(tmp_path / "bars.parquet", index=False)
    monkeypatch.setenv("SUPABASE_URL", postgrest.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", postgrest.key)
    fault = postgrest.switch("status", status=400, method="POST", first=2)
    code, _, err = hpcrl("stage", "push", tmp_path / "bars.parquet", "--to", "supabase")
    assert code in (1, 2) and any(symbol in err for symbol in SYMBOLS[:2]), err
    assert postgrest.stats()["acted"][fault] == 1
    postgrest.clear()
    code, _, err = hpcrl("stage", "push", tmp_path / "bars.parquet", "--to", "supabase")
    assert code == 0, err
    code, _, err = hpcrl(*arguments("supabase", tmp_path / "market.h5", SYMBOLS[:2]))
    assert code == 0, err
    check_complete(tmp_path / "market.h5", frame)
