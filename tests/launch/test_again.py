"""Which jobs start again after which end; the commands of Slurm answer as a real one did."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launch.slurm_answers import Answers

from hpcrl.checkpoint.provenance import run_record
from hpcrl.config.load import load_config
from hpcrl.launch import again, submit
from hpcrl.launch.again import LOST_A_PEER, MADE_ROOM, go_on, main, resume_command, run_of
from hpcrl.storage.attempts import Attempt, who_begins
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

JOB = {"SLURM_JOB_ID": "12"}
CRASH, STOP = 139, 75
SHOW = "scontrol show job 12"
SCRIPT = Path(again.__file__).parents[2] / "slurm" / "train.sbatch"
SBATCH = f"sbatch --nodes=1 --ntasks-per-node=2 --gres=gpu:2 {SCRIPT}"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Answers:
    monkeypatch.delenv("HPCRL_ROOT", raising=False)
    answers = Answers(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(answers.folder))
    monkeypatch.setattr(again, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(again, "_PAUSE_SECONDS", 0.1)
    answers.scontrol()
    return answers


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that job 12 has begun."""
    path = RunDir.create(tmp_path / "checkpoints", "{}").path
    attempt(path, JOB)
    return path


def attempt(run: Path, environ: dict[str, str], *end: object) -> Attempt:
    job = environ["SLURM_JOB_ID"]
    found = Attempt.claim(RunDir(run), 2, who_begins(environ, job))
    found.take_over(None)
    if end:
        found.end(*end)
    return found


def submitted(run: Path, *jobs: dict) -> None:
    record = {
        "format": 1,
        "folder": "/home/me",
        "arguments": ["submit", "--config", "x.yaml"],
        "jobs": list(jobs),
    }
    (run / "submission.json").write_text(json.dumps(record))


def job(id: str, successor_of: str | None = None, kind: str = "train") -> dict:
    return {"id": id, "kind": kind, "after": None, "successor_of": successor_of}


def requeued(slurm: Answers) -> bool:
    return any(call.startswith("scontrol requeue") for call in slurm.calls)


def test_nothing_happens_outside_slurm_and_after_a_final_end(slurm, run):
    assert go_on(STOP, run, {}) == ""
    assert [go_on(code, run, JOB) for code in (0, 1, 2)] == ["", "", ""]
    assert slurm.calls == []


@pytest.mark.parametrize("code", [STOP, CRASH, 70, 3])
def test_a_running_job_is_requeued_after_a_stop_a_crash_and_a_hang(slurm, run, code):
    line = go_on(code, run, JOB)
    assert slurm.calls == ["scontrol show job 12", "scontrol requeue 12"]
    assert line.startswith("job 12 is put back into the queue (") and "\n" not in line
    assert {STOP: "all saved", CRASH: "SIGSEGV", 70: "hung", 3: "exit code 3"}[code] in line


def test_a_task_of_an_array_requeues_itself_alone(slurm, run):
    slurm.scontrol(job="12")
    environ = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    go_on(STOP, None, environ)
    assert slurm.calls == ["scontrol show job 12_3", "scontrol requeue 12_3"]


# What a job sees of itself while it ends, on a real Slurm 22.05.
@pytest.mark.parametrize(
    ("fields", "again_", "words"),
    [
        ({"state": "COMPLETING", "end": "2026-11-23T01:34:06"}, False, "it was cancelled"),
        ({"state": "CANCELLED", "end": "2026-11-23T01:34:06"}, False, "it was cancelled"),
        ({"state": "COMPLETING", "reason": "TimeLimit"}, True, "put back"),
        ({"state": "TIMEOUT", "reason": "TimeLimit"}, True, "put back"),
        ({"state": "COMPLETING", "restarts": 1}, False, "in the queue again"),
        ({"state": "PENDING", "reason": "BeginTime", "restarts": 1}, False, "in the queue again"),
        ({"state": "RUNNING", "preempted": "2026-11-23T01:34:06"}, True, "(preempted; "),
        (
            {"state": "COMPLETING", "end": "2026-11-23T01:34:19", "preempted": "2026-11-23T01:34:19"},
            True,
            "(preempted; ",
        ),
        (  # cancelled in the grace that preemption gave it
            {"state": "COMPLETING", "end": "2026-11-23T01:34:19", "preempted": "2026-11-23T01:34:06"},
            False,
            "it was cancelled",
        ),
        ({"state": "FAILED", "reason": "NonZeroExitCode"}, False, "Slurm says FAILED"),
    ],
)
def test_only_a_job_that_runs_timed_out_or_was_preempted_starts_again(slurm, run, fields, again_, words):
    slurm.scontrol(**fields)
    assert words in go_on(STOP, run, JOB)
    assert requeued(slurm) == again_


