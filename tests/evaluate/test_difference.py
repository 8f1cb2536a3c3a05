"""Differences of two return series: coverage, power, widening, seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpcrl.evaluate.bootstrap import paired_interval, resample
from hpcrl.evaluate.difference import difference, mean_variance, widening


def serial(rng: np.random.Generator, bars: int, deviation: float, phi: float = 0.3) -> np.ndarray:
    """AR(1) around 0, from its stationary distribution."""
    shock = rng.normal(0, deviation, bars)
    value = np.empty(bars)
    value[0] = shock[0] / math.sqrt(1 - phi * phi)
    for t in range(1, bars):
        value[t] = phi * value[t - 1] + shock[t]
    return value


def made_pair(seed: int, bars: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Equal means of 0; both carry a market twice as large as what is their own, all of it serial."""
    rng = np.random.default_rng(seed)
    market = serial(rng, bars, 1e-3)
    return market + serial(rng, bars, 5e-4), market + serial(rng, bars, 5e-4)


def coverage(bars: int, draws: int, planted: int) -> tuple[int, int]:
    """Where 0 is covered, of 200 pairs; where a planted difference is shown, of the first ``planted``."""
    covered = shown = 0
    for seed in range(200):
        one, other = made_pair(seed, bars)
        plain = difference(one, other, draws=draws, seed=seed)
        covered += not plain.shown
        if seed < planted:
            length = max(1, round(plain.mean_interval.block))
            blocks = (one - other)[: bars // length * length].reshape(-1, length).mean(1)
            shown += difference(one + blocks.std(ddof=1), other, draws=draws, seed=seed).shown
    return covered, shown


@pytest.mark.slow
def test_of_200_pairs_without_a_difference_the_intervals_of_180_to_198_cover_0(record_property):
    covered, shown = coverage(1000, 200, 20)
    record_property(
        "paired intervals of 200 equal pairs that cover 0; planted differences found", (covered, shown)
    )
    assert 180 <= covered <= 198
    assert shown == 20


@pytest.mark.soak
def test_the_same_with_the_draws_that_compare_makes(record_property):
    covered, shown = coverage(2000, 1000, 200)
    record_property("the same with 2,000 bars and 1,000 draws", (covered, shown))
    assert 180 <= covered <= 198
    assert shown == 200


def test_what_moves_both_cancels():
    """Unpaired, the market's noise would bury the difference."""
    rng = np.random.default_rng(0)
    market = rng.normal(0, 1e-2, 1500)
    one, other = market + rng.normal(2e-4, 1e-3, 1500), market + rng.normal(0, 1e-3, 1500)
    found = difference(one, other, draws=300)
    assert found.shown and found.mean_interval.low > 0
    assert found.mean == pytest.approx(one.mean() - other.mean())
    narrow = paired_interval(one, other, draws=300)
    factor = widening(one - other, narrow.block)
    assert found.mean_interval.low == pytest.approx(found.mean + factor * (narrow.low - found.mean))
    turned = difference(other, one, draws=300)
    assert turned.mean_interval.low == pytest.approx(-found.mean_interval.high)


def test_seeds_are_averaged_and_not_pooled():
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1e-3, (600, 3)), rng.normal(0, 1e-3, (600, 2))
    found = difference(one, other, draws=200)
    assert found.mean == pytest.approx(one.mean() - other.mean())
    sharpes = [np.mean(each.mean(0) / each.std(0, ddof=1)) for each in (one, other)]
    assert found.bar_sharpe == pytest.approx(sharpes[0] - sharpes[1])
    assert found.bar_sharpe in found.sharpe_interval


@pytest.mark.parametrize("bars", [1, 5])
def test_too_few_bars_give_no_interval_and_a_reason(bars):
    rng = np.random.default_rng(0)
    found = difference(rng.normal(size=bars), rng.normal(size=bars))
    assert not found.shown and math.isnan(found.mean_interval.low) and found.mean_interval.reason


def test_flat_against_flat_differs_by_nothing():
    found = difference(np.zeros(100), np.zeros(100))
    assert not found.shown and found.mean == found.mean_interval.low == found.mean_interval.high == 0


def test_the_variance_of_the_mean_is_that_of_the_librarys_draws():
    series = serial(np.random.default_rng(3), 300, 1.0, phi=0.6)
    for block in (1.0, 6.0, 40.0):
        drawn = resample((series,), np.mean, block, 4000, 1)[:, 0]
        assert mean_variance(series, block) / 300 == pytest.approx(drawn.var(), rel=0.1)
    assert mean_variance(series, 1.0) == pytest.approx(series.var())


def test_widening_fades_with_bars_and_grows_with_what_hangs_together():
    rng = np.random.default_rng(4)
    assert widening(rng.normal(size=5000), 1.0) == pytest.approx(1.0, abs=0.01)
    few, many = (widening(serial(rng, bars, 1.0, 0.8), 12.0) for bars in (200, 20_000))
    assert 1.02 < many < few < 1.5
    assert widening(np.zeros(50), 3.0) == 1.0
    assert widening(-serial(rng, 500, 1.0, -0.5), 5.0) >= 1.0
