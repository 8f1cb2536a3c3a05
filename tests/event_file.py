"""Reads TensorBoard files: what each event says, and that every record's checksums hold."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


def read_events(path: Path) -> list[Event]:
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        length, of_length = struct.unpack_from("<QI", data, at)
        body = data[at + 12 : at + 12 + length]
        (of_body,) = struct.unpack_from("<I", data, at + 12 + length)
        assert (of_length, of_body) == (masked_crc32c(data[at : at + 8]), masked_crc32c(body))
        events.append(Event.FromString(body))
        at += 16 + length
    return events


def epochs_in(run: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, {tag: value}) of every epoch in the one file that TensorBoard finds in or below ``run``."""
    (path,) = [path for path in run.rglob("*") if "tfevents" in path.name]
    assert path.parent == run / "tensorboard"
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in read_events(path)
        if event.HasField("summary")
    ]
