"""Each kind of bad input is refused by name, and nothing is written."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from market_data import DATA, SAMPLE, msft, walk
from rich.console import Console

from hpcrl.market.quality import render_report
from hpcrl.market.stage import stage_files, stage_frame
from hpcrl.types import HpcrlError


def stage(table, folder, **options):
    """Write ``table`` as CSV and stage it; an error may leave nothing behind."""
    source = folder / "in"
    source.mkdir(exist_ok=True)
    table.to_csv(source / "bars.csv", index=False)
    out = folder / "out" / "market.h5"
    before = {file: file.read_bytes() for file in out.parent.glob("*")}
    try:
        return stage_files(source / "bars.csv", out, **{"calendar": "24/7", **options})
    except HpcrlError as error:
        assert error.exit_code == 2
        assert {file: file.read_bytes() for file in out.parent.glob("*")} == before
        raise


def set_cell(column, value):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[40, column] = value

    return change


def doubled(**changes):
    def change(table):
        row = table.iloc[[40]].assign(**changes)
        table.loc[40.5] = row.iloc[0]
        table.sort_index(inplace=True)

    return change


def swap(table):
    table.loc[[40, 41], "timestamp"] = table.loc[[41, 40], "timestamp"].to_numpy()


BAD = {
    "high below close": (set_cell("high", 1.0), "1 ohlc_order", 42),
    "low above open": (set_cell("low", 1e6), "1 ohlc_order", 42),
    "zero price": (set_cell("low", 0.0), "1 price_not_positive", 42),
    "negative price": (set_cell("open", -3.0), "1 price_not_positive", 42),
    "empty close": (set_cell("close", ""), "close is empty", 42),
    "text for a price": (set_cell("open", "n/a"), "open is 'n/a'", 42),
    "NaN volume": (set_cell("volume", "nan"), "volume is 'nan'", 42),
    "infinite price": (set_cell("high", "inf"), "1 infinite", 42),
    "infinite volume": (set_cell("volume", "inf"), "volume is infinite", 42),
    "negative volume": (set_cell("volume", -5), "volume is -5", 42),
    "no timestamp": (set_cell("timestamp", ""), "no point in time", 42),
    "no such day": (set_cell("timestamp", "2024-02-31T00:00:00Z"), "no point in time", 42),
    "no such time": (set_cell("timestamp", "2624-03-01T03:20:00Z"), "outside the years 1700 to 2200", 42),
    "no symbol": (set_cell("symbol", ""), "no symbol", 42),
    "unsorted": (swap, "1 unsorted", 43),
    "conflicting duplicate": (doubled(volume=7.0), "1 conflicting_duplicate", 43),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_refused_with_their_line_stamp_and_symbol(kind, tmp_path):
    change, message, line = BAD[kind]
    table = walk(300)
    change(table)
    with pytest.raises(HpcrlError) as caught:
        stage(table, tmp_path)
    text = str(caught.value)
    assert message in text
    assert f"line {line}," in text and "nothing was written" in text
    if kind != "no symbol":
        assert "BTC/USD" in text
    if not kind.startswith("no "):
        assert "2024-03-01T03:2" in text


def test_ten_rows_are_named_and_all_are_counted(tmp_path):
    table = walk(300)
    table.loc[100:149, "high"] = 1.0
    table.loc[200, "volume"] = -1
    with pytest.raises(HpcrlError) as caught:
        stage(table, tmp_path)
    text = str(caught.value)
    assert "50 ohlc_order, 1 negative_volume among 300 rows" in text
    assert text.count("\n  line ") == 10 and text.endswith("...")
    assert "line 102," in text


def test_the_known_bad_file_is_refused(tmp_path):
    with pytest.raises(
        HpcrlError, match=r"1 ohlc_order among 60 rows[^\n]*\n  line 2, RAND at 2022-04-19T07:00:00Z"
    ):
        stage_files(DATA / "bad_RAND_5min.csv", tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == []


def test_missing_columns_are_named_with_those_found(tmp_path):
    with pytest.raises(
        HpcrlError, match=r"missing columns close, volume; needed: .*found: timestamp, symbol, open"
    ):
        stage(walk(300).drop(columns=["close", "volume"]), tmp_path)
    with pytest.raises(HpcrlError, match="missing column cue"):
        stage(walk(300), tmp_path, features=("cue",))


def test_stamps_without_a_zone_are_refused_unless_one_is_named(tmp_path):
    table = walk(300)
    table["timestamp"] = table["timestamp"].str.replace("Z", "")
    with pytest.raises(HpcrlError, match=r"carry no time zone.*--timezone"):
        stage(table, tmp_path)
    utc = stage(table, tmp_path, timezone="UTC")
    assert utc.report["symbols"]["BTC/USD"]["first"] == "2024-03-01T00:00:00Z"
    local = stage(table, tmp_path, timezone="America/New_York")
    assert local.report["symbols"]["BTC/USD"]["first"] == "2024-03-01T05:00:00Z"
    with pytest.raises(HpcrlError, match="'Mars/Olympus' is not known"):
        stage(table, tmp_path, timezone="Mars/Olympus")


def test_the_doubled_hour_of_a_clock_change_is_no_certain_time(tmp_path):
    table = walk(300, start="2024-11-03T00:00:00")
    table["timestamp"] = table["timestamp"].str.replace("Z", "")
    with pytest.raises(HpcrlError, match="12 unparsable"):
        stage(table, tmp_path, timezone="America/New_York")


def test_a_mix_of_stamps_with_and_without_zone_is_refused(tmp_path):
    table = walk(300)
    table.loc[7, "timestamp"] = "2024-03-01T00:35:00"
    with pytest.raises(HpcrlError, match="some timestamps carry a zone and some do not"):
        stage(table, tmp_path)


def test_offsets_are_converted_to_utc(tmp_path):
    table = walk(300)
    stamp = pd.to_datetime(table["timestamp"]).dt.tz_convert("Asia/Kolkata")
    table["timestamp"] = stamp.map(lambda t: t.isoformat())
    assert stage(table, tmp_path).sha256 == stage(walk(300), tmp_path).sha256


def test_identical_duplicates_are_dropped_and_named(tmp_path):
    table = walk(300)
    doubled()(table)
    result = stage(table, tmp_path)
    found = result.report["dropped"]["identical_duplicate"]
    assert found["count"] == 1 and found["rows"][0]["where"] == "line 43"
    assert result.rows == {"BTC/USD": 300}
    assert result.sha256 == stage(walk(300), tmp_path).sha256
    with pytest.raises(HpcrlError, match=r"1 identical_duplicate among 301 rows: refused \(--strict\)"):
        stage(table, tmp_path, strict=True)


def test_the_planted_row_of_the_sample_is_dropped_and_named(tmp_path):
    result = stage_files(SAMPLE, tmp_path / "out.h5")
    report = result.report
    assert result.rows == {"MSFT": 3198} and report["rows_read"] == 3199
    assert report["dropped"]["off_grid"]["count"] == 1
    row = report["dropped"]["off_grid"]["rows"][0]
    assert (row["where"], row["symbol"], row["timestamp"]) == ("line 3", "MSFT", "2022-04-18T16:02:00Z")
    assert report["symbols"]["MSFT"]["complete_sessions"] == 40
    assert report["symbols"]["MSFT"]["sessions"] == 42
    assert report["masked"] == {"missing_bars": 0, "zero_volume": 1}
    with pytest.raises(HpcrlError, match="1 off_grid"):
        stage_files(SAMPLE, tmp_path / "strict.h5", strict=True)
    assert not (tmp_path / "strict.h5").exists()


def test_the_wrong_calendar_is_recognised(tmp_path):
    with pytest.raises(HpcrlError, match=r"\(\d\d%\) are off the calendar's 300 s grid.*--calendar \(24/7"):
        stage(walk(600), tmp_path, calendar="XNYS")
    with pytest.raises(HpcrlError, match="calendar 'NYSE2' is not known"):
        stage(walk(600), tmp_path, calendar="NYSE2")


def new_york(rows: pd.DataFrame, first: str, last: str) -> pd.DataFrame:
    """The rows of weekdays between two hours of New York."""
    local = pd.DatetimeIndex(pd.to_datetime(rows["timestamp"], utc=True)).tz_convert("America/New_York")
    hour = local.strftime("%H:%M")
    return rows[(hour >= first) & (hour < last) & (local.dayofweek < 5)].reset_index(drop=True)


def test_extended_hours_are_dropped_by_name_and_do_not_hide_the_sessions(tmp_path):
    rows = walk(5000, symbol="AAPL", start="2024-03-04")  # a clock change within
    extended, session = new_york(rows, "04:00", "20:00"), new_york(rows, "09:30", "16:00")
    assert len(session) < 0.5 * len(extended)
    staged = stage(extended, tmp_path, calendar="XNYS")
    dropped = staged.report["dropped"]
    assert dropped["outside_session"]["count"] == len(extended) - len(session) and "off_grid" not in dropped
    (tmp_path / "two").mkdir()
    assert staged.sha256 == stage(session, tmp_path / "two", calendar="XNYS").sha256
    with pytest.raises(HpcrlError, match=r"outside_session among .*strict"):
        stage(extended, tmp_path, calendar="XNYS", strict=True)


def test_hours_of_another_zone_are_no_extended_hours(tmp_path):
    rows = new_york(walk(8000, symbol="AAPL", start="2024-03-04"), "09:30", "16:00")
    stamps = pd.DatetimeIndex(pd.to_datetime(rows["timestamp"], utc=True)).tz_convert("America/New_York")
    wrong = rows.assign(timestamp=stamps.strftime("%Y-%m-%dT%H:%M:%SZ"))  # New York's clock, called UTC
    with pytest.raises(HpcrlError, match=r"off the calendar's 300 s grid.*--timezone"):
        stage(wrong, tmp_path, calendar="XNYS")


def test_bars_around_the_clock_on_weekdays_are_no_extended_hours(tmp_path):
    rows = new_york(walk(1200, symbol="ES", start="2024-03-04T12:00:00"), "00:00", "24:00")
    with pytest.raises(HpcrlError, match="off the calendar's 300 s grid"):
        stage(rows, tmp_path, calendar="XNYS")


def test_a_session_that_is_missing_whole_is_counted(tmp_path):
    rows = new_york(walk(4000, symbol="AAPL", start="2024-02-05"), "09:30", "16:00")
    without = rows[~rows["timestamp"].str.startswith("2024-02-07")]
    counts = [stage(each, tmp_path, calendar="XNYS").report["symbols"]["AAPL"] for each in (rows, without)]
    assert counts[0]["sessions"] == counts[0]["complete_sessions"] == counts[1]["sessions"]
    assert counts[1]["complete_sessions"] == counts[0]["sessions"] - 1


def test_the_wrong_bar_length_is_recognised(tmp_path):
    with pytest.raises(HpcrlError, match=r"usual step of its rows is 60 s.*--bar-seconds"):
        stage(walk(600, freq="1min"), tmp_path)
    with pytest.raises(HpcrlError, match="300 s apart, not 60 s; give --bar-seconds 300"):
        stage(walk(600), tmp_path, bar_seconds=60)


def test_a_symbol_off_the_grid_is_not_hidden_by_the_others(tmp_path):
    shifted = walk(100, symbol="ODD", start="2024-03-01T00:02:00")
    with pytest.raises(HpcrlError, match=r"ODD: 100 of 100 rows \(100%\)"):
        stage(pd.concat([walk(900), shifted]), tmp_path)


def test_an_off_grid_row_with_a_dividend_is_not_dropped(tmp_path):
    table = walk(300).assign(dividend=0.0)
    table.loc[50, ["timestamp", "dividend"]] = ["2024-03-01T04:11:00Z", 0.5]
    with pytest.raises(
        HpcrlError, match="row at 2024-03-01T04:11:00Z is no bar of a session and carries a split"
    ):
        stage(table, tmp_path)


def test_bad_corporate_actions_are_refused(tmp_path):
    table = walk(300).assign(split=1.0, delist=np.nan)
    table.loc[60, "split"] = 0.0
    with pytest.raises(HpcrlError, match="split is 0"):
        stage(table, tmp_path)
    table.loc[60, "split"] = 2.0
    with pytest.raises(HpcrlError, match="1 split_twice"):
        stage(table, tmp_path, price_adjustment="splits")
    table.loc[60, "delist"] = 3.0
    with pytest.raises(HpcrlError, match="239 after_delisting"):
        stage(table, tmp_path)


def test_bad_dividends_are_refused(tmp_path):
    table = walk(300).assign(dividend=0.0)
    table.loc[60, "dividend"] = -0.5
    with pytest.raises(HpcrlError, match=r"1 bad_dividend.*\n.*dividend is -0.5; at least 0"):
        stage(table, tmp_path)
    table.loc[60, "dividend"] = 0.5
    with pytest.raises(HpcrlError, match="1 dividend_twice"):
        stage(table, tmp_path, price_adjustment="splits_dividends")
    stage(table, tmp_path, price_adjustment="splits")


def test_a_jump_by_a_splits_ratio_is_flagged_in_unadjusted_prices_only(tmp_path):
    table = msft()
    price = ["open", "high", "low", "close"]
    table.loc[1062:, price] /= 4  # row 1062 opens a session
    found = stage(table, tmp_path, calendar="XNYS", price_adjustment="unadjusted").report["flagged"]
    assert found["split_jump"]["count"] == 1
    assert found["split_jump"]["rows"][0]["timestamp"] == table.loc[1062, "timestamp"]
    assert stage(table, tmp_path, calendar="XNYS", price_adjustment="splits").report["flagged"] == {}
    with pytest.raises(HpcrlError, match="split_jump"):
        stage(table, tmp_path, calendar="XNYS", price_adjustment="unadjusted", strict=True)
    table["split"] = 1.0
    table.loc[1062, "split"] = 4.0
    named = stage(table, tmp_path, calendar="XNYS", price_adjustment="unadjusted")
    assert named.report["flagged"] == {}


def test_a_reverse_split_is_flagged_too(tmp_path):
    table = msft()
    table.loc[1062:, ["open", "high", "low", "close"]] *= 10
    found = stage(table, tmp_path, calendar="XNYS", price_adjustment="unadjusted").report["flagged"]
    assert found["split_jump"]["count"] == 1


def test_the_report_renders_and_is_written_as_json(tmp_path):
    result = stage_files(SAMPLE, tmp_path / "out.h5")
    assert json.loads((tmp_path / "out.report.json").read_text()) == result.report
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_report(result.report))
    text = console.export_text()
    assert "3,198" in text and "2022-04-18T16:02:00Z" in text and "line 3" in text
    whole = ("present", "tradable", "missing", "zero volume", "sessions", "complete", "MSFT")
    assert all(word in text for word in (*whole, "2022-04-18T16:00:00Z", "2022-06-15T15:55:00Z"))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_the_report_is_readable_at_80_columns_for_large_data_and_long_names(tmp_path):
    report = stage_files(SAMPLE, tmp_path / "out.h5").report
    counts = {
        key: 12_345_678 if isinstance(value, int) else value
        for key, value in report["symbols"]["MSFT"].items()
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_report(report | {"symbols": {"A" * 30: counts, "[B]": counts}}))
    text = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and text.count("12,345,678") == 12 and "[B]" in text


@pytest.mark.parametrize("zone", ["", ".", "America", "Mars/Olympus", "/etc"])
def test_a_zone_that_does_not_exist_is_one_error(zone, tmp_path):
    table = walk(300)
    for change in (lambda text: text, lambda text: text.str.replace("Z", "")):
        table["timestamp"] = change(table["timestamp"])
        with pytest.raises(HpcrlError, match=r"timezone .* is not known.*America/New_York"):
            stage(table, tmp_path, timezone=zone)


@pytest.mark.parametrize("where", [0, 299])
@pytest.mark.parametrize("seconds", [300, 1])
def test_one_stray_stamp_does_not_make_years_of_missing_bars(where, seconds, tmp_path):
    table = walk(300, freq=f"{seconds}s")
    table.loc[where, "timestamp"] = "2170-01-01T00:00:00Z" if where else "1970-01-01T00:00:00Z"
    table = pd.concat([table, walk(300, 1, "ETH", freq=f"{seconds}s")])
    with pytest.raises(HpcrlError, match=r"BTC/USD: 300 rows for the [\d,]{9,} bars") as caught:
        stage(table, tmp_path, bar_seconds=seconds)
    text = str(caught.value)
    assert ("2170-01-01T00:00:00Z" if where else "1970-01-01T00:00:00Z, 2024-03-01T00:0") in text


def test_a_stray_stamp_on_an_exchanges_calendar_is_refused_too(tmp_path):
    table = msft()
    table.loc[0, "timestamp"] = "2000-01-03T14:30:00Z"
    with pytest.raises(
        HpcrlError, match=r"MSFT: 3,198 rows for the [\d,]+ bars .*begin 2000-01-03T14:30:00Z"
    ):
        stage(table, tmp_path, calendar="XNYS")


def test_daily_bars_are_not_staged_as_bars_of_minutes(tmp_path):
    with pytest.raises(HpcrlError, match=r"BTC/USD: 300 rows for the 86,113 bars.*--bar-seconds"):
        stage(walk(300, freq="1D"), tmp_path)


def test_thin_trading_is_no_stray_stamp(tmp_path):
    table = walk(3000).iloc[np.sort(np.random.default_rng(0).choice(3000, 600, replace=False))]
    assert stage(table, tmp_path).rows == {"BTC/USD": 600}
    stage(walk(3), tmp_path)
    stage(walk(1), tmp_path)


def test_unknown_options_of_a_frame_are_refused_too(tmp_path):
    with pytest.raises(HpcrlError, match="price_adjustment is 'raw'; allowed: unknown, unadjusted"):
        stage_frame(walk(300), tmp_path / "x.h5", source="test", calendar="24/7", price_adjustment="raw")
    with pytest.raises(HpcrlError, match="feature 'close': this name is taken"):
        stage_frame(walk(300), tmp_path / "x.h5", source="test", calendar="24/7", features=("close",))
    with pytest.raises(HpcrlError, match="no features"):
        stage_frame(walk(300), tmp_path / "x.h5", source="test", calendar="24/7", computed=False)
