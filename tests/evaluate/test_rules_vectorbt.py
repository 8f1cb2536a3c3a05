"""Rules through our simulator against vectorbt, where the conventions can be set equal: the same equity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpcrl.evaluate.replay import replay_tables
from hpcrl.evaluate.rules import MovingAverageCross, play_rule

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "vectorbt_equity.json").read_text())
CASES = {case["name"]: case for case in FIXTURE["cases"]}
BARS = {name: np.array(column) for name, column in FIXTURE["bars"].items()}
COUNT = len(BARS["close"])
MARKET = {"ts": 1_700_000_000 + 300 * np.arange(COUNT), "volume": np.full(COUNT, 1e6)} | BARS
TOLERANCE = 1e-9


def settings(case: dict) -> dict:
    """Our names of the case's costs, everything else switched off."""
    costs = dict.fromkeys(("half_spread", "impact_coef", "per_share", "min_fee", "borrow_rate"), 0.0)
    costs |= {"participation": None, "bps": 1e4 * case["costs"].get("fees", 0.0)}
    costs |= {"slippage": case["costs"].get("slippage", 0.0), "min_fee": case["costs"].get("fixed_fees", 0.0)}
    return {"lot": 0, "intrabar": False, "sizing": case["sizing"], "costs": costs}


def table(case: dict) -> np.ndarray:
    weights = FIXTURE["weights"][case["rule"]]
    return np.array([[np.nan if weight is None else weight] for weight in weights])


@pytest.mark.parametrize("name", CASES)
def test_the_equity_is_vectorbts(name):
    case = CASES[name]
    played = play_rule(table(case), MARKET, env=settings(case))
    assert played.track.trades_TN.sum() > 3
    error = np.abs(played.track.equity_TN[:, 0] / case["equity"] - 1).max()
    assert error <= TOLERANCE, error


@pytest.mark.parametrize("cost", ["free", "fees", "slippage", "all"])
@pytest.mark.parametrize("sizing", ["decision", "fill"])
def test_the_moving_average_cross_is_vectorbts_with_its_own_averages(cost, sizing):
    case = CASES[f"ma_long_flat, {cost}, {sizing}"]
    rule = MovingAverageCross(10, 40, weight=0.9)
    played = play_rule(rule, MARKET, env=settings(case))
    assert played.track.equity_TN[:, 0] == pytest.approx(case["equity"], rel=TOLERANCE)
    if (
        sizing == "decision"
    ):  # bar by bar it asks for what it holds, which a sizing at the open cannot be told
        asked = play_rule(lambda: rule, MARKET, env=settings(case) | {"max_leverage": 10})
        assert asked.track.equity_TN[:, 0] == pytest.approx(case["equity"], rel=TOLERANCE)


@pytest.mark.parametrize("cost", ["free", "all"])
@pytest.mark.parametrize("sizing", ["decision", "fill"])
def test_replayed_tables_are_vectorbts_too(cost, sizing):
    case = CASES[f"every_bar, {cost}, {sizing}"]
    bars = pd.DataFrame({"timestamp": MARKET["ts"], "symbol": "X", **BARS, "volume": MARKET["volume"]})
    weights = pd.DataFrame({"timestamp": MARKET["ts"], "symbol": "X", "weight": table(case)[:, 0]})
    given = settings(case)
    costs = given.pop("costs") | given
    found = [row["equity"] for row in replay_tables(bars, weights, costs)["rows"]]
    assert found == pytest.approx(case["equity"], rel=TOLERANCE)


def test_the_cases_together_are_columns_of_one_call():
    """The columns of one cost and sizing, played side by side."""
    for cost, sizing in (("all", "decision"), ("free", "fill")):
        chosen = [case for name, case in CASES.items() if name.endswith(f"{cost}, {sizing}")]
        assert len(chosen) == 5
        played = play_rule(np.hstack([table(case) for case in chosen]), MARKET, env=settings(chosen[0]))
        wanted = np.array([case["equity"] for case in chosen]).T
        assert played.track.equity_TN == pytest.approx(wanted, rel=TOLERANCE)


def test_a_wrong_convention_would_show():
    """Filled one bar later, or at the close that was seen, the equity is another."""
    case = CASES["random_long_short, fees, decision"]
    played = play_rule(table(case), MARKET, env=settings(case) | {"fill_lag": 2})
    assert np.abs(played.track.equity_TN[:, 0] / case["equity"] - 1).max() > 1e-3
