"""Out of a real PostgreSQL: every bit, every row, one state of the database, or an error that says why."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from databases import EXTREMES, NAMES, START_NS, STEP_NS, fill, joined, make_bars, make_tables, source

from hpcrl.config.tables import BarsTable, IndicatorsTable, Tables
from hpcrl.market.source import Span
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database
ALL = Span()


@pytest.fixture
def connection(postgres, database):
    with postgres.connect(database) as connection:
        yield connection


@pytest.fixture
def opened(database):
    """``opened(tables, ...)``: a source of the test's database, closed at its end."""
    sources = []

    def run(*arguments, **options):
        sources.append(source(database, *arguments, **options))
        sources[-1].open()
        return sources[-1]

    yield run
    for one in sources:
        one.close()


def free_table(
    connection, types: str = "double precision", stamp: str = "timestamptz", extra: str = ""
) -> None:
    """A table of bars without keys or checks, as somebody else may have made it."""
    numbers = ", ".join(f"{name} {types}" for name in NAMES)
    connection.execute(
        f'create table historical_bars (symbol text, timeframe text, "timestamp" {stamp}, {numbers} {extra})'
    )


def equal(found: dict, expected: dict) -> bool:
    """To the last bit; NaN equals NaN."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype
        and (found[name].view(np.int64) == expected[name].view(np.int64)).all()
        for name in expected
    )


def ns(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000_000_000


def test_every_bit_comes_back_in_blocks_in_order_of_time(connection, opened):
    make_tables(connection, Tables())
    bars = make_bars(1000)
    shuffled = np.random.default_rng(1).permutation(1000)
    fill(connection, "A", {name: value[shuffled] for name, value in bars.items()})
    fill(connection, "A", make_bars(50, seed=2), timeframe="1Day")
    fill(connection, "B", make_bars(70, seed=3))
    reader = opened()
    assert equal(joined(reader.bars("A", ALL)), bars)
    assert reader.count("A", ALL) == 1000
    assert reader.symbols() == ["A", "B"]
    assert not reader.is_empty()
    assert joined(reader.bars("C", ALL)) == {}
    assert reader.count("C", ALL) == 0


def test_blocks_hold_at_most_100_000_rows_and_miss_none(connection, opened):
    make_tables(connection, Tables())
    connection.execute(
        "insert into historical_bars select 'A', '5Min', '2020-01-01Z'::timestamptz + i * interval '5 min', "
        "i, i + 1, i, i, i from generate_series(1, 200001) i"
    )
    sizes, opens = [], []
    for block in opened().bars("A", ALL):
        sizes.append(len(block["timestamp"]))
        opens.append(block["open"])
    assert max(sizes) <= 100_000
    assert (np.concatenate(opens) == np.arange(1, 200_002)).all()


@pytest.mark.parametrize("rows", [1, 99_999, 100_000, 100_001])
def test_block_edges(connection, opened, rows):
    free_table(connection)
    connection.execute(
        "insert into historical_bars select 'A', '5Min', '2020-01-01Z'::timestamptz + i * interval '1 min', "
        "i, i, i, i, i from generate_series(1, %s) i",
        [rows],
    )
    assert len(joined(opened().bars("A", ALL))["open"]) == rows


def test_a_span_is_half_open_to_the_nanosecond(connection, opened):
    make_tables(connection, Tables())
    fill(connection, "A", make_bars(10))
    reader = opened()

    def stamps(start: int | None, end: int | None) -> list[int]:
        span = Span(start, end)
        got = joined(reader.bars("A", span)).get("timestamp", np.empty(0))
        assert reader.count("A", span) == len(got)
        return [int(each - START_NS) // STEP_NS for each in got]

    assert stamps(START_NS + 2 * STEP_NS, START_NS + 5 * STEP_NS) == [2, 3, 4]
    assert stamps(START_NS + 2 * STEP_NS + 1, START_NS + 5 * STEP_NS + 1) == [3, 4, 5]
    assert stamps(START_NS + 2 * STEP_NS - 1, None) == list(range(2, 10))
    assert stamps(None, START_NS) == []


@pytest.mark.parametrize("types", ["double precision", "numeric"])
def test_extreme_numbers_keep_their_bits(connection, opened, types):
    free_table(connection, types)
    values = np.array([*EXTREMES, *(-each for each in EXTREMES), 0.0])
    if types == "double precision":
        values = np.append(values, -0.0)
    for place, value in enumerate(values):
        connection.execute(
            f"insert into historical_bars values ('A', '5Min', %s, {', '.join(['%s'] * 5)})",
            [datetime.fromtimestamp(place * 300, tz=UTC), *[repr(float(value))] * 5],
        )
    found = joined(opened().bars("A", ALL))
    for name in NAMES:
        assert (found[name].view(np.int64) == values.view(np.int64)).all()


def test_null_and_nan_are_nan_and_infinity_stays(connection, opened):
    free_table(connection)
    connection.execute(
        "insert into historical_bars values ('A', '5Min', '2024-01-01Z', null, 'nan', 'inf', '-inf', 1)"
    )
    found = joined(opened().bars("A", ALL))
    row = [float(found[name][0]) for name in NAMES]
    assert math.isnan(row[0]) and math.isnan(row[1])
    assert row[2:] == [math.inf, -math.inf, 1.0]


@pytest.mark.parametrize(
    "types, given, expected",
    [
        ("bigint", "9007199254740993", 9007199254740992.0),
        ("integer", "-7", -7.0),
        ("smallint", "7", 7.0),
        ("real", "0.1", float(np.float32(0.1))),
        ("numeric(12,4)", "279.8600", 279.86),
        ("numeric", "0.1000000000000000055511151231257827021181583404541015625", 0.1),
        ("price", "1.5", 1.5),
    ],
)
def test_every_type_of_number_is_read(connection, opened, types, given, expected):
    connection.execute("create domain amount as numeric; create domain price as amount")
    free_table(connection, types)
    connection.execute(
        f"insert into historical_bars values ('A', '5Min', '2024-01-01Z', {', '.join([given] * 5)})"
    )
    assert [float(value[0]) for name, value in joined(opened().bars("A", ALL)).items() if name in NAMES] == [
        expected
    ] * 5


@pytest.mark.parametrize("types", ["text", "boolean", "money", "jsonb"])
def test_what_is_no_number_is_refused_before_any_row(connection, opened, types):
    free_table(connection, types)
    with pytest.raises(
        HpcrlError, match=rf"column 'open' \(bars.open\) is of type {types}, which is no number"
    ):
        opened()


def test_a_number_beyond_float64_is_an_error_that_names_the_symbol(connection, opened):
    free_table(connection, "numeric")
    connection.execute("insert into historical_bars values ('A', '5Min', '2024-01-01Z', 1e400, 1, 1, 1, 1)")
    with pytest.raises(HpcrlError, match=r"^A: after 0 rows .*out of range for type double precision"):
        joined(opened().bars("A", ALL))


def test_wrong_names_list_what_is_there(connection, opened):
    with pytest.raises(HpcrlError, match=r"no table public\.historical_bars; schema public has: no tables"):
        opened()
    make_tables(connection, Tables())
    with pytest.raises(HpcrlError, match=r"did you mean 'historical_bars'.*has: historical_bars, technical"):
        opened(Tables(bars=BarsTable(table="historical_bar")))
    with pytest.raises(HpcrlError) as caught:
        opened(Tables(bars=BarsTable(close="closing")))
    assert "no column 'closing' (bars.close in --tables)" in str(caught.value)
    assert "it has: symbol, timeframe, timestamp, open, high, low, close, volume" in str(caught.value)
    for section, name in (("bars", "split"), ("indicators", "value"), ("bars", "timeframe")):
        table = {section: {name: "nowhere", **({"layout": "long"} if section == "indicators" else {})}}
        with pytest.raises(HpcrlError, match=rf"'nowhere' \({section}.{name} in --tables\); it has: symbol"):
            opened(Tables.model_validate(table))
    with pytest.raises(HpcrlError, match=r"timeframe '7Min' is not known .*; known: 1Min, 5Min"):
        source("", timeframe="7Min")
    with pytest.raises(HpcrlError, match=r"no table public\.my_indicators"):
        opened(Tables(indicators=IndicatorsTable(table="my_indicators")))


NAMES_OF_SYMBOLS = [
    'O\'Neil "x"',
    "日経",
    "%s %(a)s",
    "back\\slash",
    " x ",
    "$1; drop table historical_bars",
    "a{b}",
]


def test_symbols_and_names_of_any_letters_stay_apart(connection, opened):
    tables = Tables(
        bars=BarsTable(
            schema_name='sch"éma', table="Bars; --", symbol="the symbol", open="Open", close='c"%s{}'
        ),
        indicators=IndicatorsTable(schema_name='sch"éma', name="%(name)s"),
    )
    make_tables(connection, tables)
    connection.execute('set search_path = "sch""éma"')
    for number, symbol in enumerate(NAMES_OF_SYMBOLS):
        bars = make_bars(5, seed=number)
        for row in range(5):
            connection.execute(
                'insert into "Bars; --" values (%s, %s, to_timestamp(%s), %s, %s, %s, %s, %s)',
                [
                    symbol,
                    "5Min",
                    int(bars["timestamp"][row]) // 10**9,
                    *(float(bars[name][row]) for name in NAMES),
                ],
            )
            connection.execute(
                "insert into technical_indicators values (%s, '5Min', to_timestamp(%s), %s, %s)",
                [symbol, int(bars["timestamp"][row]) // 10**9, symbol, float(row)],
            )
    reader = opened(tables)
    assert reader.symbols() == sorted(NAMES_OF_SYMBOLS)
    for number, symbol in enumerate(NAMES_OF_SYMBOLS):
        assert equal(joined(reader.bars(symbol, ALL)), make_bars(5, seed=number))
        assert reader.indicator_names(symbol, ALL) == [symbol]
        assert list(reader.indicator(symbol, symbol, ALL)[1]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["varchar(8)", "char(8)", "ticker", "integer"])
def test_symbols_of_other_types_than_text(connection, opened, kind):
    connection.execute("create type ticker as enum ('7203', '9984')")
    free_table(connection)
    connection.execute(f"alter table historical_bars alter column symbol type {kind} using symbol::{kind}")
    connection.execute("insert into historical_bars values ('7203', '5Min', '2024-01-01Z', 1, 1, 1, 1, 1)")
    reader = opened()
    assert reader.symbols() == ["7203"]
    assert reader.count("7203", ALL) == 1
    if kind in ("ticker", "integer"):
        with pytest.raises(HpcrlError, match=r"^MSFT: invalid input"):
            reader.count("MSFT", ALL)
        assert reader.count("7203", ALL) == 1  # the transaction goes on


def test_views_partitions_and_materialised_views_are_tables(connection, opened):
    connection.execute(
        "create table parts (symbol text, at timestamptz, o real, h real, l real, c real, v bigint) "
        "partition by range (at)"
    )
    connection.execute(
        "create table p1 partition of parts for values from ('2024-01-01Z') to ('2024-01-02Z')"
    )
    connection.execute(
        "create table p2 partition of parts for values from ('2024-01-02Z') to ('2024-01-03Z')"
    )
    connection.execute(
        "insert into parts select 'A', '2024-01-01Z'::timestamptz + i * interval '1 hour', i, i, i, i, i "
        "from generate_series(0, 47) i"
    )
    connection.execute(
        "create view seen as select * from parts; create materialized view kept as select * from parts"
    )
    names = {
        "symbol": "symbol",
        "timeframe": None,
        "timestamp": "at",
        "open": "o",
        "high": "h",
        "low": "l",
        "close": "c",
        "volume": "v",
    }
    for table in ("parts", "seen", "kept"):
        found = joined(opened(Tables(bars=BarsTable(table=table, **names)), timeframe="1Hour").bars("A", ALL))
        assert (found["open"] == np.arange(48)).all()
        assert (found["timestamp"] == ns(2024, 1, 1) + np.arange(48) * 3_600_000_000_000).all()


def test_actions_and_own_features_come_after_the_bars_in_their_order(connection, opened):
    free_table(connection, extra=", shares numeric, dividend real, mood double precision, label text")
    connection.execute(
        "insert into historical_bars values ('A', '5Min', '2024-01-01Z', 1, 1, 1, 1, 1, 2, null, 0.5, 'x')"
    )
    tables = Tables(bars=BarsTable(split="shares", dividend="dividend"))
    found = joined(opened(tables, features=("mood", "RSI14")).bars("A", ALL))
    assert list(found) == ["timestamp", *NAMES, "split", "dividend", "mood"]
    assert found["split"][0] == 2 and math.isnan(found["dividend"][0]) and found["mood"][0] == 0.5
    with pytest.raises(HpcrlError, match=r"'label' \(--features\) is of type text"):
        opened(tables, features=("label",))


def test_no_rows_at_all_is_empty_whatever_the_timeframe_asked(connection, opened):
    make_tables(connection, Tables())
    reader = opened()
    assert reader.is_empty()
    assert reader.symbols() == []
    fill(connection, "A", make_bars(2), timeframe="1Day")
    assert reader.is_empty()  # its snapshot is older
    later = opened()
    assert not later.is_empty()
    assert later.symbols() == []


def test_duplicates_in_a_table_without_a_key_all_come(connection, opened):
    free_table(connection)
    fill(connection, "A", make_bars(10))
    fill(connection, "A", make_bars(10))
    found = joined(opened().bars("A", ALL))
    assert len(found["open"]) == 20
    assert (np.diff(found["timestamp"]) >= 0).all()


@pytest.mark.parametrize("zone", ["America/New_York", "UTC", "Asia/Kolkata"])
def test_timestamps_without_zone_are_read_in_the_zone_that_is_named(connection, opened, zone):
    free_table(connection, stamp="timestamp")
    connection.execute("set timezone = 'Asia/Tokyo'")
    connection.execute(
        "insert into historical_bars select 'A', '5Min', '2024-03-08 09:30'::timestamp "
        "+ i * interval '6 hours', i, i, i, i, i from generate_series(0, 15) i"
    )
    reader = opened(timezone=zone)
    found = joined(reader.bars("A", ALL))
    expected = connection.execute(
        'select extract(epoch from "timestamp" at time zone %s)::bigint from historical_bars order by 1',
        [zone],
    ).fetchall()
    assert list(found["timestamp"]) == [each * 10**9 for (each,) in expected]
    span = Span(int(found["timestamp"][5]), int(found["timestamp"][9]))
    assert list(joined(reader.bars("A", span))["open"]) == [5, 6, 7, 8]


def test_timestamps_without_zone_need_one_and_uncertain_hours_are_refused(connection, opened):
    free_table(connection, stamp="timestamp")
    with pytest.raises(HpcrlError, match=r"timestamp without time zone; name the zone .*--timezone"):
        opened()
    connection.execute("insert into historical_bars values ('A', '5Min', '2024-11-03 00:30', 1, 1, 1, 1, 1)")
    connection.execute("insert into historical_bars values ('B', '5Min', '2024-11-03 01:30', 1, 1, 1, 1, 1)")
    connection.execute("insert into historical_bars values ('C', '5Min', '2024-03-10 02:30', 1, 1, 1, 1, 1)")
    reader = opened(timezone="America/New_York")
    assert joined(reader.bars("A", ALL))["timestamp"][0] == ns(2024, 11, 3, 4, 30)
    for symbol, stamp in (("B", "2024-11-03 01:30:00"), ("C", "2024-03-10 02:30:00")):
        with pytest.raises(
            HpcrlError, match=rf"^{symbol}: timestamp {stamp} is in the hour .* skips or doubles"
        ):
            joined(reader.bars(symbol, ALL))
    with pytest.raises(HpcrlError, match="2024-11-03T05:30:00Z falls into the hour"):
        reader.count("A", Span(ns(2024, 11, 3, 5, 30), None))


def test_dates_are_midnight_utc_and_only_for_daily_bars(connection, opened):
    free_table(connection, stamp="date")
    connection.execute(
        "insert into historical_bars select 'A', '1Day', '2024-01-01'::date + i, i, i, i, i, i "
        "from generate_series(0, 9) i"
    )
    with pytest.raises(HpcrlError, match="is of type date, which does not tell bars of 300 s apart"):
        opened()
    reader = opened(timeframe="1Day", timezone="America/New_York")
    assert joined(reader.bars("A", ALL))["timestamp"][0] == ns(2024, 1, 1)
    inside = joined(reader.bars("A", Span(ns(2024, 1, 2, 1), ns(2024, 1, 5))))
    assert list(inside["open"]) == [2, 3]


@pytest.mark.parametrize("stamp", ["text", "bigint", "time"])
def test_a_stamp_of_another_type_is_refused(connection, opened, stamp):
    free_table(connection, stamp=stamp)
    with pytest.raises(HpcrlError, match=rf"is of type {stamp}.*; timestamp with time zone is needed"):
        opened()


@pytest.mark.parametrize(
    "stamp, words",
    [
        ("'infinity'", r"^A: a row's timestamp is infinite"),
        ("'-infinity'", r"^A: a row's timestamp is infinite"),
        ("'1066-10-14Z'", r"^A: a row's timestamp is outside the years 1700 to 2200"),
        ("'294276-01-01Z'", r"^A: a row's timestamp is outside the years 1700 to 2200"),
        ("null", r"^A: 1 rows of public.historical_bars have no timestamp \(NULL\)"),
    ],
)
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_stamps_that_are_no_time_are_errors_that_name_the_symbol(connection, opened, stamp, words, kind):
    free_table(connection, stamp=kind)
    fill(connection, "B", make_bars(3))
    connection.execute(f"insert into historical_bars values ('A', '5Min', {stamp}, 1, 1, 1, 1, 1)")
    reader = opened(timezone="UTC")
    with pytest.raises(HpcrlError, match=words):
        joined(reader.bars("A", ALL))
    assert len(joined(reader.bars("B", ALL))["open"]) == 3


def test_rows_that_come_and_go_meanwhile_do_not_show(connection, opened):
    make_tables(connection, Tables())
    for symbol, rows in (("A", 110_000), ("B", 1000)):
        connection.execute(
            "insert into historical_bars select %s, '5Min', '2020-01-01Z'::timestamptz "
            "+ i * interval '5 min', i, i, i, i, i from generate_series(1, %s) i",
            [symbol, rows],
        )
    reader = opened()
    count = reader.count("A", ALL)
    blocks = reader.bars("A", ALL)
    found = [next(blocks)]
    connection.execute("delete from historical_bars where symbol = 'B' or volume > 100000")
    connection.execute("update historical_bars set open = 7, low = 1, high = 1e9 where volume > 90000")
    connection.execute("insert into historical_bars values ('A', '5Min', '2030-01-01Z', 1, 1, 1, 1, 1)")
    found += list(blocks)
    assert (joined(found)["open"] == np.arange(1, 110_001)).all()
    assert count == 110_000
    assert (joined(reader.bars("B", ALL))["open"] == np.arange(1, 1001)).all()
    later = opened()
    assert later.count("B", ALL) == 0
    assert later.count("A", ALL) == 100_001


def test_rows_that_are_not_read_to_their_end_leave_the_snapshot_as_it_was(connection, opened):
    free_table(connection)
    connection.execute(
        "insert into historical_bars select 'A', '5Min', '2020-01-01Z'::timestamptz + i * interval '5 min', "
        "i, i, i, i, i from generate_series(1, 300000) i"
    )
    reader = opened()
    for _ in reader.bars("A", ALL):
        break
    connection.execute("delete from historical_bars")
    assert reader.count("A", ALL) == 300_000
    assert len(joined(reader.bars("A", ALL))["open"]) == 300_000


LONG = [("A", "RSI_14", 0, 50.0), ("A", "RSI_14", 1, None), ("A", "RSI_14", 2, 0.1), ("A", "ema", 0, 1 / 3)]


def test_indicators_in_long_form(connection, opened):
    make_tables(connection, Tables())
    for symbol, name, place, value in LONG:
        connection.execute(
            "insert into technical_indicators values (%s, '5Min', to_timestamp(%s), %s, %s)",
            [symbol, START_NS // 10**9 + 300 * place, name, value],
        )
    connection.execute("insert into technical_indicators values ('A', '1Day', now(), 'other', 1)")
    reader = opened()
    assert reader.indicator_names("A", ALL) == ["RSI_14", "ema"]
    assert reader.indicator_names("A", Span(START_NS + 1, None)) == ["RSI_14"]
    assert reader.indicator_names("B", ALL) == []
    stamps, values = reader.indicator("A", "RSI_14", ALL)
    assert stamps.dtype == np.int64 and values.dtype == np.float64
    assert list(stamps) == [START_NS, START_NS + 2 * STEP_NS]
    assert list(values) == [50.0, 0.1]
    assert [len(each) for each in reader.indicator("A", "nothing", ALL)] == [0, 0]


@pytest.mark.parametrize("layout", ["auto", "wide"])
def test_indicators_in_wide_form(connection, opened, layout):
    make_tables(connection, Tables(indicators=IndicatorsTable(table=None)))
    connection.execute(
        "create table technical_indicators (id bigint generated always as identity, symbol text, "
        'timeframe text, "timestamp" timestamptz, "RSI_14" numeric, ema real, note text, '
        "made timestamptz default now())"
    )
    for place, (rsi, ema) in enumerate([(None, 1.5), (50.25, None), (0.1, 2.5)]):
        connection.execute(
            'insert into technical_indicators (symbol, timeframe, "timestamp", "RSI_14", ema) '
            "values ('A', '5Min', to_timestamp(%s), %s, %s)",
            [START_NS // 10**9 + 300 * place, rsi, ema],
        )
    reader = opened(Tables(indicators=IndicatorsTable(layout=layout)))
    assert reader.indicator_names("A", ALL) == ["RSI_14", "ema"]
    stamps, values = reader.indicator("A", "RSI_14", ALL)
    assert list(stamps) == [START_NS + STEP_NS, START_NS + 2 * STEP_NS]
    assert list(values) == [50.25, 0.1]
    assert list(reader.indicator("A", "ema", Span(START_NS + 1, None))[1]) == [2.5]
    assert [len(each) for each in reader.indicator("A", "made", ALL)] == [0, 0]


def test_without_a_table_of_indicators_there_are_none(connection, opened):
    make_tables(connection, Tables(indicators=IndicatorsTable(table=None)))
    for tables in (Tables(), Tables(indicators=IndicatorsTable(table=None))):
        reader = opened(tables)
        assert reader.indicator_names("A", ALL) == []
        assert [len(each) for each in reader.indicator("A", "rsi", ALL)] == [0, 0]


def test_a_server_cut_off_midway_is_a_failure_that_names_symbol_and_rows(connection, opened):
    free_table(connection)
    connection.execute(
        "insert into historical_bars select 'A', '5Min', '2020-01-01Z'::timestamptz + i * interval '1 min', "
        "i, i, i, i, i from generate_series(1, 400000) i"
    )
    reader = opened()
    blocks = reader.bars("A", ALL)
    next(blocks)
    gone = connection.execute(
        "select pg_terminate_backend(pid, 30000) from pg_stat_activity where application_name = 'hpcrl' "
        "and datname = current_database() and backend_type = 'client backend'"
    ).fetchall()
    assert gone == [(True,)]
    with pytest.raises(
        RunFailed, match=r"^A: after \d00,000 rows of public.historical_bars: the connection was lost"
    ):
        list(blocks)
    with pytest.raises(RunFailed, match=r"^A: the connection was lost"):
        reader.count("A", ALL)
    reader.close()
    reader.close()


def test_a_locked_table_is_waited_for_within_limits(connection, opened, monkeypatch):
    from hpcrl.market import postgres_connect

    monkeypatch.setitem(postgres_connect.SETTINGS, "lock_timeout", "50ms")
    make_tables(connection, Tables())
    reader_before = opened()
    assert reader_before.is_empty()
    with connection.transaction():
        reader_before.close()  # else it is we who wait
        connection.execute("lock table historical_bars in access exclusive mode")
        with pytest.raises(RunFailed, match="somebody holds a lock on the table"):
            opened()


def test_a_query_beyond_its_time_is_broken_off(connection, opened, monkeypatch):
    from hpcrl.market import postgres_connect

    monkeypatch.setitem(postgres_connect.SETTINGS, "statement_timeout", "100ms")
    free_table(connection)
    connection.execute("alter table historical_bars rename to rows")
    connection.execute(
        "create view historical_bars as select rows.* from rows, lateral pg_sleep(1) where symbol is not null"
    )
    fill(connection, "A", make_bars(3), table="rows")
    with pytest.raises(RunFailed, match=r"^A: the server broke off the query: .*statement timeout"):
        opened().count("A", ALL)


def test_the_list_of_symbols_is_given_up_where_it_takes_long(connection, opened, monkeypatch):
    from hpcrl.market import postgres as module

    free_table(connection)
    first = opened()
    before = first._session.connection.execute("show statement_timeout").fetchone()
    assert first.symbols() == []
    assert first._session.connection.execute("show statement_timeout").fetchone() == before
    first.close()
    monkeypatch.setattr(module, "SYMBOLS_SECONDS", 0.1)
    connection.execute("alter table historical_bars rename to rows")
    connection.execute("create view historical_bars as select rows.* from rows, lateral pg_sleep(1)")
    fill(connection, "A", make_bars(1), table="rows")
    reader = opened()
    assert reader.symbols() is None
    assert reader.count("A", ALL) == 1  # the limit is gone: this takes a second


def test_the_server_sees_who_reads(connection, opened):
    make_tables(connection, Tables())
    opened()
    found = connection.execute(
        "select state, backend_xid from pg_stat_activity where application_name = 'hpcrl' "
        "and datname = current_database()"
    ).fetchall()
    assert found == [("idle in transaction", None)]
