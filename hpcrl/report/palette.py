"""Which member is drawn how: the same in all pictures of a population.

The colours are Okabe and Ito's (2008), which the colour-blind tell apart, without their yellow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcrl.pbt.history import Past, best_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8A8F98")
"""One each for up to eight members."""
LEADERS = 3
"""Of more, so many have a colour, the best at the end."""
GREY = "#B4B8BF"
INK = "#444A54"
"""Of words, and of what belongs to no member."""


@dataclass(frozen=True)
class Look:
    colour: str
    width: float
    """Of a line, in points."""
    named: bool
    best: bool

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "linewidth": self.width, "zorder": 3 if self.best else 2.5 * self.named}


def looks(past: Sequence[Past]) -> dict[int, Look]:
    """Of each member."""
    best = best_of(past)
    ranked = sorted(past, key=lambda one: -one.newest.record.objective if one.newest else float("inf"))
    named = [one.member for one in (past if len(past) <= len(COLOURS) else ranked[:LEADERS])]
    found = {}
    for one in past:
        is_best = best is not None and best.member == one.member
        colour = COLOURS[named.index(one.member)] if one.member in named else GREY
        width = 2.4 if is_best else 1.5 if one.member in named else 0.9
        found[one.member] = Look(colour, width, one.member in named, is_best)
    return found
