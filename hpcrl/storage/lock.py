"""One process at a time in a folder (a run, a staging), as far as the file system can tell.

``flock`` is released by the kernel when its holder dies, so a killed run leaves nothing to clean up. Where a
file system has no locks, nothing is held: this guards against a mistake at the keyboard. The fence between
nodes is ``attempts``: hence a requeued job passes a lock that its own earlier attempt still holds, on a node
that was lost, and so does a user who says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from hpcrl.storage.atomic import write_error
from hpcrl.types import HpcrlError

_HELD = (errno.EAGAIN, errno.EACCES)


def hold(
    path: Path,
    doing: str = "trained",
    job: str | None = None,
    requeued: bool = False,
    take_over: bool = False,
) -> TextIO:
    """Lock ``path`` for as long as the returned file stays open; HpcrlError naming who holds it.

    ``doing``: what its holder does to the folder. ``job``: Slurm's job that this process belongs to; its lock
    is no obstacle to the same job ``requeued``, nor is any with ``take_over``: then nothing is locked.
    """
    mark = f", Slurm job {job}" if job else ""
    try:
        file = path.open("a+")
    except OSError as error:
        raise write_error(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return file  # no locks here
        file.seek(0)
        holder = file.read().strip() or "another process"
        if take_over or (requeued and mark and holder.endswith(mark)):
            return file
        file.close()
        lost = " (is it lost with its node: --take-over)" if doing == "trained" else ""
        raise HpcrlError(f"{path.parent} is being {doing} by {holder}; stop that first{lost}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{mark}\n")
    file.flush()
    return file
