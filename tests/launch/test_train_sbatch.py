"""slurm/train.sbatch run by bash, with recorders for srun and hpcrl; on a real cluster: tests/cluster/."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from launch.job_scripts import ROOT, Repository, executable, exported, late_directives

SCRIPT = ROOT / "slurm/train.sbatch"
SECRETS = {
    "SUPABASE_URL": "https://canary",
    "SUPABASE_SERVICE_ROLE_KEY": "canary",
    "PGPASSWORD": "canary",
    "PGHOST": "canary",
    "DATABASE_URL": "postgresql://me:canary@db/market",
}


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "clone")


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / "else where"
    folder.mkdir()
    return folder


def test_no_secret_travels_in_the_jobs_environment():
    names = exported(SCRIPT)
    assert {"PATH", "HOME", "HPCRL_BIN", "HPCRL_ROOT", "HPCRL_REQUEUE"} <= set(names)
    assert not any(re.search(r"KEY|PASS|SECRET|TOKEN|DATABASE|SUPABASE|^PG|^ALL$|=", name) for name in names)
    assert names == exported(ROOT / "slurm/evaluate.sbatch")


def test_directives_stand_before_the_first_command():
    assert not late_directives(SCRIPT)


def test_the_ranks_get_no_secret_even_with_export_all(repository, elsewhere):
    done = repository.run("train.sbatch", cwd=elsewhere, srun_code="9", SLURM_EXPORT_ENV="PATH", **SECRETS)
    assert done.returncode == 9
    for name in ("srun", "python"):
        environ = repository.environ(name)
        assert not SECRETS.keys() & environ.keys() and "canary" not in str(environ)
        assert "SLURM_EXPORT_ENV" not in environ
    assert "canary" not in done.stdout + done.stderr


def test_srun_starts_hpcrl_train_with_the_repositorys_config(repository, elsewhere):
    done = repository.run("train.sbatch", cwd=elsewhere, SLURM_CPUS_PER_TASK="3", HPCRL_REQUEUE="never")
    assert done.returncode == 0, done.stderr
    called = repository.called("srun")
    hpcrl, config = repository.bin / "hpcrl", repository.path / "yaml/train_8gpu.yaml"
    assert called == [
        "--cpus-per-task=3", "--kill-on-bad-exit=1", str(hpcrl), "train", "--config", str(config),
    ]  # fmt: skip
    environ = repository.environ("srun")
    assert environ["OMP_NUM_THREADS"] == "3" and environ["HPCRL_REQUEUE"] == "never"
    assert environ["HPCRL_ROOT"] == str(repository.path) and environ["PWD"] == str(elsewhere)


@pytest.mark.parametrize("option", ["--config", "--config=x", "--resume", "--init", "--run", "--run=x"])
def test_an_own_config_or_run_takes_its_place(repository, elsewhere, option):
    arguments = (option, "my run.yaml", "--set", "a='b'")
    assert repository.run("train.sbatch", *arguments, cwd=elsewhere).returncode == 0
    assert repository.called("srun")[4:] == list(arguments)


def test_other_options_come_behind_the_default_config(repository, elsewhere):
    arguments = ("--set", 'policy.positions=[-1, 0, "1"]')
    assert repository.run("train.sbatch", *arguments, cwd=elsewhere).returncode == 0
    config = str(repository.path / "yaml/train_8gpu.yaml")
    assert repository.called("srun")[4:] == ["--config", config, *arguments]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_an_end_that_is_final_keeps_its_code(repository, elsewhere, code):
    done = repository.run("train.sbatch", cwd=elsewhere, srun_code=str(code))
    assert done.returncode == code and f"exit code {code}\n" in done.stdout
    assert repository.called("python") is None, "nobody asks for the job to run again"


@pytest.mark.parametrize("code", [3, 70, 75, 137])
def test_a_crash_a_hang_or_a_stop_asks_whether_to_run_again_and_keeps_its_code(repository, elsewhere, code):
    # The answer's own exit code, here that of a module that is missing, changes nothing.
    done = repository.run("train.sbatch", cwd=elsewhere, srun_code=str(code), python_code="1")
    assert done.returncode == code and f"exit code {code}\n" in done.stdout
    config = str(repository.path / "yaml/train_8gpu.yaml")
    assert repository.called("python") == ["-m", "hpcrl.launch.again", str(code), "--config", config]


def test_it_is_verified_first_by_the_same_options_and_ends_where_that_fails(repository, elsewhere):
    arguments = ("--resume", "my run", "--set", "a='b'")
    done = repository.run("train.sbatch", *arguments, cwd=elsewhere, hpcrl_code="1", **SECRETS)
    assert repository.called("hpcrl") == ["verify", "--quick", *arguments]
    assert not SECRETS.keys() & repository.environ("hpcrl").keys()
    assert repository.called("srun") is None and repository.called("python") is None
    assert done.returncode == 1 and re.search(r"^end \S+ exit code 1$", done.stdout, re.M)


def test_where_the_verification_hangs_training_is_tried(repository, elsewhere):
    done = repository.run("train.sbatch", cwd=elsewhere, hpcrl_code="124")
    assert (
        done.returncode == 0 and "gave no answer in 10 minutes" in done.stdout and repository.called("srun")
    )


@pytest.mark.parametrize("environ", [{"SLURM_RESTART_COUNT": "1"}, {"HPCRL_VERIFY": "never"}])
def test_a_start_after_the_first_is_not_verified_nor_where_the_user_says_so(repository, elsewhere, environ):
    assert repository.run("train.sbatch", cwd=elsewhere, hpcrl_code="1", **environ).returncode == 0
    assert repository.called("hpcrl") is None and repository.called("srun")


def test_start_and_end_are_stamped_with_job_attempt_and_nodes(repository, elsewhere):
    done = repository.run("train.sbatch", "--run", "r", cwd=elsewhere, SLURM_RESTART_COUNT="2")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S+"
    assert re.search(
        rf"^start {stamp} job 7 attempt 3 on node\[1-2\]: hpcrl train --run r$", done.stdout, re.M
    )
    assert re.search(rf"^end {stamp} exit code 0$", done.stdout, re.M)


def test_scancels_term_does_not_end_the_script_before_the_ranks_have_saved(repository, elsewhere):
    started, saved = repository.records / "started", repository.records / "saved"
    text = f"#!/bin/sh\ntouch '{started}'\nuntil [ -e '{saved}' ]; do sleep 0.05; done\nexit 75\n"
    executable(repository.commands / "srun", text)
    script = repository.start("train.sbatch", cwd=elsewhere)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    script.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(0.3)
    saved.touch()
    out, _ = script.communicate(timeout=60)
    assert script.returncode == 75 and "exit code 75\n" in out


class TestWhereTheRepositoryIs:
    def test_as_the_jobs_record_says_arguments_behind_it(self, repository, elsewhere):
        command = f"{repository.path}/slurm/train.sbatch --set a=/slurm/train.sbatch b"
        assert repository.run("train.sbatch", cwd=elsewhere, command=command).returncode == 0
        assert repository.environ("srun")["HPCRL_ROOT"] == str(repository.path)

    def test_the_record_may_be_relative_to_the_folder_of_submission(self, repository, elsewhere):
        command = f"../clone/{repository.path.name}/slurm/train.sbatch"
        # --chdir=/ starts the job in another one.
        done = repository.run("train.sbatch", cwd=Path("/"), command=command, SLURM_SUBMIT_DIR=str(elsewhere))
        assert done.returncode == 0, done.stderr
        assert repository.environ("srun")["HPCRL_ROOT"] == str(repository.path)

    def test_without_a_record_it_is_the_folder_of_submission(self, repository):
        done = repository.run("train.sbatch", cwd=repository.path, command="(null)")
        assert done.returncode == 0, done.stderr
        assert repository.environ("srun")["HPCRL_ROOT"] == str(repository.path)

    def test_hpcrl_root_wins(self, repository, elsewhere, tmp_path):
        other = Repository(tmp_path / "other")
        done = repository.run("train.sbatch", cwd=elsewhere, HPCRL_ROOT=str(other.path))
        assert done.returncode == 0, done.stderr
        assert repository.called("srun")[2] == str(other.bin / "hpcrl")

    @pytest.mark.parametrize("told", ["", "/nowhere"])
    def test_nowhere_is_one_line(self, repository, elsewhere, told):
        done = repository.run("train.sbatch", cwd=elsewhere, command="(null)", HPCRL_ROOT=told)
        assert done.returncode == 2 and repository.called("srun") is None
        place = told or elsewhere
        message = f"{place} is not the repository of hpcrl; call sbatch there, or set HPCRL_ROOT"
        assert done.stderr == f"error: {message}\n"

    def test_hpcrl_that_is_missing_is_one_line(self, repository, elsewhere):
        done = repository.run("train.sbatch", cwd=elsewhere, HPCRL_BIN="/nowhere")
        assert done.returncode == 2 and done.stderr.startswith("error: no hpcrl in /nowhere ")
        assert done.stderr.count("\n") == 1 and "make setup" in done.stderr
