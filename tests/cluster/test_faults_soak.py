"""All kinds of faults, and the full counts: what ``test_faults`` has no time for.

As there, the finished run is that of an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import random
import shlex
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
from servers.slurm import poll
from trial import EPOCHS, LONG, PATIENCE, RANKS, Trial, furnish

from hpcrl.storage.run_dir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.soak]
# Updates for minutes: the first epoch does not end.
ENDLESS = ("learn.ppo_epochs=100", "env.envs_per_gpu=256", "learn.batch_size=32")
UNWARNED = "--signal=CONT@1"  # of the time limit: CONT does nothing


def starts(job: Trial) -> list[tuple[str, int | None]]:
    """(who started it, how it ended) of each attempt."""
    return [(a.trigger, a.end and a.end["code"]) for a in job.attempts]


LIMIT = "its time limit came near; all was saved"
PREEMPTED = "it was preempted; all was saved"


# Preemption


def test_a_preempted_job_that_gets_its_own_signal_first_saves_and_goes_on(trial, slurm, reference):
    slurm.configure(SlurmctldParameters="preempt_send_user_signal")
    job = trial("--partition=lo")
    job.preempt()
    assert job.wait("COMPLETED")
    assert starts(job) == [("user", 75), ("requeue", 0)], job.log
    assert job.attempts[0].end["reason"] == "SIGUSR2"
    assert job.ended() == [PREEMPTED, "finished"]
    job.assert_nothing_lost()
    job.assert_whole(reference)


def test_where_preemption_cancels_the_job_requeues_itself_in_its_grace_time(trial, reference):
    job = trial("--partition=lost")
    job.preempt()
    assert job.wait("COMPLETED"), job.log
    assert starts(job) == [("user", 75), ("requeue", 0)], job.log
    assert job.ended() == [PREEMPTED, "finished"]
    job.assert_nothing_lost()
    job.assert_whole(reference)


def test_a_run_resumed_after_three_preemptions_equals_the_uninterrupted_one(trial, reference):
    job = trial("--partition=lo")
    for number in (1, 2, 3):
        job.wait_epoch((job.wait_attempt(number).base_epoch or 0) + 3)
        job.preempt()
    assert job.wait("COMPLETED")
    assert starts(job) == [("user", 75), ("requeue", 75), ("requeue", 75), ("requeue", 0)], job.log
    assert job.ended() == [PREEMPTED, PREEMPTED, PREEMPTED, "finished"]
    job.assert_nothing_lost()
    job.assert_whole(reference)


# The time limit, of one minute


def test_a_run_of_several_time_limits_stops_in_time_by_its_own_clock(trial, slurm, long_reference):
    job = trial("--partition=short", "--time=1", UNWARNED, epochs=2 * LONG)
    job.wait_attempt(3)
    limit(job, minutes=30)  # the clock is to notice that, too
    assert job.wait("COMPLETED", timeout=900)
    assert starts(job) == [("user", 75), ("requeue", 75), ("requeue", 0)], job.log
    assert {a.end["reason"] for a in job.attempts[:2]} == {"SIGUSR2"}, "the deadline's word"
    assert job.ended() == [LIMIT, LIMIT, "finished"]
    first, second, third = (start["Elapsed"] for start in slurm.sacct(job.job))
    assert max(first, second) <= "00:01:00" < third
    job.assert_nothing_lost()
    job.assert_whole(long_reference)


def test_a_run_that_ran_into_its_time_limit_saves_in_killwait_and_goes_on(trial, slurm, long_reference):
    slurm.configure(KillWait="30")
    job = trial(UNWARNED, epochs=2 * LONG)  # CONT may come long before TERM
    job.kill(signal.SIGSTOP)  # until Slurm's CONT, which its TERM follows
    limit(job, minutes=1)
    slurm.wait(job.job, "PENDING", PATIENCE)
    limit(job, minutes=30)
    assert job.wait("COMPLETED", timeout=600)
    assert starts(job) == [("user", 75), ("requeue", 0)], job.log
    assert slurm.sacct(job.job)[0]["Elapsed"] >= "00:01:00"
    assert job.ended() == ["its time limit was reached; all was saved", "finished"]
    job.assert_nothing_lost()
    job.assert_whole(long_reference)


def test_an_epoch_that_outlasts_the_time_limit_ends_as_timeout_and_says_so(trial):
    job = trial(UNWARNED, seen=0, sets=ENDLESS)
    job.wait_attempt(1)
    limit(job, minutes=1)
    assert job.wait() == "TIMEOUT"
    assert starts(job) == [("user", None)]
    said = job.status()
    assert said["cause"] == "time_limit" and "limit was reached before it could save" in said["why"], said
    job.assert_checkpoints_good()


def limit(job: Trial, minutes: int) -> None:
    """Counted from the job's start."""
    job.slurm.run("scontrol", "update", f"jobid={job.job}", f"timelimit={minutes}")


