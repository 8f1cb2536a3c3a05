"""Sampling follows the probabilities; log-probabilities, entropies and their gradients are exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

from hpcrl.policy.distributions import STD_RANGE, Continuous, Discrete

THREE = Discrete((-1.0, 0.0, 1.0))
BOUNDS = [(-1.0, 1.0), (0.0, 1.0), (-0.3, 0.7), (-2.5, -0.5)]
SQUASHED = [Continuous(*bounds) for bounds in BOUNDS]


def name(head: Continuous) -> str:
    return head.shares[0].split("..")[0] + " to " + head.shares[-1].split("..")[1]


def place_of(std: float) -> float:
    """The actor's number that gives this standard deviation."""
    low, high = (math.log(limit) for limit in STD_RANGE)
    share = (math.log(std) - low) / (high - low)
    return math.log(share / (1 - share))


def params_of(mean: torch.Tensor, std: float) -> torch.Tensor:
    return torch.stack((mean, torch.full_like(mean, place_of(std))), -1)


def reference(mean: torch.Tensor, std: float, low: float, high: float) -> TransformedDistribution:
    mid, half = (low + high) / 2, (high - low) / 2
    squash = [TanhTransform(cache_size=1), AffineTransform(mid, half, cache_size=1)]
    return TransformedDistribution(Normal(mean.double(), torch.tensor(std, dtype=torch.float64)), squash)


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


def test_the_mode_is_the_likeliest_position_and_its_weight_comes_from_the_grid():
    grid = Discrete((-0.5, 0.25, 2.0))
    logits = torch.tensor([[[0.0, 3.0, 1.0], [0.0, -1.0, 0.5]]])
    assert grid.weights(grid.mode(logits)).tolist() == [[0.25, 2.0]]
    assert grid.weights(torch.zeros(1, 1, dtype=torch.int64)).dtype == torch.float64


# ---- the squashed Gaussian


@pytest.mark.parametrize("head", SQUASHED, ids=name)
@pytest.mark.parametrize("std", [0.051, 0.1, 0.6, 1.9])
def test_log_probability_equals_torchs_transformed_normal_far_into_the_tails(head, std):
    z = torch.linspace(-6, 6, 121)
    for centre in (-2.0, 0.0, 0.7):
        action = (centre + std * z).clamp(-6, 6)
        if std > 1:
            action = torch.linspace(-6, 6, 121)
        got, _ = head.log_prob_and_entropy(params_of(torch.full((121, 1), centre), std), action[:, None])
        # cache_size=1 lets torch invert exactly where tanh(6) has rounded most of u away
        expected = reference(torch.tensor(centre), std, head.low, head.high)
        weight = action.double()
        for transform in expected.transforms:
            weight = transform(weight)
        wanted = expected.log_prob(weight)
        error = (got.double() - wanted).abs() / wanted.abs().clamp_min(1)
        assert error.max() <= 1e-5
        assert torch.allclose(weight, head.weights(action), rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", SQUASHED, ids=name)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.6), (1.0, 0.3), (-1.5, 1.0), (0.2, 1.8)])
def test_the_density_over_weights_integrates_to_one(head, mean, std):
    u = torch.linspace(mean - 9 * std, mean + 9 * std, 20_001, dtype=torch.float64)
    weight = head.weights(u)
    params = params_of(torch.tensor([mean], dtype=torch.float64), std).expand(len(u), 1, 2)
    density = head.log_prob_and_entropy(params, u[:, None])[0].exp()
    assert abs(float(torch.trapezoid(density, weight)) - 1) < 1e-4


@pytest.mark.parametrize("head", SQUASHED, ids=name)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.6), (0.0, 0.055), (2.0, 0.5), (-1.0, 1.5), (0.3, 1.95)])
def test_entropy_agrees_with_the_mean_over_samples_and_never_exceeds_the_greatest(head, mean, std):
    n = 100_000
    generator = torch.Generator().manual_seed(5)
    u = (mean + std * torch.randn(n, 1, dtype=torch.float64, generator=generator)).float()
    params = params_of(torch.full((1,), mean), std).expand(n, 1, 2)
    log_prob, entropy = head.log_prob_and_entropy(params, u)
    spread = float(log_prob.double().std()) / n**0.5
    assert abs(float(entropy[0]) + float(log_prob.double().mean())) < 4 * spread + 3e-4
    assert float(entropy[0]) <= head.greatest_entropy + 1e-4


