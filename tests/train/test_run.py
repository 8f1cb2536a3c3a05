"""A run on the command line: its folder, its lines, several ranks, other world sizes, a new start."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from runs import comparable_metrics, environment, hpcrl, only_run, portable, rank_state, same

pytestmark = pytest.mark.slow


def test_run_folder_holds_config_metrics_and_checkpoints(reference):
    record = json.loads((reference / "config.json").read_text())
    assert re.fullmatch(r"dist_run_\d{8}_\d{6}", reference.name)
    assert record["config"]["learn"]["lr"] == 1e-3 and len(record["config_sha256"]) == 64
    assert record["data"]["source"] == "synthetic" and len(record["data"]["sha256"]) == 64
    assert record["versions"]["torch"] and record["lineage"] is None
    lines = comparable_metrics(reference)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["env_steps"] == 6 * 4 * 32
    # kept every 4 epochs and at the end; the start and the other rolling ones are pruned to two
    epochs = sorted(int(p.stem.split("_")[-1]) for p in reference.glob("checkpoint_epoch_*.json"))
    assert epochs == [3, 4, 5, 6]
    assert {"epoch", "model", "return_scale", "feature_scaler", "pbt"} <= portable(reference).keys()


def test_plain_lines_are_the_documented_ones(place):
    told = ("train", "--config", "tiny.yaml", "--set", "train.epochs=1")
    out = hpcrl(*told, cwd=place, NO_COLOR="1").stdout  # the line about made-up bars is red in a log, too
    assert "[GPU 0] Setting up..." in out
    assert "[GPU 0] Epoch 1: Collected 128 steps" in out
    assert re.search(r"^Epoch 1: Loss=-?\d+\.\d{4}, Reward=-?[\d.e-]+$", out, re.M)
    assert "\x1b[" not in out


def test_the_ratio_is_one_on_the_first_minibatch_of_every_epoch(reference):
    assert [line["first_log_ratio"] for line in comparable_metrics(reference)] == [0.0] * 6


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.soak), 3])
def test_two_ranks_in_bf16_see_other_markets_and_end_with_equal_weights(place, stage):
    sets = [
        "--set",
        "engine.precision=bf16",
        "--set",
        f"engine.zero_stage={stage}",
        "--set",
        "train.epochs=2",
    ]
    done = hpcrl("train", "--config", "tiny.yaml", "--ranks", "2", *sets, cwd=place)
    assert "[GPU 1] Epoch 1: Collected 128 steps" in done.stdout
    run = only_run(place)
    first, second = rank_state(run, 2, 0)["collector"], rank_state(run, 2, 1)["collector"]
    assert not torch.equal(first["simulator"]["row_NA"], second["simulator"]["row_NA"])
    assert not torch.equal(first["history"], second["history"])
    lines = comparable_metrics(run)
    assert lines[-1]["env_steps"] == 2 * 2 * 4 * 32
    assert [line["weight_divergence"] for line in lines] == [0.0, 0.0]
    assert [line["first_log_ratio"] for line in lines] == [0.0, 0.0]


def test_two_ranks_resume_exactly_in_bf16(place):
    sets = ["--set", "engine.precision=bf16", "--set", "engine.zero_stage=2"]
    hpcrl("train", "--config", "tiny.yaml", "--ranks", "2", *sets, "--set", "train.epochs=5", cwd=place)
    whole = only_run(place)
    whole = whole.rename(place / "whole")
    hpcrl(
        "train", "--config", "tiny.yaml", "--ranks", "2", *sets, "--set", "train.epochs=5",
        "--set", "checkpoint.every_epochs=3", cwd=place,
    )  # fmt: skip
    part = only_run(place)
    for name in ("4", "5"):
        for path in part.glob(f"checkpoint_epoch_{name}.*"):
            path.unlink()
    hpcrl("train", "--resume", str(part), "--ranks", "2", cwd=place)
    same(portable(part, 5)["model"], portable(whole, 5)["model"])
    same(rank_state(part, 5, 1), rank_state(whole, 5, 1))
    assert comparable_metrics(part) == comparable_metrics(whole)


def test_another_world_size_carries_weights_and_moments_and_says_what_restarts(place, reference):
    hpcrl("train", "--config", "tiny.yaml", "--ranks", "2", "--set", "train.epochs=2", cwd=place)
    run = only_run(place)
    before = portable(run, 2)
    out = hpcrl("train", "--resume", str(run), "--set", "train.epochs=3", cwd=place).stdout
    assert "World size was 2, is 1" in out and "environments start new episodes" in out
    after = portable(run, 3)
    assert after["env_steps"] == before["env_steps"] + 128
    assert after["return_scale"]["count"] == before["return_scale"]["count"] + 128
    assert [line["epoch"] for line in comparable_metrics(run)] == [1, 2, 3]


def test_init_starts_a_new_run_from_weights_moments_and_statistics(place, reference):
    hpcrl(
        "train", "--init", str(reference), "--config", "tiny.yaml", "--set", "learn.lr=1e-4",
        "--set", "train.epochs=0", cwd=place,
    )  # fmt: skip
    run = only_run(place)
    donor, new = portable(reference), portable(run, 0)
    for part in ("weights", "exp_avg", "exp_avg_sq", "step"):
        same(new["model"][part], donor["model"][part], part)
    same(new["return_scale"], donor["return_scale"])
    assert new["epoch"] == 0 and new["env_steps"] == 0
    record = json.loads((run / "config.json").read_text())
    assert record["lineage"]["epoch"] == 6 and record["config"]["learn"]["lr"] == 1e-4


def test_torchrun_gives_the_rank_and_a_disagreement_is_an_error(place):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hpcrl"]
    import subprocess

    done = subprocess.run(
        [*torchrun, "train", "--config", "tiny.yaml", "--set", "train.epochs=1"],
        cwd=place, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0 and "torchrun started 2 ranks, but train.world_size = 1" in done.stderr
    assert not list(place.glob("checkpoints/*"))
    done = subprocess.run(
        [*torchrun, "train", "--config", "tiny.yaml", "--set", "train.epochs=1"],
        cwd=place, env=environment() | {"GPU_COUNT": "2"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert comparable_metrics(only_run(place))[0]["env_steps"] == 2 * 128


def test_the_defaults_train_an_epoch_on_the_synthetic_fallback(tmp_path):
    """yaml/base.yaml as shipped (d_model 256, 4 layers, rollout 512, bf16) on 1,000 bars per symbol."""
    hpcrl("stage", "synthetic", "--out", "market.h5", "--symbols", "AAPL,MSFT", cwd=tmp_path)
    base = Path(__file__).resolve().parents[2] / "yaml/base.yaml"
    sets = ["--set", "train.epochs=1", "--set", "market.path=market.h5"]
    done = hpcrl("train", "--config", str(base), *sets, cwd=tmp_path)
    assert "Epoch 1: Collected 5120 steps" in done.stdout
    (line,) = comparable_metrics(only_run(tmp_path))
    assert line["data_source"] == "synthetic" and line["skipped_steps"] == 0
    assert line["first_log_ratio"] == 0 and abs(line["loss"]) < 10
