"""From a signal to an agreed stop: handlers set a flag, all ranks look at it together, nothing else.

TERM (Slurm's cancel, preemption and time limit), USR2 (Slurm's early warning) and INT (Ctrl-C) ask for a
checkpoint and an end, and so does a terminal that closes (HUP), but not under nohup. USR1 is left alone:
NCCL uses it.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcrl.world.world import World

READY = signal.SIGUSR2
"""The last one to be caught: a process that catches it catches them all."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, READY)


class StopFlag:
    """What asked this rank to stop. A program takes its own from ``process_flag``."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that arrived at this rank."""
        self.why = ""
        """Of a stop that the process asked for itself, if it is not the signal's usual reason."""
        self._interrupts = 0

    def install(self) -> StopFlag:
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started under nohup
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 2:
                # A run that is stuck never reaches the agreed stop.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.write(
                    2, b"\nstill waiting for the end of this epoch; Ctrl-C once more kills the run unsaved\n"
                )

    def request(self, number: signal.Signals = signal.SIGTERM, why: str = "") -> None:
        """Ask for a stop from within the process."""
        self.signal, self.why = self.signal or number, self.why or why

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop; another rank may not have been yet."""
        return self.signal is not None

    def agreed(self, world: World) -> bool:
        """Collective: True on every rank once any rank was asked to stop."""
        from hpcrl.world.collectives import any_rank

        return any_rank(world, self.requested)


_early: StopFlag | None = None


def install_early() -> None:
    """For a program's first lines: from here on no signal is lost, ``process_flag`` knows of it."""
    global _early
    _early = (_early or StopFlag()).install()


def process_flag() -> StopFlag:
    """The flag of this process, installed: the early one, or a new one where that has been taken.

    The second run of a notebook must not stop for what the first one was told.
    """
    global _early
    flag, _early = _early or StopFlag(), None
    return flag.install()
