"""Divisors, for errors that name the nearest sizes which would do."""

from __future__ import annotations

import math


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending, in O(sqrt(number))."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def nearest(candidates: list[int], wanted: int, count: int = 3) -> str:
    """The ``count`` candidates nearest to ``wanted``, ascending, as a text."""
    close = sorted(candidates, key=lambda candidate: abs(candidate - wanted))[:count]
    return ", ".join(map(str, sorted(close)))
