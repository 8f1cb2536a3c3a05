import numpy as np
import pandas as pd
import pytest
import torch
from market_data import SAMPLE, msft, walk

from hpcrl.config.market import MarketConfig
from hpcrl.market.features import FEATURES
from hpcrl.market.load import load_market
from hpcrl.market.scaler import Scaler, fit_scaler
from hpcrl.market.splits import cut
from hpcrl.market.stage import stage_files, stage_frame, stage_synthetic
from hpcrl.types import HpcrlError, RunFailed


def market_of(table, folder, calendar="24/7", config=None, **options):
    staged = stage_frame(table, folder / "m.h5", source="test", calendar=calendar, **options)
    return load_market(MarketConfig(path=str(staged.path), **(config or {})))


def tensors_of(market):
    return market.to("cpu", fit_scaler(market, 0, market.n_bars))


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    """Two symbols: B starts 20 bars later, ends 30 bars earlier, and misses some bars that A has."""
    a = walk(600, 1, "A")
    b = walk(600, 2, "B").iloc[20:570].drop(index=[100, 101, 102, 400])
    return a, b, market_of(pd.concat([a, b]), tmp_path_factory.mktemp("gappy"))


def test_symbols_lie_on_the_union_of_their_grids(gappy):
    _, b, market = gappy
    assert market.symbols == ("A", "B") and market.n_bars == 600
    assert (np.diff(market.ts_B) == 300).all()
    assert market.ts_B[0] == pd.Timestamp("2024-03-01", tz="UTC").timestamp()
    assert market.present_BS[:, 0].all()
    assert np.flatnonzero(~market.present_BS[:, 1]).tolist() == [
        *range(20),
        100,
        101,
        102,
        400,
        *range(570, 600),
    ]
    np.testing.assert_array_equal(market.close_BS[b.index, 1], b["close"])
    assert np.isnan(market.close_BS[[0, 100, 599], 1]).all() and np.isnan(market.volume_BS[100, 1])


def test_burn_in_counts_the_symbols_own_present_bars(gappy):
    _, _, market = gappy
    assert market.first_bar_S.tolist() == [250, 20 + 250 + 3]
    assert market.last_bar_S.tolist() == [599, 569]


def test_missing_bars_hold_the_mark_and_the_last_features(gappy):
    _, b, market = gappy
    tensors = tensors_of(market)
    mark = tensors.close_BS[:, 1].numpy()
    assert np.isnan(mark[:20]).all()  # never back-filled
    for row in (100, 101, 102):
        assert mark[row] == b.loc[99, "close"]
        for name in ("open_BS", "high_BS", "low_BS"):
            assert getattr(tensors, name)[row, 1] == b.loc[99, "close"]
        assert tensors.volume_BS[row, 1] == 0 and not tensors.present_BS[row, 1]
        torch.testing.assert_close(tensors.feature_BSF[row, 1], tensors.feature_BSF[99, 1], rtol=0, atol=0)
    assert (mark[570:] == b.loc[569, "close"]).all()
    assert (market.feature_BSF[:20, 1] == 0).all()
    assert torch.isfinite(tensors.feature_BSF).all()
    assert torch.isfinite(tensors.volume_BS).all()


def test_indicators_skip_missing_bars_instead_of_reading_filled_ones(gappy):
    _, b, market = gappy
    close = b["close"].to_numpy()
    row = list(b.index).index(103)
    got = market.feature_BSF[103, 1, market.feature_names.index("return_3")]
    assert got == np.float32(np.log(close[row] / close[row - 3]))


def test_sigma_is_the_deviation_of_the_last_78_returns_of_present_bars(gappy):
    _, b, market = gappy
    sigma = tensors_of(market).sigma_BS[:, 1].numpy()
    returns = np.diff(np.log(b["close"].to_numpy()))
    place = {bar: number for number, bar in enumerate(b.index)}
    for bar in (40, 60, 99, 103, 300, 569):
        known = returns[: place[bar]][-78:]
        assert sigma[bar] == pytest.approx(known.std(ddof=1), rel=1e-9)
    assert sigma[100] == sigma[99] and sigma[599] == sigma[569]
    assert (sigma[:40] == 0).all() and sigma[40] > 0  # bar 40 is the first with 20 returns


