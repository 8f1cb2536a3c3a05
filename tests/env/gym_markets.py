"""Staged files for the Gymnasium adapters, small enough to be made for each session of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hpcrl.market.stage import stage_frame, stage_planted

FREE = {
    "half_spread": 0,
    "impact_coef": 0,
    "participation": None,
    "per_share": 0,
    "min_fee": 0,
    "borrow_rate": 0,
}
RECKLESS = {"max_leverage": 3.0, "lot": 0, "costs": {"participation": None, "bps": 1, "debit_rate": 0.05}}
"""Every cost on, but leverage that the crashing market ruins."""


def planted_file(folder: Path, bars: int = 500, paths: int = 3) -> Path:
    """Market L2: three symbols, one feature; after 250 rows of burn-in, 350 are its train split."""
    return stage_planted(folder / "l2.h5", "L2", bars=bars, paths=paths, seed=4).path


def crashing_file(folder: Path, bars: int = 800) -> Path:
    """Two symbols whose prices halve within a bar, every 23 bars of A and every 31 of B, and climb back."""
    rng = np.random.default_rng(8)
    tables = []
    for symbol, every in (("AAA", 23), ("BBB", 31)):
        back = np.log(2) / (every - 1)
        step = np.where(np.arange(bars) % every == every - 1, -np.log(2), back)
        close = 100 * np.exp(np.cumsum(step + 1e-3 * rng.standard_normal(bars)))
        opened = np.r_[100.0, close[:-1]]
        tables.append(
            pd.DataFrame(
                {
                    "timestamp": pd.date_range("2024-03-01", periods=bars, freq="5min", tz="UTC"),
                    "symbol": symbol,
                    "open": opened,
                    "high": np.maximum(opened, close),
                    "low": np.minimum(opened, close),
                    "close": close,
                    "volume": 1e6,
                    "mood": rng.standard_normal(bars),
                }
            )
        )
    return stage_frame(
        pd.concat(tables, ignore_index=True),
        folder / "crashing.h5",
        source="test",
        calendar="24/7",
        features=("mood",),
        computed=False,
    ).path
