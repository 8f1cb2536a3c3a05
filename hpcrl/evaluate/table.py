"""An evaluation for the eye: Rich tables."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpcrl.evaluate.evaluation import AGENT, CROSS, EQUAL, FLAT, HOLD, RANDOM, Evaluation
from hpcrl.evaluate.lags import lag_line
from hpcrl.evaluate.statistics import SIGNIFICANT

NAMES = {
    AGENT: "agent",
    HOLD: "buy and\nhold",
    EQUAL: "equal\nweight",
    CROSS: "averages\n10/40",
    FLAT: "flat",
    RANDOM: "matched\nrandom",
}
"""Over two lines each: six strategies fit a terminal of 80 columns."""
FEW_SESSIONS = 20
"""Below it, a year's return and its ratios are extrapolations that mean nothing; only the JSON has them."""
YEARLY = ("annual_return", "sortino", "calmar", "tail_ratio")
LINES = (
    ("total return", "total_return", "percent"),
    ("annual return", "annual_return", "percent"),
    ("annual volatility", "annual_volatility", "percent"),
    ("Sharpe, annual", "sharpe", "number"),
    ("Sortino, annual", "sortino", "number"),
    ("Calmar", "calmar", "number"),
    ("Sharpe per bar", "bar_sharpe", "small"),
    ("max drawdown", "max_drawdown", "percent"),
    ("CVaR 5 %, session", "cvar", "percent"),
    ("tail ratio", "tail_ratio", "number"),
    ("PSR(0)", "psr", "chance"),
    ("costs / start", "costs", "percent"),
    ("  fees", "fees", "percent"),
    ("  spread, slippage", "spread", "percent"),
    ("  impact", "impact", "percent"),
    ("financing received", "financing", "percent"),
    ("turnover per bar", "turnover", "percent"),
    ("exposure, gross", "exposure", "percent"),
    ("exposure, net", "net_exposure", "percent"),
    ("hit rate, bars held", "hit_rate", "percent"),
    ("trades", "trades", "count"),
)
PER_SYMBOL = (
    ("return", "total_return", "percent"),
    ("Sharpe", "sharpe", "number"),
    ("draw-\ndown", "max_drawdown", "percent"),
    ("CVaR", "cvar", "percent"),
    ("PSR(0)", "psr", "chance"),
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
    if kind == "chance":  # never sure
        return "> .999" if value > 0.999 else "< .001" if value < 0.001 else f"{value:.3f}"
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
        short = " Too few sessions for annual return, Sortino, Calmar and tail ratio."
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
    table = _plain_table(heading(evaluation))
    table.caption, table.caption_justify = caption(evaluation), "left"
    table.add_column(f"{evaluation.meta['bars']:,} bars, after costs")
    strategies = evaluation.strategies
    for strategy in strategies:
        table.add_column(NAMES[strategy], justify="right", no_wrap=True)
    for label, key, kind in LINES:
        if key in YEARLY and evaluation.meta["sessions"] < FEW_SESSIONS:
            continue
        values = [evaluation.row(strategy)[key] for strategy in strategies]
        table.add_row(label, *(_show(value, kind) for value in values))
    parts += [table, Text(), _luck(evaluation), Text(), Text(lag_line(evaluation.meta["fill_lag_table"]))]
    parts += [Text(f"{NAMES[name]} is left out: {why}") for name, why in _left_out(evaluation)]
    if len(evaluation.meta["accounts"]) > 1:
        parts += [Text(), _by_symbol(evaluation)]
    return Group(*parts)


def _plain_table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False
    )


def _left_out(evaluation: Evaluation) -> list[tuple[str, str]]:
    return list(evaluation.meta["baselines_left_out"].items())


def _luck(evaluation: Evaluation) -> Table:
    """What the agent's result may be worth: intervals, probabilities, and why one is missing."""
    found = evaluation.meta["statistics"]
    table = _plain_table("skill or luck: the agent's total account")
    for label in ("", "here", "95 % interval, or what it means"):
        table.add_column(label, justify="right" if label == "here" else "left")
    values = (
        ("total return", evaluation.row(AGENT)["total_return"], "percent", "total_return"),
        ("less buy and hold's", found["difference_to_buy_and_hold"], "percent", "difference_to_buy_and_hold"),
        ("Sharpe per bar", found["bar_sharpe"], "small", "bar_sharpe"),
    )
    for label, value, kind, key in values:
        why = found["reasons"].get(f"intervals.{key}", "")
        low, high = (_show(edge, kind) for edge in found["intervals"][key])
        table.add_row(label, _show(value, kind), f"none: {why}" if why else f"{low} to {high}")
    table.add_row(
        "PSR(0)", _show(found["psr"], "chance"), _verdict(found, "psr", "that the Sharpe ratio is above 0")
    )
    table.add_row("deflated Sharpe", _show(found["dsr"], "chance"), _deflated(found))
    needed, bars = found["min_track_record_bars"], evaluation.meta["bars"]
    meaning = found["reasons"].get("min_track_record_bars") or f"bars for PSR(0) = 0.95; here are {bars:,}"
    table.add_row(
        "track record needed", _show(needed if math.isnan(needed) else math.ceil(needed), "count"), meaning
    )
    return table


def _deflated(found: dict[str, Any]) -> str:
    source = f" ({found['trials_source']})"
    if "dsr" in found["reasons"]:
        return f"none: {found['reasons']['dsr']}"
    if found["trials"] == 1:
        return f"PSR(0) again: chosen from one trial{source}"
    luckiest = f"that it is above {_show(found['sr0'], 'small')}, the luckiest of {found['trials']:,} trials"
    return _verdict(found, "dsr", luckiest) + source


def _verdict(found: dict[str, Any], key: str, claim: str) -> str:
    why = found["reasons"].get(key)
    if why:
        return f"none: {why}"
    said = "significant" if found[key] > SIGNIFICANT else "not significant"
    return f"probability {claim}: {said} at 5 %"


def _by_symbol(evaluation: Evaluation) -> Table:
    table = _plain_table("agent by symbol: all but Sharpe, PSR and trades in %")
    table.add_column("symbol")
    for label in (*(label for label, _, _ in PER_SYMBOL), "beats\nrandom", "buy and\nhold"):
        table.add_column(label, justify="right", no_wrap=True)
    for symbol in evaluation.meta["accounts"]:
        found = evaluation.row(AGENT, symbol)
        cells = [_show(found[key], kind).removesuffix(" %") for _, key, kind in PER_SYMBOL]
        hold = _show(evaluation.row(HOLD, symbol)["total_return"], "percent").removesuffix(" %")
        beats = found["beats_random"]
        table.add_row(symbol, *cells, "-" if math.isnan(beats) else f"{100 * beats:.0f}", hold)
    return table
