"""The names of tables and columns: defaults, YAML over them, and one clear error for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpcrl.config.load_tables import load_tables
from hpcrl.config.tables import Tables
from hpcrl.types import HpcrlError

EXAMPLE = Path(__file__).resolve().parents[2] / "yaml/tables.yaml"


def test_the_example_writes_out_every_default():
    assert load_tables(EXAMPLE) == load_tables(None) == Tables()
    assert yaml.safe_load(EXAMPLE.read_text()) == Tables().model_dump(mode="json")


def test_a_file_says_only_what_differs(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("bars: {table: candles, timeframe: null}\nindicators: {names: {rsi: RSI14}}\n")
    tables = load_tables(path)
    assert (tables.bars.table, tables.bars.timeframe, tables.bars.symbol) == ("candles", None, "symbol")
    assert tables.indicators.names == {"rsi": "RSI14"} and tables.timeframes == Tables().timeframes


def test_columns_that_a_wide_table_does_not_have_are_no_doubles(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("indicators: {layout: wide, symbol: value}")
    assert load_tables(path).indicators.symbol == "value"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bars: {tabel: x}", ["unknown key bars.tabel = 'x'", "nearest valid key: bars.table"]),
        ("indicators: {symbl: x}", ["nearest valid key: indicators.symbol"]),
        ("bar: {table: x}", ["unknown key bar", "nearest valid key: bars"]),
        ("bars: {open: null}", ["bars.open = None", "a text is needed"]),
        ("bars: {symbol: yes}", ["bars.symbol = True: a text is needed; put it in quotes"]),
        ("bars: candles", ["bars = 'candles': expected a section of keys"]),
        ("bars:", ["the section bars is empty"]),
        ("bars: {open: a, open: b}", ["line 1", "open is given twice"]),
        ("indicators: {layout: tall}", ["indicators.layout = 'tall'", "'auto', 'long' or 'wide'"]),
        ("timeframes: {5Min: 5 minutes}", ["timeframes.5Min = '5 minutes': a whole number is needed"]),
        ("bars: {close: open}", ["bars: open and close are both the column 'open'"]),
        ("bars: {vwap: high}", ["bars: high and vwap are both the column 'high'"]),
        ("bars: {symbol: ts, timestamp: ts}", ["bars: symbol and timestamp are both the column 'ts'"]),
        ("indicators: {value: indicator}", ["indicators: name and value are both the column 'indicator'"]),
        ("bars: {open: ''}", ["bars.open = '': a name is needed"]),
        ("bars: {table: ' '}", ["bars.table = ' ': a name is needed"]),
        ("bars: {timeframe: ''}", ["bars.timeframe = '': a name is needed"]),
        ("indicators: {table: ''}", ["indicators.table = '': a name is needed"]),
        ("indicators: {names: {rsi: ''}}", ["indicators.names.rsi = '': a name is needed"]),
        ("indicators: {names: {'': RSI14}}", ["a name is needed"]),
        ("timeframes: {Never: 0}", ["timeframes.Never = 0", "greater than or equal to 1"]),
        ("timeframes: {Back: -300}", ["timeframes.Back = -300", "greater than or equal to 1"]),
        ("timeframes: {Week: 604800}", ["timeframes.Week = 604800", "less than or equal to 86400"]),
        ("- bars", ["key: value"]),
        ("bars: [", ["not valid YAML"]),
    ],
)
def test_a_mistake_names_file_key_and_what_is_right(tmp_path, text, parts):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(HpcrlError) as caught:
        load_tables(path)
    for part in (str(path), *parts):
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HpcrlError, match=r"none\.yaml: cannot be read"):
        load_tables(tmp_path / "none.yaml")
