"""The market on one device, as simulator and policy read it. Built by ``Market.to``; never changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MarketTensors:
    """One common time grid of B bars for S symbols. A missing bar has ``present`` False.

    ``close_BS`` is the mark: the last close known at bar b, NaN before a symbol's first bar, never
    back-filled. ``open_BS``, ``high_BS``, ``low_BS`` equal the mark where the bar is missing.
    ``sigma_BS`` is the standard deviation (ddof 1) of the last 78 log returns known at the close of
    bar b, 0 where fewer than 20 are known. ``feature_BSF`` is scaled; at a missing bar it holds the
    last known values. ``session_time_B`` runs from 0 (first bar of a session) to 1 (last bar).
    ``first_bar_S`` is the first bar after a symbol's burn-in, ``last_bar_S`` its last bar (inclusive).
    """

    ts_B: Tensor  # int64, unix seconds, bar start
    open_BS: Tensor  # float64
    high_BS: Tensor  # float64
    low_BS: Tensor  # float64
    close_BS: Tensor  # float64, mark
    volume_BS: Tensor  # float64, 0 where missing
    present_BS: Tensor  # bool
    sigma_BS: Tensor  # float64
    split_BS: Tensor  # float64, 1 where none
    dividend_BS: Tensor  # float64, 0 where none
    delist_BS: Tensor  # float64, NaN where none
    feature_BSF: Tensor  # float32, scaled
    session_time_B: Tensor  # float32
    first_bar_S: Tensor  # int64
    last_bar_S: Tensor  # int64
    symbols: tuple[str, ...] = ()  # names; empty where nothing asks for them

    @property
    def device(self) -> torch.device:
        return self.ts_B.device

    @property
    def n_bars(self) -> int:
        return self.open_BS.shape[0]

    @property
    def n_symbols(self) -> int:
        return self.open_BS.shape[1]

    @property
    def n_features(self) -> int:
        return self.feature_BSF.shape[2]
