"""The SQL of `hpcrl stage schema`, run on a real server."""

from __future__ import annotations

import subprocess

import psycopg
import pytest
from databases import fill, joined, make_bars, source
from psycopg import sql

from hpcrl.config.tables import BarsTable, IndicatorsTable, Tables
from hpcrl.market.schema import schema_sql
from hpcrl.market.source import Span
from hpcrl.types import HpcrlError

pytestmark = pytest.mark.database

ODD = 'we"ird $make$ %s {0} Ü'


def columns(connection, schema: str, table: str) -> dict[str, str]:
    found = connection.execute(
        "select column_name, data_type from information_schema.columns "
        "where table_schema = %s and table_name = %s order by ordinal_position",
        [schema, table],
    )
    return dict(found.fetchall())


def keys(connection, table: str) -> list[str]:
    """Definitions of a table's indexes, from the columns on."""
    found = connection.execute("select indexdef from pg_indexes where tablename = %s order by 1", [table])
    return sorted(row[0].partition(" USING ")[2] for row in found)


@pytest.mark.parametrize(
    "tables",
    [
        Tables(),
        Tables(indicators=IndicatorsTable(layout="wide")),
        Tables(bars=BarsTable(timeframe=None), indicators=IndicatorsTable(table=None)),
        Tables(
            bars=BarsTable(schema_name=ODD, table=ODD, symbol=ODD, split="s", delist="x", vwap="select"),
            indicators=IndicatorsTable(schema_name=ODD, table="order", name=ODD),
        ),
    ],
    ids=["default", "wide", "one timeframe", "odd names"],
)
def test_it_runs_twice_and_staging_reads_what_it_made(postgres, database, tables):
    timeframe = tables.bars.timeframe is not None
    with postgres.connect(database) as connection:
        connection.execute(schema_sql(tables))
        made = columns(connection, tables.bars.schema_name, tables.bars.table)
        connection.execute(schema_sql(tables))
        assert columns(connection, tables.bars.schema_name, tables.bars.table) == made
        assert made[tables.bars.symbol] == "text"
        assert made["timestamp"] == "timestamp with time zone"
        assert ("timeframe" in made) == timeframe
        expected = (
            6
            + timeframe
            + sum(getattr(tables.bars, name) is not None for name in ("split", "delist", "vwap"))
            + 1
        )
        assert len(made) == expected
    reader = source(database, tables)
    reader.open()
    assert reader.is_empty()
    assert reader.symbols() == []
    assert joined(reader.bars("A", Span())) == {}
    reader.close()


def test_psql_itself_takes_it(postgres, database):
    for _ in range(2):
        done = subprocess.run(
            ["psql", "-v", "ON_ERROR_STOP=1", "-q", database], input=schema_sql(Tables()), text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "historical_bars" in done.stderr  # the notice that it stays as it is


def test_the_keys_serve_the_pages_of_a_symbol_and_one_indicator_of_it(postgres, database):
    with postgres.connect(database) as connection:
        connection.execute(schema_sql(Tables()))
        assert keys(connection, "historical_bars") == ['btree (symbol, timeframe, "timestamp")']
        assert keys(connection, "technical_indicators") == [
            'btree (symbol, timeframe, "timestamp", indicator)',
            'btree (symbol, timeframe, indicator, "timestamp")',
        ]
        fill(connection, "A", make_bars(3000))
        fill(connection, "B", make_bars(3000))
        connection.execute("analyze historical_bars")
        plan = connection.execute(
            "explain select * from historical_bars where symbol = 'A' and timeframe = '5Min' "
            'and "timestamp" >= \'2024-03-05\' order by "timestamp" limit 1000'
        ).fetchall()
    text = "\n".join(row[0] for row in plan)
    assert "Index Scan using historical_bars_pkey" in text
    assert "Sort" not in text


def test_a_table_that_is_there_stays_as_it_is(postgres, database):
    with postgres.connect(database) as connection:
        connection.execute("create table historical_bars (own text)")
        connection.execute("insert into historical_bars values ('kept')")
        connection.execute(schema_sql(Tables()))
        assert columns(connection, "public", "historical_bars") == {"own": "text"}
        secured = "select relrowsecurity from pg_class where relname = %s"
        assert connection.execute(secured, ["historical_bars"]).fetchone() == (False,)
        assert connection.execute(secured, ["technical_indicators"]).fetchone() == (True,)


def test_another_role_sees_no_row(postgres, database):
    user = postgres.user_with_password("sesame")
    with postgres.connect(database) as connection:
        connection.execute(schema_sql(Tables()))
        fill(connection, "A", make_bars(3))
        connection.execute(sql.SQL("grant select on historical_bars to {}").format(sql.Identifier(user)))
    with postgres.connect(database, user=user, password="sesame") as connection:
        assert connection.execute("select count(*) from historical_bars").fetchone() == (0,)


@pytest.mark.parametrize(
    "row",
    [
        "'A', '5Min', '2024-01-01Z', 10, 9, 8, 9, 1",  # high below open
        "'A', '5Min', '2024-01-01Z', 10, 11, 10.5, 11, 1",  # low above open
        "'A', '5Min', '2024-01-01Z', 0, 1, 0, 1, 1",
        "'A', '5Min', '2024-01-01Z', 10, 'NaN', 9, 10, 1",
        "'A', '5Min', '2024-01-01Z', 'NaN', 'NaN', 'NaN', 'NaN', 1",
        "'A', '5Min', '2024-01-01Z', 10, 'inf', 9, 10, 1",
        "'A', '5Min', '2024-01-01Z', 10, 11, 9, 10, -1",
        "'A', '5Min', 'infinity', 10, 11, 9, 10, 1",
        "'A', '5Min', '2024-01-01Z', null, 11, 9, 10, 1",
        "null, '5Min', '2024-01-01Z', 10, 11, 9, 10, 1",
    ],
)
def test_the_table_refuses_what_staging_would_reject(postgres, database, row):
    with postgres.connect(database) as connection:
        connection.execute(schema_sql(Tables()))
        with pytest.raises(psycopg.errors.IntegrityError):
            connection.execute(f"insert into historical_bars values ({row})")
        connection.execute(
            "insert into historical_bars values ('A', '5Min', '2024-01-01Z', 10, 11, 9, 10, 0)"
        )


def test_wide_columns_carry_the_mapped_names(postgres, database):
    tables = Tables(indicators=IndicatorsTable(layout="wide", names={"rsi": "RSI14"}))
    with postgres.connect(database) as connection:
        connection.execute(schema_sql(tables))
        made = columns(connection, "public", "technical_indicators")
    assert {"rsi", "macd_signal", "bb_upper"} <= made.keys()
    assert "rsi14" not in made


@pytest.mark.parametrize(
    "tables, words",
    [
        (
            Tables(indicators=IndicatorsTable(layout="wide", names={"symbol": "RSI14"})),
            "indicators.RSI14 and indicators.symbol are both the column 'symbol'",
        ),
        (Tables(bars=BarsTable(table="x" * 64)), "1 to 63 bytes"),
        (Tables(bars=BarsTable(symbol="a\0b")), "no name"),
    ],
)
def test_names_that_cannot_be_are_refused(tables, words):
    with pytest.raises(HpcrlError, match=words):
        schema_sql(tables)
