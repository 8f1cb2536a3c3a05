"""SIGKILL at any moment of a staging: no file or a whole one, and the next run finishes what was begun."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from staging import SYMBOLS, arguments, check_complete, environment, leftovers, loaded, start

pytestmark = pytest.mark.database
ROWS = 20_000
CASES = {"supabase": SYMBOLS[:3], "postgres": SYMBOLS[:3]}


class Staging:
    """Runs of one command, each in a folder of its own, all of the same rows."""

    def __init__(self, verb: str, postgrest, folder: Path) -> None:
        self.verb, self.folder = verb, folder
        self.frame = loaded(postgrest, ROWS, CASES[verb])
        self.env = environment(postgrest, DATABASE_URL=postgrest.conninfo)

    def start(self, folder: Path) -> subprocess.Popen[str]:
        return start(arguments(self.verb, folder / "market.h5", CASES[self.verb]), self.env, folder)

    def finish(self, folder: Path) -> str:
        process = self.start(folder)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        # Nothing of the killed runs stays: no temporary file, no spool.
        assert leftovers(folder, spool=False) == ["market.h5", "market.report.json"]
        return check_complete(folder / "market.h5", self.frame, self.verb)

    def measure(self) -> tuple[str, float, float]:
        """(sha256, seconds from the start until the file is there, of these those of the writing)."""
        for look in range(5):  # the writing takes some tenths of a second, in which we may not be let run
            folder = self.folder / f"whole{look}"
            folder.mkdir()
            begun, writing = time.monotonic(), 0.0
            process = self.start(folder)
            while process.poll() is None and not (folder / "market.h5").exists():
                writing = writing or (time.monotonic() if is_writing(folder) else 0.0)
                time.sleep(0.005)
            ended = time.monotonic()
            process.communicate()
            if writing:
                return self.finish(folder), ended - begun, ended - writing
        raise AssertionError("nothing was seen of the writing in 5 stagings")


def is_writing(folder: Path) -> bool:
    return any(path.name.startswith(".market.h5.") and path.suffix == ".tmp" for path in folder.iterdir())


def wait(process: subprocess.Popen[str], until: Callable[[], bool], seconds: float) -> None:
    """Until the condition holds, and then so long; or until the process ends."""
    while process.poll() is None and not until():
        time.sleep(0.002)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def kill_once(staging: Staging, folder: Path, drawn: random.Random, spans: list[float], part: int) -> bool:
    """Whether the kill came before the end; if not, ``spans`` was too long for this machine of now."""
    process = staging.start(folder)
    begins = (lambda: is_writing(folder)) if part else (lambda: True)
    wait(process, begins, drawn.uniform(0, spans[part]))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == 0:
        spans[part] *= 0.8
    return process.returncode == -signal.SIGKILL


def kill_and_check(staging: Staging, kills: int, record_property) -> None:
    """Every other kill falls into the writing, which is the shorter part."""
    whole, seconds, writing = staging.measure()
    spans, drawn = [seconds, writing], random.Random(kills)  # as long as they were on the machine of then
    found = {"nothing": 0, "spool": 0, "temporary": 0, "file": 0}
    done = 0
    for run in range(3 * kills):
        folder = staging.folder / f"run{run}"
        folder.mkdir()
        if kill_once(staging, folder, drawn, spans, done % 2):
            done += 1
            out = folder / "market.h5"
            if out.exists():
                assert check_complete(out, staging.frame, staging.verb) == whole
                found["file"] += 1
                spans[1] *= 0.8
            elif is_writing(folder):
                found["temporary"] += 1
            else:
                found["spool" if any(folder.iterdir()) else "nothing"] += 1
            assert staging.finish(folder) == whole
        shutil.rmtree(folder)
        if done >= kills and found["temporary"] + found["spool"]:
            break
    record_property(f"{kills} kills of hpcrl stage {staging.verb} (left behind)", found)
    assert done >= kills and found["temporary"] + found["spool"] > 0, found


@pytest.mark.slow
@pytest.mark.parametrize("verb", CASES)
def test_five_kills_leave_no_file_or_a_whole_one(verb, postgrest, tmp_path, record_property):
    kill_and_check(Staging(verb, postgrest, tmp_path), 5, record_property)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", CASES)
def test_a_hundred_kills_leave_no_file_or_a_whole_one(verb, postgrest, tmp_path, record_property):
    kill_and_check(Staging(verb, postgrest, tmp_path), 100, record_property)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(postgrest, tmp_path):
    """Each run goes on where the last one was killed: together they fetch little twice."""
    staging = Staging("supabase", postgrest, tmp_path)
    postgrest.switch("slow", seconds=0.05)
    kills = 0
    while not (tmp_path / "market.h5").exists():
        assert all(name.endswith(".tmp") for name in leftovers(tmp_path)) and kills < 10
        served = postgrest.stats()["rows"]
        process = staging.start(tmp_path)
        wait(process, lambda: postgrest.stats()["rows"] >= served + 12_000, 0)  # noqa: B023
        process.send_signal(signal.SIGTERM if kills % 2 else signal.SIGKILL)
        process.communicate()
        kills += process.returncode != 0
    check_complete(tmp_path / "market.h5", staging.frame)
    assert kills >= 3
    # Twice: the page that was on its way to each of 3 symbols, and what a new run looks at first.
    assert postgrest.stats()["rows"] < 60_000 + (kills + 1) * 3200


@pytest.mark.slow
@pytest.mark.parametrize("verb", CASES)
def test_ctrl_c_ends_it_without_a_file_or_a_traceback(verb, postgrest, tmp_path):
    staging = Staging(verb, postgrest, tmp_path)
    process = staging.start(tmp_path)
    wait(process, lambda: is_writing(tmp_path), 0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert not (tmp_path / "market.h5").exists()
    staging.finish(tmp_path)


IGNORED = """
import os, signal, sys, time
from pathlib import Path
from hpcrl.cli_stage import _stoppable

