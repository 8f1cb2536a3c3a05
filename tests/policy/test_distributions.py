"""Sampling by inverse transform follows the probabilities; log-probabilities are exact."""

from __future__ import annotations

import torch

from hpcrl.policy.distributions import Discrete

THREE = Discrete((-1.0, 0.0, 1.0))


def test_samples_follow_the_probabilities():
    logits = torch.tensor([0.2, 1.5, -1.0]).expand(100_000, 1, 3)
    uniform = torch.rand(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequency = torch.bincount(THREE.sample(logits, uniform).flatten(), minlength=3) / 100_000
    assert (frequency - logits[0, 0].softmax(-1)).abs().max() < 0.006


def test_samples_reach_both_ends_and_never_leave_the_grid():
    logits = torch.zeros(2, 1, 3)
    uniform = torch.tensor([[0.0], [1.0 - 2**-53]], dtype=torch.float64)
    assert THREE.sample(logits, uniform).flatten().tolist() == [0, 2]


def test_joint_log_probability_is_the_sum_over_assets():
    logits = torch.randn(4, 7, 2, 3)
    action = torch.randint(3, (4, 7, 2))
    log_prob, entropy = THREE.log_prob_and_entropy(logits, action)
    each = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(log_prob, each.log_prob(action).sum(-1), atol=1e-6)
    assert torch.allclose(entropy, each.entropy().sum(-1), atol=1e-6)
