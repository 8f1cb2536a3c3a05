"""What the stress run does to a member's process: ends or freezes it anywhere, and shows it a slow share."""

from __future__ import annotations

import builtins
import io
import os
import random
from collections.abc import Callable
from pathlib import Path

from hpcrl.pbt.records import Share

CALLS = ("link", "mkdir", "replace", "fsync", "symlink", "unlink", "ftruncate")
"""Each changes the disk: between two of them a crash may leave another state behind."""


class Fuse:
    """Sends this process a signal at the ``calls``-th change of the disk: before, after, or amid a write.

    ``at``: before the first change of a path that ends so, or write of a text that holds it; no call counts.
    """

    def __init__(self, signal: int, calls: int = 0, at: str = "", seed: int = 0) -> None:
        self.signal, self.left, self.at = signal, calls, at
        self._random = random.Random(seed)

    def burns(self, *paths: object, text: str = "") -> bool:
        if self.at:
            hit = self.left == 0 and (self.at in text or any(str(p).endswith(self.at) for p in paths))
            self.left -= hit
            return hit
        self.left -= 1
        return self.left == 0

    def go(self) -> None:
        os.kill(os.getpid(), self.signal)

    def arm(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(getattr(os, name)))
        plain, fuse = io.open, self

        def opened(file, mode="r", buffering=-1, *rest, **more):
            if buffering == 0 and mode in ("ab", "xb"):
                return _Torn(fuse, file, mode[0])
            return plain(file, mode, buffering, *rest, **more)

        io.open = builtins.open = opened

    def _wrapped(self, real: Callable) -> Callable:
        def call(*args, **named):
            if not self.burns(*args):
                return real(*args, **named)
            if self.at or self._random.random() < 0.5:
                self.go()
                return real(*args, **named)
            result = real(*args, **named)
            self.go()
            return result

        return call

    def part(self, data: bytes) -> int:
        return self._random.randrange(len(data) + 1)


class _Torn(io.FileIO):
    """The process ends when a part of what is written is on disk."""

    def __init__(self, fuse: Fuse, file: object, mode: str) -> None:
        super().__init__(file, mode)
        self.fuse = fuse

    def write(self, data) -> int:
        data = bytes(data)
        if not self.fuse.burns(self.name, text=data.decode(errors="replace") if self.fuse.at else ""):
            return super().write(data)
        part = 0 if self.fuse.at else self.fuse.part(data)
        done = super().write(data[:part])
        self.fuse.go()
        return done + super().write(data[part:])


class LateShare(Share):
    """A name is seen 0 to ``delay`` simulated seconds after it came to be, by each process at another time.

    Of what a process reads 3 % is cut short, and of the sizes that it is told 10 % are those of before. What
    an attempt writes itself it sees at once: it asked for it on the same machine.
    """

    def __init__(self, own: Path, seed: int, delay: float = 60.0, seconds_a_turn: float = 20.0) -> None:
        self.own, self.delay, self.seconds_a_turn = f"{own}/", delay, seconds_a_turn
        self.now = 0.0
        self._random = random.Random(seed)
        self._shown = {str(own): 0.0}
        """Path -> simulated time from which on it is seen."""
        self._sizes: dict[str, int] = {}
        self._looked: set[str] = set()

    def turn(self) -> None:
        self.now += self.seconds_a_turn

    def names(self, folder: Path) -> list[str]:
        here, found = str(folder), super().names(folder)
        if f"{here}/".startswith(self.own):
            return found
        # What is there at the first look came to be at some time before it.
        earliest = 0.0 if here in self._looked else -2 * self.delay
        self._looked.add(here)
        shown = self._shown
        for name in found:
            path = f"{here}/{name}"
            if path not in shown:
                shown[path] = self.now + self._random.uniform(earliest, self.delay)
        return [name for name in found if shown[f"{here}/{name}"] <= self.now]

    def _hidden(self, path: Path) -> bool:
        here = str(path)
        if here.startswith(self.own):
            return False
        if here not in self._shown:
            # Asked for by its name: a file that was named in one that is seen may be late itself.
            self._shown[here] = self.now + self._random.uniform(-2 * self.delay, self.delay)
        return self._shown[here] > self.now

    def read(self, path: Path) -> bytes:
        if self._hidden(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        data = super().read(path)
        own = str(path).startswith(self.own)
        return data if own or self._random.random() > 0.03 else data[: self._random.randrange(len(data) + 1)]

    def size(self, path: Path) -> int:
        here = str(path)
        if self._hidden(path):
            return -1
        if here in self._sizes and self._random.random() < 0.1:
            return self._sizes[here]
        self._sizes[here] = super().size(path)
        return self._sizes[here]
