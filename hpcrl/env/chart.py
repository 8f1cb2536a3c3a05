"""The picture of an episode so far: price, position and equity, as an RGB array.

Owns the record that it draws from (``Tape``) and one figure that is drawn anew for every frame. Nothing
after the current bar is shown. Draws without pyplot, so it has no global state and needs no window.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PRICE, LONG, SHORT, EQUITY, INK, PALE = "#444a54", "#1f5fa8", "#d17a22", "#1f5fa8", "#22262c", "#8a8f98"
MANY = (
    "#1f5fa8",
    "#d17a22",
    "#3b8f5a",
    "#a8437b",
    "#6d5bb0",
    "#8a6d3b",
    "#2a8fa3",
    "#b34a3c",
    "#777f2f",
    "#555b66",
)
"""One colour per asset; they begin again after the tenth."""
SIZE, DPI = (8.0, 6.0), 100


class Tape:
    """What has happened in the episodes that are going on; index i is the close of the i-th step."""

    def __init__(self, n_envs: int, steps: int, n_assets: int) -> None:
        self.equity_NT = np.zeros((n_envs, steps + 1))
        self.position_NTA = np.zeros((n_envs, steps + 1, n_assets))

    def write(self, age_N: np.ndarray, equity_N: np.ndarray, position_NA: np.ndarray) -> None:
        row_N = np.arange(len(age_N))
        self.equity_NT[row_N, age_N] = equity_N
        self.position_NTA[row_N, age_N] = position_NA.reshape(len(age_N), -1)


class Frame(NamedTuple):
    """One account's episode up to now; k + 1 closes of A assets."""

    symbols: Sequence[str]
    close_KA: np.ndarray
    position_KA: np.ndarray  # share of equity
    equity_K: np.ndarray
    start_equity: float
    steps: int  # length of the whole episode
    timestamp: int  # unix seconds, start of the last bar
    bar: int


class Chart:
    def __init__(self, n_assets: int) -> None:
        self._figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes = self._figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1.0, 1.4))
        self._figure.subplots_adjust(left=0.105, right=0.975, top=0.875, bottom=0.085, hspace=0.12)
        self._title = self._figure.text(0.105, 0.955, "", fontsize=12, fontweight="bold", color=INK)
        self._subtitle = self._figure.text(0.105, 0.915, "", fontsize=9.5, color=PALE)
        self._many = n_assets > 1

    def draw(self, frame: Frame) -> np.ndarray:
        """uint8 [600, 800, 3]."""
        price, position, equity = self._axes
        for axes in self._axes:
            axes.clear()
            axes.grid(True, alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=9, colors=INK, labelbottom=axes is equity)
            axes.yaxis.set_label_coords(-0.085, 0.5)
        step_K = np.arange(len(frame.equity_K))
        self._prices(price, step_K, frame)
        self._positions(position, step_K, frame)
        self._equity(equity, step_K, frame)
        equity.set_xlim(0, max(frame.steps, 1))
        equity.set_xlabel(f"step of {frame.steps}", fontsize=9.5)
        self._titles(frame)
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def _prices(self, axes, step_K: np.ndarray, frame: Frame) -> None:
        if self._many:
            for a in range(frame.close_KA.shape[1]):
                change_K = frame.close_KA[:, a] / frame.close_KA[0, a]
                axes.plot(step_K, change_K, color=MANY[a % len(MANY)], linewidth=1.2, label=frame.symbols[a])
            if len(frame.symbols) <= len(MANY):
                columns = (len(frame.symbols) + 1) // 2 if len(frame.symbols) > 5 else len(frame.symbols)
                axes.legend(fontsize=8, frameon=False, ncols=columns, loc="upper left", handlelength=1.2)
            axes.set_ylabel("price / start", fontsize=9.5)
        else:
            axes.plot(step_K, frame.close_KA[:, 0], color=PRICE, linewidth=1.3)
            axes.set_ylabel("close", fontsize=9.5)
        axes.plot(step_K[-1:].repeat(frame.close_KA.shape[1]), _ends(frame, self._many), "o", color=INK, ms=3)
        _room(axes)

    def _positions(self, axes, step_K: np.ndarray, frame: Frame) -> None:
        # A position is held from the fill of its step on: a stair that rises at the step's beginning.
        if self._many:
            for a in range(frame.position_KA.shape[1]):
                colour = MANY[a % len(MANY)]
                axes.plot(step_K, frame.position_KA[:, a], color=colour, linewidth=1.2, drawstyle="steps-pre")
            axes.set_ylabel("positions", fontsize=9.5)
        else:
            held_K = frame.position_KA[:, 0]
            for part, colour in ((held_K.clip(min=0), LONG), (held_K.clip(max=0), SHORT)):
                axes.fill_between(step_K, part, 0, step="pre", color=colour, alpha=0.55, linewidth=0)
            axes.set_ylabel("position", fontsize=9.5)
        axes.axhline(0, color=INK, linewidth=0.8)
        most = max(1.0, float(np.abs(frame.position_KA).max()))
        axes.set_ylim(-1.15 * most, 1.15 * most)

    def _equity(self, axes, step_K: np.ndarray, frame: Frame) -> None:
        axes.axhline(frame.start_equity, color=PALE, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.plot(step_K, frame.equity_K, color=EQUITY, linewidth=1.6)
        axes.plot(step_K[-1:], frame.equity_K[-1:], "o", color=EQUITY, ms=4)
        axes.set_ylabel("equity", fontsize=9.5)
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"
        )
        _room(axes)

    def _titles(self, frame: Frame) -> None:
        now = datetime.fromtimestamp(frame.timestamp, UTC)
        money = frame.equity_K[-1]
        change = money / frame.start_equity - 1
        names = ", ".join(frame.symbols[:4]) + (
            f" and {len(frame.symbols) - 4} more" if len(frame.symbols) > 4 else ""
        )
        self._title.set_text(f"{names}   equity {money:,.0f}   {change:+.2%}")
        self._title.set_color(INK if money > 0 else "#b3261e")
        if money <= 0:
            self._title.set_text(f"{names}   bankrupt")
        self._subtitle.set_text(
            f"{now:%Y-%m-%d %H:%M} UTC   bar {frame.bar:,}   step {len(frame.equity_K) - 1} of {frame.steps}"
        )


def _ends(frame: Frame, many: bool) -> np.ndarray:
    return frame.close_KA[-1] / frame.close_KA[0] if many else frame.close_KA[-1]


def _room(axes) -> None:
    """Axes that do not magnify rounding noise: at least a hundredth of a per cent high, and no offset."""
    low, high = axes.get_ylim()
    least = 1e-4 * max(abs(low), abs(high), 1e-9)
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)
    axes.ticklabel_format(axis="y", useOffset=False) if axes.get_ylabel() != "equity" else None
