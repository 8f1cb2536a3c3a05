"""Charts of an evaluation: equity and drawdown, where the result comes from, positions asked for and held."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcrl.evaluate.evaluation import AGENT, FLAT, HOLD, RANDOM, Evaluation
from hpcrl.evaluate.track import total
from hpcrl.report.chart import (
    AGENT_COLOUR,
    CROSS_COLOUR,
    EQUAL_COLOUR,
    FLAT_COLOUR,
    HOLD_COLOUR,
    INK,
    LINE,
    OTHER_COLOUR,
    RANDOM_COLOUR,
    SOFT,
    Chart,
    axis,
    floats,
    layout,
    make,
    rgba,
    thin,
)
from hpcrl.report.figures import neat, percent

LOOKS: dict[str, tuple[str, str, float, str]] = {
    FLAT: ("flat", FLAT_COLOUR, 1.0, "dot"),
    RANDOM: ("matched random, mean", RANDOM_COLOUR, 1.4, "dash"),
    "moving_average_cross": ("moving averages 10/40", CROSS_COLOUR, 1.4, "dashdot"),
    "equal_weight": ("equal weight", EQUAL_COLOUR, 1.4, "longdash"),
    HOLD: ("buy and hold", HOLD_COLOUR, 1.7, "solid"),
    AGENT: ("agent", AGENT_COLOUR, 2.4, "solid"),
}
"""Name, colour, width and dash, in drawing order: told apart without colours, too."""
MOST_GRID = 12
"""Different target weights that make a grid of positions; more are a range."""
BINS = 10


def look(strategy: str) -> tuple[str, str, float, str]:
    return LOOKS.get(strategy, (strategy.replace("_", " "), OTHER_COLOUR, 1.4, "longdashdot"))


def strategies(evaluation: Evaluation) -> list[str]:
    """Those that have a row for the whole account, the agent first, the others as they are drawn."""
    there = [row.strategy for row in evaluation.rows if row.symbol is None]
    order = [name for name in reversed(LOOKS) if name in there]
    return order + [name for name in there if name not in order]


def equity_chart(evaluation: Evaluation) -> Chart:
    import plotly.graph_objects as go

    curves = evaluation.curves
    names = [name for name in reversed(strategies(evaluation)) if name in curves.equity]
    kept = thin(curves.equity[AGENT])
    at = kept.tolist()
    traces: list[Any] = []
    low, high = curves.band
    traces += _band(at, low[kept], high[kept], RANDOM_COLOUR, 0.2, "matched random, 5 to 95 %")
    own = agent_band(curves)
    if own is not None:
        traces += _band(at, own[0][kept], own[1][kept], AGENT_COLOUR, 0.13, "agent, bootstrap 95 %")
    for name in names:
        label, colour, width, dash = look(name)
        line = {"color": colour, "width": width, "dash": dash}
        traces.append(
            go.Scatter(x=at, y=floats(curves.equity[name][kept]), name=label, mode="lines", line=line,
                       hovertemplate="%{y:.4f}", legendrank=10 + len(names) - names.index(name))
        )  # fmt: skip
    deepest = 0.0
    for name in (HOLD, AGENT):
        label, colour, width, dash = look(name)
        equity = curves.equity[name]
        peak = np.maximum.accumulate(equity)
        fall = np.where(peak > 0, equity / np.where(peak > 0, peak, 1.0) - 1, 0.0)[kept]
        deepest = min(deepest, float(fall.min()))
        fill = {"fill": "tozeroy", "fillcolor": rgba(colour, 0.16)} if name == AGENT else {}
        line = {"color": colour, "width": width * 0.8, "dash": dash}
        traces.append(
            go.Scatter(x=at, y=floats(fall), yaxis="y2", name=f"{label}, drawdown", mode="lines", line=line,
                       showlegend=False, hovertemplate="%{y:.2%}", **fill)
        )  # fmt: skip
    shape = layout(
        500,
        showlegend=True,
        hoversubplots="axis",
        xaxis=axis(anchor="y2"),
        yaxis=axis("equity / start", domain=[0.36, 1]),
        yaxis2=axis(
            "drawdown", domain=[0, 0.29], tickformat=".1~%", nticks=4, range=[1.06 * min(deepest, -1e-3), 0]
        ),
    )
    return make("equity", "Equity and drawdown", _equity_words(evaluation), traces, shape)


def agent_band(curves: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The bootstrap band around the agent's equity, where the evaluation has one."""
    return getattr(curves, "agent_band", None)


