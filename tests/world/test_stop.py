"""Signals only set a flag; the second Ctrl-C gives the default back."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_WAIT = """
import signal, sys
from hpcrl.world.stop import StopFlag
before = signal.getsignal(signal.SIGUSR1)
flag = StopFlag().install()
assert signal.getsignal(signal.SIGUSR1) == before
print("ready", flush=True)
for line in sys.stdin:
    print(flag.signal.name if flag.requested else "none", flush=True)
"""


@pytest.fixture
def process():
    child = subprocess.Popen(
        [sys.executable, "-c", _WAIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.communicate()


def _ask(child) -> str:
    child.stdin.write("?\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_each_signal_sets_the_flag_and_nothing_else(process, number: signal.Signals) -> None:
    assert _ask(process) == "none"
    process.send_signal(number)
    assert _ask(process) == number.name
    process.send_signal(signal.SIGTERM)
    assert _ask(process) == number.name


def test_a_stuck_run_can_be_killed_by_further_interrupts(process) -> None:
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        assert _ask(process) == "SIGINT"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT


def test_the_early_flag_is_handed_on_once() -> None:
    code = """
import os, signal
from hpcrl.world.stop import install_early, process_flag
install_early()
os.kill(os.getpid(), signal.SIGTERM)
install_early()
flag = process_flag()
assert flag.signal == signal.SIGTERM
second = process_flag()
assert not second.requested
os.kill(os.getpid(), signal.SIGUSR2)
assert second.signal == signal.SIGUSR2 and flag.signal == signal.SIGTERM
"""
    subprocess.run([sys.executable, "-c", code], check=True)
