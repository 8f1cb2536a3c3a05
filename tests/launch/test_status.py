"""What hpcrl status says of folders that the real code wrote, beside each answer that Slurm may give.

Slurm's answers are stand-ins here; the same on a real cluster: tests/cluster/test_cluster_status.py.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from launch.slurm_answers import Answers

from hpcrl.launch.again import LOST_A_PEER
from hpcrl.launch.status_alive import refuse_if_trained
from hpcrl.monitor.metrics import line_of
from hpcrl.storage.atomic import write_json
from hpcrl.storage.attempts import Attempt, attempt_folder, who_begins
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

SCRIPT = Path(__file__).parents[2] / "slurm" / "train.sbatch"
STARTED = "start 2026-11-23T01:50:42+00:00 job 12 attempt {} on node1: hpcrl train\n"
CANCELLED = "slurmstepd-node1: error: *** JOB 12 ON node1 CANCELLED AT 2026-11-23T01:52:56{} ***\n"


class World:
    """One run of job 12 in ``checkpoints``, and what Slurm says of it."""

    def __init__(self, folder: Path, slurm: Answers) -> None:
        self.slurm = slurm
        config = {"config": {"train": {"epochs": 20}}}
        self.path = RunDir.create(folder / "checkpoints", json.dumps(config)).path
        self.run = RunDir(self.path)
        self.log = folder / "hpcrl_12.log"
        self.queue()

    def attempt(
        self, restarts: int = 0, job: str | None = "12", reached: int = 0, end: tuple = ()
    ) -> Attempt:
        found = Attempt.claim(self.run, 2, who_begins({"SLURM_RESTART_COUNT": str(restarts)}, job))
        found.take_over(None)
        with self.run.metrics.open("a") as file:
            for epoch in range(1, reached + 1):
                times = {
                    "time/attempt": found.record.number,
                    "time/epoch": 2.0,
                    "time/steps_per_second": 500.0,
                }
                file.write(line_of({"epoch": epoch, "reward": 0.25, "loss": 1.5, **times}))
        if end:
            found.end(*end)
        return found

    def beat(self, attempt: Attempt, seconds_ago: float) -> None:
        then = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
        value = {"time": then, "since": then, "epoch": 3, "phase": "learn", "host": "node1", "pid": 1}
        write_json(attempt.record.path / "heartbeat.json", value)

    def submitted(self, *jobs: dict, arguments: tuple[str, ...] = ("submit", "--config", "x.yaml")) -> None:
        jobs_ = [
            {"after": None, "successor_of": None, "log": f"jobs/{job['id']}_%t_log.out"} | job for job in jobs
        ]
        record = {"format": 1, "folder": "/home/me/my runs", "arguments": list(arguments), "jobs": jobs_}
        write_json(self.path / "submission.json", record)
        (self.path / "jobs").mkdir(exist_ok=True)

    def queue(self, *lines: str, books: tuple[str, ...] = ()) -> None:
        """squeue's lines (fields by blanks) and sacct's (fields by bars)."""
        self.slurm.says("squeue", "".join("\x1f".join(line.split()) + "\x1f\n" for line in lines))
        self.slurm.says("sacct", "".join(f"{line}\n" for line in books))

    def job(self, state: str, reason: str = "None", code: int = 0, restarts: int = 0, **more: str) -> None:
        """The job as squeue shows it; ``by``: who cancelled it, by sacct."""
        line = queued("12", state, reason, code, restarts, output=str(self.log), **more)
        by = more.get("by")
        times = "2026-11-23T01:34:02|2026-11-23T01:34:06"
        books = f"12|{state}{f' by {by}' if by else ''}|0:0|0:0|{times}|||x|1|None"
        self.queue(line, books=(books,) if by else ())


def queued(
    id: str, state: str, reason: str = "None", code: int = 0, restarts: int = 0, output: str = "(null)",
    start: str = "2026-11-23T01:34:02", dependency: str = "(null)", **_: str,
) -> str:  # fmt: skip
    return f"{id} {state} {reason} {code} {start} N/A 1:00:00 node1 {restarts} {dependency} hpcrl {output}"


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    slurm = Answers(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(slurm.folder))
    monkeypatch.delenv("HPCRL_ROOT", raising=False)
    return World(tmp_path, slurm)


@pytest.fixture
def status(hpcrl, world):
    """``status(TARGET) -> JSON``, for which the page must be showable, too."""

    def ask(*target: object) -> dict:
        code, out, err = hpcrl("status", *target, "--json")
        assert code == 0, err
        code, page, err = hpcrl("status", *target)
        assert (
            code == 0 and "\x1b" not in page and not any(line != line.rstrip() for line in page.splitlines())
        )
        found = json.loads(out)
        if isinstance(found, dict) and found.get("command"):
            assert f"\n  {found['command']}\n" in page, "a command is never cut"
        return found

    return ask


def test_without_runs_and_at_the_wrong_place_one_line_says_so(hpcrl, tmp_path):
    code, _, err = hpcrl("status")
    assert code == 2 and "no runs there" in err and len(err.splitlines()) == 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for target, words in (("nope", "no such run folder"), ("empty", "not a run folder"), ("file", "a file")):
        code, _, err = hpcrl("status", target)
        assert code == 2 and words in err and len(err.splitlines()) == 1
    code, out, _ = hpcrl("status", "--json")
    assert code == 0 and json.loads(out) == []


# --- A run outside Slurm --------------------------------------------------------------------------


def test_a_run_that_this_machine_trains_is_running_with_progress(world, status):
    world.attempt(job=None, reached=5)
    found = status(world.path)
    assert found["state"] == "running" and f"process {os.getpid()} on {socket.gethostname()}" in found["why"]
    assert (found["epoch"], found["epochs"], found["steps_per_second"]) == (5, 20, 500.0)
    assert (found["seconds_left"], found["reward"], found["loss"]) == (30.0, 0.25, 1.5)
    assert found["attempts"][0]["ended"] is None and (found["command"], found["advice"]) == ("", "")


def test_a_process_that_lives_without_a_heartbeat_is_told_with_what_to_do(world, status):
    world.beat(world.attempt(job=None, reached=5), 600)
    found = status(world.path)
    assert found["state"] == "running" and "no heartbeat for 10 min (last: learn of epoch 3)" in found["why"]
    assert f"If it stays so: kill {os.getpid()}, and go on" in found["advice"]


def test_a_process_that_is_gone_without_a_word_is_dead(world, status):
    attempt = world.attempt(job=None, reached=5)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    value = json.loads((attempt.record.path / "attempt.json").read_text())
    write_json(attempt.record.path / "attempt.json", value | {"pid": gone.pid})
    world.beat(attempt, 600)
    found = status(world.path)
    assert (found["state"], found["cause"]) == ("dead", "lost")
    assert "is gone and left no result; its last heartbeat is 10 min old" in found["why"]
    assert found["command"] == f"hpcrl train --ranks 2 --resume {world.path}"


@pytest.mark.parametrize(
    ("end", "state", "cause", "words"),
    [
        ((0, 20, "finished"), "finished", "finished", "all epochs are done"),
        ((75, 5, "SIGINT"), "stopped", "stopped", "Ctrl-C"),
        ((75, 5, "SIGHUP"), "stopped", "stopped", "terminal was closed"),
        (
            (1, None, "cannot write /x: No space left on device (0 bytes free)"),
            "dead",
            "failed",
            "No space left",
        ),
        ((2, None, "learn.lr = x is no number"), "dead", "mistake", "learn.lr = x"),
        ((1, 5, "ValueError: a bug"), "dead", "failed", "ValueError: a bug"),
    ],
)
def test_an_orderly_end_speaks_for_itself(world, status, end, state, cause, words):
    world.attempt(job=None, reached=5, end=end)
    found = status(world.path)
    assert (found["state"], found["cause"]) == (state, cause) and words in found["why"]
    assert found["command"].startswith("hpcrl evaluate" if state == "finished" else "hpcrl train")


def test_a_copy_without_attempts_is_told_by_its_epochs(world, status):
    world.attempt(job=None, reached=5)
    shutil.rmtree(world.path / "attempts")
    assert status(world.path)["state"] == "stopped"


# --- A job that waits or runs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "restarts", "words"),
    [
        ("Resources", 0, "free nodes or GPUs"),
        ("Priority", 0, "higher priority"),
        ("BeginTime", 1, "requeued"),
        ("BeginTime", 0, "the time at which it is to begin"),
        ("QOSMaxJobsPerUserLimit", 0, "QOSMaxJobsPerUserLimit"),
        ("Licenses", 0, "licences that other jobs hold"),
        ("None", 0, "not said"),
    ],
)
def test_a_waiting_job_tells_for_what_and_until_when(world, status, reason, restarts, words):
    world.job("PENDING", reason, restarts=restarts, start="2099-01-02T03:04:05")
    world.submitted({"id": "12", "kind": "train"})
    found = status(world.path)
    assert found["state"] == "pending" and words in found["why"]
    assert "expected start 2099-01-02 03:04" in found["why"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("JobHeldUser", "it is held"),
        ("launch_failed_requeued_held", "Slurm could not start it: its node or the site's prolog failed"),
        ("JobHoldMaxRequeue", "requeued as often as the site allows"),
    ],
)
def test_a_held_job_names_the_command_that_releases_it(world, status, reason, words):
    world.job("PENDING", reason, start="N/A")
    alone = status("12")
    assert words in alone["why"] and "scontrol release 12" in alone["advice"]
    world.submitted({"id": "12", "kind": "train"})
    found = status(world.path)
    assert words in found["why"] and found["command"] == "scontrol release 12"


def test_what_an_administrator_holds_only_he_can_release(world, status):
    world.job("PENDING", "JobHeldAdmin", start="N/A")
    world.submitted({"id": "12", "kind": "train"})
    found = status(world.path)
    assert found["command"] == "" and "only an administrator can release it" in found["advice"]


@pytest.mark.parametrize(
    ("reason", "dependency", "words"),
    [
        ("Dependency", "afterok:10_*(unfulfilled),afterany:11(unfulfilled)", "for job 10, job 11 to end"),
        ("DependencyNeverSatisfied", "afterok:11(failed)", "in vain, the job that it waits for has failed "),
    ],
)
def test_a_job_of_no_run_says_which_it_waits_for(world, status, reason, dependency, words):
    world.queue(queued("12", "PENDING", reason, start="N/A", dependency=dependency))
    found = status("12")
    assert words in found["why"] and ("failed" in words) == ("afterok:11(failed)" in found["why"])
    assert found["advice"].startswith("scancel 12") == ("in vain" in words)


def test_the_rate_is_of_all_steps_by_all_seconds(world, status):
    number = world.attempt().record.number
    with world.run.metrics.open("a") as file:
        for epoch, seconds in ((1, 9.0), (2, 1.0)):
            times = {"time/attempt": number, "time/epoch": seconds, "time/steps_per_second": 900 / seconds}
            file.write(line_of({"epoch": epoch, **times}))
    assert status(world.path)["steps_per_second"] == pytest.approx(180)


def test_a_population_is_another_verbs(world, hpcrl):
    (world.path.parent / "pbt").mkdir()
    (world.path.parent / "pbt/population.json").write_text("{}")
    code, _, err = hpcrl("status", str(world.path.parent / "pbt"))
    assert code == 2 and "is a population: hpcrl pbt status" in err


def test_an_array_of_no_run_is_told_task_by_task(world, hpcrl):
    world.queue(
        queued("12_10", "PENDING", "JobArrayTaskLimit"), queued("12_2", "RUNNING"),
        queued("12_0", "FAILED", "NonZeroExitCode", 3 << 8),
        books=("12_[3-10]|PENDING|0:0|0:0|Unknown|Unknown||None assigned|hpcrl|1|None",),
    )  # fmt: skip
    code, out, _ = hpcrl("status", "12", "--json")
    assert code == 0 and [task["job"] for task in json.loads(out)] == ["12_0", "12_2", "12_10"]
    code, out, _ = hpcrl("status", "12")
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == ["12_0", "12_2", "12_10"]
    assert "exit code 3" in out and "\n  for its turn" in out


def test_an_array_that_was_cancelled_while_it_waited_is_told_by_accounting(world, hpcrl):
    books = "12_[0-1,3%2]|CANCELLED by 0|0:0|0:0|Unknown|2026-01-02T03:04:05||None assigned|hpcrl|1|None"
    world.queue(books=(books,))
    code, out, _ = hpcrl("status", "12", "--json")
    assert code == 0 and [task["job"] for task in json.loads(out)] == ["12_0", "12_1", "12_3"]
    assert "cancelled" in out


def test_a_requeued_job_tells_why_its_last_attempt_ended(world, status):
    world.attempt(reached=5)
    world.log.write_text(
        STARTED.format(1) + "srun: error: node1: task 0: Exited with exit code 1\n"
        "srun: error: node1: task 1: Segmentation fault (core dumped)\n"
        + CANCELLED.format(" DUE TO JOB REQUEUE")
    )
    world.job("PENDING", "BeginTime", restarts=1)
    found = status(world.path)
    assert found["state"] == "pending" and "Attempt 1: rank 1 on node1: Segmentation fault" in found["why"]
    assert found["attempts"][0]["ended"].startswith("rank 1 on node1")


def test_a_job_that_runs_is_starting_until_it_trains_and_then_running(world, status):
    world.job("RUNNING")
    world.submitted({"id": "12", "kind": "train"})
    assert status(world.path)["state"] == "starting"
    attempt = world.attempt(reached=2)
    world.beat(attempt, 5)
    found = status(world.path)
    assert found["state"] == "running" and found["why"] == "job 12 on node1"
    assert found["advice"] == ""
    world.beat(attempt, 400)
    found = status(world.path)
    assert "no heartbeat for 6 min (last: learn of epoch 3)" in found["why"]
    assert "If it stays so: scancel 12, and go on" in found["advice"] and "--resume" in found["advice"]
    world.job("SUSPENDED")
    assert status(world.path)["advice"] == "", "Slurm lets it go on by itself"
    world.job("RUNNING", restarts=1)
    assert status(world.path)["state"] == "starting", "its second start has not come to train"


@pytest.mark.parametrize(
    ("reason", "words", "advice"),
    [
        ("PartitionTimeLimit", "longer than its partition allows", "a shorter time"),
        ("PartitionNodeLimit", "number of nodes", "fewer nodes"),
        ("QOSMaxWallDurationPerJobLimit", "longer than its account or QOS allows", "a shorter time"),
        ("AssocMaxCpuPerJobLimit", "asks for more", "with less"),
        ("AssocMaxJobsLimit", "once other jobs have ended", "wait"),
        ("QOSMaxJobsPerUserLimit", "once other jobs have ended", "wait"),
        ("AssocGrpCPUMinutesLimit", "budget", "another account"),
        ("ReqNodeNotAvail", "down, drained or reserved", "sinfo -R"),
    ],
)
def test_where_waiting_does_not_help_it_says_what_does(world, status, reason, words, advice):
    world.job("PENDING", reason, start="N/A")
    found = status("12")
    assert found["run"] is None and words in found["why"] and f"({reason})" in found["why"]
    assert advice in found["advice"]
    world.submitted({"id": "12", "kind": "train"})
    found = status(world.path)
    assert words in found["why"] and advice in found["advice"]
    assert found["advice"].startswith("scancel 12, ") == ("in vain" in found["why"])


# --- Several jobs of one run ----------------------------------------------------------------------


def test_what_runs_wins_over_what_was_submitted_last(world, status):
    attempt = world.attempt(reached=5, job="12")
    world.submitted({"id": "12", "kind": "train"}, {"id": "13", "kind": "train", "submitted": "2099-01-01"})
    failed = queued("13", "FAILED", "NonZeroExitCode", 2 << 8)
    for others in ((failed,), (failed.replace("FAILED", "PENDING"),), ()):
        world.queue(queued("12", "RUNNING"), *others)
        for target in (world.path, "12", "13"):
            found = status(target)
            assert (found["state"], found["job"], found["command"]) == ("running", "12", ""), found["why"]
    world.beat(attempt, 5)
    world.queue(failed)  # the controller has forgotten job 12, or it is another cluster's
    assert status(world.path)["state"] == "running" and "heartbeat" in status(world.path)["why"]
    world.beat(attempt, 900)
    assert status(world.path)["state"] == "dead"


def test_a_run_that_went_on_outside_slurm_is_running(world, status):
    world.attempt(reached=5, job="12", end=(1, 5, "ValueError: a bug"))
    world.submitted({"id": "12", "kind": "train"}, {"id": "13", "kind": "train", "submitted": "2099-01-01"})
    world.queue(queued("12", "FAILED", code=1 << 8), queued("13", "FAILED", code=1 << 8))
    assert status(world.path)["state"] == "dead"
    world.attempt(reached=5, job=None)
    found = status(world.path)
    assert (found["state"], found["job"]) == ("running", None)


def test_a_run_that_is_trained_is_not_submitted_again(world):
    world.queue(queued("12", "FAILED", code=1 << 8))
    refuse_if_trained(world.path)
    attempt = world.attempt(job="12")
    refuse_if_trained(world.path)
    world.submitted({"id": "13", "kind": "train"})
    for job in ("12", "13"):
        world.queue(queued(job, "PENDING", "BeginTime"))
        with pytest.raises(HpcrlError, match=rf"job {job} trains it \(PENDING\).*scancel {job}"):
            refuse_if_trained(world.path)
    world.queue()
    refuse_if_trained(world.path)
    world.beat(attempt, 5)
    with pytest.raises(HpcrlError, match=r"attempt 1 trains it .*heartbeat"):
        refuse_if_trained(world.path)
    world.attempt(job=None)
    with pytest.raises(HpcrlError, match=rf"attempt 2 trains it .process {os.getpid()}"):
        refuse_if_trained(world.path)


def test_an_attempt_that_is_over_does_not_run_while_the_next_one_starts(world, status):
    world.attempt(reached=5, job="12")
    world.submitted({"id": "12", "kind": "train"}, {"id": "13", "kind": "train", "submitted": "2099-01-01"})
    world.queue(queued("12", "CANCELLED"), queued("13", "RUNNING"))
    found = status(world.path)
    assert (found["state"], found["job"]) == ("starting", "13")
    assert found["attempts"][0]["ended"] == "it was cancelled before it could save"


# --- A job that is over ---------------------------------------------------------------------------

CRASHED = STARTED.format(1) + "srun: error: node1: task 1: Segmentation fault\nend 2026-11-23 exit code 139\n"
HUNG = (
    STARTED.format(1)
    + "error: rank 0 on node1 hangs: nothing happened for 30 min in 'learn' of epoch 3; where "
    "its threads are is written above\nsrun: error: node1: task 0: Exited with exit code 70\n"
)
OOM = (
    STARTED.format(1) + "slurmstepd-node2: error: StepId=4.0 exceeded memory limit (31 > 6), being killed\n"
    "srun: error: node2: task 0: Killed\n"
)
CUDA = STARTED.format(1) + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
SUPERSEDED = "attempt 1 of /r is superseded by attempt 2 (job 13): it stops here and writes nothing more"
FRUITLESS = "/r: 3 attempts in a row began after epoch 5 and ended without a new checkpoint; not tried again"


@pytest.mark.parametrize(
    ("end", "job", "log", "state", "cause", "words"),
    [
        ((75, 5, "SIGTERM"), {"state": "CANCELLED", "by": "0"}, "", "stopped", "cancelled", "by root; all"),
        ((), {"state": "CANCELLED", "by": "0"}, "", "dead", "cancelled", "by root before it could save"),
        ((75, 5, "SIGUSR2"), {"state": "FAILED", "code": 75 << 8}, "", "stopped", "time_limit", "time limit"),
        ((75, 5, "SIGUSR2"), {"state": "PREEMPTED"}, "", "stopped", "preempted", "preempted; all was saved"),
        ((75, 5, "made room"), {"state": "FAILED", "code": 75 << 8}, "", "stopped", "stopped", "members"),
        ((75, 5, "SIGTERM"), {"state": "TIMEOUT", "reason": "TimeLimit"}, "", "stopped", "time_limit", "all"),
        ((), {"state": "TIMEOUT", "reason": "TimeLimit"}, "", "dead", "time_limit", "before it could save"),
        ((75, 5, "SIGTERM"), {"state": "PREEMPTED"}, "", "stopped", "preempted", "preempted; all was saved"),
        ((), {"state": "PREEMPTED"}, "", "dead", "preempted", "preempted before it could save"),
        ((75, 5, "SIGTERM"), {"state": "NODE_FAIL"}, "", "stopped", "node_failure", "(node1); all was"),
        ((), {"state": "NODE_FAIL"}, "", "dead", "node_failure", "its node failed (node1)"),
        ((), {"state": "OUT_OF_MEMORY"}, "", "dead", "out_of_memory", "ran out of memory"),
        ((), {"state": "FAILED", "code": 137 << 8}, OOM, "dead", "out_of_memory", "exceeded memory limit"),
        ((1, 5, LOST_A_PEER), {"state": "FAILED", "code": 1 << 8}, CUDA, "dead", "out_of_memory", "CUDA"),
        ((), {"state": "FAILED", "code": 139 << 8}, CRASHED, "dead", "crashed", "rank 1 on node1: Segm"),
        ((1, 5, LOST_A_PEER), {"state": "FAILED", "code": 139 << 8}, CRASHED, "dead", "crashed", "rank 1"),
        ((), {"state": "FAILED", "code": 134 << 8}, "", "dead", "crashed", "ended by SIGABRT"),
        ((), {"state": "FAILED", "code": 3 << 8}, "", "dead", "crashed", "exit code 3"),
        ((), {"state": "FAILED", "code": 70 << 8}, HUNG, "dead", "hung", "nothing happened for 30 min"),
        ((), {"state": "COMPLETED"}, "", "dead", "no_result", "left no result"),
        ((1, 5, SUPERSEDED), {"state": "FAILED", "code": 1 << 8}, "", "dead", "superseded", "to attempt 2"),
        ((1, 5, SUPERSEDED), {"state": "NODE_FAIL"}, "", "dead", "superseded", "its node failed (node1); it"),
        ((), {"state": "FAILED", "code": 137 << 8}, "", "dead", "crashed", "SIGKILL: by hand, or by the sys"),
        ((1, 5, FRUITLESS), {"state": "FAILED", "code": 1 << 8}, "", "dead", "fruitless", "3 attempts"),
        ((0, 20, "finished"), {"state": "COMPLETED"}, "", "finished", "finished", "all epochs"),
    ],
)  # fmt: skip
def test_each_end_of_a_job_has_its_cause(world, status, end, job, log, state, cause, words):
    world.attempt(reached=5, end=end)
    world.log.write_text(log)
    world.job(**job)
    found = status(world.path)
    assert (found["state"], found["cause"]) == (state, cause), found["why"]
    assert words in found["why"]
    if state != "finished":
        shape = "--nodes=1 --ntasks-per-node=2 --gres=gpu:2"
        assert found["command"] == f"sbatch {shape} {SCRIPT} --resume {world.path}"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (CANCELLED.format(""), "cancelled"),
        (CANCELLED.format(" DUE TO TIME LIMIT"), "time_limit"),
        (CANCELLED.format(" DUE TO PREEMPTION"), "preempted"),
        (CANCELLED.format(" DUE TO NODE FAILURE"), "node_failure"),
        (CRASHED.replace(STARTED.format(1), ""), "crashed"),
        ("", "lost"),
    ],
)
def test_of_a_job_that_slurm_has_forgotten_the_log_tells(world, status, log, cause):
    world.attempt(reached=5)
    world.log.write_text(STARTED.format(1) + log)
    assert status(world.path)["cause"] == cause


def test_ranks_that_slurm_kills_after_a_cancel_are_no_crash(world, status):
    world.attempt(reached=5)
    killed = "srun: error: node1: tasks 0-1: Killed\n"
    world.log.write_text(STARTED.format(1) + CANCELLED.format("") + killed)
    assert status(world.path)["cause"] == "cancelled"


def test_each_attempt_is_told_by_its_own_part_of_the_log_and_of_accounting(world, status):
    for restarts in range(3):
        world.attempt(restarts)
    world.log.write_text(
        STARTED.format(1) + CANCELLED.format(" DUE TO PREEMPTION")
        + STARTED.format(2) + "srun: error: node1: task 1: Aborted\n"
        + CANCELLED.format(" DUE TO JOB REQUEUE")
        + STARTED.format(3)
    )  # fmt: skip
    starts = [f"12|{state}|0:0|0:0|2026-11-23T0{k}:00:00|2026-11-23T0{k}:30:00||node{k}|x|{k}|None"
              for k, state in enumerate(["REQUEUED", "REQUEUED", "NODE_FAIL"])]  # fmt: skip
    world.queue(books=tuple(starts))
    ended = [attempt["ended"] for attempt in status(world.path)["attempts"]]
    assert [text.split(" before")[0] for text in ended] == [
        "it was preempted", "rank 1 on node1: Aborted", "its node failed (node2)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("due", "reason", "words"),
    [
        (" DUE TO TIME LIMIT", "SIGTERM", "its time limit was reached"),
        (" DUE TO JOB REQUEUE", "SIGTERM", "it was put back into the queue"),
        (" DUE TO PREEMPTION", "SIGTERM", "it was preempted"),
        (" DUE TO JOB REQUEUE", "SIGUSR2", "its time limit came near"),
        (" DUE TO JOB REQUEUE", "made room", "it has made room for other members of its population"),
        ("", "SIGTERM", "it was cancelled"),
    ],
)
def test_of_a_start_that_saved_and_was_requeued_the_log_tells_why(world, status, due, reason, words):
    world.attempt(end=(75, 5, reason))
    world.attempt(1)
    world.log.write_text(STARTED.format(1) + CANCELLED.format(due) + STARTED.format(2))
    row = "12|REQUEUED|0:0|0:0|2026-11-23T00:00:00|2026-11-23T00:30:00||node1|x|0|None"
    world.queue(books=(row, row.replace("REQUEUED", "RUNNING").replace("|0|None", "|1|None")))
    assert status(world.path)["attempts"][0]["ended"] == f"{words}; all was saved"


# --- A job that never came to train ---------------------------------------------------------------


def test_a_log_whose_folder_is_missing_is_named(world, status, tmp_path):
    world.submitted({"id": "12", "kind": "train"})
    gone = tmp_path / "gone" / "12.log"
    world.queue(queued("12", "FAILED", "JobLaunchFailure", 4021, output=str(gone)))
    found = status(world.path)
    assert (found["state"], found["cause"]) == ("dead", "never_started")
    assert f"its log's folder {gone.parent} does not exist" in found["why"]
    assert found["advice"] == f"mkdir -p {gone.parent}"
    assert found["command"] == f"hpcrl submit --resume {world.path}"


@pytest.mark.parametrize("state", ["FAILED", "PENDING"])
def test_a_run_folder_that_was_removed_needs_a_new_submission(world, status, state):
    gone = world.path.parent / "dist_run_20200101_000000"
    reason = "JobLaunchFailure" if state == "FAILED" else "Priority"
    world.queue(queued("12", state, reason, 4021, output=f"{gone}/jobs/%j_0_log.out"))
    found = status("12")
    assert f"run folder {gone} was removed" in found["why"]
    assert "submit again" in found["advice"] and "mkdir" not in found["advice"]


@pytest.mark.parametrize(
    ("log", "code", "why"),
    [
        ("error: data/market.h5: no such file\nsrun: error: node1: task 0: Exited with exit code 2\n", 2,
         "data/market.h5: no such file"),
        ("/var/spool/job12: line 47: module: command not found\n", 127, "line 47: module: command not found"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", ["hpcrl_%j.log", "%x_%5A.out", None])
def test_a_plain_job_that_failed_says_why_and_what_next(
    world, status, tmp_path, monkeypatch, log, code, why, known
):
    name = "hpcrl_00012.out" if known and "%x" in known else "hpcrl_12.log"
    (tmp_path / name).write_text(STARTED.format(1) + log + f"end 2026-11-23 exit code {code}\n")
    monkeypatch.chdir(tmp_path)
    row = f"12|FAILED|{code}:0|0:0|2026-11-23T01:34:02|2026-11-23T01:34:06|||hpcrl|1|None"
    line = queued("12", "FAILED", "NonZeroExitCode", code << 8, output=f"{tmp_path}/{known}")
    world.queue(*([line] if known else []), books=(row,))
    found = status("12")
    assert why in found["why"]
    assert str(tmp_path / name) in found["advice"] and "submit it again" in found["advice"]


def test_a_mistake_before_training_is_told_from_the_log(world, status):
    world.submitted({"id": "12", "kind": "train"})
    text = "error: data/market.h5: no such file; `hpcrl stage` makes market files\n"
    (world.path / "jobs" / "12_0_log.out").write_text(STARTED.format(1) + text + "end 2026 exit code 2\n")
    world.job("FAILED", "NonZeroExitCode", code=2 << 8)
    found = status(world.path)
    assert (found["cause"], found["why"]) == ("mistake", text.removeprefix("error: ").strip())


def test_a_job_cancelled_in_the_queue_never_started(world, status):
    world.submitted({"id": "12", "kind": "train"})
    world.job("CANCELLED", start="N/A")
    assert status(world.path)["why"] == "job 12 was cancelled before it started"


def test_three_vain_starts_are_told_by_the_scripts_own_words(world, status):
    world.submitted({"id": "12", "kind": "train"})
    left = "job 12 is not started again: 3 starts in a row crashed before training began; see its log\n"
    (world.path / "jobs" / "12_0_log.out").write_text(CRASHED.replace("attempt 1", "attempt 3") + left)
    world.job("FAILED", code=139 << 8, restarts=2)
    assert "not started again: 3 starts in a row crashed" in status(world.path)["why"]


@pytest.mark.parametrize("state", ["PENDING", "CANCELLED"])
def test_a_failed_stage_is_why_training_never_ran(world, status, state):
    jobs = ({"id": "11", "kind": "stage"}, {"id": "12", "kind": "train", "after": "11"})
    world.submitted(*jobs, arguments=("submit", "--chain", "stage,train", "--stage", "supabase --symbols A"))
    (world.path / "jobs" / "11_0_log.out").write_text("error: SUPABASE_URL is not set\n")
    waits = queued("12", state, "DependencyNeverSatisfied", start="N/A", dependency="afterok:11(failed)")
    world.queue(queued("11", "FAILED", "NonZeroExitCode", 2 << 8), waits)
    found = status(world.path)
    assert (found["state"], found["cause"]) == ("dead", "dependency")
    assert "its stage job 11 failed (exit code 2): SUPABASE_URL is not set" in found["why"]
    typed = "hpcrl submit --chain stage,train --stage 'supabase --symbols A'"
    assert found["command"] == f"cd '/home/me/my runs' && {typed}"
    assert ("scancel 12" in found["advice"]) == (state == "PENDING")


def test_a_successor_is_the_job_that_counts(world, status):
    world.attempt(reached=5, end=(75, 5, "SIGUSR2"))
    world.submitted({"id": "12", "kind": "train"}, {"id": "13", "kind": "train", "successor_of": "12"})
    world.queue(queued("12", "FAILED", "NonZeroExitCode", 75 << 8), queued("13", "PENDING", "Dependency",
                dependency="singleton"))  # fmt: skip
    found = status(world.path)
    assert found["state"] == "pending" and found["job"] == "13"


# --- Where Slurm does not answer ------------------------------------------------------------------


@pytest.mark.parametrize("away", ["absent", "down"])
def test_without_slurm_the_heartbeat_decides_and_a_note_says_so(world, status, away):
    attempt = world.attempt(reached=5)
    for name in ("squeue", "sacct"):
        (world.slurm.folder / name).unlink()
        if away == "down":
            world.slurm.says(name, f"{name}: error: Unable to contact slurm controller (connect failure)", 1)
    world.beat(attempt, 20)
    found = status(world.path)
    assert found["state"] == "running" and "heartbeat" in found["why"] and found["notes"]
    world.beat(attempt, 900)
    found = status(world.path)
    assert found["state"] == "dead" and "Slurm cannot be asked" in found["why"]
    assert "its last heartbeat is 15 min old" in found["why"]


# --- Arguments ------------------------------------------------------------------------------------


def test_a_jobs_number_finds_its_run_or_what_slurm_knows(world, status, hpcrl):
    world.attempt(job="12", end=(0, 20, "finished"))
    assert status("12")["run"] == str(world.path)
    other = Attempt.claim(RunDir.create(world.path.parent, "{}"), 1, who_begins({}, "40_3"))
    assert status("40_3")["run"] == status("40")["run"] == str(other.run.path)
    member = RunDir(world.path.parent / "pbt_20260102_030405" / "members" / "07")
    member.path.mkdir(parents=True)
    Attempt.claim(member, 1, who_begins({}, "41_7"))
    assert status("41_7")["run"] == status("41")["run"] == str(member.path)
    assert "pbt_20260102_030405/members/07" in hpcrl("status", "41")[1].splitlines()[0]
    world.queue(queued("99", "FAILED", "NonZeroExitCode", 3 << 8))
    found = status("99")
    assert found["run"] is None and found["state"] == "FAILED" and "exit code 3" in found["why"]
    code, _, err = hpcrl("status", "4711")
    assert code == 2 and "Slurm does not know it" in err and len(err.splitlines()) == 1


def test_the_newest_runs_are_a_table_and_slurm_is_asked_once(world, hpcrl):
    world.attempt(reached=5, end=(1, 5, "cannot write /x: No space left on device"))
    RunDir.create(world.path.parent, "{}")
    (world.path.parent / "dist_run_99990101_000000").mkdir()
    code, out, _ = hpcrl("status")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["run", "state", "epochs", "reward"]
    assert len([line for line in lines if line.startswith("dist_run_")]) == 2
    assert "dead" in out and "No space left" in out and "5 of 20" in out
    assert [call.split()[0] for call in world.slurm.calls] == ["squeue", "sacct"]


def test_the_table_names_a_run_by_its_name_alone(world, hpcrl):
    for folder in (world.path, Path("checkpoints") / world.path.name):
        world.attempt(reached=5, end=(1, 5, f"{folder}/x: No space left on device"))
        _, out, _ = hpcrl("status")
        assert f"  {world.path.name}/x: No space left" in out


def test_the_newest_attempt_says_how_many_epochs_there_are(world, status):
    attempt = world.attempt(reached=5, end=(75, 5, "SIGTERM"))
    value = json.loads((attempt.record.path / "attempt.json").read_text())
    write_json(attempt.record.path / "attempt.json", value | {"live": {"train.epochs": 3000}})
    assert (status(world.path)["epoch"], status(world.path)["epochs"]) == (5, 3000)


def test_odd_names_are_quoted_in_commands(tmp_path, world, status):
    other = World(tmp_path / "it's $HOME, a folder", world.slurm)
    for end in ((0, 20, "finished"), (75, 5, "SIGTERM")):
        other.attempt(job=None, end=end)
        found = status(other.path)
        assert shlex.split(found["command"])[-1] == str(other.path), found["command"]
    gone = tmp_path / "a b" / "12.log"
    world.submitted({"id": "12", "kind": "train"})
    world.slurm.says("squeue", queued("12", "FAILED", "JobLaunchFailure", 4021, output="OUT")
                     .replace(" ", "\x1f").replace("OUT", str(gone)) + "\x1f\n")  # fmt: skip
    assert status(world.path)["advice"] == f"mkdir -p '{gone.parent}'"


# --- Any state of the files -----------------------------------------------------------------------


def test_torn_files_are_named_and_never_a_traceback(world, status):
    world.attempt(reached=5, end=(75, 5, "SIGTERM"))
    second = world.attempt(1, reached=5)
    world.beat(second, 5)
    world.submitted({"id": "12", "kind": "train"})
    world.job("RUNNING", restarts=1)
    files = [path for path in world.path.rglob("*.json*") if path.is_file()]
    assert {path.name for path in files} >= {"config.json", "attempt.json", "end.json", "heartbeat.json"}
    for path in files:
        whole = path.read_bytes()
        for torn in (
            b"",
            whole[: len(whole) // 2],
            b"[]",
            b"\xff\x00",
            b'{"a": {}}',
            b'{"jobs": [1, {"id": 2}]}',
        ):
            path.write_bytes(torn)
            status(world.path)
        path.write_bytes(whole[: len(whole) // 2])
        notes = status(world.path)["notes"]
        assert path.name == "metrics.jsonl" or any(str(path) in note for note in notes), path
        path.write_bytes(whole)


def test_an_attempt_that_was_killed_while_it_began_is_no_obstacle(world, status):
    world.attempt(reached=5, end=(75, 5, "SIGTERM"))
    attempt_folder(world.run, 2).path.mkdir()
    assert status(world.path)["state"] == "stopped"


def test_nothing_is_changed(world, status):
    world.attempt(reached=5, end=(75, 5, "SIGTERM"))

    def look() -> list:
        return sorted((str(path), path.stat().st_mtime_ns) for path in world.path.rglob("*"))

    before = look()
    status(world.path)
    assert look() == before


def test_a_terminal_of_80_columns_is_enough(world):
    world.attempt(reached=5, end=(1, 5, "cannot write /x: No space left on device (0 bytes free)"))
    world.submitted({"id": "12", "kind": "train"})
    shown = on_terminal(world, 80, "status", str(world.path))
    assert "\x1b[" in shown, "colours"
    plain = [
        line
        for line in strip(shown).splitlines()
        if "--resume" not in line and str(world.path)[:60] not in line
    ]
    assert max(len(line.rstrip()) for line in plain) <= 80
    assert f"  hpcrl submit --resume {world.path}" in strip(shown)
    assert "\x1b[" not in strip(shown)


def on_terminal(world: World, columns: int, *arguments: str) -> str:
    master, slave = pty.openpty()
    environ = {"PATH": str(world.slurm.folder), "TERM": "xterm-256color", "COLUMNS": str(columns)}
    child = subprocess.Popen(
        [sys.executable, "-m", "hpcrl", *arguments], stdin=slave, stdout=slave, stderr=slave,
        cwd=world.path.parents[1], env=environ,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert child.wait(60) == 0, shown
    return shown.decode().replace("\r\n", "\n")


def strip(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def test_it_works_where_torch_cannot_be_imported_and_slurm_is_absent(world, tmp_path):
    world.attempt(reached=5, end=(75, 5, "SIGTERM"))
    world.submitted({"id": "12", "kind": "train"})
    code = (
        "import sys; sys.modules.update(torch=None, deepspeed=None, numpy=None, pandas=None, h5py=None)\n"
        "sys.argv = ['hpcrl', *sys.argv[1:]]\n"
        "from hpcrl.cli import main; main()"
    )
    (tmp_path / "nothing").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, "status", str(world.path)],
        env={"PATH": str(tmp_path / "nothing")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "stopped" in done.stdout and "no squeue on PATH" in done.stdout, (
        done.stderr
    )