def _band(at: list[int], low: np.ndarray, high: np.ndarray, colour: str, alpha: float, name: str) -> list:
    import plotly.graph_objects as go

    edge = {"color": rgba(colour, 0.0), "width": 0}
    both = {"x": at, "mode": "lines", "line": edge, "hoverinfo": "skip", "legendgroup": name}
    return [
        go.Scatter(y=floats(low), showlegend=False, **both),
        go.Scatter(
            y=floats(high), name=name, fill="tonexty", fillcolor=rgba(colour, alpha), legendrank=100, **both
        ),
    ]


def _equity_words(evaluation: Evaluation) -> str:
    agent, hold = evaluation.row(AGENT), evaluation.row(HOLD)
    return (
        f"Equity of all accounts together over its start, after costs. The agent ends at "
        f"{1 + agent['total_return']:.4f} with a deepest fall of {percent(-agent['max_drawdown'])}; buy and "
        f"hold at {1 + hold['total_return']:.4f} with {percent(-hold['max_drawdown'])}."
    )


def breakdown(metrics: dict[str, float]) -> list[tuple[str, float, bool]]:
    """(part, share of the starting equity, it is a sum) from the result before costs to the one after."""
    after = metrics["total_return"]
    parts = [("fees", -metrics["fees"]), ("spread, slippage", -metrics["spread"])]
    parts += [("impact", -metrics["impact"]), ("financing", metrics["financing"])]
    parts += [("dividends", metrics["dividend"])] if metrics.get("dividend") else []
    before = after - sum(value for _, value in parts)
    return [("before costs", before, True), *((name, value, False) for name, value in parts),
            ("after costs", after, True)]  # fmt: skip


def costs_chart(evaluation: Evaluation) -> Chart | None:
    """A bridge from the agent's result before costs to the one after; None where it has none to show."""
    import plotly.graph_objects as go

    parts = breakdown(evaluation.row(AGENT))
    finite = all(math.isfinite(value) for _, value, _ in parts)
    if not finite or not any(value for _, value, _ in parts):
        return None
    base, running = [], 0.0
    for _, value, is_sum in parts:
        base.append(0.0 if is_sum else running)
        running = value if is_sum else running + value
    colours = [
        AGENT_COLOUR if is_sum else HOLD_COLOUR if value < 0 else EQUAL_COLOUR for _, value, is_sum in parts
    ]
    texts = [percent(value, sign=True) for _, value, _ in parts]
    labels = [f"{name}  <b>{text}</b>" for (name, _, _), text in zip(parts, texts, strict=True)]
    bar = go.Bar(
        orientation="h", y=labels, x=[value for _, value, _ in parts], base=base, marker={"color": colours},
        hovertemplate="%{y} of the starting equity<extra></extra>",
    )  # fmt: skip
    edges = [0.0, *base, *(start + value for start, (_, value, _) in zip(base, parts, strict=True))]
    room = 0.05 * max(max(edges) - min(edges), 1e-6)
    shape = layout(
        60 + 38 * len(parts),
        hovermode="closest",
        xaxis=axis("share of the starting equity", tickformat=".1~%", nticks=5, tickangle=0,
                   range=[min(edges) - room, max(edges) + room], zeroline=True, zerolinecolor=SOFT),
        yaxis=axis(autorange="reversed"),
    )  # fmt: skip
    said = ", ".join(f"{name} {text}" for (name, _, _), text in zip(parts, texts, strict=True))
    return make(
        "costs", "From the result before costs to the one after", f"Of the agent: {said}.", [bar], shape
    )


def actions_chart(evaluation: Evaluation, trained: dict[str, float]) -> Chart | None:
    """How often each target weight was asked for; ``trained``: shares by name in the last epoch."""
    import plotly.graph_objects as go

    track = evaluation.tracks[AGENT]
    if track.target_TNA is None or not track.target_TNA.size:
        return None
    target = track.target_TNA[_own_steps(evaluation)].ravel()
    if not target.size:
        return None
    kind: dict[str, Any]
    values, counts = np.unique(target, return_counts=True)
    if len(values) <= MOST_GRID:
        names = [f"{value:g}" for value in np.unique([*values, *_numbers(trained)])]
        share = {f"{value:g}": count / len(target) for value, count in zip(values, counts, strict=True)}
        found = [float(share.get(name, 0.0)) for name in names]
        traces = [go.Bar(x=names, y=found, name="here, deterministic", marker={"color": AGENT_COLOUR})]
        if trained and set(trained) <= set(names):
            drawn = [trained.get(name, 0.0) for name in names]
            traces.append(
                go.Bar(x=names, y=drawn, name="training, last epoch", marker={"color": RANDOM_COLOUR})
            )
        kind = {"type": "category"}
        said = ", ".join(
            f"{neat(name)}: {percent(value, 1)}" for name, value in zip(names, found, strict=True)
        )
    else:
        found_B, edges = np.histogram(target, bins=2 * BINS, weights=np.full(len(target), 1 / len(target)))
        middle = (edges[:-1] + edges[1:]) / 2
        width = edges[1] - edges[0]
        traces = [go.Bar(x=floats(middle), y=floats(found_B), width=0.94 * width, name="here, deterministic",
                         marker={"color": AGENT_COLOUR})]  # fmt: skip
        kind = {"nticks": 9}
        said = f"from {target.min():.2f} to {target.max():.2f}, half of them below {np.median(target):.2f}"
    for trace in traces:
        trace.hovertemplate = "%{y:.1%}"
    shape = layout(300, showlegend=len(traces) > 1, xaxis=axis("target weight, share of equity", **kind),
                   yaxis=axis("share of decisions", tickformat=".0%", rangemode="tozero"))  # fmt: skip
    return make("actions", "What the agent asks for", f"Target weights: {said}.", traces, shape)


