"""Objectives and hyperparameters of a population over env steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hpcrl.config.pbt import Hyperparameter
from hpcrl.pbt.history import Past
from hpcrl.pbt.population import Population
from hpcrl.report.palette import GREY, INK, Look, looks

MOST_BANDS = 4
"""Members whose spread is shown; of more, only the best one's: bands on bands hide each other."""
_LABEL_POINTS = 13.0
"""Height of a label's line."""


def draw_objective(figure: Any, population: Population, past: Sequence[Past]) -> None:
    """Each member's objective at each of its turns, its spread, and where it took over another."""
    axes = figure.subplots()
    found = looks(past)
    began = [one for one in past if one.turns]
    for one in sorted(began, key=lambda one: found[one.member].width):
        look = found[one.member]
        steps = [turn.record.env_steps for turn in one.turns]
        objective = [turn.record.objective for turn in one.turns]
        axes.plot(steps, objective, marker="o", markersize=2.2 + look.width, **look.line)
        if look.best or len(past) <= MOST_BANDS:
            low = [turn.record.objective - turn.record.spread for turn in one.turns]
            high = [turn.record.objective + turn.record.spread for turn in one.turns]
            axes.fill_between(steps, low, high, color=look.colour, alpha=0.13, linewidth=0, zorder=1)
        took = [turn.record for turn in one.turns if turn.donor is not None]
        axes.scatter(
            [record.env_steps for record in took],
            [record.objective for record in took],
            marker="v",
            s=46,
            facecolor="white",
            edgecolor=look.colour if look.named else INK,
            linewidth=1.2,
            zorder=4,
        )
    _label_ends(axes, began, found)
    _env_steps(axes)
    axes.set_ylabel("objective (mean score of a validation window, log growth)")
    axes.set_xlabel("env steps of a member")
    _legend(figure, axes, len(past) <= MOST_BANDS)
    _tidy(axes)


def _legend(figure: Any, axes: Any, all_bands: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    whose = "" if all_bands else ", of the best member"
    handles = [
        Line2D([], [], marker="v", linestyle="", markersize=7, markerfacecolor="white", markeredgecolor=INK,
               label="takes over another member here"),
        Patch(color=INK, alpha=0.15, linewidth=0, label=f"1 standard error over windows{whose}"),
    ]  # fmt: skip
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9
    )


def _label_ends(axes: Any, past: Sequence[Past], found: dict[int, Look]) -> None:
    """Each member's name beside the plot at the height of its last objective, moved apart where they meet."""
    ends = []
    for one in past:
        assert one.newest is not None
        record = one.newest.record
        ends.append((record.objective, record.env_steps, one.member))
    place = axes.transData + axes.transAxes.inverted()
    heights = [float(place.transform((steps, objective))[1]) for objective, steps, _ in ends]
    room = axes.figure.get_size_inches()[1] * 72 * 0.8
    apart = _spread(heights, _LABEL_POINTS / room)
    for (objective, steps, member), height in zip(ends, apart, strict=True):
        look = found[member]
        text = axes.annotate(
            f"member {member}{', best' if look.best else ''}  {objective:#.3g}",
            xy=(steps, objective),
            xytext=(1.02, height),
            textcoords="axes fraction",
            fontsize=9,
            va="center",
            annotation_clip=False,
            color=look.colour if look.named else INK,
            weight="bold" if look.best else "normal",
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
        text.set_in_layout(True)


def _spread(heights: Sequence[float], least: float) -> list[float]:
    """The same heights in the same order, ``least`` apart and between 0 and 1, moved little."""

    def within(centre: float, count: int) -> float:
        room = least * count / 2
        return min(max(centre, room), 1 - room)

    order = sorted(range(len(heights)), key=lambda k: heights[k])
    groups: list[tuple[float, list[int]]] = []  # centre, members from below
    for k in order:
        groups.append((within(heights[k], 1), [k]))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= least * (len(below) + len(above)) / 2:
                break
            both = below + above
            centre = (low * len(below) + high * len(above)) / len(both)
            groups[-2:] = [(within(centre, len(both)), both)]
    found = [0.0] * len(heights)
    for centre, each in groups:
        for place, k in enumerate(each):
            found[k] = centre + (place - (len(each) - 1) / 2) * least
    return found


def draw_hyperparameters(figure: Any, population: Population, past: Sequence[Past]) -> None:
    """Each key of the space, on its own scale, over env steps: what a member trained with up to there."""
    space = population.pbt.space
    columns = 1 if len(space) <= 4 else 2
    rows = math.ceil(len(space) / columns)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    found = looks(past)
    for axes, (key, bounds) in zip(panels, space.items(), strict=False):
        for one in sorted(past, key=lambda one: found[one.member].width):
            if one.turns:
                values = [turn.record.hyperparameters[key] for turn in one.turns]
                steps = [0, *(turn.record.env_steps for turn in one.turns)]
                shown = [_shown(value, bounds) for value in (values[0], *values)]
                axes.step(steps, shown, where="pre", **found[one.member].line)
        _scale(axes, key, bounds)
        _env_steps(axes)
        _tidy(axes)
    for axes in panels[len(space) :]:
        axes.remove()
    for axes in panels[: len(space)][-columns:]:
        axes.set_xlabel("env steps of a member")
        axes.tick_params(labelbottom=True)
    figure.align_ylabels()
    _name_members(figure, past, found)


def _shown(value: float, bounds: Hyperparameter) -> float:
    return 1 - value if bounds.scale == "one_minus" else value


def _scale(axes: Any, key: str, bounds: Hyperparameter) -> None:
    """The whole space, its bounds dotted."""
    low, high = sorted((_shown(bounds.low, bounds), _shown(bounds.high, bounds)))
    if bounds.scale == "linear":
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)
    else:
        axes.set_yscale("log")
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin, high * margin)
    for bound in (low, high):
        axes.axhline(bound, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    name = key.removeprefix("learn.").removeprefix("env.")
    axes.set_ylabel(f"1 - {name}" if bounds.scale == "one_minus" else name)


def _name_members(figure: Any, past: Sequence[Past], found: dict[int, Look]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=found[one.member].colour, linewidth=found[one.member].width,
               label=f"member {one.member}{', best' if found[one.member].best else ''}")
        for one in past if found[one.member].named
    ]  # fmt: skip
    if len(handles) < len(past):
        handles.append(Line2D([], [], color=GREY, linewidth=1.0, label="the others"))
    handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (1, 2)), label="bounds"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)


def _env_steps(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _tidy(axes: Any) -> None:
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
