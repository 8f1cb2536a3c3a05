"""Sessions, and the bars that they are cut into. Numpy only: an exported policy knows its sessions, too.

Stamps are int64 nanoseconds UTC and label a bar's START. ``calendar`` says which sessions there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS


@dataclass(frozen=True)
class Grid:
    """Every bar of a stretch of sessions, in time order, G of them."""

    ts_G: np.ndarray  # int64 ns UTC, bar start, strictly increasing
    session_G: np.ndarray  # int32, date of the session in days since 1970-01-01
    session_time_G: np.ndarray  # float32, 0 at a session's first bar to 1 at its last; 0 in one-bar sessions


@dataclass(frozen=True)
class Sessions:
    """P uninterrupted parts of sessions, in time order: what a grid is cut from, without its bars."""

    start_P: np.ndarray  # int64 ns UTC
    stop_P: np.ndarray
    day_P: np.ndarray  # date of the session in days since 1970-01-01
    step: int  # ns of a bar

    def count(self, first_ns: int, last_ns: int) -> int:
        """Bars that start in [first_ns, last_ns]."""
        bars_P = -((self.start_P - self.stop_P) // self.step)
        before_P = np.clip(-((self.start_P - first_ns) // self.step), 0, bars_P)
        until_P = np.clip((last_ns - self.start_P) // self.step + 1, 0, bars_P)
        return int(np.maximum(until_P - before_P, 0).sum())

    def grid(self) -> Grid:
        return cut(self.start_P, self.stop_P, self.day_P, self.step)


def cut(start_P: np.ndarray, stop_P: np.ndarray, day_P: np.ndarray, step: int) -> Grid:
    """Cut the P parts into bars; the last bar of a part may be shorter than the others."""
    n_P = -((start_P - stop_P) // step)
    offset_P = np.cumsum(n_P) - n_P
    within_G = np.arange(n_P.sum(), dtype=np.int64) - np.repeat(offset_P, n_P)
    ts_G = np.repeat(start_P, n_P) + within_G * step
    day_G = np.repeat(day_P, n_P)
    _, first_D, count_D = np.unique(day_G, return_index=True, return_counts=True)
    position_G = np.arange(len(day_G)) - np.repeat(first_D, count_D)
    session_time_G = position_G / np.maximum(np.repeat(count_D, count_D) - 1, 1)
    return Grid(ts_G, day_G.astype(np.int32), session_time_G.astype(np.float32))
