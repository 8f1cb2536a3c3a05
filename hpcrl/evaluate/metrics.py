"""One pure function per metric, over the columns of what accounts did. NaN where a metric is undefined.

Owns the definitions; the formulas of return, volatility, Sharpe, Sortino, Calmar, drawdown, tail ratio and
CVaR are empyrical's. Annual figures, tail ratio and CVaR come from session returns (x periods per year: 252
sessions, 365 where a market never closes), never from bars: a day's bars share its news. Suffixes: T steps,
N accounts, X sessions.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

NOISE = 1e-12
"""Deviations below this share of the mean (or below it in return) are float noise: no risk to divide by."""


@cache
def _empyrical() -> Any:
    with warnings.catch_warnings():  # it warns about optional data readers that are not needed here
        warnings.simplefilter("ignore")
        return importlib.import_module("empyrical")


def periods_per_year(calendar: str) -> int:
    """Sessions of a year by the calendar's name."""
    return 365 if calendar == "24/7" else 252


def simple_returns(equity_TN: np.ndarray) -> np.ndarray:
    """[T + 1, N] equity -> [T, N] returns; 0 after an account has come to 0."""
    before, after = equity_TN[:-1], equity_TN[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before > 0, after / before - 1.0, 0.0)


def session_equity(equity_TN: np.ndarray, session_T: np.ndarray) -> np.ndarray:
    """Equity at the start and at each session's last step, [X + 1, N]. ``session_T``: of each step's bar."""
    if not len(session_T):
        return equity_TN[:1]
    last_X = np.flatnonzero(np.diff(session_T, append=session_T[-1] + 1))
    return np.concatenate([equity_TN[:1], equity_TN[1:][last_X]])


def _finite(value_N: Any) -> np.ndarray:
    value_N = np.atleast_1d(np.asarray(value_N, dtype=np.float64))
    return np.where(np.isfinite(value_N), value_N, np.nan)


def _library(name: str, return_TN: np.ndarray, **options: Any) -> np.ndarray:
    """A function of empyrical for every column; infinities become NaN."""
    if not len(return_TN):
        return np.full(return_TN.shape[1:] or 1, np.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        function = getattr(_empyrical(), name)
        return _finite(function(np.array(return_TN), **options))


def without_risk(return_TN: np.ndarray) -> np.ndarray:
    """bool [N]: fewer than two returns, or all of them the same up to rounding."""
    if len(return_TN) < 2:
        return np.ones(return_TN.shape[1], dtype=bool)
    scale_N = np.maximum(np.abs(return_TN.mean(0)), 1e-3)
    return return_TN.std(0) <= NOISE * scale_N


def total_return(return_TN: np.ndarray) -> np.ndarray:
    return _library("cum_returns_final", return_TN)


def annual_return(return_XN: np.ndarray, periods: int) -> np.ndarray:
    return _library("annual_return", return_XN, annualization=periods)


def annual_volatility(return_XN: np.ndarray, periods: int) -> np.ndarray:
    """Deviation (ddof 1) x sqrt(periods); NaN for fewer than two returns."""
    if len(return_XN) < 2:
        return np.full(return_XN.shape[1], np.nan)
    return _library("annual_volatility", return_XN, annualization=periods)


def sharpe(return_TN: np.ndarray, periods: int = 1) -> np.ndarray:
    """mean / deviation (ddof 1) x sqrt(periods), against a rate of 0; NaN where there is no risk."""
    value_N = _library("sharpe_ratio", return_TN, annualization=periods)
    return np.where(without_risk(return_TN), np.nan, value_N)


def sortino(return_XN: np.ndarray, periods: int) -> np.ndarray:
    """NaN where no return is below 0."""
    value_N = _library("sortino_ratio", return_XN, annualization=periods)
    return np.where(without_risk(return_XN), np.nan, value_N)


def max_drawdown(return_TN: np.ndarray) -> np.ndarray:
    """Deepest fall below the highest equity so far, as a negative share of it."""
    return _library("max_drawdown", return_TN)


def calmar(return_XN: np.ndarray, periods: int) -> np.ndarray:
    """Annual return / depth of the deepest drawdown of the same returns; NaN without any drawdown."""
    return _by_column("calmar_ratio", return_XN, annualization=periods)


def tail_ratio(return_XN: np.ndarray) -> np.ndarray:
    """95th percentile over the 5th, both without sign; NaN where the 5th is 0, or without risk."""
    value_N = _by_column("tail_ratio", return_XN)
    if len(return_XN):
        value_N = np.where(np.abs(np.percentile(return_XN, 5, axis=0)) > NOISE, value_N, np.nan)
    return np.where(without_risk(return_XN), np.nan, value_N)


def cvar(return_XN: np.ndarray) -> np.ndarray:
    """Mean of the worst 5 % of the returns, at least of one; NaN without any."""
    return _by_column("conditional_value_at_risk", return_XN)


def _by_column(name: str, return_XN: np.ndarray, **options: Any) -> np.ndarray:
    """As ``_library``, for functions that take one column at a time."""
    columns = [_library(name, return_X, **options) for return_X in return_XN.T]
    return np.concatenate(columns) if columns else np.empty(0)


def hit_rate(return_TN: np.ndarray, exposed_TN: np.ndarray) -> np.ndarray:
    """Share of winning bars among those that were won or lost with a position; NaN without any."""
    won = ((return_TN > 0) & exposed_TN).sum(0)
    lost = ((return_TN < 0) & exposed_TN).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _finite(won / (won + lost))


def mean(value_TN: np.ndarray) -> np.ndarray:
    """Mean over the steps; NaN without any."""
    return value_TN.mean(0) if len(value_TN) else np.full(value_TN.shape[1], np.nan)


def sharpe_error(sessions: int, periods: int) -> float:
    """Standard error of an annualised Sharpe ratio near 0: sqrt(periods / sessions) (Lo 2002)."""
    return float(np.sqrt(periods / sessions)) if sessions > 0 else float("nan")


PERFORMANCE: dict[str, Callable[..., np.ndarray]] = {
    "annual_return": annual_return,
    "annual_volatility": annual_volatility,
    "sharpe": sharpe,
    "sortino": sortino,
    "calmar": calmar,
}
"""Metrics of session returns that take the periods of a year."""


def performance(equity_TN: np.ndarray, session_T: np.ndarray, periods: int) -> dict[str, np.ndarray]:
    """Every metric that equity alone decides, each [N]. ``equity_TN`` is [T + 1, N] with the start first."""
    bar_TN = simple_returns(equity_TN)
    session_XN = simple_returns(session_equity(equity_TN, session_T))
    found = {"total_return": total_return(bar_TN)}
    found |= {name: metric(session_XN, periods) for name, metric in PERFORMANCE.items()}
    found |= {"tail_ratio": tail_ratio(session_XN), "cvar": cvar(session_XN)}
    found |= {"bar_sharpe": sharpe(bar_TN), "max_drawdown": max_drawdown(bar_TN)}
    shape = equity_TN.shape[1]
    found["bars"] = np.full(shape, float(len(bar_TN)))
    found["sessions"] = np.full(shape, float(len(session_XN)))
    return found
