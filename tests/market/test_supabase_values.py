"""Over PostgREST: the database's numbers to the last bit, its stamps to the microsecond, its indicators."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import psycopg
import pytest
from rest_source import BARS, execute, opened, rows_of, silent
from staging import loaded

from hpcrl.market.source import Span
from hpcrl.market.supabase_rows import Clock, numbers
from hpcrl.types import HpcrlError, RunFailed

pytestmark = pytest.mark.database
EXTREMES = [
    "5e-324", "-5e-324", "2.2250738585072014e-308", "2.225073858507201e-308", "-0", "0", "0.1", "0.3",
    "1.0000000000000002", "4503599627370497.5", "9007199254740993", "123456789012345680", "1e15", "1e16",
    "1e22", "1e23", "8.41e21", "9.5e-7", "1.7976931348623157e308", "-1.7976931348623157e308", "NaN",
    "Infinity", "-Infinity", "279.8599853515625", "2.00416836000897278e-292",
]  # fmt: skip
"""As PostgreSQL reads them."""


def make(postgrest, kind: str, values: list[str | None], name: str = "bars") -> None:
    """A table of values, of a type, in the order of the stamps."""
    execute(postgrest, f"CREATE TABLE {name} (symbol text, timestamp timestamptz, {columns(kind)})")
    with psycopg.connect(postgrest.conninfo, autocommit=True) as connection:
        for at, value in enumerate(values):
            query = (
                f"INSERT INTO {name} VALUES ('A', '2024-01-01Z'::timestamptz + {at} * interval '1 min', %s)"
            )
            connection.execute(query, [value])


def columns(kind: str) -> str:
    """x, and the others, which hold the same."""
    more = (f"{name} {kind} GENERATED ALWAYS AS (x) STORED" for name in BARS if name != "open")
    return ", ".join([f"x {kind}", *more])


ONE_VALUE = {"table": "bars", "timeframe": None, "open": "x"}


def read(postgrest, folder, kind: str, values: list[str | None]) -> np.ndarray:
    make(postgrest, kind, values)
    return rows_of(opened(postgrest, folder, {"bars": ONE_VALUE}), "A")["close"]


def cast(postgrest) -> np.ndarray:
    """The same column by PostgreSQL's own cast and psycopg's binary numbers."""
    with psycopg.connect(postgrest.conninfo) as connection:
        cursor = connection.cursor(binary=True)
        rows = cursor.execute("SELECT coalesce(x::float8, 'NaN') FROM bars ORDER BY timestamp").fetchall()
    return np.array(rows, dtype=np.float64)[:, 0]


def equal_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.float64
    assert found.view(np.int64).tolist() == wanted.view(np.int64).tolist()


def test_extreme_floats_and_nulls_arrive_to_the_last_bit(postgrest, tmp_path):
    found = read(postgrest, tmp_path, "double precision", [*EXTREMES, None])
    equal_bits(found, cast(postgrest))
    assert np.signbit(found[EXTREMES.index("-0")]) and np.isnan(found[-1])


def test_any_bits_of_a_float_arrive(postgrest, tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**63, 2000).view(np.float64)
    wanted = np.where(np.isfinite(bits), bits, 0.0)
    found = read(postgrest, tmp_path, "double precision", [repr(float(value)) for value in wanted])
    equal_bits(found, wanted)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("real", ["0.1", "0.3", "16777216", "3.4028235e38", "1e-45", "-0", "NaN", "279.86"]),
        ("numeric", ["0.1", "0.1000000000000000055511151231257827", "123456789012345678901234567890.5",
                     "9007199254740993", "2.2250738585072011e-308", "NaN", "1e300", "-0.00"]),
        ("numeric(12, 4)", ["123.4567", "0.0001", "99999999.9999"]),
        ("bigint", ["9007199254740993", "-9223372036854775808", "9223372036854775807", "0"]),
        ("integer", ["-2147483648", "7"]),
        ("smallint", ["1", "32767"]),
    ],
)  # fmt: skip
def test_other_numbers_are_what_the_database_casts_them_to(postgrest, tmp_path, kind, values):
    equal_bits(read(postgrest, tmp_path, kind, [*values, None]), cast(postgrest))


def test_numbers_kept_as_text_are_read_as_numbers(postgrest, tmp_path):
    found = read(postgrest, tmp_path, "text", ["123.45", "1e-7", "-0", "12", None, "NaN"])
    equal_bits(found, np.array([123.45, 1e-7, -0.0, 12, np.nan, np.nan]))


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    [
        ("text", ["1.5", "n/a"], "'n/a'"),
        ("text", ["1.5", ""], "''"),
        ("text", ["1_000"], "'1_000'"),
        ("boolean", ["true"], "True"),
        ("jsonb", ["[1, 2]"], r"\[1, 2\]"),
    ],
)
def test_what_is_no_number_is_named_with_its_column(postgrest, tmp_path, kind, values, shown):
    with pytest.raises(HpcrlError, match=rf"^A, bars\.x holds {shown}, which is no number$"):
        read(postgrest, tmp_path, kind, values)


def test_a_number_too_large_is_named():
    with pytest.raises(HpcrlError, match=r"bars\.x holds a number beyond"):
        numbers([1.5, 10**400], "bars.x")


def test_only_columns_that_are_mapped_or_asked_for_are_given(postgrest, tmp_path):
    execute(
        postgrest, "ALTER TABLE historical_bars ADD splits real, ADD \"my own, 'col'\" real, ADD other real"
    )
    loaded(postgrest, 3, ["A"])
    execute(postgrest, "UPDATE historical_bars SET splits = 2, \"my own, 'col'\" = 0.5, other = 7")
    names = {"bars": {"split": "splits"}}
    source = opened(postgrest, tmp_path, names, features=("my own, 'col'", "rsi"))
    found = rows_of(source, "A")
    assert list(found) == ["timestamp", *BARS, "split", "my own, 'col'"]
    assert found["split"].tolist() == [2.0] * 3 and found["my own, 'col'"].tolist() == [0.5] * 3


def stamps_of(postgrest, folder, kind: str, values: list[str], **options) -> np.ndarray:
    execute(postgrest, f"CREATE TABLE bars (symbol text, timestamp {kind}, {columns('float8')})")
    for value in values:
        execute(postgrest, f"INSERT INTO bars VALUES ('A', '{value}', 1)")
    postgrest.set(max_rows=2)
    return rows_of(opened(postgrest, folder, {"bars": ONE_VALUE}, **options), "A")["timestamp"]


def ns(*texts: str) -> list[int]:
    return [pd.Timestamp(text).as_unit("ns").value for text in texts]


def test_stamps_with_a_zone_are_exact(postgrest, tmp_path):
    values = ["1969-12-31 23:59:59.999999Z", "2024-01-01 00:00Z", "2024-01-01 00:00:00.000123+00",
              "2024-01-01 00:00:00.1Z", "2024-06-01 12:00-04", "2199-12-31 23:59:59.999999Z"]  # fmt: skip
    assert stamps_of(postgrest, tmp_path, "timestamptz", values).tolist() == ns(*values)


def test_stamps_without_a_zone_need_one_and_are_read_by_its_clock(postgrest, tmp_path):
    values = ["2024-03-08 15:55", "2024-03-11 09:30", "2024-03-11 09:30:00.5"]
    with pytest.raises(HpcrlError, match=r"bars\.timestamp holds stamps without a time zone .*--timezone"):
        stamps_of(postgrest, tmp_path, "timestamp", values)
    source = opened(postgrest, tmp_path, {"bars": ONE_VALUE}, timezone="America/New_York")
    wanted = ns("2024-03-08T20:55Z", "2024-03-11T13:30Z", "2024-03-11T13:30:00.5Z")
    assert rows_of(source, "A")["timestamp"].tolist() == wanted
    assert source.count("A", Span(wanted[1], wanted[2])) == 1
    assert rows_of(source, "A", Span(wanted[1], wanted[2]))["timestamp"].tolist() == wanted[1:2]


@pytest.mark.parametrize("value", ["2024-11-03 01:30", "2024-03-10 02:30"])
def test_an_hour_that_a_change_of_clocks_skips_or_doubles_is_refused(postgrest, tmp_path, value):
    values = ["2024-03-01 00:00", value]
    with pytest.raises(
        HpcrlError, match=rf"A, bars\.timestamp holds {value.replace(' ', 'T')}:00, which a change"
    ):
        stamps_of(postgrest, tmp_path, "timestamp", values, timezone="America/New_York")
    source = opened(postgrest, tmp_path, {"bars": ONE_VALUE}, timezone="America/New_York")
    [bound] = ns("2024-11-03T06:30Z")
    with pytest.raises(HpcrlError, match="2024-11-03T06:30:00Z falls into the hour"):
        source.count("A", Span(bound, None))


def test_dates_are_midnights_of_utc(postgrest, tmp_path):
    values = ["2024-01-02", "2024-01-03", "2024-01-04"]
    found = stamps_of(postgrest, tmp_path, "date", values, timezone="America/New_York")
    assert found.tolist() == ns(*values)
    source = opened(postgrest, tmp_path, {"bars": ONE_VALUE})
    bounds = [("2024-01-03", None, 2), ("2024-01-03T00:00:01", None, 1), (None, "2024-01-03", 1)]
    for start, end, rows in [*bounds, (None, "2024-01-03T12:00", 2)]:
        span = Span(*(None if text is None else ns(text)[0] for text in (start, end)))
        assert source.count("A", span) == rows == len(rows_of(source, "A", span)["timestamp"])


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("timestamptz", "infinity", "holds 'infinity', which is no timestamp"),
        ("timestamptz", "0044-03-15 BC", "no timestamp"),
        ("timestamptz", "2201-01-01Z", "outside the years 1700 to 2200"),
        ("timestamptz", "1650-01-01Z", "outside the years 1700 to 2200"),
        ("text", "2024-01-02 09:30:00+00", "no timestamp: make the column a timestamptz"),
        ("text", "1704067200", "no timestamp"),
        ("bigint", "1704067200", "holds 1704067200, which is no timestamp"),
    ],
)
def test_stamps_that_are_none_are_named(postgrest, tmp_path, kind, value, reason):
    with pytest.raises(HpcrlError, match=rf"bars\.timestamp .*{reason}"):
        stamps_of(postgrest, tmp_path, kind, [value])


@pytest.mark.parametrize("end", [None, "2030-01-01T00:00Z"])
def test_a_row_without_a_stamp_is_an_error_also_where_the_span_leaves_it_out(postgrest, tmp_path, end):
    make(postgrest, "float8", ["1", "2"])
    execute(postgrest, "INSERT INTO bars VALUES ('A', NULL, 3), ('A', NULL, 4), ('B', '2024-01-01Z', 5)")
    source, span = opened(postgrest, tmp_path, {"bars": ONE_VALUE}), Span(None, end and ns(end)[0])
    assert len(rows_of(source, "B", span)["timestamp"]) == 1
    reason = "rows of bars have no timestamp" if end else r"bars\.timestamp is NULL in a row"
    with pytest.raises(HpcrlError, match=rf"^A[:,] .*{reason}") as caught:
        rows_of(source, "A", span)
    assert not isinstance(caught.value, RunFailed) and (not end or "A: 2 rows" in str(caught.value))


@pytest.mark.parametrize("offset", ["+00:00", "Z", "-05:00", "+05:30", "+00"])
def test_stamps_of_any_offset_are_read_right(offset):
    """A server whose session is not in UTC spells them so."""
    cells = [f"2024-01-02T03:04:05{fraction}{offset}" for fraction in ("", ".5", ".123456")]
    clock = Clock.of(cells[0], None, "bars.timestamp")
    shown = {"Z": "+00:00", "+00": "+00:00"}.get(offset, offset)
    wanted = [pd.Timestamp(cell.removesuffix(offset) + shown).as_unit("ns").value for cell in cells]
    assert clock.read(cells).tolist() == wanted


def test_stamps_of_two_kinds_in_a_column_are_refused():
    clock = Clock.of("2024-01-02T03:04:05+00:00", None, "bars.timestamp")
    with pytest.raises(HpcrlError, match="stamps of several kinds, such as '2024-01-02T03:04:05'"):
        clock.read(["2024-01-02T03:04:05+00:00", "2024-01-02T03:04:05"])


def add_indicators(postgrest, rows: int) -> dict[str, np.ndarray]:
    """Long: three names at each stamp of symbol A, of which each 7th is NULL and some NaN."""
    rng = np.random.default_rng(3)
    table = rng.uniform(-1, 1, (rows, 3))
    table[::7, 0], table[2, 1] = np.nan, np.nan
    with psycopg.connect(postgrest.conninfo, autocommit=True) as connection:
        for at in range(rows):
            for name, value in zip(("rsi", "macd", "sma 20"), table[at], strict=True):
                null = name == "rsi" and np.isnan(value)
                stamp = f"'2023-03-01Z'::timestamptz + {at} * interval '5 min'"
                query = f"INSERT INTO technical_indicators VALUES ('A', '5Min', {stamp}, %s, %s)"
                connection.execute(query, [name, None if null else float(value)])
    return dict(zip(("rsi", "macd", "sma 20"), table.T, strict=True))


def check_indicators(source, wanted: dict[str, np.ndarray], start: int = 0) -> None:
    first = ns("2023-03-01T00:00Z")[0]
    for name, values in wanted.items():
        stamps, found = source.indicator("A", name, Span(first + start * 300 * 10**9, None))
        there = np.flatnonzero(~np.isnan(values))
        there = there[there >= start]
        assert stamps.tolist() == (first + there * 300 * 10**9).tolist()
        equal_bits(found, values[there])


@pytest.mark.parametrize("cap", [1000, 7, 4])
def test_indicators_in_a_row_each(postgrest, tmp_path, cap):
    loaded(postgrest, 50, ["A", "B"])
    wanted = add_indicators(postgrest, 50)
    postgrest.set(max_rows=cap)
    source = opened(postgrest, tmp_path)
    told = []
    # B's indicators, none, may be the last to come: its total is known all the same.
    source.prepare(dict.fromkeys(("A", "B"), Span()), lambda *each: told.append(each))
    assert {symbol: each for symbol, *each in told} == {"A": [200, 200], "B": [50, 50]}
    assert source.indicator_names("A", Span()) == ["macd", "rsi", "sma 20"]
    assert source.indicator_names("B", Span()) == []
    check_indicators(source, wanted)
    check_indicators(source, wanted, start=20)
    stamps, values = source.indicator("A", "unknown", Span())
    assert (stamps.dtype, values.dtype, len(stamps), len(values)) == (np.int64, np.float64, 0, 0)


def test_indicators_survive_an_interruption(postgrest, tmp_path):
    loaded(postgrest, 5, ["A"])
    wanted = add_indicators(postgrest, 60)
    postgrest.set(max_rows=30)
    source = opened(postgrest, tmp_path)
    postgrest.switch("status", status=400, table="technical_indicators", first=4)
    with pytest.raises(HpcrlError, match=r"technical_indicators: .* of 180 rows received"):
        source.prepare({"A": Span()}, silent)
    source.close()
    postgrest.clear()
    source = opened(postgrest, tmp_path)
    postgrest.reset()
    source.prepare({"A": Span()}, silent)
    check_indicators(source, wanted)
    assert postgrest.stats()["rows"] < 180


def test_indicators_in_a_column_each(postgrest, tmp_path):
    loaded(postgrest, 30, ["A"])
    execute(
        postgrest,
        "DROP TABLE technical_indicators",
        "CREATE TABLE technical_indicators (id bigint generated always as identity, symbol text, "
        'timeframe text, "timestamp" timestamptz, "RSI 14" real, macd numeric, none_yet float8, note text, '
        "made timestamptz)",
        "INSERT INTO technical_indicators (symbol, timeframe, timestamp, macd, note, made) "
        "SELECT symbol, timeframe, timestamp, close::text::numeric, 'x', now() FROM historical_bars",
        "UPDATE technical_indicators SET \"RSI 14\" = 0.1 WHERE timestamp >= '2023-03-01 02:00Z'",
    )
    source = opened(postgrest, tmp_path)
    assert source.indicator_names("A", Span()) == ["RSI 14", "macd", "none_yet"]
    stamps, values = source.indicator("A", "RSI 14", Span())
    assert len(stamps) == 6 and stamps[0] == ns("2023-03-01T02:00Z")[0]
    equal_bits(values, np.full(6, np.float64(np.float32(0.1))))
    assert len(source.indicator("A", "none_yet", Span())[0]) == 0
    equal_bits(source.indicator("A", "macd", Span())[1], rows_of(source, "A")["close"])


def test_no_table_of_indicators_is_none_unless_the_user_named_it(postgrest, tmp_path):
    loaded(postgrest, 3, ["A"])
    assert opened(postgrest, tmp_path).indicator_names("A", Span()) == []  # empty
    execute(postgrest, "DROP TABLE technical_indicators")
    source = opened(postgrest, tmp_path)
    assert source.indicator_names("A", Span()) == []
    assert len(source.indicator("A", "rsi", Span())[0]) == 0
    source.close()
    with pytest.raises(HpcrlError, match=r"no table public\.own \(indicators\.table\)"):
        opened(postgrest, tmp_path, {"indicators": {"table": "own"}})
    assert opened(postgrest, tmp_path, {"indicators": {"table": None}}).indicator_names("A", Span()) == []


def test_indicators_that_nobody_wants_are_not_asked_for_but_those_that_are_features_are(postgrest, tmp_path):
    loaded(postgrest, 3, ["A"])
    add_indicators(postgrest, 3)
    for features, asked in (((), False), (("rsi",), True)):
        postgrest.reset()
        source = opened(postgrest, tmp_path, indicators=False, features=features)
        source.prepare({"A": Span()}, silent)
        log = json.dumps(postgrest.stats(log=True)["log"])
        assert ("technical_indicators" in log) == asked
        source.close()
