"""A database's indicators against recomputed ones: the same, different, or not to be compared."""

import io
import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from market_data import columns, msft, walk

from hpcrl.market.clean import iso
from hpcrl.market.compare import check_names, compare_indicators, differing_rows, indicator_lines
from hpcrl.market.indicators import INDICATORS, find_indicator
from hpcrl.market.quality import add_indicators, render_report
from hpcrl.market.stage import stage_frame
from hpcrl.types import HpcrlError


def stamps(table):
    return pd.DatetimeIndex(pd.to_datetime(table["timestamp"], utc=True)).as_unit("ns").asi8


TABLE = msft()
BARS, TS = columns(TABLE), stamps(TABLE)


def compare(*given, bars=BARS, ts=TS, names=None):
    found = compare_indicators(bars, ts, [(name, at, value) for name, at, value in given], names or {})
    json.dumps(found, allow_nan=False)
    return found


def wilder(value, period):
    return value.ewm(alpha=1 / period, adjust=False).mean()


def by_pandas():
    """Indicators as a database's own job would have computed them, each begun its own way."""
    high, low, close, volume = (pd.Series(BARS[name]) for name in ("high", "low", "close", "volume"))
    move = close.diff()
    true_range = pd.concat([high - low, (high - close.shift()).abs(), (low - close.shift()).abs()], axis=1)
    middle, spread = close.rolling(20).mean(), close.rolling(20).std(ddof=0)
    fast, slow = (close.ewm(span=span, adjust=False).mean() for span in (12, 26))
    typical = (high + low + close) / 3
    session = pd.Series(BARS["session"])
    highest, lowest = high.rolling(14).max(), low.rolling(14).min()
    k = (100 * (close - lowest) / (highest - lowest)).rolling(3).mean()
    return {
        "SMA_50": close.rolling(50).mean(),
        "ema12": close.ewm(span=12, adjust=False).mean(),
        "ema_200": close.ewm(span=200, adjust=False).mean(),
        "rsi": 100 - 100 / (1 + wilder(move.clip(lower=0), 14) / wilder(-move.clip(upper=0), 14)),
        "RSI_7": 100 - 100 / (1 + wilder(move.clip(lower=0), 7) / wilder(-move.clip(upper=0), 7)),
        "atr14": wilder(true_range.max(axis=1), 14),
        "bollinger_upper": middle + 2 * spread,
        "BBL_20_2.0": middle - 2 * spread,
        "macd": fast - slow,
        "macd_signal": (fast - slow).ewm(span=9, adjust=False).mean(),
        "MACDh_12_26_9": (fast - slow) - (fast - slow).ewm(span=9, adjust=False).mean(),
        "williams_r": -100 * (highest - close) / (highest - lowest),
        "stoch_k": k,
        "stoch_d": k.rolling(3).mean(),
        "momentum_10": close.diff(10),
        "roc": 100 * close.pct_change(10),
        "obv": (np.sign(move).fillna(0) * volume).cumsum(),
        "vwap": (typical * volume).groupby(session).cumsum() / volume.groupby(session).cumsum(),
        "plus_di": 100
        * wilder((high.diff()).where((high.diff() > -low.diff()) & (high.diff() > 0), 0.0), 14)
        / wilder(true_range.max(axis=1), 14),
    }


THEIRS = {name: value.to_numpy() for name, value in by_pandas().items()}


@pytest.mark.parametrize("name", THEIRS)
def test_another_ones_formula_over_the_same_bars_is_no_difference(name):
    found = compare((name, TS, THEIRS[name]))["compared"][name]
    assert found["differing"] == 0 and found["rounded"] is None and found["on_no_bar"] == 0
    assert found["compared"] == len(TS) - max(250, found["burn_in"])
    assert found["worst"]["relative"] < 1e-6


@pytest.mark.parametrize("name", THEIRS)
def test_a_history_that_begins_on_an_earlier_bar_is_no_difference(name):
    first = 137  # in the midst of a session
    bars = {key: value[first:] for key, value in BARS.items()}
    found = compare((name, TS, THEIRS[name]), bars=bars, ts=TS[first:])["compared"][name]
    assert found["differing"] == 0 and found["on_no_bar"] == first
    assert found["compared"] == len(TS) - first - found["burn_in"]


@pytest.mark.parametrize("name", THEIRS)
def test_one_value_that_is_off_by_little_more_than_the_limit_is_named(name):
    value, row = THEIRS[name].copy(), 2222
    rms = np.sqrt(np.mean(np.square(value[250:] - (value[250:].mean() if name == "obv" else 0))))
    for share, differing in ((0.5e-6, 0), (2e-6, 1)):
        level = THEIRS[name][row] - (THEIRS[name][250:].mean() if name == "obv" else 0)
        value[row] = THEIRS[name][row] + share * max(abs(level), 0.1 * rms)
        found = compare((name, TS, value))
        one = found["compared"][name]
        assert one["differing"] == differing
        if differing:
            assert one["first_differing"] == one["worst"]["timestamp"] == iso(int(TS[row]))
            assert one["worst"]["theirs"] == value[row]
            (line,) = differing_rows("MSFT", found)
            assert line["symbol"] == "MSFT" and line["timestamp"] == iso(int(TS[row]))
            assert f"{name} (recomputed {one['ours']}): 1 of" in line["what"]


