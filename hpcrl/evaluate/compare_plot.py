"""The picture of a comparison: equity of every standing, and below it every difference with its interval."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.evaluate.compare import HOLD_NAME, Comparison, Pair, Standing
from hpcrl.evaluate.compare_table import labels
from hpcrl.evaluate.plot import _dates as dates
from hpcrl.evaluate.plot import _shown as shown_points
from hpcrl.storage.atomic import check_output, write_bytes
from hpcrl.types import HpcrlError, RunFailed

COLOURS = ("#1f5fa8", "#c2410c", "#2e8b57", "#8b4fa8", "#b58900", "#0f9ba8", "#b03060", "#5b6470")
"""Told apart in grey and by the colour-blind; from the ninth on they come again, dashed."""
HOLD_STYLE: dict[str, Any] = {"color": "#444a54", "linewidth": 1.1, "linestyle": (0, (4, 2))}
MOST_NAMED = 12
"""Standings in the legend."""


def comparison_path(plot: str | Path | None, paths: Sequence[str | Path], split: str) -> Path:
    """``plot``, or comparison_SPLIT.png beside the first of the ``paths``.

    HpcrlError, before any work: no PNG, or a path that must not be written over.
    """
    path = Path(plot) if plot is not None else Path(paths[0]).absolute().parent / f"comparison_{split}.png"
    check_output(path, [each for each in paths if Path(each).is_file()])
    if path.suffix.lower() != ".png":
        raise HpcrlError(f"{path}: the plot is a PNG; give it a name that ends in .png")
    return path


def write_comparison_plot(comparison: Comparison, path: str | Path) -> Path:
    """Write the PNG whole or not at all. RunFailed where it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}") from error
    write_bytes(path, _draw(comparison))
    return path


def _draw(comparison: Comparison) -> bytes:
    # A figure of its own, not pyplot's: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = [pair for pair in comparison.pairs if not math.isnan(pair.difference.mean_interval.low)]
    below = 0.9 + 0.28 * max(len(pairs), 1)
    figure = Figure(figsize=(11, 5.0 + below), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=(4.6, below))
    _equity(upper, comparison)
    _forest(lower, comparison, pairs)
    for axes in (upper, lower):
        axes.grid(True, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(comparison), fontsize=11, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def style_of(place: int, standing: Standing) -> dict[str, Any]:
    if standing.name == HOLD_NAME and not standing.runs:
        return HOLD_STYLE
    dashes = "-" if place < len(COLOURS) else (0, (5, 1.5))
    return {"color": COLOURS[place % len(COLOURS)], "linewidth": 1.6, "linestyle": dashes}


def _equity(axes: Any, comparison: Comparison) -> None:
    at = shown_points(len(comparison.ts_T))
    short = labels(comparison)
    for place, standing in enumerate(comparison.standings):
        style, equity_TK = style_of(place, standing), standing.equity_TK[at]
        named = place < MOST_NAMED or not standing.runs
        name = f"{short[place]}: {standing.name}" if standing.runs else standing.name
        axes.plot(at, equity_TK.mean(1), label=name if named else None, **style)
        if equity_TK.shape[1] > 1:
            axes.fill_between(
                at, equity_TK.min(1), equity_TK.max(1), color=style["color"], alpha=0.15, linewidth=0
            )
    seeds = any(len(standing.runs) > 1 for standing in comparison.standings)
    axes.set_ylabel(f"equity / start, after costs{' (bands: lowest to highest seed)' if seeds else ''}")
    axes.legend(loc="best", frameon=True, framealpha=0.85, fontsize=9)
    axes.margins(x=0.01)
    ticks, names = dates(comparison.ts_T, comparison.session_T)
    axes.set_xticks(ticks, names)


def _forest(axes: Any, comparison: Comparison, pairs: list[Pair]) -> None:
    """One line for each difference; above 0 the first of the two is better."""
    factor = 100 * comparison.meta["bars"]
    for row, pair in enumerate(pairs):
        found = pair.difference
        colour = COLOURS[0] if found.shown else "#8a8f98"
        low, high = found.mean_interval.low * factor, found.mean_interval.high * factor
        axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(found.mean * factor, row, "o", color=colour, markersize=5)
    short = labels(comparison)
    names = [f"{short[pair.one]} - {short[pair.other]}" for pair in pairs]
    axes.axvline(0.0, color="#444a54", linewidth=1.0)
    axes.set_yticks(np.arange(len(pairs)), names, fontsize=9)
    axes.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
    if not pairs:
        axes.text(0.5, 0.5, "no interval of any difference", transform=axes.transAxes, ha="center")
    axes.set_xlabel("difference of the mean return x bars, % of the start; 95 % intervals of paired blocks")


def _title(comparison: Comparison) -> str:
    meta = comparison.meta
    source = f"data source: {meta['data']['source']}"
    if meta["synthetic"]:
        source += " (made-up bars: no performance claim)"
    first = f"{meta['policies']} policies  |  {meta['split']} split  |  {', '.join(meta['symbols'][:6])}"
    if len(meta["symbols"]) > 6:
        first += f" and {len(meta['symbols']) - 6} more"
    return f"{first}\n{meta['first']} to {meta['last']} UTC, {meta['sessions']} sessions  |  {source}"