# Nodes and daemons


def test_a_node_that_is_set_down_loses_the_job_to_another(trial, slurm, reference):
    job = trial()
    first = job.node
    slurm.run("scontrol", "update", f"nodename=node{first}", "state=down", "reason=test")
    assert job.wait("COMPLETED") and job.node != first
    assert [trigger for trigger, _ in starts(job)] == ["user", "requeue"], job.log
    assert job.ended()[0].startswith(f"its node failed (node{first})"), job.ended()
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)


def test_ranks_that_train_on_in_a_lost_network_stop_once_others_have_taken_over(trial, slurm, long_reference):
    job = trial(epochs=2 * LONG)
    first, lost = job.node, job.ranks()
    slurm.cut(first)
    assert job.wait_attempt(2) and job.node != first
    slurm.poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in lost.values()), PATIENCE)
    stale = job.attempts[0]
    assert stale.end["code"] == 1 and "superseded by attempt 2" in stale.end["reason"], job.log
    assert job.wait("COMPLETED", timeout=600)
    assert starts(job) == [("user", 1), ("requeue", 0)], job.log
    assert job.ended() == [f"its node failed (node{first}); it gave way to attempt 2", "finished"]
    assert "is put back into the queue" not in job.log
    job.assert_whole(long_reference)


def test_a_node_of_two_that_fails_takes_the_run_to_others(trial, slurm, reference):
    job = trial("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1")
    assert slurm.show(job.job)["NodeList"] == "node[1-2]"
    slurm.kill_node(2)
    assert job.wait("COMPLETED") and slurm.show(job.job)["NodeList"] in ("node[1,3]", "node[3-4]")
    assert [trigger for trigger, _ in starts(job)] == ["user", "requeue"], job.log
    assert job.ended() == ["its node failed (node[1-2])", "finished"]
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_controller_that_is_started_anew_disturbs_no_run(trial, slurm, reference, how):
    job = trial()
    slurm.stop_controller(how)
    slurm.poll(lambda: len(job.metrics) >= 10, PATIENCE)
    slurm.start_controller()
    assert job.wait("COMPLETED") and starts(job) == [("user", 0)], job.log
    job.assert_whole(reference)


def test_a_stop_while_the_controller_is_away_waits_for_it_and_requeues(trial, slurm, reference):
    job = trial()
    slurm.stop_controller(signal.SIGKILL)
    job.kill(signal.SIGUSR2)
    slurm.poll(lambda: "all saved" in job.log, PATIENCE)
    time.sleep(5)  # the first requests fail
    slurm.start_controller()
    assert job.wait("COMPLETED") and starts(job) == [("user", 75), ("requeue", 0)], job.log
    assert job.ended() == [LIMIT, "finished"]
    job.assert_nothing_lost()
    job.assert_whole(reference)


def test_a_missing_folder_of_the_log_is_what_status_tells(slurm, tmp_path, market_file):
    job = Trial(slurm, furnish(tmp_path, market_file), 1, "--output=nowhere/%j.log")
    assert job.wait() == "FAILED" and slurm.show(job.job)["ExitCode"] == "0:53"
    assert not job.attempts and f"folder {tmp_path}/nowhere does not exist" in job.status()["why"]


