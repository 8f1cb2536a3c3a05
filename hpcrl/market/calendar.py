"""Which bars an exchange's calendar expects. Stamps are int64 nanoseconds UTC and label a bar's START.

Owns the session grid: every session (half days and lunch breaks included) cut into bars of
``bar_seconds`` from its open. ``24/7`` is a market that never closes; its session is a UTC day. Bars of a
day or longer are labelled by midnight UTC of the session's date. Refuses calendars that
exchange_calendars does not know.
"""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

from hpcrl.market.grid import DAY_NS, SECOND_NS, Grid, Sessions
from hpcrl.types import HpcrlError

ALWAYS = "24/7"
_MOST_DAYS = 1 << 16
"""Of made-up bars, about 180 years: stamps in nanoseconds end in 2262."""


def check_calendar(calendar: str) -> None:
    """HpcrlError: unknown."""
    if calendar == ALWAYS:
        return
    import exchange_calendars as xc

    if calendar not in xc.get_calendar_names():
        raise _unknown(calendar)


def _unknown(calendar: str) -> HpcrlError:
    return HpcrlError(
        f"calendar {calendar!r} is not known; use an exchange's MIC such as XNYS, XLON, XTKS, or "
        f"{ALWAYS} for a market that never closes"
    )


def session_grid(calendar: str, bar_seconds: int, first_ns: int, last_ns: int) -> Grid:
    """The grid of all sessions that touch [first_ns, last_ns]. HpcrlError: unknown calendar, bad length."""
    return find_sessions(calendar, bar_seconds, first_ns, last_ns).grid()


def find_sessions(calendar: str, bar_seconds: int, first_ns: int, last_ns: int) -> Sessions:
    """All sessions that touch [first_ns, last_ns]. HpcrlError: unknown calendar, bad length."""
    if bar_seconds < 1:
        raise HpcrlError(f"bar_seconds is {bar_seconds}; a bar lasts at least 1 second")
    if calendar == ALWAYS:
        day_D = np.arange(first_ns // DAY_NS, last_ns // DAY_NS + 1, dtype=np.int64)
        start_P, stop_P, day_P = day_D * DAY_NS, (day_D + 1) * DAY_NS, day_D
    else:
        start_P, stop_P, day_P = _exchange_parts(calendar, first_ns, last_ns)
    if bar_seconds * SECOND_NS >= DAY_NS:
        if bar_seconds * SECOND_NS > DAY_NS:
            raise HpcrlError(
                f"bar_seconds is {bar_seconds}; bars longer than a day (86400) are not supported"
            )
        day_P = np.unique(day_P)
        start_P, stop_P = day_P * DAY_NS, (day_P + 1) * DAY_NS
    return Sessions(start_P, stop_P, day_P, bar_seconds * SECOND_NS)


@functools.lru_cache(maxsize=4)
def forward_grid(calendar: str, bar_seconds: int, start: str, bars: int) -> Grid:
    """The first ``bars`` bars from the session on or after ``start`` (a date), for made-up markets.

    HpcrlError: they reach too far.
    """
    first = pd.Timestamp(start, tz="UTC")
    days = 16
    while days <= _MOST_DAYS and bars * bar_seconds * SECOND_NS <= _MOST_DAYS * DAY_NS:
        grid = session_grid(calendar, bar_seconds, first.value, first.value + days * DAY_NS)
        if len(grid.ts_G) >= bars:
            return Grid(grid.ts_G[:bars], grid.session_G[:bars], grid.session_time_G[:bars])
        days *= 2
    raise HpcrlError(
        f"{bars:,} bars of {bar_seconds} s on {calendar}, burn-in included, end after the year 2190: "
        "ask for fewer"
    )


def _exchange_parts(calendar: str, first_ns: int, last_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, stop (ns) and day of every uninterrupted part of a session; a lunch break makes two parts."""
    import exchange_calendars as xc  # takes most of a second to import

    # Two days of margin: sessions of Asian and futures calendars open on the UTC day before their date.
    start = pd.Timestamp(first_ns, unit="ns").normalize() - pd.Timedelta(days=2)
    end = pd.Timestamp(last_ns, unit="ns").normalize() + pd.Timedelta(days=2)
    try:
        # Short stretches without any session (a long holiday) are an error there: widen to a fortnight.
        exchange = xc.get_calendar(
            calendar, start=start - pd.Timedelta(days=14), end=end + pd.Timedelta(days=14)
        )
    except xc.errors.InvalidCalendarName:
        raise _unknown(calendar) from None
    except (ValueError, xc.errors.CalendarError) as error:
        raise HpcrlError(
            f"calendar {calendar} has no sessions for {start.date()} to {end.date()}: {error}"
        ) from None
    table = exchange.schedule
    table = table[(table.index >= start) & (table.index <= end)]
    day_D = (table.index.as_unit("ns").asi8 // DAY_NS).astype(np.int64)
    open_D, close_D = _ns(table["open"]), _ns(table["close"])
    has_break = table["break_start"].notna().to_numpy()
    first_stop_D = np.where(has_break, _ns(table["break_start"]), close_D)
    start_P = np.concatenate([open_D, _ns(table["break_end"])[has_break]])
    stop_P = np.concatenate([first_stop_D, close_D[has_break]])
    day_P = np.concatenate([day_D, day_D[has_break]])
    order = np.argsort(start_P, kind="stable")
    return start_P[order], stop_P[order], day_P[order]


def _ns(column: pd.Series) -> np.ndarray:
    return pd.DatetimeIndex(column).as_unit("ns").asi8
