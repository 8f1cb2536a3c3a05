"""A population in the page: objectives, schedules of hyperparameters, and who copied whom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hpcrl.config.pbt import Hyperparameter
from hpcrl.pbt.history import Past, ancestry, best_of
from hpcrl.pbt.population import Population
from hpcrl.report.chart import AGENT_COLOUR, INK, PAPER, SOFT, Chart, axis, layout, make, rgba
from hpcrl.report.figures import plural
from hpcrl.report.palette import GREY, Look, looks

MOST_BANDS = 4
"""Members whose spread is shown; of more, only the best one's."""
_LEAVES, _LANDS = 0.12, 0.55
"""Of a generation: where, after its turn, an arrow leaves the donor, and where it meets the copy."""


def population_charts(population: Population, past: Sequence[Past]) -> tuple[Chart, list[Chart], Chart]:
    """(objective, one schedule per key of the space, lineage). At least one member has published."""
    found = looks(past)
    schedules = [_schedule(key, bounds, past, found) for key, bounds in population.pbt.space.items()]
    return _objective(past, found), schedules, _lineage(population, past)


def member_name(member: int, look: Look) -> str:
    return f"member {member}{', best' if look.best else ''}"


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour.lower(), "width": look.width + 0.2}


def _drawn(past: Sequence[Past], found: dict[int, Look]) -> list[Past]:
    """Those that have taken a turn, the boldest last."""
    return sorted((one for one in past if one.turns), key=lambda one: found[one.member].width)


def _objective(past: Sequence[Past], found: dict[int, Look]) -> Chart:
    import plotly.graph_objects as go

    traces: list[Any] = []
    for one in _drawn(past, found):
        look = found[one.member]
        records = [turn.record for turn in one.turns]
        steps = [record.env_steps for record in records]
        if look.best or len(past) <= MOST_BANDS:
            edges = [record.objective - record.spread for record in records]
            edges += [record.objective + record.spread for record in reversed(records)]
            traces.append(
                go.Scatter(x=[*steps, *reversed(steps)], y=edges, fill="toself", mode="lines",
                           line={"width": 0, "color": look.colour.lower()}, hoverinfo="skip",
                           fillcolor=rgba(look.colour, 0.13), showlegend=False)
            )  # fmt: skip
        traces.append(
            go.Scatter(x=steps, y=[record.objective for record in records], mode="lines+markers",
                       name=member_name(one.member, look), line=_line(look), showlegend=look.named,
                       marker={"size": 5}, customdata=[record.generation for record in records],
                       hovertemplate="%{y:.4~g} (generation %{customdata})")
        )  # fmt: skip
        took = [turn.record for turn in one.turns if turn.donor is not None]
        if took:
            traces.append(
                go.Scatter(x=[record.env_steps for record in took], y=[record.objective for record in took],
                           mode="markers", showlegend=False, hoverinfo="skip",
                           marker={"symbol": "triangle-down", "size": 11, "color": PAPER,
                                   "line": {"color": look.colour.lower(), "width": 1.6}})
            )  # fmt: skip
    traces.append(
        go.Scatter(x=[None], y=[None], mode="markers", name="takes over another member here",
                   marker={"symbol": "triangle-down", "size": 10, "color": PAPER,
                           "line": {"color": INK, "width": 1.4}})
    )  # fmt: skip
    best = best_of(past)
    assert best is not None
    shape = layout(
        420, showlegend=True, hovermode="closest",
        xaxis=axis("env steps of a member", exponentformat="SI", rangemode="tozero"),
        yaxis=axis("objective, log growth of a window", exponentformat="SI"),
    )  # fmt: skip
    words = (
        f"Each member's mean score of a validation window at each of its turns, with one standard error. "
        f"Member {best.member} is best with {best.objective:.4g} \N{PLUS-MINUS SIGN} {best.spread:.2g}."
    )
    return make("pbt-objective", "Objective", words, traces, shape)


def _schedule(key: str, bounds: Hyperparameter, past: Sequence[Past], found: dict[int, Look]) -> Chart:
    import plotly.graph_objects as go

    one_minus = bounds.scale == "one_minus"

    def shown(value: float) -> float:
        return 1 - value if one_minus else value

    traces = []
    for one in _drawn(past, found):
        look = found[one.member]
        values = [shown(turn.record.hyperparameters[key]) for turn in one.turns]
        steps = [0, *(turn.record.env_steps for turn in one.turns)]
        traces.append(
            go.Scatter(x=steps, y=[values[0], *values], mode="lines", line=_line(look) | {"shape": "vh"},
                       name=member_name(one.member, look), hovertemplate="%{y:.4~g}")
        )  # fmt: skip
    low, high = sorted((shown(bounds.low), shown(bounds.high)))
    name = key.removeprefix("learn.").removeprefix("env.")
    name = f"1 - {name}" if one_minus else name
    linear = bounds.scale == "linear"
    edge = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "line": {"color": SOFT, "width": 1, "dash": "dot"},
    }
    scale: dict[str, Any] = {} if linear else {"type": "log", "exponentformat": "power", "dtick": 1}
    shape = layout(
        230, hovermode="closest", shapes=[edge | {"y0": bound, "y1": bound} for bound in (low, high)],
        xaxis=axis("env steps of a member", exponentformat="SI", rangemode="tozero", nticks=6),
        yaxis=axis(**scale),
    )  # fmt: skip
    words = f"{name} that each member trained with; it may go from {low:.4g} to {high:.4g} (dotted)."
    return make(f"pbt-{key.replace('.', '-').replace('_', '-')}", name, words, traces, shape)


