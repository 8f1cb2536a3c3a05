"""Where a database keeps its bars and indicators: names of tables and columns, which ``--tables FILE`` maps.

Every name stands as the database spells it. The defaults are the tables that ``hpcrl stage schema`` makes.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hpcrl.config.base import Mistake, Section
from hpcrl.types import HpcrlError

DAY_SECONDS = 86400


def _named(text: str) -> str:
    if not text.strip():
        raise Mistake("a name is needed, which is not empty")
    return text


Name = Annotated[str, AfterValidator(_named)]


class _Mapping(Section):
    """Fields that are columns of one table; each is a column of its own."""

    def no_columns(self) -> tuple[str, ...]:
        """Fields that name something else, or nothing that is read."""
        return ("schema_name", "table")

    @model_validator(mode="after")
    def _apart(self) -> _Mapping:
        fields: dict[str, str] = {}
        for field, column in self:
            if field in self.no_columns() or column is None:
                continue
            if column in fields:
                first = fields[column]
                raise Mistake(f"{first} and {field} are both the column {column!r}", first, field)
            fields[column] = field
        return self


class BarsTable(_Mapping):
    schema_name: Name = "public"
    table: Name = "historical_bars"
    symbol: Name = "symbol"
    timeframe: Name | None = "timeframe"
    """null: the table holds one timeframe and has no such column."""
    timestamp: Name = "timestamp"
    """Of the bar's start; with a time zone, or the option --timezone."""
    open: Name = "open"
    high: Name = "high"
    low: Name = "low"
    close: Name = "close"
    volume: Name = "volume"
    split: Name | None = None
    """Shares after / before at the bar's open; null: the table has no such column."""
    dividend: Name | None = None
    delist: Name | None = None
    trade_count: Name | None = None
    """Only for ``stage schema`` and ``stage push``: no feature reads it."""
    vwap: Name | None = None


class IndicatorsTable(_Mapping):
    schema_name: Name = "public"
    table: Name | None = "technical_indicators"
    """null: there is none."""
    layout: Literal["auto", "long", "wide"] = "auto"
    """long: one row per indicator (columns ``name`` and ``value``); wide: one column per indicator."""
    symbol: Name = "symbol"
    timeframe: Name | None = "timeframe"
    timestamp: Name = "timestamp"
    name: Name = "indicator"
    value: Name = "value"
    names: dict[Name, Name] = Field(default={})
    """The database's name of an indicator -> ours (rsi: RSI14), where they differ by more than case and _."""

    def no_columns(self) -> tuple[str, ...]:
        unread = ("name", "value") if self.layout == "wide" else ()
        return (*super().no_columns(), "layout", "names", *unread)


class Tables(Section):
    bars: BarsTable = BarsTable()
    indicators: IndicatorsTable = IndicatorsTable()
    timeframes: dict[Name, Annotated[int, Field(ge=1, le=DAY_SECONDS)]] = Field(
        default={"1Min": 60, "5Min": 300, "15Min": 900, "30Min": 1800, "1Hour": 3600, "1Day": DAY_SECONDS}
    )
    """The database's name of a timeframe -> seconds of a bar, of a day at most."""

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