# Ranks


def test_too_little_memory_ends_after_some_starts_and_says_so(slurm, tmp_path, market_file):
    job = Trial(slurm, furnish(tmp_path, market_file), 1, "--mem=200M")
    assert job.wait() == "FAILED"
    assert slurm.show(job.job)["Restarts"] == "2", job.log
    assert "3 starts in a row crashed before training began" in job.log
    assert "memory" in job.status()["why"], job.status()


def test_a_rank_that_ends_itself_ends_the_others_and_the_job_starts_again(trial, tmp_path, reference):
    job = trial(HPCRL_BIN=str(deserting(tmp_path)))
    (tmp_path / "leave").touch()
    assert job.wait("COMPLETED")
    assert job.ended()[0].endswith(": Exited with exit code 3") and "rank 1 on node" in job.ended()[0]
    assert [trigger for trigger, _ in starts(job)] == ["user", "requeue"], job.log
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)


def deserting(place: Path) -> Path:
    """A folder with an hpcrl whose rank 1 exits with 3, in the job's first start, once ``leave`` is there."""
    return programs(
        place,
        """import os, threading, time

def leave():
    while not os.path.exists("leave"):
        time.sleep(0.05)
    os._exit(3)

if os.environ["SLURM_PROCID"] == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    threading.Thread(target=leave, daemon=True).start()
""",
    )


def programs(place: Path, first: str) -> Path:
    """A folder with an hpcrl that runs ``first``, for HPCRL_BIN."""
    folder = place / "bin"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "hpcrl").write_text(f"#!{sys.executable}\n{first}\nfrom hpcrl.__main__ import main\nmain()\n")
    for program in folder.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def test_a_rank_that_hangs_is_noticed_by_the_others_and_the_job_starts_again(trial, reference):
    job = trial(sets=["monitor.hang_minutes=1"])
    job.kill(signal.SIGSTOP, 1)
    assert job.wait("COMPLETED")
    assert "rank 0 on node1 hangs: nothing happened for 1 min" in job.log
    assert "rank 0 on node1 hangs: nothing happened for 1 min" in job.ended()[0]
    assert [trigger for trigger, _ in starts(job)] == ["user", "requeue"], job.log
    job.assert_nothing_lost(at_most=1)
    job.assert_whole(reference)


def test_three_attempts_without_a_new_checkpoint_are_the_last(slurm, tmp_path, market_file):
    job = Trial(slurm, furnish(tmp_path, market_file), 1, sets=ENDLESS)
    first = RunDir(job.wait_attempt(1).path)
    poll(first.manifest_epochs, 60, lambda: f"the start is not saved: {job.log}")
    for number in (1, 2, 3):
        job.wait_attempt(number)
        job.kill(signal.SIGKILL, 1)
    assert job.wait() == "FAILED", job.log
    assert [(a.ready, trigger) for a, (trigger, _) in zip(job.attempts, starts(job), strict=True)] == [
        (True, "user"), (True, "requeue"), (True, "requeue"), (False, "requeue"),
    ]  # fmt: skip
    said = "3 attempts in a row began after epoch 0 and ended without a new checkpoint; not tried again"
    assert said in job.log and said in job.status()["why"] and job.status()["cause"] == "fruitless"
    job.assert_checkpoints_good()


# Failures, which end the job


def test_weights_that_are_no_numbers_end_the_run_and_status_says_so(slurm, tmp_path, market_file):
    poison = """import hpcrl.train as train
from hpcrl.learn.ppo import update

def poisoned(engine, rollout, scale, config, epoch, world):
    found = update(engine, rollout, scale, config, epoch, world)
    if epoch == 3:
        next(engine.module.parameters()).data.fill_(float("nan"))
    return found

train.update = poisoned
"""
    job = Trial(slurm, furnish(tmp_path, market_file), EPOCHS, HPCRL_BIN=str(programs(tmp_path, poison)))
    assert job.wait() == "FAILED" and len(job.attempts) == 1, job.log
    said = job.status()
    assert (said["state"], said["cause"], said["epoch"]) == ("dead", "failed", 3), said
    assert "the weights are not finite" in said["why"]


