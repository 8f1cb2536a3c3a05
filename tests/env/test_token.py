"""The token: its layout, its range, and the history handed out at an episode's start."""

import math

import pytest
import torch
from small_markets import build_market, build_simulator, crash, reckless

from hpcrl.config.env import CostConfig, EnvConfig
from hpcrl.env.token import entry_names

FREE = CostConfig(half_spread=0, impact_coef=0, participation=None, per_share=0, min_fee=0, borrow_rate=0)


def names(market, assets, reward_entries=()):
    symbols = [f"S{i}" for i in range(market.n_symbols)] if assets == "all" else ["S"]
    return entry_names([f"f{i}" for i in range(market.n_features)], symbols, reward_entries)


@pytest.mark.parametrize("assets", ["single", "all"])
def test_every_entry_is_finite_float32_and_of_order_one(assets):
    market = crash(build_market(missing=0.1), 60)
    simulator = build_simulator(market, reckless(assets=assets), n=30)
    history, _ = simulator.begin_episodes(60)
    assert len(names(market, assets, simulator.reward_entries)) == simulator.n_entries == history.shape[2]
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        simulator.step(torch.randn(30, simulator.n_assets, generator=g) * 3)
        token = simulator.observe()
        assert token.dtype == torch.float32 and token.isfinite().all() and token.abs().max() <= 10


def test_entries_say_what_the_layout_says():
    market = build_market()
    simulator = build_simulator(market, EnvConfig(costs=FREE), n=1, history=0)
    simulator.begin_at(torch.tensor([[1]]), torch.tensor([30]))
    entries = names(market, "single")
    first = dict(zip(entries, simulator.observe()[0].tolist(), strict=True))
    assert {k: v for k, v in first.items() if k in entries[6:]} == {
        "weight:S": 0, "profit:S": 0, "age:S": 0, "target:S": 0, "cash": 1, "drawdown": 0, "reward": 0
    }  # fmt: skip
    steps = [simulator.step(torch.tensor([[0.5]])) for _ in range(3)]
    token = dict(zip(entries, simulator.observe()[0].tolist(), strict=True))
    assert [token[f"f{i}:S"] for i in range(4)] == market.feature_BSF[33, 1].tolist()
    angle = market.session_time_B[33].item() * math.pi
    assert token["session_sin"] == pytest.approx(math.sin(angle), abs=1e-6)
    assert token["session_cos"] == pytest.approx(math.cos(angle), abs=1e-6)
    equity = [1e5] + [s.equity_N.item() for s in steps]
    weight = steps[-1].weight_NA.item()
    assert token["weight:S"] == pytest.approx(weight, rel=1e-6)
    assert token["cash"] == pytest.approx(1 - weight, rel=1e-6)
    assert token["target:S"] == 0.5
    assert token["age:S"] == pytest.approx(math.log(3) * 0.2, rel=1e-6)  # entered at bar 31, now 33
    assert token["profit:S"] == pytest.approx(
        10 * (equity[-1] - 1e5) / equity[-1], rel=0.05
    )  # small rebalancing
    assert token["drawdown"] == pytest.approx(10 * (1 - equity[-1] / max(equity)), rel=1e-6, abs=1e-7)
    assert token["reward"] == pytest.approx(100 * steps[-1].reward_N.item(), rel=1e-5)


def test_entry_price_and_age_follow_the_position():
    market = build_market()
    simulator = build_simulator(market, EnvConfig(sizing="fill", costs=FREE, lot=1), n=1)
    simulator.begin_at(torch.tensor([[0]]), torch.tensor([20]))
    state, opens = simulator._state, market.open_BS[21:, 0].tolist()

    def at(weight):
        before = state.quantity_NA.item()
        simulator.step(torch.tensor([[weight]]))
        return before, state.quantity_NA.item(), state.entry_NA.item(), state.age_NA.item()

    assert at(0.3)[2:] == (opens[0], 0)
    before, after, entry, age = at(0.9)  # add: the average
    assert entry == pytest.approx((before * opens[0] + (after - before) * opens[1]) / after) and age == 1
    assert at(0.4)[2:] == (entry, 2)  # reduce: unchanged
    assert at(-0.4)[2:] == (opens[3], 0)  # flip: new
    assert at(0.0)[3] == 0
    assert at(0.5)[2:] == (opens[5], 0)
    assert simulator.observe().isfinite().all()


def test_observe_hands_out_a_fresh_tensor():
    simulator = build_simulator(n=2)
    simulator.begin_episodes(5)
    first = simulator.observe()
    kept = first.clone()
    simulator.step(torch.ones(2, 1))
    simulator.observe()
    assert torch.equal(first, kept)


@pytest.mark.parametrize("assets", ["single", "all"])
def test_history_is_the_previous_bars_seen_by_a_flat_account(assets):
    market = build_market()
    config = EnvConfig(assets=assets)
    simulator = build_simulator(market, config, n=4, history=16, bars=(10, 120))
    a = simulator.n_assets
    symbol = torch.arange(3).expand(4, 3).clone() if assets == "all" else torch.tensor([[0], [1], [2], [0]])
    bar = torch.tensor([40, 25, 13, 10])
    history, length = simulator.begin_at(symbol, bar)
    burn_in = market.first_bar_S[symbol].max(1).values
    assert length.tolist() == (bar - burn_in).clamp(0, 16).tolist()
    flat = build_simulator(market, config, n=4, bars=(0, 120))
    for m in range(16):
        back = 16 - m
        flat.begin_at(symbol, (bar - back).clamp_min(0))
        token = flat.observe()
        for n in range(4):
            assert torch.equal(history[n, m], token[n] if back <= length[n] else torch.zeros_like(token[n]))
    assert history.shape == (4, 16, market.n_features * a + 2 + 4 * a + 3)


def test_no_history_of_length_zero():
    simulator = build_simulator(n=3, history=0)
    history, length = simulator.begin_episodes(5)
    assert history.shape == (3, 0, simulator.n_entries) and length.tolist() == [0, 0, 0]
