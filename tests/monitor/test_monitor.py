"""metrics.jsonl survives torn lines and new attempts; alarms ring when they should and not otherwise."""

from __future__ import annotations

import json

import pytest
import torch

from hpcrl.monitor.alarms import NEGATIVE_FOR, Alarms
from hpcrl.monitor.console import TrainingConsole
from hpcrl.monitor.metrics import MetricsFile, line_of, read_metrics
from hpcrl.monitor.stopwatch import Stopwatch

GOOD = {
    "epoch": 1,
    "entropy": 1.0,
    "action_share_max": 0.5,
    "explained_variance": 0.1,
    "skipped_steps": 0.0,
    "weight_divergence": 0.0,
}


def test_a_new_attempt_drops_what_lies_after_its_checkpoint_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for epoch in (1, 2, 3):
        first.append({"epoch": epoch, "loss": epoch / 3})
    with path.open("a") as file:
        file.write('{"epoch": 4, "lo')
    second = MetricsFile(path, 2)
    second.append({"epoch": 3, "loss": 9.0})
    assert [(line["epoch"], line["loss"]) for line in read_metrics(path)] == [
        (1, 1 / 3),
        (2, 2 / 3),
        (3, 9.0),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_numbers_survive_to_the_last_bit_and_what_json_lacks_is_null():
    assert json.loads(line_of({"x": 0.1 + 0.2}))["x"] == 0.1 + 0.2
    assert json.loads(line_of({"x": float("nan"), "y": float("inf")})) == {"x": None, "y": None}


def test_a_healthy_epoch_rings_nothing():
    alarms = Alarms(0.02, 1.1)
    assert [alarms.check(GOOD) for _ in range(20)] == [[]] * 20


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"entropy": 0.001}, "entropy"),
        ({"action_share_max": 0.999}, "one action"),
        ({"skipped_steps": 2.0}, "2 optimiser steps skipped"),
        ({"weight_divergence": 1e-9}, "weights differ"),
    ],
)
def test_each_sign_rings_its_own_alarm(change, word):
    (alarm,) = Alarms(0.02, 1.1).check(GOOD | change)
    assert word in alarm


def test_negative_explained_variance_rings_only_after_it_has_lasted():
    alarms = Alarms(0.02, 1.1)
    rung = [bool(alarms.check(GOOD | {"explained_variance": -0.5})) for _ in range(NEGATIVE_FOR + 1)]
    assert rung == [False] * (NEGATIVE_FOR - 1) + [True, True]


def test_plain_lines_carry_the_rank_and_only_rank_0_tells_the_epoch(capsys):
    for rank in (0, 1):
        console = TrainingConsole(rank, 5, "plain")
        console.collected(3, 40960)
        console.epoch({"epoch": 3, "reward": 0.0041, "loss": 0.0123})
    out = capsys.readouterr().out
    assert out == (
        "[GPU 0] Epoch 3: Collected 40960 steps\nEpoch 3: Loss=0.0123, Reward=0.0041\n"
        "[GPU 1] Epoch 3: Collected 40960 steps\n"
    )


def test_the_stopwatch_adds_spans_and_starts_anew_after_each_read():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        with watch.span("env"):
            pass
    assert watch.read()["env"] > 0 and watch.read() == {}


def test_alarms_ring_after_a_resume_as_without_one():
    def line(epoch: int) -> dict:
        return GOOD | {"epoch": epoch, "explained_variance": -0.1}

    whole, resumed = Alarms(0.0, 1.0), Alarms(0.0, 1.0)
    rung = [whole.check(line(epoch)) for epoch in range(NEGATIVE_FOR + 2)]
    resumed.remember([line(epoch) for epoch in range(NEGATIVE_FOR - 3)])
    assert [resumed.check(line(epoch)) for epoch in range(NEGATIVE_FOR - 3, NEGATIVE_FOR + 2)] == rung[-5:]
    assert any(rung[-1])
