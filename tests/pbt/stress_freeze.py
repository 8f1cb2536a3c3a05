"""Two attempts of one member at once: one is frozen at a chosen place, and woken when a newer one is there.

    python tests/pbt/stress_freeze.py FOLDER MODE PLACE [PLACE ...]

MODE ready: it wakes when its successor has finished. inheriting: while its successor takes over its history,
and another member reads on. PLACE: the end of a path that is changed, or a part of what is written there.
Prints one JSON object a line: how the first attempt ended, and what it wrote after it woke.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from stress_member import Order
from stress_population import fork, make

from hpcrl.pbt.population import Population
from hpcrl.storage.atomic import sha256_of

MEMBERS, GENERATIONS = 4, 6


def scenario(folder: Path, mode: str, place: str) -> dict[str, object]:
    folder.mkdir(parents=True)
    population = make(folder, MEMBERS, GENERATIONS, 3)
    log = folder / "log"
    log.mkdir()

    def start(member: int, stop_at: str = "") -> int:
        """Runs until it ends or stops; its process id."""
        fuse = {"signal": int(signal.SIGSTOP), "at": stop_at} if stop_at else None
        pid = fork(population.path, member, Order(member, fuse, sync=False, late=False), log)
        ended(pid, stopped=bool(stop_at))
        return pid

    for member in (2, 3):
        start(member)
    stale = start(0, place)
    successor = None
    if mode == "inheriting":
        successor = start(0, "pbt/records/000002.json")
    else:
        start(0)
    before = written(population)
    os.kill(stale, signal.SIGCONT)
    code = ended(stale)
    late = sorted(written(population) - before)
    start(1)
    if successor is not None:
        os.kill(successor, signal.SIGCONT)
        ended(successor)
    return {
        "population": str(population.path),
        "mode": mode,
        "place": place,
        "code": code,
        "late": [name for name, _ in late],
        "late_records": [sha256 for name, sha256 in late if "/records/" in name],
    }


def ended(pid: int, stopped: bool = False) -> int:
    """Its exit code; RuntimeError where it did not stop though it should, or the other way round."""
    status = os.waitpid(pid, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status) != stopped:
        raise RuntimeError(f"process {pid}: status {status}, to be stopped: {stopped}")
    return -1 if stopped else os.WEXITSTATUS(status)


def written(population: Population) -> set[tuple[str, str]]:
    """(path, sha256) of every file of member 0's first attempt but temporary ones."""
    folder = population.folder(0) / "attempts" / "1"
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {(str(path.relative_to(folder)), sha256_of(path)) for path in files}


if __name__ == "__main__":
    for number, given in enumerate(sys.argv[3:]):
        print(json.dumps(scenario(Path(sys.argv[1]) / str(number), sys.argv[2], given)), flush=True)