def _own_steps(evaluation: Evaluation) -> Any:
    """Steps and accounts that are played: where there was equity to weigh."""
    return evaluation.tracks[AGENT].equity_TN[:-1] > 0


def _numbers(names: dict[str, float]) -> list[float]:
    try:
        return [float(np.float32(name)) for name in names]
    except ValueError:
        return []


def exposure_chart(evaluation: Evaluation) -> Chart:
    """Share of bars by net exposure of all accounts together, agent and buy and hold."""
    import plotly.graph_objects as go

    traces, said = [], []
    joined = {name: total(track) for name, track in evaluation.tracks.items()}
    seen = np.concatenate([track.net_TN[:, 0] for track in joined.values()])
    limit = max(1.0, float(np.abs(seen).max(initial=0.0)))
    edges = np.linspace(-limit, limit, 2 * BINS + 2) * 1.0001  # odd: flat is the middle of a bin
    for name in (AGENT, HOLD):
        if name not in joined:
            continue
        net_T, gross_T = joined[name].net_TN[:, 0], joined[name].gross_TN[:, 0]
        share, _ = np.histogram(net_T, bins=edges)
        label, colour, _, _ = look(name)
        traces.append(
            go.Bar(x=floats((edges[:-1] + edges[1:]) / 2), y=floats(share / max(len(net_T), 1)), name=label,
                   marker={"color": colour}, hovertemplate="%{y:.1%}")
        )  # fmt: skip
        said.append(f"{label} {percent(net_T.mean(), 1, True)} net, {percent(gross_T.mean(), 1)} gross")
    shape = layout(
        300, showlegend=True, barmode="group", bargap=0.06, bargroupgap=0,
        xaxis=axis("net exposure after the bar, share of equity", tickformat=".0%", nticks=7,
                   range=[-1.02 * edges[-1], 1.02 * edges[-1]]),
        yaxis=axis("share of bars", tickformat=".0%", rangemode="tozero"),
    )  # fmt: skip
    words = f"Mean exposure: {'; '.join(said)}."
    return make("exposure", "What it holds", words, traces, shape)


def lags_chart(evaluation: Evaluation) -> Chart | None:
    """Total return by fill lag, the agent's own decisions."""
    import plotly.graph_objects as go

    rows = sorted(evaluation.meta.get("fill_lag_table") or [], key=lambda row: row["fill_lag"])
    if not rows or not any(row["trades"] for row in rows):
        return None
    names = [f"lag {row['fill_lag']}" + (", as run" if row["the_runs"] else "") for row in rows]
    values = [float(row["total_return"]) for row in rows]
    colours = [LINE if row["research_only"] else AGENT_COLOUR for row in rows]
    bar = go.Bar(
        x=names, y=values, marker={"color": colours, "line": {"color": SOFT, "width": 1}},
        text=[percent(value, sign=True) for value in values], textposition="outside", cliponaxis=False,
        textfont={"color": INK}, hovertemplate="%{x}: %{y:+.3%}<extra></extra>",
    )  # fmt: skip
    room = 0.3 * max(max([*values, 0.0]) - min([*values, 0.0]), 1e-6)
    shape = layout(
        280,
        hovermode="closest",
        xaxis=axis(type="category"),
        yaxis=axis("total return", tickformat=".1~%", zeroline=True, zerolinecolor=SOFT,
                   range=[min([*values, 0.0]) - room, max([*values, 0.0]) + room]),
    )  # fmt: skip
    said = ", ".join(f"{name} {percent(value, sign=True)}" for name, value in zip(names, values, strict=True))
    words = f"The same decisions filled later: {said}. Lag 0 fills at the close just seen: research only."
    return make("lags", "How much lives on speed", words, [bar], shape)
