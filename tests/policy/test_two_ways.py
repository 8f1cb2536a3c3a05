"""For every kind and head: the two ways agree, rebuilt memory is exact, no token sees another's future."""

from __future__ import annotations

import pytest
import torch
from policies import CASES, E, ages, copied, small_policy, walk


@pytest.mark.parametrize(("kind", "head"), CASES)
@pytest.mark.parametrize(("window", "steps"), [(8, 32), (8, 29), (16, 16), (5, 37)])
@pytest.mark.parametrize("assets", [1, 3])
def test_step_equals_sequence_over_rollouts_with_resets_anywhere(kind, head, window, steps, assets):
    policy = small_policy(kind, head, window=window, assets=assets, layers=4 if kind == "lightweight" else 2)
    n = 6
    generator = torch.Generator().manual_seed(1)
    resets = {0: [0], 1: [steps - 1], 2: [0, 1, steps // 2, steps - 1], 3: [window - 1], 4: [window], 5: []}
    length = 2 * (window - 1)
    padded = -(-length // window) * window
    history = torch.randn(n, padded, E, generator=generator)
    known = torch.tensor([padded, 3, 0, padded, 1, window])
    age_now = known.clone()
    for rollout in range(3):
        stepped = policy.rebuild(history, known)
        memory = copied(stepped)
        token = torch.randn(n, steps, E, generator=generator)
        age = ages(resets if rollout else {}, n, steps, age_now)
        params, value = walk(policy, token, age, stepped)
        with torch.no_grad():
            params_s, value_s = policy.sequence(token, memory, age)
        assert params.shape == (n, steps, assets, policy.distribution.params)
        assert (params - params_s).abs().max() <= 1e-5
        assert (value - value_s).abs().max() <= 1e-5
        assert params.std() > 0.05  # the comparison is not of constants
        history = torch.cat((history, token), 1)[:, -padded:]
        age_now = age[:, -1] + 1
        known = age_now.clamp_max(padded)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_rebuilt_memory_equals_stepping_through_the_same_tokens(kind, head):
    policy = small_policy(kind, head, layers=4)
    padded, lengths = 32, [32, 31, 9, 1, 0]
    token = torch.randn(len(lengths), padded, E, generator=torch.Generator().manual_seed(2))
    rebuilt = policy.rebuild(token, torch.tensor(lengths))
    probe = torch.randn(len(lengths), 20, E)
    age = torch.tensor(lengths)[:, None] + torch.arange(20)
    params, value = walk(policy, probe, age, rebuilt)
    for env, length in enumerate(lengths):  # one by one, so that no padding is stepped through
        memory = policy.empty_memory(1)
        if length:
            walk(policy, token[env : env + 1, padded - length :], torch.arange(length)[None], memory)
        alone, alone_v = walk(policy, probe[env : env + 1], age[env : env + 1], memory)
        assert (alone - params[env]).abs().max() <= 1e-5, length
        assert (alone_v - value[env]).abs().max() <= 1e-5, length


@torch.no_grad()
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_no_token_sees_a_later_one_or_another_episode_by_one_bit(kind, head):
    policy = small_policy(kind, head)
    n, steps, reset = 2, 32, 13
    memory = policy.rebuild(torch.randn(n, 16, E), torch.full((n,), 16))
    token = torch.randn(n, steps, E)
    age = ages({0: [reset]}, n, steps, torch.full((n,), 16))
    base, base_v = policy.sequence(token, memory, age)
    for at in range(steps):
        changed = token.clone()
        changed[0, at] += 1.0
        params, value = policy.sequence(changed, memory, age)
        assert torch.equal(params[0, :at], base[0, :at]) and torch.equal(value[0, :at], base_v[0, :at])
        assert torch.equal(params[1], base[1]), "another environment changed"
        if at < reset:
            assert torch.equal(params[0, reset:], base[0, reset:]), "the next episode saw the last one"
            assert at == reset - 1 or not torch.equal(params[0, at + 1], base[0, at + 1]), (
                "nothing remembered"
            )
        assert not torch.equal(params[0, at], base[0, at])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_padding_of_the_history_is_never_seen(kind, head):
    policy = small_policy(kind, head)
    token, length = torch.randn(3, 16, E), torch.tensor([5, 0, 15])
    other = token.clone()
    for env, known in enumerate(length.tolist()):
        other[env, : 16 - known] = 7.0
    probe, age = torch.randn(3, 10, E), length[:, None] + torch.arange(10)
    a, _ = walk(policy, probe, age, policy.rebuild(token, length))
    b, _ = walk(policy, probe, age, policy.rebuild(other, length))
    assert torch.equal(a, b)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_sequence_leaves_its_memory_alone_and_step_changes_it(kind, head):
    policy = small_policy(kind, head)
    memory = policy.rebuild(torch.randn(2, 16, E), torch.tensor([16, 3]))
    before = copied(memory)
    policy.sequence(torch.randn(2, 8, E), memory, torch.arange(8).expand(2, 8) + 3)
    assert all(torch.equal(a, b) for a, b in zip(before, memory, strict=True))
    policy.step(torch.randn(2, E), torch.tensor([16, 3]), memory)
    assert not all(torch.equal(a, b) for a, b in zip(before, memory, strict=True))


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_float32_heads_survive_a_bf16_trunk(kind, head):
    policy = small_policy(kind, head).to(torch.bfloat16)
    memory = policy.rebuild(torch.randn(2, 16, E), torch.tensor([16, 0]))
    params, value = policy.step(torch.randn(2, E), torch.tensor([16, 0]), memory)
    assert params.dtype == value.dtype == torch.float32
    assert torch.isfinite(params).all() and torch.isfinite(value).all()


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_gradients_reach_every_weight(kind, head):
    policy = small_policy(kind, head, layers=4, assets=2)
    memory = policy.rebuild(torch.randn(3, 32, E), torch.tensor([32, 0, 5]))
    age = torch.arange(16).expand(3, 16) + torch.tensor([[32], [0], [5]])
    token = torch.randn(3, 16, E)
    params, _ = policy.sequence(token, memory, age)
    action = policy.distribution.sample(params.detach(), torch.rand(3, 16, 2, dtype=torch.float64))
    log_prob, entropy, value = policy(token, memory, age, action)
    assert log_prob.shape == entropy.shape == value.shape == (3, 16)
    (log_prob.sum() + entropy.sum() + value.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())
