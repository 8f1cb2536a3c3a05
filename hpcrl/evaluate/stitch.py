"""The test blocks of a walk-forward joined to one out-of-sample result, with intervals.

Each fold's policy plays its own block only, from a flat account; the returns are put end to end. T bars of
all blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpcrl.evaluate.bootstrap import DRAWS, total_return
from hpcrl.evaluate.difference import difference, return_interval, sharpe_interval
from hpcrl.evaluate.evaluation import AGENT, HOLD, Evaluation
from hpcrl.evaluate.metrics import simple_returns
from hpcrl.evaluate.statistics import minimum_track_record, moments, probabilistic_sharpe
from hpcrl.evaluate.track import total

SHOWN = ("total_return", "bar_sharpe", "max_drawdown", "costs", "trades")


@dataclass(frozen=True, eq=False)
class Part:
    """One fold's test block."""

    fold: int
    run: str
    trained: tuple[str, str]
    """Starts of the first training bar and of the last one, UTC."""
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class Stitched:
    parts: tuple[Part, ...]
    agent_T: np.ndarray
    """Bar returns of the total account, block after block."""
    hold_T: np.ndarray
    ts_T: np.ndarray
    """Unix seconds of the bar that each return ends in."""
    session_T: np.ndarray
    """Its session, days since 1970-01-01."""
    meta: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is null."""
        folds = [
            {
                "fold": part.fold,
                "run": part.run,
                "trained_first": part.trained[0],
                "trained_last": part.trained[1],
                "test_first": part.evaluation.meta["first"],
                "test_last": part.evaluation.meta["last"],
                "bars": part.evaluation.meta["bars"],
                "agent": {key: part.evaluation.row(AGENT)[key] for key in SHOWN},
                "buy_and_hold": {key: part.evaluation.row(HOLD)[key] for key in SHOWN},
            }
            for part in self.parts
        ]
        text = json.dumps({"meta": self.meta, "folds": folds})
        return json.loads(text, parse_constant=lambda name: None)


def stitch(parts: Sequence[Part], meta: dict[str, Any], *, draws: int = DRAWS, seed: int = 0) -> Stitched:
    """``meta``: what the caller knows of run and folds; the statistics are added to it."""
    agent_T, hold_T = (
        np.concatenate(
            [simple_returns(total(part.evaluation.tracks[name]).equity_TN)[:, 0] for part in parts]
        )
        for name in (AGENT, HOLD)
    )
    found = moments(agent_T)
    shape = (found.skew, found.kurtosis)
    returns = return_interval(agent_T, draws=draws, seed=seed)
    sharpes = sharpe_interval(agent_T, draws=draws, seed=seed)
    against = difference(agent_T, hold_T, draws=draws, seed=seed)
    statistics = {
        "total_return": total_return(agent_T),
        "total_return_interval": [returns.low, returns.high],
        "bar_sharpe": found.sharpe,
        "bar_sharpe_interval": [sharpes.low, sharpes.high],
        "psr": probabilistic_sharpe(found.sharpe, found.n, *shape),
        "min_track_record_bars": minimum_track_record(found.sharpe, *shape),
        "buy_and_hold_total_return": total_return(hold_T),
        "mean_difference_to_buy_and_hold": against.mean,
        "mean_difference_interval": [against.mean_interval.low, against.mean_interval.high],
        "bars": found.n,
        "reason": found.reason or returns.reason,
    }
    said: dict[str, list[str]] = {}
    for part in parts:
        for line in part.evaluation.meta["warnings"]:
            said.setdefault(line, []).append(str(part.fold))
    warnings = [
        line if len(folds) == len(parts) else f"fold {', '.join(folds)}: {line}"
        for line, folds in said.items()
    ]
    ts_T, session_T = (
        np.concatenate([getattr(part.evaluation.curves, name)[1:] for part in parts])
        for name in ("ts_T", "session_T")
    )
    whole = meta | {
        "statistics": statistics,
        "warnings": [*meta.get("warnings", []), *warnings],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Stitched(tuple(parts), agent_T, hold_T, ts_T, session_T, whole)


def render_stitched(found: Stitched) -> Group:
    meta, own = found.meta, found.meta["statistics"]
    lines: list[Table | Text] = [Text(f"warning: {line}", style="bold red") for line in meta["warnings"]]
    lines.append(Text(f"{meta['run']}, walk-forward: {len(found.parts)} folds, {own['bars']:,} bars", "bold"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("fold", "trained on", "tested on", "agent", "hold", "trades"):
        table.add_column(name, justify="left" if " on" in name else "right", no_wrap=True)
    for part in found.parts:
        agent, hold, own_meta = part.evaluation.row(AGENT), part.evaluation.row(HOLD), part.evaluation.meta
        table.add_row(
            str(part.fold),
            _days(*part.trained),
            _days(own_meta["first"], own_meta["last"]),
            *(f"{100 * each:+.2f} %" for each in (agent["total_return"], hold["total_return"])),
            f"{agent['trades']:,.0f}",
        )
    lines.append(table)
    lines += [Text(line) for line in closing(found)]
    return Group(*lines)


def summary_line(found: Stitched) -> str:
    own = found.meta["statistics"]
    return (
        f"out of sample, all folds: total return {_percent(own['total_return'])} "
        f"{_edges(own['total_return_interval'], 100)}, Sharpe per bar {_small(own['bar_sharpe'])} "
        f"{_edges(own['bar_sharpe_interval'], 1, 4)}"
    )


def closing(found: Stitched) -> list[str]:
    own, bars = found.meta["statistics"], found.meta["statistics"]["bars"]
    lines = [
        f"{summary_line(found)}, probability that it is above 0: {_small(own['psr'])}",
        f"buy and hold {_percent(own['buy_and_hold_total_return'])}; agent less buy and hold, mean return x "
        f"bars: {_percent(own['mean_difference_to_buy_and_hold'] * bars)} "
        f"{_edges(own['mean_difference_interval'], 100 * bars)}",
        "95 % intervals of blocks of bars; each policy was trained on bars before its test block alone.",
    ]
    if own["reason"]:
        lines.append(f"-: {own['reason']}.")
    if found.meta.get("test_openings"):
        lines.append(
            "The test blocks reach into the sealed test split, which was opened once for all folds: opening "
            f"{found.meta['test_openings']} of this data set."
        )
    return lines


def _days(first: str, last: str) -> str:
    return f"{first[:10]} to {last[5:10] if first[:4] == last[:4] else last[:10]}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.2f} %"


def _small(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _edges(edges: Sequence[float], factor: float, digits: int = 2) -> str:
    low, high = edges
    return "[-]" if math.isnan(low) else f"[{low * factor:+.{digits}f}, {high * factor:+.{digits}f}]"
