"""The run's TensorBoard file, written by rank 0 beside metrics.jsonl, which stays the record.

An event per finished epoch: its step is the epoch, its time the epoch's end; every number of the metrics
line is a scalar under its own name (float32), its alarms are a text. What is no finite number is left out.

Written at once and in the caller's thread, with tensorboardX's records alone: its own writer hands events to
a thread by a queue, and once a write has failed there the queue fills up, and training would wait for ever.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

GREATEST = 3.4e38
"""Of float32."""
CLOCKS = ("epoch", "time/unix")
"""They are the axes."""


class EventFile:
    """``path`` is written anew: first ``kept``, the epochs of before, then what ``write`` is given.

    Never raises: what goes wrong is said once by ``say``, and from then on nothing is written.
    """

    def __init__(self, path: Path, kept: Iterable[dict[str, Any]], say: Callable[[str], None]) -> None:
        self.path, self._say = path, say
        self._records: Any = None
        with self._or_off():
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter

            self._records = RecordWriter(str(path))
            self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
            # A TensorBoard that has read an older attempt's file forgets the epochs that were lost.
            self._add(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
            for line in kept:
                self._add(event_of(line))
            self._records.flush()

    def write(self, line: dict[str, Any]) -> None:
        """One epoch, readable when this returns."""
        if self._records is None:
            return
        with self._or_off():
            self._add(event_of(line))
            self._records.flush()

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    @contextlib.contextmanager
    def _or_off(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a missing or clashing package, too: nothing here is worth a run
            why = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
            if self._records is not None:
                with contextlib.suppress(OSError):
                    self._records.close()
            self._records = None
            self._say(
                f"WARNING: {self.path}: cannot be written: {why}; no more TensorBoard events from this "
                "attempt. Training goes on, metrics.jsonl has everything"
            )


def event_of(line: dict[str, Any]) -> Any:
    """An Event of one metrics line."""
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=key, simple_value=value)
        for key, value in line.items()
        if key not in CLOCKS and _is_number(value)
    ]
    if alarms := line.get("alarms"):
        values += summary.text("alarms", "\n".join(f"- {alarm}" for alarm in alarms)).value
    ended = line.get("time/unix")
    return Event(
        wall_time=ended if _is_number(ended) else time.time(),
        step=line["epoch"],
        summary=Summary(value=values),
    )


def _is_number(value: Any) -> bool:
    """Whether it is one that float32 can hold; infinity and NaN are none, nor is True."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < GREATEST
