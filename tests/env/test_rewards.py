"""Reward terms against exact values, their state, and what a bankrupt step pays."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_markets import build_market, build_simulator, crash

from hpcrl.config.env import CostConfig, EnvConfig, RewardConfig, RewardWeights
from hpcrl.env.rewards import DIFFERENTIAL, TERMS, Rewards, StepFacts, known_mean

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "REWARDS.json").read_text())
FREE = CostConfig(half_spread=0, impact_coef=0, participation=None, per_share=0, min_fee=0, borrow_rate=0)
CPU = torch.device("cpu")
VOL_SCALED = next(name for name in GOLDEN if name.startswith("vol_scaled"))


def cell(value):
    return torch.tensor([[value]], dtype=torch.float64)


def facts(t):
    depth = GOLDEN["drawdown_depth"]
    return StepFacts(
        cell(GOLDEN["log_return"][t]),
        cell(GOLDEN["turnover"][t]),
        cell(depth[t - 1] if t else 0.0),
        cell(depth[t]),
        torch.zeros((1, 1), dtype=torch.bool),
        cell(GOLDEN["returns"][t]),
        cell(0.008),
    )


def only(**settings):
    """The given weights and parameters, log_return switched off unless given."""
    return RewardConfig(**({"log_return": 0.0, "warmup_bars": 0} | settings))


def pay_all(config):
    rewards = Rewards(config, 1, CPU)
    return [rewards.pay(facts(t)).item() for t in range(8)], rewards


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RewardConfig(), "log_return"),
        (RewardConfig(turnover=1e-4), "turnover_penalty_kappa_1e-4"),
        (RewardConfig(drawdown=1.0), "drawdown_increment_penalty_lambda_1"),
        (only(differential_sharpe=1.0, eta=GOLDEN["eta"]), "differential_sharpe"),
        (only(differential_downside=1.0, eta=GOLDEN["eta"]), "differential_downside_deviation_ratio"),
        (only(mean_variance=1.0, risk_aversion=10.0), "mean_variance_lambda_10"),
        (only(crra=1.0, crra_gamma=3.0), "crra_gamma_3"),
        (only(vol_scaled=1.0, vol_target=0.01), VOL_SCALED),
        (only(potential=1.0, potential_gamma=0.99), "potential_shaping_phi_minus_drawdown_gamma_0.99"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_terms_equal_the_exact_values(config, expected):
    got, _ = pay_all(config)
    assert got == pytest.approx(GOLDEN[expected], rel=1e-12, abs=1e-12)


def test_states_of_the_differential_sharpe_equal_the_exact_values():
    rewards = Rewards(only(differential_sharpe=1.0, eta=GOLDEN["eta"]), 1, CPU)
    for t, (mean, square) in enumerate(GOLDEN["dsr_state_AB"]):
        rewards.pay(facts(t))
        state = rewards.named()
        assert state["differential_sharpe.mean"].item() == pytest.approx(mean, rel=1e-12, abs=1e-15)
        assert state["differential_sharpe.square"].item() == pytest.approx(square, rel=1e-12, abs=1e-18)


def test_log_returns_and_potentials_telescope():
    growth = math.log(GOLDEN["equity"][-1] / GOLDEN["equity"][0])
    assert sum(pay_all(RewardConfig())[0]) == pytest.approx(growth, abs=1e-12)
    shaping = sum(0.99**t * paid for t, paid in enumerate(pay_all(only(potential=1.0))[0]))
    last = -GOLDEN["drawdown_depth"][-1]
    assert [shaping, 0.99**8 * last] == pytest.approx(GOLDEN["telescoping_check"], abs=1e-12)


def test_sum_is_weighted():
    parts = ("log_return", "turnover", "crra", "differential_sharpe", "potential")
    each = [pay_all(only(**{name: 1.0}))[0] for name in parts]
    weights = (1.0, 0.5, -2.0, 0.01, 3.0)
    got, _ = pay_all(only(**dict(zip(parts, weights, strict=True))))
    expected = [
        sum(w * x for w, x in zip(weights, column, strict=True)) for column in zip(*each, strict=True)
    ]
    assert got == pytest.approx(expected, rel=1e-12)


def test_every_configured_weight_has_a_term():
    assert set(RewardWeights.model_fields) == TERMS.keys() | DIFFERENTIAL.keys()


def test_utility_of_aversion_one_is_the_logarithm():
    assert pay_all(only(crra=1.0, crra_gamma=1.0))[0] == GOLDEN["log_return"]


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_warm_up_pays_nothing_and_counts_from_the_first_move(name):
    cold, warm = (Rewards(only(**{name: 1.0, "warmup_bars": bars}), 1, CPU) for bars in (0, 4))
    still = facts(5)._replace(log_return=cell(0.0), simple_return=cell(0.0))
    for _ in range(3):  # a flat account learns nothing
        assert cold.pay(still).item() == 0 and warm.pay(still).item() == 0
    assert warm.named()[f"{name}.bars"].item() == 0
    paid = [(cold.pay(facts(t)).item(), warm.pay(facts(t)).item()) for t in range(8)]
    assert all(late == 0 for _, late in paid[:4]) and any(early for early, _ in paid[:4])
    assert all(early == late != 0 for early, late in paid[4:])
    assert RewardConfig(eta=0.02).warmup == 50


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_a_long_flat_account_does_not_make_the_next_return_huge(name):
    rewards = Rewards(only(**{name: 1.0}), 1, CPU)
    for t in range(8):
        rewards.pay(facts(t))
    still = facts(5)._replace(log_return=cell(0.0), simple_return=cell(0.0))
    paid = [rewards.pay(still).item() for _ in range(3_000)]
    assert paid[-1] == pytest.approx(0, abs=1e-9) and max(map(abs, paid)) < 1
    assert abs(rewards.pay(facts(1)).item()) < 1e3  # without the least deviation: 1e40


def test_an_unknown_volatility_pays_nothing_and_a_tiny_one_is_bounded():
    rewards = Rewards(only(vol_scaled=1.0, vol_target=0.01), 1, CPU)
    assert rewards.pay(facts(0)._replace(sigma=cell(0.0))).item() == 0
    assert rewards.pay(facts(0)._replace(sigma=cell(1e-9))).item() == pytest.approx(0.01)
    known = torch.tensor([[0.002, 0.0, 0.004], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert known_mean(known).tolist() == [[0.003], [0.0]]


RETURN_TERMS = (
    "log_return",
    "differential_sharpe",
    "differential_downside",
    "mean_variance",
    "crra",
    "vol_scaled",
)


@pytest.mark.parametrize("name", RETURN_TERMS)
def test_a_bankrupt_step_pays_the_floor_whatever_the_term_says(name):
    """Also within a warm-up, where the term pays 0, and where its utility would be -5e7."""
    config = EnvConfig(
        max_leverage=3.0, costs=FREE, rewards=RewardConfig(**({"log_return": 0.0} | {name: 1.0}))
    )
    simulator = build_simulator(crash(build_market(bars=200), 100), config, n=2)
    simulator.begin_at(torch.zeros(2, 1, dtype=torch.int64), torch.full((2,), 97))
    weight = torch.tensor([[3.0], [0.0]])
    steps = [simulator.step(weight) for _ in range(3)]
    assert steps[-1].terminated_N.tolist() == [True, False]
    assert steps[-1].reward_N[0].item() == pytest.approx(math.log(1e-4), rel=1e-6)
    assert all(step.reward_N[1] == 0 for step in steps)


def test_potential_of_a_ruined_account_is_zero():
    """What shaping paid and took sums to nothing over an episode that ends in ruin (gamma 1)."""
    config = EnvConfig(max_leverage=3.0, costs=FREE, rewards=only(potential=1.0, potential_gamma=1.0))
    simulator = build_simulator(crash(build_market(bars=200), 100), config, n=1)
    simulator.begin_at(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([80]))
    steps = [simulator.step(torch.tensor([[3.0]])) for _ in range(20)]
    assert steps[-1].terminated_N.item() and any(step.reward_N.item() for step in steps)
    assert sum(step.reward_N.item() for step in steps) == pytest.approx(0, abs=1e-6)


def test_simulator_feeds_the_terms_with_the_accounts_own_numbers():
    """Every term over a real episode, from equity, turnover and the market's sigma alone."""
    market = build_market(bars=200)
    market = replace(market, sigma_BS=market.sigma_BS * (1 + torch.arange(200)[:, None] % 3))
    weight = torch.randn(100, 6, 1, generator=torch.Generator().manual_seed(1))
    for name in RewardWeights.model_fields:
        config = EnvConfig(
            lot=0, costs=CostConfig(participation=None), rewards=only(**{name: 1.0, "warmup_bars": 3})
        )
        simulator = build_simulator(market, config, n=6)
        simulator.begin_episodes(100)
        alone = Rewards(config.rewards, 6, CPU)
        equity = peak = torch.full((6, 1), 1e5, dtype=torch.float64)
        depth = torch.zeros_like(equity)
        for weight_NA in weight:
            sigma = market.sigma_BS[simulator.bar_N, simulator.symbol_NA[:, 0]][:, None]
            step = simulator.step(weight_NA)
            after = step.equity_N[:, None]
            peak = torch.maximum(peak, after)
            now = 1 - after / peak
            gain, none = after / equity, torch.zeros((6, 1), dtype=torch.bool)
            told = StepFacts(gain.log(), step.turnover_N[:, None], depth, now, none, gain - 1, sigma)
            expected = alone.pay(told)[:, 0].float()
            torch.testing.assert_close(step.reward_N, expected, rtol=1e-5, atol=1e-7, msg=name)
            equity, depth = after, now


