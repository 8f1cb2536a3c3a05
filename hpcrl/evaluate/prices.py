"""The bars that a rule is played on: a staged file, a market in memory, or plain arrays.

Arrays are a mapping (or a data frame) with ``ts`` (unix seconds, or numpy's datetime64 in UTC), ``open``,
``high``, ``low``, ``close``, ``volume`` and, where wanted, ``split``, ``dividend`` and ``delist``, each [B]
or, for several symbols, [B, S]. A missing bar is NaN in its four prices; nothing is sorted, filled, dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from hpcrl.config.market import MarketConfig
from hpcrl.evaluate.case import LAST_TS, ORDER_SLACK, PRICES
from hpcrl.evaluate.metrics import periods_per_year
from hpcrl.market.dataset import Market
from hpcrl.market.load import load_market
from hpcrl.market.scaler import identity_scaler
from hpcrl.market.sigma import known_sigma
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

DAY_SECONDS = 86_400
OPTIONAL = {"split": 1.0, "dividend": 0.0, "delist": np.nan}


@dataclass(frozen=True, eq=False)
class Prices:
    """B bars of S symbols, as the simulator reads them and as rules look at them."""

    tensors: MarketTensors
    symbols: tuple[str, ...]
    session_B: np.ndarray  # days since 1970-01-01
    periods: int  # sessions of a year
    market: Market | None = None  # None: made of arrays, without splits in time
    _averages: dict[int, Tensor] = field(default_factory=dict)

    @property
    def unsplit_BS(self) -> Tensor:
        return unsplit(self.tensors)

    def average(self, bars: int) -> Tensor:
        """``moving_average`` of the closes, kept for the next rule that asks for it."""
        if bars not in self._averages:
            self._averages[bars] = moving_average(self.unsplit_BS, bars)
        return self._averages[bars]


def unsplit(market: MarketTensors) -> Tensor:
    """[B, S]: the marks in units of each symbol's first share, without the jumps of splits."""
    return market.close_BS * market.split_BS.cumprod(0)


def moving_average(value_BS: Tensor, bars: int) -> Tensor:
    """[B, S]: mean of the last ``bars`` values, this bar's included; NaN where one is not known."""
    filled_SB = functional.pad(value_BS.T, (bars - 1, 0), value=float("nan"))
    return functional.avg_pool1d(filled_SB[:, None], bars, stride=1)[:, 0].T


def read_prices(
    source: str | Path | Market | Mapping[str, Any] | pd.DataFrame,
    *,
    symbols: Sequence[str] = (),
    device: str | torch.device = "cpu",
) -> Prices:
    """``symbols``: of a file those to use (none: all), of arrays their names.

    HpcrlError: a missing file or symbol, columns that are missing or of different lengths, bars that are not
    in order, prices that are not above 0 or do not fit each other.
    """
    if isinstance(source, str | Path):
        source = load_market(MarketConfig(path=str(source), symbols=tuple(symbols)))
    if not isinstance(source, Market):
        return _of_arrays(source, tuple(symbols), torch.device(device))
    bare = replace(source, feature_names=(), feature_BSF=source.feature_BSF[:, :, :0])
    return Prices(
        bare.to(device, identity_scaler(())),
        source.symbols,
        source.session_B,
        periods_per_year(str(source.attributes.get("calendar", ""))),
        source,
    )


