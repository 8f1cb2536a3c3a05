"""The surrogate by hand, minibatches of whole chunks, and the learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch

from hpcrl.config.learn import LearnConfig
from hpcrl.learn.batches import permutation
from hpcrl.learn.losses import explained_variance, ppo_loss
from hpcrl.learn.schedule import learning_rate


def terms(ratio, advantage, value=0.0, old_value=0.0, target=0.0, **learn):
    one = torch.ones(1, 1)
    return ppo_loss(
        torch.log(one * ratio),
        one * 0.5,
        one * value,
        torch.zeros(1, 1),
        one * old_value,
        one * advantage,
        one * target,
        LearnConfig(**learn),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.1, 2.0, -2.2), (1.5, 2.0, -2.4), (1.5, -2.0, 3.0), (0.5, 2.0, -1.0), (0.5, -2.0, 1.6)],
)
def test_surrogate_is_the_pessimistic_one_of_the_clipped_and_the_plain(ratio, advantage, expected):
    assert terms(ratio, advantage).policy.item() == pytest.approx(expected, rel=1e-6)


def test_total_adds_value_and_entropy_with_their_weights():
    got = terms(1.0, 0.0, value=3.0, target=1.0, value_coef=0.25, entropy_coef=0.1)
    assert got.total.item() == pytest.approx(0.25 * 0.5 * 4.0 - 0.1 * 0.5)


def test_value_clipping_takes_the_worse_error():
    assert terms(
        1.0, 0.0, value=3.0, old_value=0.0, target=1.0, value_clip=0.2
    ).value.item() == pytest.approx(2.0)
    assert terms(
        1.0, 0.0, value=1.0, old_value=0.0, target=1.0, value_clip=0.2
    ).value.item() == pytest.approx(0.32)


def test_kl_and_clip_fraction():
    got = terms(1.5, 1.0)
    assert got.approx_kl.item() == pytest.approx(0.5 - math.log(1.5), rel=1e-5)
    assert got.clip_fraction.item() == 1.0 and terms(1.0, 1.0).approx_kl.item() == 0.0


def test_explained_variance():
    target = torch.randn(4, 50)
    assert explained_variance(target, target).item() == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(target), target).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(target, torch.ones(4, 50)).item() == 0.0


def test_every_epoch_and_rank_has_its_own_order_and_repeats_it():
    orders = {
        (epoch, ppo, rank): tuple(permutation(64, 1, epoch, ppo, rank).tolist())
        for epoch in range(3)
        for ppo in range(3)
        for rank in range(2)
    }
    assert len(set(orders.values())) == len(orders)
    assert all(sorted(order) == list(range(64)) for order in orders.values())
    state = torch.random.get_rng_state()
    assert tuple(permutation(64, 1, 2, 2, 1).tolist()) == orders[2, 2, 1]
    assert torch.equal(state, torch.random.get_rng_state()), "drawing an order moved the global stream"


def test_schedules_decay_to_the_final_fraction_and_warm_up():
    linear = LearnConfig(lr=1e-3, lr_schedule="linear", lr_final_fraction=0.1)
    assert learning_rate(linear, 0, 10) == pytest.approx(1e-3)
    assert learning_rate(linear, 10, 10) == pytest.approx(1e-4)
    cosine = LearnConfig(lr=1e-3, lr_schedule="cosine", warmup_epochs=2)
    assert learning_rate(cosine, 0, 12) == pytest.approx(1e-3 / 3)
    assert learning_rate(cosine, 2, 12) == pytest.approx(1e-3)
    assert learning_rate(cosine, 7, 12) == pytest.approx(5e-4)
    assert learning_rate(LearnConfig(lr=1e-3), 99, 100) == 1e-3