def test_state_is_in_the_token_and_begins_anew_with_an_episode():
    market = crash(build_market(bars=200), 100)
    config = EnvConfig(
        max_leverage=3.0,
        costs=FREE,
        rewards=only(differential_sharpe=0.1, differential_downside=0.1, warmup_bars=None),
    )
    simulator = build_simulator(market, config, n=3)
    names = simulator.reward_entries
    assert names == tuple(f"{term}_{part}" for term in DIFFERENTIAL for part in ("mean", "deviation", "warm"))
    symbols, bars = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([90, 60, 60])
    history, _ = simulator.begin_at(symbols, bars)
    assert not simulator.observe()[:, -6:].any() and not history[:, :, -6:].any()
    weight = torch.tensor([[3.0], [1.0], [0.0]])
    for _ in range(9):
        simulator.step(weight)
    token = simulator.observe()[:, -6:]
    assert token[0].all() and token[1].all() and not token[2].any()
    state = simulator.state_dict()
    mean, square = (state[f"differential_sharpe.{part}"] for part in ("mean", "square"))
    shown = torch.cat([10 * mean / square.sqrt().clamp_min(1e-5), 0.4 * torch.log1p(square.sqrt() * 1e4)], 1)
    torch.testing.assert_close(token[:, :2], shown.float())
    assert token[1, 2] == pytest.approx(0.09)
    step = simulator.step(weight)
    assert step.terminated_N.tolist() == [True, False, False]
    token = simulator.observe()[:, -6:]
    assert not token[0].any() and token[1].all()
    simulator.begin_at(symbols, bars)
    assert not simulator.observe()[:, -6:].any()


def test_terms_that_are_off_cost_no_state():
    rewards = Rewards(RewardConfig(turnover=1.0, drawdown=1.0), 4, CPU)
    assert not rewards.named() and not rewards.entry_names
    assert not rewards.needs_return and not rewards.needs_sigma
