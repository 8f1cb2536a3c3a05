"""What happens to a job while it trains, one fault of each class: it goes on or ends as designed.

Whatever happens, the finished run is that of an uninterrupted one, bit for bit. The slow kinds, and the full
counts, are in ``test_faults_soak``.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import runs
from trial import PATIENCE, RANKS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
EPOCHS = 30


def test_a_cancelled_job_saves_stays_cancelled_and_can_be_resumed(trial, slurm, reference):
    slurm.configure(KillWait="30")  # Slurm's default, which saving must fit into
    job = trial()
    slurm.cancel(job.job)
    assert job.wait() == "CANCELLED"
    (attempt,) = job.attempts
    assert attempt.end["code"] == 75 and attempt.end["epoch"] == len(job.metrics) >= 3, job.log
    assert "is not started again: it was cancelled" in job.log
    said = job.status()
    assert (said["state"], said["cause"]) == ("stopped", "cancelled"), said["why"]
    job.assert_checkpoints_good()
    job.job = job.submit("--resume", str(job.run))
    assert job.wait() == "COMPLETED", job.log
    job.assert_nothing_lost()
    job.assert_whole(reference)


def test_the_time_limits_warning_saves_and_requeues_and_nothing_is_lost(trial, slurm, reference):
    job = trial()
    slurm.cancel(job.job, "--signal=USR2")
    assert job.wait("COMPLETED") and "is put back into the queue" in job.log
    assert [(a.trigger, a.end["code"]) for a in job.attempts] == [("user", 75), ("requeue", 0)]
    assert job.ended() == ["its time limit came near; all was saved", "finished"]
    job.assert_nothing_lost()
    job.assert_whole(reference)


@pytest.mark.soak
def test_a_requeued_job_goes_on_with_its_own_run(trial, slurm, reference):
    job = trial()
    slurm.run("scontrol", "requeue", job.job)
    assert job.wait_attempt(2).restart_count == 1
    assert job.wait("COMPLETED")
    assert job.ended() == ["it was put back into the queue; all was saved", "finished"]
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)


def test_a_preempted_job_leaves_in_its_grace_time_and_goes_on(trial, reference):
    job = trial("--partition=lo")
    job.preempt()
    assert job.wait("COMPLETED")
    assert job.attempts[0].end["reason"] == "SIGTERM", job.log
    assert job.ended() == ["it was preempted; all was saved", "finished"]
    job.assert_nothing_lost()
    job.assert_whole(reference)


def test_after_a_power_failure_the_job_goes_on_elsewhere(trial, slurm, reference):
    job = trial()
    first = job.node
    slurm.kill_node(first)
    assert job.wait("COMPLETED") and job.node != first
    assert [a.end is None for a in job.attempts] == [True, False]
    assert job.ended() == [f"its node failed (node{first})", "finished"]
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)


def test_a_lost_node_that_comes_back_writes_nothing_into_the_new_history(trial, slurm, reference):
    """Its network goes, and with it what its ranks were writing; both return while another attempt trains."""
    job = trial()
    first, lost = job.node, job.ranks()
    assert len(lost) == RANKS
    slurm.cut(first)
    job.kill(signal.SIGSTOP)
    try:
        second = job.wait_attempt(2)
        assert second.base_epoch >= 2 and job.node != first  # the third may not have been saved yet
    finally:
        for pid in lost.values():
            runs.os.kill(pid, signal.SIGCONT)
    assert job.wait("COMPLETED")
    slurm.poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in lost.values()), PATIENCE)
    stale = job.attempts[0]
    assert stale.end["code"] == 1 and "superseded by attempt 2" in stale.end["reason"], job.log
    assert job.log.count("is put back into the queue") == 0, "it must not requeue the newer one"
    assert job.ended() == [f"its node failed (node{first}); it gave way to attempt 2", "finished"]
    job.assert_whole(reference)


def test_a_rank_that_is_killed_ends_the_others_and_the_job_starts_again(trial, reference):
    job = trial()
    job.kill(signal.SIGKILL, 1)
    assert job.wait("COMPLETED")
    assert re.search(r"exit code (137|143)", job.log) and len(job.attempts) == 2  # the highest of the ranks
    assert re.match(r"rank 1 on node\d: SIGKILL", job.ended()[0]), job.ended()
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)
