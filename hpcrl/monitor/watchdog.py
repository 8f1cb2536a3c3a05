"""A rank that hangs ends itself, so that Slurm can start the job again; and the heartbeat of a run.

A hang is what no signal cures: a collective that waits for a rank that is gone, a file system that does not
answer. The watchdog needs neither of them: a thread of its own counts the seconds since the last ``beat``,
another writes the heartbeat. It counts its own short waits, not the clock, so that a process (or a machine,
or a job that Slurm suspends) that stood still for an hour has not hung for an hour when it goes on.

What it cannot see: a call that never gives Python's lock back; none of those that wait for another rank does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from hpcrl.storage.atomic import write_json
from hpcrl.types import HUNG, HpcrlError

HEARTBEAT_SECONDS = 15.0
"""How old heartbeat.json may be while the run lives, the time to write it aside."""
_TICK_SECONDS = 1.0
# Time to write the stacks to a log that may be on the very file system that hangs. Guessed.
_DUMP_SECONDS = 10.0
# Ranks that wait for the same thing began within this time: each writes its stacks before the first one's
# end makes the collectives of the others fail. Guessed.
_LINGER_SECONDS = 5.0


class Watchdog:
    """Ends this process with code ``HUNG`` when no ``beat`` came for ``seconds``; 0: never.

    ``heartbeat``: the file to keep up to date, on the rank that has one.
    """

    def __init__(self, seconds: float, heartbeat: Path | None = None, rank: int = 0) -> None:
        self._seconds, self._heartbeat, self._rank = seconds, heartbeat, rank
        self.phase, self.epoch, self._since = "start", 0, datetime.now(UTC)
        self._beats = 0
        self._ended = threading.Event()
        self._begun = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Watchdog:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> Watchdog:
        for work, wanted in ((self._watch, self._seconds > 0), (self._write, self._heartbeat is not None)):
            if wanted:
                # daemon: one of them may hang in a write for good.
                self._threads.append(
                    threading.Thread(target=work, daemon=True, name=f"watchdog{work.__name__}")
                )
                self._threads[-1].start()
        return self

    def beat(self, phase: str, epoch: int) -> None:
        """This rank gets on: it begins ``phase``, a word or two, of ``epoch``."""
        self.phase, self.epoch, self._since = phase, epoch, datetime.now(UTC)
        self._beats += 1
        self._begun.set()

    def stop(self) -> None:
        """The work is done: nothing is a hang from here on."""
        self._ended.set()
        self._begun.set()
        for thread in self._threads:
            thread.join(_DUMP_SECONDS)

    def _watch(self) -> None:
        tick = min(_TICK_SECONDS, self._seconds / 10)
        quiet, seen, before = 0.0, 0, time.monotonic()
        while not self._ended.wait(tick):
            now = time.monotonic()
            # A longer wait than asked for means that the whole process stood still, or was very busy.
            quiet += min(now - before, 2 * tick)
            before = now
            if seen != self._beats:
                quiet, seen = 0.0, self._beats
            if quiet >= self._seconds:
                self._end()

    def _end(self) -> None:
        telling = threading.Thread(target=self._tell, daemon=True)
        telling.start()
        telling.join(_DUMP_SECONDS)
        if not self._ended.wait(_LINGER_SECONDS):
            os._exit(HUNG)  # an orderly end would wait for the thread that hangs

    def _tell(self) -> None:
        line = (
            f"error: rank {self._rank} on {socket.gethostname()} hangs: nothing happened for "
            f"{self._seconds / 60:g} min (monitor.hang_minutes) in {self.phase!r} of epoch "
            f"{self.epoch}; where its threads are is written above. It ends with exit code {HUNG}, and "
            "the run can go on from its newest checkpoint\n"
        )
        with contextlib.suppress(OSError):
            text = _stacks() + line.encode()
            while text:
                text = text[os.write(2, text) :]
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()

    def _write(self) -> None:
        self._begun.wait()
        told = False
        while True:
            ended = self._ended.is_set()
            try:
                assert self._heartbeat is not None
                write_json(self._heartbeat, self._record())
            except (HpcrlError, OSError) as error:  # a full disk: the checkpoints will say so, or find room
                if not told:
                    print(f"WARNING: no heartbeat: {error}; the run goes on", file=sys.stderr, flush=True)
                told = True
            if ended:
                return
            self._ended.wait(HEARTBEAT_SECONDS)

    def _record(self) -> dict[str, str | int]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "epoch": self.epoch,
            "phase": self.phase,
            "since": self._since.isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }


def _stacks() -> bytes:
    """Where all threads are. By way of memory: faulthandler writes with Python's lock held, and into a log on
    the file system that hangs it would write for ever, this thread's end and the watchdog's with it."""
    file = os.memfd_create("stacks")
    try:
        faulthandler.dump_traceback(file, all_threads=True)
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
