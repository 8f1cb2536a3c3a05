import json

import numpy as np
import pytest
from market_data import DATA, columns, msft, walk

from hpcrl.market.features import BURN_IN, FEATURES, compute_features
from hpcrl.market.indicators import INDICATORS, indicator
from hpcrl.types import HpcrlError

GOLDEN = json.loads((DATA / "INDICATORS.json").read_text())["indicators"]


def features(bars, split=None):
    return compute_features(bars, np.ones(len(bars["close"])) if split is None else split, "X")


@pytest.fixture(scope="module")
def bars():
    return columns(msft())


@pytest.mark.parametrize("name", GOLDEN)
def test_indicator_matches_the_golden_values(name, bars):
    value = indicator(name, bars)
    assert int(np.argmax(np.isfinite(value))) == GOLDEN[name]["first_valid_index"]
    for row, expected in GOLDEN[name]["values"].items():
        assert value[int(row)] == pytest.approx(expected, rel=1e-9)


CUTS = [0, 5, 18, 19, 33, 47, 48, 77, 78, 125, 126, 249, 250, 500, 1499, 2500, 3196]


def perturbed(bars, cut):
    """Every bar after ``cut`` replaced by another market (a level, volume and volatility of its own)."""
    rng = np.random.default_rng(cut)
    n = len(bars["close"]) - cut - 1
    out = {name: array.copy() for name, array in bars.items()}
    close = 3000 * np.exp(np.cumsum(0.03 * rng.standard_normal(n)))
    out["close"][cut + 1 :] = close
    out["open"][cut + 1 :] = close * 1.01
    out["high"][cut + 1 :] = close * 1.02
    out["low"][cut + 1 :] = close * 0.97
    out["volume"][cut + 1 :] = rng.uniform(0, 1e9, n)
    return out


@pytest.mark.parametrize("cut", CUTS)
def test_bars_after_a_cut_change_no_feature_before_it_by_one_bit(cut, bars):
    before, after = features(bars), features(perturbed(bars, cut))
    assert before[: cut + 1].tobytes() == after[: cut + 1].tobytes()
    assert (before[cut + 1 :] != after[cut + 1 :]).any()


@pytest.mark.parametrize("cut", CUTS)
def test_bars_after_a_cut_change_no_indicator_before_it_by_one_bit(cut, bars):
    other = perturbed(bars, cut)
    for name in INDICATORS:
        assert indicator(name, bars)[: cut + 1].tobytes() == indicator(name, other)[: cut + 1].tobytes(), name


@pytest.mark.parametrize("cut", [0, 19, 250, 700])
def test_features_of_a_file_that_ends_at_the_cut_are_the_same(cut, bars):
    short = {name: array[: cut + 1] for name, array in bars.items()}
    assert features(short).tobytes() == features(bars)[: cut + 1].tobytes()


def test_a_change_at_the_bar_itself_is_seen(bars):
    """The bit comparison would pass on constant features: each must react to its own bar."""
    changed = {name: array.copy() for name, array in bars.items()}
    row = 1000
    for name in ("high", "low", "close"):
        changed[name][row] *= {"high": 1.05, "low": 0.9, "close": 1.03}[name]
    changed["volume"][row] *= 7
    differs = (features(bars)[row] != features(changed)[row]).tolist()
    quiet = [name for name, moved in zip(FEATURES, differs, strict=True) if not moved]
    assert quiet == ["overnight_gap"]  # a matter of the session's open


