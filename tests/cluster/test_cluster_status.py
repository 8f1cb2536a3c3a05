"""hpcrl status names the right cause after faults on the real cluster, and what it says comes true."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers.slurm import poll
from trial import PATIENCE, RANKS, ROOT, Trial, furnish

from hpcrl.launch.status import report_job

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def place(tmp_path, market_file) -> Path:
    return furnish(tmp_path, market_file)


class Status:
    """What ``hpcrl status`` says in a folder, of one target."""

    def __init__(self, slurm, folder: Path, target: object) -> None:
        self.slurm, self.folder, self.target = slurm, folder, str(target)

    def __call__(self) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "hpcrl", "status", self.target, "--json"],
            cwd=self.folder, env=self.slurm.environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def wait(self, *states: str) -> dict:
        """Once the run is in one of the states."""
        found = poll(
            lambda: said if (said := self())["state"] in states else None, PATIENCE, lambda: str(self())
        )
        return found


@pytest.mark.soak
def test_one_run_through_crash_dead_controller_lost_node_and_cancel(slurm, place):
    job = Trial(slurm, place, 2000)
    job.wait_epoch(3)
    status = Status(slurm, place, job.job)  # by the job's number

    found = status()
    assert found["state"] == "running" and found["run"] == str(job.run) and found["seconds_left"] > 0
    assert found["job"] == job.job and found["why"] == f"job {job.job} on node{job.node}"

    slurm.stop_controller()
    found = Status(slurm, place, job.run)()
    slurm.start_controller()
    assert found["state"] == "running"  # by accounting
    assert any("answer" in note for note in found["notes"])

    job.kill(signal.SIGSEGV, 1)
    found = status.wait("pending")
    assert f"rank 1 on node{found['attempts'][0]['host'][-1]}: Segmentation fault" in found["why"]

    job.wait_attempt(2)
    job.wait_epoch(found["epoch"] + 3)
    lost = job.node
    slurm.kill_node(lost)
    job.wait_attempt(3)
    ends = [attempt["ended"] for attempt in status()["attempts"]]
    assert "Segmentation fault" in ends[0] and ends[1:] == [f"its node failed (node{lost})", None]

    job.wait_epoch(len(job.metrics) + 2)
    slurm.cancel(job.job)
    job.wait("CANCELLED")
    found = poll(lambda: said if "by" in (said := status())["why"] else None, 60, lambda: str(status()))
    assert (found["state"], found["cause"]) == ("stopped", "cancelled"), job.log
    assert f"cancelled by {slurm.layout.user}; all was saved" in found["why"]
    shape = ["--nodes=1", f"--ntasks-per-node={RANKS}", "--gres=gpu:2"]
    script = str(ROOT / "slurm" / "train.sbatch")
    assert found["command"] == shlex.join(["sbatch", *shape, script, "--resume", str(job.run)])


def test_a_preempted_job_waits_and_says_that_it_was_preempted(slurm, place):
    job = Trial(slurm, place, 2000, "--partition=lo")
    job.wait_epoch(3)
    hurried = slurm.sbatch(
        "#!/bin/sh\nsleep 20\n", options=("--partition=hi", "--nodes=4", "--exclusive"), cwd=place
    )
    slurm.wait(hurried, "RUNNING", timeout=PATIENCE)
    found = Status(slurm, place, job.run).wait("pending")
    assert "Attempt 1: it was preempted; all was saved" in found["why"], job.log
    slurm.cancel(job.job)
    found = Status(slurm, place, job.run).wait("dead", "stopped")
    assert found["cause"] == "cancelled" and "before it trained again" in found["why"], found
    assert found["command"].endswith(f"--resume {job.run}")


def test_out_of_memory_is_told_with_what_to_do(slurm, place):
    job = Trial(slurm, place, 2000, "--mem=150M", HPCRL_REQUEUE="never")
    assert job.wait() in ("FAILED", "OUT_OF_MEMORY", "CANCELLED")
    found = Status(slurm, place, job.job)()
    assert "out of memory" in found["why"] and "--mem" in found["advice"], (found, job.log)


def test_a_missing_folder_for_the_log_is_named(slurm, place):
    job = Trial(slurm, place, 3, f"--output={place}/gone/%j.log")
    assert job.wait() == "FAILED"
    found = Status(slurm, place, job.job)()
    assert f"its log's folder {place}/gone does not exist" in found["why"]
    assert found["advice"] == f"mkdir -p {place}/gone" and (found["exit_code"], found["signal"]) == (0, 53)


def test_a_failed_stage_is_why_training_never_ran(slurm, place):
    (place / "site.yaml").write_text(json.dumps({"cpus_per_task": 1, "mem": "2G", "gres": "none"}))
    words = ["submit", "--config", "tiny.yaml", "--site", "site.yaml", "--chain", "stage,train"]
    words += ["--ranks", "1", "--stage", "files --path nowhere", "--set", "market.path=other.h5", "--no-wait"]
    subprocess.run(
        [sys.executable, "-m", "hpcrl", *words], cwd=place, env=slurm.environment(), check=True, timeout=120
    )
    (run,) = place.glob("checkpoints/dist_run_*")
    found = Status(slurm, place, run).wait("dead")
    assert found["cause"] == "dependency" and "nowhere: no such file or folder" in found["why"]
    assert found["command"] == f"cd {place} && {shlex.join(['hpcrl', *words])}"


@pytest.mark.soak
def test_a_time_limit_that_comes_near_is_told_by_its_name(slurm, place):
    job = Trial(slurm, place, 5000, "--time=3", HPCRL_REQUEUE="never")
    assert job.wait() in ("TIMEOUT", "FAILED")
    found = Status(slurm, place, job.run)()
    assert (found["state"], found["cause"]) == ("stopped", "time_limit"), found


@pytest.fixture
def asked(slurm, monkeypatch):
    """``asked(JOB)``: what hpcrl status says of a job that no run is known of."""
    for key in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(key, slurm.environment()[key])

    def ask(job: str) -> tuple[str, str]:
        (found,) = report_job(job)
        return found.why, found.advice

    return ask


def test_what_a_job_waits_for_is_told_in_words(slurm, asked, tmp_path):
    def submit(*options: str, script: str = "#!/bin/sh\nsleep 300\n") -> str:
        return slurm.sbatch(script, options=("--output=/dev/null", *options), cwd=tmp_path)

    failed = submit(script="#!/bin/sh\nexit 3\n")
    slurm.wait(failed, "FAILED")
    everything = ("--nodes=4", "--exclusive")
    runs = submit(*everything)
    slurm.wait(runs, "RUNNING")
    array = submit("--array=0-3%2", "--partition=hi", "--oversubscribe", "--nice=1")
    waiting = {
        submit("--hold"): ("it is held (JobHeldUser)", "scontrol release"),
        submit(*everything): ("for free nodes or GPUs (Resources)", ""),
        submit(*everything): ("for jobs of higher priority (Priority)", ""),
        submit(f"--dependency=afterok:{runs}"): (f"for job {runs} to end", ""),
        submit(f"--dependency=afterok:{failed}"): (f"afterok:{failed}(failed)", "scancel"),
        submit("--begin=now+1hour"): ("for the time at which it is to begin (BeginTime)", ""),
        submit("--partition=short", "--time=10"): ("in vain, its time limit is longer", "a shorter time"),
    }
    for job, (words, advice) in waiting.items():
        poll(lambda job=job, words=words: words in asked(job)[0], 60, lambda job=job: str(asked(job)))
        assert advice in asked(job)[1] if advice else asked(job)[1] == "", asked(job)
    slurm.cancel(runs)
    slurm.cancel(next(job for job, (words, _) in waiting.items() if "free nodes" in words))
    slurm.cancel(next(job for job, (words, _) in waiting.items() if "priority" in words))
    poll(lambda: "for its turn" in asked(f"{array}_3")[0], 60, lambda: str(asked(f"{array}_3")))
    assert [task.id for task in report_job(array)] == [f"{array}_{k}" for k in range(4)]


def test_a_prolog_that_fails_is_why_slurm_holds_a_job(slurm, asked, tmp_path):
    slurm.configure(Prolog="/bin/false")
    job = slurm.sbatch("#!/bin/sh\ntrue\n", options=("--output=/dev/null",), cwd=tmp_path)
    poll(lambda: "held" in asked(job)[0], 60, lambda: f"{asked(job)} {slurm.report()}")
    why, advice = asked(job)
    assert "Slurm could not start it: its node or the site's prolog failed" in why
    assert f"scontrol release {job}" in advice
    slurm.cancel(job)


def test_mistakes_are_told_by_their_own_line(slurm, tmp_path, market_file):
    def trial(name: str, *options: str, sets: tuple[str, ...] = (), **environ: str) -> Trial:
        (tmp_path / name).mkdir()
        return Trial(slurm, furnish(tmp_path / name, market_file), 1, *options, sets=sets, **environ)

    two_nodes = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1")
    jobs = {
        trial("ranks", "--ntasks-per-node=3"): "3 ranks, but train.world_size = 2",
        trial("data", sets=("market.path=gone.h5",)): "gone.h5: no such file",
        trial("key", sets=("learn.lrr=1",)): "unknown key learn.lrr = 1; nearest valid key: learn.lr",
        trial(
            "address", *two_nodes, "--export=ALL,MASTER_ADDR=nowhere"
        ): "the ranks cannot meet at 'nowhere'",
    }
    for job, words in jobs.items():
        assert job.wait() == "FAILED", job.log
        said = job.status()
        assert said["run"] is None and said["exit_code"] in (1, 2) and words in said["why"], (said, job.log)
        assert "mend that" in said["advice"] and "Traceback" not in job.log
