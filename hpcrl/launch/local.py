"""K ranks of this program on this machine, through torch's elastic launch API.

The launcher holds no state: it starts the ranks, hands signals on, waits for them as long as they need, and
returns their exit code. No restarts: a run resumes from its folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from hpcrl.types import HUNG, STOPPED_EARLY, HpcrlError
from hpcrl.world.ranks import LAUNCHER_PID
from hpcrl.world.stop import READY, StopFlag, process_flag

# What arrives here -> what the ranks get. A closed terminal (HUP) asks for a stop like TERM.
_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGHUP: signal.SIGTERM,
}
# Once one rank has ended with an error, the others get TERM and this long. An agreed stop ends all ranks at
# the same moment, so this bounds only ranks that hang in a collective with a dead one. Guessed.
_GRACE_SECONDS = 60


def run_ranks(k: int, argv: list[str]) -> int:
    """Run ``python -m hpcrl ARGV`` on ``k`` ranks; the exit code (the first failing rank's, 75 and 2 kept).

    A rank that died by a signal gives 128 + its number. Blocks; main thread only (it handles signals).
    """
    if k < 1:
        raise HpcrlError(f"--ranks = {k} must be at least 1")
    if "RANK" in os.environ:
        raise HpcrlError(
            f"--ranks {k} starts ranks itself, but a launcher has started this process; drop one"
        )
    flag = process_flag()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        _silence(name)
    logs = tempfile.mkdtemp(prefix="hpcrl-ranks-")  # elastic wants one; the ranks write to our own streams
    options: dict[str, Any] = {"shutdown_timeout": _GRACE_SECONDS}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=k,
        run_id=f"hpcrl-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        # Elastic would kill the ranks 30 s after TERM or INT; we hand both on ourselves and go on waiting.
        signals_to_handle="SIGQUIT",
        **{key: value for key, value in options.items() if key in known},
    )
    try:
        with _environment(k), _Forwarder(flag):
            if flag.signal is not None:
                print(f"Stopped by {flag.signal.name} before the ranks were started: nothing was begun")
                return STOPPED_EARLY
            elastic_launch(config, sys.executable)("-m", "hpcrl", *argv)
    except ChildFailedError as error:
        return _exit_code(error)
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    return 0


def _silence(name: str) -> None:
    """A rank prints its own message; elastic's table of failures would bury it."""
    for known in [name, *logging.root.manager.loggerDict]:
        if known.startswith(name):
            logging.getLogger(known).setLevel(logging.CRITICAL)


def _exit_code(error: Any) -> int:
    """One code for all ranks: a usage error speaks first, then a hang, a death, a failure, a stop.

    The timestamps cannot tell which was first (whole seconds), and ranks that the launcher ended with TERM
    after another's failure are listed too: TERM counts only where there is nothing else.
    """
    codes = {failure.local_rank: failure.exitcode for failure in error.failures.values()}
    deaths = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    for rank, number in sorted(deaths.items()):
        print(f"rank {rank} was killed by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    found = set(codes.values())
    for code in (2, HUNG):  # a hang makes the others fail, and be killed
        if code in found:
            return code
    if deaths:
        return 128 + deaths[min(deaths)]
    failed = sorted(code for code in found if code > 0 and code != 75)
    if failed:
        return failed[0]
    return 75 if 75 in found else 128 + signal.SIGTERM


@contextlib.contextmanager
def _environment(k: int) -> Iterator[None]:
    """Threads for each rank, and loopback for gloo; put back afterwards."""
    added = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // k)),
        # All ranks are here: a machine whose own name does not resolve must not stop them.
        "GLOO_SOCKET_IFNAME": "lo",
        # Elastic gives each rank its own session: without this they would outlive a launcher that is killed,
        # and write into the folder of the run that is resumed next.
        LAUNCHER_PID: str(os.getpid()),
    }
    added = {key: value for key, value in added.items() if key not in os.environ or key == LAUNCHER_PID}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


class _Forwarder:
    """Hands each signal on to every rank once, also to those that start after it.

    ``flag``: the launcher's own, which knows what arrived before.
    """

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag
        self._pending: list[int] = []
        self._done = threading.Event()
        self._arrived = threading.Event()
        self._before: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> _Forwarder:
        for number in _FORWARDED:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started under nohup
            self._before[number] = signal.signal(number, self._note)
        if self._flag.signal is not None:
            self._note(self._flag.signal, None)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._arrived.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._pending.append(_FORWARDED[signal.Signals(number)])
        self._arrived.set()

    def _work(self) -> None:
        """Its own thread: the main one sits in elastic's loop, and a handler must stay small."""
        told: set[tuple[int, int]] = set()
        self._arrived.wait()
        while not self._done.is_set():
            for order, number in enumerate(list(self._pending)):
                for child in psutil.Process().children():
                    # Before its handlers stand a signal would kill it.
                    if (order, child.pid) not in told and catches(child.pid, READY):
                        told.add((order, child.pid))
                        with contextlib.suppress(psutil.Error):
                            child.send_signal(number)
            self._done.wait(0.1)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    try:
        found = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return False
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