class Held:
    def __del__(self):  # what is raised here, Python ignores
        os.kill(os.getpid(), signal.SIGINT if sys.argv[1] == "INT" else signal.SIGTERM)
        time.sleep(1)

with _stoppable(Path("market.h5")):
    held = Held()
    del held
    time.sleep(20)
    print("went on")
"""


@pytest.mark.parametrize("name, code", [("INT", 130), ("TERM", -signal.SIGTERM)])
def test_a_stop_that_lands_in_a_destructor_is_heard(tmp_path, name, code):
    command = [sys.executable, "-c", IGNORED, name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and done.stdout == "", done
    assert done.stderr.splitlines() == ["stopped; run it again to begin anew"]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_who_stops_it_is_told_that_it_goes_on_and_then_that_it_does(postgrest, tmp_path, number, code):
    staging = Staging("supabase", postgrest, tmp_path)
    postgrest.switch("slow", seconds=0.05)
    process = staging.start(tmp_path)
    wait(process, lambda: postgrest.stats()["rows"] >= 15_000, 0)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    last = "stopped; what was fetched is kept, run it again to go on"
    assert err.splitlines()[-1] == last and err.count(last) == 1 and "Traceback" not in err
    postgrest.clear()
    process = staging.start(tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    [(rows, when)] = re.findall(r"^going on from ([\d,]+) rows fetched at (\d\d:\d\d)$", err, re.MULTILINE)
    assert 9_000 < int(rows.replace(",", "")) < 60_000
    assert when in (time.strftime("%H:%M", time.localtime(time.time() - ago)) for ago in range(120))
    check_complete(tmp_path / "market.h5", staging.frame)


@pytest.mark.slow
def test_stopping_before_any_row_promises_nothing(postgrest, tmp_path):
    staging = Staging("supabase", postgrest, tmp_path)
    postgrest.switch("slow", seconds=2)  # a look at the table comes first
    process = staging.start(tmp_path)
    wait(process, lambda: postgrest.stats()["requests"] > 0, 0)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert err.splitlines() == ["stopped; run it again to begin anew"]
    assert leftovers(tmp_path, spool=False) == []
