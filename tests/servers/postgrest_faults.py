"""The faults that the tests' PostgREST commits when a switch tells it to.

A switch acts on the requests that fit it (symbol, table, method): from the ``first``-th on, on so many
``requests`` of them (None: for good), each with probability ``chance``, drawn from ``seed``.
"""

from __future__ import annotations

import random
import re
import threading
from dataclasses import dataclass, field
from typing import Any

ROWS = ", \n "
"""How json_agg parts two rows; inside a JSON text a line break would be written as \\n."""

HTML = b"""<!DOCTYPE html>
<html lang="en-US"><head><title>example.supabase.co | 522: Connection timed out</title></head>
<body><h1><span>Connection timed out</span> <span class="code-label">Error code 522</span></h1></body></html>
"""

BEFORE = ("status", "slow", "drop", "html", "sql")
"""Act before the database is asked: on any request."""
AFTER = ("short", "hole", "end", "cut", "duplicate", "count", "drop_body", "slow_body")
"""Act on an answer that has rows; ``count`` on one that counts some."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rows: int = 0
    offset: int = 0
    total: int | None = None
    drop_at: int | None = None
    """Bytes of the body after which the connection breaks."""
    drop_how: str = "length"
    """length: less than Content-Length says; chunks: no last chunk."""
    pause: float = 0.0
    """Seconds of silence in the middle of the body."""


@dataclass
class Switch:
    kind: str
    number: int = 0
    first: int = 1
    requests: int | None = None
    symbol: str | None = None
    table: str | None = None
    method: str | None = None
    counting: bool | None = None
    """True: only requests for an exact count; False: only others; None: both."""
    chance: float = 1.0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    seen: int = 0
    acted: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (*BEFORE, *AFTER):
            raise ValueError(f"no switch {self.kind!r}; there are {', '.join((*BEFORE, *AFTER))}")
        self._draw = random.Random(self.seed)

    def fits(self, method: str, table: str, symbol: str | None, count: bool) -> bool:
        return (
            self.symbol in (None, symbol)
            and self.table in (None, table)
            and self.method in (None, method)
            and self.counting in (None, count)
        )

    def strikes(self) -> bool:
        """Count one fitting request; whether it is struck."""
        self.seen += 1
        if self.seen < self.first or (self.requests is not None and self.acted >= self.requests):
            return False
        if self.chance < 1 and self._draw.random() >= self.chance:
            return False
        self.acted += 1
        return True


class Switches:
    """All that are set; asked from every request's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Switch] = []
        self._count = 0

    def add(self, **given: Any) -> int:
        fields = {key: given.pop(key) for key in list(given) if key in Switch.__dataclass_fields__}
        with self._lock:
            self._count += 1
            self._all.append(Switch(**fields, number=self._count, options=given))
            return self._count

    def clear(self) -> None:
        with self._lock:
            self._all.clear()

    def acted(self) -> dict[int, int]:
        with self._lock:
            return {switch.number: switch.acted for switch in self._all}

    def striking(self, kinds: tuple[str, ...], *request: Any) -> list[Switch]:
        with self._lock:
            fitting = [one for one in self._all if one.kind in kinds and one.fits(*request)]
            return [one for one in fitting if one.strikes()]

    def spoil(self, answer: Answer, *request: Any) -> None:
        """Change a good answer as the switches say."""
        if answer.total:
            for switch in self.striking(("count",), *request):
                _wrong_count(answer, switch)
        if answer.rows and answer.body:
            for switch in self.striking(AFTER[:5] + AFTER[6:], *request):
                _spoil(answer, switch)


def _rows(answer: Answer) -> list[str]:
    return answer.body.decode()[1:-1].split(ROWS)


def _put(answer: Answer, rows: list[str]) -> None:
    """Other rows; Content-Range says as many, as the real service's would."""
    answer.body = f"[{ROWS.join(rows)}]".encode()
    answer.rows = len(rows)
    span = f"{answer.offset}-{answer.offset + len(rows) - 1}" if rows else "*"
    total = answer.headers["Content-Range"].split("/")[1]
    answer.headers["Content-Range"] = f"{span}/{total}"


def _wrong_count(answer: Answer, switch: Switch) -> None:
    """add: so many more; to: this number; neither: no count at all."""
    span = answer.headers["Content-Range"].split("/")[0]
    wrong: int | str = "*"
    if "add" in switch.options:
        wrong = (answer.total or 0) + switch.options["add"]
    elif "to" in switch.options:
        wrong = switch.options["to"]
    answer.headers["Content-Range"] = f"{span}/{wrong}"


def _spoil(answer: Answer, switch: Switch) -> None:
    options, rows = switch.options, _rows(answer)
    if switch.kind == "short":  # ends early, status 200 and no word of it
        _put(answer, rows[: max(int(options.get("rows", len(rows) // 2)), 1)])
    elif switch.kind == "hole":  # some rows in the middle are not there
        size = int(options.get("rows", 1))
        middle = max((len(rows) - size) // 2, 0)
        _put(answer, rows[:middle] + rows[middle + size :])
    elif switch.kind == "end":  # as if there were no more
        _put(answer, [])
    elif switch.kind == "duplicate":
        size, middle = int(options.get("rows", 3)), len(rows) // 2
        _put(answer, rows[:middle] + rows[max(middle - size, 0) :])
    elif switch.kind == "cut":  # a proxy that cut the body and then counted its bytes
        answer.body = answer.body[: int(len(answer.body) * float(options.get("at", 0.6)))]
    elif switch.kind == "drop_body":
        answer.drop_at = int(len(answer.body) * float(options.get("at", 0.5)))
        answer.drop_how = options.get("how", "length")
    elif switch.kind == "slow_body":
        answer.pause = float(options["seconds"])


def refusal(switch: Switch) -> Answer:
    """The answer of kinds ``status`` and ``html``: a gateway's, in front of the database."""
    options = switch.options
    if switch.kind == "html":
        return Answer(int(options.get("status", 200)), {"Content-Type": "text/html; charset=UTF-8"}, HTML)
    status = int(options["status"])
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if "retry_after" in options:
        headers["Retry-After"] = str(options["retry_after"])
    text = options.get("body", '{"message":"the tests\' server was told to fail"}')
    return Answer(status, headers, re.sub(r"\n\s*", "", text).encode())
