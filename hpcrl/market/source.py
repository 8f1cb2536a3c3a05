"""What a database of bars must be able to do; ``supabase`` and ``postgres`` do it, ``stage_database`` asks.

A source answers completely or raises: it never gives fewer rows than the database holds. Stamps are int64
nanoseconds UTC of a bar's start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from hpcrl.types import RunFailed

Columns = dict[str, np.ndarray]
"""``timestamp`` int64 [R], the others float64 [R]; NaN stands for NULL and for what is no number."""


class Unreachable(RunFailed):
    """No connection came about at all (no address given, name not found, refused): a fallback may step in."""


class Span(NamedTuple):
    """Half-open stretch of time, ns UTC; None: from the first row, to the last."""

    start_ns: int | None = None
    end_ns: int | None = None


Progress = Callable[[str, int, int], None]
"""Called with a symbol, its rows so far, and its rows in all; from any thread. In all 0: not known yet, and
the rows so far are an earlier run's."""


class Source(Protocol):
    """Of one timeframe. ``open`` first; every later call may raise RunFailed (symbol and counts named)."""

    kind: str
    """supabase or postgres."""

    def open(self) -> None:
        """Reach it, and find the tables and columns. Unreachable; HpcrlError lists the columns found."""

    def is_empty(self) -> bool:
        """Whether the table of bars holds no row at all."""
        ...

    def symbols(self) -> list[str] | None:
        """The symbols of the timeframe, for an error message; None where finding out would take long."""
        ...

    def count(self, symbol: str, span: Span) -> int:
        """Exact rows of a symbol."""
        ...

    def fingerprint(self, symbol: str, span: Span) -> str | None:
        """A number that other values in these rows would change; None where the database cannot tell."""
        ...

    def prepare(self, wanted: dict[str, Span], progress: Progress) -> None:
        """Fetch ahead what ``bars`` (and ``indicator``) will give, where that pays."""

    def bars(self, symbol: str, span: Span) -> Iterator[Columns]:
        """Blocks of at most 100,000 rows in order of time: timestamp, open, high, low, close, volume, then
        those of split, dividend, delist that are mapped, then own features that are columns of the table."""
        ...

    def indicator_names(self, symbol: str, span: Span) -> list[str]:
        """The database's names, sorted; empty where there is no table of indicators."""
        ...

    def indicator(self, symbol: str, name: str, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """(stamps int64 [R], values float64 [R]) in order of time, NULLs left out."""
        ...

    def close(self) -> None:
        """Give up connections; may be called twice."""
