"""What is read of Slurm's commands: text that a real Slurm (22.05) printed, and each way of not answering."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.slurm import (
    NoSlurm,
    SlurmDown,
    SlurmRefused,
    job_id,
    parse_jobs,
    requeue,
    restart_count,
    run_slurm,
    show_job,
)

# Name, comment, folder, script and arguments all look like fields of Slurm's own.
ODD = r"""JobId=20 JobName=my job JobState=CANCELLED
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901741 Nice=0 Account=root QOS=normal
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:01 TimeLimit=UNLIMITED TimeMin=N/A
   SubmitTime=2026-11-23T01:59:09 EligibleTime=2026-11-23T01:59:09
   AccrueTime=2026-11-23T01:59:09
   StartTime=2026-11-23T01:59:09 EndTime=Unknown Deadline=N/A
   PreemptEligibleTime=2026-11-23T01:59:09 PreemptTime=None
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-23T01:59:09 Scheduler=Main
   Partition=gpu AllocNode:Sid=head:23616
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList= SchedNodeList=node1
   NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   TRES=cpu=1,mem=100M,node=1,billing=1
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   Command=/home/a dir/X=1 JobState=FAILED/odd.sh Requeue=0 a=b
   WorkDir=/home/a dir/X=1 JobState=FAILED
   Comment=two words Reason=x
   JobState=FAILED
   StdErr=/home/a dir/X=1 JobState=FAILED/log 20.out
   StdIn=/dev/null
   StdOut=/home/a dir/X=1 JobState=FAILED/log 20.out
   Power=


"""
ARRAY = """JobId=21 ArrayJobId=21 ArrayTaskId=4-5%1 ArrayTaskThrottle=1 JobName=odd.sh
   JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null)

JobId=22 ArrayJobId=21 ArrayTaskId=3 ArrayTaskThrottle=1 JobName=odd.sh
   JobState=RUNNING Reason=None Dependency=(null)

"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """``program("scontrol", script)``: the only programs on PATH, beside the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def test_values_with_blanks_and_equals_signs_stay_whole_and_change_no_other_key():
    (job,) = parse_jobs(ODD)
    assert job["JobId"] == "20" and job["JobName"] == "my job JobState=CANCELLED"
    assert job["JobState"] == "RUNNING" and job["Reason"] == "None" and job["Requeue"] == "1"
    assert job["Command"] == "/home/a dir/X=1 JobState=FAILED/odd.sh Requeue=0 a=b"
    assert job["Comment"] == "two words Reason=x"
    assert job["StdOut"] == "/home/a dir/X=1 JobState=FAILED/log 20.out"
    assert job["NodeList"] == "" and job["SchedNodeList"] == "node1"
    assert job["TRES"] == "cpu=1,mem=100M,node=1,billing=1" and job["AllocNode:Sid"] == "head:23616"


def test_an_array_is_several_jobs():
    assert [job["ArrayTaskId"] for job in parse_jobs(ARRAY)] == ["4-5%1", "3"]
    assert parse_jobs("") == [] and parse_jobs("No jobs in the system\n") == []


def test_a_task_of_an_array_is_named_by_array_and_task():
    assert job_id({}) is None and job_id({"SLURM_JOB_ID": "12"}) == "12"
    last = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_id(last) == "12_3"
    assert restart_count({}) == 0 and restart_count({"SLURM_RESTART_COUNT": "2"}) == 2


def test_a_job_is_shown_and_requeued_by_scontrol(program, tmp_path):
    (tmp_path / "job").write_text(ODD)
    program("scontrol", f'echo "$@" >> {tmp_path}/calls; [ $1 = requeue ] || cat {tmp_path}/job')
    assert show_job("20")["JobState"] == "RUNNING"
    requeue("12_3")
    assert (tmp_path / "calls").read_text().splitlines() == ["show job 20", "requeue 12_3"]


def test_a_users_own_formats_do_not_change_the_answers(program, monkeypatch):
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    program("squeue", "env")
    text = run_slurm(["squeue"])
    assert "SQUEUE_FORMAT" not in text and "SLURM_TIME_FORMAT" not in text and "SLURM_CONF=" in text


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("slurm_load_jobs error: Invalid job id specified", SlurmRefused, "Invalid job id specified"),
        ("Requested operation is presently disabled for job 2", SlurmRefused, "presently disabled"),
        (
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            SlurmDown,
            "does not answer",
        ),
        (
            "sacct: error: Problem talking to the database: Connection refused",
            SlurmDown,
            "Connection refused",
        ),
        (
            "scontrol: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
            "scontrol: error: fetch_config: DNS SRV lookup failed\n"
            "scontrol: fatal: Could not establish a configuration source",
            SlurmDown,
            "no slurm.conf",
        ),
        (
            "scontrol: error: s_p_parse_file: unable to status file /nonexistent: No such file or directory, "
            "retrying in 1sec up to 60sec\nscontrol: fatal: Unable to process configuration file",
            SlurmDown,
            "finds no cluster: .*/nonexistent",
        ),
        (
            "scontrol: fatal: cannot stat /nonexistent",
            SlurmDown,
            "finds no cluster: cannot stat /nonexistent",
        ),
    ],
)
def test_each_no_is_one_line_of_its_kind(program, said, kind, words):
    program("scontrol", f"cat >&2 <<'EOF'\n{said}\nEOF\nexit 1")
    with pytest.raises(kind, match=words) as caught:
        show_job("20")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind
    assert caught.value.exit_code == (RunFailed.exit_code if kind is SlurmDown else HpcrlError.exit_code)


def test_a_machine_without_slurm_and_one_that_hangs_are_told_apart(program):
    with pytest.raises(NoSlurm, match="no scontrol on PATH"):
        show_job("20")
    program("scontrol", "exec sleep 60")
    with pytest.raises(SlurmDown, match=r"no answer within 0\.2 s"):
        show_job("20", timeout=0.2)


def test_a_conf_that_is_not_there_is_named_though_the_command_still_tries(program):
    said = "error: s_p_parse_file: cannot stat file /nonexistent: No such file, retrying in 1sec up to 60sec"
    program("scontrol", f"echo 'scontrol: {said}' >&2; exec sleep 60")
    with pytest.raises(SlurmDown, match="scontrol finds no cluster: s_p_parse_file: cannot stat file /none"):
        show_job("20", timeout=0.5)


def test_a_job_of_which_nothing_is_said_is_refused(program):
    program("scontrol", "true")
    with pytest.raises(SlurmRefused, match="nothing about job 20"):
        show_job("20")
