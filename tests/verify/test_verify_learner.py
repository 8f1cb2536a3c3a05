"""Faults of devices, ranks, the learner and populations, and the command as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from findings import SMALL, is_fail, is_pass, is_warn

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.launch.job import Request as Training
from hpcrl.market.load import load_market
from hpcrl.verify import devices, environment, learning, population, ranks, verify
from hpcrl.verify.finding import Report, examine
from hpcrl.verify.verify import Request, report, run_checks
from hpcrl.world.ranks import start_world

ROOT = Path(__file__).resolve().parents[2]


# ---- device, ranks


def test_no_gpu_is_a_warning_and_fails_where_the_config_asks_for_one(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    auto, cuda = config("engine.device=auto"), config("engine.device=cuda")
    is_warn(examine("gpu", lambda: devices.check_gpu(auto)), "torch sees no GPU here", "nvidia-smi")
    is_fail(examine("gpu", lambda: devices.check_gpu(cuda)), "and engine.device = cuda", "--gres=gpu")
    is_pass(examine("gpu", lambda: devices.check_gpu(config())))


def test_gpus_that_slurm_has_granted_and_torch_does_not_see_fail(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    found = examine("gpu", lambda: devices.check_gpu(config("engine.device=auto")))
    is_fail(found, "though Slurm has granted them (SLURM_GPUS_ON_NODE = 8)", "engine.device=cpu")
    is_pass(examine("gpu", lambda: devices.check_gpu(config())))


def test_fewer_gpus_than_ranks_is_a_warning(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    eight = config("train.world_size=8", "engine.device=cuda")
    found = examine("gpu", lambda: devices.check_gpu(eight))
    is_warn(found, "4 x H200, but train.world_size = 8", "--set train.world_size=4")


def test_bf16_that_computes_wrongly_fails(config, monkeypatch):
    bf16 = config("engine.precision=bf16")
    is_pass(examine("bf16", lambda: devices.check_bf16(bf16)))
    monkeypatch.setattr(torch, "bfloat16", torch.int8)
    is_fail(examine("bf16", lambda: devices.check_bf16(bf16)), "in bf16 is off by", "engine.precision: fp32")


def python_that(folder: Path, does: str) -> str:
    """A Python whose rank 1 does something else."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nif [ "$RANK" = 1 ]; then {does}; fi\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_ranks_meet_and_one_that_dies_or_never_comes_is_told(config, place, monkeypatch):
    is_pass(examine("ranks", lambda: ranks.check_ranks(config())))
    monkeypatch.setattr(sys, "executable", python_that(place, "echo no interface >&2; exit 3"))
    found = examine("ranks", lambda: ranks.check_ranks(config()))
    is_fail(found, "rank 1 ended with code 3: no interface", "network interface")
    monkeypatch.setattr(sys, "executable", python_that(place, "exec sleep 60"))
    monkeypatch.setattr(ranks, "SECONDS", 4.0)
    is_fail(examine("ranks", lambda: ranks.check_ranks(config())), "do not meet within 4 s", "interface")


