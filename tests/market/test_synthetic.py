from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpcrl.market.stage import stage_files, stage_planted, stage_synthetic
from hpcrl.market.synthetic import random_walk
from hpcrl.types import HpcrlError

SAMPLE = Path(__file__).parents[2] / "data/sample/MSFT_5min.csv"


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


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(HpcrlError, match="synthetic data of 0 bars"):
        stage_synthetic(tmp_path / "x.h5", bars=0)
    with pytest.raises(HpcrlError, match="for 0 symbols"):
        stage_synthetic(tmp_path / "x.h5", symbols=())


@pytest.mark.parametrize("stage", [stage_synthetic, partial(stage_planted, task="L2")])
def test_made_up_bars_do_not_take_the_place_of_real_ones(tmp_path, stage):
    out = tmp_path / "market.h5"
    stage_files(SAMPLE, out, price_adjustment="splits")
    before = out.read_bytes()
    with pytest.raises(HpcrlError, match="bars of source files, which made-up ones do not replace"):
        stage(out, bars=200)
    assert out.read_bytes() == before
    other = tmp_path / "other.h5"
    stage(other, bars=200)
    stage(other, bars=300)  # those they do
