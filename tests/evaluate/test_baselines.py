"""Strategies on hand-made markets: what they earn, what they pay, and who stays at 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_runs import FREE, tiny_market

from hpcrl.config.env import CostConfig, EnvConfig
from hpcrl.evaluate.backtest import make_plan, play_plan
from hpcrl.evaluate.baselines import (
    BuyAndHold,
    Flat,
    Table,
    hold_config,
    hold_weight,
    matched_random,
    offsets,
)
from hpcrl.evaluate.track import summary, total
from hpcrl.types import HpcrlError

SPREAD = FREE.model_copy(update={"half_spread": 2e-4})


def walk(bars: int = 120, symbols: int = 1, seed: int = 0) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(0, 0.01, (bars, symbols))
    return 100 * np.exp(steps.cumsum(0))


def env(costs: CostConfig = FREE, **changes) -> EnvConfig:
    return EnvConfig(costs=costs, **({"lot": 0} | changes))


def hold(market, config, lo=0, hi=None):
    plan = make_plan(market, config, lo, hi or market.n_bars)
    weight = hold_weight(config)
    return play_plan(market, hold_config(config), plan, lambda group: BuyAndHold(weight))


def table_of(market, config, path):
    """An agent that plays a given path of weights."""
    plan = make_plan(market, config, 0, market.n_bars)

    def make(group):
        columns = path[:, : len(group.end_n)]
        return Table(columns, group.end_n - group.start, np.zeros(len(group.end_n), dtype=np.int64))

    return plan, play_plan(market, config, plan, make)


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("assets", ["single", "all"])
@pytest.mark.parametrize("lot", [0.0, 1.0])
def test_buy_and_hold_buys_once_at_every_lag(lag, assets, lot):
    """Two bars late, asking again for today's position would undo what is still on its way, for ever."""
    track = hold(tiny_market(walk(symbols=3)), env(fill_lag=lag, assets=assets, lot=lot, max_net=0.8))
    bought = np.flatnonzero(track.trades_TN.sum(1))
    assert bought.tolist() == [max(lag - 1, 0)] and track.trades_TN.sum() == 3


def test_flat_never_trades_and_pays_nothing():
    market = tiny_market(walk(symbols=2))
    config = EnvConfig()
    track = play_plan(market, config, make_plan(market, config, 0, 120), lambda group: Flat())
    assert (track.equity_TN == config.initial_cash).all()
    for flow in (track.traded_TN, track.fees_TN, track.spread_TN, track.impact_TN, track.financing_TN):
        assert not flow.any()
    assert not track.trades_TN.any()


def test_buy_and_hold_earns_the_price_ratio():
    close = walk()
    found = hold(tiny_market(close), env())
    # Bought at the open of bar 1, which is the close of bar 0.
    assert found.equity_TN[-1, 0] / found.equity_TN[0, 0] == pytest.approx(
        close[-1, 0] / close[0, 0], rel=1e-12
    )
    assert found.trades_TN.sum() == 1 and (found.gross_TN > 0).all()


def test_buy_and_hold_pays_its_costs_once():
    close = walk()
    found = hold(tiny_market(close), env(SPREAD))
    assert found.spread_TN[0, 0] == pytest.approx(2e-4 * 100_000) and not found.spread_TN[1:].any()
    assert found.trades_TN.sum() == 1
    expected = close[-1, 0] / close[0, 0] - 1 - 2e-4
    assert found.equity_TN[-1, 0] / 100_000 - 1 == pytest.approx(expected, rel=1e-12)


def test_buy_and_hold_waits_for_a_bar_that_fills_it():
    market = tiny_market(walk())
    market.volume_BS[1:4] = 0
    found = hold(market, env())
    assert found.trades_TN[:, 0].nonzero()[0].tolist() == [3]


def test_buy_and_hold_goes_on_buying_where_the_volume_limits_it():
    market = tiny_market(np.full(20, 100.0), volume_BS=torch.full((20, 1), 6000.0, dtype=torch.float64))
    found = hold(market, env(FREE.model_copy(update={"participation": 0.05})))
    assert found.trades_TN.sum() == 4 and found.gross_TN[-1, 0] == pytest.approx(1)


def test_buy_and_hold_in_whole_lots_buys_once_or_not_at_all():
    close = walk()
    found = hold(tiny_market(close), env(SPREAD, lot=300.0))
    assert found.trades_TN.sum() == 1 and found.gross_TN[0, 0] == pytest.approx(0.9, abs=0.02)
    assert not hold(tiny_market(close), env(lot=5000.0)).trades_TN.any()


def test_buy_and_hold_of_one_account_weighs_equally():
    found = hold(tiny_market(walk(symbols=4)), env(assets="all"))
    assert found.n_accounts == 1 and found.trades_TN[:, 0].tolist() == [4] + [0] * 118
    assert found.weight_TNA[0, 0] == pytest.approx([0.25] * 4, abs=0.02)


def test_an_agent_that_is_always_long_equals_buy_and_hold():
    market = tiny_market(walk())
    _, agent = table_of(market, env(), np.ones((119, 1, 1), dtype=np.float32))
    assert agent.equity_TN == pytest.approx(hold(market, env()).equity_TN, rel=1e-9)