def _of_arrays(source: Any, symbols: tuple[str, ...], device: torch.device) -> Prices:
    for name in ("ts", *PRICES, "volume"):
        if name not in source:
            raise HpcrlError(f"bars: column {name!r} is missing; ts, {', '.join(PRICES)}, volume are needed")
    ts_B = _stamps(np.asarray(source["ts"]))
    price = {name: _column(source[name], name, ts_B) for name in PRICES}
    shape = price["close"].shape
    optional = {
        name: _column(source[name], name, ts_B) if name in source else np.full(shape, without)
        for name, without in OPTIONAL.items()
    }
    volume_BS = np.nan_to_num(_column(source["volume"], "volume", ts_B))
    names = symbols or tuple(f"asset_{s}" if shape[1] > 1 else "asset" for s in range(shape[1]))
    for name, array in (price | optional | {"volume": volume_BS}).items():
        if array.shape != shape:
            raise HpcrlError(f"bars: {name} is {array.shape}, close is {shape}; one shape is needed")
    if len(names) != shape[1]:
        raise HpcrlError(f"bars: {len(names)} symbols ({', '.join(names)}) for {shape[1]} columns of prices")
    _check(price, volume_BS, optional["split"], names)
    tensors = _tensors(ts_B, price, volume_BS, optional, names, device)
    weekend = bool((((ts_B // DAY_SECONDS) + 3) % 7 >= 5).any())
    return Prices(tensors, names, ts_B // DAY_SECONDS, periods_per_year("24/7" if weekend else ""))


def _stamps(ts_B: np.ndarray) -> np.ndarray:
    if np.issubdtype(ts_B.dtype, np.datetime64):
        ts_B = ts_B.astype("datetime64[s]").astype(np.int64)
    if ts_B.ndim != 1 or not np.issubdtype(ts_B.dtype, np.integer):
        raise HpcrlError(f"bars: ts is {ts_B.dtype} {ts_B.shape}; one unix second per bar is needed")
    if len(ts_B) < 2:
        raise HpcrlError(f"bars: there are {len(ts_B)}; at least 2 are needed")
    late = np.flatnonzero(np.diff(ts_B) <= 0)
    if len(late):
        b = int(late[0]) + 1
        raise HpcrlError(f"bars: ts = {ts_B[b]} of bar {b} is not after the previous bar's {ts_B[b - 1]}")
    if abs(int(ts_B[-1])) > LAST_TS:
        raise HpcrlError(f"bars: ts = {ts_B[-1]} must be unix seconds; this is after the year 5000")
    return ts_B.astype(np.int64)


def _column(value: Any, name: str, ts_B: np.ndarray) -> np.ndarray:
    """[B, S] float64."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise HpcrlError(f"bars: {name} holds something other than numbers") from None
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != len(ts_B):
        raise HpcrlError(f"bars: {name} is {array.shape} for {len(ts_B)} bars; [bars] or [bars, symbols]")
    return array


def _check(
    price: dict[str, np.ndarray], volume_BS: np.ndarray, split_BS: np.ndarray, names: tuple[str, ...]
) -> None:
    there = {name: np.isfinite(array) for name, array in price.items()}
    worst = np.minimum(price["open"], price["close"]) * (1 + ORDER_SLACK)
    best = np.maximum(price["open"], price["close"]) * (1 - ORDER_SLACK)
    with np.errstate(invalid="ignore"):
        wrong = {
            "one of four prices is missing": there["open"] & there["high"] & there["low"] & there["close"]
            != there["open"] | there["high"] | there["low"] | there["close"],
            "a price is not above 0": np.logical_or.reduce([array <= 0 for array in price.values()]),
            "a price is infinite": np.logical_or.reduce([np.isinf(array) for array in price.values()]),
            "the low is above the open or the close": price["low"] > worst,
            "the high is below the open or the close": price["high"] < best,
            "the volume is negative or infinite": (volume_BS < 0) | np.isinf(volume_BS),
            "the split is not above 0": ~((split_BS > 0) & np.isfinite(split_BS)),
        }
    for said, where_BS in wrong.items():
        for b, s in np.argwhere(where_BS)[:1]:
            shown = ", ".join(f"{name} {array[b, s]:g}" for name, array in price.items())
            raise HpcrlError(f"bars: {names[s]}, bar {b}: {said} ({shown}, volume {volume_BS[b, s]:g})")
    for s, name in enumerate(names):
        if not there["close"][:, s].any():
            raise HpcrlError(f"bars: {name} has no bar")


def _tensors(
    ts_B: np.ndarray,
    price: dict[str, np.ndarray],
    volume_BS: np.ndarray,
    optional: dict[str, np.ndarray],
    names: tuple[str, ...],
    device: torch.device,
) -> MarketTensors:
    present_BS = np.isfinite(price["close"])
    mark_BS = pd.DataFrame(price["close"]).ffill().to_numpy()
    bars, symbols = present_BS.shape
    sigma = [known_sigma(price["close"][:, s], optional["split"][:, s]) for s in range(symbols)]
    arrays = {f"{name}_BS": np.where(present_BS, array, mark_BS) for name, array in price.items()}
    arrays |= {f"{name}_BS": array for name, array in optional.items()}
    arrays |= {
        "ts_B": ts_B,
        "volume_BS": np.where(present_BS, volume_BS, 0.0),
        "present_BS": present_BS,
        "sigma_BS": np.nan_to_num(np.stack(sigma, axis=1)),
        "feature_BSF": np.zeros((bars, symbols, 0), dtype=np.float32),
        "session_time_B": np.zeros(bars, dtype=np.float32),
        "first_bar_S": present_BS.argmax(0),
        "last_bar_S": bars - 1 - present_BS[::-1].argmax(0),
    }
    return MarketTensors(
        **{name: torch.tensor(array, device=device) for name, array in arrays.items()}, symbols=names
    )
