"""Whatever happens after a bar, the file's features at and before it are the same to the last bit."""

import numpy as np
import pandas as pd
import pytest
from market_data import msft
from test_market_features import CUTS, perturbed

from hpcrl.market.features import FEATURES, Feature
from hpcrl.market.indicators import indicator
from hpcrl.market.stage import stage_frame
from hpcrl.market.store import read_store

TABLE = msft()
SESSION_ENDS = np.flatnonzero(np.diff(pd.to_datetime(TABLE["timestamp"], utc=True).dt.dayofyear))
EDGES = sorted({int(end) + shift for end in SESSION_ENDS[[0, 5, 20, -1]] for shift in (-1, 0, 1)})
NAMES = ("open", "high", "low", "close", "volume")


def staged(table, path):
    """The symbol as a reader gets it."""
    (bars,) = read_store(stage_frame(table, path, source="test").path)[0].values()
    return bars


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return staged(TABLE, tmp_path_factory.mktemp("whole") / "m.h5")


def another_market(cut):
    bars = {name: TABLE[name].to_numpy(dtype=float) for name in NAMES}
    return TABLE.assign(**{name: perturbed(bars, cut)[name] for name in NAMES})


def holes(cut):
    """A third of the bars after the cut missing, but for the last."""
    gone = np.random.default_rng(cut).random(len(TABLE)) < 1 / 3
    gone[: cut + 1], gone[-1] = False, False
    return TABLE[~gone]


def a_split(cut):
    later = np.arange(len(TABLE)) > cut
    prices = {name: np.where(later, TABLE[name] / 4, TABLE[name]) for name in NAMES[:-1]}
    return TABLE.assign(**prices, split=np.where(np.arange(len(TABLE)) == cut + 1, 4.0, 1.0))


def no_more_bars(cut):
    return TABLE[: cut + 1]


def same_until(cut, whole, other):
    """Names of features that differ at or before the cut; the stamps and sessions must not."""
    last = int(np.searchsorted(whole.ts, pd.Timestamp(TABLE["timestamp"][cut]).value)) + 1
    for name in ("ts", "present", "session", "session_time", "close"):
        assert getattr(whole, name)[:last].tobytes() == getattr(other, name)[:last].tobytes()
    differ = (whole.features[:last].view(np.int32) != other.features[:last].view(np.int32)).any(axis=0)
    return [name for name, changed in zip(FEATURES, differ, strict=True) if changed]


@pytest.mark.parametrize("cut", sorted({*CUTS, *EDGES}))
def test_another_market_after_the_cut_changes_nothing_before_it(cut, whole, tmp_path):
    other = staged(another_market(cut), tmp_path / "m.h5")
    assert same_until(cut, whole, other) == []
    assert (other.features[-1] != whole.features[-1]).any()


@pytest.mark.parametrize("change", [holes, a_split, no_more_bars])
@pytest.mark.parametrize("cut", [19, 250, int(SESSION_ENDS[5]), 1499])
def test_holes_a_split_and_the_end_after_the_cut_change_nothing_before_it(change, cut, whole, tmp_path):
    other = staged(change(cut), tmp_path / "m.h5")
    assert same_until(cut, whole, other) == []
    if change is holes:
        assert not other.present.all()


def test_another_symbols_bars_change_nothing(whole, tmp_path):
    for seed in (0, 1):
        beside = another_market(seed).assign(symbol="AAA")
        path = stage_frame(pd.concat([TABLE, beside]), tmp_path / "m.h5", source="test").path
        assert read_store(path)[0]["MSFT"].features.tobytes() == whole.features.tobytes()


def back_filled(bars):
    return pd.Series(indicator("MACD_HIST", bars)).bfill().to_numpy() / bars["close"]


def centred(bars):
    return pd.Series(bars["close"]).rolling(5, center=True, min_periods=1).mean().to_numpy() / bars["close"]


def scaled_by_all(bars):
    return bars["volume"] / bars["volume"].max()


LEAKS = {"back_filled": back_filled, "centred": centred, "scaled_by_all": scaled_by_all}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_found_at_some_cut_and_by_name(leak, tmp_path, monkeypatch):
    """A back-fill shows at early cuts only: that is why they are here."""
    monkeypatch.setitem(FEATURES, leak, Feature("sees the future", LEAKS[leak]))
    leaky = staged(TABLE, tmp_path / "m.h5")
    found = {
        cut: same_until(cut, leaky, staged(another_market(cut), tmp_path / f"{cut}.h5"))
        for cut in (0, 18, 500, len(TABLE) - 2)
    }
    early, late = found[18] == [leak], found[500] == [leak]
    assert (early, late) == (True, leak != "back_filled")
    assert all(names in ([], [leak]) for names in found.values())
