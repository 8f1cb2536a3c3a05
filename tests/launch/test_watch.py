"""hpcrl watch: pages of folders that the real code wrote, and the live view in a real terminal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_populations import make_population
from rich.console import Console

from hpcrl.launch.watch import BARS, STALE_SECONDS, population_view, run_view, sparkline
from hpcrl.monitor.metrics import line_of
from hpcrl.pbt.history import read_past
from hpcrl.pbt.records import Reader
from hpcrl.storage.atomic import write_json
from hpcrl.storage.attempts import Attempt, who_begins
from hpcrl.storage.run_dir import RunDir

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
GPU = {
    "gpu/utilisation": 0.93, "gpu/memory_gib": 12.3, "gpu/memory_total_gib": 80.0, "gpu/temperature_c": 61.0,
    "gpu/power_w": 512.0, "gpu/clock_mhz": 1900.0, "gpu/throttled": 0.5, "gpu/throttles": ["power cap"],
}  # fmt: skip


class Run:
    def __init__(self, folder: Path, epochs: int = 20) -> None:
        config = {"config": {"train": {"epochs": epochs}}}
        self.path = RunDir.create(folder / "checkpoints", json.dumps(config)).path
        self.attempt = Attempt.claim(RunDir(self.path), 1, who_begins({}, None))
        self.attempt.take_over(None)

    def trained(self, *rewards: float | None, **more: object) -> None:
        usual = {
            "loss": 0.5, "entropy": 1.0, "time/attempt": 1, "time/epoch": 10.0, "time/learn": 7.0,
            "time/env": 2.0, "time/steps_per_second": 1234.5, "host/cpu": 0.5, "host/memory_gib": 1.25,
        }  # fmt: skip
        lines = [
            usual | {"epoch": epoch + 1, "reward": reward} | more for epoch, reward in enumerate(rewards)
        ]
        RunDir(self.path).metrics.write_text("".join(map(line_of, lines)))

    def beat(self, seconds_ago: float, now: datetime = NOW) -> None:
        then = (now - timedelta(seconds=seconds_ago)).isoformat()
        beat = {"time": then, "since": then, "epoch": 4, "phase": "rollout", "host": "node1", "pid": 1}
        write_json(self.attempt.record.path / "heartbeat.json", beat)


def shown(parts: list) -> str:
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_run_that_trains_is_shown_with_its_phase_its_curves_and_what_is_left(run):
    run.trained(0.1, 0.2, 0.3)
    run.beat(7)
    page = shown(run_view(run.path, lambda: NOW))
    assert f"{run.path.name}  rollout of epoch 4, 7 s on node1" in page
    assert "epoch 3 of 20" in page and "2 min left" in page  # 17 epochs of 10 s
    figures = [line.split() for line in page.splitlines()]
    assert ["reward", "0.3", f"{BARS[0]}{BARS[4]}{BARS[7]}"] in figures
    assert ["steps/s", "1,234", BARS[0] * 3] in figures
    assert "an epoch's time: learn 70%, env 20%, wait 10%" in page
    assert "no GPU; CPU 50%, 1.2 GiB" in page
    assert max(map(len, page.splitlines())) <= 80


def test_a_gpu_is_shown_with_its_throttling(run):
    run.trained(0.1, **GPU)
    page = " ".join(shown(run_view(run.path, lambda: NOW)).split())
    assert "GPU of rank 0: 93% busy, 12.3 of 80.0 GiB, 61 C, 512 W, throttled by power cap; CPU 50%" in page


def test_a_run_of_before_the_memory_was_known_whole_is_shown(run):
    run.trained(0.1, **{key: value for key, value in GPU.items() if key != "gpu/memory_total_gib"})
    assert "93% busy, 12.3 GiB, 61 C" in " ".join(shown(run_view(run.path, lambda: NOW)).split())


def test_alarms_of_the_last_epochs_are_shown(run):
    run.trained(0.1, 0.1, alarms=["entropy collapse: raise learn.entropy_coef"])
    assert "ALARM epoch 2: entropy collapse: raise learn.entropy_coef" in shown(run_view(run.path))


def test_an_alarm_that_was_raised_once_is_shown_as_long_as_its_epoch_is_and_one_that_lasts_once(run):
    run.trained(*[0.1] * 60, alarms=[])
    lines = [json.loads(line) for line in RunDir(run.path).metrics.read_text().splitlines()]
    lines[10]["alarms"] = ["critic: long ago"]
    lines[30]["alarms"] = ["no progress: try"]
    for line in lines[-5:]:
        line["alarms"] = ["one action: 99.9%"]
    RunDir(run.path).metrics.write_text("".join(map(line_of, lines)))
    told = [line for line in shown(run_view(run.path)).splitlines() if "ALARM" in line]
    assert told == ["ALARM epoch 31: no progress: try", "ALARM epoch 60: one action: 99.9%"]


def test_a_heartbeat_that_is_too_old_is_told(run):
    run.trained(0.1)
    run.beat(STALE_SECONDS - 1)
    assert "no heartbeat" not in shown(run_view(run.path, lambda: NOW))
    run.beat(STALE_SECONDS + 31)
    assert "no heartbeat for 2 min: see hpcrl status" in shown(run_view(run.path, lambda: NOW))


def test_a_run_that_has_ended_or_not_begun_says_so(run):
    assert "starting" in shown(run_view(run.path)) and "no epoch has ended yet" in shown(run_view(run.path))
    run.trained(None)
    run.attempt.end(0, 20, "finished")
    page = shown(run_view(run.path))
    assert f"{run.path.name}  finished" in page and "loss" in page
    assert "\n  reward" not in page  # no finite reward, no curve


@pytest.mark.parametrize(
    ("values", "bars"),
    [([1.0, 1.0], "▁▁"), ([0.0, None, 7.0], "▁ █"), ([-1.0], "▁"), ([0.0, 1.0, 2.0, 7.0], "▁▂▃█")],
)
def test_sparklines(values, bars):
    assert sparkline(values) == bars


def test_a_population_shows_its_members_the_best_first(tmp_path):
    population = make_population(tmp_path / "population", generations=2)
    worth = {past.member: past.newest.record.objective for past in read_past(population, Reader(population))}
    ranking = sorted(worth, key=worth.get, reverse=True)
    assert ranking != sorted(worth)
    page = shown(population_view(population.path))
    rows = [line.split() for line in page.splitlines() if line[:1].isdigit()]
    assert [int(row[0]) for row in rows[: len(worth)]] == ranking
    assert [row[0] for row in rows if row[1] == "best"] == [str(ranking[0])] * 2
    assert "to go on" not in page


def test_on_a_pipe_it_is_one_page_without_escapes(run):
    run.trained(0.1, 0.2)
    command = [sys.executable, "-m", "hpcrl", "watch", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "epoch 2 of 20" in done.stdout, done


def test_what_is_no_run_is_one_line(tmp_path):
    command = [sys.executable, "-m", "hpcrl", "watch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not a run folder" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_in_a_terminal_of_80_columns_it_follows_the_run_until_ctrl_c(run, tmp_path):
    run.trained(0.1)
    run.beat(1, datetime.now(UTC))
    tmux = ["tmux", "-S", str(tmp_path / "t")]
    inner = f"{sys.executable} -m hpcrl watch {run.path} --every 0.2; echo left with $?; sleep 60"
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", inner], check=True, timeout=60)
    try:
        assert wait_for(tmux, "epoch 1 of 20")
        run.trained(0.1, 0.2)
        screen = wait_for(tmux, "epoch 2 of 20")
        assert "rollout of epoch 4" in screen and "Ctrl-C leaves" in screen
        subprocess.run([*tmux, "send-keys", "C-c"], check=True, timeout=60)
        assert wait_for(tmux, "left with 0")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, timeout=60)


def wait_for(tmux: list[str], text: str) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = subprocess.run(
            [*tmux, "capture-pane", "-p"], capture_output=True, text=True, timeout=60
        ).stdout
        if text in found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{text!r} never came; the screen:\n{found}")