@pytest.mark.parametrize("name", THEIRS)
def test_values_of_the_bar_before_or_after_differ(name):
    for shift in (-1, 1):
        found = compare((name, TS, np.roll(THEIRS[name], shift)))["compared"][name]
        assert found["differing"] > 0.9 * found["compared"]


@pytest.mark.parametrize("decimals", [2, 4])
@pytest.mark.parametrize("name", sorted(set(THEIRS) - {"obv"}))
def test_rounding_is_called_rounding_and_what_differs_by_more_is_not(name, decimals):
    value = np.round(THEIRS[name], decimals)
    one = compare((name, TS, value))["compared"][name]
    assert one["differing"] == 0
    if 0.5 * 10.0**-decimals < 1e-6 * np.nanmin(np.abs(THEIRS[name])):
        assert one["rounded"] is None  # too small to need an excuse
        return
    assert one["rounded"]["decimals"] == decimals and one["rounded"]["values"] > 100
    value[2500] += 3 * 10.0**-decimals
    value[2700] += 3.2345678 * 10.0**-decimals
    one = compare((name, TS, value))["compared"][name]
    assert one["differing"] == 2 and one["first_differing"] == iso(int(TS[2500]))


def test_single_precision_is_no_difference():
    for name, value in THEIRS.items():
        one = compare((name, TS, value.astype(np.float32).astype(np.float64)))["compared"][name]
        assert one["differing"] == 0, name


@pytest.mark.parametrize("name", THEIRS)
def test_a_column_of_zeros_is_not_taken_for_rounding(name):
    one = compare((name, TS, np.zeros(len(TS))))["compared"][name]
    assert one["differing"] > 0.9 * one["compared"]


def test_a_constant_is_forgiven_obv_and_no_other():
    moved = {name: compare((name, TS, value + 5e5))["compared"][name] for name, value in THEIRS.items()}
    assert [name for name, one in moved.items() if one["differing"] == 0] == ["obv"]
    value = THEIRS["obv"].copy()
    value[3000:] += 5e5  # a bar's volume that the database counted twice
    one = compare(("obv", TS, value))["compared"]["obv"]
    assert one["differing"] == len(TS) - 3000 and one["first_differing"] == iso(int(TS[3000]))


def test_stamps_of_no_bar_missing_values_and_infinity():
    value = THEIRS["rsi"].copy()
    value[1000], value[1001] = np.nan, np.inf
    ts = TS.copy()
    ts[2000:2007] += 1
    one = compare(("rsi", ts, value))["compared"]["rsi"]
    assert one["on_no_bar"] == 7 and one["compared"] == len(TS) - 250 - 7 - 1
    assert one["differing"] == 1 and one["worst"]["theirs"] == "inf"
    assert one["first_differing"] == iso(int(TS[1001]))


def test_an_indicator_that_is_zero_throughout_differs_where_the_database_says_otherwise():
    bars = {**BARS, **{name: np.full(len(TS), 7.0) for name in ("open", "high", "low", "close")}}
    zeros = np.zeros(len(TS))
    assert compare(("mom", TS, zeros), bars=bars)["compared"]["mom"]["differing"] == 0
    zeros[700] = 1e-9
    assert compare(("mom", TS, zeros), bars=bars)["compared"]["mom"]["differing"] == 1


def test_what_cannot_be_compared_says_why_and_the_mapping_helps():
    value = THEIRS["SMA_50"]
    given = (("trend", TS, value), ("sma", TS, value), ("ma", TS[:200], value[:200]))
    found = compare(*given, names={"sma": "SMA50", "ma": "SMA50"})
    assert found["compared"]["sma"]["ours"] == "SMA50" and found["compared"]["sma"]["differing"] == 0
    assert found["not_compared"] == {
        "trend": "cannot be recomputed",
        "ma": "no value at a bar after the first 250",
    }
    assert compare(("sma", TS, value))["not_compared"] == {"sma": "cannot be recomputed"}
    check_names({"sma": "SMA50"})
    with pytest.raises(HpcrlError, match=r"maps trend to 'TREND9'.*known are SMA20, .*own periods"):
        check_names({"trend": "TREND9"})


def test_the_burn_in_grows_with_a_slow_mean_and_vwap_waits_for_its_second_session():
    table = walk(5000, freq="1min")
    bars, ts = columns(table), stamps(table)
    given = [(name, ts, find_indicator(name)(bars)) for name in ("ema_20", "ema_200", "rsi_50", "vwap")]
    found = compare_indicators(bars, ts, given, {})["compared"]
    assert {name: one["burn_in"] for name, one in found.items()} == {
        "ema_20": 250,
        "ema_200": 1608,
        "rsi_50": 800,
        "vwap": 1440,
    }