def test_a_slow_rank_is_named_with_its_node(config, monkeypatch):
    figures = {"seconds": [1.0, 1.1, 2.0], "nodes": ["a", "a", "b"], "gigabytes_per_second": 1.0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(ranks, "_measure", lambda count, device: figures)
    three = config("train.world_size=3", "engine.device=cuda")
    is_warn(examine("ranks", lambda: ranks.check_ranks(three)), "rank 2 on b is slow: 2.00 s", "nvidia-smi")


def test_a_device_that_is_not_there_is_a_finding_and_ends_nothing(config, monkeypatch):
    monkeypatch.setattr(environment, "check_rooms", lambda: "all")
    monkeypatch.setattr(ranks, "check_ranks", lambda config: "met")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = list(verify._by_training(Request(), config("engine.device=cuda"), None))
    is_fail(found[-1], "engine.device = cuda, but torch sees no CUDA device", "see the checks of the GPU")


# ---- the learner


@pytest.fixture
def trial(config, staged, place):
    asked = config("engine.precision=fp32")
    return learning.Trial(asked, load_market(asked.market), start_world("cpu"), place)


def test_a_sound_learner_passes(trial):
    for check in (trial.check_model, trial.check_engine, trial.check_checkpoint):
        is_pass(examine("learner", check))
    assert trial.checkpoint_bytes > 10_000


def test_weights_that_are_nan_fail(trial, monkeypatch):
    real = learning.build_policy

    def poisoned(*arguments):
        policy = real(*arguments)
        policy.embed.weight.data[0, 0] = float("nan")
        return policy

    monkeypatch.setattr(learning, "build_policy", poisoned)
    is_fail(examine("model", trial.check_model), "no finite gradient of", "wrong numbers")


def test_a_step_that_disagrees_with_the_sequence_fails(trial, monkeypatch):
    real = learning.build_policy

    def skewed(*arguments):
        policy = real(*arguments)
        step = policy.step
        policy.step = lambda *given: tuple(out + 0.01 for out in step(*given))
        return policy

    monkeypatch.setattr(learning, "build_policy", skewed)
    is_fail(examine("model", trial.check_model), "stepping and the sequence differ by 0.01", "report it")


def test_a_rollout_by_another_policy_than_the_learners_fails(trial):
    is_pass(examine("model", trial.check_model))
    torch.manual_seed(1)
    trial.trainer.collector.policy.actor.weight.data.normal_()
    is_fail(examine("engine", trial.check_engine), "log ratio is", "report it")


def test_an_engine_without_a_model_says_what_comes_first(trial):
    is_fail(examine("engine", trial.check_engine), "no model to try it with", "see the check of the model")


def test_a_checkpoint_that_comes_back_broken_fails(trial, monkeypatch):
    real = CheckpointManager.save

    def torn(self, *arguments, **more):
        path = real(self, *arguments, **more)
        for file in self.run.path.glob("checkpoint_epoch_*.pt"):
            file.write_bytes(file.read_bytes()[:100])
        return path

    for check in (trial.check_model, trial.check_engine):
        is_pass(examine("learner", check))
    monkeypatch.setattr(CheckpointManager, "save", torn)
    assert examine("checkpoint", trial.check_checkpoint).status == "fail"


# ---- populations


def test_a_population_without_enough_windows_fails_and_one_with_passes(config):
    few = config("pbt.objective.window_bars=100", "train.epochs=20")
    is_fail(
        examine("population", lambda: population.check_population(few, load_market(few.market))),
        "windows of 100 bars",
        "what would be right",
    )
    enough = config("pbt.objective.window_bars=6", "train.epochs=20", "pbt.members=4")
    found = examine("population", lambda: population.check_population(enough, load_market(enough.market)))
    is_pass(found)
    assert "copies 1" in found.found


def test_a_dry_turn_in_which_nobody_copies_fails(config, monkeypatch):
    real = population.decide
    monkeypatch.setattr(population, "decide", lambda own, others, pbt, rng: real(own, [], pbt, rng))
    enough = config("pbt.objective.window_bars=6", "train.epochs=20")
    found = examine("population", lambda: population.check_population(enough, load_market(enough.market)))
    is_fail(found, "nobody copies the best", "report it")


# ---- the whole


def test_a_wrong_config_ends_it_with_the_keys_error(place):
    found = list(run_checks(Request(Training(overrides=("train.epohs=3",)), quick=True)))
    is_fail(found[-1], "train.epohs", "what would be right")


def test_what_is_no_known_fault_fails_and_asks_for_a_report():
    def broken() -> str:
        raise ZeroDivisionError("division by zero")

    is_fail(examine("x", broken), "ZeroDivisionError: division by zero", "report it")


def test_the_schema_in_the_documentation_is_the_reports():
    assert json.loads((ROOT / "docs/verify.schema.json").read_text()) == Report.model_json_schema()
    found = [examine("a", lambda: "good"), examine("python", environment.check_python)]
    assert report(found).status == "pass"
    assert Report.model_validate_json(report(found).model_dump_json()) == report(found)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_the_command_prints_its_findings_and_leaves_nothing(place, staged, wrong):
    sets = [*SMALL, f"market.path={staged}", *(["engine.device=cuda"] if wrong else [])]
    command = [sys.executable, "-m", "hpcrl", "verify", *(word for one in sets for word in ("--set", one))]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SUPABASE")}
    quick = subprocess.run(
        [*command, "--quick", "--json"], capture_output=True, text=True, cwd=place, env=environ, timeout=120
    )
    told = Report.model_validate_json(quick.stdout)
    assert quick.returncode == (1 if wrong else 0) and told.status == ("fail" if wrong else "warn")
    assert [each.check for each in told.findings if each.status == "fail"] == (["gpu"] if wrong else [])
    if not wrong:
        whole = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environ, timeout=300)
        assert whole.returncode == 0, whole.stdout + whole.stderr
        assert "pass engine: DeepSpeed" in whole.stdout and "\x1b" not in whole.stdout
        assert "20 checks" in whole.stdout or "19 checks" in whole.stdout
    assert list(place.iterdir()) == []
