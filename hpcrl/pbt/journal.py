"""journal.jsonl of an attempt of a member: what was done, line by line, each on disk before the next step.

Each attempt has a file of its own, which begins with the lines of the attempt that it follows. Events:

  birth      an attempt took over
  published  the record and snapshot of a generation
  decided    the records read (member, generation, sha256, usable), outcome, p, reason, and what is intended
  intent     donor, its snapshot, new hyperparameters: to be carried out, after a crash once more
  adopted    donor's weights, moments and return statistics are in place, on all ranks
  explored   hyperparameters before and after
  abandoned  an intent that could not be carried out, and why: the member went on as it was
  finished   the last generation: nothing is decided any more
  pruned     snapshots that were removed
  skipped    a record that could not be read; alarm: the same one in three turns in a row
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcrl.storage.atomic import write_error, write_text

ONCE = ("published", "decided", "intent", "adopted", "explored", "abandoned", "finished")
"""Events that a generation has at most once."""


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Every whole line; one that a crash tore is left out. [] where there is no file."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split("\n")[:-1]:  # what has no line break at its end was torn
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("event"), str):
            lines.append(value)
    return lines


class Journal:
    """Of the attempt that writes. ``lines``: of the journal that it goes on with."""

    def __init__(self, path: Path, lines: Sequence[dict[str, Any]] = ()) -> None:
        self.path = path
        self._done: dict[tuple[int, str], dict[str, Any]] = {}
        write_text(path, "".join(_text(line) for line in lines))
        for line in lines:
            self._note(line)

    def done(self, generation: int, event: str) -> dict[str, Any] | None:
        """That line, if the generation has one."""
        return self._done.get((generation, event))

    def append(self, event: str, generation: int, **fields: Any) -> dict[str, Any]:
        """One line, synced. An event that the generation has already is not written again."""
        known = self.done(generation, event)
        if known is not None:
            return known
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"event": event, "generation": generation, **fields, "time": now}
        data = _text(line).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                # A write may stop short on a full disk: what is there of the line goes again.
                if (written := file.write(data)) != len(data):
                    os.ftruncate(file.fileno(), file.tell() - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None
        self._note(line)
        return line

    def _note(self, line: dict[str, Any]) -> None:
        if line["event"] in ONCE and isinstance(line.get("generation"), int):
            self._done[line["generation"], line["event"]] = line


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, sort_keys=True, allow_nan=False) + "\n"