def test_a_disk_that_fills_while_training_is_named_and_the_job_not_started_again(
    slurm, tmp_path, market_file
):
    """Four megabytes, seen by the node and the head."""
    place = furnish(tmp_path, market_file)
    disk = place / "checkpoints"
    disk.mkdir()
    slurm.on_head("mount", "-t", "tmpfs", "-o", "size=4m", "none", disk)
    slurm.restart_node(1)
    slurm.wait_nodes()
    try:
        job = Trial(slurm, place, 100_000, "--nodelist=node1")
        poll(lambda: "Epoch 3:" in job.log, PATIENCE, lambda: job.log)
        slurm.on_head("sh", "-c", f"head -c 8M /dev/zero > {disk}/others; true")
        assert job.wait() == "FAILED", job.log
        words = (sys.executable, "-m", "hpcrl", "status", job.job)
        said = " ".join(slurm.on_head("sh", "-c", f"cd {place} && {shlex.join(words)}").stdout.split())
        assert "dead dist_run" in said and "No space left on device" in said, (said, job.log)
        assert "--resume" in said
    finally:
        slurm.kill_node(1)
        slurm.on_head("umount", disk)


# Counts


def test_20_kills_of_all_ranks_at_random_moments_cost_one_epoch_each_at_most(
    slurm, tmp_path, market_file, long_reference, record_property
):
    """The rolling interval is one epoch here."""
    chance, kills = random.Random(6), 20
    job = Trial(slurm, furnish(tmp_path, market_file), LONG)
    lost = []
    for number in range(1, kills + 1):
        base = job.wait_attempt(number).base_epoch or 0
        if number % 3 == 0:
            job.wait_epoch(base + 2)  # three in a row without a new checkpoint would be the last
        time.sleep(chance.uniform(0, 2))  # the fault's moment, nothing is waited for
        assert len(job.ranks()) == RANKS, job.log
        job.kill(signal.SIGKILL)
        seen = len(job.metrics)
        lost.append(seen - (job.wait_attempt(number + 1).base_epoch or 0))
    assert job.wait("COMPLETED", timeout=600), job.log
    job.assert_whole(long_reference)
    record_property("kills of all ranks in a row", kills)
    record_property("kills of all ranks in a row, attempts", len(job.attempts))
    record_property("kills of all ranks in a row, epochs trained twice", sum(lost))
    assert set(lost) <= {0, 1}


def test_30_random_preemptions_in_a_row_lose_and_repeat_no_epoch(
    slurm, tmp_path, market_file, long_reference, record_property
):
    """Half of them in the first moments of a start, which mostly does not train yet."""
    chance, preemptions = random.Random(5), 30
    job = Trial(slurm, furnish(tmp_path, market_file), LONG, "--partition=lo")
    lost = 0
    for k in range(preemptions):
        slurm.wait_start(job.job, k, PATIENCE)
        if trains := chance.random() < 0.5:
            job.wait_epoch(len(job.metrics) + 1)
        time.sleep(chance.uniform(0, 3 if trains else 12))  # the fault's moment, nothing is waited for
        assert slurm.state(job.job) == "RUNNING", f"{k} preemptions: {job.log}"
        seen = len(job.metrics)
        job.preempt()
        slurm.wait_start(job.job, k + 1, PATIENCE)
        lost += max(0, seen - len(job.metrics))  # what a user has seen in metrics.jsonl stays
    assert job.wait("COMPLETED", timeout=600), job.log
    job.assert_whole(long_reference)
    job.assert_nothing_lost()
    epochs = [line["epoch"] for line in job.metrics]
    trained = {line["time/attempt"] for line in job.metrics}
    record_property("preemptions in a row", preemptions)
    record_property("preemptions in a row, starts that trained", len(trained))
    record_property("preemptions in a row, epochs lost", lost)
    record_property("preemptions in a row, epochs duplicated", len(epochs) - len(set(epochs)))
    assert lost == 0 and preemptions > len(trained) > 5
