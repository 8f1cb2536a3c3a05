"""One account over several assets, around the clock: yaml/crypto.yaml made small, with the other heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import comparable_metrics, hpcrl, only_run, portable, rank_state, same

from hpcrl.config.load import load_config
from hpcrl.market.stage import stage_synthetic

YAML = Path(__file__).resolve().parents[2] / "yaml"
COINS = ("AAA/BTC", "BBB/BTC", "CCC/BTC")
SMALL = [
    f"--set={item}"
    for item in (
        "env.envs_per_gpu=4", "env.episode_rollouts=3", "policy.d_model=32", "policy.window=8",
        "learn.rollout=32", "learn.sequence_length=16", "learn.batch_size=64", "learn.ppo_epochs=2",
        "checkpoint.every_epochs=2", "checkpoint.every_minutes=0",
    )
]  # fmt: skip


@pytest.fixture
def coins(tmp_path) -> Path:
    stage_synthetic(tmp_path / "crypto.h5", symbols=COINS, bars=900, calendar="24/7")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "ranks"),
    [
        (("policy.head=continuous",), 1),
        (
            (
                "policy.model_type=lightweight",
                "policy.head=continuous",
                "engine.precision=bf16",
                "engine.zero_stage=3",
            ),
            2,
        ),
    ],
    ids=["transformer", "lightweight at stage 3 on two ranks"],
)
def test_one_account_over_coins_trains_resumes_exactly_and_is_evaluated(coins, sets, ranks):
    chosen = [f"--set={item}" for item in sets]
    crypto, several = str(YAML / "crypto.yaml"), ["--ranks", str(ranks)] if ranks > 1 else []
    hpcrl("train", "--config", crypto, *SMALL, *chosen, *several, "--set=train.epochs=4", cwd=coins)
    whole = only_run(coins)
    whole = whole.rename(coins / "whole")
    hpcrl("train", "--config", crypto, *SMALL, *chosen, *several, "--set=train.epochs=4", cwd=coins)
    part = only_run(coins)
    for path in [*part.glob("checkpoint_epoch_3.*"), *part.glob("checkpoint_epoch_4.*")]:
        path.unlink()
    hpcrl("train", "--resume", str(part), *several, cwd=coins)
    same(portable(part, 4)["model"], portable(whole, 4)["model"])
    for rank in range(ranks):
        same(rank_state(part, 4, rank), rank_state(whole, 4, rank))
    lines = comparable_metrics(part)
    assert lines == comparable_metrics(whole)
    assert [line["first_log_ratio"] for line in lines] == [0.0] * 4
    assert all(line["skipped_steps"] == line["weight_divergence"] == 0 for line in lines)
    done = hpcrl("evaluate", str(part), "--split", "validation", "--json", cwd=coins)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["meta"]["accounts"] == ["all"] and found["meta"]["symbols"] == list(COINS)
    assert Path(found["plot"]).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["crypto", "lightweight"])
@pytest.mark.parametrize(
    "item", ["policy.head=continuous", "policy.model_type=lightweight", "train.epochs=2"]
)
def test_the_yaml_files_are_valid_with_either_head_and_model(name, item):
    config = load_config(YAML / f"{name}.yaml", [item], environment={})
    assert (config.env.assets == "all") == (name == "crypto")
    assert (config.policy.model_type == "lightweight") == (name == "lightweight" or "lightweight" in item)
