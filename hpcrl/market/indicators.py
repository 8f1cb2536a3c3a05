"""Technical indicators over one symbol's present bars, by TA-Lib. NaN until an indicator has its history.

Every function is causal: the value at row t reads rows <= t only. Rows are consecutive present bars
(R of them): missing bars are left out, not filled. Volumes and prices are in the file's own units.
``INDICATORS`` are those that features are made of; ``find_indicator`` knows others, under the names that
databases give them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import talib

Columns = dict[str, np.ndarray]  # open, high, low, close, volume: float64 [R]; session: int [R]
Compute = Callable[[Columns], np.ndarray]  # float64 [R], NaN in the warm-up
LONGEST_PERIOD = 10_000


def session_vwap(bars: Columns) -> np.ndarray:
    """Volume-weighted typical price (h+l+c)/3 since the session's open [R].

    Before a session's first trade it is the plain mean of the typical prices so far.
    """
    session_R, volume_R = bars["session"], bars["volume"]
    out_R = np.empty(len(session_R))
    starts = np.r_[0, np.flatnonzero(np.diff(session_R)) + 1, len(session_R)].tolist()
    count_R = np.arange(1.0, max(np.diff(starts), default=0) + 1)
    # Session by session, so that no session's rounding reaches into another.
    for lo, hi in pairwise(starts):
        typical_R = (bars["high"][lo:hi] + bars["low"][lo:hi] + bars["close"][lo:hi]) / 3
        traded_R = np.cumsum(volume_R[lo:hi])
        value_R = np.cumsum(typical_R * volume_R[lo:hi])
        if traded_R[0] > 0:
            np.divide(value_R, traded_R, out=out_R[lo:hi])
        else:
            mean_R = np.cumsum(typical_R) / count_R[: hi - lo]
            out_R[lo:hi] = np.divide(value_R, traded_R, out=mean_R, where=traded_R > 0)
    return out_R


def _macd(part: int, fast: float = 12, slow: float = 26, signal: float = 9) -> Compute:
    periods = {"fastperiod": _whole(fast), "slowperiod": _whole(slow), "signalperiod": _whole(signal, 1)}
    return lambda bars: talib.MACD(bars["close"], **periods)[part]


def _bands(part: int, period: float = 20, width: float = 2.0, again: float | None = None) -> Compute:
    if again not in (None, width):  # pandas-ta names the width of either side
        raise ValueError("Bollinger bands of two widths")
    whole, mean = _whole(period), talib.MA_Type.SMA
    return lambda bars: talib.BBANDS(bars["close"], whole, width, width, mean)[part]


def _stochastic(part: int, fast: float = 14, slow: float = 3, signal: float = 3) -> Compute:
    mean = talib.MA_Type.SMA
    periods = (_whole(fast, 1), _whole(slow, 1), mean, _whole(signal, 1), mean)
    return lambda bars: talib.STOCH(bars["high"], bars["low"], bars["close"], *periods)[part]


def _hlc(function: Callable, period: float) -> Compute:
    whole = _whole(period)
    return lambda bars: function(bars["high"], bars["low"], bars["close"], timeperiod=whole)


def _close(function: Callable, period: float, least: int = 2) -> Compute:
    whole = _whole(period, least)
    return lambda bars: function(bars["close"], timeperiod=whole)


def _channel(period: float, constant: float = 0.015) -> Compute:
    if constant != 0.015:  # pandas-ta names Lambert's constant, too
        raise ValueError(f"CCI with the constant {constant}")
    return _hlc(talib.CCI, period)


def _money_flow(period: float) -> Compute:
    whole = _whole(period)
    return lambda bars: talib.MFI(bars["high"], bars["low"], bars["close"], bars["volume"], timeperiod=whole)


def _whole(period: float, least: int = 2) -> int:
    """A period for TA-Lib; ValueError: it takes none such."""
    if period != int(period) or not least <= period <= LONGEST_PERIOD:
        raise ValueError(f"a period of {period:g} bars")
    return int(period)


INDICATORS: dict[str, Compute] = {
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
    "MFI14": _money_flow(14),
    "MACD": _macd(0),
    "MACD_SIGNAL": _macd(1),
    "MACD_HIST": _macd(2),
    "BB_UPPER": _bands(0),
    "BB_MIDDLE": _bands(1),
    "BB_LOWER": _bands(2),
    "STOCH_K": _stochastic(0),
    "STOCH_D": _stochastic(1),
    "VWAP_SESSION": session_vwap,
}
"""Name -> function of the present bars; periods are part of the name (Wilder's and Bollinger's own)."""


def indicator(name: str, bars: Columns) -> np.ndarray:
    """Values [R] float64 of the indicator ``name``, NaN in its warm-up."""
    return INDICATORS[name](bars)


@dataclass(frozen=True)
class Indicator:
    """An indicator with its periods settled; called with the present bars it gives float64 [R]."""

    name: str
    """RSI14, MACD, MACD(5,35,5): periods where they are not the usual ones, or the only one."""
    compute: Compute
    memory: float
    """Time constant of its exponential means, in bars; 0: it reads a window of bars and nothing before."""
    origin: Literal["window", "session", "history"]
    """What its level hangs on: history is a running sum, known up to a constant."""

    def __call__(self, bars: Columns) -> np.ndarray:
        return self.compute(bars)


@dataclass(frozen=True)
class _Family:
    """Indicators that differ by their periods alone."""

    spelling: str  # regular expression of the name's words, upper case, joined
    make: Callable[..., Compute]
    usual: tuple[float | None, ...] = ()  # the arguments of ``make``; None: the name must give it
    spare: int = 0  # further arguments that a name may give
    memory: Callable[..., float] = lambda *numbers: 0.0
    origin: Literal["window", "session", "history"] = "window"


def _wilder(period: float) -> float:
    return period


def _exponential(period: float) -> float:
    return (period + 1) / 2


def _macd_memory(fast: float, slow: float, signal: float) -> float:
    return _exponential(max(fast, slow)) + _exponential(signal)


_BANDS = "(BB(AND)?S?|BOLL(INGER)?(BANDS?)?)"
_FAMILIES: dict[str, _Family] = {
    "SMA": _Family("S?MA|SIMPLEMOVINGAVERAGE", partial(_close, talib.SMA), (None,)),
    "EMA": _Family("EMA|EXPONENTIALMOVINGAVERAGE", partial(_close, talib.EMA), (None,), memory=_exponential),
    "WMA": _Family("WMA|WEIGHTEDMOVINGAVERAGE", partial(_close, talib.WMA), (None,)),
    "RSI": _Family("RSI|RELATIVESTRENGTHINDEX", partial(_close, talib.RSI), (14,), memory=_wilder),
    "ATR": _Family("ATRR?|AVERAGETRUERANGE", partial(_hlc, talib.ATR), (14,), memory=_wilder),
    "NATR": _Family("NATR", partial(_hlc, talib.NATR), (14,), memory=_wilder),
    # Smoothed twice.
    "ADX": _Family("ADX", partial(_hlc, talib.ADX), (14,), memory=lambda period: 2 * period),
    "PLUS_DI": _Family("PLUSDI|DIPLUS|DMP", partial(_hlc, talib.PLUS_DI), (14,), memory=_wilder),
    "MINUS_DI": _Family("MINUSDI|DIMINUS|DMN", partial(_hlc, talib.MINUS_DI), (14,), memory=_wilder),
    "CCI": _Family("CCI|COMMODITYCHANNELINDEX", _channel, (20,), spare=1),
    "WILLR": _Family("WILL(IAMS)?(%|PERCENT)?R|WPR|%R", partial(_hlc, talib.WILLR), (14,)),
    "MFI": _Family("MFI|MONEYFLOWINDEX", _money_flow, (14,)),
    "MOM": _Family("MOM(ENTUM)?", partial(_close, talib.MOM, least=1), (10,)),
    "ROC": _Family("ROC|RATEOFCHANGE", partial(_close, talib.ROC, least=1), (10,)),
    "OBV": _Family("OBV|ONBALANCEVOLUME", lambda: INDICATORS["OBV"], origin="history"),
    "MACD": _Family("MACD(LINE)?", partial(_macd, 0), (12, 26, 9), memory=_macd_memory),
    "MACD_SIGNAL": _Family("MACDS(IG|IGNAL)?(LINE)?", partial(_macd, 1), (12, 26, 9), memory=_macd_memory),
    "MACD_HIST": _Family("MACDH(IST|ISTOGRAM)?", partial(_macd, 2), (12, 26, 9), memory=_macd_memory),
    "BB_UPPER": _Family(
        f"{_BANDS}(U|UP|UPPER|HIGH)(BAND)?|UPPER{_BANDS}?(BAND)?", partial(_bands, 0), (20, 2), spare=1
    ),
    "BB_MIDDLE": _Family(
        f"{_BANDS}(M|MID|MIDDLE|BASIS)(BAND)?|MIDDLE{_BANDS}?(BAND)?", partial(_bands, 1), (20, 2), spare=1
    ),
    "BB_LOWER": _Family(
        f"{_BANDS}(L|LOW|LOWER)(BAND)?|LOWER{_BANDS}?(BAND)?", partial(_bands, 2), (20, 2), spare=1
    ),
    "STOCH_K": _Family("(SLOW)?STOCH(ASTIC)?(SLOW)?%?K|SLOW%?K|%K", partial(_stochastic, 0), (14, 3, 3)),
    "STOCH_D": _Family("(SLOW)?STOCH(ASTIC)?(SLOW)?%?D|SLOW%?D|%D", partial(_stochastic, 1), (14, 3, 3)),
    "VWAP_SESSION": _Family("VWAP(D|SESSION)?|SESSIONVWAP", lambda: session_vwap, origin="session"),
}
_PARTS = re.compile(r"[A-Z%]+|\d+(?:\.\d+)?")


def find_indicator(name: str) -> Indicator | None:
    """What a database calls ``name``, case and separators aside: SMA_50, ema12, BB_UPPER, MACDh_12_26_9, %K.

    Without periods the usual ones are meant (rsi: RSI14); None: not known, or it needs a period (sma).
    """
    parts = _PARTS.findall(name.upper())
    if re.sub(_PARTS, "", name.upper()).strip(" _-.,:/()[]"):
        return None  # letters of another alphabet, and the like
    words = "".join(part for part in parts if not part[0].isdigit())
    given = tuple(float(part) for part in parts if part[0].isdigit())
    for known, family in _FAMILIES.items():
        if not re.fullmatch(family.spelling, words):
            continue
        numbers = given + family.usual[len(given) :]
        if len(given) > len(family.usual) + family.spare or None in numbers:
            return None
        try:
            compute = family.make(*numbers)
        except ValueError:
            return None
        settled = numbers[: len(family.usual)]
        return Indicator(
            _spell(known, settled, family.usual), compute, family.memory(*settled), family.origin
        )
    return None


def _spell(known: str, numbers: tuple[float | None, ...], usual: tuple[float | None, ...]) -> str:
    if len(numbers) == 1:
        return f"{known}{numbers[0]:g}"
    return known if numbers == usual else f"{known}({','.join(f'{number:g}' for number in numbers)})"