def test_never_means_never_and_names_the_command(slurm, run):
    line = go_on(STOP, run, JOB | {"HPCRL_REQUEUE": "never"})
    assert not requeued(slurm) and f"{SBATCH} --resume {run}" in line
    line = go_on(STOP, run, JOB | {"HPCRL_REQUEUE": "nevr"})
    assert not requeued(slurm) and "'nevr' is none of requeue, successor, never" in line


def test_a_superseded_attempt_never_requeues(slurm, run):
    attempt(run, {"SLURM_JOB_ID": "13"})
    line = go_on(CRASH, run, JOB)
    assert slurm.calls == [] and "attempt 1" in line and "superseded by attempt 2" in line


def test_an_older_start_of_the_same_job_leaves_it_to_the_newer_one(slurm, run):
    attempt(run, JOB | {"SLURM_RESTART_COUNT": "1"})
    assert "superseded" in go_on(CRASH, run, JOB) and slurm.calls == []


def test_a_failure_that_rank_0_tells_is_no_crash_but_one_that_it_follows_is(slurm, run):
    attempt(run, JOB | {"SLURM_RESTART_COUNT": "1"}, 1, None, "cannot write x: No space left on device")
    line = go_on(137, run, JOB | {"SLURM_RESTART_COUNT": "1"})
    assert slurm.calls == [] and "No space left on device" in line and "--resume" in line
    attempt(run, JOB | {"SLURM_RESTART_COUNT": "2"}, 1, None, LOST_A_PEER)
    slurm.scontrol(restarts=2)
    assert "put back" in go_on(137, run, JOB | {"SLURM_RESTART_COUNT": "2"})


@pytest.mark.parametrize("reason", ["SIGUSR2", MADE_ROOM])
def test_a_clean_end_is_no_failure_and_goes_on_if_slurm_asked_for_it(slurm, run, reason):
    attempt(run, JOB | {"SLURM_RESTART_COUNT": "1"}, 75, 3, reason)
    slurm.scontrol(restarts=1)
    assert "put back" in go_on(STOP, run, JOB | {"SLURM_RESTART_COUNT": "1"})
    attempt(run, JOB | {"SLURM_RESTART_COUNT": "2"}, 75, 3, "SIGINT")
    slurm.scontrol(restarts=2)
    assert "SIGINT stopped it; to go on: sbatch" in go_on(STOP, run, JOB | {"SLURM_RESTART_COUNT": "2"})


def test_a_stop_is_no_vain_start_however_often_it_comes_before_training(slurm, tmp_path):
    path = RunDir.create(tmp_path / "checkpoints", "{}").path
    slurm.scontrol(restarts=2)
    for known in (path, None):
        assert "put back" in go_on(STOP, known, JOB | {"SLURM_RESTART_COUNT": "2"})


def test_three_starts_that_crash_before_training_are_the_last(slurm, tmp_path):
    path = RunDir.create(tmp_path / "checkpoints", "{}").path
    for restarts, more in ((0, True), (1, True), (2, False)):
        slurm.scontrol(restarts=restarts)
        line = go_on(CRASH, path, JOB | {"SLURM_RESTART_COUNT": str(restarts)})
        assert ("put back" in line) == more, line
    assert "3 starts in a row crashed before training began" in line
    attempt(path, JOB | {"SLURM_RESTART_COUNT": "1"})
    slurm.scontrol(restarts=3)
    assert "put back" in go_on(CRASH, path, JOB | {"SLURM_RESTART_COUNT": "3"}), "one of them had begun"


