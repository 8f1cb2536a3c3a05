"""Technical indicators over one symbol's present bars, by TA-Lib. NaN until an indicator has its history.

Every function is causal: the value at row t reads rows <= t only. Rows are consecutive present bars
(R of them): missing bars are left out, not filled. Volumes and prices are in the file's own units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import talib

Columns = dict[str, np.ndarray]  # open, high, low, close, volume: float64 [R]; session: int [R]


def session_vwap(bars: Columns) -> np.ndarray:
    """Volume-weighted typical price (h+l+c)/3 since the session's open [R].

    Before a session's first trade it is the plain mean of the typical prices so far.
    """
    typical_R = (bars["high"] + bars["low"] + bars["close"]) / 3
    table = pd.DataFrame(
        {
            "value": typical_R * bars["volume"],
            "volume": bars["volume"],
            "typical": typical_R,
            "one": np.ones_like(typical_R),
        }
    )
    # groupby.cumsum starts afresh in each session, so no session's rounding reaches into another.
    total = table.groupby(bars["session"]).cumsum().to_numpy()
    traded_R = total[:, 1] > 0
    return np.where(traded_R, total[:, 0], total[:, 2]) / np.where(traded_R, total[:, 1], total[:, 3])


def _macd(bars: Columns, part: int) -> np.ndarray:
    return talib.MACD(bars["close"], fastperiod=12, slowperiod=26, signalperiod=9)[part]


def _bands(bars: Columns, part: int) -> np.ndarray:
    return talib.BBANDS(bars["close"], timeperiod=20, nbdevup=2.0, nbdevdn=2.0, matype=talib.MA_Type.SMA)[
        part
    ]


def _stochastic(bars: Columns, part: int) -> np.ndarray:
    mean = talib.MA_Type.SMA
    return talib.STOCH(bars["high"], bars["low"], bars["close"], 14, 3, mean, 3, mean)[part]


def _hlc(function: Callable, period: int) -> Callable[[Columns], np.ndarray]:
    return lambda bars: function(bars["high"], bars["low"], bars["close"], timeperiod=period)


def _close(function: Callable, period: int) -> Callable[[Columns], np.ndarray]:
    return lambda bars: function(bars["close"], timeperiod=period)


INDICATORS: dict[str, Callable[[Columns], np.ndarray]] = {
    "SMA20": _close(talib.SMA, 20),
    "EMA20": _close(talib.EMA, 20),
    "EMA78": _close(talib.EMA, 78),
    "RSI14": _close(talib.RSI, 14),
    "ATR14": _hlc(talib.ATR, 14),
    "ADX14": _hlc(talib.ADX, 14),
    "OBV": lambda bars: talib.OBV(bars["close"], bars["volume"]),
    "MOM10": _close(talib.MOM, 10),
    "ROC10": _close(talib.ROC, 10),
    "CCI20": _hlc(talib.CCI, 20),
    "WILLR14": _hlc(talib.WILLR, 14),
    "MFI14": lambda bars: talib.MFI(bars["high"], bars["low"], bars["close"], bars["volume"], timeperiod=14),
    "MACD": lambda bars: _macd(bars, 0),
    "MACD_SIGNAL": lambda bars: _macd(bars, 1),
    "MACD_HIST": lambda bars: _macd(bars, 2),
    "BB_UPPER": lambda bars: _bands(bars, 0),
    "BB_MIDDLE": lambda bars: _bands(bars, 1),
    "BB_LOWER": lambda bars: _bands(bars, 2),
    "STOCH_K": lambda bars: _stochastic(bars, 0),
    "STOCH_D": lambda bars: _stochastic(bars, 1),
    "VWAP_SESSION": session_vwap,
}
"""Name -> function of the present bars; periods are part of the name (Wilder's and Bollinger's own)."""


def indicator(name: str, bars: Columns) -> np.ndarray:
    """Values [R] float64 of the indicator ``name``, NaN in its warm-up."""
    return INDICATORS[name](bars)
