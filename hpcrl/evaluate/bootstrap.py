"""Intervals of what a series of returns shows, by the stationary block bootstrap (arch).

Bars are drawn in blocks of random length around a mean that is the best for the mean of the series (Politis
and White 2004, by arch), so that what hangs together in time stays together. Intervals are percentiles of
the draws. The same seed draws the same blocks. Knows no torch.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcrl.evaluate import metrics
from hpcrl.evaluate.statistics import NAN, undefined
from hpcrl.types import HpcrlError

DRAWS = 1000
FEWEST_BARS = 10
"""Of a shorter series no blocks are drawn (a guess: arch needs 5 or more)."""
USABLE = 0.95
"""Share of draws in which the statistic must be defined."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    block: float
    """Mean length of a block, in bars."""
    reason: str = ""
    """Why the figures are NaN; else empty."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@functools.cache
def _arch() -> Any:
    return importlib.import_module("arch.bootstrap")  # takes a second or two


def block_length(return_T: np.ndarray) -> float:
    """Mean length of a block, at least 1 bar; NaN for a series that cannot be drawn from."""
    return_T = np.asarray(return_T, dtype=np.float64)
    if _unsuitable(return_T):
        return NAN
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = float(_arch().optimal_block_length(return_T)["stationary"].iloc[0])
    return max(1.0, found) if np.isfinite(found) else 1.0


def interval(
    return_T: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Of ``statistic`` of one series [T]. NaN with a reason: too few bars, no variation, too often undefined.

    HpcrlError: a level or a number of draws that gives no interval.
    """
    return_T = np.asarray(return_T, dtype=np.float64)
    _check(level, draws)
    reason = _unsuitable(return_T)
    if reason:
        return Interval(NAN, NAN, NAN, reason)
    block = block_length(return_T)
    return percentiles(resample((return_T,), statistic, block, draws, seed)[:, 0], block, level)


def mean_difference(one_T: np.ndarray, other_T: np.ndarray) -> float:
    return float(one_T.mean() - other_T.mean())


def paired_interval(
    one_T: np.ndarray,
    other_T: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], float] = mean_difference,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Of ``statistic`` of two series [T] of the same bars: both are drawn in the same blocks.

    The block's length is that of the bars' differences. Two series that do not differ have the interval 0
    to 0 of any difference. HpcrlError: series of different lengths.
    """
    one_T, other_T = (np.asarray(each_T, dtype=np.float64) for each_T in (one_T, other_T))
    _check(level, draws)
    if one_T.shape != other_T.shape:
        raise HpcrlError(
            f"series of {len(one_T)} and {len(other_T)} bars cannot be paired: give both the same bars"
        )
    if len(one_T) >= FEWEST_BARS and np.isfinite(one_T).all() and (one_T == other_T).all():
        return Interval(0.0, 0.0, 1.0)
    with np.errstate(invalid="ignore"):
        reason = _unsuitable(one_T - other_T)
    if reason:
        return Interval(NAN, NAN, NAN, reason)
    block = block_length(one_T - other_T)
    return percentiles(resample((one_T, other_T), statistic, block, draws, seed)[:, 0], block, level)


def resample(
    series: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    block: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """[draws, P]: the statistic's P numbers of every draw of the series, which share their blocks."""
    return np.array([np.atleast_1d(statistic(*drawn)) for drawn in _drawn(series, block, draws, seed)])


def _drawn(
    series: tuple[np.ndarray, ...], block: float, draws: int, seed: int
) -> Iterator[tuple[np.ndarray, ...]]:
    library = _arch().StationaryBootstrap(block, *series, seed=np.random.default_rng(seed))
    for positional, _ in library.bootstrap(draws):
        yield positional


def percentiles(value_K: np.ndarray, block: float, level: float = 0.95) -> Interval:
    """The middle ``level`` of K draws; NaN with a reason where too many of them are undefined."""
    known_K = value_K[np.isfinite(value_K)]
    if len(known_K) < USABLE * len(value_K):
        return Interval(
            NAN, NAN, block, f"undefined in {len(value_K) - len(known_K)} of {len(value_K)} draws"
        )
    low, high = np.percentile(known_K, (50 * (1 - level), 50 * (1 + level)))
    return Interval(float(low), float(high), block)


def _unsuitable(return_T: np.ndarray) -> str:
    if 2 <= len(return_T) < FEWEST_BARS:
        return f"{len(return_T)} bars: at least {FEWEST_BARS} are needed"
    return undefined(return_T)


def _check(level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise HpcrlError(f"level = {level}: an interval holds a share between 0 and 1, such as 0.95")
    if draws < 1:
        raise HpcrlError(f"draws = {draws}: an interval needs at least 1 draw, 1000 are usual")


def total_return(return_T: np.ndarray) -> float:
    """Of one series [T]; the statistic that a reader knows."""
    return float(np.prod(1.0 + return_T) - 1.0)


def bar_sharpe(return_T: np.ndarray) -> float:
    """Of one series [T], as ``metrics.sharpe`` without its cost per call; NaN without risk."""
    deviation = float(return_T.std(ddof=1)) if len(return_T) > 1 else 0.0
    return float(return_T.mean()) / deviation if deviation > metrics.NOISE * 1e-3 else NAN
