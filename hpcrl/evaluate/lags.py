"""How the agent's result moves with the fill lag: its own decisions again, filled 0, 1 and 2 bars later.

The decisions are the recorded ones: the agent is not asked again, as it would see positions that come later
than those it was trained with, and its confusion would look like a leak. Lag 0 fills at the close that was
just seen; it is shown for research and decides nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcrl.config.env import EnvConfig
from hpcrl.evaluate.backtest import Group, Plan, play_plan
from hpcrl.evaluate.baselines import Table
from hpcrl.evaluate.metrics import simple_returns
from hpcrl.evaluate.track import Track, summary, total
from hpcrl.market.tensors import MarketTensors

LAGS = (0, 1, 2)
SHOWN = ("total_return", "bar_sharpe", "sharpe", "max_drawdown", "costs", "trades")
EARNS = 3.0
"""Standard errors of the mean bar return above 0 that make a result one: noise reaches them once in 700."""
LOSES = 2.0
"""Standard errors by which lag 2 must earn less than half of lag 1, bar by bar."""


def play_lags(
    market: MarketTensors, env: EnvConfig, plan: Plan, agent: Track, *, session_T: np.ndarray, periods: int
) -> tuple[list[dict[str, Any]], str]:
    """(one row of metrics for each lag, a warning or ""). ``agent``: its track, with its target weights, as
    the run plays it; ``session_T``, ``periods``: as for ``summary``."""
    rows, returns = [], {}
    for lag in LAGS:
        track = agent if lag == env.fill_lag else _again(market, env, plan, agent, lag)
        whole = total(track)
        found = summary(whole, session_T, periods)
        row: dict[str, Any] = {"fill_lag": lag, "research_only": lag == 0, "the_runs": lag == env.fill_lag}
        rows.append(row | {name: float(found[name][0]) for name in SHOWN})
        returns[lag] = simple_returns(whole.equity_TN)[:, 0]
    return rows, halving(returns[1], returns[2], rows)


def _again(market: MarketTensors, env: EnvConfig, plan: Plan, agent: Track, lag: int) -> Track:
    """The agent's target weights through the same bars, filled ``lag`` bars late."""
    assert agent.target_TNA is not None
    path_TNA = agent.target_TNA
    first = np.cumsum([0, *(len(group.end_n) for group in plan.groups)])
    column = {group.start: int(at) for group, at in zip(plan.groups, first, strict=False)}

    def strategy(group: Group) -> Table:
        n, at = len(group.end_n), column[group.start]
        own = path_TNA[group.start - plan.lo :, at : at + n]
        return Table(own, np.full(n, len(own)), np.zeros(n, dtype=np.int64))

    return play_plan(market, env.model_copy(update={"fill_lag": lag}), plan, strategy)


def halving(one_T: np.ndarray, two_T: np.ndarray, rows: list[dict[str, Any]]) -> str:
    """A warning where the bar returns of lag 1 earn beyond noise, and lag 2 keeps less than half; else "".

    An honest edge that lasts one bar only halves as well: the warning asks for an audit and proves nothing.
    """
    if errors(one_T) < EARNS or errors(one_T / 2 - two_T) < LOSES:
        return ""
    before, after = (next(row for row in rows if row["fill_lag"] == lag) for lag in (1, 2))
    if not before["total_return"] > 2 * after["total_return"]:
        return ""
    return (
        f"the result halves when orders fill one bar later (total return {before['total_return']:.2%} at "
        f"fill_lag 1, {after['total_return']:.2%} at 2): the edge lives in the first bar after the decision, "
        "or the decision knows that bar: run `hpcrl audit`"
    )


def errors(value_T: np.ndarray) -> float:
    """Mean over its standard error; 0 where nothing varies."""
    deviation = float(value_T.std(ddof=1)) if len(value_T) > 1 else 0.0
    return float(value_T.mean()) / deviation * np.sqrt(len(value_T)) if deviation > 0 else 0.0


def lag_line(rows: list[dict[str, Any]]) -> str:
    """The table's line: total return and Sharpe ratio per bar at each lag."""
    said = []
    for row in sorted(rows, key=lambda row: (row["research_only"], row["fill_lag"])):
        note = ", research only" if row["research_only"] else ", as run" if row["the_runs"] else ""
        sharpe = f"{row['bar_sharpe']:.4f}" if np.isfinite(row["bar_sharpe"]) else "-"
        said.append(f"lag {row['fill_lag']}{note}: {row['total_return']:.2%} ({sharpe})")
    return f"the agent's decisions by fill lag, total return (Sharpe per bar): {'; '.join(said)}"
