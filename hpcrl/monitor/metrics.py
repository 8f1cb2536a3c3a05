"""metrics.jsonl: one JSON line per finished epoch, written by rank 0.

Keys under ``time/`` (seconds, rates, the attempt), ``gpu/`` and ``host/`` (of rank 0) differ between two
runs of one config; all others are reproduced by a resumed run, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from hpcrl.storage.atomic import write_error, write_text
from hpcrl.types import RunFailed


def line_of(metrics: dict) -> str:
    """Strict JSON: a number that JSON has no word for is written as null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in metrics.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict]:
    """Every whole line; one torn by a crash is skipped."""
    try:
        texts = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFailed(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("epoch"), int):
            lines.append(line)
    return lines


class MetricsFile:
    """Appends lines. A new attempt begins with the lines of ``source``, the attempt before it, up to the
    checkpoint that it resumes from. ``check`` is asked before a line is written and may refuse it; ``also``
    is given each one that was.
    """

    def __init__(
        self,
        path: Path,
        after_epoch: int,
        source: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.check = path, check
        self.also: Callable[[dict], None] = lambda line: None
        self.kept = [line for line in read_metrics(source or path) if line["epoch"] <= after_epoch]
        """The lines of before."""
        write_text(path, "".join(line_of(line) for line in self.kept))

    def append(self, metrics: dict) -> None:
        self.check()
        try:
            with self.path.open("a") as file:
                file.write(line_of(metrics))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None
        self.also(metrics)
