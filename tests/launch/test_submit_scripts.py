"""The scripts of hpcrl submit: equal to golden files, and run by bash with recorders for srun and python.

HPCRL_WRITE_GOLDEN=1 writes the golden files anew.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from launch.job_scripts import FOLDER, ROOT, executable, exported

from hpcrl.config.load import load_config
from hpcrl.config.load_site import site_of
from hpcrl.config.site import KINDS, Site
from hpcrl.launch.plan import Plan
from hpcrl.launch.scripts import EXPORT, STAGE_EXPORT, in_job
from hpcrl.launch.submit import job_script

GOLDEN = ROOT / "tests/golden/submit"
RUN = "dist_run_20260102_030405"
MODULES = {"use": ["/apps/env modules"], "load": ["cuda/12.8", "hpcrl/0.1.0"]}
ODD = 'it\'s a "folder" of $HOME'
ALL = {
    "partition": "gpu", "account": "mygroup", "qos": "long", "constraint": "a100|h100", "gres": "gpu:a100",
    "gpus_per_node": 4, "nodes": 2, "cpus_per_task": 8, "mem": "0", "time": "2-00:00:00", "modules": MODULES,
    "scratch": "/local/$SLURM_JOB_ID", "requeue": "successor", "signal_seconds": 300,
    "env_file": "/home/me/hpcrl.env", "stage": {"partition": "transfer"},
    "sbatch": {"mail-type": "END,FAIL", "exclusive": True, "comment": "it's mine"},
}  # fmt: skip
CPU = {"gres": "none", "gpus_per_node": 2, "cpus_per_task": 1, "mem": "4G", "time": "60"}


def plan_of(site: dict, folder: str | Path = "/home/me/project", **parts: object) -> Plan:
    folder = Path(folder)
    sets = [f"market.path={folder}/data/market.h5", f"checkpoint.dir={folder}/checkpoints"]
    made = {
        "python": Path("/apps/venv/bin/python"),
        "stage": ("supabase", "--symbols", "A,B"),
        "evaluate": (),
    }
    return Plan(
        config=load_config(overrides=sets, environment={}),
        site=site_of({"nodes": 1} | site, "site"),
        chain=("stage", "train", "evaluate"),
        folder=folder,
        **(made | parts),
    )


CASES = {
    "train": ("train", {}, "/home/me/project", None),
    "stage": ("stage", {}, "/home/me/project", None),
    "evaluate": ("evaluate", {}, "/home/me/project", "41"),
    "train_all_keys": ("train", ALL, "/home/me/project", "40"),
    "stage_all_keys": ("stage", ALL, "/home/me/project", None),
    "train_cpu": ("train", CPU, "/home/me/project", None),
    "train_odd_paths": ("train", {"requeue": "never"}, f"/home/me/{ODD}", None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_script_equals_its_golden_file(name):
    kind, site, folder, after = CASES[name]
    script = job_script(plan_of(site, folder), kind, Path(folder) / "checkpoints" / RUN, after)
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("HPCRL_WRITE_GOLDEN"):
        path.write_text(script + "\n")
    assert script + "\n" == path.read_text()


def test_the_environment_that_travels_is_that_of_the_scripts_in_slurm():
    assert list(EXPORT) == exported(ROOT / "slurm/train.sbatch")
    assert list(STAGE_EXPORT) == exported(ROOT / "slurm/stage.sbatch")


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_asks_for_what_the_script_in_slurm_asks_for(kind):
    text = (ROOT / f"slurm/{kind}.sbatch").read_text()
    job = Site().job(kind)
    wanted = {"cpus-per-task": str(job.cpus_per_task), "mem": job.mem, "time": job.time}
    assert dict(re.findall(r"^#SBATCH --(cpus-per-task|mem|time)=(\S+)$", text, re.M)) == wanted
    assert ("--gres=" in text) == (job.gres != "none")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/a b/'c'", "/a b/'c'"),
        ("/local/$JOB/x y", "/local/7 8/x y"),
        ("${JOB}/`id`$(id)", "7 8/`id`$(id)"),
        ("~/x;y", "/home/me/x;y"),
    ],
)
def test_only_variables_are_read_in_a_path(path, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    done = subprocess.run(
        ["bash", "-c", f"printf %s {in_job(path)}"], env={"JOB": "7 8"}, capture_output=True, text=True
    )
    assert done.stdout == value
    done = subprocess.run(
        ["bash", "-c", f"echo {in_job('/x/$UNSET')}; echo on"], capture_output=True, text=True
    )
    assert done.returncode and not done.stdout, "an unset variable must not shorten a path"


class Script:
    """A generated script whose srun and python are recorders, in a folder with odd characters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.records = folder / "records"
        self.records.mkdir()
        recorder = executable(folder / "commands" / "srun")
        self.python = executable(self.folder / "venv/bin/python", recorder.read_text())
        self.commands = recorder.parent

    def run(
        self, kind: str, site: dict, init_files: str = "/etc/profile.d/", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """``init_files``: where the machine's own modules are looked for."""
        plan = plan_of(site, self.folder, python=self.python)
        path = self.folder / "job.sh"
        path.write_text(job_script(plan, kind, self.folder / RUN).replace("/etc/profile.d/", init_files))
        base = {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "RECORDS": str(self.records),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_EXPORT_ENV": "PATH",
            "HPCRL_VERIFY": "never",
        }
        return subprocess.run(
            ["bash", path], cwd=self.folder, env=base | environ, capture_output=True, text=True, timeout=60
        )

    def called(self, name: str) -> list[str] | None:
        path = self.records / f"{name}.called"
        return path.read_text().splitlines() if path.exists() else None

    def environ(self, name: str) -> dict[str, str]:
        entries = (self.records / f"{name}.environ").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)


