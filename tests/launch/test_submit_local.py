"""hpcrl submit --local: real jobs through submitit's local executor: exit codes, logs, signals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch.test_submit import CANARY, SECRETS, TINY

from hpcrl.launch.local_job import last_words
from hpcrl.launch.plan import SubmitRequest, make_plan
from hpcrl.market.stage import stage_synthetic
from hpcrl.monitor.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / 'it\'s a "project"'
    folder.mkdir()
    stage_synthetic(folder / "market.h5", symbols=("AAPL",), bars=300)
    (folder / "tiny.yaml").write_text(json.dumps(TINY | {"market": {"path": "market.h5"}}))
    return folder


def start(project: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    base = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK", "WORLD"))
    }
    return subprocess.Popen(
        [sys.executable, "-m", "hpcrl", "submit", "--config", "tiny.yaml", "--local", *options],
        cwd=project, env=base | {"OMP_NUM_THREADS": "1"} | environ, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(project: Path, *options: str, **environ: str) -> tuple[int, str, str]:
    child = start(project, *options, **environ)
    out, err = child.communicate(timeout=240)
    return child.returncode, out, err


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_job_runs_here_and_says_where_its_log_is(project, ranks):
    code, out, err = run(project, "--ranks", str(ranks), **SECRETS)
    assert code == 0, err
    (folder,) = project.glob("checkpoints/dist_run_*")
    assert out == f"{folder}\n"
    assert [line["epoch"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((folder / "config.json").read_text())["world_size"] == ranks
    longest = max(line["time/epoch"] for line in read_metrics(folder / "metrics.jsonl"))
    warned = make_plan(SubmitRequest(resume=folder), project).site.signal_seconds
    assert warned == math.ceil(2 * longest) + 60, "the next job's warning comes from these epochs"
    logs = sorted(folder.glob("jobs/*_log.out"))
    assert len(logs) == ranks and f"log {logs[0]}\n" in err
    assert "Finished 3 epochs" in logs[0].read_text() and "Traceback" not in logs[-1].read_text()
    assert not any(CANARY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_failing_rank_hands_on_its_exit_code_and_its_words(project):
    (project / "market.h5").write_text("no data")
    code, out, err = run(project)
    assert code == 2 and "train ended with exit code 2: " in err and "market.h5" in err, err
    assert "Traceback" not in err and out.startswith(str(project / "checkpoints"))


def test_a_chain_stops_where_a_job_fails(project):
    (project / "market.h5").unlink()
    options = ("--chain", "stage,train,evaluate", "--stage")
    code, _, err = run(project, *options, "files --path nowhere.csv")
    assert code == 2 and "stage ended with exit code 2: nowhere.csv: no such file or folder" in err
    assert "train" not in err
    code, _, err = run(project, *options, "synthetic --symbols A --bars 400")
    assert code == 0 and [line.split(":")[0] for line in err.splitlines()] == ["stage", "train", "evaluate"]
    assert list(project.glob("checkpoints/dist_run_*/evaluation_test.png"))


def test_a_staging_job_reads_the_keys_that_the_site_names_and_no_others(project):
    keys = project / "my keys"
    keys.write_text(f"SUPABASE_URL=http://127.0.0.1:9\nSUPABASE_SERVICE_ROLE_KEY={CANARY}\n")
    keys.chmod(0o644)
    (project / "site.yaml").write_text(json.dumps({"env_file": str(keys)}))
    options = ("--site", "site.yaml", "--chain", "stage,train")
    code, _, err = run(project, *options, **SECRETS)
    assert code == 2 and f"{keys}: gives SUPABASE_URL but has mode 0644" in err and CANARY not in err, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_all_ranks_which_save(project, number):
    child = start(project, "--ranks", "2", "--set", "train.epochs=100000")
    limit = time.monotonic() + 120
    metrics: list[Path] = []
    while not metrics or not read_metrics(metrics[0]):
        assert time.monotonic() < limit and child.poll() is None, child.communicate()
        metrics = list(project.glob("checkpoints/dist_run_*/metrics.jsonl"))
        time.sleep(0.1)
    child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 75, err
    folder = metrics[0].parent
    (end,) = [json.loads(path.read_text()) for path in folder.glob("attempts/*/end.json")]
    assert end["code"] == 75 and (folder / f"checkpoint_epoch_{end['epoch']}.json").exists()
    assert "train ended with exit code 75: To go on: " in err, err


def test_a_killed_rank_is_no_success(project):
    child = start(project, "--set", "train.epochs=100000")
    limit = time.monotonic() + 120
    beats: list[Path] = []
    while not beats:
        assert time.monotonic() < limit, child.communicate()
        beats = list(project.glob("checkpoints/dist_run_*/attempts/1/heartbeat.json"))
        time.sleep(0.1)
    os.kill(json.loads(beats[0].read_text())["pid"], signal.SIGKILL)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 137 and "train ended with exit code 137" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nerror: b\nend 2026-01-02T03:04:05 exit code 2\n", "b"),
        ("a\nsrun: error: node1: task 0: Exited\n", "a"),
        ("Traceback\n  x\nValueError: c\n\n", "ValueError: c"),
        ("\033[1;31merror: red\033[0m\n", "red"),
        ("", "its log is empty"),
    ],
)
def test_the_last_words_of_a_log(tmp_path, text, words):
    (tmp_path / "log").write_text(text)
    assert last_words(tmp_path / "log") == words
    assert last_words(tmp_path / "none") == "it left no log"
