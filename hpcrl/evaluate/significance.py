"""What the agent's result may be worth: intervals, and probabilities against luck, with reasons where none.

Bars of the total account after costs. Intervals are 95 % and of redrawn blocks of bars (``bootstrap``),
widened as those of a comparison (``difference``): what the same agent might have shown on other bars of the
same kind. They know nothing of a regime that the range
does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcrl.evaluate.bootstrap import (
    DRAWS,
    Interval,
    bar_sharpe,
    block_length,
    interval,
    paired_interval,
    percentiles,
    resample,
    total_return,
)
from hpcrl.evaluate.difference import return_interval, widened, widened_growth, widened_return, widening
from hpcrl.evaluate.metrics import simple_returns
from hpcrl.evaluate.statistics import (
    deflated_sharpe,
    expected_maximum_sharpe,
    minimum_track_record,
    moments,
    probabilistic_sharpe,
)
from hpcrl.evaluate.track import Track, total
from hpcrl.evaluate.trials import Trials

BAND_POINTS = 500
"""At which the band of equity is worked out; between them it is drawn straight."""
FEWEST_DRAWS = 200
CELLS = 200_000_000
"""Bars x accounts x draws of the intervals of single symbols: a quarter of a minute (measured)."""


@dataclass(frozen=True, eq=False)
class Significance:
    meta: dict[str, Any]
    """For ``meta["statistics"]``; figures are NaN where ``reasons`` says why."""
    band: tuple[np.ndarray, np.ndarray] | None
    """95 % of redrawn equity / start, [T + 1] each; None where nothing can be redrawn."""


def assess(agent: Track, hold: Track, trials: Trials, *, draws: int = DRAWS, seed: int = 0) -> Significance:
    """Of the total accounts of two tracks over the same bars. ``trials``: the agent was chosen from them."""
    agent_T, hold_T = (simple_returns(total(track).equity_TN)[:, 0] for track in (agent, hold))
    found = moments(agent_T)
    shape = (found.skew, found.kurtosis)
    redrawn, sharpes, band = _redraw(agent_T, draws, seed)
    difference = _paired(agent_T, hold_T, draws, seed)
    intervals = {"total_return": redrawn, "bar_sharpe": sharpes, "difference_to_buy_and_hold": difference}
    record = minimum_track_record(found.sharpe, *shape)
    meta = {
        "intervals": {name: [one.low, one.high] for name, one in intervals.items()},
        "level": 0.95,
        "draws": draws,
        "block_length": redrawn.block,
        "difference_to_buy_and_hold": _difference(agent_T, hold_T),
        "bar_sharpe": found.sharpe,
        "skew": found.skew,
        "kurtosis": found.kurtosis,
        "bars": found.n,
        "psr": probabilistic_sharpe(found.sharpe, found.n, *shape),
        "dsr": deflated_sharpe(found.sharpe, found.n, *shape, trials.variance, trials.count),
        "sr0": expected_maximum_sharpe(trials.variance, trials.count),
        "trials": trials.count,
        "trials_variance": trials.variance,
        "trials_source": trials.source,
        "min_track_record_bars": record,
    }
    reasons = {f"intervals.{name}": one.reason for name, one in intervals.items()}
    reasons["psr"] = found.reason
    reasons["dsr"] = found.reason or trials.reason
    if np.isnan(record):
        reasons["min_track_record_bars"] = (
            found.reason or "no length would do: the Sharpe ratio is not above 0"
        )
    meta["reasons"] = {name: reason for name, reason in reasons.items() if reason}
    return Significance(meta, band)


def _difference(agent_T: np.ndarray, hold_T: np.ndarray) -> float:
    return total_return(agent_T) - total_return(hold_T)


def _paired(agent_T: np.ndarray, hold_T: np.ndarray, draws: int, seed: int) -> Interval:
    """Of the difference of the total returns."""
    narrow = paired_interval(agent_T, hold_T, _difference, draws=draws, seed=seed)
    if narrow.reason:
        return narrow
    return widened(narrow, _difference(agent_T, hold_T), widening(agent_T - hold_T, narrow.block))


def _redraw(
    return_T: np.ndarray, draws: int, seed: int
) -> tuple[Interval, Interval, tuple[np.ndarray, np.ndarray] | None]:
    """(interval of the total return, of the Sharpe ratio per bar, band of equity), all of the same draws."""
    block = block_length(return_T)
    if np.isnan(block):
        none = interval(return_T, draws=1)
        return none, none, None
    steps = len(return_T)
    at = np.unique(np.linspace(0, steps, min(BAND_POINTS, steps) + 1).round().astype(int))[1:]

    def path_and_sharpe(drawn_T: np.ndarray) -> np.ndarray:
        return np.append(np.cumprod(1.0 + drawn_T)[at - 1], bar_sharpe(drawn_T))

    found_KP = resample((return_T,), path_and_sharpe, block, draws, seed)
    factor, growth_P = widening(return_T, block), np.cumprod(1.0 + return_T)[at - 1]
    low, high = widened_growth(np.percentile(found_KP[:, :-1], (2.5, 97.5), axis=0), growth_P, factor)
    every, knots = np.arange(steps + 1), np.concatenate([[0], at])
    band = tuple(np.interp(every, knots, np.concatenate([[1.0], edge])) for edge in (low, high))
    returns = widened_return(percentiles(found_KP[:, -2] - 1.0, block), return_T, factor)
    sharpes = widened(percentiles(found_KP[:, -1], block), bar_sharpe(return_T), factor)
    return returns, sharpes, band  # type: ignore[return-value]


def return_intervals(
    track: Track, first_N: np.ndarray, last_N: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> list[Interval]:
    """Of each account's total return over its own steps [first, last). Fewer draws where bars are many."""
    bars = int((last_N - first_N).sum())
    draws = min(draws, max(FEWEST_DRAWS, CELLS // max(bars, 1)))
    found = []
    for account, (first, last) in enumerate(zip(first_N, last_N, strict=True)):
        own = track.take([account], int(first), int(last))
        found.append(return_interval(simple_returns(own.equity_TN)[:, 0], draws=draws, seed=seed))
    return found
