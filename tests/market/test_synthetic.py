import numpy as np
import pandas as pd
import pytest

from hpcrl.config.market import MarketConfig
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_frame, stage_synthetic
from hpcrl.market.store import load_market
from hpcrl.market.synthetic import planted_cue, random_walk
from hpcrl.types import HpcrlError


def test_the_same_seed_gives_the_same_bars_and_another_gives_others(tmp_path):
    one, two, three = (
        stage_synthetic(tmp_path / f"{n}.h5", bars=50, seed=seed) for n, seed in enumerate((4, 4, 5))
    )
    assert one.sha256 == two.sha256 != three.sha256


def test_a_symbols_bars_do_not_depend_on_the_others():
    pd.testing.assert_frame_equal(random_walk("TSLA", 300, 1), random_walk("TSLA", 300, 1))
    assert not random_walk("TSLA", 300, 1)["close"].equals(random_walk("NVDA", 300, 1)["close"])
    longer = random_walk("TSLA", 300, 1)["timestamp"]
    assert longer.iloc[0] == pd.Timestamp("2016-01-04T14:30:00Z") and len(longer) == 300


def test_a_random_walk_looks_like_a_market_and_has_no_memory():
    table = random_walk("X", 20_000, 0)
    returns = np.diff(np.log(table["close"]))
    yearly = returns.std() * np.sqrt(78 * 252)
    assert 0.25 < yearly < 0.35
    lag = np.corrcoef(returns[:-1], returns[1:])[0, 1]
    assert abs(lag) < 4 / np.sqrt(len(returns))
    assert (table["high"] >= table[["open", "close"]].max(axis=1)).all() and (table["volume"] > 0).all()
    hours = table["timestamp"].dt.tz_convert("America/New_York").dt.strftime("%H:%M")
    assert hours.min() == "09:30" and hours.max() == "15:55"


@pytest.mark.parametrize("k", [0, 1, 12, 90])
def test_the_planted_cue_pays_after_exactly_k_bars(k):
    table = planted_cue(30_000, k, seed=2)
    close, cue = np.log(table["close"].to_numpy()), table["cue"].to_numpy()
    assert set(np.unique(cue)) == {-1.0, 1.0} and abs(cue.mean()) < 0.03
    assert (table["open"].to_numpy()[1:] == table["close"].to_numpy()[:-1]).all()
    after = close[1:] - close[:-1]  # after[t]: from the close of bar t to the close of bar t + 1
    paid = {lag: (cue[: len(after) - lag] * after[lag:]).mean() for lag in {0, 1, k, k + 1, max(k - 1, 0)}}
    assert paid.pop(k) == pytest.approx(5e-4, rel=0.03)
    assert all(abs(value) < 5 * 7.1e-4 / np.sqrt(len(after)) for value in paid.values())
    residual = after[k:] - 5e-4 * cue[: len(after) - k]
    assert residual.std() == pytest.approx(5e-4, rel=0.03)


def test_the_planted_market_stages_with_the_cue_as_its_only_feature(tmp_path):
    table = planted_cue(1500, 12, seed=0)
    staged = stage_frame(
        table,
        tmp_path / "cue.h5",
        source="planted",
        calendar="24/7",
        features=("cue",),
        computed=False,
        strict=True,
    )
    market = load_market(MarketConfig(path=str(staged.path)))
    assert market.feature_names == ("cue",) and market.source == "planted" and market.present_BS.all()
    np.testing.assert_array_equal(market.feature_BSF[:, 0, 0], table["cue"])
    assert market.first_bar_S.tolist() == [250]
    tensors = market.to("cpu", fit_scaler(market, *market.split_range("train")))
    assert tensors.volume_BS.min() == tensors.volume_BS.max() == 1e9


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(HpcrlError, match="synthetic data of 0 bars"):
        stage_synthetic(tmp_path / "x.h5", bars=0)
    with pytest.raises(HpcrlError, match="for 0 symbols"):
        stage_synthetic(tmp_path / "x.h5", symbols=())
    with pytest.raises(HpcrlError, match="k is -1"):
        planted_cue(10, -1, 0)
