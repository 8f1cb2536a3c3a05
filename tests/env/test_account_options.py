"""Fill lags, the net limit and costs of single symbols, each against a simpler thing that must be equal."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_cases import random_case, random_config
from small_markets import all_costs, build_market, build_simulator, crash

from hpcrl.config.env import CostConfig, EnvConfig
from hpcrl.evaluate.replay import replay_case
from hpcrl.market.splits import cut
from hpcrl.types import HpcrlError

FREE = CostConfig(half_spread=0, impact_coef=0, participation=None, per_share=0, min_fee=0, borrow_rate=0)
COSTS = {
    "half_spread": 3e-4,
    "slippage": 1e-4,
    "per_share": 0.01,
    "min_fee": 1.0,
    "bps": 2.0,
    "borrow_rate": 0.05,
}


def start(simulator, bar, symbols=None):
    n, a = simulator.n_envs, simulator.n_assets
    symbol_NA = torch.arange(a).expand(n, a) if symbols is None else torch.tensor(symbols)[:, None]
    simulator.begin_at(symbol_NA, torch.full((n,), bar))
    return simulator


def random_weights(steps, n, a, seed=0):
    return torch.randn(steps, n, a, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_bars_late_is_one_bar_late_with_the_table_moved_by_one():
    """Where the weight is sized at the fill, only its arrival differs: bit for bit, over every option."""
    filled = 0
    for seed in range(60):
        options, assets = random_config(seed)
        late = random_case(seed, options=(options | {"fill_lag": 2, "sizing": "fill"}, assets))
        if any(late["bars"][0][asset]["close"] is None for asset in assets):
            continue  # what has no price yet cannot be ordered: there the decision's bar does differ
        moved = copy.deepcopy(late)
        moved["config"]["fill_lag"] = 1
        moved["actions"] = [dict.fromkeys(assets, 0), *late["actions"][:-1]]
        one, two = replay_case(late)["rows"], replay_case(moved)["rows"]
        assert one == two
        filled += sum(len(row["fills"]) for row in one)
    assert filled > 200


def test_no_order_fills_before_its_lag_has_passed():
    case = random_case(3, options=({"fill_lag": 2, "lot": "0"}, ["A"]), calm=0.002)
    case["actions"] = [{"A": 0.5}] * len(case["actions"])
    rows = replay_case(case)["rows"]
    assert not rows[1]["fills"] and not rows[1]["flags"] and rows[1]["equity"] == rows[0]["equity"]


def test_hindsight_equals_the_next_open_where_nothing_moves_overnight():
    """Opens equal to the last close, constant volume and volatility, no rates: only the ledger's row differs
    in which the price is seen."""
    market = build_market(bars=120)
    shut = torch.cat([market.close_BS[:1], market.close_BS[:-1]])
    market = replace(
        market,
        open_BS=shut,
        high_BS=torch.maximum(shut, market.close_BS),
        low_BS=torch.minimum(shut, market.close_BS),
        volume_BS=torch.full_like(shut, 5e4),
    )
    costs = CostConfig(bps=1.0, slippage=1e-4, borrow_rate=0.0)
    runs = []
    for lag in (0, 1):
        config = EnvConfig(fill_lag=lag, assets="all", costs=costs, max_leverage=2.0, maintenance=0.25)
        simulator = start(build_simulator(market, config, n=4), 30)
        steps = [simulator.step(weight) for weight in random_weights(60, 4, 3)]
        runs.append((torch.stack([s.equity_N for s in steps]), torch.stack([s.fees_N for s in steps])))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=0)


def test_hindsight_trades_at_the_close_that_was_seen():
    """A rule that knows the bar's return earns it back at once: the reason why the lag is marked."""
    market = build_market(bars=200, volatility=0.01)
    ends = {}
    for lag in (0, 1, 2):
        config = EnvConfig(fill_lag=lag, costs=FREE, lot=0)
        simulator = start(build_simulator(market, config, n=1), 20)
        for b in range(20, 150):
            ahead = torch.log(market.close_BS[b + 1, 0] / market.close_BS[b, 0])
            step = simulator.step(ahead.sign()[None, None])
        ends[lag] = step.equity_N.item()
    assert ends[0] > 1.5 * ends[1] and ends[0] > 1.5 * ends[2]


