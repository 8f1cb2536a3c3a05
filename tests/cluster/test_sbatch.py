"""The job scripts of slurm/ on the real cluster, as people use them: from a fresh clone, by sbatch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hpcrl
from hpcrl.monitor.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CANARY = "canary-8d1f"
SMALL = (
    "train.epochs=1", "env.envs_per_gpu=4", "env.episode_rollouts=2", "policy.d_model=16", "policy.layers=2",
    "policy.heads=2", "policy.window=8", "learn.rollout=32", "learn.sequence_length=16",
    "learn.batch_size=64", "learn.ppo_epochs=2", "engine.device=cpu",
)  # fmt: skip
# Eight Pythons that import torch on two cores, which the other tests use, too.
PATIENCE = 480

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def small(*sets: str) -> list[str]:
    return [word for item in (*SMALL, *sets) for word in ("--set", item)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh clone, in a folder with spaces and quotes."""
    path = tmp_path_factory.mktemp("sbatch") / 'it\'s a "fresh" clone'
    subprocess.run(["git", "clone", "--quiet", ROOT, path], check=True)
    return path


@pytest.fixture
def submit(slurm) -> Callable[..., tuple[str, str]]:
    """``submit(script, *arguments, cwd=...) -> (state, log)`` of the job, once it has ended."""

    def run(script: Path | str, *arguments: str, cwd: Path, options: tuple[str, ...] = (), **environ: str):
        environ = {"HPCRL_BIN": str(BIN)} | environ
        job = slurm.sbatch(script, *arguments, options=options, cwd=cwd, **environ)
        state = slurm.wait(job, timeout=PATIENCE)["JobState"]
        (log,) = cwd.glob(f"hpcrl*_{job}.log")
        return state, log.read_text()

    return run


@pytest.fixture
def staged(clone, submit) -> Path:
    """The clone with data/market.h5 in it, staged by a job."""
    if not (clone / "data/market.h5").exists():
        arguments = ("synthetic", "--symbols", "A,B", "--bars", "2000")
        state, log = submit("slurm/stage.sbatch", *arguments, cwd=clone)
        assert state == "COMPLETED" and (clone / "data/market.h5").exists(), log
    return clone


def finished(folder: Path, ranks: int, log: str) -> Path:
    """The only run under ``folder``: one epoch on so many ranks, with its checkpoint."""
    (run,) = folder.glob("checkpoints/dist_run_*")
    assert json.loads((run / "config.json").read_text())["config"]["train"]["world_size"] == ranks
    assert [line["epoch"] for line in read_metrics(run / "metrics.jsonl")] == [1]
    names = {path.name for path in run.iterdir()}
    assert {
        "checkpoint_epoch_1.json",
        "checkpoint_epoch_1.pt",
        f"checkpoint_epoch_1.rank_{ranks - 1}.pt",
    } <= names
    assert f"[GPU {ranks - 1}] Setting up..." in log and "Finished 1 epochs" in log
    return run


@pytest.mark.parametrize("name", ["stage", "train", "evaluate", "pbt"])
def test_slurm_accepts_the_scripts_as_they_are(slurm, clone, name):
    slurm.run("sbatch", "--test-only", f"slurm/{name}.sbatch", cwd=clone)


def test_eight_ranks_train_on_one_node(staged, submit):
    state, log = submit("slurm/train.sbatch", *small(), cwd=staged)
    assert state == "COMPLETED", log
    finished(staged, 8, log)
    assert f"hpcrl of {BIN}, modules hpcrl/{hpcrl.__version__}\n" in log, "the module is loaded"
    assert f"hpcrl train --config {staged}/yaml/train_8gpu.yaml" in log and "exit code 0\n" in log
    assert log.index("\npass config: ") < log.index(" 0 failed, ") < log.index("[GPU 7] Setting up..."), log


def test_what_would_fail_later_ends_the_job_before_any_rank_starts(staged, submit, tmp_path):
    state, log = submit(staged / "slurm/train.sbatch", *small("market.path=lost.h5"), cwd=tmp_path)
    assert (
        state == "FAILED" and "\nfail data: market.path = lost.h5: no such file\n     -> stage it" in log
    ), log
    assert "exit code 1\n" in log and "[GPU" not in log and not list(tmp_path.glob("checkpoints/*"))


def test_two_nodes_of_four_ranks_train_from_another_directory_without_modules(
    slurm, staged, submit, tmp_path
):
    """Relative paths are those of the directory of submission. Then the run is evaluated, without a GPU."""
    elsewhere = tmp_path / 'some "where" else\'s'
    elsewhere.mkdir()
    (elsewhere / "market.h5").symlink_to(staged / "data/market.h5")
    options = ("--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4")
    if not slurm.namespaces:  # nodes whose names are none of the network
        options += ("--export=ALL,MASTER_ADDR=127.0.0.1",)
    state, log = submit(
        staged / "slurm/train.sbatch", *small("market.path=market.h5"),
        cwd=elsewhere, options=options, HPCRL_MODULES="none",
    )  # fmt: skip
    assert state == "COMPLETED", log
    run = finished(elsewhere, 8, log)
    assert " attempt 1 on node[1-2]: " in log
    assert f"hpcrl of {BIN}, no modules (HPCRL_MODULES=none)\n" in log

    script, arguments = staged / "slurm/evaluate.sbatch", (f"checkpoints/{run.name}", "--split", "validation")
    state, log = submit(script, *arguments, cwd=elsewhere, options=("--gres=none",))
    assert state == "COMPLETED" and "Sharpe" in log, log
    assert (run / "evaluation_validation.png").exists()


def test_a_number_of_ranks_that_the_config_does_not_have_is_one_line(staged, submit):
    state, log = submit("slurm/train.sbatch", *small(), cwd=staged, options=("--ntasks-per-node=2",))
    assert state == "FAILED" and "exit code 2\n" in log
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "2 ranks" in line and "world_size = 8" in line and "Traceback" not in log


def test_no_process_and_no_file_of_slurm_holds_a_secret_of_the_submitting_shell(slurm, staged, tmp_path):
    market = f"market.path={staged}/data/market.h5"
    job = slurm.sbatch(
        staged / "slurm/train.sbatch", *small("train.world_size=1", market),
        options=("--ntasks-per-node=1",), cwd=tmp_path,
        HPCRL_BIN=str(BIN), SUPABASE_SERVICE_ROLE_KEY=CANARY, PGPASSWORD=CANARY, DATABASE_URL=CANARY,
    )  # fmt: skip
    ranks, ended = 0, False
    while not ended:  # as long as the job lives
        ended = slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING")
        for command, environ in processes():
            assert CANARY.encode() not in environ, command
            ranks += "hpcrl train" in command and f"SLURM_JOB_ID={job}\0".encode() in environ
    assert slurm.state(job) == "COMPLETED" and ranks > 0
    texts = [path.read_bytes() for path in slurm.root.rglob("*") if path.is_file()]
    assert any(str(BIN).encode() in text for text in texts), "Slurm does keep the environment that travels"
    assert not any(CANARY.encode() in text for text in texts)
    assert CANARY not in slurm.run("scontrol", "-d", "show", "job", job).stdout
    assert CANARY not in (tmp_path / f"hpcrl_{job}.log").read_text()


def processes() -> list[tuple[str, bytes]]:
    """(command line, environment) of every process of this machine that may be looked at."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found.append((command, (path / "environ").read_bytes()))
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found
