"""Options of the account and the reward through whole runs: train, resume, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import comparable_metrics, hpcrl, only_run, portable, rank_state, same

pytestmark = pytest.mark.slow
ADVANCED = Path(__file__).resolve().parents[2] / "yaml" / "advanced.yaml"


def write_profile(place: Path) -> None:
    """advanced.yaml at the size of tiny.yaml, with averages that are warm within an epoch."""
    tiny = (place / "tiny.yaml").read_text().replace("lr_schedule: linear", "lr_schedule: constant")
    tiny = tiny.replace("episode_rollouts: 2, lot: 1", "episode_rollouts: 2, rewards: {eta: 0.1}")
    (place / "advanced.yaml").write_text(f"include: {ADVANCED}\n{tiny}")


def test_advanced_rewards_train_resume_exactly_and_evaluate(place):
    write_profile(place)
    train = ("train", "--config", "advanced.yaml", "--set", "checkpoint.every_epochs=1")
    hpcrl(*train, "--set", "train.epochs=2", cwd=place)
    whole = only_run(place).rename(place / "whole")
    state = rank_state(whole, 1)["collector"]["simulator"]
    assert state["differential_sharpe.bars"].max() == 32 and state["differential_sharpe.square"].all()
    hpcrl(*train, "--set", "train.epochs=1", cwd=place)
    part = only_run(place)
    hpcrl("train", "--resume", str(part), "--set", "train.epochs=2", cwd=place)
    same(portable(part, 2)["model"], portable(whole, 2)["model"])
    same(rank_state(part, 2), rank_state(whole, 2))
    for line in comparable_metrics(whole):
        assert line["reward"] != line["log_return"]
    found = json.loads(hpcrl("evaluate", str(part), "--split", "validation", "--json", cwd=place).stdout)
    assert found["meta"]["max_net"] == 1.0
    assert found["meta"]["costs"]["symbols"] == {
        "MSFT": {"half_spread": 5e-5, "participation": 0.1, "borrow_rate": 0.0025}
    }


def test_costs_of_an_unknown_symbol_are_refused_by_name(place):
    sets = ("--set", "env.costs.symbols.MSTF.bps=1")
    done = hpcrl("train", "--config", "tiny.yaml", *sets, cwd=place, code=2)
    assert "no symbol 'MSTF'; did you mean 'MSFT'?" in done.stderr


@pytest.mark.parametrize("lag", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_other_fill_lags_train_and_say_what_they_are(place, lag):
    sets = ("--set", f"env.fill_lag={lag}", "--set", "train.epochs=1")
    done = hpcrl("train", "--config", "tiny.yaml", *sets, cwd=place)
    assert ("WARNING: env.fill_lag = 0" in done.stdout) == (lag == 0)
    run = only_run(place)
    state = rank_state(run, 1)["collector"]["simulator"]
    assert ("pending_NA" in state) == (lag == 2)
    if lag == 2:
        assert torch.isfinite(state["pending_NA"]).all()
    shown = " ".join(hpcrl("evaluate", str(run), "--split", "validation", cwd=place).stdout.split())
    assert ("warning: env.fill_lag = 0" in shown) == (lag == 0)
    assert f"(lag {lag})" in shown
