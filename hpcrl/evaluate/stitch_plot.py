"""The picture of a walk-forward: equity of the agent and of buy and hold, block after block."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from hpcrl.evaluate.plot import _dates as dates
from hpcrl.evaluate.plot import _shown as shown_points
from hpcrl.evaluate.stitch import Stitched, summary_line
from hpcrl.storage.atomic import write_bytes


def write_stitched_plot(found: Stitched, path: Path) -> Path:
    """Write the PNG whole or not at all. RunFailed where it cannot be written."""
    write_bytes(path, _draw(found))
    return path


def _draw(found: Stitched) -> bytes:
    # A figure of its own, not pyplot's: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = shown_points(len(found.agent_T))
    for name, return_T, colour, width in (
        ("buy and hold", found.hold_T, "#d17a22", 1.4),
        ("agent, each block by the policy trained before it", found.agent_T, "#1f5fa8", 1.9),
    ):
        axes.plot(at, np.cumprod(1.0 + return_T)[at], color=colour, linewidth=width, label=name)
    start = 0
    for part in found.parts:
        if start:
            axes.axvline(start, color="#444a54", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"fold {part.fold}", (start, 1), (4, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=9, color="#444a54",
        )  # fmt: skip
        start += part.evaluation.meta["bars"]
    axes.set_ylabel("equity / start, after costs")
    axes.legend(loc="best", frameon=True, framealpha=0.85, fontsize=9)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.set_xticks(*dates(found.ts_T, found.session_T))
    source = found.meta["data"]["source"]
    if found.parts[0].evaluation.meta["synthetic"]:
        source += " (made-up bars: no performance claim)"
    title = f"{found.meta['run']}  |  walk-forward, {len(found.parts)} folds  |  data source: {source}"
    figure.suptitle(f"{title}\n{summary_line(found)}", fontsize=11, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
