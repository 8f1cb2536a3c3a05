"""Going on from an older file: only what is new is fetched, and the result is that of a staging anew."""

import json
from io import StringIO

import pandas as pd
import psycopg
import pytest
from pydantic import SecretStr
from rich.console import Console
from servers.postgrest import load_bars
from staging import SYMBOLS, check_complete, walk

from hpcrl.config.secrets import Secrets
from hpcrl.market.quality import render_report
from hpcrl.market.request import DatabaseRequest
from hpcrl.market.stage import stage_synthetic
from hpcrl.market.stage_database import stage_postgres, stage_supabase
from hpcrl.types import HpcrlError

pytestmark = pytest.mark.database
OLD, NEW = 3000, 3700
TWO = SYMBOLS[:2]


@pytest.fixture(params=["supabase", "postgres"])
def stage(request, postgrest, tmp_path):
    """``stage(name, **options)`` of the two symbols by either way."""

    def run(name: str, **options):
        given = {"symbols": TWO, "calendar": "24/7", "requests_per_second": 1e4, **options}
        asked = DatabaseRequest(tmp_path / name, **given)
        if request.param == "supabase":
            return stage_supabase(
                Secrets(supabase_url=postgrest.url, supabase_key=SecretStr(postgrest.key)), asked
            )
        return stage_postgres(Secrets(database_url=SecretStr(postgrest.conninfo)), None, asked)

    return run


@pytest.fixture
def bars(postgrest):
    """All rows; the first OLD of each symbol stand in the database."""
    frame = walk(NEW, TWO)
    rank = frame.groupby("symbol").cumcount()
    load_bars(postgrest.conninfo, frame[rank < OLD])
    return frame, frame[rank < OLD], frame[rank >= OLD]


def run_sql(server, text: str) -> None:
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(text)


def test_an_update_equals_a_staging_anew_and_leaves_the_old_file(stage, bars, postgrest, tmp_path):
    whole, old, new = bars
    first = stage("old.h5")
    before = first.path.read_bytes()
    load_bars(postgrest.conninfo, new)
    postgrest.reset()
    second = stage("new.h5", update=first.path, symbols=())
    fetched = postgrest.stats()["rows"]
    assert fetched == 0 or fetched < 3 * (NEW - OLD) + 2500, fetched  # the new ones and the overlap
    check_complete(second.path, whole, second.report["source"])
    check_complete(first.path, old, first.report["source"])
    assert first.path.read_bytes() == before
    assert second.sha256 == stage("anew.h5").sha256
    assert second.report["update"]["continued"] == list(TWO) and not second.report["update"]["restaged"]
    said = StringIO()
    Console(file=said, width=300).print(render_report(second.report))
    assert f"old.h5: went on with {', '.join(TWO)}" in " ".join(said.getvalue().split())
    third = stage("third.h5", update=second.path)  # nothing new: the same contents
    assert third.sha256 == second.sha256


def test_a_symbol_whose_past_was_filled_is_fetched_anew(stage, bars, postgrest):
    whole, old, new = bars
    gap = old.index[100]
    run_sql(postgrest, f"DELETE FROM historical_bars WHERE symbol = '{TWO[0]}' AND timestamp = "
            f"'{old.loc[gap, 'timestamp']}'")  # fmt: skip
    first = stage("old.h5")
    load_bars(postgrest.conninfo, old.loc[[gap]])
    load_bars(postgrest.conninfo, new)
    second = stage("new.h5", update=first.path)
    check_complete(second.path, whole, second.report["source"])
    restaged = second.report["update"]["restaged"]
    assert list(restaged) == [TWO[0]] and "2,999 rows" in restaged[TWO[0]] and "3,000" in restaged[TWO[0]]


@pytest.mark.parametrize("symbol", TWO)
def test_a_symbol_whose_past_was_rewritten_is_fetched_anew(symbol, stage, bars, postgrest):
    whole, _, new = bars
    first = stage("old.h5")
    # As an adjusted feed does at a split: all prices before it are halved.
    run_sql(postgrest, f"UPDATE historical_bars SET open = open / 2, high = high / 2, low = low / 2, "
            f"close = close / 2 WHERE symbol = '{symbol}'")  # fmt: skip
    load_bars(postgrest.conninfo, new)
    second = stage("new.h5", update=first.path)
    wanted = whole.copy()
    past = (wanted["symbol"] == symbol) & (wanted.groupby("symbol").cumcount() < OLD)
    for name in ("open", "high", "low", "close"):
        wanted.loc[past, name] /= 2
    check_complete(second.path, wanted, second.report["source"])
    assert list(second.report["update"]["restaged"]) == [symbol]
    assert f"{symbol}" in json.dumps(second.report["update"]["restaged"])