def test_gradients_of_log_probability_and_entropy_are_exact():
    head = Continuous(-0.3, 0.7)
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(3, 4, 2, dtype=torch.float64, generator=generator).requires_grad_()
    action = 2 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda p: head.log_prob_and_entropy(p, action), (params,))


def test_gradients_stay_finite_at_any_size_of_the_actors_numbers():
    head = Continuous(-1.0, 1.0)
    params = torch.tensor([[[0.0, 80.0]], [[50.0, -80.0]], [[-1e4, 0.0]]]).requires_grad_()
    log_prob, entropy = head.log_prob_and_entropy(params, torch.tensor([[6.0], [50.0], [-1e4]]))
    (log_prob.sum() + entropy.sum()).backward()
    assert torch.isfinite(log_prob).all() and torch.isfinite(entropy).all()
    assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("head", SQUASHED, ids=name)
def test_samples_follow_the_squashed_density(head):
    n = 100_000
    uniform = torch.rand(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    params = params_of(torch.tensor([0.4]), 0.7).expand(n, 1, 2)
    action = head.sample(params, uniform)
    assert action.dtype == torch.float32
    weight = head.weights(action)
    # P(w <= x) = Phi((artanh((x - mid) / half) - m) / s)
    for share in (0.1, 0.35, 0.6, 0.9):
        limit = head.low + share * (head.high - head.low)
        below = torch.special.ndtr(torch.tensor((math.atanh(2 * share - 1) - 0.4) / 0.7))
        assert abs(float((weight <= limit).double().mean() - below)) < 0.005


@pytest.mark.parametrize("head", SQUASHED, ids=name)
def test_weights_never_leave_the_bounds_and_samples_are_finite_at_both_ends(head):
    uniform = torch.tensor([[0.0], [1.0 - 2**-53]], dtype=torch.float64)
    for mean in (0.0, 30.0, -30.0):
        action = head.sample(params_of(torch.full((2, 1), mean), 1.9), uniform)
        assert torch.isfinite(action).all() and action[0] < mean < action[1]
    u = torch.cat((torch.linspace(-40, 40, 100_001), torch.tensor([-1e30, 1e30])))
    weight = head.weights(u[:, None])
    assert weight.dtype == torch.float64
    assert weight.min() == head.low and weight.max() == head.high
    assert (weight.diff(dim=0)[:-2] >= 0).all()


def test_several_assets_are_independent_and_sum():
    head = Continuous(-1.0, 1.0)
    params, action = torch.randn(5, 7, 3, 2), torch.randn(5, 7, 3)
    log_prob, entropy = head.log_prob_and_entropy(params, action)
    parts = [head.log_prob_and_entropy(params[..., a : a + 1, :], action[..., a : a + 1]) for a in range(3)]
    assert torch.allclose(log_prob, sum(p for p, _ in parts), atol=1e-5)
    assert torch.allclose(entropy, sum(e for _, e in parts), atol=1e-5)


def test_every_weight_lies_in_the_share_that_names_it():
    head = Continuous(-1.0, 1.0)
    assert head.shares == ("-1..-0.6", "-0.6..-0.2", "-0.2..0.2", "0.2..0.6", "0.6..1")
    weight = torch.tensor([[-1.0, -0.61, -0.59, 0.0, 0.19, 0.21, 0.99, 1.0]], dtype=torch.float64)
    action = weight.atanh().clamp(-100, 100)
    assert head.share(action).tolist() == [[0, 0, 1, 2, 2, 3, 4, 4]]


def test_a_narrow_distribution_counts_as_collapsed_and_a_fresh_one_does_not():
    head = Continuous(0.0, 1.0)
    fresh = torch.tensor([[head.bias]])
    narrow = params_of(torch.zeros(1, 1), 0.051)
    at_bound = params_of(torch.full((1, 1), 4.0), 0.6)
    entropy = [float(head.log_prob_and_entropy(p, torch.zeros(1, 1))[1]) for p in (fresh, narrow, at_bound)]
    assert entropy[0] > head.greatest_entropy - 0.2
    assert max(entropy[1:]) < head.collapsed_entropy