@pytest.mark.parametrize("sizing", ["decision", "fill"])
def test_bankruptcy_drops_what_was_on_its_way(sizing):
    market = crash(build_market(bars=200), 100)
    config = EnvConfig(fill_lag=2, sizing=sizing, max_leverage=3.0, costs=FREE)
    simulator = start(build_simulator(market, config, n=2), 90, [0, 0])
    for b in range(10):
        step = simulator.step(torch.tensor([[3.0], [0.0]]))
        assert bool(step.terminated_N[0]) == (b == 9)
    assert simulator._state.pending_NA.isnan().tolist() == [[True], [False]]
    simulator.step(torch.full((2, 1), 1.0))
    assert not simulator.quantity_NA.any()  # the new account's first order waits, the other's was for 0
    simulator.step(torch.full((2, 1), 1.0))
    assert simulator.quantity_NA.all()


def test_margin_call_overrides_the_waiting_order_of_the_very_next_fill():
    market = crash(build_market(bars=60), 30, factor=0.7)
    config = EnvConfig(fill_lag=2, max_leverage=2.0, maintenance=0.5, costs=FREE)
    simulator = start(build_simulator(market, config, n=1), 27, [0])
    after = [simulator.step(torch.full((1, 1), 2.0)).weight_NA.item() for _ in range(5)]
    assert after[0] == 0 and after[1] == pytest.approx(2, abs=0.1)
    assert after[2] > 2.5 and after[3] == 0 and after[4] != 0


def test_a_waiting_quantity_is_split_with_the_shares():
    market = build_market(bars=60)
    halves = torch.where(torch.arange(60)[:, None] >= 31, 0.5, 1.0)
    names = ("open_BS", "high_BS", "low_BS", "close_BS")
    fields = {name: getattr(market, name) * halves for name in names}
    split = torch.ones_like(market.split_BS)
    split[31] = 2.0
    runs = []
    for data in (market, replace(market, split_BS=split, **fields)):
        simulator = start(build_simulator(data, EnvConfig(fill_lag=2, costs=FREE, lot=0), n=1), 30, [0])
        for _ in range(2):
            step = simulator.step(torch.full((1, 1), 0.7))
        runs.append((simulator.quantity_NA.item(), step.equity_N.item()))
    assert runs[1][0] == pytest.approx(2 * runs[0][0], rel=1e-12)
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-12)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_net_limit_scales_all_weights_after_the_gross_limit(lag):
    market = build_market(bars=60)
    config = EnvConfig(
        assets="all", fill_lag=lag, max_leverage=1.5, max_net=0.6, costs=FREE, lot=0, sizing="fill"
    )
    rows = [[1.2, 0.9, -0.3], [-1.2, -0.9, 0.3], [0.5, -0.5, 0.1], [0.2, 0.1, 0.1]]
    wanted = torch.tensor(rows, dtype=torch.float64)
    expected = wanted.clone()
    expected[:2] *= 1.5 / 2.4  # gross; the net is then 1.125
    expected[:2] *= 0.6 / 1.125
    simulator = start(build_simulator(market, config, n=4), 20)
    for _ in range(3):
        simulator.step(wanted)
    plain = start(
        build_simulator(market, config.model_copy(update={"max_leverage": 9.0, "max_net": None}), n=4), 20
    )
    for _ in range(3):
        plain.step(expected)
    torch.testing.assert_close(simulator.quantity_NA, plain.quantity_NA, rtol=1e-12, atol=0)


def test_net_limit_of_one_symbol_is_a_limit_of_its_weight():
    market = build_market(bars=60)
    runs = []
    for limits in ({"max_net": 0.4}, {"max_leverage": 0.4}):
        simulator = start(build_simulator(market, all_costs(**limits), n=3), 20, [0, 1, 2])
        runs.append(torch.stack([simulator.step(w).equity_N for w in random_weights(30, 3, 1)]))
    assert torch.equal(*runs)


