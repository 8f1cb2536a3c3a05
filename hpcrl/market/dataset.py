"""The market in host memory: all symbols of a run on one time grid, features unscaled.

Built by ``load.load_market``; ``Market.to`` puts it on a device. Seconds UTC, bar start; prices in the
source's currency; NaN where a bar is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.scaler import Scaler
from hpcrl.market.sigma import known_sigma
from hpcrl.market.splits import Split, cut, cut_between
from hpcrl.market.synthetic import made_up
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError


@dataclass(frozen=True, eq=False)
class Market:
    """B bars of the union of the symbols' grids, S symbols, F features."""

    symbols: tuple[str, ...]
    feature_names: tuple[str, ...]
    bar_seconds: int
    source: str
    sha256: str  # of the whole file's contents, also where only some symbols were chosen
    attributes: dict[str, Any]  # the file's header
    ts_B: np.ndarray  # int64, seconds
    open_BS: np.ndarray  # float64, as high, low, close and volume NaN where missing
    high_BS: np.ndarray
    low_BS: np.ndarray
    close_BS: np.ndarray
    volume_BS: np.ndarray
    present_BS: np.ndarray  # bool
    feature_BSF: np.ndarray  # float32; 0 before a symbol's first bar, the last known one where missing
    session_B: np.ndarray  # int32, days since 1970-01-01
    session_time_B: np.ndarray  # float32, 0 to 1
    split_BS: np.ndarray  # float64, 1 where none
    dividend_BS: np.ndarray  # float64, 0 where none
    delist_BS: np.ndarray  # float64, NaN where none
    first_bar_S: np.ndarray  # int64, first row after the symbol's burn-in; B where it has none
    last_bar_S: np.ndarray  # int64, last present row
    train_fraction: float = 0.70
    validation_fraction: float = 0.15
    between: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Seconds [from, before) of each split, where the config gives times in place of the fractions."""

    @property
    def made_up(self) -> bool:
        """Whether the bars are no market's: no claim of performance follows from them."""
        return made_up(self.source)

    @property
    def n_bars(self) -> int:
        return len(self.ts_B)

    def split_range(self, name: Split, fill_lag: int = 1) -> tuple[int, int]:
        """Half-open rows of a split of the tradable rows (first burn-in that ends .. end), purged."""
        lo = int(self.first_bar_S.min())
        if self.between:
            parts = cut_between(self.ts_B, lo, self.between, fill_lag)
        else:
            parts = cut(lo, self.n_bars, self.train_fraction, self.validation_fraction, fill_lag)
        if name not in parts:
            raise HpcrlError(f"split {name!r} is not known; use one of {', '.join(parts)}")
        return parts[name]

    def require(self, split: Split, steps: int, fill_lag: int = 1) -> tuple[int, int]:
        """``split_range`` if an episode of ``steps`` steps fits there for some symbol, else HpcrlError."""
        lo, hi = self.split_range(split, fill_lag)
        there_S = np.minimum(self.last_bar_S + 1, hi) - np.maximum(self.first_bar_S, lo)
        if int(there_S.max()) >= steps + 1:
            return lo, hi
        burn_in = self.attributes.get("burn_in", 0)
        raise HpcrlError(
            f"market data too short: the {split} split has {max(int(there_S.max()), 0)} tradable bars "
            f"of a symbol, an episode of {steps} steps needs {steps + 1} (the file has {self.n_bars:,} bars, "
            f"of which each symbol's first {burn_in} are burn-in); stage more bars or shorten the episode"
        )

    def to(self, device: torch.device | str, scaler: Scaler) -> MarketTensors:
        """The market on ``device``, features scaled. HpcrlError if the scaler is for other features."""
        if scaler.feature_names != self.feature_names:
            raise HpcrlError(
                f"the feature scaler was fitted on {', '.join(scaler.feature_names)}; "
                f"the market has {', '.join(self.feature_names)}"
            )
        last_BS = self._last_present()
        known_BS = last_BS >= 0
        mark_BS = np.where(
            known_BS, np.take_along_axis(self.close_BS, np.maximum(last_BS, 0), axis=0), np.nan
        )
        arrays = {
            name: np.where(self.present_BS, getattr(self, name), mark_BS)
            for name in ("open_BS", "high_BS", "low_BS")
        }
        arrays |= {
            "ts_B": self.ts_B,
            "close_BS": mark_BS,
            "volume_BS": np.where(self.present_BS, self.volume_BS, 0.0),
            "sigma_BS": self._sigma(),
            "feature_BSF": scaler.apply(self.feature_BSF),
        }
        same = (
            "present_BS",
            "split_BS",
            "dividend_BS",
            "delist_BS",
            "session_time_B",
            "first_bar_S",
            "last_bar_S",
        )
        arrays |= {name: getattr(self, name) for name in same}
        tensors = {name: torch.tensor(array, device=device) for name, array in arrays.items()}
        return MarketTensors(**tensors, symbols=self.symbols)

    def _last_present(self) -> np.ndarray:
        """Row of the last present bar at or before each bar [B, S], -1 before the first."""
        row_BS = np.where(self.present_BS, np.arange(self.n_bars)[:, None], -1)
        return np.maximum.accumulate(row_BS, axis=0)

    def _sigma(self) -> np.ndarray:
        """``known_sigma`` of every symbol [B, S], 0 where it is not known."""
        close_BS = np.where(self.present_BS, self.close_BS, np.nan)
        each = [known_sigma(close_BS[:, s], self.split_BS[:, s]) for s in range(len(self.symbols))]
        return np.nan_to_num(np.stack(each, axis=1))


