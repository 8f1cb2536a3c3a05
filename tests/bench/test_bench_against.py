"""``hpcrl bench against-sb3``: both sides train and are judged; the clock counts training alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hpcrl.bench import against
from hpcrl.bench.against import Clock, against_sb3, write
from hpcrl.bench.learn import Size
from hpcrl.config.load import load_config
from hpcrl.types import HpcrlError

CONFIG = Path(__file__).resolve().parents[2] / "yaml" / "learn.yaml"
TINY = (
    "policy.d_model=16", "policy.layers=1", "policy.window=8", "env.envs_per_gpu=4",
    "learn.rollout=16", "learn.sequence_length=16", "learn.batch_size=32", "learn.ppo_epochs=1",
)  # fmt: skip
SIZE = Size(train_paths=4, train_bars=300, fresh_paths=5, fresh_bars=40)


def judged(strategy):
    return {"share": strategy, "share_error": 0.0, "reward": 0.0, "turnover": 0.0}


def test_judging_takes_none_of_the_training_time_and_setting_up_neither(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(against.time, "perf_counter", lambda: now[0])

    def slow(strategy):
        now[0] += 50.0
        return judged(strategy)

    clock = Clock(20.0, slow)
    now[0] += 7.0  # setting up
    assert clock.passed == 0.0 and clock.decayed(1.0) == 1.0
    assert clock.look(0, lambda: 1) and clock.passed == 0.0
    now[0] += 5.0
    assert clock.decayed(1.0) == 0.75
    assert clock.look(7, lambda: 2) and clock.passed == 5.0
    now[0] += 16.0
    assert not clock.look(9, lambda: 3) and clock.decayed(1.0) == against.LEAST_LR
    assert [(p["seconds"], p["steps"], p["share"]) for p in clock.curve] == [(0, 0, 1), (5, 7, 2), (21, 9, 3)]


def test_between_the_marks_nobody_is_judged():
    clock = Clock(1000.0, judged)
    assert all(clock.look(step, lambda: 0) for step in range(5))
    assert len(clock.curve) == 1


def test_hardly_any_stack_of_frames_has_gaps():
    config = load_config(CONFIG, against.OVERRIDES, environment={})
    assert (config.policy.window - 1) / config.episode_steps < 0.1


@pytest.mark.slow
def test_both_sides_end_with_a_curve_a_json_and_a_picture(tmp_path):
    found = against_sb3("L2", 0.5, config_path=CONFIG, overrides=TINY, size=SIZE)
    paths = write(found, tmp_path / "found.json")
    assert [path.name for path in paths] == ["found.json", "found.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    shown = json.loads(paths[0].read_text())
    for name in ("hpcrl", "sb3"):
        curve = shown[name]["curve"]
        assert len(curve) >= 2 and curve[0]["seconds"] < 0.1 and curve[-1]["seconds"] >= 0.5
        assert curve[0]["steps"] == 0 < shown[name]["steps"]
        # Of 200 bars a share has a standard error of 0.7: its size says nothing here.
        assert all(math.isfinite(point["share"]) and point["share_error"] > 0 for point in curve)
    size = shown["hpcrl"]["parameters"] / shown["sb3"]["parameters"]
    assert 0.5 < size < 2
    assert shown["fresh_bars"] == 200 and shown["machine"]["threads"] == 1


def test_what_cannot_be_compared_is_refused(monkeypatch):
    with pytest.raises(HpcrlError, match="seconds is 0"):
        against_sb3("L2", 0, config_path=CONFIG)
    with pytest.raises(HpcrlError, match="best policy of L0 earns nothing"):
        against_sb3("L0", 1, config_path=CONFIG)
    with pytest.raises(HpcrlError, match=r"L9.*not known"):
        against_sb3("L9", 1, config_path=CONFIG)
    monkeypatch.setattr(against, "find_spec", lambda name: None)
    with pytest.raises(HpcrlError, match="needs Stable-Baselines3: pip install stable-baselines3"):
        against_sb3("L2", 1, config_path=CONFIG)


def test_a_name_that_is_no_json_is_refused_before_anything_is_trained(hpcrl):
    code, _, err = hpcrl("bench", "against-sb3", "--out", "found.txt", "--seconds", "1")
    assert code == 2 and "--out found.txt" in err and ".json" in err