def test_each_environment_pays_its_own_symbols_costs():
    """Environment n trades symbol n. Symbol S1 has costs of its own: it pays what all would pay if those
    were everyone's, and the others pay what they paid before."""
    market = replace(build_market(bars=100), symbols=("S0", "S1", "S2"))
    base = {"credit_rate": 0.02, "debit_rate": 0.05}
    own = COSTS | {"impact_coef": 2.0, "participation": 0.01}
    equity = []
    for costs in (base, base | {"symbols": {"S1": own}}, base | own):
        simulator = start(build_simulator(market, all_costs(costs=CostConfig(**costs)), n=3), 20, [0, 1, 2])
        steps = [simulator.step(weight) for weight in random_weights(60, 3, 1)]
        equity.append(torch.stack([s.equity_N for s in steps], 1))
    usual, mixed, dear = equity
    torch.testing.assert_close(mixed[[0, 2]], usual[[0, 2]], rtol=1e-13, atol=0)
    torch.testing.assert_close(mixed[1], dear[1], rtol=1e-13, atol=0)
    assert (mixed[1] - usual[1]).abs().max() > 100


@pytest.mark.parametrize("key", [*COSTS, "impact_coef"])
def test_a_dearer_symbol_is_paid_for_by_the_account_that_trades_it(key):
    market = replace(build_market(bars=100), symbols=("S0", "S1", "S2"))
    ends = []
    for factor in (1, 10):
        own = {"S1": {key: ({"impact_coef": 1.0} | COSTS)[key] * factor}}
        costs = CostConfig(**COSTS, symbols=own)
        simulator = start(build_simulator(market, all_costs(assets="all", costs=costs), n=2), 20)
        weight = torch.tensor([[-0.4, -0.4, 0.4], [0.4, 0.0, -0.4]])
        for t in range(40):
            step = simulator.step(weight * (1 if t % 3 else 0.5))
        ends.append(step.equity_N)
    assert ends[0][0] > ends[1][0] and ends[0][1] == ends[1][1]


def test_costs_of_a_symbol_that_is_not_there_are_refused():
    market = replace(build_market(), symbols=("AAPL", "MSFT", "SPY"))
    config = EnvConfig(costs=CostConfig(symbols={"MSTF": {"bps": 1}}))
    with pytest.raises(HpcrlError, match=r"no symbol 'MSTF'; did you mean 'MSFT'\?"):
        build_simulator(market, config)
    config = EnvConfig(costs=CostConfig(symbols={"ZZZ": {"bps": 1}}))
    with pytest.raises(HpcrlError, match="no symbol 'ZZZ'; there are AAPL, MSFT, SPY"):
        build_simulator(market, config)


@pytest.mark.parametrize(("lag", "gap"), [(0, 2), (1, 2), (2, 3)])
def test_splits_keep_the_distance_that_the_lag_needs(lag, gap):
    parts = cut(100, 1100, 0.7, 0.15, lag)
    assert parts["validation"][0] - parts["train"][1] == parts["test"][0] - parts["validation"][1] == gap


@pytest.mark.parametrize("assets", ["single", "all"])
@pytest.mark.parametrize("lot", [0.0, 1.0])
def test_asking_for_what_is_held_or_on_its_way_trades_nothing(assets, lot):
    market = build_market(bars=100)
    split = torch.ones_like(market.split_BS)
    split[40] = 3.0
    later = torch.where(torch.arange(100)[:, None] >= 40, 1 / 3, 1.0)
    prices = {name: getattr(market, name) * later for name in ("open_BS", "high_BS", "low_BS", "close_BS")}
    market = replace(market, split_BS=split, **prices)
    for lag in (0, 1, 2):
        config = EnvConfig(fill_lag=lag, assets=assets, costs=FREE, lot=lot, max_leverage=5.0)
        simulator = build_simulator(market, config, n=3)
        start(simulator, 20, None if assets == "all" else [0, 1, 2])
        position = simulator.step(torch.full((3, simulator.n_assets), 0.3)).weight_NA
        traded = []
        for _ in range(40):
            step = simulator.step(simulator.holding(position))
            position = step.weight_NA
            traded.append(step.turnover_N)
        assert not torch.stack(traded[1:]).any() and (position > 0).all()


def test_the_share_of_the_lag_in_the_state_is_what_waits():
    """Only fill_lag 2 has something to remember between two steps."""
    sizes = {lag: set(build_simulator(config=all_costs(fill_lag=lag)).state_dict()) for lag in (0, 1, 2)}
    assert sizes[0] == sizes[1] and sizes[2] - sizes[1] == {"pending_NA"}
    fresh = build_simulator(config=all_costs(fill_lag=2)).state_dict()["pending_NA"]
    assert np.isnan(fresh.numpy()).all() and math.isnan(fresh[0, 0])
