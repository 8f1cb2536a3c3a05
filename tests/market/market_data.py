"""Small tables of bars for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample" / "MSFT_5min.csv"
DATA = ROOT / "tests" / "data"


def walk(rows: int, seed: int = 0, symbol: str = "BTC/USD", start: str = "2024-03-01", freq: str = "5min"):
    """A raw table on the 24/7 grid; text stamps, as a CSV file has them."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(0.002 * rng.standard_normal(rows)))
    open_ = np.r_[100.0, close[:-1]] * np.exp(0.0003 * rng.standard_normal(rows))
    return pd.DataFrame(
        {
            "timestamp": pd.date_range(start, periods=rows, freq=freq, tz="UTC").strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            ),
            "symbol": symbol,
            "open": open_,
            "high": np.maximum(open_, close) * 1.001,
            "low": np.minimum(open_, close) * 0.999,
            "close": close,
            "volume": np.round(rng.uniform(10, 1000, rows)),
        }
    )


def columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The arrays that features and indicators read; the session is the UTC day."""
    bars = {name: table[name].to_numpy(dtype=float) for name in ("open", "high", "low", "close", "volume")}
    stamp = pd.DatetimeIndex(pd.to_datetime(table["timestamp"], utc=True)).as_unit("ns")
    bars["session"] = (stamp.asi8 // 86_400_000_000_000).astype(np.int32)
    return bars


def msft() -> pd.DataFrame:
    """The sample's rows on the 5-minute grid."""
    table = pd.read_csv(SAMPLE)
    return table[pd.to_datetime(table["timestamp"], utc=True).dt.minute % 5 == 0].reset_index(drop=True)
