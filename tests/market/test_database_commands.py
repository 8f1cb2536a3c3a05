"""The commands of docs/staging.md, as a user types them: from CSV to a database and back, by both ways."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.database

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data/sample/MSFT_5min.csv"
SECRETS = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL", "PGPASSWORD", "PGPASSFILE")


@pytest.fixture
def command(hpcrl, tmp_path, monkeypatch):
    """``command(arguments...) -> (JSON of stdout, stderr)``; secrets come from a .env in the folder."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object):
        code, out, err = hpcrl("stage", *arguments, "--json")
        assert code == 0, err
        return json.loads(out), err

    run.raw = hpcrl
    return run


def env_file(folder: Path, **secrets: str) -> None:
    path = folder / ".env"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}='{value}'\n" for name, value in secrets.items()))


def make_tables(command, conninfo: str) -> None:
    code, sql, err = command.raw("stage", "schema")
    assert code == 0, err
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(sql)


def test_from_csv_to_postgres_and_back(command, database, tmp_path):
    env_file(tmp_path, DATABASE_URL=database)
    make_tables(command, database)
    pushed, err = command("push", SAMPLE, "--to", "postgres")
    rows = pushed["symbols"]["MSFT"]
    assert rows["inserted"] > 3000 and rows["skipped"] == rows["replaced"] == 0
    assert f"pushed {rows['inserted']:,} of {rows['inserted']:,} rows" in err
    again, _ = command("push", SAMPLE, "--to", "postgres")
    assert again["symbols"]["MSFT"] == {"inserted": 0, "skipped": rows["inserted"], "replaced": 0}
    back, _ = command("postgres", "--symbols", "MSFT", "--out", "back.h5", "--require-real")
    files, _ = command("files", "--path", SAMPLE, "--out", "files.h5")
    assert back["sha256"] == files["sha256"] and back["report"]["source"] == "postgres"
    assert (tmp_path / "back.coverage.png").read_bytes().startswith(b"\x89PNG")


def test_from_csv_to_supabase_and_back(command, postgrest, tmp_path):
    env_file(tmp_path, SUPABASE_URL=postgrest.url, SUPABASE_SERVICE_ROLE_KEY=postgrest.key)
    pushed, _ = command("push", SAMPLE, "--to", "supabase", "--symbols", "MSFT")
    assert pushed["symbols"]["MSFT"]["inserted"] > 3000
    fast = ("--requests-per-second", "1000", "--no-coverage", "--symbols", "MSFT")
    back, err = command("supabase", *fast, "--out", "back.h5", "--require-real")
    files, _ = command("files", "--path", SAMPLE, "--out", "files.h5")
    assert back["sha256"] == files["sha256"] and back["report"]["source"] == "supabase"
    assert (
        "fetched " in err
        and not list(tmp_path.glob(".*.parts"))
        and not (tmp_path / "back.coverage.png").exists()
    )


def test_other_values_are_refused_unless_they_are_to_be_replaced(command, database, tmp_path):
    env_file(tmp_path, DATABASE_URL=database)
    make_tables(command, database)
    text = SAMPLE.read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(text[:50]) + "\n")
    command("push", "one.csv", "--to", "postgres")
    cells = text[10].split(",")
    at = text[0].split(",").index("volume")
    cells[at] = str(float(cells[at]) + 1)
    text[10] = ",".join(cells)
    (tmp_path / "two.csv").write_text("\n".join(text[:60]) + "\n")
    code, out, err = command.raw("stage", "push", "two.csv", "--to", "postgres")
    assert code == 2 and "volume" in err and "--replace" in err and not out
    code, out, err = command.raw("stage", "push", "two.csv", "--to", "postgres", "--replace")
    assert code == 0 and "10 rows written, 1 replaced, 48 there before" in out, err


def test_a_password_goes_by_the_environment_never_by_dsn(command, postgres, database, tmp_path, monkeypatch):
    make_tables(command, database)
    for arguments in (("push", SAMPLE, "--to", "postgres"), ("postgres", "--out", "m.h5")):
        code, _, err = command.raw("stage", *arguments, "--dsn", "host=h password=canary")
        assert code == 2 and "--dsn holds a password" in err and "canary" not in err
    code, _, err = command.raw("stage", "push", SAMPLE, "--to", "supabase", "--dsn", "host=h")
    assert code == 2 and "--dsn is for --to postgres" in err
    monkeypatch.setenv("PGPASSWORD", "canary-of-pg")
    pushed, _ = command("push", SAMPLE, "--to", "postgres", "--dsn", database)
    assert pushed["symbols"]["MSFT"]["inserted"] > 3000


@pytest.mark.parametrize(("to", "part"), [("supabase", "SUPABASE_URL and"), ("postgres", "DATABASE_URL")])
def test_push_without_an_address_says_what_to_set(command, tmp_path, to, part):
    code, _, err = command.raw("stage", "push", SAMPLE, "--to", to)
    assert code == 2 and part in err and ".env" in err
