"""A run stops by itself before its job's time limit, and only then."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest

from hpcrl.types import RunFailed
from hpcrl.world.deadline import Deadline, end_time
from hpcrl.world.slurm import SlurmDown, SlurmRefused, parse_jobs

# As Slurm 22.05 prints it; the end is put in by the tests.
SHOWN = """\
JobId=1 JobName=e.sbatch
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:00 TimeLimit={limit} TimeMin=N/A
   SubmitTime=2026-11-23T01:24:01 EligibleTime=2026-11-23T01:24:01
   StartTime=2026-11-23T01:24:02 EndTime={end} Deadline=N/A
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-23T01:24:02 Scheduler=Backfill
   Command=/data/e.sbatch
"""
START = 1_795_397_042.0


class Slurm:
    """The controller: what it says the end is, or that it does not answer; how often it was asked."""

    def __init__(self, end: float | Exception) -> None:
        self.end, self.asked = end, 0

    def show(self, job: str, timeout: float) -> dict[str, str]:
        assert job == "1" and timeout <= 10
        self.asked += 1
        if isinstance(self.end, Exception):
            raise self.end
        endless = math.isinf(self.end)
        end = "Unknown" if endless else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.end))
        (job_shown,) = parse_jobs(SHOWN.format(limit="UNLIMITED" if endless else "01:00:00", end=end))
        return job_shown


class Run:
    """A deadline under a clock that the test moves; ``at`` seconds after the job's start: is it due?"""

    def __init__(self, slurm: Slurm, **environ: str) -> None:
        self.time = START
        self.deadline = Deadline({"SLURM_JOB_ID": "1"} | environ, now=lambda: self.time, ask=slurm.show)

    def at(self, seconds: float) -> bool:
        self.time = START + seconds
        return self.deadline.due()


def test_outside_slurm_it_never_comes_and_nobody_is_asked() -> None:
    slurm = Slurm(START)
    deadline = Deadline({"SLURM_JOB_END_TIME": "0"}, ask=slurm.show)
    assert not deadline.due() and slurm.asked == 0


def test_it_comes_while_an_epoch_and_a_save_still_fit_by_what_they_took() -> None:
    slurm = Slurm(START + 3600)
    run = Run(slurm)
    assert not run.at(0) and not run.at(3589) and run.at(3591)  # nothing measured yet: 10 s
    run = Run(slurm)
    run.deadline.note(epoch_seconds=100)
    run.deadline.note(epoch_seconds=60, save_seconds=20)
    run.deadline.note(save_seconds=5)
    # (100 + 20) x 1.5 + 10 = 190 s
    assert not run.at(3409) and run.at(3411)
    assert run.deadline.left == 189


def test_slurm_is_asked_once_for_the_end_and_again_only_before_a_yes() -> None:
    slurm = Slurm(START + 3600)
    run = Run(slurm)
    assert not any(run.at(seconds) for seconds in range(3500)) and slurm.asked == 1
    assert run.at(3595) and run.at(3596) and slurm.asked == 2


def test_the_variable_of_later_slurms_spares_the_first_question() -> None:
    slurm = Slurm(START + 7200)
    run = Run(slurm, SLURM_JOB_END_TIME=str(int(START) + 3600))
    assert not run.at(0) and not run.at(3000) and slurm.asked == 0
    assert not run.at(3595) and slurm.asked == 1  # the limit had been extended
    assert not run.at(7100) and slurm.asked == 1
    assert run.at(7195) and slurm.asked == 2


def test_a_limit_that_is_extended_while_it_waits_is_noticed_within_half_a_minute() -> None:
    slurm = Slurm(START + 3600)
    run = Run(slurm)
    run.deadline.note(epoch_seconds=100)
    assert run.at(3500)
    slurm.end += 3600
    assert run.at(3520) and not run.at(3531)


@pytest.mark.parametrize("error", [SlurmDown("no answer"), SlurmRefused("Invalid job id specified")])
def test_without_an_answer_what_was_known_counts(error: RunFailed) -> None:
    slurm = Slurm(START + 3600)
    run = Run(slurm)
    assert not run.at(0)
    slurm.end = error
    assert not run.at(3000) and run.at(3595)
    run = Run(slurm)
    assert not any(run.at(seconds) for seconds in range(7200))
    assert slurm.asked <= 2 + 8, "a controller that is down is asked ever more seldom"
    slurm.end = START + 7300
    assert not run.at(7210) and run.at(9500) and run.deadline.left < 0


def test_a_controller_that_answers_again_is_asked_as_often_as_before() -> None:
    slurm = Slurm(START + 3600)
    run = Run(slurm)
    assert not run.at(0)
    slurm.end, end = SlurmDown("no answer"), START + 7200
    assert all(run.at(seconds) for seconds in (3595, 3700, 3900))
    slurm.end = end
    assert not run.at(4500) and run.at(7195)
    slurm.end = end + 3600
    assert run.at(7210) and not run.at(7226)


def test_a_job_without_a_limit_has_no_deadline() -> None:
    slurm = Slurm(math.inf)
    run = Run(slurm)
    assert not any(run.at(day * 86400) for day in range(1000)) and slurm.asked == 1


@pytest.mark.parametrize("end", ["Unknown", "None", "N/A", ""])
def test_words_for_no_end_are_no_end(end: str) -> None:
    assert end_time({"EndTime": end}) == math.inf == end_time({})


def test_local_time_is_that_of_the_machine_and_the_hour_that_comes_twice_its_first(monkeypatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert end_time({"EndTime": "2026-07-01T12:00:00"}) == 1_782_900_000
        assert end_time({"EndTime": "2026-10-25T02:30:00"}) == 1_792_888_200  # 00:30 UTC, summer time
    finally:
        monkeypatch.undo()
        time.tzset()


def test_it_needs_no_torch() -> None:
    code = "import sys, hpcrl.world.deadline as d; d.Deadline({}).due(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
