"""What holds of the transformer alone: its cache slot by slot, its reach, its positions."""

from __future__ import annotations

import pytest
import torch
from policies import E, copied, small_policy, walk


@torch.no_grad()
def test_rebuilt_cache_equals_stepping_through_the_same_tokens():
    policy = small_policy(window=8, layers=3)
    n, steps = 4, 200
    padded = 24
    token = torch.randn(n, steps, E, generator=torch.Generator().manual_seed(2))
    age = torch.arange(steps).expand(n, steps).clone()
    age[1, 190:] = torch.arange(10)
    cache = policy.empty_memory(n)
    walk(policy, token, age, cache)
    known = (age[:, -1] + 1).clamp_max(padded)
    rebuilt = policy.rebuild(token[:, -padded:], known)
    # Same next outputs, whatever the counters are.
    probe, probe_age = torch.randn(n, 20, E), (age[:, -1:] + 1) + torch.arange(20)
    logits, value = walk(policy, probe, probe_age, cache)
    logits_r, value_r = walk(policy, probe, probe_age, rebuilt)
    assert (logits - logits_r).abs().max() <= 1e-5
    assert (value - value_r).abs().max() <= 1e-5


@torch.no_grad()
def test_rebuilt_keys_equal_stepped_keys_slot_by_slot():
    policy = small_policy(window=8, layers=2)
    token = torch.randn(3, 16, E)
    age = torch.arange(16).expand(3, 16)
    stepped = policy.empty_memory(3)
    walk(policy, token, age, stepped)
    rebuilt = policy.rebuild(token, torch.full((3,), 16))
    assert (stepped.keys_LNHWK - rebuilt.keys_LNHWK).abs().max() <= 1e-5
    assert (stepped.values_LNHWK - rebuilt.values_LNHWK).abs().max() <= 1e-5
    assert torch.equal(stepped.counter_1N, rebuilt.counter_1N)


@torch.no_grad()
def test_context_reaches_exactly_layers_times_window_less_one():
    policy = small_policy(window=8, layers=2)
    steps, reach = 48, 2 * 7
    cache = policy.empty_memory(1)
    memory = copied(cache)
    token, age = torch.randn(1, steps, E), torch.arange(steps)[None]
    base, _ = policy.sequence(token, memory, age)
    changed = token.clone()
    changed[0, 10] += 5.0
    logits, _ = policy.sequence(changed, memory, age)
    moved = (logits - base).abs().amax((0, 2, 3)) > 0
    assert moved[10 : 10 + reach + 1].all() and not moved[10 + reach + 1 :].any()


@torch.no_grad()
@pytest.mark.parametrize("counter", [4096 - 3, 10_000_000])
def test_positions_do_not_drift_with_a_growing_counter(counter):
    policy = small_policy(window=8, layers=2)
    token, age = torch.randn(2, 24, E), torch.arange(24).expand(2, 24)
    near = policy.empty_memory(2)
    logits, _ = walk(policy, token, age, near)
    far = policy.empty_memory(2)
    far.counter_1N.add_(counter - counter % 8)  # slot order must be time order, as after a rebuild
    logits_far, _ = walk(policy, token, age, far)
    assert (logits - logits_far).abs().max() <= 1e-5


@torch.no_grad()
def test_the_cache_has_the_precision_of_the_trunk():
    policy = small_policy().to(torch.bfloat16)
    assert policy.rebuild(torch.randn(2, 16, E), torch.tensor([16, 0])).keys_LNHWK.dtype == torch.bfloat16
