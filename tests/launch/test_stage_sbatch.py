"""slurm/stage.sbatch run by bash as a job runs it: the fallback without a database, and honest exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm/stage.sbatch"
SMALL = ("--symbols", "A,B", "--calendar", "24/7", "--no-coverage")


@pytest.fixture
def job(tmp_path):
    """``job(arguments...)``: the script in tmp_path with what --export lets through, and ``environ``."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        base = {name: os.environ[name] for name in exported() & os.environ.keys()}
        # A package that is not installed is found all the same; HOME without anybody's pgpass.
        base |= {"HPCRL_BIN": str(Path(sys.executable).parent), "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}
        return subprocess.run(
            ["bash", SCRIPT, *arguments],
            cwd=tmp_path, env=base | environ, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


def exported() -> set[str]:
    (names,) = re.findall(r"^#SBATCH --export=(\S+)$", SCRIPT.read_text(), re.M)
    return set(names.split(","))


def test_no_secret_travels_in_the_jobs_environment():
    names = exported()
    assert {"PATH", "HOME"} <= names
    assert not any(re.search(r"KEY|PASS|SECRET|TOKEN|DATABASE_URL|^ALL$|=", name) for name in names)
    assert "SUPABASE_URL" not in names, "half of what Supabase needs is an error"


def test_directives_stand_before_the_first_command():
    lines = SCRIPT.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_without_keys_the_fallback_is_staged_and_said_in_red(job, tmp_path):
    done = job(*SMALL)
    assert done.returncode == 0, done.stderr
    assert "\033[1;31mNO REAL DATA" in done.stderr and "synthetic-fallback" in done.stderr
    assert "note: no .env in" in done.stdout and "end " in done.stdout and "exit code 0" in done.stdout
    report = json.loads((tmp_path / "data/market.report.json").read_text())
    assert report["source"] == "synthetic-fallback" and list(report["symbols"]) == ["A", "B"]


def test_require_real_fails_and_leaves_no_file(job, tmp_path):
    done = job(*SMALL, "--require-real", "--out=mine.h5")
    assert done.returncode == 1 and "exit code 1" in done.stdout and "--require-real" in done.stderr
    assert not list(tmp_path.glob("**/*.h5"))


def test_the_env_file_is_read_where_the_job_runs_and_must_be_private(job, tmp_path):
    env = tmp_path / ".env"
    env.write_text("SUPABASE_URL=http://127.0.0.1:9\nSUPABASE_SERVICE_ROLE_KEY=sb_publishable_canary\n")
    env.chmod(0o640)
    done = job(*SMALL)
    assert done.returncode == 2 and f"chmod 600 {env}" in done.stderr
    env.chmod(0o600)
    done = job(*SMALL)
    assert done.returncode == 2 and "is a publishable key" in done.stderr
    assert "canary" not in done.stdout + done.stderr and "note:" not in done.stdout


def test_another_verb_and_odd_arguments_pass_unharmed(job, tmp_path):
    (tmp_path / "two words").mkdir()
    done = job("synthetic", "--symbols", "A", "--bars", "1", "--out", "two words/m.h5", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two words/m.h5").exists() and not (tmp_path / "data").exists()


def test_a_job_that_cannot_find_hpcrl_says_where_it_looked(job, tmp_path):
    done = job(HPCRL_BIN=str(tmp_path))
    assert done.returncode == 2 and f"the job started in {tmp_path}" in done.stderr
