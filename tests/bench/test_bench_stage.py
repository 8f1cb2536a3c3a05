"""``hpcrl bench stage``: what it measures, what it says, and what it refuses."""

from __future__ import annotations

import json

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that the file uses)
import pandas as pd
import pytest
from pydantic import SecretStr
from servers.postgrest import load_bars, postgrest  # noqa: F401  a fixture

from hpcrl.bench.stage import _write_plainly, bench_stage, render
from hpcrl.config.secrets import Secrets
from hpcrl.market.request import DatabaseRequest
from hpcrl.market.stage import stage_synthetic
from hpcrl.market.store import read_store
from hpcrl.market.synthetic import random_walk
from hpcrl.types import HpcrlError


@pytest.fixture(autouse=True)
def no_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "PGPASSWORD", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_rates_ratios_and_memory_of_writing_and_reading():
    result = bench_stage(2, 3000, 3)
    assert result["database"] is None and result["symbols"] == 2 and result["rows"] == 3000
    assert 0 < result["file_bytes"] < result["array_bytes"]
    for kind, size in (
        ("write", "array_bytes"),
        ("read_from_disk", "file_bytes"),
        ("read_cached", "file_bytes"),
    ):
        one = result[kind]
        assert [len(times) for times in one["rounds"]] == [3, 3] and one["seconds"] in one["rounds"][0]
        assert one["mb_per_second"] == pytest.approx(result[size] / 1e6 / one["seconds"])
        ratios = sorted(ours / plain for ours, plain in zip(*one["rounds"], strict=True))
        assert one["times_as_long"] == ratios[1]
        assert one["peak_bytes"] >= 0
    assert result["machine"]["cpu"] and render(result).row_count == 3


def test_the_plain_way_writes_the_same_arrays_in_the_same_chunks(tmp_path):
    """Else it would be no measure: what our file adds must be the hash and the sync alone."""
    path = stage_synthetic(tmp_path / "m.h5", symbols=("A", "B"), bars=2000).path
    _write_plainly(tmp_path / "plain.h5", read_store(path)[0].values())
    with h5py.File(path) as ours, h5py.File(tmp_path / "plain.h5") as plain:
        for symbol, group in plain.items():
            assert list(group) == list(ours["symbols"][symbol])
            for name, dataset in group.items():
                other = ours["symbols"][symbol][name]
                assert dataset[...].tobytes() == other[...].tobytes()
                assert dataset.chunks == other.chunks and dataset._filters == other._filters


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 3000, 1), "symbols is 0; at least 1"),
        ((1, 250, 1), "rows is 250; at least 251"),
        ((1, 3000, 0), "rounds is 0; at least 1"),
    ],
)
def test_a_number_that_cannot_be_measured_is_refused(numbers, message):
    with pytest.raises(HpcrlError, match=message):
        bench_stage(*numbers)


def test_the_verb_prints_one_json_object(hpcrl, monkeypatch, tmp_path):
    code, out, err = hpcrl("bench", "stage", "--symbols", "1", "--rows", "400", "--rounds", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["database"] is None
    code, _, err = hpcrl("bench", "stage", "--rows", "9")
    assert code == 2 and "rows is 9; at least 251" in err


def test_a_database_that_is_not_there_is_said_before_anything_is_measured(hpcrl, monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///nowhere?host={tmp_path}&password=canary-0815")
    code, out, err = hpcrl("bench", "stage")
    assert code == 1 and out == "" and "canary-0815" not in err and err.count("\n") == 1
    code, _, err = hpcrl(
        "bench", "stage", "--no-database", "--symbols", "1", "--rows", "400", "--rounds", "1"
    )
    assert code == 0, err


@pytest.mark.database
def test_both_ways_are_fetched_and_compared(postgrest, database):  # noqa: F811
    rows = pd.concat([random_walk(symbol, 2500, 0) for symbol in ("A", "B", "C")])
    load_bars(database, rows)
    secrets = Secrets(
        supabase_url=postgrest.url,
        supabase_key=SecretStr(postgrest.key),
        database_url=SecretStr(database),
    )
    request = DatabaseRequest(out=None, requests_per_second=1000.0)
    found = bench_stage(2, 400, 2, secrets, request)["database"]
    assert found["symbols"] == ["A", "B"] and found["rows"] == 5000
    for one in found["ways"].values():
        assert one["rows_per_second"] == pytest.approx(5000 / one["seconds"]) and len(one["rounds"]) == 2
    assert found["copy_times_as_fast"] > 1
    alone = secrets.model_copy(update={"database_url": None})
    result = bench_stage(
        2, 400, 1, alone, DatabaseRequest(out=None, symbols=("C",), requests_per_second=1000.0)
    )
    assert result["database"]["rows"] == 2500 and result["database"]["copy_times_as_fast"] is None
    assert list(result["database"]["ways"]) == ["supabase"] and render(result).row_count == 4


@pytest.mark.database
def test_an_empty_table_is_nothing_to_measure(postgrest, database):  # noqa: F811
    with pytest.raises(HpcrlError, match="postgres: the table of bars is empty"):
        bench_stage(1, 400, 1, Secrets(database_url=SecretStr(database)), DatabaseRequest(out=None))


@pytest.mark.database
def test_symbols_that_the_table_lacks_are_nothing_to_measure(postgrest, database):  # noqa: F811
    load_bars(database, random_walk("A", 10, 0))
    secrets = {"supabase_url": postgrest.url, "supabase_key": SecretStr(postgrest.key)}
    ways = {"postgres": {"database_url": SecretStr(database)}, "supabase": secrets}
    for kind, given in ways.items():
        for more, message in (
            ({"symbols": ("A", "B", "C")}, "no bars of B, C at this --timeframe; it has A"),
            ({"symbols": ("A",), "timeframe": "1Day"}, "no bars of A at this --timeframe; it has none"),
            ({"timeframe": "1Day"}, "no bars of any symbol at this --timeframe; it has none"),
        ):
            with pytest.raises(HpcrlError, match=f"{kind}: {message}") as caught:
                bench_stage(1, 400, 1, Secrets(**given), DatabaseRequest(out=None, **more))
            assert caught.value.exit_code == 2