def test_matched_random_keeps_turnover_and_exposure():
    market = tiny_market(np.full((90, 2), 50.0))  # constant prices: turnover is the path's alone
    rng = np.random.default_rng(4)
    path = rng.choice([-1.0, 0.0, 1.0], size=(89, 2, 1)).astype(np.float32)
    plan, agent = table_of(market, env(), path)
    ((count, track),) = matched_random(market, env(), plan, agent, draws=20, seed=1)
    assert count == 20 and track.n_accounts == 40
    for draw in range(20):
        own = track.take(slice(2 * draw, 2 * draw + 2))
        # Where the path is cut, an order of at most 2 x equity falls away or comes in.
        assert own.traded_TN.sum(0) == pytest.approx(agent.traded_TN.sum(0), abs=200_000)
        assert own.trades_TN.sum(0) == pytest.approx(agent.trades_TN.sum(0), abs=1)
        assert own.gross_TN.mean(0) == pytest.approx(agent.gross_TN.mean(0))
    assert len({tuple(track.net_TN[:, 2 * draw]) for draw in range(20)}) == 20


def test_matched_random_is_the_same_in_small_batches(monkeypatch):
    market = tiny_market(walk(60, 3))
    path = np.random.default_rng(5).choice([0.0, 1.0], size=(59, 3, 1)).astype(np.float32)
    plan, agent = table_of(market, env(SPREAD), path)
    ((_, whole),) = matched_random(market, env(SPREAD), plan, agent, draws=7, seed=2)
    monkeypatch.setattr("hpcrl.evaluate.baselines.CELLS", 59 * 3 * 2)
    parts = list(matched_random(market, env(SPREAD), plan, agent, draws=7, seed=2))
    assert [count for count, _ in parts] == [2, 2, 2, 1]
    assert (np.concatenate([track.equity_TN for _, track in parts], axis=1) == whole.equity_TN).all()


def test_shifts_never_leave_the_path_where_it_was():
    shift = offsets(np.array([0.0, 0.5, 0.999999]), np.array([10, 2, 1]))
    assert shift.tolist() == [[1, 1, 0], [5, 1, 0], [9, 1, 0]]


def test_a_bankrupt_account_stays_at_zero():
    close = np.array([100.0, 100, 300, 50, 60, 70, 80, 90])
    market = tiny_market(close)
    path = np.full((7, 1, 1), -1.0, dtype=np.float32)
    path[3:] = 1  # after its end it would earn
    _, track = table_of(market, env(), path)
    assert track.equity_TN[:, 0].tolist() == [100_000, 100_000, 0, 0, 0, 0, 0, 0]
    assert track.bankrupt_N.tolist() == [True]
    assert not track.traded_TN[2:].any() and not track.gross_TN[1:].any()
    found = summary(total(track), np.arange(7), 252)
    assert found["total_return"][0] == -1 and found["bankrupt"][0] == 1


def test_one_accounts_ruin_leaves_the_others_alone():
    close = np.stack([[100.0, 100, 300, 50, 60, 70], walk(6)[:, 0]], axis=1)
    market = tiny_market(close)
    path = np.stack([np.full(5, -1), np.ones(5)], axis=1)[..., None].astype(np.float32)
    _, track = table_of(market, env(), path)
    alone = table_of(tiny_market(close[:, 1]), env(), path[:, 1:])[1]
    assert (track.equity_TN[:, 1] == alone.equity_TN[:, 0]).all()
    assert total(track).equity_TN[-1, 0] == track.equity_TN[-1, 1]


def test_symbols_play_their_own_bars_and_the_rest_is_cash():
    market = tiny_market(
        walk(50, 3), first_bar_S=torch.tensor([0, 20, 0]), last_bar_S=torch.tensor([49, 49, 30])
    )
    config = env()
    plan = make_plan(market, config, 5, 45)
    assert [group.start for group in plan.groups] == [5, 20]
    track = play_plan(market, hold_config(config), plan, lambda group: BuyAndHold(1.0))
    own = dict(zip(plan.symbol_N.tolist(), track.equity_TN.T, strict=True))
    assert (own[1][:16] == 100_000).all() and own[1][17] != 100_000
    assert (own[2][25:] == own[2][25]).all() and own[2][24] != own[2][25]
    assert own[0][-1] == pytest.approx(100_000 * float(market.close_BS[44, 0] / market.close_BS[5, 0]))


def test_a_range_without_bars_is_an_error():
    market = tiny_market(walk(30, 2), last_bar_S=torch.tensor([10, 10]))
    with pytest.raises(HpcrlError, match="fewer than two tradable bars"):
        make_plan(market, env(), 20, 30)
    market = tiny_market(walk(30, 2), first_bar_S=torch.tensor([0, 29]))
    with pytest.raises(HpcrlError, match="hold no step of an account over all 2"):
        make_plan(market, env(assets="all"), 20, 30)


def test_equity_change_is_prices_less_costs():
    market = tiny_market(walk(80, 2))
    path = np.random.default_rng(6).choice([-1.0, 0.0, 1.0], size=(79, 2, 1)).astype(np.float32)
    costs = CostConfig(half_spread=2e-4, impact_coef=0.0, borrow_rate=0.05)
    _, paid = table_of(market, env(costs), path)
    found = summary(total(paid), np.arange(79), 252)
    assert found["costs"][0] == pytest.approx(found["fees"][0] + found["spread"][0])
    assert found["financing"][0] < 0 < found["fees"][0]
    assert paid.fees_TN[paid.trades_TN > 0].min() >= 0.35
    assert not paid.fees_TN[paid.trades_TN == 0].any()
