"""``--start`` and ``--end`` as people write them, to a half-open stretch of time in ns UTC.

A date is midnight UTC; as an end it covers its whole day. A stamp with a time of day is exact, as an end
exclusive; without a zone it is UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hpcrl.market.source import Span
from hpcrl.types import HpcrlError

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_STAMP = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
"""What fits into int64 nanoseconds."""


def read_span(start: str | None, end: str | None) -> Span:
    """None leaves that side open. HpcrlError: not a date or stamp, or an end that is not after the start."""
    first = None if start is None else _read("--start", start, timedelta(0))
    last = None if end is None else _read("--end", end, timedelta(days=1))
    if first is not None and last is not None and last <= first:
        spelt = f"in UTC from {first:%F %T} until, exclusively, {last:%F %T}"
        raise HpcrlError(f"--end {end} is not after --start {start} ({spelt})")
    return Span(_ns(first), _ns(last))


def _read(option: str, text: str, day: timedelta) -> datetime:
    """UTC; ``day`` is added to a date."""
    text = text.strip()
    moment = None
    if _DATE.fullmatch(text) or _STAMP.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None  # of that form, but there is no such day or hour
    if moment is None:
        raise HpcrlError(
            f"{option} {text!r} is no date: write YYYY-MM-DD, or YYYY-MM-DDTHH:MM:SSZ "
            "(+HH:MM for another zone; without one: UTC)"
        )
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    try:
        moment = moment.astimezone(UTC) + (day if _DATE.fullmatch(text) else timedelta(0))
        inside = _FIRST <= moment <= _LAST
    except OverflowError:
        inside = False
    if not inside:
        raise HpcrlError(f"{option} {text!r} lies outside the years {_FIRST.year} to {_LAST.year - 1}")
    return moment


def _ns(moment: datetime | None) -> int | None:
    """Exact: a float of seconds would lose the microseconds."""
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1) * 1000
