"""Rows as they arrive: a bar on a terminal, else a line every 10 s. On stderr only; stdout is for results.

Nothing is shown before the first report. Rates leave out rows that were there already (those of a symbol's
first report, and of one without a total: a resumed staging); rows fetched anew count again.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
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

    def __init__(self, now: float) -> None:
        self.rows, self.total, self.arrived = 0, 0, 0
        self.begun, self.ended = now, now
        self.told = 0
        """Reports so far."""

    def set(self, rows: int, total: int, arrived: int, now: float) -> None:
        self.rows, self.total, self.arrived = rows, total, self.arrived + arrived
        self.ended, self.told = now, self.told + 1

    @property
    def done(self) -> bool:
        return self.rows >= self.total

    def text(self) -> str:
        return f"{self.rows:,} of {self.total:,} rows"

    def rated(self, now: float) -> str:
        """With the rate since the beginning and, before the end, the time that is left at this rate."""
        seconds = (self.ended if self.done else now) - self.begun
        rate, text = self.arrived / seconds if seconds > 0 else 0.0, self.text()
        if rate:
            text += f", {rate:,.0f} rows/s"
            if not self.done:
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
        self.closed = False

    def update(self, symbol: str, rows: int, total: int) -> None:
        with self.lock:
            if self.closed:  # a thread that could not be waited for
                return
            now = self.clock()
            count = self.symbols.pop(symbol, None) or _Count(now)
            there = total == 0 or count.told == 0
            new = 0 if there else max(rows - count.rows, 0)
            count.set(rows, total or max(rows, count.total), new, now)
            self.symbols[symbol] = count
            self.all = self.all or _Count(now)
            each = self.symbols.values()
            self.all.set(sum(c.rows for c in each), sum(c.total for c in each), new, now)
            self.show(now)

    def running(self) -> list[str]:
        """Those whose rows arrive; the others are done, or wait for their turn."""
        return [symbol for symbol, one in self.symbols.items() if one.arrived and not one.done][-MOST_SHOWN:]

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.end()

    def show(self, now: float) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class _Lines(_Counts):
    def __init__(self, stream: TextIO, clock: Callable[[], float], done: str) -> None:
        super().__init__(stream, clock)
        self.done, self.said = done, clock()

    def show(self, now: float) -> None:
        if self.all is None or now - self.said < LINE_SECONDS:
            return
        self.said = now
        parts = [f"{symbol} {self.symbols[symbol].rows:,}" for symbol in sorted(self.running())]
        print("; ".join([self.all.rated(now), *parts]), file=self.stream, flush=True)

    def end(self) -> None:
        if self.all is not None:
            print(f"{self.done} {self.all.rated(self.clock())}", file=self.stream, flush=True)


class _Figures(ProgressColumn):
    """The count's own text: Rich's rates would take a resumed symbol's rows for fetched ones."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(Column(no_wrap=True))
        self.clock = clock

    def render(self, task: Task) -> Text:
        count = task.fields["count"]
        return Text(count.rated(self.clock()) if task.fields["rated"] else count.text())


class _Console(Console):
    """A few columns stay free: the ^C of somebody who stops would break the line, and shift what is drawn."""

    @property  # type: ignore[misc]  # rich's can be set, too
    def size(self) -> ConsoleDimensions:
        width, height = super().size
        return ConsoleDimensions(max(width - 4, 1), height)


class _Bar(_Counts):
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__(stream, clock)
        self.tasks: dict[str, TaskID] = {}
        self.total: TaskID | None = None
        name = TextColumn("{task.description}", markup=False)
        console = _Console(file=stream)
        columns = (name, BarColumn(bar_width=None), _Figures(clock))
        self.bar = RichProgress(*columns, console=console, redirect_stdout=False)

    def show(self, now: float) -> None:
        if self.all is None:
            return
        if self.total is None:
            self.bar.start()
            self.total = self.bar.add_task("all", count=self.all, rated=True)
        running = self.running()
        for symbol, count in self.symbols.items():
            if symbol not in self.tasks:
                self.tasks[symbol] = self.bar.add_task(symbol, count=count, rated=False)
            seen = symbol in running or len(self.symbols) <= MOST_SHOWN
            self.bar.update(self.tasks[symbol], completed=count.rows, total=count.total, visible=seen)
        self.bar.update(self.total, completed=self.all.rows, total=self.all.total)

    def end(self) -> None:
        self.bar.stop()
