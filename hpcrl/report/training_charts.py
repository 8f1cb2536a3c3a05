"""Charts of metrics.jsonl: what training did, epoch by epoch, and what the machine did meanwhile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from hpcrl.report.chart import (
    AGENT_COLOUR,
    CROSS_COLOUR,
    EQUAL_COLOUR,
    FLAT_COLOUR,
    HOLD_COLOUR,
    OTHER_COLOUR,
    RANDOM_COLOUR,
    SOFT,
    Chart,
    axis,
    floats,
    layout,
    make,
    plain,
    thin,
)
from hpcrl.report.figures import neat, percent

Lines = Sequence[dict[str, Any]]
CURVES: tuple[tuple[str, str, tuple[tuple[str, str], ...], dict[str, Any]], ...] = (
    ("Reward", "mean per env step", (("reward", "reward, shaped"), ("log_return", "log growth")), {}),
    ("Entropy", "nats", (("entropy", "entropy"),), {}),
    ("Explained variance", "1: the critic foresees all", (("explained_variance", "explained variance"),), {}),
    ("Loss", "weighted sum", (("loss", "loss"), ("value_loss", "of the critic"),
                              ("policy_loss", "of the actor")), {}),
    ("KL divergence", "old to new policy, nats", (("approx_kl", "approx. KL"),), {}),
    ("Clipped ratios", "share of samples", (("clip_fraction", "clipped"),), {"tickformat": ".0%"}),
    ("Gradient norm", "before clipping", (("grad_norm", "gradient norm"),), {}),
    ("Learning rate", "", (("lr", "learning rate"),), {"exponentformat": "power"}),
    ("Turnover", "traded value / equity, per env step", (("turnover", "turnover"),), {"tickformat": ".0%"}),
    ("Costs", "money per env step", (("spread", "spread"), ("impact", "impact"), ("fees", "fees")), {}),
    ("Episode length", "env steps", (("episode_length", "episode length"),), {}),
    ("Bankruptcies", "in the epoch", (("bankruptcies", "bankruptcies"),), {}),
)  # fmt: skip
"""Title, unit, keys with their names, more of the y axis."""
COLOURS = (AGENT_COLOUR, HOLD_COLOUR, EQUAL_COLOUR, CROSS_COLOUR, OTHER_COLOUR, RANDOM_COLOUR, FLAT_COLOUR)
SPANS = (("time/env", "simulator"), ("time/policy", "policy"), ("time/learn", "updates"),
         ("time/rebuild", "memory"))  # fmt: skip
GPU: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("gpu/utilisation", "GPU utilisation", "", {"tickformat": ".0%", "range": [0, 1.02]}),
    ("gpu/memory_gib", "GPU memory", "GiB", {"rangemode": "tozero"}),
    ("gpu/temperature_c", "GPU temperature", "\N{DEGREE SIGN}C", {}),
    ("gpu/power_w", "GPU power", "W", {"rangemode": "tozero"}),
    ("gpu/clock_mhz", "GPU clock", "MHz", {}),
    ("gpu/throttled", "GPU throttled", "share of samples", {"tickformat": ".0%"}),
    ("host/cpu", "CPU", "share of the cores that it may use", {"tickformat": ".0%", "rangemode": "tozero"}),
    ("host/memory_gib", "Memory", "of the process, GiB", {"rangemode": "tozero"}),
)
HEIGHT = 210


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else float("nan")


def values(lines: Lines, key: str) -> list[float]:
    return [number(line.get(key)) for line in lines]


def has(lines: Lines, key: str) -> bool:
    return any(math.isfinite(value) for value in values(lines, key))


def training_charts(lines: Lines) -> list[Chart]:
    """One small chart per quantity that is there; with shaped rewards the unshaped ones beside them."""
    charts = []
    for title, unit, keys, more in CURVES:
        there = [(key, name) for key, name in keys if has(lines, key)]
        if (
            title == "Reward"
            and len(there) == 2
            and _same(values(lines, "reward"), values(lines, "log_return"))
        ):
            there = [("log_return", "reward = log growth")]
        if not there or (title == "Bankruptcies" and not any(values(lines, "bankruptcies"))):
            continue
        charts.append(_curves(f"train-{keys[0][0].replace('_', '-')}", title, unit, lines, there, more))
    shares = sorted({key for line in lines for key in line if key.startswith("action_share/")})
    if shares:
        charts.insert(min(1, len(charts)), _shares(lines, shares))
    return charts


def _same(one: list[float], other: list[float]) -> bool:
    """But for rounding: the sum of shaped terms is float64, of log growth float32."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if math.isfinite(a) or math.isfinite(b)]
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12) for a, b in pairs)


def _curves(
    key: str, title: str, unit: str, lines: Lines, there: list[tuple[str, str]], more: dict[str, Any]
) -> Chart:
    import plotly.graph_objects as go

    epochs = [line["epoch"] for line in lines]
    traces = []
    for (name, label), colour in zip(there, COLOURS, strict=False):
        found = floats(values(lines, name))
        kept = thin(found)
        traces.append(
            go.Scatter(x=[epochs[k] for k in kept], y=found[kept], name=label, hovertemplate="%{y:.4~g}",
                       mode="lines+markers" if len(kept) < 3 else "lines",
                       line={"color": colour, "width": 1.8})
        )  # fmt: skip
    shape = layout(HEIGHT, showlegend=len(there) > 1, xaxis=_epochs(), shapes=_attempts(lines),
                   yaxis=axis("", **({"exponentformat": "e", "nticks": 6} | more)))  # fmt: skip
    return make(key, title, _course(title, values(lines, there[0][0])), traces, shape, unit=unit)


