"""Many columns at once: bit for bit what the simulator does with each of them alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from evaluate_runs import FREE, tiny_market

from hpcrl.config.env import CostConfig, EnvConfig
from hpcrl.env.bars import Rules, pack_market
from hpcrl.evaluate import columns
from hpcrl.evaluate.backtest import Group, Plan, play_plan
from hpcrl.evaluate.baselines import Table
from hpcrl.evaluate.columns import Columns, play_columns
from hpcrl.evaluate.sparse import suits
from hpcrl.evaluate.track import Track
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

BARS = 150
COSTS = CostConfig(slippage=5e-5, bps=0.5, credit_rate=0.03, debit_rate=0.06)


def rough_market(symbols: int = 2, seed: int = 0) -> MarketTensors:
    """Violent prices, bars without trade, missing bars, a split and a dividend."""
    draw = np.random.default_rng(seed)
    close = 100 * np.exp(draw.normal(0, 0.05, (BARS, symbols)).cumsum(0))
    market = tiny_market(close)
    market.volume_BS[:] = torch.tensor(draw.integers(0, 6, (BARS, symbols)) * 4e3)
    market.present_BS[:] = torch.tensor(draw.random((BARS, symbols)) > 0.03)
    market.sigma_BS[:] = 0.03
    market.high_BS.mul_(1.02)
    market.low_BS.mul_(0.98)
    market.split_BS[70, 0], market.dividend_BS[120, 0] = 2.0, 1.5
    return market


def random_weights(n: int, assets: int = 1, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.choice([-1.0, -0.4, 0.0, 0.3, 1.0, 1.8], (BARS - 1, n, assets))


def through_columns(market, config, weight_TNA, symbol_NA, **options) -> Track:
    plan = Columns(symbol_NA, lambda at: weight_TNA[:, at], 0, len(weight_TNA))
    return play_columns(market, Rules.from_config(config), plan, **options)


def through_simulator(market, config, weight_TNA, symbol_NA) -> Track:
    steps, n = weight_TNA.shape[:2]
    group = Group(0, symbol_NA, np.full(n, steps))
    table = Table(weight_TNA, np.full(n, steps), np.zeros(n, dtype=np.int64))
    return play_plan(market, config, Plan(0, steps + 1, (group,), ()), lambda group: table)


def assert_same(found: Track, wanted: Track) -> None:
    assert (found.equity_TN == wanted.equity_TN).all()
    assert (found.bankrupt_N == wanted.bankrupt_N).all()
    for field in dataclasses.fields(Track):
        if field.name.endswith("_TN"):
            near = pytest.approx(getattr(wanted, field.name), rel=1e-12, abs=1e-12)
            assert getattr(found, field.name) == near, field.name


KINDS = {
    "defaults": {},
    "fractional": {"lot": 0, "intrabar": False},
    "fills_at_close": {"fill_lag": 0},
    "one_bar_late": {"fill_lag": 2, "lot": 0},
    "sized_at_fill": {"sizing": "fill", "max_leverage": 2, "maintenance": 0.3},
    "margin": {"max_leverage": 3, "maintenance": 0.4, "max_net": 1.5},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 37])
def test_columns_are_the_simulator_bit_for_bit(kind, n):
    market, config = rough_market(), EnvConfig(costs=COSTS, **KINDS[kind])
    weight, symbol = random_weights(n), np.arange(n)[:, None] % 2
    found = through_columns(market, config, weight, symbol)
    assert_same(found, through_simulator(market, config, weight, symbol))
    assert found.trades_TN.sum() > 40 * n


@pytest.mark.parametrize("kind", KINDS)
def test_accounts_over_all_assets_are_the_simulator_bit_for_bit(kind):
    market = rough_market(3)
    config = EnvConfig(costs=COSTS, assets="all", **KINDS[kind])
    weight, symbol = random_weights(5, 3), np.tile(np.arange(3), (5, 1))
    assert_same(
        through_columns(market, config, weight, symbol), through_simulator(market, config, weight, symbol)
    )


def test_some_go_bankrupt_and_the_others_do_not_notice():
    config = EnvConfig(costs=COSTS, max_leverage=6, lot=0)
    market, symbol = rough_market(), np.zeros((20, 1), dtype=np.int64)
    weight = np.random.default_rng(5).choice([-5.0, 5.0, 0.1], (BARS - 1, 20, 1))
    weight[:, ::2] = 0.2
    found = through_columns(market, config, weight, symbol)
    assert 3 <= found.bankrupt_N[1::2].sum() < 10 and not found.bankrupt_N[::2].any()
    assert_same(found, through_simulator(market, config, weight, symbol))


def test_blocks_and_the_order_of_columns_change_nothing(monkeypatch):
    market, config = rough_market(), EnvConfig(costs=COSTS)
    weight, symbol = random_weights(23), np.random.default_rng(2).integers(0, 2, (23, 1))
    whole = through_columns(market, config, weight, symbol)
    monkeypatch.setattr(columns, "BLOCK", 5)
    assert_same(through_columns(market, config, weight, symbol), whole)
    back = through_columns(market, config, weight[:, ::-1], symbol[::-1])
    assert (back.equity_TN[:, ::-1] == whole.equity_TN).all()


def test_without_flows_equity_is_the_same():
    market, config = rough_market(), EnvConfig(costs=COSTS)
    weight, symbol = random_weights(6), np.zeros((6, 1), dtype=np.int64)
    whole, bare = (through_columns(market, config, weight, symbol, flows=f) for f in (True, False))
    assert (whole.equity_TN == bare.equity_TN).all()
    assert whole.fees_TN.any() and not bare.fees_TN.any()


@pytest.mark.parametrize("symbols", [1, 2])
@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("sizing", ["decision", "fill"])
def test_nan_gives_no_order(lag, sizing, symbols):
    """Bought once, held for good; the quantity is what the one order bought, whatever the prices do."""
    close = np.tile(100 * np.exp(np.random.default_rng(0).normal(0, 0.05, (50, 1)).cumsum(0)), (1, 2))
    market = tiny_market(close)
    weight = np.full((49, 3, 1), np.nan)
    weight[4], weight[30, 1] = [[0.5], [-0.7], [1.0]], 0.0
    symbol = np.array([[0], [0], [symbols - 1]])
    config = EnvConfig(costs=FREE, lot=0, fill_lag=lag, sizing=sizing)
    found = through_columns(market, config, weight, symbol)
    late = max(lag - 1, 0)
    assert [np.flatnonzero(found.trades_TN[:, n]).tolist() for n in range(3)] == [
        [4 + late], [4 + late, 30 + late], [4 + late]
    ]  # fmt: skip


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_what_a_bar_leaves_unfilled_is_asked_for_again(lag):
    market = tiny_market(np.full(30, 100.0), volume_BS=torch.full((30, 1), 6000.0, dtype=torch.float64))
    weight = np.full((29, 2, 1), np.nan)
    weight[3], weight[12, 1] = 1.0, 0.0
    config = EnvConfig(costs=FREE.model_copy(update={"participation": 0.05}), fill_lag=lag)
    found = through_columns(market, config, weight, np.zeros((2, 1), dtype=np.int64))
    # 1,000 shares at 300 a bar: four fills in, and the second column out again.
    assert found.trades_TN.sum(0).tolist() == [4, 8]
    assert found.traded_TN.sum(0) == pytest.approx([1e5, 2e5])
    assert found.gross_TN[-1] == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("sizing", ["decision", "fill"])
def test_nan_of_an_account_over_several_assets_keeps_the_position(lag, sizing):
    market = tiny_market(np.full((30, 3), 100.0))
    weight = np.full((29, 1, 3), np.nan)
    weight[2, 0, 0], weight[9, 0, 1] = 0.3, -0.4
    config = EnvConfig(costs=FREE, lot=0, assets="all", fill_lag=lag, sizing=sizing)
    found = through_columns(market, config, weight, np.arange(3)[None])
    assert np.flatnonzero(found.trades_TN[:, 0]).tolist() == [1 + lag, 8 + lag]
    assert (found.gross_TN[-1, 0], found.net_TN[-1, 0]) == pytest.approx((0.7, -0.1))


def test_an_infinite_weight_is_refused_with_its_row():
    weight = np.zeros((9, 2, 1))
    weight[4, 1], weight[3, 0] = -np.inf, np.nan
    with pytest.raises(HpcrlError, match="row 4: a weight is infinite"):
        through_columns(tiny_market(np.full(10, 1.0)), EnvConfig(), weight, np.zeros((2, 1), dtype=np.int64))
    with pytest.raises(HpcrlError, match="rows 0 to 10 are no steps of a market of 10 bars"):
        through_columns(
            tiny_market(np.full(10, 1.0)), EnvConfig(), np.zeros((10, 1, 1)), np.zeros((1, 1), int)
        )


# ---- by their orders alone

SPARSE = {
    "defaults": (EnvConfig(), 1.0),
    "free": (EnvConfig(costs=FREE, lot=0, intrabar=False), 1.0),
    "sized_at_fill": (EnvConfig(sizing="fill", max_leverage=2, lot=0), 2.0),
    "ruin": (EnvConfig(costs=FREE, max_leverage=6, lot=0), 6.0),
    "ruin_within_bars": (EnvConfig(costs=FREE, max_leverage=4, lot=0, intrabar=True), 4.0),
    "borrowed": (EnvConfig(costs=CostConfig(debit_rate=0.2, borrow_rate=0.0), max_leverage=2), 2.0),
    "limits": (EnvConfig(costs=FREE, max_leverage=0.7, max_net=0.5), 1.0),
    "whole_lots": (EnvConfig(lot=10.0), 1.0),
}


def plain_market(seed: int = 0) -> MarketTensors:
    """Violent prices, some bars without trade or missing, no corporate actions."""
    market = rough_market(2, seed)
    market.split_BS[:], market.dividend_BS[:] = 1.0, 0.0
    market.volume_BS[:] = torch.where(market.volume_BS > 0, 1e6, 0.0)
    return market


@pytest.mark.parametrize("shorts", [False, True])
@pytest.mark.parametrize("kind", SPARSE)
def test_columns_by_their_orders_are_those_of_every_bar(kind, shorts, monkeypatch):
    config, most = SPARSE[kind]
    draw = np.random.default_rng(4)
    weight = draw.choice([-most if shorts else 0.2, 0.0, 0.5, most], (BARS - 1, 60, 1))
    weight[draw.random(weight.shape) < draw.uniform(0.85, 1.0, (1, 60, 1))] = np.nan
    weight[:, 0] = np.nan  # never an order
    weight[-1, 1], weight[0, 2] = 0.5, 0.5
    market, symbol = plain_market(), draw.integers(0, 2, (60, 1))
    left = []
    mark = columns.mark

    def noted(*given):
        found = mark(*given)
        left.append(found.mean())
        return found

    monkeypatch.setattr(columns, "mark", noted)
    found = through_columns(market, config, weight, symbol)
    assert left and left[0] < 0.9, "hardly anything was played by its orders"
    monkeypatch.setattr(columns, "suits", lambda *given: False)
    wanted = through_columns(market, config, weight, symbol)
    assert len(left) == 1
    for field in dataclasses.fields(Track):
        if getattr(wanted, field.name) is not None:
            assert (getattr(found, field.name) == getattr(wanted, field.name)).all(), field.name
    if kind == "ruin":
        assert wanted.bankrupt_N.any() and not wanted.bankrupt_N.all()
    assert wanted.trades_TN.sum() > 200


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig(fill_lag=0),
        EnvConfig(fill_lag=2),
        EnvConfig(maintenance=0.3),
        EnvConfig(costs=CostConfig(credit_rate=0.02)),
    ],
)
def test_what_moves_money_between_orders_is_played_bar_by_bar(config):
    table = np.full((20, 3, 1), np.nan)
    rules = Rules.from_config(config)
    assert not suits(pack_market(plain_market(), rules), rules, table, torch.device("cpu"))
    rules = Rules.from_config(EnvConfig())
    assert suits(pack_market(plain_market(), rules), rules, table, torch.device("cpu"))
    assert not suits(pack_market(rough_market(), rules), rules, table, torch.device("cpu"))
    table[:10] = 0.0
    assert not suits(pack_market(plain_market(), rules), rules, table, torch.device("cpu"))


def test_on_an_accelerator_nothing_is_read_from_python_and_all_is_the_same(monkeypatch):
    """There no value is looked at, so that masks are always on: the same path here."""
    market, symbol = rough_market(), np.zeros((30, 1), dtype=np.int64)
    config = EnvConfig(costs=COSTS, max_leverage=6, lot=0)
    weight = np.random.default_rng(5).choice([-5.0, 5.0, 0.1, np.nan], (BARS - 1, 30, 1))
    wanted = through_columns(market, config, weight, symbol)
    assert wanted.bankrupt_N.any() and not wanted.bankrupt_N.all()
    made = columns._Block.__init__

    def without_looks(self, *given):
        made(self, *given)
        self._look = False

    monkeypatch.setattr(columns._Block, "__init__", without_looks)
    assert_same(through_columns(market, config, weight, symbol), wanted)


@pytest.mark.parametrize("sizing", ["decision", "fill"])
def test_a_newer_order_that_waits_is_not_overtaken_by_what_an_older_one_left(sizing):
    close = 100 * np.exp(np.random.default_rng(1).normal(0, 0.01, 30).cumsum())
    market = tiny_market(close, volume_BS=torch.full((30, 1), 6000.0, dtype=torch.float64))
    weight = np.full((29, 1, 1), np.nan)
    weight[3], weight[4] = (
        1.0,
        0.2,
    )  # of the first some 300 of 1,000 shares fill, and a third of them go again
    costs = FREE.model_copy(update={"participation": 0.05})
    config = EnvConfig(costs=costs, fill_lag=2, lot=0, sizing=sizing)
    found = through_columns(market, config, weight, np.zeros((1, 1), dtype=np.int64))
    assert np.flatnonzero(found.trades_TN[:, 0]).tolist() == [4, 5]
    assert found.gross_TN[5, 0] == pytest.approx(0.2, abs=0.01)