def assemble(
    bars: list[SymbolBars],
    feature_names: tuple[str, ...],
    columns: list[int],
    header: dict[str, Any],
    fractions: tuple[float, float],
) -> Market:
    """Put the symbols on the union of their grids. ``columns``: which of the stored features, in order."""
    ts_B = np.unique(np.concatenate([one.ts for one in bars]))
    shape = (len(ts_B), len(bars))
    price: dict[str, Any] = {
        name: np.full(shape, np.nan) for name in ("open", "high", "low", "close", "volume", "delist")
    }
    filled: dict[str, Any] = {
        "split": np.ones(shape),
        "dividend": np.zeros(shape),
        "present": np.zeros(shape, dtype=bool),
    }
    feature_BSF = np.zeros((*shape, len(columns)), dtype=np.float32)
    session_B, session_time_B = np.zeros(len(ts_B), dtype=np.int32), np.zeros(len(ts_B), dtype=np.float32)
    first_bar_S, last_bar_S = np.full(len(bars), len(ts_B)), np.zeros(len(bars), dtype=np.int64)
    for s, one in enumerate(bars):
        at = np.searchsorted(ts_B, one.ts)
        for name, array in (price | filled).items():
            array[at, s] = getattr(one, name)
        session_B[at], session_time_B[at] = one.session, one.session_time
        # Bars of the others' sessions in between and after keep the last known features.
        last_B = np.searchsorted(one.ts, ts_B, side="right") - 1
        for f, column in enumerate(columns):  # features lie feature by feature
            feature_BSF[at[0] :, s, f] = one.features[:, column][last_B[at[0] :]]
        there = at[one.present]
        last_bar_S[s] = there[-1]
        if len(there) > header["burn_in"]:
            first_bar_S[s] = there[header["burn_in"]]
    return Market(
        symbols=tuple(one.symbol for one in bars),
        feature_names=feature_names,
        bar_seconds=int(header["bar_seconds"]),
        source=header["source"],
        sha256=header["sha256"],
        attributes=header,
        ts_B=ts_B // SECOND_NS,
        feature_BSF=feature_BSF,
        session_B=session_B,
        session_time_B=session_time_B,
        first_bar_S=first_bar_S.astype(np.int64),
        last_bar_S=last_bar_S,
        train_fraction=fractions[0],
        validation_fraction=fractions[1],
        **{f"{name}_BS": array for name, array in (price | filled).items()},
    )
