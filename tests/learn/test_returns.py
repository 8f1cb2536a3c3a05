"""Advantages by hand, truncation anywhere, and the running scale of returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcrl.learn.returns import ReturnScale, gae, next_values, normalise
from hpcrl.world.world import World

ALONE = World(0, 1, 0, torch.device("cpu"), "none")


def slow_gae(reward, value, next_value, terminated, truncated, gamma, lam):
    """The sum over the episode's remaining deltas, step by step, in plain Python."""
    n, steps = reward.shape
    out = np.zeros((n, steps))
    for i in range(n):
        for t in range(steps):
            weight = 1.0
            for u in range(t, steps):
                bootstrap = 0.0 if terminated[i, u] else gamma * next_value[i, u]
                out[i, t] += weight * (reward[i, u] + bootstrap - value[i, u])
                if terminated[i, u] or truncated[i, u]:
                    break
                weight *= gamma * lam
    return out


@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_the_plain_sum_with_ends_anywhere(seed):
    generator = np.random.default_rng(seed)
    shape = (6, 20)
    reward, value, after = (generator.normal(size=shape) for _ in range(3))
    terminated = generator.random(shape) < 0.1
    truncated = (generator.random(shape) < 0.1) & ~terminated
    truncated[0, -1] = terminated[1, -1] = truncated[2, 0] = True
    expected = slow_gae(reward, value, after, terminated, truncated, 0.97, 0.9)
    as_float = [torch.tensor(x, dtype=torch.float32) for x in (reward, value, after)]
    got = gae(*as_float, torch.tensor(terminated), torch.tensor(truncated), 0.97, 0.9)
    assert np.abs(got.numpy() - expected).max() < 1e-5


def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not():
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    assert gae(one, zero, 10 * one, no, yes, 0.5, 0.9).item() == pytest.approx(6.0)
    assert gae(one, zero, 10 * one, yes, no, 0.5, 0.9).item() == pytest.approx(1.0)


def test_rewards_of_one_episode_change_no_advantage_of_another():
    reward, value = torch.zeros(1, 6), torch.zeros(1, 6)
    truncated = torch.tensor([[False, False, True, False, False, True]])
    none = torch.zeros(1, 6, dtype=torch.bool)
    changed = reward.clone()
    changed[0, 3:] = 100.0
    args = (value, value, none, truncated, 0.99, 0.95)
    assert torch.equal(gae(reward, *args)[:, :3], gae(changed, *args)[:, :3])


def test_next_values_end_with_the_bootstrap():
    value = torch.tensor([[1.0, 2.0, 3.0]])
    assert next_values(value, torch.tensor([9.0])).tolist() == [[2.0, 3.0, 9.0]]


def test_return_scale_is_the_deviation_of_all_discounted_returns_seen():
    generator = torch.Generator().manual_seed(0)
    scale, seen, running = ReturnScale(torch.zeros(4, dtype=torch.float64)), [], np.zeros(4)
    for _ in range(3):
        reward = torch.randn(4, 10, generator=generator)
        done = torch.rand(4, 10, generator=generator) < 0.2
        scale.update(reward, done, 0.9, ALONE)
        for t in range(10):
            running = running * 0.9 + reward[:, t].double().numpy()
            seen.append(running.copy())
            running = running * ~done[:, t].numpy()
    assert scale.std == pytest.approx(np.std(np.array(seen)), rel=1e-12)
    again = ReturnScale(torch.zeros(4, dtype=torch.float64))
    again.load(scale.state())
    assert again.std == scale.std


def test_return_scale_of_constant_zero_rewards_divides_by_one():
    scale = ReturnScale(torch.zeros(2, dtype=torch.float64))
    scale.update(torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool), 0.9, ALONE)
    assert scale.std == 1.0


def test_normalised_advantages_keep_the_order_and_have_unit_deviation():
    x = torch.randn(8, 32) * 7 + 3
    y = normalise(x, ALONE)
    assert abs(y.mean()) < 1e-6 and abs(y.std(unbiased=False) - 1) < 1e-5
    assert torch.equal(x.flatten().argsort(), y.flatten().argsort())
