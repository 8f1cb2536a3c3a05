"""The picture of a data set's coverage: symbols by sessions, how much of what the calendar expects is there.

Cells are classes, not a smooth scale: one missing bar among a thousand must show. Sessions become weeks, or
months, where there are more than the paper has room for.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import Grid
from hpcrl.market.synthetic import made_up
from hpcrl.storage.atomic import write_bytes

Sessions = dict[str, np.ndarray]
"""``day`` (since 1970-01-01, increasing), ``expected``, ``present``, ``zero_volume``: int32 [D], of bars."""

MOST_SESSIONS, MOST_WEEKS = 400, 530  # columns of at least two pixels
MOST_SYMBOLS = 100
MOST_TICKS = 12
NAME_LETTERS = 16
MISSING = (
    ("none", 0.0, "#e3ebf0"),
    ("up to 1 %", 0.01, "#f6c945"),
    ("up to 10 %", 0.10, "#ee8f2e"),
    ("up to 50 %", 0.50, "#c9481c"),
    ("over 50 %", 1.0 - 1e-9, "#7d1712"),
    ("all", 1.0, "#1a1a1a"),
)
"""Names, upper bounds and colours of classes; each darker than the one before, for the colour-blind."""
ZERO_VOLUME = (
    ("none", 0.0, "#eef1f3"),
    ("up to 1 %", 0.01, "#b6d7ea"),
    ("up to 10 %", 0.10, "#5fa8d3"),
    ("up to 50 %", 0.50, "#2166ac"),
    ("over 50 %", 1.0, "#0b2a52"),
)
Classes = tuple[tuple[str, float, str], ...]


def session_coverage(bars: SymbolBars, grid: Grid) -> Sessions:
    """Counts per session, the symbol's first to its last; all of a session is expected, as in ``census``."""
    day_D, expected_D = np.unique(grid.session_G, return_counts=True)
    inside_D = (day_D >= bars.session[0]) & (day_D <= bars.session[-1])
    day_D, expected_D = day_D[inside_D], expected_D[inside_D]

    def count(chosen_B: np.ndarray) -> np.ndarray:
        at = np.searchsorted(day_D, bars.session[chosen_B])
        return np.bincount(at, minlength=len(day_D)).astype(np.int32)

    return {
        "day": day_D.astype(np.int32),
        "expected": expected_D.astype(np.int32),
        "present": count(bars.present),
        "zero_volume": count(bars.present & (bars.volume == 0)),
    }


def plot_coverage(report: Mapping[str, Any], coverage: Mapping[str, Sessions], path: str | Path) -> Path:
    """Write the PNG whole or not at all. RunFailed where it cannot be written."""
    write_bytes(path, draw_coverage(report, coverage))
    return Path(path)


def draw_coverage(report: Mapping[str, Any], coverage: Mapping[str, Sessions]) -> bytes:
    """A PNG. ``report``: the quality report; ``coverage``: symbol -> ``session_coverage``, in order."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a symbol in letters of another script
        picture(report, coverage).savefig(buffer, format="png")
    return buffer.getvalue()


def picture(report: Mapping[str, Any], coverage: Mapping[str, Sessions]) -> Any:
    """The figure: one map of what is missing, and one of zero volume where there is any."""
    # A figure of its own, not pyplot's: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = _most_missing(coverage)
    unit, start_K, missing_SK, zero_SK = _shares(shown)
    idle_S = np.nansum(zero_SK, axis=1) > 0
    counts = (len(shown), int(idle_S.sum())) if idle_S.any() else (len(shown),)
    row = min(max(5.0 / sum(counts), 0.165), 0.5)  # inches
    heights = [max(count * row, 0.6) for count in counts]
    # Beside the maps: the title, the dates, a legend on each.
    figure = Figure(figsize=(13, sum(heights) + 1.1 + 0.6 * len(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    size = min(max(row * 72 * 0.62, 6.5), 10)
    notes = [_note(report["symbols"][symbol], one) for symbol, one in shown.items()]
    what = f"bars missing in a {unit}"
    _draw_map(axes[0], missing_SK, list(shown), MISSING, what, "before the first bar, after the last", size)
    _write_notes(axes[0], notes, size)
    if idle_S.any():
        idle = [symbol for symbol, some in zip(shown, idle_S, strict=True) if some]
        _draw_map(
            axes[1], zero_SK[idle_S], idle, ZERO_VOLUME, "zero volume, of the bars there", "no bars", size
        )
    ticks, labels = _dates(start_K)
    axes[-1].set_xticks(ticks, labels, fontsize=9)
    title = _title(report, unit, start_K, len(shown), len(coverage))
    colour = "#a01515" if made_up(report["source"]) else "black"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=colour, parse_math=False)
    return figure


def _most_missing(coverage: Mapping[str, Sessions]) -> dict[str, Sessions]:
    """All symbols, or of very many those that lack the most; in their order."""
    lacking = {name: 1 - one["present"].sum() / one["expected"].sum() for name, one in coverage.items()}
    worst = set(sorted(lacking, key=lambda name: -lacking[name])[:MOST_SYMBOLS])
    return {name: one for name, one in coverage.items() if name in worst}


def _shares(coverage: Mapping[str, Sessions]) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Name of a column's stretch of time, its first days [K], shares missing and without volume [S, K]."""
    day_D = np.unique(np.concatenate([one["day"] for one in coverage.values()]))
    unit, key_D = "session", day_D
    if len(day_D) > MOST_SESSIONS:
        unit, key_D = "week", (day_D + 3) // 7  # 1970-01-01 was a Thursday: weeks begin on Mondays
        if len(np.unique(key_D)) > MOST_WEEKS:
            unit, key_D = "month", _months(day_D)
    key_K, first_K = np.unique(key_D, return_index=True)
    missing_SK, zero_SK = (np.full((len(coverage), len(key_K)), np.nan) for _ in range(2))
    for s, one in enumerate(coverage.values()):
        at = np.searchsorted(key_K, key_D[np.searchsorted(day_D, one["day"])])
        total = {
            name: np.bincount(at, one[name], minlength=len(key_K))
            for name in ("expected", "present", "zero_volume")
        }
        with np.errstate(invalid="ignore"):
            missing_SK[s] = 1 - total["present"] / total["expected"]
            zero_SK[s] = total["zero_volume"] / total["present"]
    return unit, day_D[first_K], missing_SK, zero_SK


