"""A signal that comes while the program starts is not lost and kills nothing: exit code 75, as later.

The moments are seen in /proc: the handlers stand; torch is being loaded; a launcher starts its first rank.
"""

from __future__ import annotations

import configparser
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runs import command, environment

from hpcrl.world.stop import READY


def handlers_stand(pid: int) -> bool:
    found = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return found is not None and bool(int(found[1], 16) >> (READY - 1) & 1)


def torch_is_loaded(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def a_rank_starts(pid: int) -> bool:
    return bool(psutil.Process(pid).children())


def stopped_at(
    moment: Callable[[int], bool], number: signal.Signals, place: Path, *options: str
) -> tuple[subprocess.Popen, str, bool]:
    """The ended process, its output, and whether torch had been loaded when the signal was sent."""
    process = subprocess.Popen(
        command("train", "--config", "tiny.yaml", *options),
        cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not moment(process.pid):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.0005)
    loaded = torch_is_loaded(process.pid)
    process.send_signal(number)
    return process, process.communicate(timeout=200)[0], loaded


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (handlers_stand, signal.SIGTERM),
        pytest.param(handlers_stand, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(handlers_stand, signal.SIGUSR2, marks=pytest.mark.slow),
        pytest.param(torch_is_loaded, signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_signal_while_the_program_loads_ends_with_75_before_anything_is_begun(place, moment, number):
    process, output, loaded = stopped_at(moment, number, place)
    assert process.returncode == 75 and "Traceback" not in output, output
    assert loaded == (moment is torch_is_loaded)
    assert "Stopped before training began" in output and not (place / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", [handlers_stand, torch_is_loaded, a_rank_starts], ids=lambda m: m.__name__)
def test_a_signal_while_a_launcher_starts_its_ranks_ends_all_of_them_with_75(place, moment):
    process, output, _ = stopped_at(moment, signal.SIGTERM, place, "--ranks", "2")
    assert process.returncode == 75 and "Traceback" not in output, output
    assert ("Stopped before training began" in output) == (moment is a_rank_starts)
    assert not (place / "checkpoints").exists()
    assert ("before the ranks were started: nothing was begun" in output) == (moment is not a_rank_starts)


_SPY = """
import signal, sys
class Spy:
    def find_spec(self, name, *_):
        if name in ("hpcrl.cli", "typer", "torch"):
            print(name, callable(signal.getsignal(signal.SIGUSR2)))
sys.meta_path.insert(0, Spy())
sys.argv = ["hpcrl", *sys.argv[1:]]
from hpcrl.__main__ import main
main()
"""


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_the_handlers_of_training_stand_before_the_first_slow_import(verb):
    done = subprocess.run(
        [sys.executable, "-c", _SPY, verb, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[:2] == [f"hpcrl.cli {verb == 'train'}", f"typer {verb == 'train'}"]
    assert done.returncode == 0


def test_the_command_begins_where_python_m_does():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].strip() == "hpcrl = hpcrl.__main__:main"