def test_so_are_three_that_crash_before_there_is_a_run(slurm):
    for restarts, more in ((0, True), (1, True), (2, False)):
        slurm.scontrol(restarts=restarts)
        line = go_on(CRASH, None, JOB | {"SLURM_RESTART_COUNT": str(restarts)})
        assert ("put back" in line) == more, line
    assert "3 starts in a row crashed before training began" in line


def test_successors_that_crash_before_training_are_counted_too(slurm, tmp_path, monkeypatch):
    path = RunDir.create(tmp_path / "checkpoints", "{}").path
    submitted(path, job("10"), job("11", "10"), job("12", "11"))
    monkeypatch.setattr(submit, "submit_again", lambda *_: pytest.fail("a fourth one"))
    assert "3 starts in a row" in go_on(CRASH, path, JOB | {"HPCRL_REQUEUE": "successor"})


def test_a_site_that_refuses_gets_a_successor_for_a_submitted_run(slurm, run, monkeypatch):
    slurm.scontrol(refuses="Requested operation is presently disabled for job 12")
    submitted(run, job("12"))
    monkeypatch.setattr(submit, "submit_again", lambda path, environ: "13" if path == run else "?")
    line = go_on(STOP, run, JOB)
    assert "presently disabled" in line and "job 13 is submitted to go on after job 12" in line


def test_a_site_that_refuses_gets_the_command_for_any_other_run(slurm, run):
    slurm.scontrol(refuses="Requested operation is presently disabled for job 12")
    line = go_on(STOP, run, JOB)
    assert "presently disabled" in line and f"{SBATCH} --resume {run}" in line


def test_a_successor_is_submitted_where_that_is_the_policy_and_once(slurm, run, monkeypatch):
    submitted(run, job("12"))
    environ = JOB | {"HPCRL_REQUEUE": "successor"}
    monkeypatch.setattr(submit, "submit_again", lambda *_: "13")
    assert "job 13 is submitted to go on after job 12" in go_on(STOP, run, environ)
    assert not requeued(slurm)
    submitted(run, job("12"), job("13", "12"))
    monkeypatch.setattr(submit, "submit_again", lambda *_: pytest.fail("a second one"))
    assert "its successor, job 13, goes on" in go_on(143, run, environ)


def test_a_successor_that_sbatch_refuses_leaves_the_command(slurm, run, monkeypatch):
    def refuse(*_: object) -> str:
        raise HpcrlError("sbatch refused the train job: Invalid account")

    submitted(run, job("12"))
    monkeypatch.setattr(submit, "submit_again", refuse)
    line = go_on(STOP, run, JOB | {"HPCRL_REQUEUE": "successor"})
    assert "Invalid account" in line and f"hpcrl submit --resume {run}" in line


def test_a_controller_that_is_down_for_a_moment_is_waited_for(slurm, run):
    down = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    slurm.program("scontrol", f"echo '{down}' >&2; cp {slurm.folder}/back {slurm.folder}/scontrol; exit 1")
    (slurm.folder / "back").write_text("#!/bin/sh\necho JobId=12\necho '   JobState=RUNNING Restarts=0'\n")
    (slurm.folder / "back").chmod(0o755)
    assert "put back" in go_on(STOP, run, JOB)


# What scontrol says of job 12 once the first requeue, whose answer is lost, has been carried out.
LOST = """
requeue() {{
    sed -i 's/JobState=RUNNING/JobState=PENDING/; s/Restarts=0/Restarts=1/' {folder}/shown.txt
    [ -e {folder}/tried ] && {{ echo 'Job is pending execution for job 12' >&2; exit 1; }}
    echo 'scontrol: error: Socket timed out on send/recv operation' >&2; touch {folder}/tried; exit 1
}}
case $1 in requeue) {does} ;; show) cat {folder}/shown.txt ;; esac
"""


