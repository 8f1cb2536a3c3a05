"""Leaks, planted one at a time in a small market: in its raw table, or in one function of the pipeline.

No check knows of them. A leak in a feature is staged by the leaky code into the file too, as it would be, so
that it is found by what it does and not by a comparison with the stored values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hpcrl.audit.pipeline import Case, restage
from hpcrl.env.simulator import Simulator
from hpcrl.market.bars import SymbolBars
from hpcrl.market.dataset import Market
from hpcrl.market.features import FEATURES, compute_features
from hpcrl.market.scaler import Scaler, fit_scaler
from hpcrl.market.splits import Split
from hpcrl.market.tensors import MarketTensors

Frame = Callable[[pd.DataFrame], pd.DataFrame]
Spoil = Callable[[Case], Case]
Compute = Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]
"""(one symbol's present bars, one feature's honest values [R]) -> leaky values [R]."""


@dataclass(frozen=True)
class Leak:
    name: str
    frame: Frame | None = None
    case: Spoil | None = None


# ---- features


def _feature(name: str, leaky: Compute) -> Spoil:
    """The feature ``name`` computed by ``leaky``, in the file and whenever it is staged again."""

    def stage(one: SymbolBars, names: tuple[str, ...], own: frozenset[str], bar_seconds: int) -> SymbolBars:
        honest = restage(one, names, own, bar_seconds)
        at, column = np.flatnonzero(honest.present), names.index(name)
        bars = {
            key: getattr(honest, key)[at] for key in ("open", "high", "low", "close", "volume", "session")
        }
        value_R = leaky(bars, honest.features[at, column].astype(np.float64))
        features = honest.features.copy()
        features[:, column] = np.nan_to_num(value_R)[np.cumsum(honest.present) - 1].astype(np.float32)
        return replace(honest, features=features)

    return _staged_by(stage)


def _staged_by(stage: Callable[..., SymbolBars]) -> Spoil:
    def spoil(case: Case) -> Case:
        spoilt = replace(case, pipeline=replace(case.pipeline, stage=stage))
        return replace(spoilt, bars=tuple(spoilt.stage(one) for one in case.bars))

    return spoil


def _later(value_R: np.ndarray, ahead: int = 1) -> np.ndarray:
    """The value ``ahead`` rows later; the end repeats."""
    return value_R[np.minimum(np.arange(len(value_R)) + ahead, len(value_R) - 1)]


def _centred(bars: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
    middle = pd.Series(bars["close"]).rolling(21, center=True, min_periods=1).mean().to_numpy()
    return bars["close"] / middle - 1


def _warm_up_backfilled(bars: dict[str, np.ndarray], value_R: np.ndarray) -> np.ndarray:
    return pd.Series(np.where(value_R == 0, np.nan, value_R)).bfill().to_numpy()


def _whole_vwap(bars: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
    typical = (bars["high"] + bars["low"] + bars["close"]) / 3
    table = pd.DataFrame({"s": bars["session"], "m": typical * bars["volume"], "v": bars["volume"]})
    total = table.groupby("s")[["m", "v"]].transform("sum")
    return bars["close"] / (total["m"] / total["v"]).to_numpy() - 1


def _right_label(bars: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
    """15-minute bars labelled by their right edge, laid on 5-minute bars by the next label."""
    last = np.minimum(np.arange(len(bars["close"])) // 3 * 3 + 2, len(bars["close"]) - 1)
    return bars["close"] / bars["close"][last] - 1


def _whole_z(bars: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
    return (bars["volume"] - bars["volume"].mean()) / bars["volume"].std()


def _next_high(bars: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
    return _later(bars["high"]) / bars["close"] - 1


def _label(bars: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
    return np.sign(_later(bars["close"]) - bars["close"])


def _gaps_from_next(one: SymbolBars, names: tuple[str, ...], own: frozenset[str], seconds: int) -> SymbolBars:
    """Missing bars take the next bar's features."""
    honest = restage(one, names, own, seconds)
    at = np.flatnonzero(honest.present)
    following = at[np.searchsorted(at, np.arange(len(honest.present)))]
    return replace(honest, features=honest.features[following])


def _stored_shifted(case: Case) -> Case:
    """The file was staged by other, leaky code; the code that is here is honest."""
    shifted = [replace(one, features=np.vstack([one.features[1:], one.features[-1:]])) for one in case.bars]
    return replace(case, bars=tuple(shifted))


# ---- market, scaler, splits


def _pipeline(**functions: Any) -> Spoil:
    return lambda case: replace(case, pipeline=replace(case.pipeline, **functions))


def _marks_from_next(market: Market, device: str, scaler: Scaler) -> MarketTensors:
    fresh: dict[str, Any] = {}
    honest = Market.to(market, device, scaler)
    for name in ("open_BS", "high_BS", "low_BS", "close_BS"):
        close = pd.DataFrame(np.where(market.present_BS, market.close_BS, np.nan)).bfill().ffill().to_numpy()
        fresh[name] = torch.where(honest.present_BS, getattr(honest, name), torch.tensor(close))
    return replace(honest, **fresh)


