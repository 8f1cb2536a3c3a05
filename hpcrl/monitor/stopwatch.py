"""Where an epoch's time goes: named spans, wall seconds on the CPU, events on CUDA.

CUDA runs behind the host, so host clocks would charge one span with another's work; events are recorded
without a synchronisation and read once at the epoch's end.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.events.append((name, begin, end))
        else:
            start = time.perf_counter()
            yield
            self.seconds[name] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds per span since the last read."""
        if self.events:
            torch.cuda.synchronize()
            for name, begin, end in self.events:
                self.seconds[name] += begin.elapsed_time(end) / 1e3
            self.events.clear()
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds
