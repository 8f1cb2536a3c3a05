"""JSON cells as PostgREST spells them, into arrays that hold the database's values to the last bit.

Stamps become int64 nanoseconds UTC, numbers float64 (null: NaN). Refused with the column and the cell named:
text that is no number, stamps that are no ``timestamp``, stamps without a zone unless one is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.market.clean import YEARS, iso
from hpcrl.types import HpcrlError

# How PostgreSQL spells date, timestamp and timestamptz in JSON; a column of text may hold anything else.
_STAMP = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(?:\.\d+)?)?(?(1)(Z|[+-]\d\d(?::\d\d)?)?)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]?Infinity")
_FIRST, _LAST = (np.datetime64(f"{year}-01-01", "us") for year in YEARS)
_UTC = "+00:00"


@dataclass(frozen=True)
class Clock:
    """What a column's stamps mean. ``zoned``: they say their zone; ``local``: by ``timezone``'s clock, an
    hour that a change of clocks skips or doubles is refused; ``date``: midnight UTC."""

    kind: str
    timezone: str | None
    where: str
    """The column, for messages."""

    @staticmethod
    def of(cell: Any, timezone: str | None, where: str) -> Clock:
        """From one cell. HpcrlError: no stamp, or one without a zone where no ``timezone`` is given."""
        found = _STAMP.fullmatch(cell) if isinstance(cell, str) else None
        if found is None:
            raise _no_stamp(cell, where)
        kind = "zoned" if found[2] else "local" if found[1] else "date"
        if kind == "local" and timezone is None:
            raise HpcrlError(
                f"{where} holds stamps without a time zone ({cell}): name the zone they are in (--timezone "
                "America/New_York, or UTC), or make the column a timestamptz"
            )
        return Clock(kind, timezone if kind == "local" else None, where)

    def read(self, cells: Sequence[Any]) -> np.ndarray:
        """int64 ns UTC [R]."""
        if not cells:
            return np.empty(0, np.int64)
        if not set(map(type, cells)) <= {str}:
            raise _no_stamp(next(cell for cell in cells if not isinstance(cell, str)), self.where)
        if all(cell.endswith(_UTC) and cell[10:11] == "T" for cell in cells):
            micros = self._parsed([cell[: -len(_UTC)] for cell in cells])
        else:
            for cell in cells:
                if Clock.of(cell, self.timezone or "UTC", self.where).kind != self.kind:
                    raise HpcrlError(f"{self.where}: stamps of several kinds, such as {cell!r}")
            micros = self._spelled_otherwise(cells)
        odd = (micros < _FIRST) | ~(micros < _LAST)
        if odd.any():
            cell = cells[int(np.flatnonzero(odd)[0])]
            raise HpcrlError(f"{self.where} holds {cell}, outside the years {YEARS[0]} to {YEARS[1]}")
        return micros.astype("datetime64[ns]").astype(np.int64)

    def _parsed(self, texts: list[str]) -> np.ndarray:
        try:
            return np.array(texts, dtype="datetime64[us]")
        except ValueError:
            odd = next((text for text in texts if not _STAMP.fullmatch(text)), texts[0])
            raise _no_stamp(odd, self.where) from None

    def _spelled_otherwise(self, cells: Sequence[str]) -> np.ndarray:
        if self.kind == "date":
            return self._parsed(list(cells))
        if self.kind == "zoned":
            zoned = pd.to_datetime(pd.Series(list(cells)), format="ISO8601", utc=True)
            return zoned.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        local = pd.DatetimeIndex(self._parsed(list(cells)))
        found = local.tz_localize(self.timezone, ambiguous="NaT", nonexistent="NaT")
        if found.hasnans:
            odd = cells[int(np.flatnonzero(found.isna())[0])]
            raise HpcrlError(
                f"{self.where} holds {odd}, which a change of clocks in {self.timezone} skips or doubles: it "
                "has no certain time; make the column a timestamptz"
            )
        return found.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]")

    def spell(self, ns: int) -> str:
        """The first stamp of the column's kind that is not before ``ns``, for a filter."""
        stamp = pd.Timestamp(-(-ns // 1000), unit="us", tz="UTC")
        if self.kind == "zoned":
            return stamp.isoformat()
        if self.kind == "date":
            return str(stamp.ceil("D").date())
        local = stamp.tz_convert(self.timezone).tz_localize(None)
        early, late = (local.tz_localize(self.timezone, ambiguous=first) for first in (True, False))
        if early != late:
            raise HpcrlError(
                f"{iso(ns)} falls into the hour that a change of clocks doubles in {self.timezone}, the zone "
                f"of {self.where}; choose a time outside"
            )
        return local.isoformat()

    def write(self, ns_R: np.ndarray) -> list[str]:
        """As the column takes them. HpcrlError: it cannot hold one."""
        utc = pd.DatetimeIndex(ns_R.astype("datetime64[ns]")).tz_localize("UTC")
        if self.kind == "zoned":
            return [stamp.isoformat() for stamp in utc]
        if self.kind == "date":
            odd = utc[utc != utc.normalize()]
            if len(odd):
                raise HpcrlError(f"{self.where} holds dates only, not {odd[0].isoformat()}")
            return [str(stamp.date()) for stamp in utc]
        local = utc.tz_convert(self.timezone).tz_localize(None)
        lost = local.tz_localize(self.timezone, ambiguous="NaT").isna()
        if lost.any():
            raise HpcrlError(
                f"{self.where} has no zone, and {utc[lost][0].isoformat()} is in an hour that a change of "
                f"clocks doubles in {self.timezone}: it cannot hold it; make the column a timestamptz"
            )
        return [stamp.isoformat() for stamp in local]


def _no_stamp(cell: Any, where: str) -> HpcrlError:
    if cell is None:
        return HpcrlError(f"{where} is NULL in a row: a bar without a time cannot be placed")
    return HpcrlError(
        f"{where} holds {cell!r:.60}, which is no timestamp: make the column a timestamptz (UTC)"
    )


def numbers(cells: Sequence[Any], where: str) -> np.ndarray:
    """float64 [R], NaN for null: the nearest float64 of what is written, as PostgreSQL's cast has it."""
    kinds = set(map(type, cells))
    if not kinds <= {float, int, type(None)}:
        for cell in cells:
            number = isinstance(cell, (int, float, type(None))) and not isinstance(cell, bool)
            if not number and not (isinstance(cell, str) and _NUMBER.fullmatch(cell)):
                raise HpcrlError(f"{where} holds {cell!r:.60}, which is no number")
        cells = [float(cell) if isinstance(cell, str) else cell for cell in cells]
    try:
        found = np.array(cells, dtype=np.float64)
    except OverflowError:
        raise HpcrlError(f"{where} holds a number beyond 1.8e308") from None
    found[np.isnan(found)] = np.nan  # one NaN, so that equal rows have equal bytes
    return found
