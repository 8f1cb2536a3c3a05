"""--start and --end: dates cover days of UTC, stamps are exact, and nonsense is named."""

from __future__ import annotations

import numpy as np
import pytest

from hpcrl.market.source import Span
from hpcrl.market.span import read_span
from hpcrl.types import HpcrlError


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        ("2026-01-05", "2026-01-05", "2026-01-05", "2026-01-06"),
        ("2024-02-28", "2024-02-29", "2024-02-28", "2024-03-01"),
        ("2026-01-05T14:30:00Z", "2026-01-05T14:35", "2026-01-05T14:30", "2026-01-05T14:35"),
        ("2026-01-05 09:30-05:00", "2026-01-05T23:31+0900", "2026-01-05T14:30", "2026-01-05T14:31"),
        ("1969-12-31T23:59:59.999999", "2026-01-05", "1969-12-31T23:59:59.999999", "2026-01-06"),
        ("2026-01-05T00:00", "2261-12-31", "2026-01-05", "2262-01-01"),
    ],
)
def test_spans_are_half_open_in_utc(start, end, first, last):
    assert read_span(start, end) == Span(ns(first), ns(last))
    assert read_span(start, None) == Span(ns(first), None)
    assert read_span(None, end) == Span(None, ns(last))


def test_nothing_said_is_everything():
    assert read_span(None, None) == Span(None, None)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026", "2026-1-5", "20260105", "2026-02-30", "2026-01-05T25:00", "05/01/2026",
     "2026-01-05T14", "1767571200", "2026-01-05T14:30 UTC", "2026-01-05T14:30:00.123456789", "٢٠٢٦-٠١-٠٥"],
)  # fmt: skip
def test_what_is_no_date_is_named_with_what_would_be(text):
    with pytest.raises(HpcrlError) as caught:
        read_span(text, None)
    assert f"--start {text!r} is no date: write YYYY-MM-DD" in str(caught.value)
    with pytest.raises(HpcrlError, match=r"--end .* is no date"):
        read_span(None, text)


@pytest.mark.parametrize("text", ["1600-01-01", "2262-01-01", "0001-01-01T00:00+10:00", "9999-12-31"])
def test_years_that_nanoseconds_cannot_hold_are_refused(text):
    with pytest.raises(HpcrlError, match="outside the years 1678 to 2261"):
        read_span(None, text)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-01-06", "2026-01-05"),
        ("2026-01-05T14:30", "2026-01-05T14:30"),
        ("2026-01-06T00:00Z", "2026-01-05"),
        ("2026-01-05T09:30-05:00", "2026-01-05T14:30"),
    ],
)
def test_an_end_that_is_not_after_the_start_is_refused_in_utc(start, end):
    with pytest.raises(HpcrlError, match=r"is not after --start .* \(in UTC from 2026-01-0"):
        read_span(start, end)
