"""Sigma: what the simulator's impact is measured in, for market data and replayed cases alike."""

from __future__ import annotations

import numpy as np

SIGMA_BARS = 78
"""One US session of 5-minute bars."""
SIGMA_LEAST = 20
"""Fewer known log returns than this give no deviation, and so no impact (design of the simulator)."""
_SIGMA_ROWS = 1 << 16


def known_sigma(close_B: np.ndarray, split_B: np.ndarray) -> np.ndarray:
    """Standard deviation (ddof 1) of the last ``SIGMA_BARS`` log returns known at each bar's close [B]; NaN
    below ``SIGMA_LEAST`` of them. ``split_B``: shares after / before, 1 where none.

    ``close_B`` is NaN where a bar is missing: returns run from one real close to the next, without the jump
    of the splits between them, and a missing bar holds the last value. Each window is summed afresh.
    """
    there_R = np.flatnonzero(np.isfinite(close_B))
    sigma_B = np.full(len(close_B), np.nan)
    if len(there_R) <= SIGMA_LEAST:
        return sigma_B
    log_R = (np.log(close_B) + np.cumsum(np.log(split_B)))[there_R]
    # The first windows are shorter: NaN in front of the first return, cut off below.
    return_R = np.r_[np.full(SIGMA_BARS - 1, np.nan), np.diff(log_R)]
    window_RW = np.lib.stride_tricks.sliding_window_view(return_R, SIGMA_BARS)
    known_R = np.full(len(there_R), np.nan)
    short = min(SIGMA_BARS - 1, len(window_RW))
    for last in range(SIGMA_LEAST - 1, short):
        known_R[last + 1] = np.std(window_RW[last, SIGMA_BARS - 1 - last :], ddof=1)
    for lo in range(short, len(window_RW), _SIGMA_ROWS):  # a pass makes a copy of every window
        part = window_RW[lo : lo + _SIGMA_ROWS]
        known_R[lo + 1 : lo + 1 + len(part)] = np.std(part, axis=1, ddof=1)
    held_B = np.cumsum(np.isfinite(close_B)) - 1
    return np.where(held_B >= 0, known_R[held_B], np.nan)
