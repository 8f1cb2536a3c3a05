"""Rules through the simulator: what they know, when they trade, and what they must not see."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from evaluate_runs import FREE, make_data, tiny_market

from hpcrl.config.env import EnvConfig
from hpcrl.config.market import MarketConfig
from hpcrl.evaluate.backtest import make_plan, play_plan
from hpcrl.evaluate.baselines import BuyAndHold, EqualWeight, Table, hold_config
from hpcrl.evaluate.prices import moving_average, unsplit
from hpcrl.evaluate.rules import MovingAverageCross, play_rule
from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.evaluate.track import summary
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.types import HpcrlError

SPREAD = FREE.model_copy(update={"half_spread": 2e-4})


def walk(bars: int = 400, symbols: int = 1, seed: int = 0) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(0, 0.01, (bars, symbols))
    return 100 * np.exp(steps.cumsum(0))


def env(costs=FREE, **changes) -> EnvConfig:
    return EnvConfig(costs=costs, **({"lot": 0} | changes))


def play(market, config, strategy, lo=0, hi=None):
    plan = make_plan(market, config, lo, hi or market.n_bars)
    return play_plan(market, hold_config(config), plan, lambda group: strategy)


def is_long(close_B: np.ndarray, fast: int, slow: int) -> np.ndarray:
    """The rule once more, by plain loops."""
    return np.array(
        [
            b + 1 >= slow and close_B[b + 1 - fast : b + 1].mean() > close_B[b + 1 - slow : b + 1].mean()
            for b in range(len(close_B))
        ]
    )


def test_a_moving_average_is_the_mean_of_the_last_bars_and_nan_before():
    close = walk(50, 2)
    found = moving_average(torch.tensor(close), 7).numpy()
    assert np.isnan(found[:6]).all()
    for b in range(6, 50):
        assert found[b] == pytest.approx(close[b - 6 : b + 1].mean(0), rel=1e-14)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_the_cross_holds_what_its_averages_say_and_trades_at_crossings_alone(lag):
    close = walk()
    track = play(tiny_market(close), env(SPREAD, fill_lag=lag), MovingAverageCross(10, 40))
    long_T = is_long(close[:, 0], 10, 40)[:-1]
    late = max(lag - 1, 0)
    held_T = np.concatenate([np.zeros(late, dtype=bool), long_T])[: len(long_T)]
    assert ((track.gross_TN[:, 0] > 0) == held_T).all()
    assert track.trades_TN.sum() == np.abs(np.diff(held_T.astype(int), prepend=0)).sum() > 5


def test_the_cross_knows_the_bars_before_the_range():
    close = walk()
    lo = int(np.flatnonzero(is_long(close[:, 0], 10, 40))[5])
    track = play(tiny_market(close), env(), MovingAverageCross(10, 40), lo=lo, hi=lo + 3)
    assert track.gross_TN[0, 0] > 0


def test_the_cross_sees_no_bar_that_comes_later():
    close, other = walk(200), walk(200)
    other[120:] *= 1.5
    market, changed = tiny_market(close), tiny_market(other)
    first, second = (play(m, env(SPREAD), MovingAverageCross(5, 20)) for m in (market, changed))
    assert (first.equity_TN[:120] == second.equity_TN[:120]).all()
    # The decision at the last common close fills at the next open, the first that differs.
    assert (first.target_TNA[:120] == second.target_TNA[:120]).all()
    assert first.equity_TN[-1] != second.equity_TN[-1]


def test_the_cross_finds_no_cross_where_prices_stand_still():
    track = play(tiny_market(np.full(200, 0.1)), env(SPREAD), MovingAverageCross(3, 7))
    assert not track.trades_TN.any()


def test_the_cross_is_blind_to_splits():
    close = walk(200)
    ratio = torch.ones(200, 1, dtype=torch.float64)
    ratio[90] = 4.0
    cut = close.copy()
    cut[90:] /= 4
    market = tiny_market(cut, split_BS=ratio)
    market.open_BS[90] = market.open_BS[90] / 4
    market.high_BS[90], market.low_BS[90] = market.close_BS[90] * 2, market.close_BS[90] / 2
    assert unsplit(market).numpy() == pytest.approx(close)
    plain, split = (play(m, env(SPREAD), MovingAverageCross(5, 20)) for m in (tiny_market(close), market))
    assert split.equity_TN == pytest.approx(plain.equity_TN, rel=1e-12)


def test_the_cross_of_an_account_over_several_assets_shares_its_weight():
    close = walk(300, 3)
    track = play(tiny_market(close), env(assets="all"), MovingAverageCross(5, 20, weight=0.6))
    long_TA = np.stack([is_long(close[:, a], 5, 20) for a in range(3)], 1)[:-1]
    assert ((track.weight_TNA[:, 0] > 0) == long_TA).all()
    bought = np.flatnonzero(long_TA[:, 1])[0]
    assert track.weight_TNA[bought, 0, 1] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("fast, slow", [(0, 5), (5, 5), (9, 3)])
def test_averages_that_cannot_cross_are_refused(fast, slow):
    with pytest.raises(HpcrlError, match=rf"over {fast} and {slow} bars: 1 <= fast < slow"):
        MovingAverageCross(fast, slow)


def test_equal_weight_comes_back_to_equal_shares_once_a_session():
    close = walk(60, 3)
    session = np.arange(60) // 12
    track = play(tiny_market(close), env(assets="all"), EqualWeight(session))
    traded = np.flatnonzero(track.trades_TN[:, 0])
    assert traded.tolist() == [0, 12, 24, 36, 48]
    for t in traded[1:]:
        decided = track.equity_TN[t, 0] / 3 / close[t]
        held = track.weight_TNA[t, 0] * track.equity_TN[t + 1, 0] / close[t + 1]
        assert held == pytest.approx(decided, rel=1e-6)


def test_equal_weight_of_one_asset_is_buy_and_hold():
    market, session = tiny_market(walk(60)), np.arange(60) // 60
    equal, hold = (play(market, env(SPREAD), s) for s in (EqualWeight(session), BuyAndHold(1.0)))
    assert (equal.equity_TN == hold.equity_TN).all()


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_equal_weight_in_whole_lots_does_not_trade_in_between(lag):
    close = walk(120, 3, seed=3)
    track = play(
        tiny_market(close),
        env(SPREAD, assets="all", lot=50.0, fill_lag=lag),
        EqualWeight(np.arange(120) // 40),
    )
    traded = np.flatnonzero(track.trades_TN[:, 0])
    assert set(traded) <= {max(lag - 1, 0) + 40 * k for k in range(3)} and len(traded) > 1


def test_equal_weight_asks_again_where_a_bar_did_not_fill():
    close = np.full((40, 2), 100.0)
    close[6:, 0] = 150.0
    market = tiny_market(close)
    market.volume_BS[13:15, 1] = 0
    track = play(market, env(assets="all"), EqualWeight(np.arange(40) // 12))
    # Of the two orders of the second session one waits for the first bar that trades.
    assert np.flatnonzero(track.trades_TN[:, 0]).tolist() == [0, 12, 14]
    assert track.weight_TNA[-1, 0] == pytest.approx([0.5, 0.5])


def test_a_jump_of_the_price_is_no_reason_to_trade():
    close = np.full((30, 2), 100.0)
    close[10:, 0] = 160.0
    track = play(tiny_market(close), env(assets="all"), EqualWeight(np.zeros(30, dtype=int)))
    assert np.flatnonzero(track.trades_TN[:, 0]).tolist() == [0]


# ---- play_rule


def arrays(close: np.ndarray, **more) -> dict:
    market = tiny_market(close)
    columns = {
        k: getattr(market, f"{k}_BS").numpy().copy() for k in ("open", "high", "low", "close", "volume")
    }
    return {"ts": 1_700_000_000 + 300 * np.arange(len(close))} | columns | more


@pytest.mark.parametrize("assets", ["single", "all"])
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_rule_in_columns_is_the_rule_bar_by_bar(lag, assets):
    close = walk(300, 3)
    config = env(SPREAD, fill_lag=lag, assets=assets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fill_lag 0
        columns = play_rule(MovingAverageCross(5, 20, 0.9), arrays(close), env=config)
        asked = play_rule(lambda: MovingAverageCross(5, 20, 0.9), arrays(close), env=config)
    assert columns.track.equity_TN == pytest.approx(asked.track.equity_TN, rel=1e-11)
    assert (columns.track.trades_TN == asked.track.trades_TN).all()
    assert columns.symbols == asked.symbols


def test_a_rule_that_stands_when_the_range_begins_is_played_from_there(tmp_path):
    path = make_data(tmp_path / "m.h5", bars=900)
    whole = load_market(MarketConfig(path=str(path)))
    lo, hi = whole.split_range("validation")
    found = play_rule([MovingAverageCross(5, 20), MovingAverageCross(10, 30)], path, split="validation")
    assert found.names == ("ma_5_20",) * 2 + ("ma_10_30",) * 2 and found.symbols == ("AAA", "BBB") * 2
    assert found.track.equity_TN.shape == (hi - lo, 4) and len(found.ts_T) == hi - lo - 1
    tensors = whole.to("cpu", fit_scaler(whole, lo, hi))
    plan = make_plan(tensors, EnvConfig(), lo, hi)
    same = play_plan(tensors, hold_config(EnvConfig()), plan, lambda group: MovingAverageCross(5, 20))
    assert found.track.equity_TN[:, :2] == pytest.approx(same.equity_TN, rel=1e-9)
    started = is_long(whole.close_BS[:, 0], 5, 20)[lo], is_long(whole.close_BS[:, 1], 5, 20)[lo]
    assert tuple(found.track.trades_TN[0, :2] > 0) == started


def test_a_table_of_weights_is_played_as_the_simulator_plays_it():
    close, weight = walk(120, 2), np.random.default_rng(3).choice([-0.5, 0.0, 0.7], (120, 2))
    found = play_rule(pd.DataFrame(weight, columns=["a", "b"]), arrays(close), env=env(SPREAD))
    table = Table(weight[:-1, :, None], np.full(2, 119), np.zeros(2, dtype=np.int64))
    market = tiny_market(close)
    wanted = play_plan(market, env(SPREAD), make_plan(market, env(SPREAD), 0, 120), lambda group: table)
    assert (found.track.equity_TN == wanted.equity_TN).all()
    shown = found.table()
    assert shown["rule"].tolist() == ["a", "b"] and shown["symbol"].tolist() == ["asset_0", "asset_1"]
    metrics = summary(wanted, found.session_T, found.periods)
    for name, value in metrics.items():
        assert shown[name].to_numpy() == pytest.approx(value, rel=1e-9, nan_ok=True), name


def test_columns_of_symbols_that_begin_late_or_end_early_are_cash_there():
    close = walk(100, 2)
    bars = arrays(close)
    for name in ("open", "high", "low", "close"):
        bars[name][:30, 0] = bars[name][70:, 1] = np.nan
    weight = np.full((100, 4), 0.5)
    found = play_rule(weight, bars, env=env(SPREAD), symbols=("A", "B"), trades=("A", "B", "B", "A"))
    equity = found.track.equity_TN
    assert (equity[:31, [0, 3]] == 1e5).all() and (equity[31, [0, 3]] != 1e5).all()
    assert (equity[69:, [1, 2]] == equity[69, 1]).all() and equity[68, 1] != equity[69, 1]
    assert found.symbols == ("A", "B", "B", "A")
    later = {name: bars[name][30:, 0] for name in ("open", "high", "low", "close", "volume")}
    alone = play_rule(weight[30:, :1], {"ts": bars["ts"][30:]} | later, env=env(SPREAD))
    assert (equity[30:, 0] == alone.track.equity_TN[:, 0]).all()


def test_without_flows_the_metrics_of_equity_are_the_same():
    weight = np.random.default_rng(3).choice([-0.5, 0.0, 0.7], (120, 5))
    whole, bare = (play_rule(weight, arrays(walk(120)), env=env(SPREAD), flows=f) for f in (True, False))
    assert "turnover" not in bare.metrics and {"sharpe", "max_drawdown"} < bare.metrics.keys()
    for name, value in bare.metrics.items():
        assert value == pytest.approx(whole.metrics[name], nan_ok=True)


MISTAKES = {
    "ts is float64": ({"ts": np.arange(9.0)}, {}),
    "ts = 3 of bar 1 is not after the previous bar's 3": ({"ts": np.full(9, 3)}, {}),
    "this is after the year 5000": ({"ts": np.arange(9) + 10**12}, {}),
    "column 'volume' is missing": ({"volume": None}, {}),
    r"close is \(8, 1\) for 9 bars": ({"close": np.ones(8)}, {}),
    "high holds something other than numbers": ({"high": np.array(["x"] * 9)}, {}),
    "asset, bar 4: a price is not above 0": ({"low": np.r_[np.ones(4), 0, np.ones(4)]}, {}),
    "asset, bar 2: one of four prices is missing": ({"open": np.r_[1, 1, np.nan, np.ones(6)]}, {}),
    "asset, bar 8: the high is below": ({"high": np.r_[np.ones(8), 0.5]}, {}),
    "asset, bar 0: the volume is negative": ({"volume": np.r_[-1.0, np.ones(8)]}, {}),
    "asset has no bar": (dict.fromkeys(("open", "high", "low", "close"), np.full(9, np.nan)), {}),
    "2 symbols .A, B. for 1 columns": ({}, {"symbols": ("A", "B")}),
    "split 'validation': bars given as arrays are not split": ({}, {"split": "validation"}),
    "split 'later' is not known": ({}, {"split": "later"}),
    "env: .*bsp": ({}, {"env": {"costs": {"bsp": 2}}}),
    r"weights are \(9,\); \[9, columns\] is needed": ({}, {"rule": np.zeros(9)}),
    r"weights are \(8, 1\); \[9, columns\] is needed": ({}, {"rule": np.zeros((8, 1))}),
    "weights have no column": ({}, {"rule": np.zeros((9, 0))}),
    "weights are object": ({}, {"rule": np.full((9, 1), None)}),
    "row 2: a weight is infinite": ({}, {"rule": np.where(np.arange(9) == 2, np.inf, 0)[:, None]}),
    "trades: 'B' is not in the market": ({}, {"rule": np.zeros((9, 2)), "trades": ("B", "B")}),
    "trades names 1 symbols for 2 columns": ({}, {"rule": np.zeros((9, 2)), "trades": ("asset",)}),
    "trades belongs to a table": ({}, {"trades": ("asset",)}),
    "there is no rule to play": ({}, {"rule": []}),
    "3 is no rule": ({}, {"rule": [3]}),
}  # fmt: skip


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named(said):
    changed, options = MISTAKES[said]
    bars = arrays(np.ones(9)) | changed
    bars = {name: value for name, value in bars.items() if value is not None}
    with pytest.raises(HpcrlError, match=said):
        play_rule(**({"rule": MovingAverageCross(2, 3), "market": bars} | options))


def test_one_bar_and_no_trade_give_nan_and_not_a_crash():
    still = play_rule(MovingAverageCross(2, 3), arrays(np.ones(9)))
    assert np.isnan(still.metrics["sharpe"]).all() and (still.metrics["total_return"] == 0).all()
    step = play_rule(np.ones((2, 1)), arrays(np.array([1.0, 2.0])))
    assert np.isnan(step.metrics["sharpe"]).all() and step.metrics["bars"] == 1
    with pytest.raises(HpcrlError, match="there are 1; at least 2"):
        play_rule(np.ones((1, 1)), arrays(np.ones(1)))


def test_the_sealed_split_is_named_when_it_is_read(tmp_path):
    path = make_data(tmp_path / "m.h5", bars=900)
    for split in ("test", "all"):
        with pytest.warns(UserWarning, match="sealed"):
            play_rule(MovingAverageCross(5, 20), path, split=split)


@pytest.mark.filterwarnings("ignore:split")
def test_each_look_at_the_sealed_bars_of_a_file_is_a_line_beside_it(tmp_path):
    path = make_data(tmp_path / "m.h5", bars=900)
    crosses = [MovingAverageCross(5, 20), MovingAverageCross(5, 30), MovingAverageCross(5, 40)]
    for split in (None, "train", "validation"):
        play_rule(crosses, path, split=split)
    assert not (tmp_path / JOURNAL).exists()
    with pytest.raises(HpcrlError, match="row for every bar"):
        play_rule(np.ones((3, 2)), path, split="test")
    assert not (tmp_path / JOURNAL).exists()
    play_rule(crosses, path, split="test")
    market = load_market(MarketConfig(path=str(path)))
    play_rule(crosses[0], market, split="test")  # it does not tell where it lies
    with pytest.warns(UserWarning, match="has been opened 2 times"):
        play_rule(lambda: MovingAverageCross(5, 20), str(path), split="all")
    with pytest.warns(UserWarning, match="has been opened 3 times"):
        play_rule(np.ones((market.n_bars, 2)), path, split="test")
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    names = ["play_rule: ma_5_20 and 2 more", "play_rule: <lambda>", "play_rule: weights"]
    assert [line["run"] for line in lines] == names
    assert all(line["data_sha256"] == market.sha256 and line["checkpoint_epoch"] == 0 for line in lines)