# The second: what is carried out only after the state was looked at once more.
@pytest.mark.parametrize("does", ["requeue", "if [ -e {folder}/tried ]; then requeue; else {late}; fi"])
def test_a_requeue_whose_answer_was_lost_is_not_done_twice_nor_given_a_successor(
    slurm, run, monkeypatch, does
):
    late = f"touch {slurm.folder}/tried; echo 'scontrol: error: Connection refused' >&2; exit 1"
    slurm.program(
        "scontrol", LOST.format(folder=slurm.folder, does=does.format(folder=slurm.folder, late=late))
    )
    submitted(run, job("12"))
    monkeypatch.setattr(submit, "submit_again", lambda *_: pytest.fail("a second job for one run"))
    assert "in the queue again" in go_on(STOP, run, JOB)
    assert slurm.calls.count("scontrol requeue 12") == (1 if does == "requeue" else 2)


def test_a_requeue_that_gets_no_answer_at_all_is_no_refusal(slurm, run, monkeypatch):
    slurm.scontrol(refuses="Unable to contact slurm controller (connect failure)")
    submitted(run, job("12"))
    monkeypatch.setattr(submit, "submit_again", lambda *_: pytest.fail("the requeue may come yet"))
    line = go_on(STOP, run, JOB)
    assert "could not be started again: Slurm does not answer" in line and slurm.calls.count(SHOW) >= 2


def test_a_controller_that_stays_away_and_missing_programs_end_in_the_command(slurm, run):
    slurm.says("scontrol", "scontrol: error: Unable to contact slurm controller (connect failure)", 1)
    line = go_on(STOP, run, JOB)
    assert "does not answer" in line and f"--resume {run}" in line
    (slurm.folder / "scontrol").unlink()
    assert "no scontrol on PATH" in go_on(STOP, run, JOB)


def test_broken_files_of_the_run_stop_nothing(slurm, run):
    (run / "submission.json").write_text('{"jobs": [1, {"id"')
    (run / "attempts" / "1" / "attempt.json").write_text("[]")
    assert "put back" in go_on(STOP, run, JOB)


