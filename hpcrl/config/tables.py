"""Where a database keeps its bars and indicators: names of tables and columns, which ``--tables FILE`` maps.

Every name stands as the database spells it. The defaults are the tables that ``hpcrl stage schema`` makes.
"""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import Field

from hpcrl.config.base import Section
from hpcrl.types import HpcrlError


class BarsTable(Section):
    schema_name: str = "public"
    table: str = "historical_bars"
    symbol: str = "symbol"
    timeframe: str | None = "timeframe"
    """null: the table holds one timeframe and has no such column."""
    timestamp: str = "timestamp"
    """Of the bar's start; with a time zone, or the option --timezone."""
    open: str = "open"
    high: str = "high"
    low: str = "low"
    close: str = "close"
    volume: str = "volume"
    split: str | None = None
    """Shares after / before at the bar's open; null: the table has no such column."""
    dividend: str | None = None
    delist: str | None = None
    trade_count: str | None = None
    """Only for ``stage schema`` and ``stage push``: no feature reads it."""
    vwap: str | None = None


class IndicatorsTable(Section):
    schema_name: str = "public"
    table: str | None = "technical_indicators"
    """null: there is none."""
    layout: Literal["auto", "long", "wide"] = "auto"
    """long: one row per indicator (columns ``name`` and ``value``); wide: one column per indicator."""
    symbol: str = "symbol"
    timeframe: str | None = "timeframe"
    timestamp: str = "timestamp"
    name: str = "indicator"
    value: str = "value"
    names: dict[str, str] = Field(default={})
    """The database's name of an indicator -> ours (rsi: RSI14), where they differ by more than case and _."""


class Tables(Section):
    bars: BarsTable = BarsTable()
    indicators: IndicatorsTable = IndicatorsTable()
    timeframes: dict[str, int] = Field(
        default={"1Min": 60, "5Min": 300, "15Min": 900, "30Min": 1800, "1Hour": 3600, "1Day": 86400}
    )
    """The database's name of a timeframe -> seconds of a bar."""

    def bar_seconds(self, timeframe: str) -> int:
        """HpcrlError: the timeframe is not known."""
        if timeframe not in self.timeframes:
            near = difflib.get_close_matches(timeframe, self.timeframes, 1, cutoff=0.4)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise HpcrlError(
                f"timeframe {timeframe!r} is not known{hint}; known: {', '.join(self.timeframes)}; "
                "more go into timeframes of --tables"
            )
        return self.timeframes[timeframe]
