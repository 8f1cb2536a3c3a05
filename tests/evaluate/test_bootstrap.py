"""Block-bootstrap intervals: they cover, they are paired, they repeat, and say why where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpcrl.evaluate import metrics
from hpcrl.evaluate.bootstrap import (
    bar_sharpe,
    block_length,
    interval,
    paired_interval,
    percentiles,
    resample,
    total_return,
)
from hpcrl.types import HpcrlError


def autoregressive(n: int, seed: int, rho: float = 0.6) -> np.ndarray:
    shock = np.random.default_rng(seed).standard_normal(n + 100)
    value = np.zeros(n + 100)
    for t in range(1, n + 100):
        value[t] = rho * value[t - 1] + shock[t]
    return 1e-3 * value[100:]


def test_the_mean_of_dependent_returns_is_covered():
    """Of 100 series with a true mean of 0 the 95 % interval holds it in 88 or more."""
    covered = sum(0.0 in interval(autoregressive(800, seed), draws=250) for seed in range(100))
    assert covered >= 88


def test_bars_drawn_one_by_one_would_not_cover():
    """The blocks are what the test above needs: with blocks of one bar the intervals are far too narrow."""
    covered = 0
    for seed in range(60):
        series = autoregressive(800, seed)
        covered += 0.0 in percentiles(resample((series,), np.mean, 1.0, 300)[:, 0], 1.0)
    assert covered <= 48


def test_blocks_grow_with_dependence():
    lengths = [
        np.mean([block_length(autoregressive(2000, s, rho)) for s in range(5)]) for rho in (0, 0.6, 0.9)
    ]
    assert 1 <= lengths[0] < 6 < lengths[1] < lengths[2] < 200


def test_the_pair_shares_its_blocks():
    """What both share cancels: the interval of the difference is that of the small part alone."""
    shared, own = autoregressive(1000, 0), 1e-6 * np.random.default_rng(1).standard_normal(1000)
    found = paired_interval(shared + own, shared)
    alone = interval(own)
    assert found.low == pytest.approx(alone.low, rel=1e-6) and found.high == pytest.approx(
        alone.high, rel=1e-6
    )
    far = paired_interval(shared + own + 2e-6, shared)
    assert 0.0 not in far and far.low > 1e-6


def test_any_statistic_of_the_pair():
    one, other = autoregressive(500, 0), autoregressive(500, 1)
    found = paired_interval(one, other, lambda a, b: bar_sharpe(a) - bar_sharpe(b))
    assert found.low < bar_sharpe(one) - bar_sharpe(other) < found.high
    narrow = paired_interval(one, other, lambda a, b: bar_sharpe(a) - bar_sharpe(b), level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_the_seed_decides_the_draws():
    series = autoregressive(300, 0)
    assert interval(series, seed=3) == interval(series, seed=3) != interval(series, seed=4)


def test_statistics_are_those_of_the_table():
    series = autoregressive(300, 0)
    assert bar_sharpe(series) == pytest.approx(metrics.sharpe(series[:, None])[0], rel=1e-12)
    assert total_return(series) == pytest.approx(metrics.total_return(series[:, None])[0], rel=1e-12)
    assert math.isnan(bar_sharpe(series[:1])) and math.isnan(bar_sharpe(np.zeros(5)))


@pytest.mark.parametrize(
    ("returns", "reason"),
    [
        ([], "0 bars"),
        ([0.1], "1 bar: at least 2"),
        ([0.1, -0.1], "2 bars: at least 10"),
        ([0.01] * 50, "all returns are equal"),
        ([0.1, float("inf")] * 20, "not finite"),
    ],
)
def test_without_an_interval_there_is_a_reason(returns, reason):
    series = np.array(returns)
    for found in (interval(series), paired_interval(2 * series + 0.01, series + 0.01)):
        assert reason in found.reason and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(block_length(series))


def test_a_statistic_that_is_mostly_undefined_has_no_interval():
    one_bar = np.zeros(40)
    one_bar[7] = 0.01  # left out of a third of the draws: no risk there
    found = interval(one_bar, bar_sharpe)
    assert math.isnan(found.low) and "undefined in" in found.reason


def test_the_same_series_twice_differ_by_nothing():
    series = autoregressive(100, 0)
    found = paired_interval(series, series.copy())
    assert (found.low, found.high, found.reason) == (0, 0, "")


def test_unsuitable_arguments_are_one_error():
    series = autoregressive(50, 0)
    with pytest.raises(HpcrlError, match="series of 50 and 49 bars"):
        paired_interval(series, series[1:])
    with pytest.raises(HpcrlError, match=r"level = 95"):
        interval(series, level=95)
    with pytest.raises(HpcrlError, match="draws = 0"):
        interval(series, draws=0)
