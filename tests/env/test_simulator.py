"""Episodes, independence, rewards and checkpoints of the batched simulator."""

import math
from dataclasses import replace

import pytest
import torch
from small_markets import all_costs, build_market, build_simulator, crash, reckless

from hpcrl.config.env import CostConfig, EnvConfig, RewardConfig, SymbolCosts
from hpcrl.env.simulator import Step
from hpcrl.types import HpcrlError

FREE = CostConfig(half_spread=0, impact_coef=0, participation=None, per_share=0, min_fee=0, borrow_rate=0)


def weights(n, a, steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(steps, n, a, generator=g, dtype=torch.float64)


def run(simulator, table_TNA):
    """Tokens and steps of a whole table."""
    tokens, steps = [], []
    for weight_NA in table_TNA:
        tokens.append(simulator.observe())
        steps.append(simulator.step(weight_NA))
    tokens.append(simulator.observe())
    stacked = {name: torch.stack([getattr(s, name) for s in steps], 1) for name in Step._fields}
    return torch.stack(tokens, 1), stacked


def assert_equal_runs(one, two, pick=slice(None)):
    assert torch.equal(one[0][pick], two[0][pick])
    for name, value in one[1].items():
        assert torch.equal(value[pick], two[1][name][pick]), name


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("assets", ["single", "all"])
def test_episode_does_not_depend_on_how_many_environments_there_are(assets, lag):
    """Bit for bit: environments 3 and 5 of eight are what they are alone, bankruptcies included."""
    market = crash(build_market(missing=0.1), 60)
    config = reckless(assets=assets, fill_lag=lag)
    eight = build_simulator(market, config, ids=torch.arange(8))
    two = build_simulator(market, config, ids=torch.tensor([3, 5]))
    table = weights(8, eight.n_assets, 60).abs() * 3
    pick = torch.tensor([3, 5])
    for _ in range(2):
        begun, begun_two = eight.begin_episodes(60), two.begin_episodes(60)
        assert torch.equal(begun[0][pick], begun_two[0]) and torch.equal(begun[1][pick], begun_two[1])
        all_runs, both = run(eight, table), run(two, table[:, pick])
        assert all_runs[1]["terminated_N"].any()
        assert_equal_runs((all_runs[0][pick], {k: v[pick] for k, v in all_runs[1].items()}), both)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_one_environments_actions_change_no_other_by_one_bit(lag):
    market = crash(build_market(), 60)
    table = weights(6, 1, 60).abs() * 3
    other = table.clone()
    other[:, 2] = 4.0
    runs = []
    for actions in (table, other):
        simulator = build_simulator(market, reckless(fill_lag=lag), n=6)
        simulator.begin_episodes(60)
        runs.append(run(simulator, actions))
    assert not torch.equal(runs[0][0][2], runs[1][0][2])
    assert_equal_runs(*runs, pick=torch.tensor([0, 1, 3, 4, 5]))


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_one_environment_begun_anew_changes_no_other_and_keeps_nothing(lag):
    table, config = weights(4, 1, 40), all_costs(fill_lag=lag)
    starts = torch.zeros(4, 1, dtype=torch.int64), torch.full((4,), 40)
    runs = []
    for anew in (False, True):
        simulator = build_simulator(config=config, n=4)
        simulator.begin_at(*starts)
        run(simulator, table[:15])
        if anew:
            simulator.begin_some(torch.arange(4) == 2, *starts)
        runs.append(run(simulator, table[15:]))
    assert_equal_runs(*runs, pick=torch.tensor([0, 1, 3]))
    fresh = build_simulator(config=config, n=4)
    fresh.begin_at(*starts)
    assert_equal_runs(run(fresh, table[15:]), runs[1], pick=torch.tensor([2]))


def test_seed_changes_the_starts_and_is_honoured():
    starts = []
    for seed in (1, 1, 2):
        simulator = build_simulator(n=50, seed=seed)
        simulator.begin_episodes(20)
        first = simulator.bar_N
        simulator.begin_episodes(20)
        assert not torch.equal(first, simulator.bar_N)
        starts.append(first)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_one_account_over_all_goes_on_after_a_delisting_and_stops_where_a_symbol_only_ends():
    market = build_market()  # last bars 119, 117 and 115
    delist_BS = market.delist_BS.clone()
    delist_BS[40, 2] = 30.0
    ended = market.last_bar_S.clone()
    ended[2] = 40
    delisted = replace(market, delist_BS=delist_BS, last_bar_S=ended)
    simulator = build_simulator(delisted, all_costs(assets="all"), n=64)
    simulator.begin_episodes(60)
    assert int(simulator.bar_N.min()) >= 11 and 40 < int(simulator.bar_N.max()) + 60 <= 117
    for _ in range(60):
        step = simulator.step(torch.full((64, 3), 0.3))
    assert step.equity_N.isfinite().all() and not step.weight_NA[:, 2].any()
    with pytest.raises(HpcrlError, match="all symbols share 30 "):
        build_simulator(replace(market, last_bar_S=ended), all_costs(assets="all")).begin_episodes(60)


def test_starts_are_uniform_over_the_pairs_that_fit():
    market = build_market(bars=40)  # burn-ins 5, 8, 11; last bars 39, 37, 35
    simulator = build_simulator(market, n=40_000, bars=(7, 36))
    simulator.begin_episodes(20)
    pair = torch.stack([simulator.symbol_NA[:, 0], simulator.bar_N], 1)
    found, count = pair.unique(dim=0, return_counts=True)
    expected = [(s, b) for s, low in ((0, 7), (1, 8), (2, 11)) for b in range(low, 35 - 20 + 1)]
    assert [tuple(p) for p in found.tolist()] == expected
    mean = 40_000 / len(expected)
    assert (count - mean).abs().max() < 5 * math.sqrt(mean)


def test_episode_that_does_not_fit_is_refused_with_both_numbers():
    simulator = build_simulator(build_market(bars=40), bars=(0, 40))
    with pytest.raises(HpcrlError, match=r"34 steps|needs 36 bars.*has 35"):
        simulator.begin_episodes(35)
    simulator.begin_episodes(34)
    together = build_simulator(build_market(bars=40), EnvConfig(assets="all"), bars=(0, 40))
    with pytest.raises(HpcrlError, match=r"needs 26 bars.*all symbols share 25"):
        together.begin_episodes(25)
    together.begin_episodes(24)


def test_no_step_runs_past_the_episode_or_the_data():
    simulator = build_simulator(n=2)
    with pytest.raises(HpcrlError, match="begin"):
        simulator.step(torch.zeros(2, 1))
    simulator.begin_episodes(3)
    for _ in range(3):
        simulator.step(torch.zeros(2, 1))
    with pytest.raises(HpcrlError, match="ended"):
        simulator.step(torch.zeros(2, 1))
    simulator.begin_at(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([100, 117]))
    simulator.step(torch.zeros(2, 1))
    simulator.step(torch.zeros(2, 1))
    assert simulator.bar_N.tolist() == [102, 119]
    with pytest.raises(HpcrlError):
        simulator.step(torch.zeros(2, 1))


def test_begin_at_refuses_foreign_bars_and_symbols():
    simulator = build_simulator(n=2, bars=(10, 50))
    one = torch.ones(2, 1, dtype=torch.int64)
    for symbol, bar in (
        (one, torch.tensor([9, 20])),
        (one, torch.tensor([20, 50])),
        (one * 3, one[:, 0] * 20),
    ):
        with pytest.raises(HpcrlError, match="must lie in"):
            simulator.begin_at(symbol, bar)
    with pytest.raises(HpcrlError, match=r"symbols \[2, 1\]"):
        simulator.begin_at(one[:1], one[:, 0])


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_future_bars_change_nothing_of_the_past(lag):
    market = build_market(bars=100)
    later = torch.arange(100)[:, None] > 70
    changed = {
        name: torch.where(later, getattr(market, name) * 1.7, getattr(market, name))
        for name in ("open_BS", "high_BS", "low_BS", "close_BS", "volume_BS", "sigma_BS")
    }
    changed["feature_BSF"] = torch.where(later[..., None], 9.0, market.feature_BSF)
    table = weights(4, 1, 40)
    runs = []
    for data in (market, replace(market, **changed)):
        simulator = build_simulator(data, all_costs(fill_lag=lag), n=4)
        simulator.begin_at(torch.tensor([[0], [1], [2], [0]]), torch.full((4,), 40))
        runs.append(run(simulator, table))
    past = [(tokens[:, :31], {k: v[:, :30] for k, v in steps.items()}) for tokens, steps in runs]
    assert_equal_runs(*past)
    assert not torch.equal(runs[0][1]["equity_N"][:, 30], runs[1][1]["equity_N"][:, 30])


def test_log_returns_sum_to_the_accounts_growth():
    simulator = build_simulator(n=20)
    simulator.begin_episodes(60)
    _, steps = run(simulator, weights(20, 1, 60))
    assert not steps["terminated_N"].any()
    growth = torch.log(steps["equity_N"][:, -1] / 100_000)
    torch.testing.assert_close(steps["log_return_N"].sum(1), growth, rtol=0, atol=1e-12)


def test_shaped_reward_is_the_weighted_sum_of_its_terms():
    rewards = RewardConfig(log_return=1.0, turnover=1e-4, drawdown=0.5)
    simulator = build_simulator(config=all_costs(rewards=rewards), n=20)
    simulator.begin_episodes(60)
    _, steps = run(simulator, weights(20, 1, 60))
    equity = torch.cat([torch.full((20, 1), 1e5, dtype=torch.float64), steps["equity_N"]], 1)
    depth = 1 - equity / equity.cummax(1).values
    increase = torch.diff(depth, dim=1).clamp_min(0)
    expected = steps["log_return_N"] - 1e-4 * steps["turnover_N"] - 0.5 * increase
    torch.testing.assert_close(steps["reward_N"], expected.float(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("assets", ["single", "all"])
def test_accounting_identity_over_1e5_random_steps(assets):
    """Equity change = price profit - fees - spread - impact + financing + dividends, to 1e-9 of equity."""
    market = build_market(bars=400, missing=0.05)
    dividend = torch.where(torch.arange(400)[:, None] % 37 == 5, 0.3, 0.0).expand(-1, 3).double()
    simulator = build_simulator(replace(market, dividend_BS=dividend), all_costs(assets=assets), n=300)
    simulator.begin_episodes(340)
    table = weights(300, simulator.n_assets, 340)
    state = simulator._state
    for weight_NA in table:
        cash, quantity, equity = state.cash_N1[:, 0].clone(), state.quantity_NA.clone(), state.equity_N1[:, 0]
        equity, last = equity.clone(), state.row_NA.clone()
        step = simulator.step(weight_NA)
        close = simulator._packed.at(last).close
        opened = simulator._packed.at(state.row_NA)
        bought = state.quantity_NA - quantity
        profit = (quantity * (opened.open - close) + state.quantity_NA * (opened.close - opened.open)).sum(1)
        paid = step.fees_N + step.spread_N + step.impact_N
        change = profit - paid + step.financing_N + step.dividend_N
        error = (step.equity_N - equity - change).abs() / equity
        assert error[~step.terminated_N].max() < 1e-9
        spent = (bought * opened.open).sum(1) + paid - step.financing_N - step.dividend_N
        assert ((cash - spent - state.cash_N1[:, 0]).abs() / equity)[~step.terminated_N].max() < 1e-9


def test_three_constant_policies_give_three_ledgers():
    ends = []
    for weight in (-1.0, 0.0, 1.0):
        simulator = build_simulator(config=EnvConfig(), n=4)
        simulator.begin_episodes(40)
        _, steps = run(simulator, torch.full((40, 4, 1), weight))
        ends.append(steps["equity_N"][:, -1])
    assert torch.equal(ends[1], torch.full((4,), 1e5, dtype=torch.float64))
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert (ends[one] != ends[two]).all()


def test_zero_action_costs_nothing():
    simulator = build_simulator(config=EnvConfig(), n=4)
    simulator.begin_episodes(40)
    _, steps = run(simulator, torch.zeros(40, 4, 1))
    for name in ("fees_N", "spread_N", "impact_N", "financing_N", "turnover_N", "reward_N"):
        assert not steps[name].any()


def test_bankrupt_step_terminates_once_and_a_flat_account_follows():
    market = crash(build_market(bars=200), 100)
    config = EnvConfig(max_leverage=3.0, costs=FREE)
    simulator = build_simulator(market, config, n=6)
    simulator.begin_at(torch.zeros(6, 1, dtype=torch.int64), torch.full((6,), 90))
    long = torch.full((12, 6, 1), 3.0)
    long[:, 3:] = 0.0
    tokens, steps = run(simulator, long)
    assert steps["terminated_N"][:3, 9].all() and steps["terminated_N"].sum() == 3
    assert (steps["log_return_N"][:3, 9] - math.log(1e-4)).abs().max() < 1e-12
    assert (steps["reward_N"][:3, 9] - math.log(1e-4)).abs().max() < 1e-6
    assert not steps["equity_N"][:3, 9].any() and not steps["weight_NA"][:3, 9].any()
    # begun by begin_at: a new flat account at the same bar, as if nothing had been before
    fresh = build_simulator(market, config, n=6)
    fresh.begin_at(torch.zeros(6, 1, dtype=torch.int64), torch.full((6,), 100))
    assert torch.equal(tokens[:3, 10], fresh.observe()[:3])


def test_bankruptcy_draws_the_next_episode_and_keeps_nothing():
    market = crash(build_market(bars=200), 100)
    config = EnvConfig(max_leverage=3.0, costs=FREE)
    simulator = build_simulator(market, config, n=40, bars=(0, 200))
    simulator.begin_episodes(80)
    reference = build_simulator(market, config, n=40)
    reference.begin_episodes(80)
    reference.begin_episodes(80)  # the second episode of every environment
    second_start, second_token = reference.bar_N, reference.observe()
    gone = torch.zeros(40, dtype=torch.bool)
    for _ in range(80):
        step = simulator.step(torch.full((40, 1), 3.0))
        first_time = step.terminated_N & ~gone
        assert torch.equal(simulator.bar_N[first_time], second_start[first_time])
        assert torch.equal(simulator.observe()[first_time], second_token[first_time])
        gone |= step.terminated_N
    assert gone.sum() > 5


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("assets", ["single", "all"])
def test_restored_state_continues_bit_exactly(assets, lag, tmp_path):
    market = crash(build_market(missing=0.1), 60)
    config = reckless(assets=assets, fill_lag=lag)
    simulator = build_simulator(market, config)
    simulator.begin_episodes(60)
    table = weights(5, simulator.n_assets, 60).abs() * 3
    run(simulator, table[:25])
    torch.save(simulator.state_dict(), tmp_path / "state.pt")
    rest = run(simulator, table[25:])
    assert rest[1]["terminated_N"].any()
    again = build_simulator(market, config)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_equal_runs(rest, run(again, table[25:]))
    first, second = simulator.begin_episodes(30), again.begin_episodes(30)
    assert torch.equal(first[0], second[0]) and torch.equal(simulator.bar_N, again.bar_N)


def test_state_of_other_environments_is_refused():
    saved = build_simulator(n=3).state_dict()
    with pytest.raises(HpcrlError, match="other ids"):
        build_simulator(n=4).load_state_dict(saved)


def test_state_is_below_2_kb_per_environment():
    saved = build_simulator(n=100).state_dict()
    assert sum(x.nbytes for x in saved.values()) / 100 < 2048


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("lot", [0, 1])
def test_a_weight_that_is_not_finite_is_refused_before_anything_moves(bad, lot):
    simulator = build_simulator(build_market(), reckless(lot=lot, assets="all"), ids=torch.arange(4, 7))
    simulator.begin_episodes(10)
    before, table = simulator.state_dict(), torch.zeros(3, simulator.n_assets, dtype=torch.float64)
    table[1, 1] = bad
    with pytest.raises(
        HpcrlError, match=rf"env 5, symbol 1, bar \d+: the weight is {bad:g}; a finite number"
    ):
        simulator.step(table)
    assert all(
        torch.equal(before[k].nan_to_num(9), v.nan_to_num(9)) for k, v in simulator.state_dict().items()
    )
    simulator.step(torch.full_like(table, 1e300))  # large, and scaled


def test_margin_call_liquidates_at_the_next_step():
    market = crash(build_market(bars=60), 30, factor=0.7)
    simulator = build_simulator(market, EnvConfig(max_leverage=2.0, maintenance=0.5, costs=FREE), n=1)
    simulator.begin_at(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([28]))
    simulator.step(torch.full((1, 1), 2.0))
    after = [simulator.step(torch.full((1, 1), 2.0)).weight_NA.item() for _ in range(3)]
    assert after[0] > 2.5 and after[1] == 0 and after[2] == pytest.approx(2, abs=0.1)


def test_a_saved_margin_call_liquidates_in_a_simulator_that_has_played_without_one():
    market = crash(build_market(bars=60), 30, factor=0.7)
    rules = EnvConfig(max_leverage=2.0, maintenance=0.5, costs=FREE)
    whole, used = (build_simulator(market, rules, n=1) for _ in range(2))
    double = torch.full((1, 1), 2.0)
    for simulator, steps in ((whole, 2), (used, 1)):
        simulator.begin_at(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([28]))
        for _ in range(steps):
            simulator.step(double)
    saved = whole.state_dict()
    assert saved["called_N1"].all() and not used.state_dict()["called_N1"].any()
    used.load_state_dict(saved)
    assert used.step(double).weight_NA.item() == whole.step(double).weight_NA.item() == 0


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("symbols", [{}, {"S0": SymbolCosts(bps=3.0, participation=0.01)}])
def test_step_and_observe_read_no_device_value(lag, symbols, monkeypatch):
    """Nothing may wait for the device; the one test on the CPU's own memory is allowed."""
    market = replace(build_market(), symbols=("S0", "S1", "S2"))
    config = all_costs(fill_lag=lag, max_net=0.5, costs=CostConfig(symbols=symbols))
    simulator = build_simulator(market, config, n=4)
    simulator.begin_episodes(20)
    monkeypatch.setattr(simulator, "device", torch.device("cuda"))  # take the accelerator's branch

    def refuse(*_, **__):
        raise AssertionError("a device value was read")

    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    addresses = [x.data_ptr() for x in simulator._named().values()]
    for _ in range(3):
        simulator.observe()
        simulator.step(torch.full((4, 1), 0.5))
    assert addresses == [x.data_ptr() for x in simulator._named().values()]


@pytest.mark.parametrize("shape", [(4,), (1, 1), (4, 2), (3, 1)])
def test_weights_of_another_shape_are_refused_and_nothing_moves(shape):
    simulator = build_simulator(n=4)
    simulator.begin_episodes(20)
    before = simulator.state_dict()
    with pytest.raises(HpcrlError, match=r"weights of shape \[4, 1\], got"):
        simulator.step(torch.zeros(shape))
    assert all(torch.equal(value, before[name]) for name, value in simulator.state_dict().items())


@pytest.mark.parametrize("lot", [0, 1, 10])
def test_the_masks_that_a_cpu_leaves_out_change_nothing(lot, monkeypatch):
    market = crash(build_market(), 60)
    table = weights(6, 1, 60).abs() * 3
    runs = []
    for device in ("cpu", "cuda"):
        simulator = build_simulator(market, reckless(lot=lot), n=6)
        simulator.begin_episodes(60)
        monkeypatch.setattr(simulator, "device", torch.device(device))
        runs.append(run(simulator, table))
    assert runs[0][1]["terminated_N"].any()
    assert_equal_runs(*runs)
