import subprocess
import sys

import numpy as np
import pytest

from hpcrl.market import rolling
from hpcrl.market.rolling import window_moments, window_sum

WINDOWS = (2, 3, 12, 20, 63, 64, 78)


def series(rows=400, seed=0):
    return np.random.default_rng(seed).lognormal(5, 2, rows)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_has_numpys_sum_mean_and_deviation(window):
    value = series()
    mean, std = window_moments(value, window)
    total = window_sum(value, window)
    assert np.isnan([mean[: window - 1], std[: window - 1], total[: window - 1]]).all()
    own = np.lib.stride_tricks.sliding_window_view(value, window)
    assert mean[window - 1 :] == pytest.approx(own.mean(1), rel=1e-14)
    assert total[window - 1 :] == pytest.approx(own.sum(1), rel=1e-14)
    assert std[window - 1 :] == pytest.approx(own.std(1, ddof=1), rel=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_value_hangs_on_its_window_alone_bit_for_bit(window, monkeypatch):
    value = series()
    whole = np.stack([*window_moments(value, window), window_sum(value, window)])
    short = np.stack([*window_moments(value[150:], window), window_sum(value[150:], window)])
    assert whole[:, 150 + window - 1 :].tobytes() == short[:, window - 1 :].tobytes()
    monkeypatch.setattr(rolling, "CHUNK", 7)
    again = np.stack([*window_moments(value, window), window_sum(value, window)])
    assert again.tobytes() == whole.tobytes()


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 5e-9, 123456789.123])
def test_a_constant_spell_has_no_deviation_at_all(constant):
    value = series()
    value[100:300] = constant
    for window in WINDOWS:
        mean, std = window_moments(value, window)
        dead = slice(100 + window - 1, 300)
        assert (mean[dead] == constant).all() and (std[dead] == 0).all()
        assert (std[300:] > 0).all()


def test_a_small_deviation_upon_a_large_mean_is_kept():
    value = 1e6 + 1e-3 * np.random.default_rng(1).standard_normal(200)
    own = np.lib.stride_tricks.sliding_window_view(value - 1e6, 78)
    assert window_moments(value, 78)[1][77:] == pytest.approx(own.std(1, ddof=1), rel=1e-7)


def test_unknown_values_reach_as_far_as_their_windows():
    value = series(60)
    value[30] = np.nan
    mean, std = window_moments(value, 12)
    unknown = np.flatnonzero(np.isnan(mean)).tolist()
    assert unknown == [*range(11), *range(30, 42)]
    assert np.isnan(std[unknown]).all() and np.isnan(window_sum(value, 12)[unknown]).all()


def test_fewer_rows_than_the_window_are_all_unknown():
    assert np.isnan(window_moments(series(5), 12)).all() and np.isnan(window_sum(series(5), 12)).all()
    assert len(window_sum(np.empty(0), 3)) == 0


def test_features_and_indicators_need_neither_pandas_nor_torch():
    """TA-Lib itself imports pandas where it finds it, so here nobody can."""
    code = (
        "import sys\n"
        "for name in ('pandas', 'torch', 'scipy', 'pydantic'): sys.modules[name] = None\n"
        "import hpcrl.market.features, hpcrl.market.indicators, hpcrl.market.grid, hpcrl.market.sigma\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
