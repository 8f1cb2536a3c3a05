"""A rank in which nothing happens ends with code 70, its stacks in the log; one that stood still does not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpcrl.monitor import watchdog as module
from hpcrl.monitor.watchdog import Watchdog
from hpcrl.types import HUNG

_LONE = """
import os, signal, sys, time
from hpcrl.monitor import watchdog as module
module._LINGER_SECONDS = float(os.environ.get("LINGER", 0.1))
module._DUMP_SECONDS = 1.0
dog = module.Watchdog(float(sys.argv[1]), None, 3).start()
def reading_from_a_dead_disk():
    time.sleep(1000)
def working():
    for _ in range(int(sys.argv[3])):
        dog.beat("collect", 7)
        time.sleep(0.05)
    dog.stop()
    time.sleep(2 * float(sys.argv[1]))
def standing_still_between_slow_beats():
    dog.beat("collect", 7)
    time.sleep(0.25 * float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.25 * float(sys.argv[1]))
    dog.beat("collect", 8)
    dog.stop()
def getting_on_late():
    signal.signal(signal.SIGUSR1, lambda *_: (dog.stop(), sys.exit(0)))
    print("ready", flush=True)
    time.sleep(1000)
works = {
    "hang": reading_from_a_dead_disk,
    "work": working,
    "stand still": standing_still_between_slow_beats,
    "get on": getting_on_late,
}
print("ready", flush=True)
works[sys.argv[2]]()
"""


@pytest.fixture
def lone() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``lone(seconds, what, beats)``: a process with a watchdog that does so; ready when it comes back."""
    started = []

    def start(
        seconds: float, what: str, beats: int = 1, stderr: int = subprocess.PIPE, **environ: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _LONE, str(seconds), what, str(beats)]
        environment = os.environ | environ
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True)
        started.append(child)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_a_hang_is_told_with_its_place_and_ends_with_its_own_code(lone) -> None:
    child = lone(0.5, "hang")
    _, err = child.communicate(timeout=30)
    assert child.returncode == HUNG == 70
    assert "in reading_from_a_dead_disk" in err
    last = err.splitlines()[-1]
    assert last.startswith("error: rank 3 on ") and "monitor.hang_minutes" in last and "'start'" in last


def test_beats_keep_a_rank_alive_and_after_the_end_nothing_is_a_hang(lone) -> None:
    child = lone(0.5, "work", 30)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")


