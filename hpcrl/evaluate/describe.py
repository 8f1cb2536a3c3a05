"""What an evaluation says beside its numbers: what was played, on what, and what to beware of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hpcrl.checkpoint.load import LoadedRun
from hpcrl.config.env import HINDSIGHT
from hpcrl.evaluate.backtest import Plan
from hpcrl.evaluate.evaluation import Row
from hpcrl.evaluate.metrics import periods_per_year, sharpe_error
from hpcrl.market.dataset import Market

RATIOS = ("annual_return", "sharpe", "sortino", "calmar", "tail_ratio")
"""Of draws their median is shown."""
SUSPICIOUS_SHARPE = 10.0
"""No honest strategy on bars of minutes is known to hold this; leaks do (design of the evaluation)."""


def describe(
    loaded: LoadedRun, market: Market, plan: Plan, split: str, rows: tuple[Row, ...], *, draws: int, seed: int
) -> dict[str, Any]:
    """What was played where, on what and with which costs. ``rows``: the agent's total first."""
    calendar = str(market.attributes.get("calendar", ""))
    periods = periods_per_year(calendar)
    sessions = int(rows[0].metrics["sessions"])
    env, other = loaded.config.env, market.sha256 != loaded.data_sha256
    return {
        "run": loaded.name,
        "path": str(loaded.path),
        "checkpoint": loaded.checkpoint.name,
        "epoch": loaded.epoch,
        "env_steps": loaded.env_steps,
        "config_sha256": loaded.config.digest(),
        "split": split,
        "first": _iso(market.ts_B[plan.lo + 1]),
        "last": _iso(market.ts_B[plan.hi - 1]),
        "bars": plan.steps,
        "sessions": sessions,
        "bar_seconds": market.bar_seconds,
        "calendar": calendar,
        "sessions_per_year": periods,
        "sharpe_standard_error": sharpe_error(sessions, periods),
        "data": {"sha256": market.sha256, "source": market.source, "not_the_runs": other},
        "synthetic": market.made_up,
        "accounts": [market.symbols[s] for s in plan.symbol_N] if env.assets == "single" else ["all"],
        "symbols": list(market.symbols),
        "symbols_left_out": [market.symbols[s] for s in plan.left_out],
        "assets": env.assets,
        "initial_cash": env.initial_cash,
        "max_leverage": env.max_leverage,
        "max_net": env.max_net,
        "sizing": env.sizing,
        "costs": env.costs.model_dump(),
        "fill_lag": env.fill_lag,
        "draws": draws,
        "seed": seed,
        "agent_beats_random": rows[0].metrics["beats_random"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M")


def warnings_of(
    meta: dict[str, Any], agent: dict[str, float], bankrupt: int, sealed: str, halving: str
) -> list[str]:
    """What a reader has to know before the numbers. ``agent``: its total row; ``bankrupt``: its accounts."""
    said = [HINDSIGHT] if meta["fill_lag"] == 0 else []
    if meta["synthetic"]:
        source = meta["data"]["source"]
        said.append(f"data source {source}: made-up bars, no performance claim follows from this")
    if meta["split"] == "train":
        said.append("the policy was trained on these bars: nothing follows for others")
    if meta["data"]["not_the_runs"]:
        said.append("not the run's data: its bars may overlap those that the policy was trained on")
    if sealed:
        said.append(sealed)
    if agent["sharpe"] > SUSPICIOUS_SHARPE:
        said.append(
            f"an annualised Sharpe ratio of {agent['sharpe']:.1f} is suspicious: look for a leak "
            f"(standard error of this sample: {meta['sharpe_standard_error']:.1f})"
        )
    if halving:
        said.append(halving)
    if agent["trades"] == 0:
        said.append("the agent never traded here")
    if agent["bankrupt"] or bankrupt:
        said.append(f"{bankrupt} of the agent's accounts went bankrupt")
    if meta["symbols_left_out"]:
        said.append(f"without bars in this range, left out: {', '.join(meta['symbols_left_out'])}")
    return said