def _lineage(population: Population, past: Sequence[Past]) -> Chart:
    """A row per member, generations from left to right, an arrow from a donor to its copy."""
    import plotly.graph_objects as go

    best = best_of(past)
    assert best is not None
    line = ancestry(past, best.member)
    lives = set(zip(line[1:], line, strict=False))
    rows: dict[bool, tuple[list, list]] = {True: ([], []), False: ([], [])}
    arrows: dict[bool, tuple[list, list]] = {True: ([], []), False: ([], [])}
    ends: dict[bool, tuple[list, list, list]] = {True: ([], [], []), False: ([], [], [])}
    for one in past:
        donors = {turn.record.generation: turn.donor for turn in one.turns}
        for before, after in itertools.pairwise([0, *donors]):
            donor = donors.get(before)
            alive = ((one.member, before) if donor is None else donor, (one.member, after)) in lives
            rows[alive][0].extend([before if donor is None else before + _LANDS, after, None])
            rows[alive][1].extend([one.member, one.member, None])
        for generation, donor in donors.items():
            if donor is None:
                continue
            alive = (donor, (one.member, generation + 1)) in lives
            arrows[alive][0].extend([donor[1] + _LEAVES, generation + _LANDS, None])
            arrows[alive][1].extend([donor[0], one.member, None])
            ends[alive][0].append(generation + _LANDS)
            ends[alive][1].append(one.member)
            ends[alive][2].append("triangle-down" if one.member > donor[0] else "triangle-up")
    traces: list[Any] = []
    for alive, colour, width in ((False, GREY.lower(), 1.6), (True, AGENT_COLOUR, 3.2)):
        name = "lives on in the best member" if alive else "other members"
        both = {"mode": "lines", "hoverinfo": "skip", "line": {"color": colour, "width": width}}
        traces.append(go.Scatter(x=rows[alive][0], y=rows[alive][1], name=name, **both))
        both["line"] = {"color": colour if alive else SOFT, "width": 2.0 if alive else 1.0}
        traces.append(go.Scatter(x=arrows[alive][0], y=arrows[alive][1], showlegend=False, **both))
        marker = {"symbol": ends[alive][2], "size": 8, "color": colour if alive else SOFT}
        traces.append(
            go.Scatter(x=ends[alive][0], y=ends[alive][1], mode="markers", marker=marker, hoverinfo="skip",
                       name="copied: weights, moments, settings",
                       showlegend=not alive and bool(arrows[False][0]))
        )  # fmt: skip
    traces += _nodes(past, set(line))
    newest = max(turn.record.generation for one in past for turn in one.turns)
    names = [f"member {one.member}" + (" (best)" if one.member == best.member else "") for one in past]
    shape = layout(
        130 + 26 * len(past), showlegend=True, hovermode="closest",
        xaxis=axis(f"generation of {plural(population.pbt.interval, 'epoch')}", range=[-0.2, newest + 0.75],
                   tickformat="d", nticks=min(newest + 2, 12)),
        yaxis=axis(range=[len(past) - 0.4, -0.6], tickvals=[one.member for one in past], ticktext=names,
                   gridcolor="rgba(0,0,0,0)"),
    )  # fmt: skip
    copies = sum(one.exploits for one in past)
    words = f"{plural(len(past), 'member')}, {plural(copies, 'copy', 'copies')}. {_descent(line)}"
    return make("pbt-lineage", "Lineage", words, traces, shape)


def _descent(line: Sequence[tuple[int, int]]) -> str:
    """In words: through which members the weights of the best went. ``line``: its ancestry, newest first."""
    best = line[0][0]
    # Of each member that it went through, the last generation there.
    ways = [next(points) for _, points in itertools.groupby(line, key=lambda point: point[0])]
    if len(ways) == 1:
        return f"The best, member {best}, copied nobody: its weights are its own from the start."
    told = ", then ".join(f"of member {m} up to generation {g}" for m, g in reversed(ways[1:]))
    return f"The weights of the best, member {best}, were {told}."


def _nodes(past: Sequence[Past], line: set[tuple[int, int]]) -> list[Any]:
    import plotly.graph_objects as go

    traces = []
    for alive, colour, size in ((False, GREY.lower(), 6), (True, AGENT_COLOUR, 8)):
        turns = [(one, turn) for one in past for turn in one.turns
                 if ((one.member, turn.record.generation) in line) == alive]  # fmt: skip
        texts = [f"member {one.member}, generation {turn.record.generation}: objective "
                 f"{turn.record.objective:.4g} \N{PLUS-MINUS SIGN} {turn.record.spread:.2g}"
                 + (f"; takes over member {turn.donor[0]}" if turn.donor else "")
                 for one, turn in turns]  # fmt: skip
        traces.append(
            go.Scatter(x=[turn.record.generation for _, turn in turns], y=[one.member for one, _ in turns],
                       mode="markers", marker={"size": size, "color": colour}, text=texts, showlegend=False,
                       hovertemplate="%{text}<extra></extra>")
        )  # fmt: skip
    gone = [(one.member, turn.record.generation) for one in past for turn in one.turns if turn.donor]
    if gone:
        traces.append(
            go.Scatter(x=[g for _, g in gone], y=[m for m, _ in gone], mode="markers", hoverinfo="skip",
                       name="given up for another's",
                       marker={"symbol": "x-thin", "size": 8, "line": {"color": INK, "width": 1.6}})
        )  # fmt: skip
    return traces