def _course(title: str, found: list[float]) -> str:
    known = [value for value in found if math.isfinite(value)]
    words = f"{title}: from {known[0]:.4g} to {known[-1]:.4g}, between {min(known):.4g} and {max(known):.4g}."
    return neat(words)


def _epochs() -> dict[str, Any]:
    return axis("epoch", nticks=6, tickformat="d")


def _attempts(lines: Lines) -> list[dict[str, Any]]:
    """A dotted line where another attempt went on."""
    found = []
    for before, line in itertools.pairwise(lines):
        if before.get("time/attempt") != line.get("time/attempt"):
            at = line["epoch"] - 0.5
            found.append({"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1,
                          "line": {"color": SOFT, "width": 1, "dash": "dot"}})  # fmt: skip
    return found


def _shares(lines: Lines, keys: list[str]) -> Chart:
    import plotly.graph_objects as go

    def place(key: str) -> tuple[float, str]:
        name = key.partition("/")[2]
        try:
            return float(name.split(" ")[0].split("..")[0]), name
        except ValueError:
            return math.inf, name

    traces, said = [], []
    epochs = [line["epoch"] for line in lines]
    for at, key in enumerate(sorted(keys, key=place)):
        name = plain(key.partition("/")[2])
        found = values(lines, key)
        traces.append(
            go.Scatter(x=epochs, y=floats(found), name=name, stackgroup="all", mode="lines",
                       line={"color": COLOURS[at % len(COLOURS)], "width": 0.6}, hovertemplate="%{y:.1%}")
        )  # fmt: skip
        said.append(f"{neat(name)}: {percent(found[-1], 1)}")
    shape = layout(HEIGHT, showlegend=True, xaxis=_epochs(), shapes=_attempts(lines),
                   yaxis=axis(tickformat=".0%", range=[0, 1]))  # fmt: skip
    return make(
        "train-actions",
        "Actions while exploring",
        f"In the last epoch: {', '.join(said)}.",
        traces,
        shape,
        unit="share of env steps",
    )


def has_gpu(lines: Lines) -> bool:
    return any(has(lines, key) for key, *_ in GPU if key.startswith("gpu/"))


def machine_charts(lines: Lines) -> list[Chart]:
    """Speed, where the time went, and each figure of the GPU that the lines hold."""
    charts = []
    if has(lines, "time/steps_per_second"):
        there = [("time/steps_per_second", "env steps per second")]
        charts.append(_curves("speed", "Speed", "env steps / s", lines, there, {"rangemode": "tozero"}))
    if has(lines, "time/epoch"):
        charts.append(_spans(lines))
    return charts + timeline_charts(lines)


def _spans(lines: Lines) -> Chart:
    import plotly.graph_objects as go

    epochs, whole = [line["epoch"] for line in lines], values(lines, "time/epoch")
    kept = thin(floats(whole)).tolist()
    rest, traces = list(whole), []
    for (key, name), colour in zip(SPANS, COLOURS, strict=False):
        spent = values(lines, key)
        if not has(lines, key):
            continue
        rest = [left - used if math.isfinite(used) else left for left, used in zip(rest, spent, strict=True)]
        traces.append(_layer(epochs, spent, kept, name, colour))
    traces.append(_layer(epochs, [max(left, 0.0) for left in rest], kept, "rest", RANDOM_COLOUR))
    assert isinstance(traces[0], go.Scatter)
    shape = layout(HEIGHT, showlegend=True, xaxis=_epochs(), shapes=_attempts(lines),
                   yaxis=axis(nticks=6))  # fmt: skip
    words = _course("Seconds of an epoch", whole)
    return make("spans", "Where an epoch's time goes", words, traces, shape, unit="seconds")


def _layer(epochs: list[int], spent: list[float], kept: list[int], name: str, colour: str) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(x=[epochs[k] for k in kept], y=floats([spent[k] for k in kept]), name=name,
                      mode="lines", stackgroup="all", line={"color": colour, "width": 0.6},
                      hovertemplate="%{y:.2f} s")  # fmt: skip


def timeline_charts(lines: Lines) -> list[Chart]:
    """Of GPU and host, over the hours since the first line: what the lines have figures of."""
    import plotly.graph_objects as go

    stamps = values(lines, "time/unix")
    began = next((stamp for stamp in stamps if math.isfinite(stamp)), float("nan"))
    hours = [(stamp - began) / 3600 for stamp in stamps]
    timed = all(math.isfinite(hour) for hour in hours)
    charts = []
    for key, title, unit, more in GPU:
        if not has(lines, key):
            continue
        found = floats(values(lines, key))
        kept = thin(found).tolist()
        at = [round(hours[k], 5) if timed else lines[k]["epoch"] for k in kept]
        line = {"color": AGENT_COLOUR, "width": 1.8}
        mode = "lines+markers" if len(kept) < 3 else "lines"
        trace = go.Scatter(x=at, y=found[kept], name=title, mode=mode, line=line,
                           hovertemplate="%{y:.4~g}")  # fmt: skip
        across = axis("hours since the first epoch", nticks=6) if timed else _epochs()
        shape = layout(HEIGHT, xaxis=across, yaxis=axis(nticks=6, **more))
        charts.append(make(key.replace("/", "-").replace("_", "-"), title,
                           _course(title, values(lines, key)), [trace], shape, unit=unit))  # fmt: skip
    return charts