def _months(day_D: np.ndarray) -> np.ndarray:
    return day_D.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def _draw_map(
    axes: Any,
    share_SK: np.ndarray,
    names: list[str],
    classes: Classes,
    what: str,
    blank: str,
    size: float,
) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    class_SK = np.searchsorted([bound for _, bound, _ in classes], share_SK).astype(float)
    class_SK[np.isnan(share_SK)] = np.nan
    colours = [colour for _, _, colour in classes]
    axes.imshow(class_SK, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(classes) - 0.5, aspect="auto",
                interpolation="nearest")  # fmt: skip
    n_rows, n_columns = share_SK.shape
    axes.set_yticks(range(n_rows), [_short(name) for name in names], fontsize=size, parse_math=False)
    for y in np.arange(n_rows - 1) + 0.5:
        axes.axhline(y, color="white", linewidth=0.8 if n_rows < 40 else 0.4)
    if n_columns <= 80:
        for x in np.arange(n_columns - 1) + 0.5:
            axes.axvline(x, color="white", linewidth=0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    patches = [Patch(color=colour, label=name) for name, _, colour in classes]
    if np.isnan(share_SK).any():
        patches.append(Patch(facecolor="white", edgecolor="#8a8f98", linewidth=0.6, label=blank))
    # Above the map, on the left, in one line.
    axes.legend(handles=patches, title=f"{what}:", ncols=len(patches), loc="lower left",
                bbox_to_anchor=(-0.005, 1.0), frameon=False, fontsize=9, title_fontsize=9, alignment="left",
                handlelength=1.2, columnspacing=1.4, borderaxespad=0.2)  # fmt: skip


def _write_notes(axes: Any, notes: list[str], size: float) -> None:
    """A line of figures at the right of each symbol."""
    place = axes.get_yaxis_transform()
    style: dict[str, Any] = {"transform": place, "fontsize": size, "family": "monospace"}
    axes.text(1.008, -0.5, "   gaps  zero vol.  whole sessions", va="bottom", **style)
    for y, note in enumerate(notes):
        axes.text(1.008, y, note, va="center", **style)


def _note(counts: Mapping[str, int], sessions: Sessions) -> str:
    """Shares of bars missing between first and last, and of zero volume; how many sessions are whole."""
    gaps = _percent(counts["missing"], counts["bars"])
    zero = _percent(counts["zero_volume"], counts["present"])
    whole_D = sessions["present"] == sessions["expected"]
    return f"{gaps:>7}  {zero:>9}  {f'{whole_D.sum():,} of {len(whole_D):,}':>14}"


def _percent(part: int, whole: int) -> str:
    """Never 0 for something, never 100 % for less than all."""
    if part in (0, whole):
        return "0" if part == 0 else "100 %"
    return f"{min(max(100 * part / whole, 0.01), 99.99):.2f} %"


def _short(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _dates(start_K: np.ndarray) -> tuple[list[int], list[str]]:
    """Columns to label: where weeks, months, quarters or years begin, at most MOST_TICKS of them."""
    day_K = start_K.astype("datetime64[D]")
    month_K = _months(start_K)
    if len(day_K) <= MOST_TICKS:
        return list(range(len(day_K))), [day.strftime("%d %b %Y") for day in day_K.tolist()]
    for key_K, form in (
        ((start_K + 3) // 7, "%d %b %Y"),
        (month_K, "%b %Y"),
        (month_K // 3, "%b %Y"),
        *((month_K // (12 * years), "%Y") for years in (1, 2, 5, 10, 50)),
    ):
        # The first stretch is rarely whole; a label there would touch the next one.
        ticks, labels = np.flatnonzero(np.diff(key_K)) + 1, form
        if len(ticks) <= MOST_TICKS:
            break
    return ticks.tolist(), [day.strftime(labels) for day in day_K[ticks].tolist()]


def _title(report: Mapping[str, Any], unit: str, start_K: np.ndarray, shown: int, symbols: int) -> str:
    source, files = report["source"], report.get("files") or []
    if source == "files" and files:
        source = f"files ({Path(files[0]).name}{f' and {len(files) - 1} more' if len(files) > 1 else ''})"
    if made_up(report["source"]):
        source += " (made-up bars: no performance claim)"
    counts = report["symbols"].values()
    first, last = min(one["first"] for one in counts), max(one["last"] for one in counts)
    some = (
        f"the {shown} of {symbols:,} symbols that lack the most" if shown < symbols else f"{symbols} symbols"
    )
    return (
        f"Coverage  |  data source: {source}\n{report['calendar']}, {report['bar_seconds']:,} s bars  |  "
        f"{first} to {last}  |  {'1 symbol' if symbols == 1 else some}  |  {len(start_K):,} {unit}s"
    )