def _scaled_by_maximum(market: Market, device: str, scaler: Scaler) -> MarketTensors:
    honest = Market.to(market, device, scaler)
    return replace(
        honest, feature_BSF=honest.feature_BSF / honest.feature_BSF.abs().amax((0, 1)).clamp_min(1.0)
    )


def _scaler_of_all(market: Market, lo: int, hi: int) -> Scaler:
    return fit_scaler(market, lo, market.n_bars)


def _moved_split(rows: int) -> Spoil:
    """Validation and test begin ``rows`` rows after what is before them ends."""

    def split(market: Market, name: Split, fill_lag: int) -> tuple[int, int]:
        lo, hi = market.split_range(name, fill_lag)
        before: dict[Split, Split] = {"validation": "train", "test": "validation"}
        return (lo, hi) if name == "train" else (market.split_range(before[name], fill_lag)[1] + rows, hi)

    return _pipeline(split=split)


# ---- simulators


def _filling_at(name: str, ahead: int) -> type[Simulator]:
    """Orders fill at the price ``name`` of the bar ``ahead`` of the one just seen."""

    class Filling(Simulator):
        def __init__(self, market: MarketTensors, *args: Any, **options: Any) -> None:
            price = getattr(market, name)
            super().__init__(replace(market, open_BS=price.roll(1 - ahead, 0)), *args, **options)

    return Filling


class SeesNextBar(Simulator):
    """Tokens hold the features of the bar that is about to be traded."""

    def __init__(self, market: MarketTensors, *args: Any, **options: Any) -> None:
        super().__init__(replace(market, feature_BSF=market.feature_BSF.roll(-1, 0)), *args, **options)


class SeesNextReturn(Simulator):
    """The last entry of the token tells the next bar's return."""

    def observe(self) -> Tensor:
        token_NE = super().observe()
        close, row_N = self.market.close_BS, self.bar_N
        after_N = (row_N + 1).clamp_max(self.market.n_bars - 1)
        symbol_N = self.symbol_NA[:, 0]
        token_NE[:, -1] += (close[after_N, symbol_N] / close[row_N, symbol_N]).log().float()
        return token_NE


class KeepsHistory(Simulator):
    """An episode's history ends with the last token of the episode before."""

    _last: Tensor | None = None

    def observe(self) -> Tensor:
        self._last = super().observe()
        return self._last.clone()

    def begin_at(self, symbol_NA: Tensor, bar_N: Tensor) -> tuple[Tensor, Tensor]:
        history_NME, length_N = super().begin_at(symbol_NA, bar_N)
        if self._last is not None:
            history_NME[:, -1] = self._last
        return history_NME, length_N


class RunningMean(Simulator):
    """Tokens are centred by the mean of all tokens seen so far, of whatever episode."""

    _seen = 0
    _sum: Tensor | float = 0.0

    def observe(self) -> Tensor:
        token_NE = super().observe()
        self._seen, self._sum = self._seen + 1, self._sum + token_NE.mean(0, keepdim=True)
        return token_NE - self._sum / self._seen


class BatchCentred(Simulator):
    """Tokens are centred over the accounts that play beside each other."""

    def observe(self) -> Tensor:
        token_NE = super().observe()
        return token_NE - token_NE.mean(0, keepdim=True)


# ---- raw tables


def _column(value: Callable[[pd.DataFrame], np.ndarray]) -> Frame:
    """The source's column ``signal`` made by ``value`` from one symbol's rows."""

    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        parts = [rows.assign(signal=value(rows)) for _, rows in frame.groupby("symbol", sort=False)]
        return pd.concat(parts, ignore_index=True)

    return spoil


