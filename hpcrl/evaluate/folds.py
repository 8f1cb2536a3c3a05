"""Purged, embargoed folds in time. Half-open rows of the grid; knows neither data nor torch.

A decision's reward reaches ``purged`` rows on (``market.splits.purged_bars``), so the rows next to a test
block are left out on both sides of it: before it, because their rewards reach into it; after it, because its
own rewards reach into them. What trains after a test block also sees features that look back into it, for
which the embargo leaves out more (Lopez de Prado 2018, chapter 7). Walk-forward trains on the past alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpcrl.types import HpcrlError

Rows = tuple[int, int]
LEAST_TEST = 2
"""Bars of a test block: one step."""


@dataclass(frozen=True)
class Fold:
    """``train`` may lie on both sides of the test block."""

    train: tuple[Rows, ...]
    validation: Rows
    """Empty where there is none."""
    test: Rows

    def overlaps(self) -> bool:
        """Whether any two of its ranges share a row."""
        ranges = sorted(each for each in (*self.train, self.validation, self.test) if each[0] < each[1])
        return any(one[1] > other[0] for one, other in itertools.pairwise(ranges))


def purged_folds(lo: int, hi: int, folds: int, *, purged: int = 2, embargo: int = 0) -> tuple[Fold, ...]:
    """K-fold: each block of rows [lo, hi) is the test once; training has the rest, but for ``purged`` rows
    before it and ``purged + embargo`` after it."""
    _check(folds, purged, embargo, least=2)
    cuts = _blocks(lo, hi, folds)
    found = []
    for a, b in itertools.pairwise(cuts):
        sides = ((lo, a - purged), (b + purged + embargo, hi))
        train = tuple(side for side in sides if side[0] < side[1])
        found.append(Fold(train, (a, a), (a, b)))
    return tuple(found)


def walk_forward_folds(
    lo: int,
    hi: int,
    folds: int,
    *,
    purged: int = 2,
    embargo: int = 0,
    first: float = 0.5,
    validation: float = 0.15,
    window: Literal["expanding", "rolling"] = "expanding",
) -> tuple[Fold, ...]:
    """Test blocks side by side over the last 1 - ``first`` of the rows [lo, hi), each after its training.

    The last ``validation`` of the rows before a test block are the fold's validation split. Training begins
    at ``lo`` (expanding), or keeps the first fold's length (rolling). ``purged + embargo`` rows are left out
    before validation and before the test block. HpcrlError: shares or numbers that leave a part empty.
    """
    _check(folds, purged, embargo, least=1)
    if not 0 < first < 1:
        raise HpcrlError(
            f"first = {first:g}: the share of rows before the first test block is above 0, below 1"
        )
    if not 0 <= validation < 1:
        raise HpcrlError(f"validation = {validation:g}: a share of 0 up to, but not, 1")
    if window not in ("expanding", "rolling"):
        raise HpcrlError(f"window {window!r} is not known; use expanding or rolling")
    gap = purged + embargo
    begin = lo + int((hi - lo) * first + 1e-9)
    cuts = _blocks(begin, hi, folds)
    length = begin - gap - lo
    found = []
    for a, b in itertools.pairwise(cuts):
        end = a - gap
        start = lo if window == "expanding" else max(lo, end - length)
        kept = int((end - start) * validation + 1e-9)
        train = (start, end - kept - (gap if kept else 0))
        if train[1] - train[0] < 1:
            raise HpcrlError(
                f"rows {lo} to {hi} in {folds} folds leave no training rows before row {a}: stage more bars, "
                f"or less than embargo = {embargo}"
            )
        found.append(Fold((train,), (end - kept, end), (a, b)))
    return tuple(found)


def _check(folds: int, purged: int, embargo: int, least: int) -> None:
    if folds < least:
        raise HpcrlError(f"folds = {folds}: at least {least} needed")
    if purged < 0 or embargo < 0:
        raise HpcrlError(f"purged = {purged}, embargo = {embargo}: rows are counted from 0 up")


def _blocks(lo: int, hi: int, folds: int) -> list[int]:
    """Ends of blocks that differ by one row at most. HpcrlError: too few rows."""
    if hi - lo < LEAST_TEST * folds:
        raise HpcrlError(f"{max(hi - lo, 0)} rows make no {folds} test blocks of at least {LEAST_TEST} bars")
    return [int(cut) for cut in np.linspace(lo, hi, folds + 1).round()]
