"""Mistakes found in other trading environments, each with the test that would have shown it."""

import math
from dataclasses import replace

import pytest
import torch
from small_markets import all_costs, build_market, build_simulator, crash

from hpcrl.config.env import CostConfig, EnvConfig
from hpcrl.env.bars import Rules, pack_market
from hpcrl.types import HpcrlError

NONE = {
    "half_spread": 0,
    "impact_coef": 0,
    "participation": None,
    "per_share": 0,
    "min_fee": 0,
    "borrow_rate": 0,
}
YEAR = 365 * 86_400


def costs(**changes):
    return CostConfig(**(NONE | changes))


def calm_market(bars=60, price=100.0, seconds=3600):
    """One price for ever, opens and closes alike."""
    market = build_market(bars=bars, symbols=1)
    flat = torch.full_like(market.close_BS, price)
    prices = dict.fromkeys(("open_BS", "high_BS", "low_BS", "close_BS"), flat)
    return replace(market, ts_B=torch.arange(bars) * seconds, **prices)


def begin(simulator, bar=20):
    n, a = simulator.n_envs, simulator.n_assets
    return simulator.begin_at(torch.zeros((n, a), dtype=torch.int64), torch.full((n,), bar))


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_an_observation_keeps_nothing_of_earlier_episodes(lag):
    """A second episode, after one that traded and lost, looks like the first of a new simulator."""
    config = all_costs(fill_lag=lag, max_leverage=4.0)
    used, new = (build_simulator(config=config, n=3) for _ in range(2))
    used.begin_episodes(60)
    for weight in torch.randn(60, 3, 1, generator=torch.Generator().manual_seed(0)) * 4:
        used.step(weight)
    new.skip_to_episode(1)
    first, second = used.begin_episodes(40), new.begin_episodes(40)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for _ in range(20):
        assert torch.equal(used.observe(), new.observe())
        one, two = used.step(torch.full((3, 1), 0.7)), new.step(torch.full((3, 1), 0.7))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_seed_is_honoured():
    bars = []
    for seed in (1, 1, 2):
        simulator = build_simulator(n=50, seed=seed)
        simulator.begin_episodes(20)
        bars.append(simulator.bar_N)
    assert torch.equal(bars[0], bars[1]) and not torch.equal(bars[0], bars[2])


def test_borrow_fees_accumulate_bar_by_bar():
    config = EnvConfig(costs=costs(borrow_rate=0.1), lot=0)
    simulator = build_simulator(calm_market(), config, n=1)
    begin(simulator)
    steps = [simulator.step(torch.full((1, 1), -1.0)) for _ in range(25)]
    paid = [step.financing_N.item() for step in steps]
    assert paid[0] == 0  # nothing was short before the first open
    assert paid[1] == pytest.approx(-1e5 * 0.1 * 3600 / YEAR, rel=1e-12)
    assert all(fee < 0 for fee in paid[1:])
    assert steps[-1].equity_N.item() == pytest.approx(1e5 + sum(paid), rel=1e-14)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_rewards_are_after_fees(lag):
    """Nothing moves, so all that the reward can show is the commission and the spread."""
    config = EnvConfig(fill_lag=lag, costs=costs(half_spread=1e-3, bps=20.0, min_fee=5.0), lot=0)
    simulator = build_simulator(calm_market(), config, n=1)
    begin(simulator)
    steps = [simulator.step(torch.full((1, 1), 0.5)) for _ in range(max(lag, 1))]
    paid = 50_000 * 1e-3 + 5.0 + 50_000 * 1.001 * 20e-4
    assert steps[-1].fees_N + steps[-1].spread_N == pytest.approx(paid, rel=1e-12)
    assert steps[-1].log_return_N.item() == pytest.approx(math.log(1 - paid / 1e5), rel=1e-9)
    assert steps[-1].reward_N.item() == pytest.approx(math.log(1 - paid / 1e5), rel=1e-6)