def test_the_run_is_known_by_environment_options_or_job(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_of([], {"HPCRL_RUN": "/a/run"}) == Path("/a/run")
    assert run_of(["--set", "x=1", "--resume", "/b/run"], JOB) == Path("/b/run")
    assert run_of(["--resume", "/a/run", "--resume=/b/run"], JOB) == Path("/b/run"), "as hpcrl train reads it"
    assert run_of(["--run=/c/run"], JOB) == Path("/c/run")
    assert run_of([], JOB) == Path("checkpoints") / run.name
    assert run_of([], {"SLURM_JOB_ID": "99"}) is None
    run.parent.rename(tmp_path / "elsewhere")
    assert run_of(["--set", "checkpoint.dir=elsewhere"], JOB) == Path("elsewhere") / run.name
    assert run_of(["--config", "missing.yaml"], JOB) is None


def donor(folder: Path, runs: Path) -> Path:
    """A run whose config keeps runs in ``runs``."""
    config = load_config(overrides=[f"checkpoint.dir={runs}"], environment={})
    record = run_record(config, {"sha256": "0" * 64}, None)
    return RunDir.create(folder, json.dumps(record)).path


def test_a_run_that_began_from_anothers_weights_lies_where_that_ones_config_says(tmp_path, run, monkeypatch):
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    init = ["--init", str(donor(tmp_path / "old", run.parent))]
    assert run_of(init, JOB) == run
    assert run_of([init[0], f"{init[1]}/checkpoint_epoch_3.pt"], JOB) == run
    assert run_of([*init, "--set", "checkpoint.dir=elsewhere"], JOB) is None


def test_a_yaml_file_that_is_gone_leaves_the_usual_folder(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_of(["--config", "gone.yaml"], JOB) == Path("checkpoints") / run.name


def test_the_script_ends_well_whatever_it_is_given(slurm, run, tmp_path, monkeypatch, capsys):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    main([])
    main(["x"])
    assert "usage:" in capsys.readouterr().err
    main(["139", "--resume", str(run)])
    assert "put back" in capsys.readouterr().out


def test_what_rank_0_could_not_do_the_script_does_and_says_no_more(slurm, run, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)

    def said(policy: str = "requeue", **fields: object) -> str:
        monkeypatch.setenv("HPCRL_REQUEUE", policy)
        slurm.scontrol(**fields)
        main(["75", "--resume", str(run)])
        return capsys.readouterr().out

    assert said().startswith("job 12 is put back into the queue") and requeued(slurm)
    (slurm.folder / "calls").unlink()
    # What rank 0 has done, or has said already.
    assert said(state="COMPLETING", restarts=1) == said(state="PENDING", restarts=1) == ""
    assert said(state="COMPLETING") == said("never") == ""
    assert set(slurm.calls) == {SHOW}
    submitted(run, job("12"), job("13", "12"))
    assert said("successor") == ""


def test_it_runs_where_torch_cannot_be_imported(slurm, tmp_path, run):
    code = (
        "import sys; sys.modules.update(torch=None, deepspeed=None, numpy=None)\n"
        "from hpcrl.launch.again import main; main(sys.argv[1:])"
    )
    # That the run was found shows in the third start, which is not one in vain.
    environ = JOB | {"PATH": str(slurm.folder), "SLURM_RESTART_COUNT": "2"}
    slurm.scontrol(restarts=2)
    for option in (["--resume", str(run)], ["--init", str(donor(tmp_path / "old", run.parent))]):
        done = subprocess.run(
            [sys.executable, "-c", code, "139", *option],
            env=environ, cwd=tmp_path / "bin", capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and "put back" in done.stdout, done.stderr + done.stdout


def test_the_command_that_goes_on_fits_the_way_the_run_was_begun(run, tmp_path):
    bare = RunDir.create(tmp_path / "other", "{}").path
    assert resume_command(bare, None) == f"hpcrl train --resume {bare}"
    assert resume_command(bare, "12") == f"sbatch {SCRIPT} --resume {bare}"
    assert resume_command(None) == f"sbatch {SCRIPT} --resume RUN"
    assert resume_command(run) == f"{SBATCH} --resume {run}"
    Attempt.claim(RunDir(run), 4, who_begins({}, None))
    assert resume_command(run) == f"hpcrl train --ranks 4 --resume {run}"
    submitted(run, job("12"), job("13", kind="evaluate"))
    assert resume_command(run) == f"hpcrl submit --chain train,evaluate --resume {run}"
    submitted(run)
    assert resume_command(run) == f"hpcrl submit --local --resume {run}"
    Attempt.claim(RunDir(run), 2, who_begins({}, "12"))
    assert resume_command(run) == f"{SBATCH} --resume {run}", "a local run that a job went on with"


@pytest.mark.parametrize(
    ("ranks", "nodes", "gpus", "options"),
    [
        (8, None, None, ""),
        (8, 1, 8, ""),
        (8, 2, 4, "--nodes=2 --ntasks-per-node=4 --gres=gpu:4 "),
        (8, 1, None, "--nodes=1 --ntasks-per-node=8 --gres=none "),
        (4, 1, 4, "--nodes=1 --ntasks-per-node=4 --gres=gpu:4 "),
        (16, None, None, "--nodes=2 --ntasks-per-node=8 --gres=gpu:8 "),
        (3, None, None, "--nodes=1 --ntasks-per-node=3 --gres=gpu:3 "),
    ],
)
def test_sbatch_asks_for_what_the_run_had_unless_the_script_does(run, ranks, nodes, gpus, options):
    who = who_begins(JOB, "12") | {"nodes": nodes, "gpus_per_node": gpus}
    Attempt.claim(RunDir(run), ranks, who)
    assert resume_command(run) == f"sbatch {options}{SCRIPT} --resume {run}"


def test_the_command_works_from_any_folder_and_with_any_name(tmp_path, monkeypatch):
    path = RunDir.create(tmp_path / "it's $HOME, a folder", "{}").path
    attempt(path, JOB)
    monkeypatch.chdir(path.parent)
    assert shlex.split(resume_command(Path(path.name)))[-2:] == ["--resume", str(path)]
    root = tmp_path / "my install"
    (root / "slurm").mkdir(parents=True)
    (root / "slurm" / "train.sbatch").touch()
    monkeypatch.setenv("HPCRL_ROOT", str(root))
    assert shlex.split(resume_command(path))[-3] == str(root / "slurm" / "train.sbatch")
