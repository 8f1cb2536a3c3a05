"""Whether a Sharpe ratio could be luck: one pure function per figure, NaN where a figure is undefined.

A Sharpe ratio here is per bar: mean / deviation (ddof 1) of simple returns, never annualised. Skew g3 and
kurtosis g4 (not excess: 3 for a normal distribution) are moments (ddof 0). Knows no torch.

Bailey and Lopez de Prado: The Sharpe ratio efficient frontier (2012), The deflated Sharpe ratio (2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from hpcrl.evaluate import metrics

NAN = float("nan")
SIGNIFICANT = 0.95
"""A result counts where PSR(0) is above this: 5 % of results without any skill are."""


@dataclass(frozen=True)
class Moments:
    """Of the returns of n bars."""

    sharpe: float
    skew: float
    kurtosis: float
    n: int
    reason: str = ""
    """Why the figures are NaN; else empty."""


def moments(return_T: np.ndarray) -> Moments:
    """Of one series [T]. NaN with a reason: fewer than two returns, one that is not finite, no risk."""
    return_T = np.asarray(return_T, dtype=np.float64)
    n = len(return_T)
    reason = undefined(return_T)
    if reason:
        return Moments(NAN, NAN, NAN, n, reason)
    sharpe = float(metrics.sharpe(return_T[:, None])[0])
    centred_T = return_T - return_T.mean()  # the library warns of lost digits otherwise
    skew, kurtosis = stats.skew(centred_T), stats.kurtosis(centred_T, fisher=False)
    return Moments(sharpe, float(skew), float(kurtosis), n)


def by_column(return_TN: np.ndarray) -> dict[str, np.ndarray]:
    """PSR(0) and the minimum track record, in bars, of every column, each [N]."""
    n_bars, columns = return_TN.shape
    found = {name: np.full(columns, NAN) for name in ("psr", "min_track_record")}
    if n_bars < 2:
        return found
    usable = np.flatnonzero(np.isfinite(return_TN).all(0) & ~metrics.without_risk(return_TN))
    chosen_TN = return_TN[:, usable]
    sharpe_N = metrics.sharpe(chosen_TN)
    centred_TN = chosen_TN - chosen_TN.mean(0)
    skew_N, kurtosis_N = stats.skew(centred_TN), stats.kurtosis(centred_TN, fisher=False)
    for column, sharpe, skew, kurtosis in zip(usable, sharpe_N, skew_N, kurtosis_N, strict=True):
        found["psr"][column] = probabilistic_sharpe(sharpe, n_bars, skew, kurtosis)
        found["min_track_record"][column] = minimum_track_record(sharpe, skew, kurtosis)
    return found


def undefined(return_T: np.ndarray) -> str:
    """Why a series has no Sharpe ratio; "" where it has one."""
    if len(return_T) < 2:
        return f"{len(return_T)} bar{'s' * (len(return_T) != 1)}: at least 2 are needed"
    if not np.isfinite(return_T).all():
        return "a return is not finite"
    if metrics.without_risk(return_T[:, None])[0]:
        return "equity never moves" if abs(return_T.mean()) <= metrics.NOISE else "all returns are equal"
    return ""


def probabilistic_sharpe(sharpe: float, n: int, skew: float, kurtosis: float, against: float = 0.0) -> float:
    """PSR(SR*): the probability that the true Sharpe ratio is above ``against``.

    Phi((SR - SR*) sqrt(n - 1) / sqrt(1 - g3 SR + (g4 - 1)/4 SR^2)); NaN for n < 2 or without a variance.
    """
    variance = _variance(sharpe, skew, kurtosis)
    if n < 2 or not variance > 0 or not math.isfinite(sharpe - against):
        return NAN
    return float(special.ndtr((sharpe - against) * math.sqrt((n - 1) / variance)))


def minimum_track_record(
    sharpe: float, skew: float, kurtosis: float, against: float = 0.0, confidence: float = 0.95
) -> float:
    """Bars from which on PSR(``against``) would reach ``confidence``; NaN where SR <= ``against``."""
    variance = _variance(sharpe, skew, kurtosis)
    if not sharpe > against or not variance > 0 or not 0.5 < confidence < 1:
        return NAN
    gap = float(special.ndtri(confidence)) / (sharpe - against)
    bars = 1 + variance * gap * gap
    return bars if math.isfinite(bars) else NAN


def expected_maximum_sharpe(variance: float, trials: int) -> float:
    """SR0: the best Sharpe ratio to be expected of N skill-less trials whose ratios have this variance.

    sqrt(V) ((1 - g) z(1 - 1/N) + g z(1 - 1/(N e))), g of Euler; 0 for one trial, NaN for V unknown.
    """
    if trials < 1:
        return NAN
    if trials == 1:
        return 0.0
    if not variance >= 0 or not math.isfinite(variance):
        return NAN
    # z(1 - p) = -z(p), which stays exact where N is so large that 1 - 1/N would round to 1.
    first, second = -special.ndtri(1 / trials), -special.ndtri(1 / (trials * math.e))
    return math.sqrt(variance) * float((1 - np.euler_gamma) * first + np.euler_gamma * second)


def deflated_sharpe(
    sharpe: float, n: int, skew: float, kurtosis: float, variance: float, trials: int
) -> float:
    """PSR(SR0): the probability that the ratio is above what the luckiest of ``trials`` would show."""
    return probabilistic_sharpe(sharpe, n, skew, kurtosis, expected_maximum_sharpe(variance, trials))


def _variance(sharpe: float, skew: float, kurtosis: float) -> float:
    """Of the ratio, x (n - 1). 0 for two-valued returns at worst, as g4 >= 1 + g3^2."""
    return 1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe * sharpe
