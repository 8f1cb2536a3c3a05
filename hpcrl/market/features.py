"""What the policy reads about each bar: causal, scale-free, unscaled here (``scaler`` centres them).

The value at bar t is known at t's close and reads bars <= t of the same symbol only. Rows (R) are the
symbol's present bars; warm-up rows are 0. After ``BURN_IN`` bars every value is finite, and the Wilder-
smoothed ones have forgotten their start to 1e-6 (measured: ADX14 needs 225 bars).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import talib

from hpcrl.market.indicators import Columns, indicator
from hpcrl.market.rolling import window_moments, window_sum
from hpcrl.types import HpcrlError

BURN_IN = 250
"""Present bars of a symbol before its first tradable one."""
VOLATILITY_BARS = 78
"""One US session of 5-minute bars."""
BAND_BARS = 20
PRICES = ("open", "high", "low", "close")
OF_THE_SOURCE = "column of the source, known at the bar's close"
"""Definition of a feature that is not computed."""
EXTREME = 10.0
"""Ratios that can run away (a z-score after a dead spell) are cut at this; a guess, rarely reached."""


@dataclass(frozen=True)
class Feature:
    definition: str
    compute: Callable[[Columns], np.ndarray]  # present bars -> float64 [R], NaN or inf in the warm-up


def _ratio(part_R: np.ndarray, whole_R: np.ndarray) -> np.ndarray:
    """part / whole where whole > 0, else 0 (a dead market: constant price, no volume); NaN stays NaN."""
    known_R = np.isfinite(part_R) & np.isfinite(whole_R)
    out_R = np.zeros(len(part_R))
    np.divide(part_R, whole_R, out=out_R, where=known_R & (whole_R > 0))
    out_R[~known_R] = np.nan
    return out_R


def log_return(bars: Columns, lag: int) -> np.ndarray:
    """ln(close / close ``lag`` rows ago) [R]; NaN in the first ``lag`` rows."""
    close_R = bars["close"]
    out_R = np.full(len(close_R), np.nan)
    out_R[lag:] = np.log(close_R[lag:] / close_R[:-lag])
    return out_R


def realised_volatility(bars: Columns, window: int) -> np.ndarray:
    """Standard deviation (ddof 1) of the last ``window`` one-bar log returns [R]; NaN before."""
    return window_moments(log_return(bars, 1), window)[1]


def _overnight_gap(bars: Columns) -> np.ndarray:
    session_R = bars["session"]
    first_R = np.r_[False, session_R[1:] != session_R[:-1]]
    gap_R = np.zeros(len(session_R))
    gap_R[1:] = np.log(bars["open"][1:] / bars["close"][:-1])
    # Held through the session: the value of the session's first row, 0 in the first session.
    start_R = np.maximum.accumulate(np.where(first_R, np.arange(len(session_R)), 0))
    return np.where(start_R > 0, gap_R[start_R], 0.0)


def _volume_z(bars: Columns) -> np.ndarray:
    mean_R, std_R = window_moments(bars["volume"], VOLATILITY_BARS)
    z_R = _ratio(bars["volume"] - mean_R, std_R)
    return np.clip(z_R, -EXTREME, EXTREME)


def _bollinger_position(bars: Columns) -> np.ndarray:
    # Not TA-Lib's: its running sums drift with the length of the series, in the band more than in the mean.
    middle_R, std_R = window_moments(bars["close"], BAND_BARS)
    half_R = 2.0 * math.sqrt((BAND_BARS - 1) / BAND_BARS) * std_R
    half_R = np.where(half_R < 1e-6 * middle_R, 0.0, half_R)  # hardly a tick wide
    return np.clip(_ratio(bars["close"] - middle_R, half_R), -EXTREME, EXTREME)


def _centred(name: str, middle: float, half: float, window: int = 0) -> Callable[[Columns], np.ndarray]:
    """An oscillator with fixed bounds, moved to [-1, 1]; clipped, as running sums can leave the bounds.

    TA-Lib answers 0 where nothing moved, which would read as an extreme: there the value is the middle.
    ``window``: bars that count for "moved"; 0: all bars so far (Wilder's smoothing never forgets).
    """

    def compute(bars: Columns) -> np.ndarray:
        high_R, low_R = bars["high"], bars["low"]
        if window:
            dead_R = talib.MAX(high_R, timeperiod=window) == talib.MIN(low_R, timeperiod=window)
        else:
            dead_R = np.maximum.accumulate(bars["close"]) == np.minimum.accumulate(bars["close"])
        value_R = np.clip((indicator(name, bars) - middle) / half, -1.0, 1.0)
        return np.where(dead_R & np.isfinite(value_R), 0.0, value_R)

    return compute


def _against_mean(bars: Columns) -> np.ndarray:
    return bars["close"] / window_moments(bars["close"], BAND_BARS)[0] - 1.0


def _against(name: str) -> Callable[[Columns], np.ndarray]:
    return lambda bars: bars["close"] / indicator(name, bars) - 1.0


def _money_flow(bars: Columns) -> np.ndarray:
    # TA-Lib calls a window with less than one unit of money flow dead; markets with small volumes
    # need smaller units.
    value_R = _centred("MFI14", 50, 50, 14)({**bars, "volume": bars["volume"] * 1e6})
    return np.where(talib.SUM(bars["volume"], timeperiod=14) == 0, 0.0, value_R)


def _obv_change(bars: Columns) -> np.ndarray:
    obv_R, lag = indicator("OBV", bars), 20
    change_R = np.full(len(obv_R), np.nan)
    change_R[lag:] = obv_R[lag:] - obv_R[:-lag]
    total_R = window_sum(bars["volume"], lag)
    return np.clip(_ratio(change_R, total_R), -1.0, 1.0)


def _close_location(bars: Columns) -> np.ndarray:
    return _ratio(2 * bars["close"] - bars["high"] - bars["low"], bars["high"] - bars["low"])


FEATURES: dict[str, Feature] = {
    "return_1": Feature("ln(close / close 1 bar ago)", lambda b: log_return(b, 1)),
    "return_3": Feature("ln(close / close 3 bars ago)", lambda b: log_return(b, 3)),
    "return_12": Feature("ln(close / close 12 bars ago)", lambda b: log_return(b, 12)),
    "return_78": Feature("ln(close / close 78 bars ago)", lambda b: log_return(b, 78)),
    "overnight_gap": Feature(
        "ln(session's first open / close before it), held in the session", _overnight_gap
    ),
    "range": Feature("(high - low) / close", lambda b: (b["high"] - b["low"]) / b["close"]),
    "close_location": Feature("(2 close - high - low) / (high - low), 0 without range", _close_location),
    "volatility_12": Feature("std (ddof 1) of the last 12 log returns", lambda b: realised_volatility(b, 12)),
    "volatility_78": Feature("std (ddof 1) of the last 78 log returns", lambda b: realised_volatility(b, 78)),
    "volume_z": Feature("z-score of volume over 78 bars, cut at 10", _volume_z),
    "sma20": Feature("close / SMA20 - 1", _against_mean),
    "ema20": Feature("close / EMA20 - 1", _against("EMA20")),
    "ema78": Feature("close / EMA78 - 1", _against("EMA78")),
    "vwap": Feature("close / session VWAP - 1", _against("VWAP_SESSION")),
    "macd_hist": Feature("MACD(12,26,9) histogram / close", lambda b: indicator("MACD_HIST", b) / b["close"]),
    "bollinger": Feature("(close - SMA20) / (2 std20), 0 without width, cut at 10", _bollinger_position),
    "atr14": Feature("ATR14 / close", lambda b: indicator("ATR14", b) / b["close"]),
    "rsi14": Feature("(RSI14 - 50) / 50", _centred("RSI14", 50, 50)),
    "adx14": Feature("ADX14 / 100", lambda b: indicator("ADX14", b) / 100.0),
    "cci20": Feature(
        "CCI20 / 100, cut at 10", lambda b: np.clip(indicator("CCI20", b) / 100, -EXTREME, EXTREME)
    ),
    "willr14": Feature("(Williams %R14 + 50) / 50", _centred("WILLR14", -50, 50, 14)),
    "mfi14": Feature("(MFI14 - 50) / 50", _money_flow),
    "obv_20": Feature("OBV's change over 20 bars / volume of these bars", _obv_change),
    "stoch_k": Feature("(slow %K(14,3) - 50) / 50", _centred("STOCH_K", 50, 50, 16)),
    "stoch_d": Feature("(slow %D(14,3,3) - 50) / 50", _centred("STOCH_D", 50, 50, 18)),
}
"""The computed features, in the order of the file."""


def compute_features(bars: Columns, split_R: np.ndarray, symbol: str) -> np.ndarray:
    """``computed_columns`` side by side: float32 [R, F]."""
    out_RF = np.empty((len(split_R), len(FEATURES)), dtype=np.float32)
    for column, value_R in enumerate(computed_columns(bars, split_R, symbol)):
        out_RF[:, column] = value_R
    return out_RF


def computed_columns(bars: Columns, split_R: np.ndarray, symbol: str) -> Iterator[np.ndarray]:
    """FEATURES of one symbol's present bars, one by one: float32 [R], 0 in warm-ups, held finite after.

    ``split_R``: shares after / before at that bar's open (1: none).
    """
    for name, exact_R in exact_columns(bars, split_R, tuple(FEATURES)):
        with np.errstate(over="ignore"):
            value_R = exact_R.astype(np.float32)
        bad_R = ~np.isfinite(value_R)
        if bad_R[BURN_IN:].any():
            row = BURN_IN + int(np.argmax(bad_R[BURN_IN:]))
            raise HpcrlError(
                f"{symbol}: feature {name} is {value_R[row]} at present bar {row}; check its bars"
            )
        value_R[bad_R] = 0.0
        yield value_R


def exact_columns(
    bars: Columns, split_R: np.ndarray, names: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float64 [R]) of the chosen FEATURES, NaN or inf where not known.

    Prices are carried forward by the splits so far, so that a split is no return; unlike back-adjusted prices
    this uses no future.
    """
    bars = split_carried(bars, split_R)
    # TA-Lib takes variances below 1e-14 for zero: a coin of 1e-8 would have no Bollinger bands.
    # A power of two leaves every rounding as it is: ADX compares moves of often equally many ticks.
    unit = 2.0 ** round(math.log2(100.0 / bars["close"][0]))
    bars = {**bars, **{name: bars[name] * unit for name in PRICES}}
    for name in names:
        # Warm-ups divide by NaN freely; what is not finite after the burn-in, callers refuse by name.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value_R = FEATURES[name].compute(bars)
        yield name, value_R


def split_carried(bars: Columns, split_R: np.ndarray) -> Columns:
    """The bars in units of the first bar's share; the same object where nothing split."""
    if (split_R == 1.0).all():
        return bars
    factor_R = np.cumprod(split_R)
    prices = {name: bars[name] * factor_R for name in PRICES}
    return {**bars, **prices, "volume": bars["volume"] / factor_R}


def definitions(names: tuple[str, ...], extra: tuple[str, ...]) -> dict[str, str]:
    """name -> definition of computed features and of the file's own (``extra``), for the file's header."""
    computed = {name: FEATURES[name].definition for name in names}
    return {**computed, **dict.fromkeys(extra, OF_THE_SOURCE)}
