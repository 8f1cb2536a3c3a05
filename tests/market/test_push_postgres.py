"""Files into a real PostgreSQL: all rows to the last bit, once, or nothing and the reason."""

from __future__ import annotations

import threading
import time

import numpy as np
import pandas as pd
import pytest
from databases import NAMES, START_NS, joined, make_bars, make_tables, source
from market_data import DATA, SAMPLE, walk
from psycopg import sql
from pydantic import SecretStr
from servers.postgres import canary

from hpcrl.config.tables import BarsTable, Tables
from hpcrl.market.postgres_push import PostgresTarget
from hpcrl.market.push import Pushed, PushResult
from hpcrl.market.push import push as run_push
from hpcrl.market.source import Span, Unreachable
from hpcrl.market.stage import stage_files, stage_synthetic
from hpcrl.market.store import read_store
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database
ALL = Span()


@pytest.fixture
def connection(postgres, database):
    with postgres.connect(database) as connection:
        yield connection


@pytest.fixture
def push(database):
    def run(path, tables: Tables | None = None, timeframe: str = "5Min", zone=None, **options) -> PushResult:
        tables = tables or Tables()
        target = PostgresTarget(SecretStr(database), tables, timeframe, zone)
        return run_push(path, target, bar_seconds=tables.timeframes[timeframe], **options)

    return run


@pytest.fixture
def read(database):
    def run(symbol: str, tables: Tables | None = None, timeframe: str = "5Min", **options) -> dict:
        reader = source(database, tables, timeframe, **options)
        reader.open()
        try:
            return joined(reader.bars(symbol, ALL))
        finally:
            reader.close()

    return run


def write(path, bars: dict[str, np.ndarray], symbol: str = "A", **more):
    """A CSV of ``bars`` with every digit that float64 has."""
    frame = pd.DataFrame(bars).assign(symbol=symbol, **more)
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True).map(lambda stamp: stamp.isoformat())
    frame.to_csv(path, index=False)
    return path


def same(found: dict, expected: dict) -> bool:
    return all((found[name].view(np.int64) == expected[name].view(np.int64)).all() for name in expected)


def count(connection, table: str = "historical_bars") -> int:
    return connection.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(table))).fetchone()[0]


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_what_is_pushed_is_read_back_to_the_last_bit(connection, push, read, tmp_path, kind):
    make_tables(connection, Tables())
    path = tmp_path / "bars.csv"
    frames = []
    for number, symbol in enumerate(("A", "B'\"")):
        write(path, make_bars(700, seed=number), symbol)
        frames.append(pd.read_csv(path))
    table = pd.concat(frames)
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "parquet":
        path = tmp_path / "bars.parquet"
        table.to_parquet(path)
    else:
        path = tmp_path / "folder"
        path.mkdir()
        table.iloc[:900].to_csv(path / "1.csv", index=False)
        table.iloc[900:].to_parquet(path / "2.parquet")
    done: list[tuple[str, int, int]] = []
    result = push(path, progress=lambda *seen: done.append(seen))
    assert result == PushResult("public.historical_bars", {"A": Pushed(700), "B'\"": Pushed(700)}, {})
    assert done == [("A", 700, 700), ("B'\"", 700, 700)]
    for number, symbol in enumerate(("A", "B'\"")):
        assert same(read(symbol), make_bars(700, seed=number))


