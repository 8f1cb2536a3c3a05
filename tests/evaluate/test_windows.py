"""Scores of validation windows: played all at once, they are what each gives by itself."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_runs import make_config, make_data

from hpcrl.config.root import Config
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate import windows as room
from hpcrl.evaluate.backtest import PolicyStrategy, make_plan, play_plan
from hpcrl.evaluate.windows import find_windows, window_scores
from hpcrl.market.dataset import Market
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.policy import build_policy


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "market.h5", symbols=("AAA", "BBB"), bars=1500)


def with_objective(config: Config, **objective) -> Config:
    tree = config.model_dump(mode="json")
    tree["pbt"]["objective"] |= objective
    return Config.model_validate(tree)


def setting(config: Config, seed: int = 1):
    market = load_market(config.market)
    tensors = market.to("cpu", fit_scaler(market, *market.split_range("train")))
    probe = Simulator(tensors, config.env, env_ids_N=torch.arange(1), seed=0, bars=(0, 10), history=1)
    torch.manual_seed(seed)
    policy = build_policy(config.policy, probe.n_entries, probe.n_assets)
    for parameter in policy.parameters():  # else every policy prefers one position everywhere
        parameter.data.mul_(3)
    return market, tensors, policy.eval().requires_grad_(False)


def alone(config: Config, market: Market, tensors, policy, first: int, last: int) -> float:
    """The score of one window by the backtest of ``hpcrl evaluate``, and the definition."""
    plan = make_plan(tensors, config.env, first, last + 1)
    track = play_plan(
        tensors, config.env, plan, lambda group: PolicyStrategy(policy), history=config.policy.padded_history
    )
    scores = []
    for equity_T in track.equity_TN.T:
        depth = float(np.max(1 - equity_T / np.maximum.accumulate(equity_T)))
        growth = math.log(max(equity_T[-1] / equity_T[0], config.env.reward_floor))
        aim = config.pbt.objective
        scores.append(growth - aim.drawdown_penalty * max(0.0, depth - aim.drawdown_limit))
    return float(np.mean(scores))


@pytest.mark.parametrize("assets", ["single", "all"])
@pytest.mark.parametrize("bars", [None, 13])
@pytest.mark.parametrize("fill_lag", [1, 2])
def test_a_windows_score_is_the_one_of_a_backtest_over_it_alone(data, monkeypatch, assets, bars, fill_lag):
    monkeypatch.setattr(room, "MOST_ACCOUNTS", 5)  # several batches, of windows of unequal length
    config = make_config(data, assets=assets, fill_lag=fill_lag)
    config = with_objective(config, window_bars=bars, drawdown_limit=0.001, drawdown_penalty=2.0)
    market, tensors, policy = setting(config)
    windows = find_windows(market, config)
    lo, hi = market.split_range("validation", fill_lag)
    rows = sorted({(int(a), int(b)) for a, b in zip(windows.first_N, windows.last_N, strict=True)})
    assert len(rows) == len(windows) >= (3 if bars is None else 10)
    assert lo <= rows[0][0] and rows[-1][1] < hi
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(rows)), "windows overlap"
    if bars is None:
        assert all(len(set(market.session_B[a : b + 1])) == 1 for a, b in rows)
        assert sum(b - a + 1 for a, b in rows) == hi - lo, "a session was left out"
    else:
        assert {b - a + 1 for a, b in rows} == {13}
    found = window_scores(policy, tensors, windows, config)
    wanted = [alone(config, market, tensors, policy, a, b) for a, b in rows]
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert len({round(score, 9) for score in found}) > len(rows) // 2, "the policy never trades"


def test_windows_in_which_a_symbol_has_no_bars_throughout_are_scored_without_it(data):
    config = with_objective(make_config(data), window_bars=10)
    market = load_market(config.market)
    lo, _ = market.split_range("validation")
    market.last_bar_S[1] = lo + 24  # ends within the third window
    windows = find_windows(market, config)
    symbols = [windows.symbol_NA[windows.window_N == k, 0].tolist() for k in range(4)]
    assert symbols == [[0, 1], [0, 1], [0], [0]]
    both = find_windows(market, with_objective(make_config(data, assets="all"), window_bars=10))
    assert len(both) == 2


def test_ruin_costs_the_floor_and_the_whole_drawdown(data):
    config = with_objective(make_config(data, reward_floor=1e-3), window_bars=10, drawdown_limit=0.25)
    book = room._Book(3, 100.0, torch.device("cpu"))
    playing = torch.tensor([True, True, False])
    book.note(torch.tensor([200.0, 50.0, 7.0], dtype=torch.float64), torch.tensor([False] * 3), playing)
    book.note(
        torch.tensor([100.0, 100.0, 7.0], dtype=torch.float64), torch.tensor([False, True, True]), playing
    )
    book.note(torch.tensor([150.0, 100.0, 7.0], dtype=torch.float64), torch.tensor([False] * 3), playing)
    scores = book.scores(config.env.reward_floor, config.pbt.objective)
    assert scores == pytest.approx([math.log(1.5) - 0.25, math.log(1e-3) - 0.75, 0.0])
