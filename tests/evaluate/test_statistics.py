"""Luck or not: published numbers, edges of the formulas, and rules that have no skill, or a planted one."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from hpcrl.evaluate import metrics
from hpcrl.evaluate.statistics import (
    SIGNIFICANT,
    deflated_sharpe,
    expected_maximum_sharpe,
    minimum_track_record,
    moments,
    probabilistic_sharpe,
)
from hpcrl.market.planted import planted


def test_published_numbers():
    """Of the design; the deflated one is the example of Bailey and Lopez de Prado (2014)."""
    exactly = {"rel": 0, "abs": 1e-9}
    assert probabilistic_sharpe(0.05, 1000, -0.5, 5) == pytest.approx(0.9405084869793189, **exactly)
    assert minimum_track_record(0.05, -0.5, 5) == pytest.approx(1112.9783596332136, **exactly)
    variance, sharpe = 0.5 / 250, 2.5 / 250**0.5
    assert expected_maximum_sharpe(variance, 100) == pytest.approx(0.11317200186513214, **exactly)
    found = deflated_sharpe(sharpe, 1250, -3, 10, variance, 100)
    assert found == pytest.approx(0.9003968344493904, **exactly)


def test_the_track_record_is_where_the_probability_reaches_the_confidence():
    for against, confidence in ((0.0, 0.95), (0.01, 0.99), (-0.02, 0.9)):
        bars = minimum_track_record(0.05, -0.5, 5, against, confidence)
        found = probabilistic_sharpe(0.05, bars, -0.5, 5, against)
        assert found == pytest.approx(confidence, abs=1e-12)
    assert math.isnan(minimum_track_record(0.05, 0, 3, 0.05))
    assert math.isnan(minimum_track_record(-0.05, 0, 3))


def test_deflation_by_one_trial_is_none_and_grows_with_trials():
    assert deflated_sharpe(0.05, 1000, 0, 3, 0.1, 1) == probabilistic_sharpe(0.05, 1000, 0, 3)
    hurdles = [expected_maximum_sharpe(0.01, trials) for trials in (1, 2, 10, 1000, 10**9, 10**18)]
    assert hurdles == sorted(hurdles) and len(set(hurdles)) == 6 and hurdles[-1] < 1
    assert expected_maximum_sharpe(0.0, 50) == 0.0


@pytest.mark.parametrize("trials", [10, 100, 1000])
def test_the_expected_maximum_is_that_of_normal_draws(trials):
    drawn = 0.2 * np.random.default_rng(0).standard_normal((4000, trials))
    assert expected_maximum_sharpe(0.04, trials) == pytest.approx(drawn.max(1).mean(), rel=0.02)


def test_moments_are_those_of_the_libraries_and_do_not_depend_on_the_scale():
    from scipy import stats

    drawn = np.random.default_rng(0).gamma(2.0, 1.0, 500) - 1.8
    found = moments(drawn)
    assert found.sharpe == metrics.sharpe(drawn[:, None])[0] and found.n == 500
    assert found.sharpe == pytest.approx(drawn.mean() / drawn.std(ddof=1), rel=1e-12)
    assert found.skew == pytest.approx(stats.skew(drawn), rel=1e-12)
    assert found.kurtosis == pytest.approx(stats.kurtosis(drawn, fisher=False), rel=1e-12)
    small = moments(1e-6 * drawn)
    for name in ("sharpe", "skew", "kurtosis"):
        assert getattr(small, name) == pytest.approx(getattr(found, name), rel=1e-9)


@pytest.mark.parametrize(
    ("returns", "reason"),
    [
        ([], "0 bars: at least 2"),
        ([0.1], "1 bar: at least 2"),
        ([0.0] * 50, "equity never moves"),
        ([0.001] * 50, "all returns are equal"),
        ([0.1, float("nan")], "not finite"),
        ([0.1, float("inf")], "not finite"),
    ],
)
def test_what_is_undefined_is_nan_with_a_reason(returns, reason):
    found = moments(np.array(returns))
    assert reason in found.reason
    assert math.isnan(found.sharpe) and math.isnan(found.skew) and math.isnan(found.kurtosis)
    assert math.isnan(probabilistic_sharpe(found.sharpe, found.n, found.skew, found.kurtosis))
    assert math.isnan(minimum_track_record(found.sharpe, found.skew, found.kurtosis))
    assert math.isnan(deflated_sharpe(found.sharpe, found.n, found.skew, found.kurtosis, 0.1, 10))


def test_no_infinity_comes_out_of_edges():
    nan = float("nan")
    for sharpe in (0.0, 1e-300, 1e300, -1e300, nan, float("inf")):
        for skew, kurtosis in ((0, 3), (-50, 3000), (0, 1), (nan, nan)):
            for n in (0, 1, 2, 10**9):
                for variance, trials in ((0.1, 10), (nan, 2), (0.1, 0), (-1, 5), (float("inf"), 5)):
                    found = (
                        probabilistic_sharpe(sharpe, n, skew, kurtosis),
                        minimum_track_record(sharpe, skew, kurtosis),
                        deflated_sharpe(sharpe, n, skew, kurtosis, variance, trials),
                        expected_maximum_sharpe(variance, trials),
                    )
                    assert not any(map(math.isinf, found))
    assert math.isnan(probabilistic_sharpe(1.0, 100, 2.0, 1.0))  # no variance: no returns have these moments


def flagged(return_T: np.ndarray) -> bool:
    found = moments(return_T)
    return probabilistic_sharpe(found.sharpe, found.n, found.skew, found.kurtosis) > SIGNIFICANT


def average(value_T: np.ndarray, width: int) -> np.ndarray:
    """Of the last ``width`` values, from the width-th on."""
    return np.convolve(value_T, np.full(width, 1 / width), "valid")


def test_a_moving_average_cross_on_random_walks_is_hardly_ever_significant():
    """200 walks of 3,000 bars, 10/40, filled at the next bar: 5 % by chance are 10, 21 are 3.5 deviations."""
    count = 0
    for seed in range(200):
        price = 100 * np.exp(np.cumsum(1e-3 * np.random.default_rng(seed).standard_normal(3000)))
        long = average(price, 10)[30:] > average(price, 40)
        held = np.concatenate([np.zeros(39), long])[:-1]  # decided at the close before
        count += flagged(held * (price[1:] / price[:-1] - 1))
    assert 0 < count <= 21


@pytest.mark.parametrize("seeds", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_the_sign_rule_on_planted_bars_is_found_significant(seeds):
    """L2, 20,000 bars each, after its costs."""
    count = 0
    for seed in range(seeds):
        frame = planted("L2", 20_001, 1, seed)
        signal = frame["signal"].to_numpy()
        price = frame["close"].to_numpy()
        side = np.sign(signal)[:-1]
        costs = 1e-4 * np.abs(np.diff(side, prepend=0.0))
        count += flagged(side * (price[1:] / price[:-1] - 1) - costs)
    assert count >= 0.9 * seeds


def test_statistics_know_no_torch():
    program = (
        "import sys, hpcrl.evaluate.bootstrap, hpcrl.evaluate.statistics; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