def test_tensors_have_the_types_and_shapes_of_the_contract(gappy):
    tensors = tensors_of(gappy[2])
    assert (tensors.n_bars, tensors.n_symbols, tensors.n_features) == (600, 2, len(FEATURES))
    for name in (
        "open_BS",
        "high_BS",
        "low_BS",
        "close_BS",
        "volume_BS",
        "sigma_BS",
        "split_BS",
        "delist_BS",
    ):
        assert getattr(tensors, name).dtype == torch.float64 and getattr(tensors, name).shape == (600, 2)
    assert tensors.feature_BSF.dtype == torch.float32 and tensors.session_time_B.dtype == torch.float32
    assert tensors.ts_B.dtype == tensors.first_bar_S.dtype == tensors.last_bar_S.dtype == torch.int64
    assert tensors.present_BS.dtype == torch.bool


def test_the_market_is_not_shared_with_its_tensors(gappy):
    market = gappy[2]
    tensors_of(market).split_BS[0, 0] = 5.0
    assert market.split_BS[0, 0] == 1.0


def test_future_bars_change_nothing_that_is_known_before(tmp_path):
    """The whole way from table to tensors: bars after a cut replaced, everything before bit-equal."""
    table = walk(700, 3).drop(index=[120, 121, 300])
    later = table.index > 450
    other = table.copy()
    for name in ("open", "high", "low", "close"):
        other.loc[later, name] *= 1.7
    other.loc[later, "volume"] += 3
    markets = [market_of(t, tmp_path) for t in (table, other)]
    scaler = fit_scaler(markets[0], 250, 400)
    first, second = (market.to("cpu", scaler) for market in markets)
    for name in ("close_BS", "open_BS", "sigma_BS", "feature_BSF", "volume_BS", "session_time_B"):
        one, two = getattr(first, name).numpy(), getattr(second, name).numpy()
        assert one[:451].tobytes() == two[:451].tobytes(), name
    assert (first.sigma_BS[451:] != second.sigma_BS[451:]).any()


def test_the_sample_has_its_sessions(tmp_path):
    path = stage_files(SAMPLE, tmp_path / "m.h5").path
    market = load_market(MarketConfig(path=str(path)))
    assert market.n_bars == 3198 and market.source == "files"
    days, first, count = np.unique(market.session_B, return_index=True, return_counts=True)
    assert len(days) == 42 and sorted(count)[:2] == [30, 48] and (count == 78).sum() == 40
    time = market.session_time_B
    assert (time[first[1:]] == 0).all() and (time[first[1:] - 1] == 1).all()
    assert time[0] == np.float32(30 / 77)  # 16:00 UTC is bar 30 of a session that opens at 13:30
    tensors = tensors_of(market)
    close = msft()["close"].to_numpy()
    np.testing.assert_array_equal(tensors.close_BS[:, 0].numpy(), close)
    expected = np.diff(np.log(close))[2900 - 78 : 2900].std(ddof=1)
    assert tensors.sigma_BS[2900, 0].item() == pytest.approx(expected, rel=1e-12)


def test_half_days_and_missing_sessions_are_masked(tmp_path):
    """Thanksgiving week 2023: Thursday closed, Friday until 13:00 New York time (42 bars)."""
    from hpcrl.market.calendar import session_grid

    start, end = (pd.Timestamp(day, tz="UTC").value for day in ("2023-11-20", "2023-11-28"))
    grid = session_grid("XNYS", 300, start, end)
    days, count = np.unique(grid.session_G, return_counts=True)
    dates = [str(np.datetime64(int(day), "D")) for day in days]
    at = dates.index("2023-11-24")
    assert "2023-11-23" not in dates and count[at] == 42 and count[dates.index("2023-11-22")] == 78
    friday = grid.session_G == days[at]
    assert grid.session_time_G[friday][-1] == 1.0
    table = walk(len(grid.ts_G), 0, "T")
    table["timestamp"] = pd.DatetimeIndex(grid.ts_G, tz="UTC").strftime("%Y-%m-%dT%H:%M:%SZ")
    staged = stage_frame(table[~friday], tmp_path / "m.h5", source="test")
    assert staged.report["masked"]["missing_bars"] == 42
    market = load_market(MarketConfig(path=str(staged.path)))
    assert (~market.present_BS[:, 0] == friday).all()