def test_the_report_has_a_few_lines_however_many_symbols_there_are():
    rounded = np.round(THEIRS["SMA_50"], 2)
    found = compare(
        ("rsi", TS, THEIRS["rsi"]),
        ("SMA_50", TS, rounded),
        ("macd", TS + 1, THEIRS["macd"]),
        ("x", TS, rounded),
    )
    lines = indicator_lines({f"S{n}": found for n in range(50)})
    assert lines == [
        "indicators: 294,800 values compared with recomputed ones, none different (rsi, SMA_50)",
        "  rounded to 2 decimals: SMA_50",
        "  not compared (no value at a bar after the first 296): macd",
        "  not compared (cannot be recomputed): x",
    ]
    assert indicator_lines({}) == [] and differing_rows("S0", found) == []


def test_one_indicator_at_a_time_is_in_memory():
    table = walk(100_000)
    bars, ts = columns(table), stamps(table)

    def given(count):
        for period in range(2, 2 + count):
            yield f"sma_{period}", ts, INDICATORS["SMA20"](bars)

    peaks = []
    for count in (3, 30):
        tracemalloc.start()
        compare_indicators(bars, ts, given(count), {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000


@pytest.mark.parametrize(
    ("spelling", "ours"),
    [
        ("SMA_50", "SMA50"), ("ma20", "SMA20"), ("ema12", "EMA12"), ("EMA 200", "EMA200"), ("wma-9", "WMA9"),
        ("rsi", "RSI14"), ("RSI(9)", "RSI9"), ("RSI_7", "RSI7"), ("atr", "ATR14"), ("ATRr_14", "ATR14"),
        ("adx", "ADX14"), ("DMP_14", "PLUS_DI14"), ("minus_di", "MINUS_DI14"), ("cci", "CCI20"),
        ("CCI_20_0.015", "CCI20"), ("mfi", "MFI14"), ("willr", "WILLR14"), ("williams_r", "WILLR14"),
        ("Williams %R", "WILLR14"), ("mom", "MOM10"), ("roc_1", "ROC1"), ("obv", "OBV"),
        ("vwap", "VWAP_SESSION"),
        ("MACD_12_26_9", "MACD"), ("macd_5_35_5", "MACD(5,35,5)"), ("macdSignal", "MACD_SIGNAL"),
        ("MACDs_12_26_9", "MACD_SIGNAL"), ("MACDh", "MACD_HIST"), ("macd_histogram", "MACD_HIST"),
        ("bb_upper", "BB_UPPER"), ("bollinger_upper", "BB_UPPER"), ("BBU_20_2.0", "BB_UPPER"),
        ("BBL_20_2.0_2.0", "BB_LOWER"), ("lower_bollinger_band", "BB_LOWER"), ("bb_mid", "BB_MIDDLE"),
        ("bb_20_2.5_upper", "BB_UPPER(20,2.5)"), ("stoch_k", "STOCH_K"), ("%K", "STOCH_K"),
        ("STOCHd_14_3_3", "STOCH_D"), ("Slow %D (14, 3, 3)", "STOCH_D"),
    ],
)  # fmt: skip
def test_names_that_databases_use_are_understood(spelling, ours):
    found = find_indicator(spelling)
    assert found is not None and found.name == ours
    if ours in INDICATORS:
        np.testing.assert_array_equal(found(BARS), INDICATORS[ours](BARS))


@pytest.mark.parametrize(
    "spelling",
    ["", "14", "_", "sma", "ema", "rsi_0", "rsi_1", "rsi_1.5", "rsi_14_3", "rsi²", "volume_sma_20",
     "macd12269", "bb", "k", "r", "CCI_20_0.02", "BBU_20_2.0_3.0", "sma_99999999999", "close", "ema_12_26",
     "obv_3"],
)  # fmt: skip
def test_a_name_that_may_mean_anything_is_not_guessed(spelling):
    assert find_indicator(spelling) is None


def test_every_indicator_of_ours_goes_by_its_own_name():
    assert [find_indicator(name).name for name in INDICATORS] == list(INDICATORS)
    assert [find_indicator(name.lower().replace("_", "-")).name for name in INDICATORS] == list(INDICATORS)


def test_the_quality_report_flags_what_differs_and_shows_the_rest(tmp_path):
    from rich.console import Console

    value = THEIRS["rsi"].copy()
    value[2000] += 1
    report = stage_frame(TABLE, tmp_path / "m.h5", source="test").report
    add_indicators(report, "MSFT", compare(("rsi", TS, value), ("atr14", TS, THEIRS["atr14"])))
    assert list(report["flagged"]) == ["indicator_differs"]
    entry = report["flagged"]["indicator_differs"]
    assert entry["count"] == 1 and entry["rows"][0]["timestamp"] == iso(int(TS[2000]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_report(report))
    shown = " ".join(console.export_text().split())
    assert "flagged: 1 indicator differs" in shown and "rsi (recomputed RSI14): 1 of 2,948 values" in shown
    assert "5,896 values compared with recomputed ones, 1 different (rsi, atr14)" in shown
