"""What a staging does with rows that the database should not have; by both ways."""

import pandas as pd
import psycopg
import pytest
from pydantic import SecretStr
from servers.postgrest import load_bars
from staging import SYMBOLS, check_complete, walk

from hpcrl.config.secrets import Secrets
from hpcrl.market.request import DatabaseRequest
from hpcrl.market.stage_database import spool_folder, stage_postgres, stage_supabase
from hpcrl.types import HpcrlError

pytestmark = pytest.mark.database
TWO = SYMBOLS[:2]


@pytest.fixture(params=["supabase", "postgres"])
def stage(request, postgrest, tmp_path):
    def run(**options):
        asked = DatabaseRequest(tmp_path / "m.h5", symbols=TWO, calendar="24/7", **options)
        if request.param == "supabase":
            secrets = Secrets(supabase_url=postgrest.url, supabase_key=SecretStr(postgrest.key))
            return stage_supabase(secrets, asked)
        return stage_postgres(Secrets(database_url=SecretStr(postgrest.conninfo)), None, asked)

    return run


@pytest.fixture
def sql(postgrest):
    def run(text: str) -> None:
        with psycopg.connect(postgrest.conninfo, autocommit=True) as connection:
            connection.execute(text)

    run("ALTER TABLE historical_bars DROP CONSTRAINT historical_bars_pkey")
    run("""DO $$ DECLARE c record; BEGIN FOR c IN SELECT conname FROM pg_constraint WHERE contype = 'c' AND
           conrelid = 'historical_bars'::regclass LOOP EXECUTE 'ALTER TABLE historical_bars DROP CONSTRAINT '
           || quote_ident(c.conname); END LOOP; END $$""")
    return run


def test_bad_rows_of_all_symbols_are_named_and_staging_works_once_they_are_right(
    stage, postgrest, sql, tmp_path
):
    frame = walk(2000, TWO)
    load_bars(postgrest.conninfo, frame)
    when = frame["timestamp"].iloc[700]
    sql(f"UPDATE historical_bars SET low = -low WHERE timestamp = '{when}'")
    with pytest.raises(HpcrlError, match="2 price_not_positive") as error:
        stage()
    assert error.value.exit_code == 2
    assert all(symbol in str(error.value) for symbol in TWO) and f"{when:%Y-%m-%dT%H:%M}" in str(error.value)
    assert not (tmp_path / "m.h5").exists() and not spool_folder(tmp_path / "m.h5").exists()
    sql("UPDATE historical_bars SET low = -low WHERE low < 0")
    result = stage()
    check_complete(result.path, frame, result.report["source"])


@pytest.mark.parametrize(("column", "value"), [("close", "NaN"), ("high", "Infinity"), ("volume", "-1")])
def test_no_number_is_refused(column, value, stage, postgrest, sql, tmp_path):
    frame = walk(600, TWO)
    load_bars(postgrest.conninfo, frame)
    sql(f"UPDATE historical_bars SET {column} = '{value}' WHERE symbol = '{TWO[1]}' AND timestamp = "
        f"'{frame['timestamp'].iloc[300]}'")  # fmt: skip
    with pytest.raises(HpcrlError, match=rf"(?s)1 (unparsable|infinite|negative_volume).*{TWO[1]}"):
        stage()
    assert list(tmp_path.glob("*")) == []


def test_an_empty_price_is_named(stage, postgrest, sql):
    frame = walk(600, TWO)
    load_bars(postgrest.conninfo, frame)
    sql("ALTER TABLE historical_bars ALTER COLUMN open DROP NOT NULL")
    sql(f"UPDATE historical_bars SET open = NULL WHERE timestamp = '{frame['timestamp'].iloc[10]}'")
    with pytest.raises(HpcrlError, match=r"2 unparsable among 1,200 rows(.|\n)*open is empty"):
        stage()


@pytest.mark.parametrize("stamp", ["2190-01-01", "infinity"])
def test_bars_of_days_to_come_are_refused_unless_left_out_by_name(stamp, stage, postgrest, sql):
    frame = walk(600, TWO)
    load_bars(postgrest.conninfo, frame)
    columns = "open, high, low, close, volume FROM historical_bars"
    sql(f"INSERT INTO historical_bars SELECT symbol, timeframe, '{stamp}', {columns} "
        f"WHERE symbol = '{TWO[0]}' AND timestamp = '{frame['timestamp'].iloc[10]}'")  # fmt: skip
    with pytest.raises(HpcrlError, match=rf"{TWO[0]}: 1 rows are stamped after .* yet to come"):
        stage()
    result = stage(end="2023-12-31")
    check_complete(result.path, frame, result.report["source"])


def test_duplicates_across_the_borders_of_blocks_are_dropped_or_refused(stage, postgrest, sql, monkeypatch):
    """One row three times, so that a page's and a block's end fall between them."""
    frame = walk(2500, TWO)
    load_bars(postgrest.conninfo, frame)
    load_bars(postgrest.conninfo, frame.iloc[995:1005])
    load_bars(postgrest.conninfo, frame.iloc[995:1005])
    result = stage()
    check_complete(result.path, frame, result.report["source"])
    assert result.report["dropped"]["identical_duplicate"]["count"] == 20
    load_bars(postgrest.conninfo, frame.iloc[999:1000].assign(volume=1.5))
    with pytest.raises(HpcrlError, match=r"[12] conflicting_duplicate"):
        stage()


def test_a_row_given_twice_for_one_left_out_is_noticed(stage, postgrest):
    frame = walk(2500, TWO)
    load_bars(postgrest.conninfo, frame)
    for kind in ("hole", "duplicate"):
        postgrest.switch(kind, symbol=TWO[0], rows=1, requests=1)
    result = stage()
    check_complete(result.path, frame, result.report["source"])


def test_bars_that_are_not_over_are_never_taken(stage, postgrest):
    frame = walk(900, TWO)
    now = pd.Timestamp.now("UTC").floor("5min")
    frame["timestamp"] += now + pd.Timedelta(minutes=5) - frame["timestamp"].max()
    frame = frame[frame["timestamp"] != now]  # which may be over by the time that this is staged
    load_bars(postgrest.conninfo, frame)
    result = stage()
    check_complete(result.path, frame[frame["timestamp"] < now], result.report["source"])
