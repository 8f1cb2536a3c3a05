"""Whether two policies differ: their returns on the same bars, redrawn in common blocks.

The percentiles of the stationary bootstrap are too narrow where returns hang together in time: blocks cut
what hangs together, and few blocks tell their own spread badly. Simulated on 1,000 bars of AR(1) returns,
a 95 % interval holds the truth in 94, 93, 91 and 88 of 100 cases for a coefficient of 0, 0.3, 0.6 and 0.9. So
it is widened around the estimate, by two factors that both go to 1 with the number of bars:

- what the blocks cut off is, to first order, 1 / their length: the variance of the mean is taken as twice
  that of blocks of length b less that of b / 2 (Politis and Romano 1995), never less than the former;
- of n / b blocks, Student's t with n / b - 1 degrees of freedom in place of the normal distribution.

With both: 96, 95, 95 and 92 (simulated, 1,000 cases each, standard error 0.7). What one policy shows is
widened the same way. Knows no torch.
T bars' returns, K seeds of one configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from hpcrl.evaluate.bootstrap import (
    DRAWS,
    Interval,
    bar_sharpe,
    interval,
    paired_interval,
    percentiles,
    resample,
    total_return,
)

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Difference:
    """One minus the other, per bar."""

    mean: float
    mean_interval: Interval
    bar_sharpe: float
    sharpe_interval: Interval

    @property
    def shown(self) -> bool:
        """Whether the interval of the mean leaves out 0."""
        return bool(np.isfinite(self.mean_interval.low)) and 0.0 not in self.mean_interval


def difference(one_TK: np.ndarray, other_TK: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Of two policies' returns on the same bars: [T], or [T, K] of the seeds of each.

    Means and Sharpe ratios are means over the seeds. NaN with a reason in the interval: too few bars.
    HpcrlError: other numbers of bars.
    """
    one_TK, other_TK = (each if each.ndim == 2 else each[:, None] for each in (one_TK, other_TK))
    one_T, other_T = one_TK.mean(1), other_TK.mean(1)
    narrow = paired_interval(one_T, other_T, level=LEVEL, draws=draws, seed=seed)
    mean = float(one_T.mean() - other_T.mean()) if len(one_T) else float("nan")
    sharpe = _sharpes(one_TK, other_TK)
    if narrow.reason or (one_TK.shape == other_TK.shape and (one_TK == other_TK).all()):
        return Difference(mean, narrow, sharpe, narrow)
    factor = widening(one_T - other_T, narrow.block)
    drawn = resample((one_TK, other_TK), _sharpes, narrow.block, draws, seed)[:, 0]
    by_sharpe = percentiles(drawn, narrow.block, LEVEL)
    return Difference(mean, widened(narrow, mean, factor), sharpe, widened(by_sharpe, sharpe, factor))


def _sharpes(one_TK: np.ndarray, other_TK: np.ndarray) -> float:
    one, other = (np.mean([bar_sharpe(each_T) for each_T in each_TK.T]) for each_TK in (one_TK, other_TK))
    return float(one - other)


def return_interval(return_T: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Of one series' total return."""
    narrow = interval(return_T, total_return, level=LEVEL, draws=draws, seed=seed)
    return narrow if narrow.reason else widened_return(narrow, return_T, widening(return_T, narrow.block))


def sharpe_interval(return_T: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Of one series' Sharpe ratio per bar."""
    narrow = interval(return_T, bar_sharpe, level=LEVEL, draws=draws, seed=seed)
    if narrow.reason:
        return narrow
    return widened(narrow, bar_sharpe(return_T), widening(return_T, narrow.block))


def widened(narrow: Interval, centre: float, factor: float) -> Interval:
    low, high = (centre + factor * (edge - centre) for edge in (narrow.low, narrow.high))
    return Interval(low, high, narrow.block, narrow.reason)


def widened_return(narrow: Interval, return_T: np.ndarray, factor: float) -> Interval:
    """As ``widened``, of a total return: by its growth, so that it loses no more than all."""
    edges = np.array([narrow.low, narrow.high]) + 1.0
    low, high = widened_growth(edges, np.asarray(total_return(return_T) + 1.0), factor) - 1.0
    return Interval(float(low), float(high), narrow.block, narrow.reason)


def widened_growth(edge: np.ndarray, centre: np.ndarray, factor: float) -> np.ndarray:
    """Edges of equity / start, widened around ``centre`` on the scale of logarithms: sums of the bars, never
    below 0. As they are where the centre is ruin."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wide = np.exp(np.log(centre) + factor * (np.log(edge) - np.log(centre)))
    return np.where(np.isfinite(wide), wide, edge)


def widening(value_T: np.ndarray, block: float) -> float:
    """By how much percentiles of this series' mean, drawn in such blocks, are too narrow; at least 1."""
    own, half = (mean_variance(value_T, length) for length in (block, max(block / 2, 1.0)))
    if not own > 0:
        return 1.0
    quantile = 0.5 + LEVEL / 2
    few = stats.t.ppf(quantile, max(len(value_T) / block - 1, 1.0)) / stats.norm.ppf(quantile)
    return float(np.sqrt(max(2 * own - half, own) / own) * few)


def mean_variance(value_T: np.ndarray, block: float) -> float:
    """n x the variance of the mean over all draws of the stationary bootstrap (Politis and Romano 1994).

    The autocovariances are circular, as the bootstrap's series is.
    """
    n = len(value_T)
    spectrum = np.fft.rfft(value_T - value_T.mean())
    covariance_T = np.fft.irfft(spectrum * np.conj(spectrum), n) / n
    lag, stay = np.arange(1, n), 1 - 1 / block
    weight = (1 - lag / n) * stay**lag + lag / n * stay ** (n - lag)
    return float(covariance_T[0] + (weight * covariance_T[1:]).sum())
