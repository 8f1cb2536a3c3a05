"""Walk-forward splits in time: train, then validation, then the sealed test. Half-open rows of the grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
LEAST_PURGED = 2


def purged_bars(fill_lag: int) -> int:
    """fill_lag + 1: the last decision of a split fills and is rewarded before the next split begins."""
    return max(LEAST_PURGED, fill_lag + 1)


def cut(
    lo: int, hi: int, train_fraction: float, validation_fraction: float, fill_lag: int = 1
) -> dict[Split, tuple[int, int]]:
    """Rows [lo, hi) in three parts; the purged bars are taken from the start of the later part."""
    purged = purged_bars(fill_lag)
    total = hi - lo
    # 0.7 x 350 is 244.99999999999997: round the product's last bits away before cutting.
    train_end = lo + int(total * train_fraction + 1e-9)
    validation_end = lo + int(total * (train_fraction + validation_fraction) + 1e-9)
    validation_start = min(train_end + purged, validation_end)
    # Without a validation split the test must still keep its distance from the training rows.
    test_start = min(max(validation_end, train_end) + purged, hi)
    return {
        "train": (lo, train_end),
        "validation": (validation_start, max(validation_end, validation_start)),
        "test": (test_start, hi),
    }


def cut_between(
    ts_B: np.ndarray, lo: int, between: Mapping[str, tuple[int, int]], fill_lag: int = 1
) -> dict[Split, tuple[int, int]]:
    """The parts by time, of the tradable rows from ``lo`` on: bars that start in [from, before) seconds.

    A part keeps the same distance from the one before it as in ``cut``.
    """
    found: dict[Split, tuple[int, int]] = {}
    free, end = lo, lo
    for name in ("train", "validation", "test"):
        if name not in between:
            found[name] = (end, end)
            continue
        first, last = np.searchsorted(ts_B, between[name]).tolist()
        start = min(max(first, free), len(ts_B))
        end = max(last, start)
        found[name] = (start, end)
        free = end + purged_bars(fill_lag)
    return found
