"""What the page's charts share: colours, layout, and as many points as a screen has room for.

Charts are drawn in light colours; ``DARK`` says what each becomes in the dark, and the page's script swaps
them. Every text that comes from a file goes through ``plain``: Plotly reads a text's tags.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcrl.report.palette import COLOURS

INK, SOFT, LINE, PAPER = "#2f343c", "#5d646f", "#dfe3e8", "#ffffff"
AGENT_COLOUR, HOLD_COLOUR, RANDOM_COLOUR, FLAT_COLOUR = "#1f5fa8", "#b85c00", "#7a808a", "#4a515c"
EQUAL_COLOUR, CROSS_COLOUR, OTHER_COLOUR = "#00795c", "#a0418a", "#8a6d00"
BUY, SELL = "#0a7d4f", "#b3261e"
DARK = {
    INK: "#d9dee6",
    SOFT: "#a3abb7",
    LINE: "#343b46",
    PAPER: "#171b21",
    AGENT_COLOUR: "#6fb1ff",
    HOLD_COLOUR: "#ffa855",
    RANDOM_COLOUR: "#98a1ae",
    FLAT_COLOUR: "#b9c1cc",
    EQUAL_COLOUR: "#3ecb9f",
    CROSS_COLOUR: "#e793d2",
    OTHER_COLOUR: "#e0c04a",
    BUY: "#46d39a",
    SELL: "#ff8b81",
    **dict(zip((c.lower() for c in COLOURS),
               ("#58b4ff", "#ffb733", "#2fd6a3", "#eb9fcb", "#ff8a3d", "#8fd0f5", "#f2f4f7", "#a9b0ba"),
               strict=True)),
    "#b4b8bf": "#59616d",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MOST_POINTS = 1500
"""Of a line: a screen has about as many columns; both ends of what is left out are kept."""


@dataclass(frozen=True)
class Chart:
    key: str
    """Letters, digits and dashes: the element's name in the page."""
    title: str
    words: str
    """What it shows, for those who do not see it."""
    figure: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    unit: str = ""
    """Of the y axis, where the title says it."""

    @property
    def height(self) -> int:
        return int(self.figure["layout"]["height"])


def make(
    key: str, title: str, words: str, traces: list, layout: dict[str, Any], notes: tuple = (), unit: str = ""
) -> Chart:
    """A chart of ``plotly.graph_objects`` traces; Plotly's own checks refuse what it does not know."""
    import plotly.graph_objects as go
    from plotly.io.json import to_json_plotly

    # An empty template: Plotly's default one would be written into every figure.
    figure = go.Figure(data=traces, layout=go.Layout(template=go.layout.Template(), **layout))
    # A float that JSON has no word for becomes null, a gap.
    return Chart(key, title, words, json.loads(to_json_plotly(figure, engine="json")), notes, unit)


def layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12.5, "color": INK},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": LINE, "font": {"color": INK, "family": FONT}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 12},
            "traceorder": "normal",
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": SOFT, "activecolor": INK},
        "showlegend": False,
        "bargap": 0.25,
        **more,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 12, "color": SOFT}, "standoff": 6},
        "gridcolor": LINE,
        "linecolor": LINE,
        "tickcolor": LINE,
        "zeroline": False,
        "automargin": True,
        "tickfont": {"color": SOFT},
        **more,
    }


def rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def plain(text: object) -> str:
    """A text that Plotly shows as it is: no tags, no entities, no control characters."""
    words = re.sub(r"[\x00-\x1f\x7f]", " ", str(text))
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def thin(*curves: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Indices to draw of curves of one length: all, or of each stretch the ends and the extremes.

    The first curve's lowest and highest points are kept; NaN counts as no extreme.
    """
    points = len(curves[0])
    if points <= most:
        return np.arange(points)
    edges = np.linspace(0, points, max(most // 3, 1) + 1).astype(int)
    kept = [edges[:-1], np.array([points - 1])]
    curve = np.where(np.isfinite(curves[0]), curves[0], np.nan)
    for low, high in itertools.pairwise(edges):
        part = curve[low:high]
        if np.isfinite(part).any():
            kept.append(low + np.array([np.nanargmin(part), np.nanargmax(part)]))
    return np.unique(np.concatenate(kept))


def clock_runs(ts_T: np.ndarray) -> list[list[int]]:
    """Stamps as runs of equal steps: [[first, step, count], ...], seconds. A year is a few hundred."""
    runs: list[list[int]] = []
    stamps = [int(ts) for ts in ts_T]
    at = 0
    while at < len(stamps):
        step = stamps[at + 1] - stamps[at] if at + 1 < len(stamps) else 0
        end = at + 1
        while end < len(stamps) and stamps[end] - stamps[end - 1] == step:
            end += 1
        runs.append([stamps[at], step, end - at])
        at = end
    return runs


def names_seconds(runs: list[list[int]]) -> bool:
    """Whether names of stamps to the minute would fall together, or hide where a bar begins."""
    return any(first % 60 or (count > 1 and step % 60) for first, step, count in runs)


def floats(values: Any) -> np.ndarray:
    """float32, which a chart cannot tell from float64, in half the page."""
    return np.asarray(values, dtype=np.float32)
