"""What several rooms' tests share: running a Python script on several ranks, with a limit on its time."""

from __future__ import annotations

import datetime
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from servers.postgres import database, postgres  # noqa: F401  fixtures of every room
from servers.postgrest import postgrest  # noqa: F401

from hpcrl import cli
from hpcrl.world.world import World

ROOT = Path(__file__).resolve().parents[1]
# matplotlib's list of fonts, beside the fonts: one in the home outlives the environment it was made in.
os.environ["MPLCONFIGDIR"] = str(Path(sys.prefix) / "matplotlib")
# In the background of a shell `make test` ignores Ctrl-C, under nohup a hang-up; all that it starts, too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run_on_ranks() -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """``run(script, args, ranks=2, expect=0)``: the script on so many ranks; results in rank order."""

    def run(
        script: Path, *args: object, ranks: int = 2, expect: int | None = 0, timeout: float = 120
    ) -> list[subprocess.CompletedProcess[str]]:
        base = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK"))}
        base |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, str(script), *map(str, args)]
        running = [
            subprocess.Popen(
                command,
                env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        done = []
        try:
            for process in running:
                out, err = process.communicate(timeout=timeout)
                done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
        finally:
            for process in running:
                process.kill()
        if expect is not None:
            for rank, result in enumerate(done):
                assert result.returncode == expect, f"rank {rank}: {result.stdout}\n{result.stderr}"
        return done

    return run


@pytest.fixture
def hpcrl(monkeypatch, capsys, tmp_path):
    """``hpcrl(args...) -> (exit code, stdout, stderr)``: the command in this process, in its own folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "GPU_COUNT", "ENVS_PER_GPU", "TRAINING_MODE"):
        monkeypatch.delenv(name, raising=False)
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in handled}

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hpcrl", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err, shown.err
        return code, shown.out, shown.err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def one_rank() -> Iterator[World]:
    """This process as the only rank."""
    from hpcrl.world.ranks import start_world, stop_world

    world = start_world("cpu", 1)
    yield world
    stop_world(world)


def pytest_terminal_summary(terminalreporter, config) -> None:
    """`make soak` keeps its results in docs/soak.md: counts, times, and what tests recorded."""
    report_path = os.environ.get("SOAK_REPORT")  # a part run by hand must not overwrite the whole
    if not report_path or hasattr(config, "workerinput"):
        return
    groups: dict[str, list] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call" or outcome != "passed":
                groups.setdefault(report.nodeid.split("[")[0], []).append((outcome, report))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    lines = [
        "# Results of `make soak`",
        "",
        f"{datetime.date.today()}, commit {commit.stdout.strip()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {version('torch')}. Written by the run itself.",
        "",
        "| test | passed | failed | seconds, all |",
        "|---|---|---|---|",
    ]
    notes = []
    for name, found in sorted(groups.items()):
        passed = sum(outcome == "passed" for outcome, _ in found)
        seconds = sum(report.duration for _, report in found)
        lines.append(f"| `{name}` | {passed} | {len(found) - passed} | {seconds:.0f} |")
        notes += [f"- {key}: {value}" for _, report in found for key, value in report.user_properties]
    if groups:
        (ROOT / report_path).write_text("\n".join([*lines, "", *sorted(notes)]).rstrip() + "\n")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session) -> None:
    """In CI nothing is skipped but what needs a GPU: a test that could not run there has not passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None or hasattr(session.config, "workerinput"):
        return
    skipped = [report.nodeid for report in reporter.stats.get("skipped", []) if "gpu" not in report.keywords]
    if skipped:
        print("\nskipped in CI, where only gpu may be:", *skipped, sep="\n  ")
        session.exitstatus = 1
