"""A rank that found no memory left: read from its end.json as from a log alone, and never started again."""

from __future__ import annotations

import pytest
from launch.slurm_answers import Answers

from hpcrl.config.load import load_config
from hpcrl.launch.again import LOST_A_PEER, go_on
from hpcrl.launch.logs import read_words
from hpcrl.launch.status_cause import advice_for, why_ended
from hpcrl.monitor.memory import answer
from hpcrl.storage.attempts import Attempt, read_attempts, who_begins, write_end
from hpcrl.storage.run_dir import RunDir
from hpcrl.world.memory import GIB, Shortage

SHORTAGE = Shortage(3, "node7", "cuda:1, H200,", True, 2 * GIB, 75 * GIB, 80 * GIB)
HEADLINE = (
    "out of memory on rank 3 (cuda:1, H200, of node7): 2.00 GiB asked for, 75.00 GiB of 80.00 GiB in tensors"
    ", in the update of epoch 7"
)
STARTED = "start 2026-11-23T01:50:42+00:00 job 12 attempt 1 on node1: hpcrl train\n"


@pytest.fixture
def told(tmp_path) -> str:
    return answer(SHORTAGE, "update", 7, load_config(environment={}), tmp_path / "checkpoints" / "dist_run_x")


@pytest.mark.parametrize("prefix", ["error: ", "error: rank 3: "])
def test_a_log_names_it_before_all_that_follows_from_it(tmp_path, told, prefix):
    log = tmp_path / "log"
    log.write_text(
        STARTED + f"error: rank 0: lost another rank, see its message\n{prefix}{told}\n"
        "RuntimeError: CUDA error: out of memory\nsrun: error: node1: task 3: Exited with exit code 1\n"
    )
    words = read_words(log)
    assert words.error == HEADLINE
    cause = why_ended({"code": 1, "reason": LOST_A_PEER}, None, words)
    assert cause.kind == "out_of_memory" and HEADLINE in cause.text
    assert "engine.activation_checkpointing" in advice_for(cause)


def test_its_end_has_the_cause_and_the_first_advice_with_numbers(told):
    cause = why_ended({"code": 1, "reason": told}, None, read_words(None))
    assert (cause.kind, cause.text) == ("out_of_memory", HEADLINE)
    assert advice_for(cause).startswith("--set engine.activation_checkpointing=true: keeps 1 of 4 layers'")


def test_no_job_starts_it_again_though_rank_0_was_killed(tmp_path, monkeypatch, told):
    slurm = Answers(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(slurm.folder))
    run = RunDir.create(tmp_path / "checkpoints", "{}")
    Attempt.claim(run, 2, who_begins({}, "7"))
    (attempt,) = read_attempts(run.path)
    write_end(attempt.path, 1, None, told)  # by rank 3
    slurm.scontrol(JobState="RUNNING")
    line = go_on(137, run.path, {"SLURM_JOB_ID": "7"})
    assert (
        line.startswith(f"job 7 is not started again: {HEADLINE}; once that is mended: ") and "\n" not in line
    )
    assert not [call for call in slurm.calls if "requeue" in call]
