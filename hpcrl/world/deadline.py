"""When to stop so that all is saved before Slurm's time limit: measured, not guessed by the script's author.

Rank 0 asks once an epoch whether there is still time for another. Nothing here knows torch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime

from hpcrl.types import HpcrlError
from hpcrl.world.slurm import job_id, show_job

# The longest epoch and save so far, half as much again, and what ending the processes takes. Both are
# guessed: too much costs an epoch or two per job, too little all that came after the last save.
_FACTOR, _SECONDS_TO_END = 1.5, 10.0
_ASK_SECONDS = 30.0
# An unreachable controller holds the training up so often and so long at most.
_PATIENCE_SECONDS, _LONGEST_PAUSE_SECONDS = 10.0, 1800.0


class Deadline:
    """The end of this process's job. Outside Slurm, and in a job without a time limit, it never comes.

    Times are seconds; ``now`` and ``ask`` are the clock and ``scontrol show job``.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
        ask: Callable[[str, float], Mapping[str, str]] = show_job,
    ) -> None:
        self._job, self._now, self._ask = job_id(environ), now, ask
        given = environ.get("SLURM_JOB_END_TIME", "")  # Slurm 22.05 has no such variable, later ones have
        self._known = given.isdigit()
        self._end = float(given) if self._known else math.inf
        self._epoch = self._save = 0.0
        self._asked, self._pause = -math.inf, _ASK_SECONDS

    def note(self, *, epoch_seconds: float = 0.0, save_seconds: float = 0.0) -> None:
        """What an epoch (without its save) or a save took."""
        self._epoch, self._save = max(self._epoch, epoch_seconds), max(self._save, save_seconds)

    @property
    def left(self) -> float:
        """Seconds until the job's end, as far as it is known."""
        return self._end - self._now()

    def due(self) -> bool:
        """Whether another epoch and its save may not fit any more.

        Slurm is asked where the end is unknown, and before a yes: the time limit may have been extended. Does
        it not answer, what was known counts.
        """
        if self._job is None:
            return False
        if not self._known or self._close():
            self._ask_again()
        return self._close()

    def _close(self) -> bool:
        return self.left < (self._epoch + self._save) * _FACTOR + _SECONDS_TO_END

    def _ask_again(self) -> None:
        if self._now() - self._asked < self._pause:
            return
        assert self._job is not None
        self._asked = self._now()
        try:
            self._end = end_time(self._ask(self._job, _PATIENCE_SECONDS))
        except HpcrlError:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            return
        self._known, self._pause = True, _ASK_SECONDS


def end_time(job: Mapping[str, str]) -> float:
    """EndTime of ``scontrol show job`` as unix seconds; infinite for a job without a time limit.

    Slurm prints local time without a zone. Of the hour that comes twice in autumn the first is taken.
    """
    try:
        return datetime.fromisoformat(job["EndTime"]).timestamp()
    except (KeyError, ValueError):  # Unknown, None, N/A
        return math.inf
