"""States of jobs by squeue and sacct, from lines that a real Slurm (22.05) printed, and from either alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from launch.slurm_answers import Answers

from hpcrl.launch.accounting import read_jobs

GOLDEN = Path(__file__).parents[1] / "golden" / "slurm"
QUEUE = (GOLDEN / "squeue.txt").read_text().replace("^", "\x1f")
BOOKS = (GOLDEN / "sacct.txt").read_text()
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Answers:
    answers = Answers(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(answers.folder))
    answers.says("squeue", QUEUE)
    answers.says("sacct", BOOKS)
    return answers


def test_all_jobs_are_asked_for_at_once(slurm):
    books = read_jobs(["3", "4", "6_1", "3"])
    assert len(slurm.calls) == 2 and all("--jobs=3,4,6_1" in call for call in slurm.calls)
    assert books.notes == () and books.reachable
    assert read_jobs([]).jobs == {} and len(slurm.calls) == 2


def test_each_end_is_read_for_what_it_was(slurm):
    jobs = read_jobs(["1"]).jobs
    assert jobs["3"].state == "CANCELLED" and jobs["3"].cancelled_by == "root" and jobs["3"].over
    assert (jobs["4"].state, jobs["4"].exit_code, jobs["4"].name) == ("FAILED", 137, "a | b")
    assert (jobs["5"].exit_code, jobs["5"].signal, jobs["5"].output) == (0, 53, "/home/gone/5.log")
    assert jobs["8"].state == "PENDING" and jobs["8"].start is None and not jobs["8"].over
    assert jobs["8"].reason == "DependencyNeverSatisfied" and jobs["8"].dependency == "afterok:7(failed)"
    assert jobs["10"].state == "TIMEOUT" and jobs["10"].end == datetime(2026, 11, 23, 1, 35, 2)
    assert jobs["2"].state == "RUNNING" and jobs["2"].end is None and jobs["2"].reason == ""
    assert jobs["6_1"].id == "6_1"


def test_accounting_keeps_each_start_of_a_requeued_job_in_order(slurm):
    job = read_jobs(["13"]).jobs["13"]
    assert job.restarts == 2 and [start.state for start in job.starts] == [
        "REQUEUED",
        "REQUEUED",
        "CANCELLED",
    ]
    assert job.starts[0].start == datetime(2026, 11, 23, 1, 49, 31) and job.cancelled_by == "user 4294967294"


def test_a_job_that_the_controller_has_forgotten_is_known_by_accounting(slurm):
    slurm.says("squeue", "slurm_load_jobs error: Invalid job id specified", 1)
    books = read_jobs(["16"])
    job = books.jobs["16"]
    assert books.notes == () and (job.state, job.exit_code, job.nodes) == ("FAILED", 70, "node1")
    assert books.jobs["4"].exit_code == 137, "sacct writes 137 as 9:0"
    assert books.jobs["9"].state == "CANCELLED" and books.jobs["9"].starts == ()


def test_a_cluster_without_accounting_says_so_once(slurm):
    slurm.says("sacct", "Slurm accounting storage is disabled", 1)
    books = read_jobs(["3", "4"])
    assert books.jobs["3"].state == "CANCELLED" and books.jobs["3"].cancelled_by is None
    assert len(books.notes) == 1 and "keeps no accounting" in books.notes[0] and books.reachable


def test_a_controller_that_is_down_leaves_accounting(slurm):
    slurm.says("squeue", DOWN, 1)
    books = read_jobs(["3"])
    assert books.jobs["3"].cancelled_by == "root" and books.reachable
    assert len(books.notes) == 1 and "Slurm does not answer" in books.notes[0]
    slurm.says("sacct", "sacct: error: Problem talking to the database: Connection refused", 1)
    books = read_jobs(["3"])
    assert books.jobs == {} and not books.reachable and len(books.notes) == 2


def test_without_slurm_one_note_says_so(slurm):
    for name in ("squeue", "sacct"):
        (slurm.folder / name).unlink()
    books = read_jobs(["3"])
    assert books.jobs == {} and not books.reachable
    assert books.notes == ("no squeue on PATH: this machine has no Slurm, or its module is not loaded",)


def test_lines_of_another_form_are_passed_over(slurm):
    slurm.says("squeue", "slurm: welcome to the cluster\n\x1f\x1f\n")
    slurm.says("sacct", "a|b\n\n")
    assert read_jobs(["3"]).jobs == {}
