"""Sums, means and deviations over a moving window of rows. Numpy only: an exported policy computes them, too.

Each window is summed by itself, from blocks of 1, 2, 4 ... rows, so that a value depends on its window's rows
alone, bit for bit, and not on where the series began: running sums drift. Rows (R) in order of time; NaN
until a window is whole, and where a value of it is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CHUNK = 1 << 16
"""Windows worked out at a time: of a million rows the blocks would take 100 MB."""


def window_sum(value_R: np.ndarray, window: int) -> np.ndarray:
    """Sum of the last ``window`` values, float64 [R]."""
    out_R = np.full(len(value_R), np.nan)
    for lo, hi in _chunks(len(value_R), window):
        block = value_R[lo : hi + window - 1]
        total, size, rows = None, 1, hi - lo
        offset = 0
        while True:
            if window & size:
                part = block[offset : offset + rows]
                total = part if total is None else total + part
                offset += size
            if 2 * size > window:
                break
            block = block[:-size] + block[size:]
            size *= 2
        out_R[lo + window - 1 : hi + window - 1] = total
    return out_R


def window_moments(value_R: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation with ddof 1) of the last ``window`` values, float64 [R] each.

    Blocks are joined as Chan, Golub and LeVeque (1979) do: stable, and exactly (c, 0) where all values are c.
    """
    mean_R, std_R = np.full(len(value_R), np.nan), np.full(len(value_R), np.nan)
    for lo, hi in _chunks(len(value_R), window):
        mean, square = _chunk_moments(value_R[lo : hi + window - 1], window, hi - lo)
        mean_R[lo + window - 1 : hi + window - 1] = mean
        std_R[lo + window - 1 : hi + window - 1] = np.sqrt(square / (window - 1))
    return mean_R, std_R


def _chunk_moments(value_K: np.ndarray, window: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations of the ``rows`` windows that begin in the first rows."""
    mean, square = value_K, np.zeros(len(value_K))  # of the blocks of ``size`` rows
    mean_W, square_W = value_K[:rows], np.zeros(rows)  # of the first ``done`` rows of each window
    size, done = 1, 0
    while True:
        if window & size:
            part = slice(done, done + rows)
            apart = mean[part] - mean_W
            mean_W = mean_W + apart * (size / (done + size))
            square_W = square_W + square[part] + apart * apart * (done * size / (done + size))
            done += size
        if 2 * size > window:
            return mean_W, square_W
        apart = mean[size:] - mean[:-size]
        square = square[:-size] + square[size:] + apart * apart * (size / 2)
        mean = mean[:-size] + 0.5 * apart
        size *= 2


def _chunks(rows: int, window: int) -> Iterator[tuple[int, int]]:
    """[lo, hi) of the windows' first rows."""
    whole = rows - window + 1
    for lo in range(0, whole, CHUNK):
        yield lo, min(lo + CHUNK, whole)
