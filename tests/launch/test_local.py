"""Local ranks: their exit code comes back, signals reach them, and the launcher waits while they save.

The ranks run a stand-in for the command line: a package ``hpcrl`` in the working folder whose ``__main__`` is
the test's, and whose other modules are the real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import hpcrl
from hpcrl.launch import local
from hpcrl.types import HpcrlError

REAL = Path(hpcrl.__file__).parent

_MAIN = """
import os, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
what = sys.argv[1]
if what == "report":
    Path(f"rank_{rank}.txt").write_text(" ".join([os.environ[k] for k in (
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "MASTER_ADDR")] + sys.argv[1:]))
elif what == "exit":
    code = int(sys.argv[2 + rank])
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)
elif what == "wait":
    from hpcrl.world.ranks import start_world, stop_world
    from hpcrl.world.stop import StopFlag
    flag = StopFlag().install()
    world = start_world("cpu", 2)
    Path(f"ready_{rank}").write_text(str(os.getpid()))
    while not flag.agreed(world):
        time.sleep(0.02)
    time.sleep(float(sys.argv[2]))  # a slow save
    Path(f"saved_{rank}").write_text(flag.signal.name if flag.signal else "none")
    stop_world(world, 75)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "work" / "hpcrl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(REAL)!r})\\n".replace("\\n", "\n"))
    (package / "__main__.py").write_text(_MAIN)
    (tmp_path / "launcher.py").write_text(
        "import signal, sys\nfrom hpcrl.launch.local import run_ranks\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup a hang-up is rightly ignored
        "sys.exit(run_ranks(int(sys.argv[1]), sys.argv[2:]))\n"
    )
    return tmp_path / "work"


def _start(folder: Path, *argv: object, **more: str) -> subprocess.Popen[str]:
    dropped = ("SLURM_", "RANK", "WORLD_SIZE", "MASTER_", "LOCAL_RANK", "OMP_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)} | {"TMPDIR": str(folder.parent)}
    env |= more
    command = [sys.executable, str(folder.parent / "launcher.py"), *map(str, argv)]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < end, f"{paths} did not appear"
        time.sleep(0.02)


def test_each_rank_gets_its_number_its_arguments_and_its_share_of_the_cores(folder: Path) -> None:
    child = _start(folder, 2, "report", "--set", "a b=c")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and out == "" and err == "", err
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        words = (folder / f"rank_{rank}.txt").read_text()
        assert words == f"{rank} 2 {rank} {threads} 127.0.0.1 report --set a b=c"
    assert not list(folder.parent.glob("hpcrl-ranks-*")), "a log folder stayed behind"


def test_a_thread_count_that_is_set_is_left_alone(folder: Path) -> None:
    child = _start(folder, 1, "report", OMP_NUM_THREADS="7")
    child.communicate(timeout=60)
    assert (folder / "rank_0.txt").read_text().split()[3] == "7"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((75, 75), 75), ((2, 2), 2), ((0, 3), 3), ((1, 0), 1), ((1, 70), 70), ((0, -9), 137)],
)
def test_the_ranks_exit_code_comes_back_without_a_traceback(folder: Path, codes, expected: int) -> None:
    child = _start(folder, 2, "exit", *codes)
    out, err = child.communicate(timeout=60)
    assert child.returncode == expected, err
    assert out == ""
    assert err == ("rank 1 was killed by SIGKILL\n" if expected == 137 else "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_reaches_all_ranks_once_and_the_launcher_waits_for_their_save(
    folder: Path, number: signal.Signals
) -> None:
    child = _start(folder, 2, "wait", 1.5)
    _wait_for(folder / "ready_0", folder / "ready_1")
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    # A rank may agree before its own copy of the signal arrives, but saves later: by then it has it.
    expected = "SIGTERM" if number == signal.SIGHUP else number.name
    assert [(folder / f"saved_{rank}").read_text() for rank in range(2)] == [expected] * 2
    assert err == ""


@pytest.mark.slow
def test_a_save_longer_than_elastics_own_patience_is_waited_for(folder: Path) -> None:
    child = _start(folder, 2, "wait", 34)
    _wait_for(folder / "ready_0", folder / "ready_1")
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=90)
    assert child.returncode == 75
    assert all((folder / f"saved_{rank}").exists() for rank in range(2))


def test_ranks_do_not_outlive_a_launcher_that_is_killed(folder: Path) -> None:
    child = _start(folder, 2, "wait", 0)
    _wait_for(folder / "ready_0", folder / "ready_1")
    pids = [int((folder / f"ready_{rank}").read_text()) for rank in range(2)]
    child.kill()
    child.communicate()
    end = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < end, "a rank lives on"
        time.sleep(0.05)


def test_a_launcher_inside_a_launcher_and_no_ranks_are_users_errors(monkeypatch) -> None:
    with pytest.raises(HpcrlError, match="--ranks = 0"):
        local.run_ranks(0, [])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(HpcrlError, match="a launcher has started this process"):
        local.run_ranks(2, [])