def test_rows_go_in_by_several_insertions(connection, push, read, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcrl.market.push.CHUNK_ROWS", 100)
    make_tables(connection, Tables())
    assert push(write(tmp_path / "a.csv", make_bars(250))).symbols == {"A": Pushed(250)}
    assert same(read("A"), make_bars(250))


def test_the_real_sample_goes_in_and_comes_out_as_it_is_staged(connection, push, read):
    make_tables(connection, Tables())
    result = push(SAMPLE)
    table = pd.read_csv(SAMPLE, float_precision="round_trip")
    assert result.symbols == {"MSFT": Pushed(len(table))}
    found = read("MSFT")
    for name in NAMES:
        assert (found[name] == table[name].to_numpy(float)).all()


def test_pushing_again_changes_nothing_and_new_rows_are_added(connection, push, read, tmp_path):
    make_tables(connection, Tables())
    bars = make_bars(60)
    first = {name: value[:40] for name, value in bars.items()}
    assert push(write(tmp_path / "a.csv", first)).symbols == {"A": Pushed(40)}
    before = connection.execute("select ctid, xmin from historical_bars order by 1").fetchall()
    assert push(tmp_path / "a.csv").symbols == {"A": Pushed(0, 40)}
    assert push(tmp_path / "a.csv", replace=True).symbols == {"A": Pushed(0, 40)}
    assert connection.execute("select ctid, xmin from historical_bars order by 1").fetchall() == before
    assert push(write(tmp_path / "b.csv", bars)).symbols == {"A": Pushed(20, 40)}
    assert same(read("A"), bars)


def test_other_values_are_refused_and_named_and_nothing_is_written(connection, push, read, tmp_path):
    make_tables(connection, Tables())
    bars = make_bars(50)
    push(write(tmp_path / "a.csv", {name: value[:30] for name, value in bars.items()}))
    other = {name: value.copy() for name, value in bars.items()}
    other["volume"][[3, 7]] += 1
    other["close"][7] = np.nextafter(other["close"][7], 0)
    write(tmp_path / "b.csv", other)
    with pytest.raises(HpcrlError) as caught:
        push(tmp_path / "b.csv")
    lines = str(caught.value).splitlines()
    assert (
        "2 of 50 rows have other values in public.historical_bars; nothing was written (--replace" in lines[0]
    )
    assert lines[1].startswith("  A at 2024-03-01T00:35:00Z: close is ")
    assert any(line.startswith("  A at 2024-03-01T00:15:00Z: volume is ") for line in lines)
    assert count(connection) == 30
    assert push(tmp_path / "b.csv", replace=True).symbols == {"A": Pushed(20, 28, 2)}
    assert same(read("A"), other)


def test_replacing_leaves_other_columns_and_other_rows_alone(connection, push, read, tmp_path):
    make_tables(connection, Tables())
    connection.execute("alter table historical_bars add column note text default 'kept'")
    bars = make_bars(5)
    for symbol in ("A", "B"):
        push(write(tmp_path / "a.csv", bars, symbol))
    push(write(tmp_path / "day.csv", make_bars(1), "A"), timeframe="1Day")
    connection.execute("update historical_bars set note = 'mine'")
    other = {name: value.copy() for name, value in bars.items()}
    other["volume"] += 1
    assert push(write(tmp_path / "a.csv", other, "A"), replace=True).symbols == {"A": Pushed(0, 0, 5)}
    assert same(read("A"), other) and same(read("B"), bars)
    assert same(read("A", timeframe="1Day"), make_bars(1))
    assert connection.execute("select distinct note from historical_bars").fetchall() == [("mine",)]


def test_bad_rows_are_named_and_nothing_is_written(connection, push):
    make_tables(connection, Tables())
    with pytest.raises(HpcrlError, match=r"ohlc_order among .* rejected; nothing was written"):
        push(DATA / "bad_RAND_5min.csv")
    assert count(connection) == 0


def test_identical_duplicates_of_the_file_go_in_once_and_are_told(connection, push, read, tmp_path):
    make_tables(connection, Tables())
    path = write(tmp_path / "a.csv", make_bars(5))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    result = push(path)
    assert result.symbols == {"A": Pushed(5)}
    assert result.dropped["identical_duplicate"]["count"] == 1
    assert same(read("A"), make_bars(5))


def test_a_file_of_stage_is_pushed_with_its_present_bars(connection, push, read, tmp_path):
    make_tables(connection, Tables())
    staged = stage_files(SAMPLE, tmp_path / "m.h5")
    bars = read_store(staged.path)[0]["MSFT"]
    assert push(staged.path).symbols == {"MSFT": Pushed(int(bars.present.sum()))}
    expected = {"timestamp": bars.ts[bars.present], **{n: getattr(bars, n)[bars.present] for n in NAMES}}
    assert same(read("MSFT"), expected)
    with pytest.raises(HpcrlError, match="its bars are 300 s long, those of the timeframe 60 s"):
        push(staged.path, timeframe="1Min")
    with pytest.raises(HpcrlError, match="rounded to 32 bits, so mood cannot"):
        push(staged.path, features=("mood",))


def test_made_up_bars_of_the_fallback_are_refused(connection, push, tmp_path):
    make_tables(connection, Tables())
    stage_synthetic(tmp_path / "f.h5", symbols=("A",), bars=10, source="synthetic-fallback")
    with pytest.raises(HpcrlError, match=r"made-up bars .* do not go into a database of real ones"):
        push(tmp_path / "f.h5")


def test_actions_and_further_columns_are_written_where_they_are_mapped(connection, push, read, tmp_path):
    tables = Tables(bars=BarsTable(split="Split", dividend="div", trade_count="trades", vwap="vwap"))
    make_tables(connection, tables)
    connection.execute("alter table historical_bars add column mood double precision")
    bars = make_bars(4)
    path = write(
        tmp_path / "a.csv", bars, split=["", 2, "", ""], dividend=[0.1, "", "", ""], trade_count=[1, 2, 3, 4],
        vwap=bars["close"], mood=[0.5, -0.5, 1 / 3, 0],
    )  # fmt: skip
    push(path, tables, features=("mood",))
    found = read("A", tables, features=("mood", "vwap", "trades"))
    assert list(found["split"]) == [1, 2, 1, 1] and list(found["dividend"]) == [0.1, 0, 0, 0]
    assert list(found["mood"]) == [0.5, -0.5, 1 / 3, 0] and list(found["trades"]) == [1, 2, 3, 4]
    assert (found["vwap"] == bars["close"]).all()
    connection.execute('update historical_bars set "Split" = null where "Split" = 1')
    assert push(path, tables, features=("mood",)).symbols == {"A": Pushed(0, 4)}
    write(path, bars)  # without them they are left as they are
    assert push(path, tables).symbols == {"A": Pushed(0, 4)}


def test_a_split_that_no_column_takes_is_refused(connection, push, tmp_path):
    make_tables(connection, Tables())
    path = write(tmp_path / "a.csv", make_bars(4), split=[1, 1, 2, 1])
    with pytest.raises(
        HpcrlError, match=r"A at 2024-03-01T00:10:00Z: split is 2, but .*map one \(bars.split"
    ):
        push(path)
    assert push(write(path, make_bars(4), split=1)).symbols == {"A": Pushed(4)}


@pytest.mark.parametrize(
    "alter, words",
    [
        ("open type numeric(12, 4)", r"A at .* after writing: open is .* there, .* here: the column does"),
        ("volume type bigint using volume::bigint", r"after writing: volume is "),
        ("close type real", r"after writing: close is "),
        ("symbol type varchar(3)", r"value too long for type character varying\(3\)"),
        ('"timestamp" type timestamptz(0)', r"3 rows of LONGER are not there after writing"),
    ],
)  # fmt: skip
def test_what_a_column_cannot_hold_is_refused_and_nothing_is_written(
    connection, push, tmp_path, alter, words
):
    make_tables(connection, Tables())
    connection.execute(f"alter table historical_bars alter column {alter}")
    bars = make_bars(3)
    bars["timestamp"] += 250_000_000
    symbol = "LONGER" if "long" in words or "LONGER" in words else "A"
    with pytest.raises(HpcrlError, match=words):
        push(write(tmp_path / "a.csv", bars, symbol))
    assert count(connection) == 0


def test_numeric_columns_without_limits_keep_every_bit(connection, push, read, database, tmp_path):
    make_tables(connection, Tables())
    name = sql.Identifier(database.rpartition("=")[2])
    connection.execute(sql.SQL("alter database {} set extra_float_digits = 0").format(name))
    for name in NAMES:
        connection.execute(f"alter table historical_bars alter column {name} type numeric")
    push(write(tmp_path / "a.csv", make_bars(300)))
    assert same(read("A"), make_bars(300))


def test_stamps_finer_than_a_microsecond_are_refused(connection, push, tmp_path):
    make_tables(connection, Tables())
    bars = make_bars(3)
    bars["timestamp"][1] += 1
    with pytest.raises(HpcrlError, match=r"00:05:00\.000000001Z: databases keep stamps to the microsecond"):
        push(write(tmp_path / "a.csv", bars))


def test_bars_of_another_length_are_refused(connection, push, tmp_path):
    make_tables(connection, Tables())
    path = write(tmp_path / "a.csv", make_bars(30))
    with pytest.raises(HpcrlError, match="bars are 300 s apart, but those of the timeframe are 3600 s long"):
        push(path, timeframe="1Hour")
    with pytest.raises(HpcrlError, match="timeframe '2Min' is not known"):
        PostgresTarget(SecretStr(""), Tables(), "2Min")


@pytest.mark.parametrize("name", ["open", "split", "symbol", "_line"])
def test_a_feature_cannot_have_a_name_that_is_taken(push, tmp_path, name):
    with pytest.raises(HpcrlError, match=f"feature {name!r}: this name is taken"):
        push(write(tmp_path / "a.csv", make_bars(3)), features=(name,))


def test_a_missing_table_says_how_to_make_it(push, tmp_path):
    with pytest.raises(HpcrlError, match=r"no table public\.historical_bars.*`hpcrl stage schema \| psql`"):
        push(write(tmp_path / "a.csv", make_bars(3)))


def test_only_the_symbols_asked_for_are_pushed(connection, push, tmp_path):
    make_tables(connection, Tables())
    pd.concat([walk(300, 0, "B"), walk(300, 1, "A"), walk(300, 2, "C")]).to_csv(
        tmp_path / "x.csv", index=False
    )
    assert list(push(tmp_path / "x.csv", symbols=("C", "A")).symbols) == ["C", "A"]
    assert connection.execute("select distinct symbol from historical_bars order by 1").fetchall() == [
        ("A",),
        ("C",),
    ]
    with pytest.raises(HpcrlError, match="no rows for symbol D; it has A, B, C"):
        push(tmp_path / "x.csv", symbols=("D", "A"))


@pytest.mark.parametrize("stamp", ["timestamp", "date"])
def test_tables_whose_stamps_have_no_zone(connection, push, read, tmp_path, stamp):
    tables = Tables(bars=BarsTable(timeframe=None))
    numbers = ", ".join(f"{name} float8" for name in NAMES)
    connection.execute(f'create table historical_bars (symbol text, "timestamp" {stamp}, {numbers})')
    bars = make_bars(20)
    bars["timestamp"] = START_NS + 86_400_000_000_000 * np.arange(20)  # over the clock change of 10 March
    path = write(tmp_path / "a.csv", bars)
    zone = "America/New_York"
    for expected in (Pushed(20), Pushed(0, 20)):
        assert push(path, tables, timeframe="1Day", zone=zone).symbols == {"A": expected}
    assert same(read("A", tables, timeframe="1Day", timezone=zone), bars)
    found = connection.execute('select "timestamp"::text from historical_bars order by 1 limit 1').fetchone()
    assert found == ("2024-02-29 19:00:00" if stamp == "timestamp" else "2024-03-01",)
    odd = {name: value[:3].copy() for name, value in bars.items()}
    odd["timestamp"] = pd.DatetimeIndex(["2024-11-02", "2024-11-03T05:30", "2024-11-05"]).as_unit("ns").asi8
    words = "clock change doubles that hour" if stamp == "timestamp" else "'timestamp' holds dates only"
    with pytest.raises(HpcrlError, match=words):
        push(write(path, odd), tables, timeframe="1Day", zone=zone)


def test_duplicates_in_a_table_without_a_key_are_compared_and_replaced_together(connection, push, tmp_path):
    numbers = ", ".join(f"{name} float8" for name in NAMES)
    connection.execute(
        f'create table historical_bars (symbol text, timeframe text, "timestamp" timestamptz, {numbers})'
    )
    path = write(tmp_path / "a.csv", make_bars(5))
    push(path)
    connection.execute("insert into historical_bars select * from historical_bars")
    assert push(path).symbols == {"A": Pushed(0, 5)}
    connection.execute(
        "update historical_bars set volume = 7 where ctid = (select max(ctid) from historical_bars)"
    )
    with pytest.raises(HpcrlError, match="1 of 5 rows have other values"):
        push(path)
    assert push(path, replace=True).symbols == {"A": Pushed(0, 4, 1)}
    assert push(path).symbols == {"A": Pushed(0, 5)}


def test_two_pushes_at_once_wait_for_each_other(connection, push, read, postgres, database, tmp_path):
    numbers = ", ".join(f"{name} float8" for name in NAMES)
    connection.execute(
        f'create table historical_bars (symbol text, timeframe text, "timestamp" timestamptz, {numbers})'
    )
    path = write(tmp_path / "a.csv", make_bars(20))
    results: list[PushResult] = []
    first = PostgresTarget(SecretStr(database), Tables(), "5Min")
    first.open(NAMES)
    second = threading.Thread(target=lambda: results.append(push(path)))
    second.start()
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    while connection.execute(waiting).fetchone() == (0,):
        assert second.is_alive(), "it did not wait"
        time.sleep(0.005)
    first.insert("A", make_bars(20), False)
    first.commit()
    first.close()
    second.join()
    assert results[0].symbols == {"A": Pushed(0, 20)}
    assert len(read("A")["open"]) == 20


def test_a_server_cut_off_midway_leaves_the_table_as_it_was(connection, push, tmp_path, monkeypatch):
    make_tables(connection, Tables())
    monkeypatch.setattr("hpcrl.market.push.CHUNK_ROWS", 100)
    path = write(tmp_path / "a.csv", make_bars(250))

    def cut(symbol: str, done: int, total: int) -> None:
        if done == 200:
            connection.execute(
                "select pg_terminate_backend(pid, 30000) from pg_stat_activity "
                "where application_name = 'hpcrl' and datname = current_database()"
            )

    with pytest.raises(RunFailed, match=r"^A: the connection was lost"):
        push(path, progress=cut)
    assert count(connection) == 0
    assert push(path).symbols == {"A": Pushed(250)}


def test_a_trigger_that_drops_rows_is_noticed(connection, push, tmp_path):
    make_tables(connection, Tables())
    connection.execute(
        "create function drop_it() returns trigger language plpgsql as $$ begin "
        "if new.volume > 500000 then return null; end if; return new; end $$;"
        "create trigger t before insert on historical_bars for each row execute function drop_it()"
    )
    with pytest.raises(RunFailed, match=r"postgres: A: \d+ of 100 rows were written"):
        push(write(tmp_path / "a.csv", make_bars(100)))
    assert count(connection) == 0


def test_one_who_may_only_read_is_refused_without_showing_the_password(
    connection, postgres, database, tmp_path
):
    make_tables(connection, Tables())
    connection.execute("alter table historical_bars disable row level security")
    password = canary()
    user = postgres.user_with_password(password)
    connection.execute(sql.SQL("grant select on historical_bars to {}").format(sql.Identifier(user)))
    target = PostgresTarget(SecretStr(f"{database} user={user} password={password}"), Tables(), "5Min")
    with pytest.raises(HpcrlError, match=r"^A: permission denied for table historical_bars") as caught:
        run_push(write(tmp_path / "a.csv", make_bars(3)), target, bar_seconds=300)
    assert password not in repr(caught.value) + repr(vars(target))


def test_a_server_out_of_reach_is_that_and_the_files_own_faults_come_first(tmp_path):
    target = PostgresTarget(SecretStr("host=/nowhere"), Tables(), "5Min")
    with pytest.raises(HpcrlError, match="no such file"):
        run_push(tmp_path / "none.csv", target, bar_seconds=300)
    with pytest.raises(Unreachable):
        run_push(write(tmp_path / "a.csv", make_bars(3)), target, bar_seconds=300)
