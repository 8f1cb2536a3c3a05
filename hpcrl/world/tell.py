"""A mistake that all ranks find is told by rank 0; one that rank 0 did not find is told all the same."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from hpcrl.types import HpcrlError

# What rank 0 may lag behind: its imports on a busy file system. Guessed.
_PATIENCE_SECONDS = 5.0
_STAGGER_SECONDS = 0.2
# What the others may lag behind rank 0 under srun. Guessed.
_LINGER_SECONDS = 2.0


def tell(error: HpcrlError, rank: int = 0, size: int = 1, launcher: str = "none") -> None:
    """Print the error, once for all ranks where the launcher ends the others as soon as one has ended.

    The others wait: srun ends the step at the first bad exit, and rank 0 must have spoken by then. Only if
    nothing ended them do they speak, one after the other, for then rank 0 did not find this mistake. A TERM
    meanwhile ends the process at once with the error's own exit code. Under srun rank 0 leaves the others
    time to get here: TERM while their Python starts would make 143 the exit code of the whole step.
    """
    if rank and size > 1:

        def leave(_number: int, _frame: FrameType | None) -> None:
            os._exit(error.exit_code)  # gloo's threads may abort an ordinary exit

        signal.signal(signal.SIGTERM, leave)
        time.sleep(_PATIENCE_SECONDS + _STAGGER_SECONDS * min(rank, 50))
    prefix = f"rank {rank}: " if rank else ""
    print(f"error: {prefix}{_printable(str(error))}", file=sys.stderr, flush=True)
    if rank == 0 and size > 1 and launcher == "slurm":
        time.sleep(_LINGER_SECONDS)


def _printable(text: str) -> str:
    """Without control characters: what a file or a name holds does not steer the terminal."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def red(text: str) -> str:
    """``text`` in red, also where no terminal is: a job's log is read, too. Plain where NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") else f"\033[1;31m{text}\033[0m"
