"""What is asked of a database: the options of ``hpcrl stage supabase`` and ``hpcrl stage postgres``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpcrl.config.tables import Tables
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.options import Adjustment, StageOptions
from hpcrl.market.source import Progress, Span


def no_progress(symbol: str, done: int, total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class DatabaseRequest:
    """The same names as the command line's options."""

    out: Path
    symbols: tuple[str, ...] = ()
    """Empty: those of ``update``, or the six of the synthetic market."""
    timeframe: str = "5Min"
    start: str | None = None
    end: str | None = None
    tables: Tables = field(default_factory=Tables)
    features: tuple[str, ...] = ()
    """Columns of the table of bars, or indicators by the database's names, known at the bar's close."""
    calendar: str = "XNYS"
    timezone: str | None = None
    price_adjustment: Adjustment = "unknown"
    strict: bool = False
    require_real: bool = False
    """Fail where the database is out of reach or empty, instead of making up bars."""
    update: Path | None = None
    """An older file of the same query: fetch only what is new."""
    indicators: bool = True
    """Compare the table of indicators, where there is one, with recomputed values."""
    coverage: bool = False
    connections: int = 4
    requests_per_second: float = 20.0
    patience_seconds: float = 300.0
    page_rows: int = 10_000
    progress: Progress = no_progress

    @property
    def bar_seconds(self) -> int:
        """HpcrlError: the timeframe is not known."""
        return self.tables.bar_seconds(self.timeframe)

    @property
    def options(self) -> StageOptions:
        """How the rows are judged; checked."""
        options = StageOptions(
            calendar=self.calendar,
            bar_seconds=self.bar_seconds,
            features=self.features,
            timezone=self.timezone,
            strict=self.strict,
            price_adjustment=self.price_adjustment,
            symbols=self.symbols,
            coverage=self.coverage,
        )
        options.check()
        return options

    def with_symbols(self, symbols: tuple[str, ...]) -> DatabaseRequest:
        return replace(self, symbols=symbols)

    def finished(self, span: Span) -> Span:
        """``span`` without bars that are still being made."""
        end_ns = (time.time_ns() // SECOND_NS - self.bar_seconds) * SECOND_NS
        return Span(span.start_ns, end_ns if span.end_ns is None else min(end_ns, span.end_ns))
