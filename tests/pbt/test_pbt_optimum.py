"""A planted optimum: selection follows it, and beats random search at equal steps (``planted_optimum``)."""

from __future__ import annotations

import numpy as np
import pytest
from planted_optimum import TOYS, Toy, best_fixed, compare, final_skill

from hpcrl.config.pbt import PbtConfig

PBT = PbtConfig(members=8)
SEEDS = range(10)


def test_a_population_follows_a_best_rate_that_falls_and_beats_random_search():
    found = compare(TOYS["falling"], PBT, 50, SEEDS)
    assert found.wins == len(SEEDS) and found.interval[0] > 1
    assert min(found.population) > best_fixed(TOYS["falling"], PBT, 50), "no fixed rate is as good"


def test_it_is_not_worse_where_the_best_rate_stays():
    found = compare(TOYS["fixed"], PBT, 50, SEEDS)
    assert found.median > 0 and found.interval[0] > -0.5


def test_what_moves_faster_than_the_factors_reach_is_lost_and_wider_factors_follow():
    """Two decades in 25 generations; a factor of 0.8 is a tenth of a decade. docs/pbt.md tells it."""
    narrow = compare(TOYS["falling"], PBT, 25, SEEDS)
    wide = compare(TOYS["falling"], PBT.model_copy(update={"factors": (0.5, 2.0)}), 25, SEEDS)
    assert narrow.interval[0] < 0 < wide.interval[0]


def test_where_hyperparameters_do_nothing_selection_wins_nothing():
    flat = Toy("flat", lambda: np.zeros(()), lambda skill, values, at: skill + 1, float)
    assert [final_skill(flat, PBT, 1, 20, select) for select in (True, False)] == [20, 20]


@pytest.mark.soak
@pytest.mark.parametrize("name", TOYS)
def test_soak_every_toy_by_a_hundred_generations(name, record_property):
    found = compare(TOYS[name], PBT, 100, SEEDS)
    low, high = found.interval
    told = f"{found.median:+.1f}, {low:+.1f} to {high:+.1f}, won {found.wins} of {len(SEEDS)}"
    record_property(f"planted optimum, {name}: median difference to random search", told)
    assert low > 0
