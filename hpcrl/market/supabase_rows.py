"""JSON cells as PostgREST spells them, into arrays that hold the database's values to the last bit.

Stamps become int64 nanoseconds UTC, numbers float64 (null: NaN). Refused with the column and the cell named:
text that is no number, stamps that are no ``timestamp``, stamps without a zone unless one is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.market.clean import YEARS
from hpcrl.types import HpcrlError

# How PostgreSQL spells date, timestamp and timestamptz in JSON; a column of text may hold anything else.
_STAMP = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d:\d\d(?:\.\d+)?(Z|[+-]\d\d(?::\d\d){0,2})?)?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]?Infinity")
_FIRST, _LAST = (np.datetime64(f"{year}-01-01", "us") for year in (YEARS[0], YEARS[1] + 1))
_UTC = "+00:00"


def has_zone(cell: Any, where: str) -> bool:
    """Whether a column of stamps carries its zone. HpcrlError: it holds no stamps."""
    found = _STAMP.fullmatch(cell) if isinstance(cell, str) else None
    if found is None:
        raise _no_stamp(cell, where)
    return found[1] is not None


def _no_stamp(cell: Any, where: str) -> HpcrlError:
    if cell is None:
        return HpcrlError(f"{where} is NULL in a row: a bar without a time cannot be placed")
    return HpcrlError(
        f"{where} holds {cell!r:.60}, which is no timestamp: make the column a timestamptz (UTC)"
    )


def stamps(cells: Sequence[Any], timezone: str | None, where: str) -> np.ndarray:
    """int64 ns UTC [R]. ``timezone``: of stamps without one; None: all must have one."""
    if not cells:
        return np.empty(0, np.int64)
    if not set(map(type, cells)) <= {str}:
        raise _no_stamp(next(cell for cell in cells if not isinstance(cell, str)), where)
    if all(cell.endswith(_UTC) and cell[10:11] == "T" for cell in cells):
        micros = _parsed([cell[: -len(_UTC)] for cell in cells], where)
    else:
        micros = _of_other_zones(cells, timezone, where)
    odd = (micros < _FIRST) | ~(micros < _LAST)
    if odd.any():
        cell = cells[int(np.flatnonzero(odd)[0])]
        raise HpcrlError(f"{where} holds {cell}, outside the years {YEARS[0]} to {YEARS[1]}")
    return micros.astype("datetime64[ns]").astype(np.int64)


def _parsed(texts: list[str], where: str) -> np.ndarray:
    try:
        return np.array(texts, dtype="datetime64[us]")
    except ValueError:
        odd = next((text for text in texts if not _STAMP.fullmatch(text)), texts[0])
        raise _no_stamp(odd, where) from None


def _of_other_zones(cells: Sequence[str], timezone: str | None, where: str) -> np.ndarray:
    zoned = [has_zone(cell, where) for cell in cells]
    if all(zoned):
        found = pd.to_datetime(pd.Series(list(cells)), format="ISO8601", utc=True)
        return found.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    odd = cells[zoned.index(False)]
    if any(zoned):
        raise HpcrlError(f"{where}: some stamps carry a zone and some do not (such as {odd!r})")
    if timezone is None:
        raise no_zone(odd, where)
    local = pd.DatetimeIndex(_parsed(list(cells), where))
    found = local.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT")
    if found.hasnans:
        odd = cells[int(np.flatnonzero(found.isna())[0])]
        raise HpcrlError(
            f"{where} holds {odd}, which a change of clocks in {timezone} skips or doubles: it has no "
            "certain time; make the column a timestamptz"
        )
    return found.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]")


def no_zone(cell: str, where: str) -> HpcrlError:
    return HpcrlError(
        f"{where} holds stamps without a time zone ({cell}): name the zone they are in "
        "(--timezone America/New_York, or UTC), or make the column a timestamptz"
    )


def spelled(ns: int, timezone: str | None) -> str:
    """A stamp for a filter, up to PostgreSQL's next microsecond; ``timezone``: of a column without one."""
    stamp = pd.Timestamp(-(-ns // 1000), unit="us", tz="UTC")
    return stamp.isoformat() if timezone is None else stamp.tz_convert(timezone).tz_localize(None).isoformat()


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