def test_features_follow_their_definitions(bars):
    got = dict(zip(FEATURES, features(bars)[2000].astype(float), strict=True))
    close = bars["close"]
    returns = np.diff(np.log(close))
    volume = bars["volume"][1923:2001]
    middle, spread = close[1981:2001].mean(), close[1981:2001].std()
    session = np.flatnonzero(bars["session"] == bars["session"][2000])
    expected = {
        "return_1": np.log(close[2000] / close[1999]),
        "return_3": np.log(close[2000] / close[1997]),
        "return_12": np.log(close[2000] / close[1988]),
        "return_78": np.log(close[2000] / close[1922]),
        "overnight_gap": np.log(bars["open"][session[0]] / close[session[0] - 1]),
        "range": (bars["high"][2000] - bars["low"][2000]) / close[2000],
        "volatility_12": returns[1988:2000].std(ddof=1),
        "volatility_78": returns[1922:2000].std(ddof=1),
        "volume_z": (volume[-1] - volume.mean()) / volume.std(ddof=1),
        "sma20": close[2000] / middle - 1,
        "bollinger": (close[2000] - middle) / (2 * spread),
        "atr14": indicator("ATR14", bars)[2000] / close[2000],
        "rsi14": indicator("RSI14", bars)[2000] / 50 - 1,
        "mfi14": indicator("MFI14", bars)[2000] / 50 - 1,
        "macd_hist": indicator("MACD_HIST", bars)[2000] / close[2000],
        "vwap": close[2000] / indicator("VWAP_SESSION", bars)[2000] - 1,
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=2e-6, abs=1e-9), name


def test_no_feature_is_missing_after_burn_in_and_warm_ups_are_zero(bars):
    value = features(bars)
    assert np.isfinite(value).all()
    assert (value[0, list(FEATURES).index("return_78")] == 0) and (
        value[:33, list(FEATURES).index("macd_hist")] == 0
    ).all()


@pytest.mark.parametrize(
    "kind", ["constant", "no volume", "constant after a move", "tiny price", "huge price", "gap to dust"]
)
def test_dead_and_extreme_markets_give_finite_features(kind):
    table = walk(700)
    price = ["open", "high", "low", "close"]
    if kind == "constant":
        table[price] = 123.456
    if kind == "constant after a move":
        table.loc[300:, price] = 123.456
        table.loc[300:, "volume"] = 0.0
    if kind == "no volume":
        table["volume"] = 0.0
    if kind == "tiny price":
        table[price] *= 1e-10
    if kind == "huge price":
        table[price] *= 1e9
    if kind == "gap to dust":
        table.loc[300:, price] *= 1e-8
    value = features(columns(table))
    assert np.isfinite(value).all()
    assert np.abs(value).max() < 100 or kind == "gap to dust"
    if kind.startswith("constant"):
        slow = ("ema78", "adx14", "rsi14", "macd_hist", "atr14", "overnight_gap", "volume_z")
        decaying = [list(FEATURES).index(name) for name in slow]
        assert np.abs(np.delete(value[-1], decaying)).max() < 1e-6


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
def test_features_do_not_depend_on_the_unit_of_price_or_volume(scale):
    table = walk(600)
    plain = features(columns(table))
    table[["open", "high", "low", "close"]] *= scale
    table["volume"] *= 4
    np.testing.assert_allclose(features(columns(table))[BURN_IN:], plain[BURN_IN:], rtol=2e-4, atol=2e-6)


def test_a_split_is_no_return():
    bars = columns(walk(600))
    split = np.ones(600)
    split[400] = 2.0
    after = {name: array.copy() for name, array in bars.items()}
    for name in ("open", "high", "low", "close"):
        after[name][400:] /= 2
    after["volume"][400:] *= 2
    np.testing.assert_array_equal(features(after, split), features(bars))
    assert np.abs(features(after)[400, 0]) > 0.5  # without the split column it looks like a crash


def test_a_feature_that_is_not_finite_after_burn_in_is_refused_by_name():
    bars = columns(walk(600))
    bars["close"] = bars["close"].copy()
    bars["close"][300] = np.nan
    with pytest.raises(HpcrlError, match="return_1 is nan at present bar 300"):
        features(bars)


@pytest.mark.parametrize("first", [1, 37, 900])
def test_features_do_not_hang_on_where_the_file_begins(first, bars):
    """Once the start is forgotten. Up and down moves of equally many ticks are compared: rounding must not
    decide, and running sums must not drift."""
    late = {name: array[first:] for name, array in bars.items()}
    whole, shorter = features(bars)[3000:], features(late)[3000 - first :]
    assert np.abs(whole - shorter).max() < 1e-9
    assert (whole != shorter).mean() <= 1e-4