def test_lunch_breaks_are_no_gaps():
    from hpcrl.market.calendar import session_grid

    day = pd.Timestamp("2022-01-04", tz="UTC")
    grid = session_grid("XHKG", 300, day.value, day.value + 1)
    stamps = pd.DatetimeIndex(
        grid.ts_G[grid.session_G == day.value // 86_400_000_000_000], tz="Asia/Hong_Kong"
    )
    assert len(stamps) == 66
    clock = set(stamps.strftime("%H:%M"))
    assert {"09:30", "11:55", "13:00", "15:55"} <= clock and "12:00" not in clock and "16:00" not in clock


def test_daily_bars_are_labelled_by_midnight_of_their_session(tmp_path):
    from hpcrl.market.calendar import session_grid

    first, last = (pd.Timestamp(day, tz="UTC").value for day in ("2023-01-02", "2024-06-28"))
    grid = session_grid("XNYS", 86_400, first, last)
    table = walk(374, 0, "D")
    inside = grid.ts_G[(grid.ts_G >= first) & (grid.ts_G <= last)]
    table = table.iloc[: len(inside)].assign(
        timestamp=pd.DatetimeIndex(inside, tz="UTC").strftime("%Y-%m-%dT%H:%M:%SZ")
    )
    market = market_of(table, tmp_path, calendar="XNYS", bar_seconds=86_400)
    assert market.present_BS.all() and market.n_bars == 374 and (market.session_time_B == 0).all()


def test_splits_follow_each_other_with_two_bars_purged(gappy):
    market = gappy[2]
    lo, train_end = market.split_range("train")
    start, validation_end = market.split_range("validation")
    test_start, hi = market.split_range("test")
    assert (lo, hi) == (250, 600)
    assert train_end == 250 + 245 and start == train_end + 2
    assert validation_end == 250 + 297 and test_start == validation_end + 2
    with pytest.raises(HpcrlError, match="split 'holdout' is not known; use one of train, validation, test"):
        market.split_range("holdout")


@pytest.mark.parametrize("total", [1, 2, 3, 5, 10, 100, 1000])
@pytest.mark.parametrize("fractions", [(0.7, 0.15), (0.8, 0.0), (0.5, 0.4), (0.05, 0.9)])
def test_splits_never_touch_and_never_turn_negative(total, fractions):
    parts = cut(40, 40 + total, *fractions)
    for lo, hi in parts.values():
        assert 40 <= lo <= hi <= 40 + total
    for earlier, later in (("train", "validation"), ("validation", "test"), ("train", "test")):
        (_, end), (start, stop) = parts[earlier], parts[later]
        if start < stop and parts[earlier][0] < end:
            assert start - end >= 2


def test_fractions_come_from_the_configuration(tmp_path):
    market = market_of(walk(450), tmp_path, config={"train_fraction": 0.5, "validation_fraction": 0.25})
    assert market.split_range("train") == (250, 350) and market.split_range("test") == (402, 450)


def test_too_few_bars_names_split_bars_and_need(gappy, tmp_path):
    market = gappy[2]
    assert market.require("train", 244) == (250, 495)
    with pytest.raises(
        HpcrlError, match=r"the train split has 245 tradable bars.*245 steps needs 246.*250 are burn-in"
    ):
        market.require("train", 245)
    short = market_of(walk(200), tmp_path)
    with pytest.raises(HpcrlError, match="the train split has 0 tradable bars"):
        short.require("train", 1)
    with pytest.raises(HpcrlError, match="nothing to fit"):
        fit_scaler(short, 0, 200)


def test_a_symbol_that_never_leaves_its_burn_in_is_flagged_and_never_tradable(tmp_path):
    table = pd.concat([walk(600, 0, "LONG"), walk(240, 1, "SHORT")])
    staged = stage_frame(table, tmp_path / "m.h5", source="test", calendar="24/7")
    assert staged.report["flagged"]["too_short"]["rows"][0]["symbol"] == "SHORT"
    market = load_market(MarketConfig(path=str(staged.path)))
    assert market.first_bar_S.tolist() == [250, 600] and market.last_bar_S.tolist() == [599, 239]


def test_symbols_and_features_are_chosen_in_the_order_asked_for(gappy, tmp_path):
    a, b, full = gappy
    names = ("rsi14", "return_1")
    some = market_of(pd.concat([a, b]), tmp_path, config={"symbols": ("B",), "features": names})
    assert some.symbols == ("B",) and some.feature_names == names
    assert some.n_bars == 550 and some.sha256 == full.sha256
    columns = [full.feature_names.index(name) for name in names]
    np.testing.assert_array_equal(some.feature_BSF[:, 0], full.feature_BSF[20:570, 1][:, columns])


def test_the_scaler_sees_present_training_rows_after_burn_in_only(gappy):
    market = gappy[2]
    scaler = fit_scaler(market, 260, 420)
    rows = [(bar, s) for s in range(2) for bar in range(260, 420) if market.present_BS[bar, s]]
    rows = [(bar, s) for bar, s in rows if bar >= market.first_bar_S[s]]
    value = np.stack([market.feature_BSF[bar, s] for bar, s in rows]).astype(np.float64)
    np.testing.assert_allclose(scaler.mean_F, value.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(scaler.std_F, value.std(0), rtol=1e-5)
    scaled = scaler.apply(market.feature_BSF)
    assert scaled.dtype == np.float32 and np.abs(scaled).max() <= 8.0


def test_the_scaler_survives_a_checkpoint_bit_for_bit(gappy, tmp_path):
    market = gappy[2]
    scaler = fit_scaler(market, 250, 500)
    torch.save(scaler.state(), tmp_path / "scaler.pt")
    again = Scaler.from_state(torch.load(tmp_path / "scaler.pt", weights_only=True))
    assert again.feature_names == scaler.feature_names and again.clip == scaler.clip
    assert again.apply(market.feature_BSF).tobytes() == scaler.apply(market.feature_BSF).tobytes()
    with pytest.raises(RunFailed, match="feature scaler is incomplete"):
        Scaler.from_state({"mean": torch.zeros(3)})


def test_a_constant_feature_is_scaled_to_zero(tmp_path):
    table = walk(400).assign(flat=0.1)
    market = market_of(table, tmp_path, features=("flat",), computed=False)
    scaled = fit_scaler(market, 250, 400).apply(market.feature_BSF)
    assert np.abs(scaled).max() < 1e-6


def test_a_scaler_of_other_features_is_refused(gappy, tmp_path):
    other = market_of(walk(400).assign(cue=1.0), tmp_path, features=("cue",), computed=False)
    with pytest.raises(HpcrlError, match="the feature scaler was fitted on cue; the market has return_1"):
        gappy[2].to("cpu", fit_scaler(other, 250, 400))


def test_base_settings_train_on_the_synthetic_fallback(tmp_path):
    staged = stage_synthetic(tmp_path / "s.h5")
    assert staged.rows == dict.fromkeys(("AAPL", "MSFT", "GOOGL", "TSLA", "NVDA", "AMZN"), 1250)
    market = load_market(MarketConfig(path=str(staged.path)))
    assert market.source == "synthetic"
    assert (market.last_bar_S - market.first_bar_S + 1).tolist() == [1000] * 6
    assert market.require("train", 512)[0] == 250
