"""hpcrl submit on the real cluster: chains, refusals, policies, paths with quotes, and no secret in a job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch.test_submit import CANARY, SECRETS, TINY

from hpcrl.market.stage import stage_synthetic
from hpcrl.monitor.metrics import read_metrics
from hpcrl.storage.attempts import read_attempts

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SITE = {"cpus_per_task": 1, "mem": "3G", "time": "00:30:00"}
LIMIT = 300
STAGE = ("--stage", "synthetic --symbols AAPL --bars 400")


class Project:
    """A folder with odd characters, a config and a site file, where hpcrl submit is called."""

    def __init__(self, slurm, folder: Path) -> None:
        self.slurm, self.path = slurm, folder / 'it\'s a "project"'
        self.path.mkdir()
        (self.path / "tiny.yaml").write_text(json.dumps(TINY | {"market": {"path": "market.h5"}}))
        self.site()

    def site(self, **keys: object) -> None:
        (self.path / "site.yaml").write_text(json.dumps(SITE | keys))

    def data(self) -> None:
        stage_synthetic(self.path / "market.h5", symbols=("AAPL",), bars=300)

    def start(self, *options: str, **environ: str) -> subprocess.Popen[str]:
        words = (
            options if "--resume" in options else ("--config", "tiny.yaml", "--site", "site.yaml", *options)
        )
        return subprocess.Popen(
            [sys.executable, "-m", "hpcrl", "submit", *words],
            cwd=self.path, env=self.slurm.environment(**{"HPCRL_VERIFY": "never"} | environ), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def submit(self, *options: str, **environ: str) -> tuple[int, str, str]:
        child = self.start(*options, **environ)
        out, err = child.communicate(timeout=LIMIT)
        return child.returncode, out, err

    def run(self) -> Path:
        (run,) = self.path.glob("checkpoints/dist_run_*")
        return run

    def jobs(self) -> dict[str, str]:
        """Kind -> id of its last job."""
        return {job["kind"]: job["id"] for job in self.record()["jobs"]}

    def record(self) -> dict:
        return json.loads((self.run() / "submission.json").read_text())


@pytest.fixture
def project(slurm, tmp_path) -> Project:
    return Project(slurm, tmp_path)


def until(probe: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not probe():
        assert time.monotonic() < limit, f"{what} did not come"
        time.sleep(0.1)


def epochs(run: Path) -> list[int]:
    return [line["epoch"] for line in read_metrics(run / "metrics.jsonl")]


def test_a_chain_ends_with_the_evaluations_table(project):
    code, out, err = project.submit("--chain", "stage,train,evaluate", *STAGE, "--ranks", "2")
    assert code == 0, err
    run = project.run()
    assert out.startswith(f"{run}\n") and "buy and hold" in out and "total return" in out
    assert out.endswith(f"{run}/evaluation_test.png\n") and "submitit" not in out
    assert epochs(run) == [1, 2, 3]
    assert [job["kind"] for job in project.record()["jobs"]] == ["stage", "train", "evaluate"]
    logs = sorted(path.name for path in run.glob("jobs/*_log.out"))
    train = project.jobs()["train"]
    assert len(logs) == 4 and {f"{train}_0_log.out", f"{train}_1_log.out"} <= set(logs)
    for kind in ("stage", "train", "evaluate"):
        assert f"{kind} {project.jobs()[kind]}: COMPLETED\n" in err


def test_a_failing_stage_cancels_the_rest_and_says_so(project, slurm):
    options = ("--chain", "stage,train,evaluate", "--stage", "files --path nowhere.csv")
    code, _, err = project.submit(*options)
    jobs = project.jobs()
    log = project.run() / f"jobs/{jobs['stage']}_0_log.out"
    assert code == 1
    assert (
        f"error: the stage job {jobs['stage']} ended as FAILED (exit code 2): nowhere.csv: no such file or "
        f"folder; the jobs after it are cancelled. Log: {log}\n"
    ) in err and "nowhere.csv" in log.read_text()
    for kind in ("train", "evaluate"):
        assert slurm.wait(jobs[kind])["JobState"] == "CANCELLED"


def test_without_anybody_waiting_a_failing_stage_leaves_no_job_behind(project, slurm):
    options = ("--chain", "stage,train,evaluate", "--stage", "files --path nowhere.csv", "--no-wait")
    code, _, err = project.submit(*options)
    assert code == 0 and "to look: hpcrl status" in err
    for kind in ("train", "evaluate"):
        assert slurm.wait(project.jobs()[kind])["JobState"] == "CANCELLED"


def test_a_dry_run_is_checked_by_slurm_and_makes_nothing(project, slurm):
    project.data()
    before = sorted(project.path.iterdir())
    code, shown, err = project.submit("--dry-run")
    assert code == 0 and err.startswith("train: sbatch --test-only: Job ") and "partition gpu" in err
    assert sorted(project.path.iterdir()) == before and not slurm.run("squeue", "-h").stdout
    assert project.submit("--wait")[0] == 0
    script = project.run() / f"jobs/{project.jobs()['train']}_submission.sh"
    (name,) = set(re.findall(r"dist_run_\d+_\d+", shown))
    assert shown == script.read_text().replace(project.run().name, name) + "\n", "exactly what is submitted"
    project.site(partition="none")
    code, _, err = project.submit("--dry-run")
    assert code == 2 and "the site's key is partition" in err


@pytest.mark.parametrize(
    ("site", "options", "part"),
    [
        ({"partition": "none"}, (), "the site's key is partition"),
        ({"gpus_per_node": 64}, ("--ranks", "64"), "sinfo -Nel"),
        ({"mem": "900G"}, (), "the site's key is mem"),
        ({"gres": "tpu"}, (), "the site's key is gres"),
        ({"constraint": "a100"}, (), "the site's key is constraint"),
        ({"sbatch": {"frobnicate": 1}}, (), "frobnicate"),
        ({"evaluate": {"partition": "none"}}, ("--chain", "train,evaluate"), "refused the evaluate job"),
    ],
)
def test_what_slurm_refuses_leaves_no_job_and_no_folder(project, slurm, site, options, part):
    project.data()
    project.site(**site)
    before = sorted(project.path.iterdir())
    code, out, err = project.submit(*options)
    assert code == 2 and part in err and err.count("\n") == 1 and not out, err
    assert sorted(project.path.iterdir()) == before
    until(lambda: not slurm.run("squeue", "-h").stdout, "an empty queue")


def test_a_controller_that_does_not_answer_is_told_as_that(project, slurm):
    project.data()
    before = sorted(project.path.iterdir())
    slurm.stop_controller()
    try:
        code, _, err = project.submit()
    finally:
        slurm.start_controller()
    assert code == 1 and err.startswith("error: Slurm does not answer: ") and err.count("\n") == 1, err
    assert sorted(project.path.iterdir()) == before


def test_no_secret_reaches_a_training_job(project):
    """Neither from the shell that submits, nor from a .env that only the staging job is told of."""
    project.data()
    keys = project.path / "keys.env"
    keys.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    keys.chmod(0o600)
    project.site(env_file=str(keys))
    code, _, err = project.submit("--set", "train.epochs=1000000", **SECRETS, SBATCH_EXPORT="ALL")
    assert code == 0, err
    run = project.run()
    until(lambda: read_attempts(run) and epochs(run), "a first epoch")
    seen = {
        entry.name: (entry / "environ").read_bytes()
        for entry in Path("/proc").glob("[0-9]*")
        if entry.name != str(os.getpid()) and f"HPCRL_RUN={run}\0".encode() in environ_of(entry)
    }
    assert len(seen) >= 2, "srun and a rank"
    assert not [pid for pid, environ in seen.items() if CANARY.encode() in environ]
    kept = [path for path in run.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    spooled = [
        path
        for part in ("state", "spool")
        for path in (project.slurm.root / part).rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert not kept and not spooled
    project.slurm.cancel(project.jobs()["train"])


def environ_of(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def test_a_run_is_resumed_by_a_job_and_by_no_second_one(project, slurm):
    project.data()
    code, _, err = project.submit("--wait")
    assert code == 0, err
    run = project.run()
    resume = ("--resume", str(run), "--set", "train.epochs=1000000")
    code, out, err = project.submit(*resume)
    assert code == 0 and out == f"{run}\n", err
    assert slurm.show(project.jobs()["train"])["MinMemoryNode"] == "3G", "the site of the first submission"
    until(lambda: len(epochs(run)) > 4, "a further epoch")
    code, _, err = project.submit(*resume)
    assert code == 2 and f"job {project.jobs()['train']} trains it (RUNNING)" in err
    slurm.cancel(project.jobs()["train"])
    slurm.wait(project.jobs()["train"])
    assert epochs(run)[:5] == [1, 2, 3, 4, 5]


def test_where_requeueing_is_forbidden_a_successor_goes_on_and_the_evaluation_waits_for_it(project, slurm):
    project.data()
    project.site(requeue="successor")
    child = project.start("--chain", "train,evaluate", "--set", "train.epochs=60", "--ranks", "2")
    until(lambda: list(project.path.glob("checkpoints/dist_run_*/submission.json")), "a submission")
    run, first = project.run(), project.jobs()["train"]
    until(lambda: epochs(run), "a first epoch")
    slurm.run("scancel", "--signal=USR2", first)
    out, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 0 and "buy and hold" in out, err
    second = project.jobs()["train"]
    jobs = {job["id"]: job for job in project.record()["jobs"]}
    assert jobs[second]["successor_of"] == first and jobs[project.jobs()["evaluate"]]["after"] == second
    assert f"train {first}: FAILED exit code 75\n" in err and f"train {second}: COMPLETED\n" in err
    assert epochs(run) == list(range(1, 61))
    assert [attempt.trigger for attempt in read_attempts(run)] == ["user", "successor"]
    assert int(slurm.show(first)["Restarts"]) == 0


def test_ctrl_c_ends_the_waiting_and_not_the_job(project, slurm):
    project.data()
    child = project.start("--wait", "--set", "train.epochs=1000000")
    until(lambda: list(project.path.glob("checkpoints/dist_run_*/submission.json")), "a submission")
    slurm.wait(project.jobs()["train"], "RUNNING")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    job = project.jobs()["train"]
    assert child.returncode == 130 and "hpcrl status" in err and f"scancel {job}" in err, err
    assert slurm.state(job) == "RUNNING"
    slurm.cancel(job)
