"""Rules through the simulator: what they know, when they trade, and what they must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_runs import FREE, tiny_market

from hpcrl.config.env import EnvConfig
from hpcrl.evaluate.backtest import make_plan, play_plan
from hpcrl.evaluate.baselines import BuyAndHold, EqualWeight, hold_config
from hpcrl.evaluate.rules import MovingAverageCross, moving_average, unsplit
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