@pytest.fixture
def script(tmp_path) -> Script:
    return Script(tmp_path)


def test_srun_gets_whole_paths_and_the_ranks_their_environment(script, tmp_path):
    scratch = {"scratch": f"{tmp_path}/it's/$SLURM_JOB_ID", "requeue": "successor"}
    secrets = {"SUPABASE_URL": "canary", "PGPASSWORD": "canary", "DATABASE_URL": "canary", "GPU_COUNT": "3"}
    done = script.run("train", scratch, SLURM_RESTART_COUNT="2", **secrets)
    assert done.returncode == 0, done.stderr
    jobs = f"{script.folder / RUN}/jobs"
    called = script.called("srun")
    assert called[1:3] == ["--output", f"{jobs}/%j_%t_log.out"]
    assert called[3:6] == ["--open-mode=append", "--kill-on-bad-exit=1", "--cpus-per-task=2"]
    assert called[6:] == [str(script.python), "-u", "-m", "hpcrl.launch.task", jobs]
    found = script.environ("srun")
    assert found["PATH"].startswith(f"{script.python.parent}:")
    assert found["SLURM_TMPDIR"] == f"{tmp_path}/it's/7" and found["OMP_NUM_THREADS"] == "2"
    assert found["HPCRL_RUN"] == f"{script.folder / RUN}" and found["HPCRL_REQUEUE"] == "successor"
    assert not {"SLURM_EXPORT_ENV", *secrets} & found.keys() and "canary" not in str(found)
    assert " job 7 attempt 3 on node1: hpcrl train\n" in done.stdout
    assert script.called("python") is None


def test_a_training_job_is_verified_first_and_ends_where_that_fails(script):
    run = f"{script.folder / RUN}"
    wanted = ["-m", "hpcrl", "verify", "--quick", "--config", f"{run}/jobs/config.yaml", "--run", run]
    done = script.run("train", {}, HPCRL_VERIFY="", python_code="1")
    assert script.called("python") == wanted and script.called("srun") is None
    assert done.returncode == 1 and re.search(r"^end \S+ exit code 1$", done.stdout, re.M)
    assert script.run("train", {}, HPCRL_VERIFY="").returncode == 0 and script.called("srun")


def test_where_the_verification_hangs_training_is_tried(script):
    done = script.run("train", {}, HPCRL_VERIFY="", python_code="124")
    assert done.returncode == 0 and "gave no answer in 10 minutes" in done.stdout and script.called("srun")


@pytest.mark.parametrize("kind", ["stage", "evaluate"])
def test_other_jobs_are_not_verified(script, kind):
    assert script.run(kind, {}, HPCRL_VERIFY="").returncode == 0
    assert script.called("python") is None and script.called("srun")


@pytest.mark.parametrize("environ", [{"SLURM_RESTART_COUNT": "1"}, {"HPCRL_VERIFY": "never"}])
def test_a_start_after_the_first_is_not_verified_nor_where_the_user_says_so(script, environ):
    assert script.run("train", {}, **{"HPCRL_VERIFY": ""} | environ).returncode == 0
    assert script.called("python") is None and script.called("srun")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 70, 137])
def test_sruns_exit_code_is_the_jobs_and_a_crash_or_stop_is_handed_on(script, code):
    done = script.run("train", {}, srun_code=str(code), python_code="9")
    assert done.returncode == code and f"exit code {code}\n" in done.stdout
    handed_on = script.called("python")
    assert handed_on == (["-m", "hpcrl.launch.again", str(code)] if code in (70, 75, 137) else None)


@pytest.mark.parametrize("kind", ["stage", "evaluate"])
def test_jobs_of_one_process_are_not_started_again_by_the_script(script, kind):
    done = script.run(kind, {"env_file": "/home/me/my keys"}, srun_code="137")
    assert done.returncode == 137 and script.called("python") is None
    assert ("HPCRL_ENV_FILE" in script.environ("srun")) == (kind == "stage")


INIT = """module() {{ printf '%s\\n' "$*" >> '{log}'; [ "$*" != "load broken" ]; }}"""


def test_modules_are_loaded_where_there_are_some(script, tmp_path):
    log, init = tmp_path / "modules.log", tmp_path / "init it's.sh"
    init.write_text(INIT.format(log=log))
    modules = {"init": str(init), "use": [str(tmp_path / "a b")], "load": ["cuda/12.8", "hpcrl/0.1.0"]}
    assert script.run("train", {"modules": modules}).returncode == 0
    assert log.read_text().splitlines() == [f"use {tmp_path}/a b", "load cuda/12.8", "load hpcrl/0.1.0"]


def test_a_module_that_cannot_be_loaded_ends_the_job(script, tmp_path):
    init = tmp_path / "init.sh"
    init.write_text(INIT.format(log=tmp_path / "log"))
    done = script.run("train", {"modules": {"init": str(init), "load": ["broken"]}})
    assert done.returncode == 2 and "error: module broken cannot be loaded" in done.stderr
    assert script.called("srun") is None


def test_without_a_module_system_the_job_says_so_and_goes_on(script):
    done = script.run("train", {"modules": {"load": ["hpcrl/0.1.0"]}}, init_files="/nowhere/")
    assert done.returncode == 0
    assert re.search("no module system: going on with .*/venv/bin/python", done.stdout)
    assert script.called("srun") is not None
