"""slurm/evaluate.sbatch run by bash, with a recorder for hpcrl; on a real cluster: tests/cluster/."""

from __future__ import annotations

import pytest
from launch.job_scripts import ROOT, Repository, late_directives

SCRIPT = ROOT / "slurm/evaluate.sbatch"


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "clone")


def test_directives_stand_before_the_first_command():
    assert not late_directives(SCRIPT)


def test_hpcrl_evaluate_gets_the_arguments_and_no_secret(repository, tmp_path):
    arguments = ("a run/dist_run_1", "--split", "validation", "--data", "it's.h5")
    done = repository.run(
        "evaluate.sbatch", *arguments, cwd=tmp_path, PGPASSWORD="canary", SUPABASE_URL="canary"
    )
    assert done.returncode == 0, done.stderr
    assert repository.called("hpcrl") == ["evaluate", *arguments] and repository.called("srun") is None
    assert "canary" not in str(repository.environ("hpcrl")) + done.stdout + done.stderr


def test_the_exit_code_is_hpcrls(repository, tmp_path):
    done = repository.run("evaluate.sbatch", "run", cwd=tmp_path, hpcrl_code="1", SLURM_RESTART_COUNT="1")
    assert done.returncode == 1 and "exit code 1\n" in done.stdout and "job 7 attempt 2 on" in done.stdout


def test_without_a_repository_it_is_one_line(repository, tmp_path):
    done = repository.run("evaluate.sbatch", "run", cwd=tmp_path, command="(null)")
    assert done.returncode == 2 and repository.called("hpcrl") is None
    assert (
        done.stderr
        == f"error: {tmp_path} is not the repository of hpcrl; call sbatch there, or set HPCRL_ROOT\n"
    )
