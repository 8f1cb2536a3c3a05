"""The picture of an evaluation: equity of the total account and its drawdown, as a PNG.

The x axis counts bars, so that nights and weekends take no room; dates stand at session starts.
"""

from __future__ import annotations

import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.evaluate.evaluation import AGENT, CROSS, EQUAL, FLAT, HOLD, RANDOM, Evaluation
from hpcrl.storage.atomic import check_output, write_bytes
from hpcrl.types import HpcrlError, RunFailed

AGENT_COLOUR = "#1f5fa8"
STYLE: dict[str, dict[str, Any]] = {
    RANDOM: {"color": "#8a8f98", "linewidth": 1.2, "label": "matched random (mean, 5-95 %)"},
    FLAT: {"color": "#444a54", "linewidth": 1.0, "linestyle": (0, (1, 2)), "label": "flat"},
    CROSS: {"color": "#3f8f6b", "linewidth": 1.1, "linestyle": (0, (5, 2)), "label": "moving averages 10/40"},
    EQUAL: {"color": "#a3588f", "linewidth": 1.1, "linestyle": (0, (3, 1, 1, 1)), "label": "equal weight"},
    HOLD: {"color": "#d17a22", "linewidth": 1.4, "label": "buy and hold"},
    AGENT: {"color": AGENT_COLOUR, "linewidth": 1.9, "label": "agent"},
}
"""In drawing order; colours that differ in grey and for the colour-blind."""
MOST_LABELS = 9
MOST_POINTS = 4000


def plot_path(
    plot: str | Path | None,
    run: str | Path,
    split: str,
    *,
    checkpoint_epoch: int | None = None,
    data: str | Path | None = None,
) -> Path:
    """Where the picture of ``evaluate_run`` with these arguments goes: ``plot``, or a name in the run folder.

    That is evaluation_SPLIT.png, with what is not the run's newest checkpoint or its own data in the name, so
    that it is not written over the run's own picture. HpcrlError, before any work: no PNG, or a path that
    must not be written over.
    """
    run = Path(run)
    folder = run.parent if run.is_file() else run
    own = [file for file in folder.glob("*") if file.suffix in (".json", ".jsonl", ".pt", ".onnx")]
    inputs = [run, *own, *([Path(data)] if data is not None else [])]
    if plot is not None:
        path = Path(plot)
        check_output(path, inputs)
        if path.suffix.lower() != ".png":
            raise HpcrlError(f"{path}: the plot is a PNG; give it a name that ends in .png")
        return path
    parts = ["evaluation", split]
    if checkpoint_epoch is not None:
        parts.append(f"epoch_{checkpoint_epoch}")
    elif run.is_file():
        parts.append(run.stem.removeprefix("checkpoint_"))
    if data is not None:
        parts.append(Path(data).stem)
    path = folder.absolute() / f"{'_'.join(parts)}.png"
    if folder.is_dir():  # what is no run is told by who reads it
        check_output(path, inputs)
    return path


def write_plot(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the PNG whole or not at all. RunFailed where it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}") from error
    write_bytes(path, _draw(evaluation))
    return path


def _draw(evaluation: Evaluation) -> bytes:
    # A figure of its own, not pyplot's: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    curves = evaluation.curves
    figure = Figure(figsize=(11, 6.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    shown = _shown(len(curves.ts_T))
    low, high = curves.band
    upper.fill_between(shown, low[shown], high[shown], color="#8a8f98", alpha=0.22, linewidth=0)
    if curves.agent_band is not None:
        low, high = curves.agent_band
        label = "agent, 95 % of redrawn bars"
        upper.fill_between(
            shown, low[shown], high[shown], color=AGENT_COLOUR, alpha=0.1, linewidth=0, label=label
        )
    for strategy, style in STYLE.items():
        if strategy not in curves.equity:
            continue
        equity = curves.equity[strategy]
        upper.plot(shown, equity[shown], **style)
        if strategy in (AGENT, HOLD):
            fall = equity / np.maximum.accumulate(equity) - 1
            lower.plot(shown, fall[shown], color=style["color"], linewidth=1.2)
            if strategy == AGENT:
                lower.fill_between(shown, fall[shown], 0, color=style["color"], alpha=0.18, linewidth=0)
    upper.set_ylabel("equity / start, after costs")
    lower.set_ylabel("drawdown")
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, labels = upper.get_legend_handles_labels()
    upper.legend(handles[::-1], labels[::-1], loc="best", frameon=True, framealpha=0.85, fontsize=9)
    for axes in (upper, lower):
        axes.grid(True, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    ticks, names = _dates(curves.ts_T, curves.session_T)
    lower.set_xticks(ticks, names)
    lower.set_xlabel(_axis_name(evaluation))
    figure.suptitle(_title(evaluation), fontsize=11, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _shown(points: int) -> np.ndarray:
    """Indices to draw: all, or evenly chosen ones where the paper has no room for more."""
    if points <= MOST_POINTS:
        return np.arange(points)
    return np.unique(np.linspace(0, points - 1, MOST_POINTS).round().astype(int))


def _dates(ts_T: np.ndarray, session_T: np.ndarray) -> tuple[list[int], list[str]]:
    """Ticks at session starts (or at bars, where all lie within two sessions) and their names."""
    starts = np.flatnonzero(np.diff(session_T, prepend=session_T[0] - 1))
    if len(starts) > 2:
        # The first session is rarely whole; a label there would touch the next one.
        starts = starts[1:]
        ticks = starts[:: math.ceil(len(starts) / MOST_LABELS)]
        form = "%d %b %Y" if ts_T[-1] - ts_T[0] > 300 * 86_400 else "%d %b"
        days = [datetime.fromtimestamp(int(day) * 86_400, UTC) for day in session_T[ticks]]
        return ticks.tolist(), [day.strftime(form) for day in days]
    ticks = np.unique(np.linspace(0, len(ts_T) - 1, min(MOST_LABELS, len(ts_T))).round().astype(int))
    names = [datetime.fromtimestamp(int(ts), UTC).strftime("%d %b %H:%M") for ts in ts_T[ticks]]
    return ticks.tolist(), names


def _axis_name(evaluation: Evaluation) -> str:
    meta = evaluation.meta
    gaps = "" if meta["calendar"] == "24/7" else " (time between sessions left out)"
    return f"{meta['bars']:,} bars of {meta['bar_seconds']:,} s, {meta['sessions']} sessions{gaps}"


def _title(evaluation: Evaluation) -> str:
    meta = evaluation.meta
    accounts = meta["accounts"] if len(meta["accounts"]) < 6 else [f"{len(meta['accounts'])} accounts"]
    first = f"{meta['run']}  |  epoch {meta['epoch']}  |  {meta['split']} split  |  {', '.join(accounts)}"
    source = f"data source: {meta['data']['source']}"
    if meta["synthetic"]:
        source += " (made-up bars: no performance claim)"
    agent, hold = evaluation.row(AGENT), evaluation.row(HOLD)
    rival = evaluation.row(RANDOM)
    figures = f"agent {100 * agent['total_return']:+.2f} %, buy and hold {100 * hold['total_return']:+.2f} %"
    figures += f", matched random {100 * rival['total_return']:+.2f} %"
    return f"{first}\n{meta['first']} to {meta['last']} UTC  |  {source}\n{figures}, after costs"
