"""Reward terms against exact values, and the registry."""

import json
from pathlib import Path

import pytest
import torch

from hpcrl.config.env import RewardConfig
from hpcrl.env.rewards import TERMS, StepFacts, active_terms, shaped_reward
from hpcrl.types import HpcrlError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "REWARDS.json").read_text())


def column(name):
    return torch.tensor(GOLDEN[name], dtype=torch.float64)[:, None]


def facts():
    depth = column("drawdown_depth")
    return StepFacts(
        column("log_return"), column("turnover"), torch.cat([torch.zeros_like(depth[:1]), depth[:-1]]), depth
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"log_return": 1.0}, "log_return"),
        ({"log_return": 1.0, "turnover": 1e-4}, "turnover_penalty_kappa_1e-4"),
        ({"log_return": 1.0, "drawdown": 1.0}, "drawdown_increment_penalty_lambda_1"),
    ],
)
def test_terms_equal_the_exact_values(weights, expected):
    got = shaped_reward(active_terms(weights), facts())
    torch.testing.assert_close(got, column(expected), rtol=0, atol=1e-12)


def test_every_configured_weight_has_a_term():
    assert set(RewardConfig.model_fields) == set(TERMS)
    assert len(active_terms(RewardConfig().model_dump())) == 1


def test_unknown_term_is_refused():
    with pytest.raises(HpcrlError, match=r"unknown reward term 'sharpe'.*log_return"):
        active_terms({"sharpe": 1.0})
