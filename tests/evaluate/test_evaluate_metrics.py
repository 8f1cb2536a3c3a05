"""Metrics against numbers worked out by hand, and NaN wherever one is undefined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpcrl.evaluate import metrics

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample" / "MSFT_5min.csv"


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def test_returns_are_simple_and_stay_zero_after_ruin():
    assert metrics.simple_returns(column(100, 110, 99, 0, 0))[:, 0] == pytest.approx([0.1, -0.1, -1, 0])


def test_session_equity_takes_each_sessions_last_bar():
    equity = column(100, 101, 102, 103, 104, 105)
    sessions = np.array([7, 7, 8, 8, 11])
    assert metrics.session_equity(equity, sessions)[:, 0].tolist() == [100, 102, 104, 105]


def test_formulas_equal_hand_numbers():
    r = column(0.1, -0.1, 0.2)
    mean, deviation = (
        0.2 / 3,
        np.sqrt(((0.1 - 0.2 / 3) ** 2 + (0.1 + 0.2 / 3) ** 2 + (0.2 - 0.2 / 3) ** 2) / 2),
    )
    assert metrics.total_return(r)[0] == pytest.approx(1.1 * 0.9 * 1.2 - 1)
    assert metrics.annual_return(r, 252)[0] == pytest.approx(1.188 ** (252 / 3) - 1)
    assert metrics.annual_volatility(r, 252)[0] == pytest.approx(deviation * 252**0.5)
    assert metrics.sharpe(r)[0] == pytest.approx(mean / deviation)
    assert metrics.sharpe(r, 365)[0] == pytest.approx(mean / deviation * 365**0.5)
    assert metrics.sortino(r, 252)[0] == pytest.approx(mean / (0.01 / 3) ** 0.5 * 252**0.5)
    assert metrics.max_drawdown(r)[0] == pytest.approx(-0.1)
    assert metrics.calmar(r, 252)[0] == pytest.approx((1.188 ** (252 / 3) - 1) / 0.1)


def test_columns_are_independent():
    r = np.random.default_rng(0).normal(0, 0.01, (60, 3))
    for metric in (metrics.annual_return, metrics.sharpe, metrics.sortino, metrics.calmar):
        together = metric(r, 252)
        assert together.tolist() == [metric(r[:, [i]], 252)[0] for i in range(3)]


def test_sample_file_gives_the_known_buy_and_hold_figures():
    """Close to close on the rows of the 5-minute grid, bought at the first close, before its cost."""
    table = pd.read_csv(SAMPLE, parse_dates=["timestamp"])
    close = table["close"][table["timestamp"].dt.minute % 5 == 0].to_numpy()[:, None]
    found = metrics.performance(close / close[0], np.arange(len(close) - 1), 252)
    assert found["total_return"][0] == pytest.approx(-0.109560, abs=5e-7)
    assert found["bar_sharpe"][0] == pytest.approx(-0.01220328, abs=5e-9)
    assert found["max_drawdown"][0] == pytest.approx(-0.175174, abs=5e-7)


@pytest.mark.parametrize(
    "equity",
    [
        column(100),
        column(100, 100),
        column(100, 101),
        column(*[100] * 30),
        column(100, 0, 0),
        column(1, 1e300),
    ],
    ids=["no step", "one flat step", "one step", "constant", "ruin", "explosion"],
)
def test_degenerate_equity_gives_nan_and_never_an_infinity(equity):
    found = metrics.performance(equity, np.arange(len(equity) - 1), 252)
    assert all(not np.isinf(value).any() for value in found.values())
    if len(equity) < 3 or len(set(equity[:, 0])) == 1:
        assert np.isnan(found["sharpe"]).all() and np.isnan(found["bar_sharpe"]).all()


def test_growth_without_risk_has_no_sharpe_but_for_rounding():
    equity = 100 * 1.001 ** np.arange(50)[:, None]
    assert np.isnan(metrics.sharpe(metrics.simple_returns(equity), 252))[0]


def test_ruin_is_a_total_loss():
    found = metrics.performance(column(100, 90, 0, 0), np.array([0, 1, 2]), 252)
    assert (
        found["total_return"][0] == -1 and found["max_drawdown"][0] == -1 and found["annual_return"][0] == -1
    )


def test_hit_rate_counts_held_bars_only():
    r = column(0.1, -0.1, 0.2, 0.0, 0.3)
    held = np.array([True, True, True, True, False])[:, None]
    assert metrics.hit_rate(r, held)[0] == pytest.approx(2 / 3)
    assert np.isnan(metrics.hit_rate(r, ~held & False))[0]


def test_standard_error_of_short_samples():
    assert metrics.sharpe_error(42, 252) == pytest.approx(2.449, abs=1e-3)
    assert np.isnan(metrics.sharpe_error(0, 252))
    assert metrics.periods_per_year("XNYS") == 252 and metrics.periods_per_year("24/7") == 365
