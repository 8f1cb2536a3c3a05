"""CSCV against a brute force that follows the paper word by word, on noise, on skill, and on populations."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from made_populations import make_population
from scipy.stats import rankdata

from hpcrl.evaluate.overfitting import (
    average,
    blocks_for,
    cscv,
    population_overfitting,
    window_table,
)
from hpcrl.pbt.history import read_past
from hpcrl.types import HpcrlError


def brute(value_TN: np.ndarray, blocks: int, statistic) -> np.ndarray:
    """Logits, choice by choice: rows joined, the statistic of each column, ranks by scipy."""
    parts = np.array_split(value_TN, blocks)
    logits = []
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([parts[k] for k in range(blocks) if k in chosen])
        outside = np.concatenate([parts[k] for k in range(blocks) if k not in chosen])
        best = int(np.argmax(statistic(inside)))
        rank = rankdata(statistic(outside))[best]
        w = rank / (value_TN.shape[1] + 1)
        logits.append(math.log(w / (1 - w)))
    return np.array(logits)


def column_sharpe(rows: np.ndarray) -> np.ndarray:
    return rows.mean(0) / rows.std(0, ddof=1)


@pytest.mark.parametrize("shape", [(40, 7), (41, 10), (400, 2)])
@pytest.mark.parametrize("blocks", [4, 6])
@pytest.mark.parametrize("drift", [0.0, 3e-3])
def test_equals_the_brute_force(shape, blocks, drift):
    rng = np.random.default_rng(shape[0])
    value = rng.normal(1e-5, 1e-3, shape)
    value += np.outer(np.linspace(-drift, drift, shape[0]), rng.normal(size=shape[1]))
    found = cscv(value, blocks)
    wanted = brute(value, blocks, column_sharpe)
    np.testing.assert_allclose(found.logit_C, wanted, rtol=0, atol=1e-12)
    assert found.probability == np.mean(wanted <= 0)
    by_mean = cscv(value, blocks, average)
    np.testing.assert_allclose(
        by_mean.logit_C, brute(value, blocks, lambda rows: rows.mean(0)), rtol=0, atol=1e-12
    )


def test_noise_gives_one_half_on_average():
    found = [cscv(np.random.default_rng(seed).normal(size=(480, 20)), 8).probability for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)
    assert 0.1 < np.std(found) < 0.3


def test_one_trial_with_skill_is_not_overfitting():
    value = np.random.default_rng(0).normal(size=(480, 20))
    value[:, 7] += 0.5
    found = cscv(value)
    assert found.probability < 0.01 and len(found.logit_C) == 12_870


def test_what_wins_in_one_half_and_loses_in_the_other_is_overfitting():
    """Trial k wins in block k alone, and pays for it everywhere else."""
    value = np.random.default_rng(0).normal(0, 0.1, size=(160, 8)) - np.kron(np.eye(8), np.ones((20, 1))) * -8
    value -= value.mean(0)
    assert cscv(value, 8).probability > 0.9


def test_numbers_far_from_zero_lose_no_digits():
    value = np.random.default_rng(1).normal(size=(64, 6))
    np.testing.assert_array_equal(cscv(value, 8, average).logit_C, cscv(value + 1e6, 8, average).logit_C)


def test_trials_that_never_trade_and_copies_are_ranked_and_do_not_break_it():
    value = np.random.default_rng(2).normal(-1.0, 1.0, size=(64, 5))
    value[:, 3] = 0.0  # flat: better than what loses
    found = cscv(value, 8)
    assert found.probability == 0.0 and np.isfinite(found.logit_C).all()
    copies = np.repeat(np.random.default_rng(3).normal(size=(64, 1)), 4, axis=1)
    same = cscv(copies, 8)
    assert math.isnan(same.probability) and "the same" in same.reason
    assert same.to_json()["probability"] is None


@pytest.mark.parametrize(
    ("value", "blocks", "said"),
    [
        (np.zeros((10, 1)), 4, "1 is too few"),
        (np.zeros((10, 3)), 5, "blocks = 5"),
        (np.zeros((10, 3)), 22, "blocks = 22"),
        (np.zeros((10, 3)), 16, "10 rows make no 16 blocks"),
        (np.full((10, 3), np.nan), 4, "NaN or infinity"),
        (np.zeros(10), 4, "1 axes"),
    ],
)
def test_bad_input_is_one_clear_line(value, blocks, said):
    with pytest.raises(HpcrlError, match=said):
        cscv(value, blocks)


def test_blocks_hold_two_rows_at_least():
    assert [blocks_for(rows) for rows in (4, 7, 8, 24, 31, 32, 500)] == [2, 2, 4, 12, 14, 16, 16]


def test_a_population_is_every_generation_of_every_member_by_windows(tmp_path):
    population = make_population(tmp_path, "pbt.members=4", generations=3)
    past = read_past(population)
    table = window_table(past)
    assert table.shape == (24, 12)
    assert tuple(table[:, 4]) == past[1].turns[1].record.scores
    found = population_overfitting(population)
    assert (found.trials, found.rows, found.blocks) == (12, 24, 12)
    assert found.probability == np.mean(brute(table, 12, lambda rows: rows.mean(0)) <= 0)


def test_a_population_without_records_says_so(tmp_path):
    population = make_population(tmp_path, "pbt.members=2", late=(0, 1), generations=1)
    found = population_overfitting(population)
    assert math.isnan(found.probability) and "0 trials" in found.reason
