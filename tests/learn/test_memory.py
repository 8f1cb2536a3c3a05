"""Memory works: a cue seen k bars before it pays, for k inside one window and beyond it (two layers)."""

from __future__ import annotations

import pytest
from planted import CONFIG, train_and_play

from hpcrl.config.load import load_config

INSIDE, BEYOND = 12, 45
"""k; the window is 32, so 45 = 1.4 W."""
EPOCHS = {INSIDE: 50, BEYOND: 160}


def test_the_far_cue_lies_beyond_one_window_and_within_two():
    policy = load_config(CONFIG, environment={}).policy
    assert policy.window * 1.4 <= BEYOND < policy.history_tokens


@pytest.mark.slow
@pytest.mark.parametrize("k", [INSIDE, BEYOND])
def test_the_policy_reaches_nine_tenths_of_the_oracle_on_fresh_bars(tmp_path, one_rank, k):
    result = train_and_play(tmp_path, k, seed=0, epochs=EPOCHS[k], world=one_rank)
    assert 0.9 <= result.share <= 1.02, result


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("k", [INSIDE, BEYOND])
def test_soak_memory_on_three_seeds(tmp_path, one_rank, record_property, k, seed):
    result = train_and_play(tmp_path, k, seed, EPOCHS[k], one_rank)
    record_property(
        "planted cue", f"k {k}, seed {seed}, {result.env_steps:,} env steps: share {result.share:.3f}"
    )
    assert 0.9 <= result.share <= 1.02, result