def test_a_ruined_step_is_paid_once_and_in_full():
    """Neither 0 at the end nor the loss again in the step, or the observation, that follows."""
    market = crash(build_market(bars=200), 100)
    simulator = build_simulator(market, EnvConfig(max_leverage=3.0, costs=costs()), n=1)
    begin(simulator, 97)
    rewards, ends = [], []
    for b in range(6):
        step = simulator.step(torch.full((1, 1), 3.0 if b < 3 else 0.0))
        rewards.append(step.reward_N.item())
        ends.append(step.terminated_N.item())
        if ends[-1]:
            assert simulator.observe()[0, -1] == 0  # the new account has had no reward yet
    assert ends == [False, False, True, False, False, False]
    assert rewards[2] == pytest.approx(math.log(1e-4), rel=1e-6) and rewards[3:] == [0, 0, 0]


def test_a_full_position_owes_its_fees():
    """Weight 1 buys for all of the equity; spread and commission come on top, as debt that bears interest."""
    config = EnvConfig(costs=costs(half_spread=1e-3, min_fee=30.0, debit_rate=0.1), lot=0)
    simulator = build_simulator(calm_market(), config, n=1)
    begin(simulator)
    simulator.step(torch.ones(1, 1))
    owed = -(1e5 * 1e-3 + 30.0)
    assert simulator._state.cash_N1.item() == pytest.approx(owed, rel=1e-12)
    assert simulator._state.equity_N1.item() == pytest.approx(1e5 + owed, rel=1e-14)
    step = simulator.step(simulator._state.value_NA / simulator._state.equity_N1)
    assert step.financing_N.item() == pytest.approx(owed * 0.1 * 3600 / YEAR, rel=1e-12)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_fee_that_is_more_than_the_account_ruins_it(lag):
    config = EnvConfig(fill_lag=lag, initial_cash=100.0, costs=costs(min_fee=150.0), lot=0)
    simulator = build_simulator(calm_market(), config, n=2)
    begin(simulator)
    ended = [simulator.step(torch.tensor([[0.5], [0.0]])).terminated_N.tolist() for _ in range(max(lag, 1))]
    assert ended[-1] == [True, False]


def test_no_symbol_is_filled_from_another_or_from_its_own_future():
    """The table lies symbol after symbol: the rows of one are the same whatever the others are, and before
    its first bar a symbol has no price that an order could fill at."""
    market = build_market(bars=50)
    late = market.present_BS.clone()
    late[:12, 1] = False
    prices = {}
    for name in ("open_BS", "high_BS", "low_BS", "close_BS"):
        prices[name] = getattr(market, name).clone()
        prices[name][:12, 1] = float("nan")
    volume = torch.where(late, market.volume_BS, 0.0)
    market = replace(market, present_BS=late, volume_BS=volume, **prices)
    other = {name: getattr(market, name).clone() for name in (*prices, "volume_BS")}
    for value in other.values():
        value[:, [0, 2]] *= 3.7
    rules = Rules(participation=0.1, impact_coef=1.0)
    one, two = (pack_market(m, rules).table_RK.view(3, 50, -1) for m in (market, replace(market, **other)))
    assert torch.equal(one[1], two[1]) and not torch.equal(one[0], two[0])
    cap, first = one[1, :, 5], market.close_BS[12, 1]
    assert not cap[:13].any() and cap[13:].all()  # bar 12 has no close before it to size an order by
    for column in (0, 1, 2, 3):
        assert not torch.isclose(one[1, :12, column], first).any()


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_the_end_of_the_data_stops_and_is_no_loss(lag):
    """The last step is truncated, not terminated: it pays what the bar brought, and none comes after it."""
    simulator = build_simulator(build_market(bars=60), EnvConfig(fill_lag=lag), n=2)
    begin(simulator, 50)
    steps = [simulator.step(torch.ones(2, 1)) for _ in range(9)]
    assert not any(step.terminated_N.any() for step in steps)
    total = sum(step.log_return_N for step in steps)
    torch.testing.assert_close(total, torch.log(steps[-1].equity_N / 1e5), rtol=0, atol=1e-12)
    before = simulator.state_dict()
    with pytest.raises(HpcrlError, match="the episode has ended"):
        simulator.step(torch.ones(2, 1))
    after = simulator.state_dict()
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


def test_the_agents_action_is_what_is_traded():
    """A batched environment is known that overwrites it with ones."""
    simulator = build_simulator(calm_market(), EnvConfig(costs=costs(), lot=0, max_leverage=2.0), n=5)
    begin(simulator)
    wanted = torch.tensor([[-1.5], [-0.3], [0.0], [0.7], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(simulator.step(wanted).weight_NA, wanted, rtol=1e-12, atol=0)
