"""A comparison for the eye: Rich tables of the standings and of their differences."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hpcrl.evaluate.bootstrap import Interval
from hpcrl.evaluate.compare import Comparison, Standing

COLUMNS = (
    ("return", "total_return", "percent"),
    ("Sharpe", "sharpe", "number"),
    ("deflated", "dsr", "share"),
    ("drawdown", "max_drawdown", "percent"),
    ("costs", "costs", "percent"),
    ("trades", "trades", "count"),
)
DIFFERENCES = "differences, with 95 % intervals of paired blocks of bars"
SPREAD = ("total_return", "sharpe")
"""Columns that show the lowest and the highest of several seeds."""


def labels(comparison: Comparison) -> list[str]:
    """A short name for each standing: A, B, ... Z, A1, ...; buy and hold is called hold."""
    found = []
    for place, standing in enumerate(comparison.standings):
        turn, letter = divmod(place, 26)
        found.append(f"{chr(65 + letter)}{turn or ''}" if standing.runs else "hold")
    return found


def render_comparison(comparison: Comparison) -> Group:
    meta = comparison.meta
    parts: list[Table | Text] = [Text(f"warning: {line}", style="bold red") for line in meta["warnings"]]
    notes = [note for standing in comparison.standings for note in standing.notes]
    parts += [Text(f"note: {note}", style="yellow") for note in notes]
    parts.append(Text(heading(comparison), style="bold"))
    for label, standing in zip(labels(comparison), comparison.standings, strict=True):
        seeds = f": seeds {', '.join(map(str, standing.seeds))}" if len(standing.runs) > 1 else ""
        parts.append(Text(f"{label:>4}  {standing.name}{seeds}"))
    parts += [_standings(comparison), _differences(comparison)]
    parts += [Text(line) for line in closing(comparison)]
    return Group(*parts)


def heading(comparison: Comparison) -> str:
    meta = comparison.meta
    return (
        f"{meta['split']} split, {meta['first']} to {meta['last']} UTC: {meta['bars']:,} bars, "
        f"{meta['sessions']} sessions; after costs"
    )


def _standings(comparison: Comparison) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    for label, _, _ in COLUMNS:
        table.add_column(label, justify="right", no_wrap=True)
    for label, standing in zip(labels(comparison), comparison.standings, strict=True):
        table.add_row(label, *(_cell(standing, key, kind) for _, key, kind in COLUMNS))
    return table


def _cell(standing: Standing, key: str, kind: str) -> str:
    shown = _show(standing.metrics[key], kind)
    if len(standing.runs) < 2 or key not in SPREAD:
        return shown
    low, high = (_show(each[key], kind).removesuffix(" %") for each in (standing.lowest, standing.highest))
    return shown if shown == "-" else f"{shown}\n{low} to {high}"


def _show(value: float, kind: str) -> str:
    if math.isnan(value):
        return "-"
    if kind == "percent":
        return f"{100 * value:,.2f} %"
    if kind == "count":
        return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
    return f"{value:.2f}" if kind == "number" else f"{value:.3f}"


def _differences(comparison: Comparison) -> Table:
    bars = comparison.meta["bars"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=DIFFERENCES, title_justify="left")
    table.add_column("", no_wrap=True, justify="right")
    table.add_column("mean return x bars", justify="right", no_wrap=True)
    table.add_column("Sharpe per bar", justify="right", no_wrap=True)
    table.add_column("shown", justify="right", no_wrap=True)
    names = labels(comparison)
    for pair in comparison.pairs:
        found = pair.difference
        table.add_row(
            f"{names[pair.one]} - {names[pair.other]}",
            _with_interval(found.mean, found.mean_interval, 100 * bars, "{:+.2f} %", "{:+.2f}"),
            _with_interval(found.bar_sharpe, found.sharpe_interval, 1, "{:+.4f}", "{:+.4f}"),
            "yes" if found.shown else "no",
            style="bold" if found.shown else "",
        )
    return table


def _with_interval(value: float, interval: Interval, factor: float, form: str, edge: str) -> str:
    if math.isnan(interval.low) or math.isnan(value):
        return "-" if math.isnan(value) else f"{form.format(value * factor)} [-]"
    low, high = (edge.format(each * factor) for each in (interval.low, interval.high))
    return f"{form.format(value * factor)} [{low}, {high}]"


def closing(comparison: Comparison) -> list[str]:
    """What a reader has to know beside the tables."""
    meta = comparison.meta
    lines = []
    every = len(comparison.standings) * (len(comparison.standings) - 1) // 2
    if len(comparison.pairs) < every:
        lines.append(f"Of {every} differences those with the first policy and with buy and hold were made.")
    if (count := len(comparison.pairs)) > 1:
        lines.append(f"{count} differences: were there none, {count / 20:.1f} would be shown by chance.")
    if any(len(standing.runs) > 1 for standing in comparison.standings):
        lines.append(
            "Seeds: means, below them the lowest to the highest; the intervals speak of the bars alone."
        )
    if meta["trials"]:
        reason = f"; {meta['trials_reason']}" if meta["trials_reason"] else ""
        lines.append(
            "deflated: the probability that a Sharpe ratio is above what the luckiest of "
            f"{meta['trials']:,} trials without skill would show ({meta['trials_source']}{reason})."
        )
    else:
        lines.append(f"deflated: not known ({meta['trials_source']}; {meta['trials_reason']}).")
    lines += [overfitting_line(each) for each in meta["overfitting"]]
    if meta["split"] == "test":
        opening = (
            f"opening {meta['test_openings']} of this data set" if meta["test_openings"] else "not logged"
        )
        lines.append(f"The sealed test split was opened once for the whole comparison: {opening}.")
    reasons = {pair.difference.mean_interval.reason for pair in comparison.pairs} - {""}
    lines += [f"[-]: no interval, {reason}." for reason in sorted(reasons)]
    return lines


def overfitting_line(found: dict) -> str:
    """Of one population."""
    if found["probability"] is None:
        return f"{found['population']}: no probability of overfitting, {found['reason']}."
    return (
        f"{found['population']}: probability of overfitting {found['probability']:.2f} (CSCV: "
        f"{found['trials']} trials on {found['rows']} validation windows in {found['blocks']} blocks; noise "
        "gives 0.5)."
    )


def print_comparison(comparison: Comparison, plot: Path | None = None, as_json: bool = False) -> None:
    """Table or JSON; ``plot``: the picture that has been written, named beside it."""
    if as_json:
        extra = {} if plot is None else {"plot": str(plot)}
        print(json.dumps(comparison.to_json() | extra, allow_nan=False))
        return
    Console().print(render_comparison(comparison))
    if plot is not None:
        print(plot)
