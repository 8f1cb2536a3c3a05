"""Figures as texts, alike in sentences, tables and charts: a true minus sign, and no line break before %."""

from __future__ import annotations

import math
import re
from typing import Any

MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
_SIGN = re.compile(r"(?<![\w.])-(?=[\d.])")
UNDEFINED = "-"


def neat(text: str) -> str:
    return _SIGN.sub(MINUS, text).replace(" %", f"{SPACE}%")


def percent(value: float, digits: int = 2, sign: bool = False) -> str:
    """0.0123 as 1.23 %; small figures keep two that are not 0, "undefined" where it is none."""
    if not math.isfinite(value):
        return "undefined"
    value *= 100
    if abs(value) < 5e-5:
        return neat(f"{0:.{digits}f} %")
    while digits < 4 and abs(value) < 0.6 * 10.0**-digits:
        digits += 1
    return neat(f"{value:{'+' if sign else ''},.{digits}f} %")


def sentence(text: str) -> str:
    """With a capital, where it begins with a plain word: a path or a file's name stays as it is."""
    first = text.partition(" ")[0].strip(",;:")
    return text[:1].upper() + text[1:] if first.isalpha() or first.endswith("'s") else text


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def show(value: Any, kind: str) -> str:
    """A cell: kind is percent, count, small, tiny or number; "-" where it is undefined."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNDEFINED
    if value == 0:
        return neat("0 %") if kind == "percent" else "0"
    if kind == "percent":
        value *= 100
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1
        return neat(f"{0.0 if abs(value) < 5e-4 else value:,.{digits}f} %")
    if kind == "count":
        return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
    return neat(f"{value:.4f}" if kind == "small" else f"{value:,.2f}")
