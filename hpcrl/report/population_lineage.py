"""Who copied whom: a row per member, generations from left to right, an arrow from a donor to its copy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hpcrl.pbt.history import Past, Point, ancestry, best_of
from hpcrl.pbt.population import Population
from hpcrl.report.palette import COLOURS, GREY, INK

MOST_NODES = 60
"""Generations whose records are dots; more would touch each other."""
_LIVES = COLOURS[0]
_LEAVES, _LANDS = 0.12, 0.55
"""Of a generation: where, after its turn, an arrow leaves the donor, and where it meets the one that copies.
Clear of the dots, which lie at 0."""


def draw_lineage(figure: Any, population: Population, past: Sequence[Past]) -> None:
    best = best_of(past)
    assert best is not None
    axes = figure.subplots()
    line = ancestry(past, best.member)
    lives = set(zip(line[1:], line, strict=False))  # (from, to), both points
    for one in past:
        _row(axes, one, lives)
    _draw_nodes(axes, past, set(line))
    newest = max(one.newest.record.generation for one in past if one.newest)
    axes.set_xlim(-0.2, newest + 0.75)
    axes.set_ylim(len(past) - 0.4, -0.6)  # member 0 above
    axes.set_yticks(range(len(past)), [f"member {one.member}" for one in past])
    for label, one in zip(axes.get_yticklabels(), past, strict=True):
        _emphasise(label, one.member == best.member)
    for one in past:
        if one.newest:
            record = one.newest.record
            text = axes.annotate(
                f"{record.objective:#.3g} \N{PLUS-MINUS SIGN} {record.spread:.2g}",
                (1.01, one.member),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9,
            )
            _emphasise(text, one.member == best.member)
    axes.annotate("objective", (1.01, 1.0), xycoords="axes fraction", fontsize=9, color=INK, va="bottom")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"generation (one every {population.pbt.interval} epochs)")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(True, axis="x", alpha=0.25, linewidth=0.6)
    _legend(axes)


def _row(axes: Any, one: Past, lives: set[tuple[Point, Point]]) -> None:
    """The member's own line, and the arrows that it was copied by."""
    member = one.member
    donors = {turn.record.generation: turn.donor for turn in one.turns}
    reached = [0, *donors]
    for before, after in itertools.pairwise(reached):
        donor = donors.get(before)
        begin = before if donor is None else before + _LANDS
        source = (member, before) if donor is None else donor
        _stretch(axes, begin, after, member, (source, (member, after)) in lives)
    for generation, donor in donors.items():
        if donor is not None:
            _arrow(axes, donor, (member, generation), (donor, (member, generation + 1)) in lives)


def _stretch(axes: Any, begin: float, end: float, member: int, is_alive: bool) -> None:
    style = (
        {"color": _LIVES, "linewidth": 2.8, "zorder": 3} if is_alive else {"color": GREY, "linewidth": 1.6}
    )
    axes.plot([begin, end], [member, member], solid_capstyle="butt", **style)


def _arrow(axes: Any, donor: Point, copy: Point, is_alive: bool) -> None:
    axes.annotate(
        "",
        xy=(copy[1] + _LANDS, copy[0]),
        xytext=(donor[1] + _LEAVES, donor[0]),
        arrowprops={
            "arrowstyle": "-|>",
            "color": _LIVES if is_alive else INK,
            "linewidth": 2.0 if is_alive else 0.9,
            "alpha": 1.0 if is_alive else 0.75,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 11,
        },
        zorder=3.5 if is_alive else 2,
    )


def _draw_nodes(axes: Any, past: Sequence[Past], line: set[Point]) -> None:
    points = [(one.member, turn.record.generation) for one in past for turn in one.turns]
    if max((point[1] for point in points), default=0) <= MOST_NODES:
        for is_alive, colour, size in ((False, GREY, 22), (True, _LIVES, 34)):
            shown = [point for point in points if (point in line) == is_alive]
            axes.scatter([g for _, g in shown], [m for m, _ in shown], s=size, color=colour, zorder=4)
    gone = [(one.member, turn.record.generation) for one in past for turn in one.turns if turn.donor]
    axes.scatter(
        [g for _, g in gone], [m for m, _ in gone], marker="x", s=34, color=INK, linewidth=1.3, zorder=5
    )


def _emphasise(text: Any, is_best: bool) -> None:
    text.set_color(_LIVES if is_best else INK)
    text.set_weight("bold" if is_best else "normal")


def _legend(axes: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_LIVES, linewidth=2.8, marker="o", markersize=5.5,
               label="lives on in the best member"),
        Line2D([], [], color=INK, linewidth=0.9, marker=">", markersize=5, markevery=[1],
               label="copied: weights, moments, hyperparameters"),
        Line2D([], [], color=INK, linestyle="", marker="x", markersize=6, label="given up for another's"),
    ]  # fmt: skip
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9
    )
