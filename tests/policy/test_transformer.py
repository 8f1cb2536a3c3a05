"""The two ways through the weights agree, the rebuilt cache is exact, and no token sees another's future."""

from __future__ import annotations

import pytest
import torch

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy import Policy, build_policy

E = 5


def small_policy(window: int = 8, layers: int = 2, assets: int = 1, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    policy = build_policy(PolicyConfig(d_model=32, layers=layers, heads=2, window=window), E, assets)
    with torch.no_grad():  # a uniform actor and a zero critic would hide differences
        policy.actor.weight.normal_(std=0.3)
        policy.critic.weight.normal_(std=0.3)
    return policy


def ages(resets: dict[int, list[int]], n_envs: int, steps: int, start: torch.Tensor) -> torch.Tensor:
    """Steps since the episode's first token; ``resets[env]`` are the steps at which a new episode begins."""
    age = torch.zeros(n_envs, steps, dtype=torch.int64)
    current = start.clone()
    for t in range(steps):
        for env, at in resets.items():
            if t in at:
                current[env] = 0
        age[:, t] = current
        current += 1
    return age


@torch.no_grad()
def walk(policy, token, age, cache):
    out = [policy.step(token[:, t], age[:, t], cache) for t in range(token.shape[1])]
    return torch.stack([o[0] for o in out], 1), torch.stack([o[1] for o in out], 1)


def copied(memory):
    return tuple(part.clone() for part in memory)


@pytest.mark.parametrize(("window", "steps"), [(8, 32), (8, 29), (16, 16), (5, 37)])
@pytest.mark.parametrize("assets", [1, 3])
def test_step_equals_sequence_over_rollouts_with_resets_anywhere(window, steps, assets):
    policy = small_policy(window=window, assets=assets)
    n = 6
    generator = torch.Generator().manual_seed(1)
    resets = {0: [0], 1: [steps - 1], 2: [0, 1, steps // 2, steps - 1], 3: [window - 1], 4: [window], 5: []}
    length = policy.layers * (policy.window - 1)
    padded = -(-length // window) * window
    history = torch.randn(n, padded, E, generator=generator)
    known = torch.tensor([padded, 3, 0, padded, 1, window])
    age_now = known.clone()
    for rollout in range(3):
        cache = policy.rebuild(history, known)
        memory = copied(cache)
        token = torch.randn(n, steps, E, generator=generator)
        age = ages(resets if rollout else {}, n, steps, age_now)
        logits, value = walk(policy, token, age, cache)
        with torch.no_grad():
            logits_s, value_s = policy.sequence(token, memory, age)
        assert (logits - logits_s).abs().max() <= 1e-5
        assert (value - value_s).abs().max() <= 1e-5
        assert logits.abs().max() > 0.1  # the comparison is not of zeros
        history = torch.cat((history, token), 1)[:, -padded:]
        age_now = age[:, -1] + 1
        known = age_now.clamp_max(padded)


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
def test_no_token_sees_a_later_one_or_another_episode_by_one_bit():
    policy = small_policy(window=8, layers=2)
    n, steps, reset = 2, 32, 13
    cache = policy.rebuild(torch.randn(n, 16, E), torch.full((n,), 16))
    memory = copied(cache)
    token = torch.randn(n, steps, E)
    age = ages({0: [reset]}, n, steps, torch.full((n,), 16))
    base, base_v = policy.sequence(token, memory, age)
    for at in range(steps):
        changed = token.clone()
        changed[0, at] += 1.0
        logits, value = policy.sequence(changed, memory, age)
        assert torch.equal(logits[0, :at], base[0, :at]) and torch.equal(value[0, :at], base_v[0, :at])
        assert torch.equal(logits[1], base[1]), "another environment changed"
        if at < reset:
            assert torch.equal(logits[0, reset:], base[0, reset:]), "the next episode saw the last one"
        assert not torch.equal(logits[0, at], base[0, at])


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


def test_float32_heads_survive_a_bf16_trunk():
    policy = small_policy().to(torch.bfloat16)
    cache = policy.rebuild(torch.randn(2, 16, E), torch.tensor([16, 0]))
    logits, value = policy.step(torch.randn(2, E), torch.tensor([16, 0]), cache)
    assert logits.dtype == value.dtype == torch.float32
    assert cache.keys_LNHWK.dtype == torch.bfloat16
    assert torch.isfinite(logits).all() and torch.isfinite(value).all()
