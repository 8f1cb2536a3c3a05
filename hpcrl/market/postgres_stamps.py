"""Stamps of a table's column and ns UTC, both ways.

timestamp with time zone: microseconds since 2000-01-01 UTC. timestamp: the same by the clock of a named zone;
the hour that a clock change skips or doubles has no certain UTC time and is refused. date: midnight UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from psycopg.sql import SQL, Composable, Literal

from hpcrl.market.clean import YEARS, iso
from hpcrl.market.postgres_table import Column
from hpcrl.market.source import Span
from hpcrl.types import HpcrlError

_UNIX_US = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970."""
_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US, _LAST_US = (
    (datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1) for year in YEARS
)
_INFINITE = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Stamps:
    column: Column
    timezone: str | None
    """Of a timestamp without time zone."""

    @property
    def sql(self) -> Composable:
        """To be selected: 8 bytes in binary form."""
        if self.column.base == "date":
            return SQL("{}::timestamp").format(self.column.sql)
        return SQL("{}").format(self.column.sql)

    @property
    def kept_as(self) -> str:
        """The type of the same 8 bytes."""
        return "timestamptz" if self.column.base == "timestamptz" else "timestamp"

    def within(self, span: Span) -> list[Composable]:
        """Conditions on the bare column, so that an index serves them."""
        bounds = ((">=", span.start_ns), ("<", span.end_ns))
        return [
            SQL("{} {} {}").format(self.column.sql, SQL(sign), self._bound(ns))
            for sign, ns in bounds
            if ns is not None
        ]

    def _bound(self, ns: int) -> Literal:
        """The first stamp of the column's type that is not before ``ns``."""
        moment = _EPOCH + timedelta(microseconds=-(-ns // 1000))
        if self.column.base == "timestamptz":
            return Literal(moment)
        if self.column.base == "date":
            return Literal((moment + timedelta(days=1, microseconds=-1)).date())
        stamp = pd.Timestamp(moment)
        local = stamp.tz_convert(self.timezone).tz_localize(None)
        # Which rows of a doubled hour are before the bound, nobody can say.
        if local.tz_localize(self.timezone, ambiguous=True) != local.tz_localize(
            self.timezone, ambiguous=False
        ):
            raise HpcrlError(
                f"{iso(ns)} falls into the hour that a clock change doubles in {self.timezone}, the zone of "
                f"column {self.column.name!r}; choose a time outside"
            )
        return Literal(local.to_pydatetime())

    def to_ns(self, us_R: np.ndarray, symbol: str) -> np.ndarray:
        """int64 ns UTC [R] of what ``sql`` gives. HpcrlError names the symbol and the stamp."""
        us_R = us_R.astype(np.int64)
        unix_R = us_R + _UNIX_US  # wraps round for infinity, which the next lines catch
        far = (us_R < _FIRST_US - _UNIX_US) | (us_R >= _LAST_US - _UNIX_US)
        if far.any():
            found = int(us_R[far][0])
            said = "infinite" if found in _INFINITE else f"outside the years {YEARS[0]} to {YEARS[1]}"
            raise HpcrlError(f"{symbol}: a row's {self.column.name} is {said}; remove it, or mend it")
        if self.column.base != "timestamp":
            return unix_R * 1000
        naive = pd.DatetimeIndex(unix_R.view("datetime64[us]"))
        zoned = naive.tz_localize(self.timezone, ambiguous="NaT", nonexistent="NaT")
        lost = np.flatnonzero(zoned.isna())
        if len(lost):
            raise HpcrlError(
                f"{symbol}: {self.column.name} {naive[lost[0]]} is in the hour that a clock change skips or "
                f"doubles in {self.timezone}: no certain time; use timestamp with time zone"
            )
        return zoned.as_unit("ns").asi8

    def from_ns(self, ns_R: np.ndarray, symbol: str) -> np.ndarray:
        """int64 [R], of type ``kept_as``. HpcrlError: the column cannot hold a stamp."""
        if self.column.base == "date" and (odd := ns_R[ns_R % (1000 * _DAY_US) != 0]).size:
            raise HpcrlError(f"{symbol} at {iso(int(odd[0]))}: column {self.column.name!r} holds dates only")
        unix_R = ns_R // 1000
        if self.column.base == "timestamp":
            index = pd.DatetimeIndex(unix_R.view("datetime64[us]"), tz="UTC")
            local = index.tz_convert(self.timezone).tz_localize(None)
            back = local.tz_localize(self.timezone, ambiguous="NaT", nonexistent="NaT")
            lost = np.flatnonzero(back.isna())
            if len(lost):
                raise HpcrlError(
                    f"{symbol} at {iso(int(ns_R[lost[0]]))}: a clock change doubles that hour in "
                    f"{self.timezone}, so column {self.column.name!r}, which has no zone, cannot hold it"
                )
            unix_R = local.as_unit("us").asi8
        return unix_R - _UNIX_US