def test_zero_seconds_is_no_watchdog(lone) -> None:
    child = lone(0, "work")
    assert psutil.Process(child.pid).num_threads() == 1
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_a_process_that_was_stopped_for_longer_than_the_limit_goes_on(lone) -> None:
    """As a job that Slurm suspends, or a laptop that sleeps."""
    child = lone(2.0, "stand still")
    _wait(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    time.sleep(3)  # what is tested: the time itself must do no harm
    child.send_signal(signal.SIGCONT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")


class Ticks(threading.Event):
    """The event that the watchdog waits for, under a clock of its own: each tick takes as long as asked."""

    def __init__(self, ticks: int, on_tick: dict[int, Callable[[], object]]) -> None:
        super().__init__()
        self.now, self.count, self.ticks, self.on_tick = 0.0, 0, ticks, on_tick

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now, self.count = self.now + timeout, self.count + 1
        self.on_tick.get(self.count, lambda: None)()
        return self.count > self.ticks


@pytest.mark.parametrize(("beats", "hangs"), [((10, 20), 0), ((10, 19), 1), ((), 1)])
def test_a_beat_in_the_very_last_tick_is_in_time(monkeypatch, beats: tuple[int, ...], hangs: int) -> None:
    """Limit 10 s, ticks of 1 s: the tenth tick after a beat is one too many unless a beat came in it."""
    dog = Watchdog(10)
    ticks = Ticks(29, {tick: lambda: dog.beat("learn", 1) for tick in beats})
    ended: list[float] = []

    def end() -> None:
        ended.append(ticks.now)
        ticks.ticks = 0

    monkeypatch.setattr(dog, "_ended", ticks)
    monkeypatch.setattr(dog, "_end", end)
    monkeypatch.setattr(module.time, "monotonic", lambda: ticks.now)
    dog._watch()
    assert len(ended) == hangs


def test_a_rank_that_gets_on_while_the_others_still_tell_where_they_are_goes_on(lone) -> None:
    child = lone(0.5, "get on", LINGER="60")
    assert child.stdout.readline() == "ready\n"
    said = next(line for line in child.stderr if line.startswith("error: rank 3 on "))
    assert "hangs" in said
    child.send_signal(signal.SIGUSR1)
    assert child.wait(30) == 0


def test_a_log_that_takes_no_more_does_not_keep_a_rank_that_hangs(lone) -> None:
    """As on a file system that hangs: whoever writes there waits for ever."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    try:
        child = lone(0.5, "hang", stderr=write)
        assert child.wait(30) == HUNG
    finally:
        os.close(read)
        os.close(write)


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_heartbeat_says_where_the_run_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    file = tmp_path / "heartbeat.json"
    dog = Watchdog(0, file).start()
    assert not file.exists()
    dog.beat("collect", 1)
    _wait(file.exists)
    dog.beat("learn", 2)
    _wait(lambda: json.loads(file.read_text())["phase"] == "learn")
    dog.beat("save", 2)
    dog.stop()
    found = json.loads(file.read_text())
    assert found.keys() == {"time", "epoch", "phase", "since", "host", "pid"}
    assert (found["phase"], found["epoch"], found["pid"]) == ("save", 2, os.getpid())
    assert found["time"] >= found["since"]
    assert os.listdir(tmp_path) == ["heartbeat.json"]


def test_a_heartbeat_that_cannot_be_written_is_told_once_and_harms_nothing(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    tries = []
    real = module.write_json
    monkeypatch.setattr(module, "write_json", lambda *given: (tries.append(1), real(*given)))
    dog = Watchdog(60, tmp_path / "gone" / "heartbeat.json").start()
    dog.beat("collect", 1)
    _wait(lambda: len(tries) > 3)
    dog.stop()
    said = capsys.readouterr().err
    assert said.count("WARNING: no heartbeat: cannot write") == 1 and said.count("\n") == 1


_PAIR = """
import os, signal, subprocess, sys, time
from hpcrl.monitor.watchdog import Watchdog
from hpcrl.world.ranks import start_world
from hpcrl.world import collectives
world = start_world("cpu", 2)
dog = Watchdog(2, None, world.rank).start()
first = collectives.gather_objects(world, os.getpid())[0]
def waiting_for_the_others():
    collectives.barrier(world)
def stuck_in_its_own_work():
    time.sleep(1000)
def stand_still():
    # until rank 0 has ended: then somebody kills this one
    end = f"while kill -0 {first}; do sleep 0.1; done; kill -KILL {os.getpid()}"
    subprocess.Popen(["sh", "-c", end], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.kill(os.getpid(), signal.SIGSTOP)
for epoch in range(3):
    dog.beat("learn", epoch)
    collectives.barrier(world)
dog.beat("save", 3)
if world.rank == 1:
    {"sleeps": stuck_in_its_own_work, "stands still": stand_still}[sys.argv[1]]()
waiting_for_the_others()
"""


def test_a_rank_that_hangs_and_the_one_that_waits_for_it_both_say_where(tmp_path: Path, run_on_ranks) -> None:
    script = tmp_path / "pair.py"
    script.write_text(_PAIR)
    done = run_on_ranks(script, "sleeps", expect=HUNG, timeout=60)
    assert "in waiting_for_the_others" in done[0].stderr and "rank 0 on" in done[0].stderr
    assert "in stuck_in_its_own_work" in done[1].stderr and "rank 1 on" in done[1].stderr
    assert all("'save' of epoch 3" in result.stderr for result in done)


def test_a_rank_that_is_stopped_ends_those_that_wait_for_it(tmp_path: Path, run_on_ranks) -> None:
    script = tmp_path / "pair.py"
    script.write_text(_PAIR)
    waited, stopped = run_on_ranks(script, "stands still", expect=None, timeout=60)
    assert (waited.returncode, stopped.returncode) == (HUNG, -signal.SIGKILL), waited.stderr
    assert "in waiting_for_the_others" in waited.stderr