def test_postgres_sees_one_value_that_was_corrected_long_ago(stage, bars, postgrest):
    whole, _, new = bars
    first = stage("old.h5")
    when = whole["timestamp"].iloc[1000]
    run_sql(postgrest, f"UPDATE historical_bars SET volume = volume + 1 WHERE symbol = '{TWO[0]}' AND "
            f"timestamp = '{when}'")  # fmt: skip
    load_bars(postgrest.conninfo, new)
    second = stage("new.h5", update=first.path)
    if second.report["source"] == "supabase":  # PostgREST cannot tell, as the documentation says
        assert not second.report["update"]["restaged"]
        return
    assert list(second.report["update"]["restaged"]) == [TWO[0]]
    assert second.sha256 == stage("anew.h5").sha256


def test_a_new_symbol_is_fetched_whole_and_one_not_named_is_left_out(stage, bars, postgrest):
    whole, _, new = bars
    first = stage("old.h5", symbols=TWO[:1])
    load_bars(postgrest.conninfo, new)
    second = stage("new.h5", update=first.path, symbols=TWO)
    check_complete(second.path, whole, second.report["source"])
    assert second.report["update"]["continued"] == [TWO[0]]
    third = stage("third.h5", update=second.path, symbols=TWO[1:])
    check_complete(third.path, whole[whole["symbol"] == TWO[1]], third.report["source"])


def test_an_update_goes_on_from_the_start_that_the_old_file_had(stage, bars, postgrest):
    whole, _, new = bars
    start = whole["timestamp"].iloc[500]
    first = stage("old.h5", start=start.isoformat())
    load_bars(postgrest.conninfo, new)
    second = stage("new.h5", update=first.path)
    check_complete(second.path, whole[whole["timestamp"] >= start], second.report["source"])
    with pytest.raises(HpcrlError, match=r"was staged with start 2023-03-02.* not 2023-03-01"):
        stage("other.h5", update=first.path, start="2023-03-01")


def test_an_update_of_another_query_or_origin_is_refused(stage, bars, tmp_path):
    first = stage("old.h5")
    with pytest.raises(HpcrlError, match="calendar 24/7, not XNYS"):
        stage("new.h5", update=first.path, calendar="XNYS")
    with pytest.raises(HpcrlError, match="price adjustment unknown, not splits"):
        stage("new.h5", update=first.path, price_adjustment="splits")
    with pytest.raises(HpcrlError, match="beyond the end"):
        stage("new.h5", update=first.path, end="2023-03-05")
    made_up = stage_synthetic(tmp_path / "s.h5")
    with pytest.raises(HpcrlError, match="source synthetic; only a file staged from a database"):
        stage("new.h5", update=made_up.path)
    with pytest.raises(HpcrlError, match="one of the inputs"):
        stage("old.h5", update=first.path)
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["old.h5", "s.h5"]


def test_off_grid_rows_and_duplicates_do_not_disturb_an_update(stage, bars, postgrest):
    _, old, new = bars
    run_sql(postgrest, "ALTER TABLE historical_bars DROP CONSTRAINT historical_bars_pkey")
    late = old.groupby("symbol").tail(1)
    off = late.assign(timestamp=late["timestamp"] + pd.Timedelta(seconds=30))
    load_bars(postgrest.conninfo, off)  # after the last bar, off the grid
    load_bars(postgrest.conninfo, late)  # the last bar twice
    first = stage("old.h5")
    assert first.report["dropped"]["off_grid"]["count"] == 2
    assert first.report["dropped"]["identical_duplicate"]["count"] == 2
    load_bars(postgrest.conninfo, new)
    second = stage("new.h5", update=first.path)
    assert second.sha256 == stage("anew.h5").sha256
    assert not second.report["update"]["restaged"]
