"""Alarms that need many epochs: no progress, a frozen policy; and a lasting alarm is told ever less often."""

from __future__ import annotations

import math
import random

import pytest

from hpcrl.monitor.alarms import STILL_FOR, Alarms, name_of
from hpcrl.monitor.progress import BLOCK, FIRST, PATIENCE, PLATEAU, Progress, doubled

COLLAPSED, GREATEST = 0.02, 1.1
GOOD = {
    "entropy": 1.0, "action_share_max": 0.5, "explained_variance": 0.1, "skipped_steps": 0.0,
    "weight_divergence": 0.0, "approx_kl": 1e-3, "ppo_epochs": 4.0, "lr": 3e-4, "loss": 0.1, "reward": 1e-4,
}  # fmt: skip


def rung(rewards: list[float]) -> list[int]:
    """Epochs after which the lack of progress is said."""
    progress = Progress()
    return [epoch for epoch, reward in enumerate(rewards, 1) if progress.add(epoch, reward)]


def curve(level, epochs: int, noise: float = 1e-4, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level(epoch) + draw.gauss(0, noise) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_reward_that_never_rises_is_said_after_85_epochs_and_then_ever_less_often(seed):
    first = FIRST + PATIENCE * BLOCK
    assert first == 85
    found = rung(curve(lambda epoch: -1.5e-4, 800, seed=seed))
    # A block of noise may stand out by chance, which the alarm takes for a rise: it comes later then.
    assert found and found[0] >= first and len(found) <= 5


def test_without_noise_it_is_said_at_blocks_three_six_and_twelve():
    flat = [1e-4] * (FIRST + 13 * BLOCK)
    assert rung(flat) == [FIRST + blocks * BLOCK for blocks in (3, 6, 12)]


def test_a_reward_that_falls_is_no_progress():
    assert rung(curve(lambda epoch: -1e-6 * epoch, 100)) == [85]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "level",
    [
        lambda epoch: 1.4e-3 * (1 - math.exp(-epoch / 30)),  # as the sample's run of 150 epochs
        lambda epoch: 5e-4 if epoch > 3 else 0.0,  # learnt at once
        lambda epoch: 3e-6 * epoch,  # slow, and below the noise of single epochs
    ],
)
def test_a_healthy_run_of_150_epochs_rings_nothing(level, seed):
    assert rung(curve(level, 150, seed=seed)) == []


def test_a_plateau_after_a_rise_is_said_later_with_the_epoch_of_the_rise():
    progress = Progress()
    lines = {e: progress.add(e, r) for e, r in enumerate([0.0] * FIRST + [1.0] * 20 * BLOCK, 1)}
    told = {epoch: line for epoch, line in lines.items() if line}
    assert list(told) == [FIRST + (1 + PLATEAU) * BLOCK, FIRST + (1 + 2 * PLATEAU) * BLOCK]
    assert "those up to epoch 35; stop if that is enough" in told[235]


def test_epochs_without_a_reward_are_passed_over():
    assert rung([math.nan, 1e-4] * 100) == [170]


def frozen(*lines: dict) -> list[int]:
    alarms = Alarms(COLLAPSED, GREATEST)
    found = [alarms.check(GOOD | line) for line in lines]
    return [n for n, each in enumerate(found, 1) if any(name_of(line) == "frozen policy" for line in each)]


STILL = {"approx_kl": 0.0}


def test_a_policy_that_updates_leave_as_it_is_rings_after_20_epochs_and_then_ever_less_often():
    assert frozen(*[STILL] * 100) == [STILL_FOR, 2 * STILL_FOR, 4 * STILL_FOR]
    assert frozen(*[STILL] * 19, {}, *[STILL] * 19) == []


@pytest.mark.parametrize(
    "why_still",
    [
        {"ppo_epochs": 1.0},  # its only minibatch may be the first one, which sees no change
        {"lr": 2e-5},  # the rate has decayed
        {"entropy": 0.001},  # it has decided, and another alarm says so
        {"skipped_steps": 8.0},
        {"approx_kl": 1e-6},
    ],
)
def test_a_policy_with_a_reason_to_be_still_is_not_called_frozen(why_still):
    assert frozen({}, *[STILL | why_still] * 50) == []


def test_numbers_that_are_none_ring_and_break_nothing():
    for odd in (math.nan, None):
        (alarm,) = Alarms(COLLAPSED, GREATEST).check(GOOD | {"loss": odd, "reward": odd, "lr": odd})
        assert alarm.startswith("not finite: loss, reward; lower learn.lr")
    assert Alarms(COLLAPSED, GREATEST).check({"epoch": 3}) == [], "a line of another version"


def test_every_alarm_has_a_name_of_its_own_and_something_to_try():
    bad = {"entropy": 0.001, "action_share_max": 1.0, "explained_variance": -1.0, "skipped_steps": 1.0,
           "weight_divergence": 1e-9, "loss": math.nan}  # fmt: skip
    alarms = Alarms(COLLAPSED, GREATEST)
    found = [*(alarms.check(GOOD | bad) for _ in range(85))][-1]
    found += [line for n in range(STILL_FOR) for line in alarms.check(GOOD | STILL)]
    names = [name_of(line) for line in found]
    assert len(set(names)) == len(names) == 8 and all(len(name.split()) <= 2 for name in names)
    assert all("; " in line for line in found)


def test_a_resumed_run_rings_and_tells_as_an_uninterrupted_one():
    draw = random.Random(1)
    lines = [
        GOOD | {"epoch": epoch, "reward": draw.gauss(0, 1e-4)} | (STILL if epoch % 50 > 20 else {})
        | ({"action_share_max": 1.0} if epoch % 40 > 33 else {})
        for epoch in range(1, 231)
    ]  # fmt: skip

    def told(alarms: Alarms, some: list[dict]) -> list[tuple[list[str], list[str]]]:
        return [(found := alarms.check(line), alarms.news(found)) for line in some]

    whole = told(Alarms(COLLAPSED, GREATEST), lines)
    assert {name_of(a) for found, _ in whole for a in found} == {"one action", "frozen policy", "no progress"}
    for cut in (1, 37, 84, 85, 118, 200):
        resumed = Alarms(COLLAPSED, GREATEST)
        resumed.remember(lines[:cut])
        assert told(resumed, lines[cut:]) == whole[cut:]


def test_an_alarm_that_lasts_is_told_in_epochs_1_2_4_8_of_it_and_anew_when_it_comes_back():
    alarms = Alarms(COLLAPSED, GREATEST)
    ill = [epoch != 11 for epoch in range(1, 21)]
    told = [
        epoch
        for epoch, bad in enumerate(ill, 1)
        if alarms.news(alarms.check(GOOD | ({"action_share_max": 1.0} if bad else {})))
    ]
    assert told == [1, 2, 4, 8, 12, 13, 15, 19]


def test_doubling():
    assert [count for count in range(50) if doubled(count, 3)] == [3, 6, 12, 24, 48]
