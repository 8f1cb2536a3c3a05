"""Probability of backtest overfitting by combinatorially symmetric cross-validation (CSCV).

Bailey, Borwein, Lopez de Prado, Zhu (2017), "The probability of backtest overfitting", Journal of
Computational Finance 20(4). The rows are cut into an even number S of blocks; each choice of S/2 of them is
in sample once, the rest out of sample. The trial that is best in sample has the rank r of N out of sample
(1: worst), w = r / (N + 1), and the logit ln(w / (1 - w)). The probability is the share of choices whose
logit is at most 0: what was best did no better than the median of all. 0.5 is what pure noise gives, on
average: of one data set it scatters with a standard deviation of 0.2.

Knows no torch. T rows in time (bars, or validation windows), N trials, S blocks, C choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hpcrl.pbt.history import Past, read_past
from hpcrl.pbt.population import Population
from hpcrl.types import HpcrlError

BLOCKS = 16
"""As in the paper's examples: 12,870 choices."""
CELLS = 4_000_000
"""Choices x trials that are looked at at once: about 100 MB."""
TINY = 1e-12
"""Deviations below this share of the largest one are rounding."""

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(rows [C, 1], mean [C, N], deviation of ddof 1 [C, N]) -> what is ranked, [C, N]; higher is better."""


def sharpe(rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Mean / deviation. A trial without any spread (one that never trades) is divided by next to nothing, so
    that it is 0 where it earns nothing, and has its place in the order elsewhere."""
    return mean / np.maximum(deviation, max(TINY * float(deviation.max(initial=0.0)), 1e-300))


def average(rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return mean


@dataclass(frozen=True, eq=False)
class Overfitting:
    probability: float
    """NaN where ``reason`` says why."""
    logit_C: np.ndarray
    trials: int
    rows: int
    blocks: int
    reason: str = ""

    def to_json(self) -> dict[str, float | int | str | None]:
        known = math.isfinite(self.probability)
        return {
            "probability": self.probability if known else None,
            "trials": self.trials,
            "rows": self.rows,
            "blocks": self.blocks,
            "choices": len(self.logit_C),
            "reason": self.reason,
        }


def cscv(performance_TN: np.ndarray, blocks: int = BLOCKS, statistic: Statistic = sharpe) -> Overfitting:
    """CSCV over trials side by side. Blocks are as long as each other, or one row longer where T is no
    multiple of them. Ties share their mean rank; the first of equals counts as the best in sample.

    HpcrlError: no table of finite numbers, an odd number of blocks, fewer rows than 2 in half of them, one
    trial. NaN with a reason: trials that cannot be told apart.
    """
    value_TN = np.asarray(performance_TN, dtype=np.float64)
    _check(value_TN, blocks)
    rows, trials = value_TN.shape
    if not np.ptp(value_TN, axis=1).any():
        return Overfitting(math.nan, np.empty(0), trials, rows, blocks, "all trials are the same")
    # Around each trial's own mean: the sums of squares then lose no digits.
    centre_N = value_TN.mean(0)
    parts = np.array_split(value_TN - centre_N, blocks)
    count_S = np.array([len(part) for part in parts], dtype=np.float64)
    sum_SN = np.stack([part.sum(0) for part in parts])
    square_SN = np.stack([(part * part).sum(0) for part in parts])
    chosen_CS = np.zeros((math.comb(blocks, blocks // 2), blocks))
    for row, chosen in enumerate(combinations(range(blocks), blocks // 2)):
        chosen_CS[row, list(chosen)] = 1.0

    def worth(half_CS: np.ndarray) -> np.ndarray:
        n = (half_CS @ count_S)[:, None]
        shifted = half_CS @ sum_SN / n
        variance = np.maximum(half_CS @ square_SN - n * shifted**2, 0.0) / (n - 1)
        return statistic(n, shifted + centre_N, np.sqrt(variance))

    step = max(1, CELLS // trials)
    logits = [
        _logits(worth(chosen), worth(1.0 - chosen))
        for chosen in (chosen_CS[at : at + step] for at in range(0, len(chosen_CS), step))
    ]
    logit_C = np.concatenate(logits)
    return Overfitting(float((logit_C <= 0).mean()), logit_C, trials, rows, blocks)


def _check(value_TN: np.ndarray, blocks: int) -> None:
    if value_TN.ndim != 2:
        raise HpcrlError(f"CSCV needs a table of rows x trials; this has {value_TN.ndim} axes")
    rows, trials = value_TN.shape
    if trials < 2:
        raise HpcrlError(f"CSCV compares trials: {trials} is too few, 2 are the least")
    if blocks < 2 or blocks % 2 or blocks > 20:
        raise HpcrlError(f"blocks = {blocks}: CSCV halves an even number of blocks, 2 to 20")
    if rows < max(blocks, 4):
        raise HpcrlError(f"{rows} rows make no {blocks} blocks; at least {max(blocks, 4)} are needed")
    if not np.isfinite(value_TN).all():
        raise HpcrlError("CSCV needs finite numbers; the table holds NaN or infinity")


def _logits(inside_CN: np.ndarray, outside_CN: np.ndarray) -> np.ndarray:
    """Of the best in sample its place out of sample, [C]."""
    best_C = inside_CN.argmax(1)
    own_C1 = np.take_along_axis(outside_CN, best_C[:, None], axis=1)
    trials = outside_CN.shape[1]
    rank_C = (outside_CN < own_C1).sum(1) + ((outside_CN == own_C1).sum(1) + 1) / 2
    return np.log(rank_C / (trials + 1 - rank_C))


def blocks_for(rows: int) -> int:
    """As many blocks as the paper's, or fewer where blocks would hold less than two rows."""
    return max(2, min(BLOCKS, rows // 2 // 2 * 2))


def window_table(past: tuple[Past, ...]) -> np.ndarray:
    """Scores by validation window and trial, [W, N]; a trial is a generation of a member."""
    scores = [turn.record.scores for each in past for turn in each.turns]
    return np.array(scores, dtype=np.float64).T if scores else np.empty((0, 0))


def population_overfitting(population: Population, past: tuple[Past, ...] | None = None) -> Overfitting:
    """Over every generation of every member that was scored, ranked as the population ranks: by the mean of
    the windows' scores. NaN with a reason where there is too little."""
    past = read_past(population) if past is None else past
    table_WN = window_table(past)
    windows, trials = population.windows, table_WN.shape[1]
    if trials < 2 or windows < 4:
        why = f"{trials} trials on {windows} validation windows are too few"
        return Overfitting(math.nan, np.empty(0), trials, windows, 0, why)
    return cscv(table_WN, blocks_for(windows), average)
