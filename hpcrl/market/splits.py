"""Walk-forward splits in time: train, then validation, then the sealed test. Half-open rows of the grid."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation", "test"]
PURGED_BARS = 2
"""fill_lag + 1: the last decision of a split fills and is rewarded before the next split begins."""


def cut(lo: int, hi: int, train_fraction: float, validation_fraction: float) -> dict[Split, tuple[int, int]]:
    """Rows [lo, hi) in three parts; the purged bars are taken from the start of the later part."""
    total = hi - lo
    # 0.7 x 350 is 244.99999999999997: round the product's last bits away before cutting.
    train_end = lo + int(total * train_fraction + 1e-9)
    validation_end = lo + int(total * (train_fraction + validation_fraction) + 1e-9)
    validation_start = min(train_end + PURGED_BARS, validation_end)
    # Without a validation split the test must still keep its distance from the training rows.
    test_start = min(max(validation_end, train_end) + PURGED_BARS, hi)
    return {
        "train": (lo, train_end),
        "validation": (validation_start, max(validation_end, validation_start)),
        "test": (test_start, hi),
    }