def _bars(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    found = {name: rows[name].to_numpy(dtype=float) for name in ("open", "high", "low", "close", "volume")}
    return found | {
        "session": (rows["timestamp"].astype("int64") // 86_400_000_000_000).to_numpy(dtype=np.int32)
    }


def _next_return(rows: pd.DataFrame, ahead: int = 1) -> np.ndarray:
    close = rows["close"].to_numpy()
    return np.log(_later(close, ahead) / close)


def _noisy_return(rows: pd.DataFrame) -> np.ndarray:
    value = _next_return(rows)
    return value + 0.8 * value.std() * np.random.default_rng(0).standard_normal(len(value))


def _volatility_to_come(rows: pd.DataFrame) -> np.ndarray:
    moves = pd.Series(np.log(rows["close"].to_numpy())).diff()
    return moves.rolling(12).std().shift(-12).ffill().bfill().to_numpy()


def _coarse_close(rows: pd.DataFrame) -> np.ndarray:
    return rows.groupby(rows["timestamp"].dt.floor("15min"))["close"].transform("last").to_numpy()


def _next_feature(name: str) -> Callable[[pd.DataFrame], np.ndarray]:
    def value(rows: pd.DataFrame) -> np.ndarray:
        column = compute_features(_bars(rows), np.ones(len(rows)), "leak")[:, list(FEATURES).index(name)]
        return _later(column)

    return value


def _standardised(rows: pd.DataFrame) -> np.ndarray:
    signal = rows["signal"].to_numpy()
    return (signal - signal.mean()) / signal.std()


def _ends_as_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Every bar labelled by its end."""
    return frame.assign(timestamp=frame["timestamp"] + pd.Timedelta(300, unit="s"))


def _one_late(frame: pd.DataFrame) -> pd.DataFrame:
    """The first symbol's bars stand one bar late beside the others."""
    late, names = frame["symbol"] == frame["symbol"].min(), ["open", "high", "low", "close", "volume"]
    return frame.assign(**{name: frame[name].where(~late, frame[name].shift(1).bfill()) for name in names})


def _gaps_filled(frame: pd.DataFrame) -> pd.DataFrame:
    """Every twentieth bar shows the next one's open, without volume."""
    gap = np.arange(len(frame)) % 20 == 7
    prices = frame[["open", "high", "low", "close"]].to_numpy(copy=True)
    prices[gap] = _later(frame["open"].to_numpy())[gap, None]
    filled = frame.assign(volume=np.where(gap, 0.0, frame["volume"]))
    filled[["open", "high", "low", "close"]] = prices
    return filled


def _fill_lag_0(case: Case) -> Case:
    env = case.config.env.model_copy(update={"fill_lag": 0})
    return replace(case, config=case.config.model_copy(update={"env": env}))


LEAKS: tuple[Leak, ...] = (
    Leak("feature shifted by -1", case=_feature("rsi14", lambda bars, value: _later(value))),
    Leak("centred window", case=_feature("sma20", _centred)),
    Leak("feature back-filled in its warm-up", case=_feature("volatility_78", _warm_up_backfilled)),
    Leak("future high in the feature", case=_feature("range", _next_high)),
    Leak("label in the feature", case=_feature("return_1", _label)),
    Leak("VWAP of the whole session", case=_feature("vwap", _whole_vwap)),
    Leak("resampling by right label", case=_feature("return_3", _right_label)),
    Leak("feature standardised over the whole sample", case=_feature("volume_z", _whole_z)),
    Leak("missing bars take the next bar's features", case=_staged_by(_gaps_from_next)),
    Leak("file staged by leaky code", case=_stored_shifted),
    Leak("back-fill: missing bars marked at the next close", case=_pipeline(tensors=_marks_from_next)),
    Leak("features divided by their whole-sample maximum", case=_pipeline(tensors=_scaled_by_maximum)),
    Leak("scaler of the whole sample", case=_pipeline(scaler=_scaler_of_all)),
    Leak("splits that overlap", case=_moved_split(-10)),
    Leak("splits without a purge", case=_moved_split(0)),
    Leak("fill at the close just seen", case=_pipeline(simulator=_filling_at("close_BS", 0))),
    Leak("fill at the open of the bar just seen", case=_pipeline(simulator=_filling_at("open_BS", 0))),
    Leak("fill at the next bar's low", case=_pipeline(simulator=_filling_at("low_BS", 1))),
    Leak("env.fill_lag = 0", case=_fill_lag_0),
    Leak("observation of the next bar", case=_pipeline(simulator=SeesNextBar)),
    Leak("next return in the observation", case=_pipeline(simulator=SeesNextReturn)),
    Leak("history of the episode before", case=_pipeline(simulator=KeepsHistory)),
    Leak("running mean over episodes", case=_pipeline(simulator=RunningMean)),
    Leak("observations centred over the batch", case=_pipeline(simulator=BatchCentred)),
    Leak("bars labelled by their end", frame=_ends_as_labels),
    Leak("one symbol's bars a bar late", frame=_one_late),
    Leak("source fills gaps from the next bar", frame=_gaps_filled),
    Leak("column: next return", frame=_column(_next_return)),
    Leak("column: next return and noise", frame=_column(_noisy_return)),
    Leak("column: sign of the next 12 bars", frame=_column(lambda rows: np.sign(_next_return(rows, 12)))),
    Leak("column: centred mean", frame=_column(lambda rows: _centred(_bars(rows), np.empty(0)))),
    Leak(
        "column: VWAP of the whole session", frame=_column(lambda rows: _whole_vwap(_bars(rows), np.empty(0)))
    ),
    Leak("column: next bar's high", frame=_column(lambda rows: _later(rows["high"].to_numpy()))),
    Leak("column: 15-minute close before it has closed", frame=_column(_coarse_close)),
    Leak("column: label of the next 20 bars", frame=_column(lambda rows: np.sign(_next_return(rows, 20)))),
    Leak("column: volatility of the next 12 bars", frame=_column(_volatility_to_come)),
    Leak("column: RSI of the next bar", frame=_column(_next_feature("rsi14"))),
    Leak("column standardised over the whole sample", frame=_column(_standardised)),
)
