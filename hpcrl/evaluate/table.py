"""An evaluation for the eye: Rich tables."""

from __future__ import annotations

import math

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpcrl.evaluate.evaluation import AGENT, FLAT, HOLD, RANDOM, STRATEGIES, Evaluation
from hpcrl.evaluate.lags import lag_line

NAMES = {AGENT: "agent", HOLD: "buy and hold", FLAT: "flat", RANDOM: "matched random"}
FEW_SESSIONS = 20
"""Below it, a year's return and its ratios are extrapolations that mean nothing; only the JSON has them."""
YEARLY = ("annual_return", "sortino", "calmar")
LINES = (
    ("total return", "total_return", "percent"),
    ("annual return", "annual_return", "percent"),
    ("annual volatility", "annual_volatility", "percent"),
    ("Sharpe, annual", "sharpe", "number"),
    ("Sortino, annual", "sortino", "number"),
    ("Calmar", "calmar", "number"),
    ("Sharpe per bar", "bar_sharpe", "small"),
    ("max drawdown", "max_drawdown", "percent"),
    ("costs / start", "costs", "percent"),
    ("  fees", "fees", "percent"),
    ("  spread, slippage", "spread", "percent"),
    ("  impact", "impact", "percent"),
    ("financing received", "financing", "percent"),
    ("turnover per bar", "turnover", "percent"),
    ("exposure, gross", "exposure", "percent"),
    ("exposure, net", "net_exposure", "percent"),
    ("hit rate of bars held", "hit_rate", "percent"),
    ("trades", "trades", "count"),
)
PER_SYMBOL = (
    ("return", "total_return", "percent"),
    ("Sharpe", "sharpe", "number"),
    ("drawdown", "max_drawdown", "percent"),
    ("costs", "costs", "percent"),
    ("trades", "trades", "count"),
)


def _show(value: float, kind: str) -> str:
    if math.isnan(value):
        return "-"
    if kind == "percent":
        value *= 100
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1
        return f"{0.0 if abs(value) < 5e-4 else value:,.{digits}f} %"
    if kind == "count":
        return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
    return f"{value:.4f}" if kind == "small" else f"{value:.2f}"


FILLS = ("the close just seen", "the next bar's open", "the open after the next")
"""By fill_lag."""


def caption(evaluation: Evaluation) -> str:
    meta = evaluation.meta
    beats = meta["agent_beats_random"]
    said = "does not differ from" if math.isnan(beats) else f"beats {100 * beats:.0f} % of"
    short, lag = "", meta["fill_lag"]
    if meta["sessions"] < FEW_SESSIONS:
        short = " Too few sessions for annual return, Sortino and Calmar."
    return (
        f"{meta['sessions']} sessions: +-{meta['sharpe_standard_error']:.1f} is the standard error of an "
        f"annual Sharpe ratio. The agent {said} {meta['draws']} draws of matched random (its own "
        "positions at shifted times; means, of annual ratios medians). "
        f"Filled at {FILLS[lag]} (lag {lag}); data source: {meta['data']['source']}; "
        f"- is undefined.{short}"
    )


def heading(evaluation: Evaluation) -> str:
    meta = evaluation.meta
    return (
        f"{meta['run']}, epoch {meta['epoch']}: {meta['split']} split, {meta['first']} to {meta['last']} UTC"
    )


def render_table(evaluation: Evaluation) -> Group:
    """Warnings, the table of the total account, and with several accounts one line per symbol."""
    parts: list[Table | Text] = [
        Text(f"warning: {line}", style="bold red") for line in evaluation.meta["warnings"]
    ]
    table = Table(title=heading(evaluation), caption=caption(evaluation), title_justify="left")
    table.caption_justify = "left"
    table.add_column(f"{evaluation.meta['bars']:,} bars, after costs")
    for strategy in STRATEGIES:
        table.add_column(NAMES[strategy], justify="right", no_wrap=True)
    for label, key, kind in LINES:
        if key in YEARLY and evaluation.meta["sessions"] < FEW_SESSIONS:
            continue
        values = [evaluation.row(strategy)[key] for strategy in STRATEGIES]
        table.add_row(label, *(_show(value, kind) for value in values))
    parts.append(table)
    parts.append(Text(lag_line(evaluation.meta["fill_lag_table"])))
    if len(evaluation.meta["accounts"]) > 1:
        parts.append(_by_symbol(evaluation))
    return Group(*parts)


def _by_symbol(evaluation: Evaluation) -> Table:
    table = Table(title="agent by symbol", title_justify="left", padding=(0, 0, 0, 1))
    table.add_column("symbol")
    for label in (*(label for label, _, _ in PER_SYMBOL), "beats random", "buy and hold"):
        table.add_column(label, justify="right")
    for symbol in evaluation.meta["accounts"]:
        found = evaluation.row(AGENT, symbol)
        cells = [_show(found[key], kind) for _, key, kind in PER_SYMBOL]
        hold = _show(evaluation.row(HOLD, symbol)["total_return"], "percent")
        beats = found["beats_random"]
        table.add_row(symbol, *cells, "-" if math.isnan(beats) else f"{100 * beats:.0f} %", hold)
    return table
