"""Rows as they arrive: a bar on a terminal, else a line every 10 s. On stderr only; stdout is for results.

Nothing is shown before the first rows are reported. Rates leave out rows that were there already when a
symbol first reported (a resumed staging); rows fetched anew count again.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from hpcrl.market.source import Progress

LINE_SECONDS = 10.0
MOST_SHOWN = 8
"""Symbols at a time; beyond that only the total is of use."""


@contextlib.contextmanager
def show_progress(
    stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, done: str = "fetched"
) -> Iterator[Progress]:
    """Gives the callback, for any thread. ``stream``: default stderr. ``done``: the last line's verb."""
    stream = sys.stderr if stream is None else stream
    shown = _Bar(stream, clock) if stream.isatty() else _Lines(stream, clock, done)
    try:
        yield shown.update
    finally:
        shown.close()


class _Count:
    """Rows of one symbol, or of all."""

    def __init__(self, now: float, rows: int = 0, total: int = 0) -> None:
        self.rows, self.total, self.arrived = rows, total, 0
        self.begun, self.ended = now, None if rows < total else now

    def set(self, rows: int, total: int, arrived: int, now: float) -> None:
        self.rows, self.total, self.arrived = rows, total, self.arrived + arrived
        self.ended = now if rows >= total else None

    def text(self, now: float) -> str:
        seconds = (now if self.ended is None else self.ended) - self.begun
        rate = self.arrived / seconds if seconds > 0 else 0.0
        text = f"{self.rows:,} of {self.total:,} rows"
        if rate:
            text += f", {rate:,.0f} rows/s"
            if self.ended is None:
                left = round((self.total - self.rows) / rate)
                text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return text


class _Counts:
    """Of every symbol and of all together; the two ways to show them inherit it."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self.stream, self.clock = stream, clock
        self.lock = threading.Lock()
        self.symbols: dict[str, _Count] = {}
        """Last reported last."""
        self.all: _Count | None = None

    def update(self, symbol: str, rows: int, total: int) -> None:
        with self.lock:
            now = self.clock()
            count, new = self.symbols.pop(symbol, None), 0
            if count is None:
                count = _Count(now, rows, total)
            else:
                new = max(rows - count.rows, 0)
                count.set(rows, total, new, now)
            self.symbols[symbol] = count
            self.all = self.all or _Count(now)
            each = self.symbols.values()
            self.all.set(sum(c.rows for c in each), sum(c.total for c in each), new, now)
            self.show(now)

    def running(self) -> list[str]:
        return [symbol for symbol, count in self.symbols.items() if count.ended is None][-MOST_SHOWN:]

    def show(self, now: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Lines(_Counts):
    def __init__(self, stream: TextIO, clock: Callable[[], float], done: str) -> None:
        super().__init__(stream, clock)
        self.done, self.said = done, float("-inf")

    def show(self, now: float) -> None:
        if self.all is None or now - self.said < LINE_SECONDS:
            return
        self.said = now
        parts = [f"{symbol} {self.symbols[symbol].rows:,}" for symbol in sorted(self.running())]
        print("; ".join([self.all.text(now), *parts]), file=self.stream, flush=True)

    def close(self) -> None:
        with self.lock:
            if self.all is not None:
                print(f"{self.done} {self.all.text(self.clock())}", file=self.stream, flush=True)


class _Figures(ProgressColumn):
    """The count's own text: Rich's rates would take a resumed symbol's rows for fetched ones."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock

    def render(self, task: Task) -> Text:
        return Text(task.fields["count"].text(self.clock()))


class _Bar(_Counts):
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__(stream, clock)
        self.tasks: dict[str, TaskID] = {}
        self.total: TaskID | None = None
        name = TextColumn("{task.description}", markup=False)
        console = Console(file=stream)
        self.bar = RichProgress(name, BarColumn(bar_width=None), _Figures(clock), console=console)

    def show(self, now: float) -> None:
        if self.all is None:
            return
        if self.total is None:
            self.bar.start()
            self.total = self.bar.add_task("all", count=self.all)
        running = self.running()
        for symbol, count in self.symbols.items():
            if symbol not in self.tasks:
                self.tasks[symbol] = self.bar.add_task(symbol, count=count)
            seen = symbol in running or len(self.symbols) <= MOST_SHOWN
            self.bar.update(self.tasks[symbol], completed=count.rows, total=count.total, visible=seen)
        self.bar.update(self.total, completed=self.all.rows, total=self.all.total)

    def close(self) -> None:
        with self.lock:
            self.bar.stop()
