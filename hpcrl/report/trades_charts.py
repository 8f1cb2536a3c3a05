"""The agent's trades on the price of each symbol, and the weight that it held, bar by bar.

A trade is a change of the quantity held, which weight, equity and price give: quantities of tracks are not
kept. It is drawn at the price of its fill: the next bar's open, or with fill_lag 0 the close just seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcrl.evaluate.evaluation import AGENT, Evaluation
from hpcrl.market.dataset import Market
from hpcrl.report.chart import (
    AGENT_COLOUR,
    BUY,
    INK,
    SELL,
    SOFT,
    Chart,
    axis,
    floats,
    layout,
    make,
    rgba,
    thin,
)

MOST_SYMBOLS = 12
MOST_TRADES = 1200
"""Of one side on one chart; of more, those that moved the most."""
MOVED = 1.5e-7
"""Of a quantity: weights are float32, two of which err by 1.2e-7 together."""


@dataclass(frozen=True, eq=False)
class Held:
    """One symbol over the bars of the range; T steps."""

    symbol: str
    close_T: np.ndarray  # [T + 1], the mark
    fill_T: np.ndarray  # [T], where step t fills
    weight_T: np.ndarray  # [T + 1], 0 at the start
    change_T: np.ndarray  # [T], quantity x price / equity; 0: no trade

    @property
    def trades(self) -> int:
        return int(np.count_nonzero(self.change_T))


def holdings(evaluation: Evaluation, market: Market) -> list[Held]:
    """Of every symbol that was played, in the order of the evaluation."""
    track, meta = evaluation.tracks[AGENT], evaluation.meta
    assert track.weight_TNA is not None
    first = int(np.searchsorted(market.ts_B, evaluation.curves.ts_T[0]))
    rows = slice(first, first + len(evaluation.curves.ts_T))
    names = meta["accounts"] if meta["assets"] == "single" else meta["symbols"]
    found = []
    for place, symbol in enumerate(names):
        account, asset = (place, 0) if meta["assets"] == "single" else (0, place)
        column = market.symbols.index(symbol)
        weight_T = np.concatenate([[0.0], track.weight_TNA[:, account, asset].astype(np.float64)])
        equity_T = track.equity_TN[:, account]
        found.append(_held(symbol, market, rows, column, weight_T, equity_T, meta["fill_lag"]))
    return found


def _held(
    symbol: str,
    market: Market,
    rows: slice,
    column: int,
    weight_T: np.ndarray,
    equity_T: np.ndarray,
    lag: int,
) -> Held:
    close_T = _forward(market.close_BS[: rows.stop, column])[rows]
    open_T = np.where(market.present_BS[rows, column], market.open_BS[rows, column], close_T)
    known = np.isfinite(close_T) & (close_T > 0)
    quantity_T = np.where(known, weight_T * equity_T / np.where(known, close_T, 1.0), 0.0)
    before_T = quantity_T[:-1] * market.split_BS[rows, column][1:]
    moved_T = quantity_T[1:] - before_T
    floor_T = MOVED * np.maximum(np.abs(quantity_T[1:]), np.abs(before_T))
    # What a bankrupt account held is gone, not traded.
    traded_T = (np.abs(moved_T) > floor_T) & (equity_T[1:] > 0)
    change_T = np.where(traded_T, moved_T * close_T[1:] / np.where(equity_T[1:] > 0, equity_T[1:], 1.0), 0.0)
    fill_T = close_T[:-1] if lag == 0 else open_T[1:]
    return Held(symbol, close_T, fill_T, weight_T, np.nan_to_num(change_T))


def _forward(value_B: np.ndarray) -> np.ndarray:
    """The last known value at each bar; NaN before the first."""
    at = np.where(np.isfinite(value_B), np.arange(len(value_B)), -1)
    at = np.maximum.accumulate(at)
    return np.where(at >= 0, value_B[np.maximum(at, 0)], np.nan)


def trades_charts(all_held: list[Held]) -> list[tuple[str, Chart]]:
    """(symbol, chart) of each; of very many symbols those that were traded the most."""
    most = sorted(all_held, key=lambda one: -one.trades)[:MOST_SYMBOLS]
    shown = [one for one in all_held if any(one is other for other in most)]
    return [(one.symbol, _chart(f"trades-{place}", one)) for place, one in enumerate(shown)]


def _chart(key: str, held: Held) -> Chart:
    import plotly.graph_objects as go

    kept = thin(np.nan_to_num(held.close_T))
    line = {"color": INK, "width": 1.3}
    traces: list[Any] = [
        go.Scatter(x=kept.tolist(), y=floats(held.close_T[kept]), mode="lines", line=line, name="close",
                   hovertemplate="%{y:.6~g}")
    ]  # fmt: skip
    notes = []
    for name, sign, symbol, colour in (("buy", 1, "triangle-up", BUY), ("sell", -1, "triangle-down", SELL)):
        steps = np.flatnonzero(sign * held.change_T > 0)
        count = len(steps)
        if count > MOST_TRADES:
            largest = np.argsort(-np.abs(held.change_T[steps]), kind="stable")[:MOST_TRADES]
            steps = np.sort(steps[largest])
            notes.append(f"of {count:,} {name}s the {MOST_TRADES:,} largest are drawn")
        size = 9 if count < 120 else 7 if count < 400 else 5
        moved = [f"{abs(held.change_T[t]):.1%} of equity" for t in steps]
        traces.append(
            go.Scatter(x=(steps + 1).tolist(), y=floats(held.fill_T[steps]), mode="markers", text=moved,
                       name=f"{name} ({count:,})", hovertemplate="%{y:.6~g}, %{text}",
                       marker={"symbol": symbol, "size": size, "color": colour, "opacity": 0.85,
                               "line": {"width": 0}})
        )  # fmt: skip
    kept = thin(held.weight_T)
    traces.append(
        go.Scatter(x=kept.tolist(), y=floats(held.weight_T[kept]), yaxis="y2", mode="lines", name="position",
                   line={"color": AGENT_COLOUR, "width": 1.2, "shape": "vh"}, fill="tozeroy",
                   fillcolor=rgba(AGENT_COLOUR, 0.25), showlegend=False, hovertemplate="%{y:.1%}")
    )  # fmt: skip
    shape = layout(
        430,
        showlegend=True,
        hoversubplots="axis",
        xaxis=axis(anchor="y2"),
        yaxis=axis("price", domain=[0.34, 1], tickformat=".5~g", exponentformat="none"),
        yaxis2=axis("position", domain=[0, 0.27], tickformat=".0%", zeroline=True, zerolinecolor=SOFT),
    )
    words = (
        f"{held.symbol}: {held.trades:,} trades in {len(held.change_T):,} bars. Triangles stand at the "
        "price of the fill; below, the position as a share of the account's equity: short is below 0."
    )
    return make(key, f"Trades of {held.symbol}", words, traces, shape, tuple(notes))
