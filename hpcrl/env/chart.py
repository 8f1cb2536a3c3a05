"""The picture of an episode so far: price, position and equity, as an RGB array.

Owns the record that it draws from (``Tape``) and one figure that is drawn anew for every frame. Nothing
after the current bar is shown. Draws without pyplot, so it has no global state and needs no window.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

PRICE, INK, PALE, RUIN = "#444a54", "#22262c", "#8a8f98", "#b3261e"
LONG, SHORT, EQUITY = "#1f5fa8", "#d17a22", "#1f5fa8"
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
    """Its axes and lines are made once, for a frame takes several times as long where they are made anew."""

    def __init__(self, symbols: Sequence[str]) -> None:
        """``symbols``: of an account on all of them; one name where the account is on one at a time."""
        self._figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes = self._figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1.0, 1.4))
        self._figure.subplots_adjust(left=0.125, right=0.97, top=0.875, bottom=0.085, hspace=0.12)
        self._title = self._figure.text(0.125, 0.955, "", fontsize=12, fontweight="bold", color=INK)
        self._subtitle = self._figure.text(0.125, 0.915, "", fontsize=9.5, color=PALE)
        self._many = len(symbols) > 1
        price, position, equity = self._axes
        names = ("price / start", "positions", "equity") if self._many else ("close", "position", "equity")
        for axes, name in zip(self._axes, names, strict=True):
            axes.grid(True, alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=9, colors=INK)
            axes.set_ylabel(name, fontsize=9.5)
            axes.yaxis.set_label_coords(-0.11, 0.5)
            axes.ticklabel_format(axis="y", useOffset=False)
        equity.set_xlabel("steps since the episode's start", fontsize=9.5)
        equity.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        colours = [MANY[a % len(MANY)] for a in range(len(symbols))] if self._many else [PRICE]
        self._price = [price.plot([], [], color=colour, linewidth=1.3)[0] for colour in colours]
        self._ends = [price.plot([], [], "o", color=colour, ms=3.5, clip_on=False)[0] for colour in colours]
        self._held = [
            position.plot([], [], color=c, linewidth=1.2, drawstyle="steps-pre")[0] for c in colours
        ]
        self._areas: list[PolyCollection] = []
        self._start = equity.axhline(0, color=PALE, linewidth=1.0, linestyle=(0, (4, 3)))
        self._equity = equity.plot([], [], color=EQUITY, linewidth=1.6)[0]
        self._money = equity.plot([], [], "o", color=EQUITY, ms=4, clip_on=False)[0]
        position.axhline(0, color=INK, linewidth=0.8)
        if self._many and len(symbols) <= len(MANY):
            rows = 1 if len(symbols) <= 5 else 2
            price.legend(
                self._price,
                symbols,
                fontsize=8,
                frameon=False,
                ncols=-(-len(symbols) // rows),
                loc="lower left",
                bbox_to_anchor=(-0.01, 0.97),
                borderaxespad=0,
                handlelength=1.2,
            )
            self._figure.subplots_adjust(top=0.875 - 0.03 * rows)

    def draw(self, frame: Frame) -> np.ndarray:
        """uint8 [600, 800, 3]."""
        step_K = np.arange(len(frame.equity_K))
        price, position, equity = self._axes
        price_KA = frame.close_KA / frame.close_KA[0] if self._many else frame.close_KA
        for a, (line, end) in enumerate(zip(self._price, self._ends, strict=True)):
            line.set_data(step_K, price_KA[:, a])
            end.set_data(step_K[-1:], price_KA[-1:, a])
        _fit(price, price_KA)
        self._positions(position, step_K, frame.position_KA)
        self._start.set_ydata([frame.start_equity] * 2)
        self._equity.set_data(step_K, frame.equity_K)
        self._money.set_data(step_K[-1:], frame.equity_K[-1:])
        _fit(equity, np.append(frame.equity_K, frame.start_equity))
        equity.set_xlim(0, frame.steps)
        self._titles(frame)
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def _positions(self, axes: Axes, step_K: np.ndarray, position_KA: np.ndarray) -> None:
        # A position is held from the fill of its step on: a stair that rises at the step's beginning.
        most = float(np.abs(position_KA).max(initial=0.0))
        if self._many:
            for a, line in enumerate(self._held):
                line.set_data(step_K, position_KA[:, a])
        else:
            for area in self._areas:
                area.remove()
            held_K = position_KA[:, 0]
            self._areas = [
                axes.fill_between(step_K, part, 0, step="pre", color=colour, alpha=0.55, linewidth=0)
                for part, colour in ((held_K.clip(min=0), LONG), (held_K.clip(max=0), SHORT))
            ]
            most = max(most, 1.0)
        half = 1.15 * max(most, 0.1)
        axes.set_ylim(-half, half)

    def _titles(self, frame: Frame) -> None:
        now, money = datetime.fromtimestamp(frame.timestamp, UTC), frame.equity_K[-1]
        names = ", ".join(frame.symbols)
        if len(names) > 36:
            names = f"{len(frame.symbols)} symbols" if self._many else f"{names[:34]}..."
        state = f"equity {money:,.0f}   {money / frame.start_equity - 1:+.2%}" if money > 0 else "bankrupt"
        self._title.set_text(f"{names}   {state}")
        self._title.set_color(INK if money > 0 else RUIN)
        step = len(frame.equity_K) - 1
        self._subtitle.set_text(
            f"{now:%Y-%m-%d %H:%M} UTC   bar {frame.bar:,}   step {step:,} of {frame.steps:,}"
        )


def _fit(axes: Axes, values: np.ndarray) -> None:
    """Limits around the values, at least 0.1 % wide: rounding noise is no movement."""
    low, high = float(values.min()), float(values.max())
    room = max(0.06 * (high - low), 5e-4 * abs(high))
    axes.set_ylim(low - room, high + room)
