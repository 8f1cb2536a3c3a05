"""A mistake is told once by the ranks that all found it, and also where rank 0 did not find it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world import tell as module
from hpcrl.world.tell import tell


def test_rank_0_and_a_lone_process_tell_at_once(capsys) -> None:
    start = time.monotonic()
    tell(HpcrlError("too many"), 0, 8)
    tell(HpcrlError("too few"))
    assert time.monotonic() - start < 1
    assert capsys.readouterr().err == "error: too many\nerror: too few\n"


def test_under_srun_rank_0_leaves_the_others_time_to_get_as_far(monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    tell(HpcrlError("too many"), 0, 8, "torchrun")
    assert slept == []
    tell(HpcrlError("too many"), 0, 8, "slurm")
    assert slept == [module._LINGER_SECONDS]


def test_another_rank_that_nobody_ended_tells_with_its_number(capsys, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_STAGGER_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        tell(RunFailed("no such device"), 3, 8)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: rank 3: no such device\n"


@pytest.mark.parametrize(("error", "code"), [("HpcrlError", 2), ("RunFailed", 1)])
def test_a_waiting_rank_that_the_launcher_ends_says_nothing_and_keeps_the_code(error: str, code: int) -> None:
    script = (
        "import sys; from hpcrl.types import HpcrlError, RunFailed; from hpcrl.world import tell as t\n"
        "t.time.sleep = lambda s, sleep=t.time.sleep: (print('waits', flush=True), sleep(s))\n"
        f"t.tell({error}('x'), 1, 2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.terminate()
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (code, "")
