"""Memory really ends, in every phase of a real run: one answer, exit code 1, checkpoints as they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runs import comparable_metrics, environment, furnish, hpcrl, only_run, portable

from hpcrl.config.load import load_config
from hpcrl.launch.again import _failed
from hpcrl.pbt.population import Population
from hpcrl.storage.attempts import read_attempts

DRIVER = Path(__file__).with_name("low_memory.py")
WIDE = ("env.envs_per_gpu=64", "policy.d_model=64", "learn.batch_size=2048", "learn.ppo_epochs=1")
SETS = [word for item in WIDE for word in ("--set", item)]


def low(place: Path, phase: str, epoch: int, *arguments: str, mib: int = 16) -> str:
    """What a run says whose memory ends then; exit code 1, and no traceback."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), phase, str(epoch), "0", str(mib), *arguments],
        cwd=place,
        env=environment() | {"PYTHONPATH": str(DRIVER.parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture
def room(tmp_path, market_file) -> Path:
    return furnish(tmp_path, market_file)


def test_at_the_build_nothing_is_begun(room):
    said = low(room, "build", 0, "train", "--config", "tiny.yaml", *SETS, "--set", "env.envs_per_gpu=3200")
    assert said.startswith("error: out of memory on rank 0 (host memory of ")
    assert "ulimit -v), while simulator, policy and engine were built" in said
    assert "--set env.envs_per_gpu=1600: now 3200" in said and "no run was begun" in said
    assert not list(room.glob("checkpoints/*"))


@pytest.mark.slow
def test_in_an_update_the_last_checkpoint_stays_and_recomputing_goes_on_with_it(room):
    said = low(room, "update", 3, "train", "--config", "tiny.yaml", *SETS)
    assert "in the update of epoch 3" in said and "envs_per_gpu 64" in said
    advice = said[said.index("what helps") :]
    run = only_run(room)
    assert "--set engine.activation_checkpointing=true: keeps 1 of 2 layers' activations" in advice
    assert f"--resume {run}" in advice and f"--init {run}" in advice
    assert portable(run)["epoch"] == 2
    (attempt,) = read_attempts(run)
    assert _failed(attempt).startswith("out of memory on rank 0")  # no job would start it again
    status = hpcrl("status", str(run), "--json", cwd=room).stdout
    assert '"cause": "out_of_memory"' in status and "engine.activation_checkpointing=true" in status
    hpcrl("train", "--resume", str(run), "--set", "engine.activation_checkpointing=true", cwd=room)
    begun = comparable_metrics(run)
    hpcrl("train", "--config", "tiny.yaml", *SETS, "--set", "checkpoint.dir=whole", cwd=room)
    (whole,) = room.glob("whole/dist_run_*")
    assert begun == comparable_metrics(whole)


@pytest.mark.slow
def test_in_a_rollout_fewer_environments_are_the_first_thing(room):
    many = ["--set", "env.envs_per_gpu=1600"]
    said = low(room, "rollout", 1, "train", "--config", "tiny.yaml", *SETS, *many, mib=0)
    first = said[said.index("what helps") :].splitlines()[1:3]
    assert "in the rollout of epoch 1" in said and "ulimit -v" in first[0]
    assert "--set env.envs_per_gpu=768: now 1600" in first[1]


@pytest.mark.soak
@pytest.mark.parametrize("phase", ["restore", "save"])
def test_soak_in_other_phases_it_is_told_as_well(room, phase):
    said = low(room, phase, 0, "train", "--config", "tiny.yaml", *SETS, mib=0)
    assert said.startswith("error: out of memory on rank 0") and "what helps" in said


@pytest.mark.slow
def test_one_rank_of_two_ends_the_other_and_says_why_the_attempt_ended(room, run_on_ranks, monkeypatch):
    monkeypatch.chdir(room)
    arguments = ["train", "--config", "tiny.yaml", *SETS, "--set", "train.world_size=2"]
    first, second = run_on_ranks(DRIVER, "update", 2, 1, 16, *arguments, expect=None)
    assert (first.returncode, second.returncode) == (1, 1), first.stderr + second.stderr
    assert "error: rank 1: out of memory on rank 1" in second.stderr and "Traceback" not in second.stderr
    assert "lost another rank" in first.stderr and "Traceback" not in first.stderr
    (attempt,) = read_attempts(only_run(room))
    assert _failed(attempt).startswith("out of memory on rank 1")


@pytest.mark.slow
def test_at_the_build_all_ranks_agree_on_the_one_that_has_too_little(room, run_on_ranks, monkeypatch):
    monkeypatch.chdir(room)
    arguments = ["train", "--config", "tiny.yaml", *SETS, "--set", "train.world_size=2"]
    arguments += ["--set", "env.envs_per_gpu=3200"]
    first, second = run_on_ranks(DRIVER, "build", 0, 1, 16, *arguments, expect=None)
    assert (first.returncode, second.returncode) == (1, 1), first.stderr + second.stderr
    assert first.stderr.startswith("error: out of memory on rank 1 (host memory of ")


@pytest.mark.slow
def test_a_run_that_does_not_fit_when_it_goes_on_blames_no_checkpoint(room, run_on_ranks, monkeypatch):
    large = ["--set", "policy.d_model=512", "--set", "train.epochs=1"]
    hpcrl("train", "--config", "tiny.yaml", *large, cwd=room)
    run = only_run(room)
    on = ["train", "--resume", str(run), "--set", "train.epochs=2"]
    said = low(room, "restore", 0, *on)
    assert said.startswith("error: out of memory on rank 0 (host memory of ")
    assert "while the run was restored" in said and f"--resume {run} goes on" in said and "away" not in said
    monkeypatch.chdir(room)
    first, second = run_on_ranks(DRIVER, "restore", 0, 1, 16, *on, expect=None)
    assert (first.returncode, second.returncode) == (1, 1), first.stderr + second.stderr
    assert first.stderr.startswith("error: out of memory on rank 1 (host memory of "), first.stderr
    assert "while the run was restored" in first.stderr and "away" not in first.stderr
    hpcrl(*on, cwd=room)


@pytest.mark.slow
def test_a_members_first_start_is_offered_nothing_that_its_population_refuses(room):
    wanted = [
        "market.path=market.h5",
        f"pbt.dir={room}/population",
        "pbt.members=2",
        *WIDE,
        "policy.d_model=512",
    ]
    made = Population.create(load_config(room / "tiny.yaml", wanted, environment={}), "none", 16)
    folder = made.folder(0)
    words = ["train", "--config", str(folder / "jobs" / "config.yaml"), "--run", str(folder)]
    said = low(room, "build", 0, *words, mib=64)
    assert "while simulator, policy and engine were built" in said and "no run was begun" in said
    assert "settled by its population" in said and "--set" not in said
