"""When a member takes its turns within the loop; training itself is a stand-in here."""

from __future__ import annotations

import contextlib
import signal
from types import SimpleNamespace

import pytest
import torch

from hpcrl import train
from hpcrl.launch import member
from hpcrl.types import STOPPED_EARLY
from hpcrl.world.memory import OutOfMemory, Shortage
from hpcrl.world.stop import StopFlag


class Turns:
    """Every two epochs."""

    def __init__(self, room_after: int = 99) -> None:
        self.generation, self.room_after = 0, room_after
        self.taken: list[tuple[int, bool]] = []

    def due(self, epoch: int) -> bool:
        return epoch // 2 > self.generation

    def take(self, trainer, save) -> bool:
        before = len(trainer.saved)
        save()
        self.taken.append((trainer.epoch, len(trainer.saved) > before))
        self.generation += 1
        return self.generation >= self.room_after


@pytest.fixture
def loop(monkeypatch):
    """``run(turns, stop_in, start)``: the exit code of ``learn`` over 4 epochs, and the epochs saved."""
    monkeypatch.setattr(train, "update", lambda *a: {})
    monkeypatch.setattr(train, "summarise", lambda *a: {})
    monkeypatch.setattr(train, "timing", lambda *a: {})
    monkeypatch.setattr(train, "weight_divergence", lambda *a: 0.0)
    monkeypatch.setattr(train.Alarms, "check", lambda self, metrics: [])
    monkeypatch.setattr(train, "save", lambda trainer, *a: trainer.saved.append(trainer.epoch))

    def run(turns: Turns, stop_in: int | None = None, start: int = 0) -> tuple[int, list[int]]:
        stop, reward = StopFlag(), SimpleNamespace(reward_CNQ=torch.zeros(2))

        def collect(epoch: int):
            if epoch + 1 == stop_in:
                stop.request(signal.SIGUSR2)
            return reward, None

        distribution = SimpleNamespace(collapsed_entropy=0.0, greatest_entropy=9.0, shares=())
        trainer = SimpleNamespace(
            config=SimpleNamespace(
                train=SimpleNamespace(epochs=4),
                checkpoint=SimpleNamespace(every_minutes=10, every_epochs=50),
                monitor=SimpleNamespace(gpu_stats_every=10),
            ),
            world=SimpleNamespace(size=1, is_main=True, rank=0),
            engine=SimpleNamespace(refresh=lambda policy: None),
            collector=SimpleNamespace(
                policy=SimpleNamespace(distribution=distribution),
                simulator=SimpleNamespace(n_assets=1),
                watch=SimpleNamespace(span=lambda name: contextlib.nullcontext()),
                collect=collect,
            ),
            epoch=start, env_steps=0, scale=None, attempt=1, progress=dict, saved=[],
        )  # fmt: skip
        nothing = SimpleNamespace(collected=print, epoch=print, gpu=print, say=print)
        return train.learn(trainer, None, None, stop, nothing, turns=turns), trainer.saved

    return run


def test_turns_come_after_their_epoch_from_a_checkpoint_of_it(loop):
    turns = Turns()
    assert loop(turns) == (0, [0, 2, 4])
    assert turns.taken == [(2, True), (4, True)]


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_stop_leaves_the_turn_to_the_next_attempt_also_in_the_last_epoch(loop, epoch):
    turns = Turns()
    code, saved = loop(turns, stop_in=epoch)
    assert code == STOPPED_EARLY and saved[-1] == epoch
    assert turns.taken == [(2, True)][: epoch // 2 - 1]
    code, saved = loop(turns, start=epoch)
    assert code == 0 and turns.taken[epoch // 2 - 1] == (epoch, False) and turns.generation == 2


def test_a_member_that_makes_room_stops_there_and_not_after_the_last_turn(loop):
    turns = Turns(room_after=1)
    assert loop(turns) == (STOPPED_EARLY, [0, 2])


def test_a_donor_that_does_not_fit_into_memory_ends_all_ranks_and_is_not_abandoned(monkeypatch):
    answers = [OutOfMemory(Shortage(1, "node7", "host memory", False, 0, 0, 0))]

    def agreed(world, action):
        if answers:
            raise answers.pop()
        return "abandoned"

    monkeypatch.setattr(member, "all_or_none", agreed)
    monkeypatch.setattr(member, "broadcast_object", lambda world, value: value)
    turns, trainer, plan = SimpleNamespace(member=None), SimpleNamespace(world=None), SimpleNamespace(donor=1)
    with pytest.raises(OutOfMemory):
        member.MemberTurns._adopt(turns, trainer, plan)
