"""A population against the rates that it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcrl.bench.population import Judged, SeedResult, Spread, bench_pbt, summary
from hpcrl.bench.population_plot import write_spread

ROOT = Path(__file__).resolve().parents[2]


def result(seed: int, chosen: float, *fixed: float) -> SeedResult:
    population = [Judged(0, 3e-5, 4e-4, 0.1, 0.01), Judged(1, 1e-3, 1e-3, chosen, 0.01)]
    rates = [Judged(m, 3e-5 * 10**m, 3e-5 * 10**m, share, 0.01) for m, share in enumerate(fixed)]
    return SeedResult(seed, population, 1, 2, rates, "pbt")


def test_the_named_member_is_compared_with_the_best_fixed_rate_of_each_seed(tmp_path):
    results = [result(0, 0.90, 0.5, 0.92), result(1, 0.95, 0.93, 0.2), result(2, 0.91, 0.91, 0.3)]
    found = summary(results, Spread(members=2))
    assert found["difference"] == pytest.approx(0.0) and found["passed"]
    # t(2) = 4.3027 at 97.5 %, the standard deviation of -.02, .02, 0 is .02.
    assert found["interval"] == pytest.approx([-4.302653 * 0.02 / 3**0.5, 4.302653 * 0.02 / 3**0.5], rel=1e-5)
    worse = [result(seed, 0.5 + 0.001 * seed, 0.9, 0.9) for seed in range(3)]
    assert not summary(worse, Spread(members=2))["passed"]
    assert summary(worse[:1], Spread(members=2))["interval"] is None
    write_spread(found, tmp_path / "shares.png")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak
def test_a_small_comparison_runs_and_goes_on_where_it_was_left(tmp_path):
    sets = (
        "train.epochs=4",
        "pbt.interval=2",
        "env.envs_per_gpu=8",
        "learn.rollout=64",
        "learn.batch_size=256",
    )
    sets += ("learn.sequence_length=64", "policy.d_model=16", "market.validation_fraction=0.2")
    sets += ("market.train_fraction=0.7", "pbt.objective.window_bars=10", "policy.window=8")
    spread = Spread(members=2, train_paths=8, train_bars=1_500, fresh_paths=4, fresh_bars=200)
    config = ROOT / "yaml" / "learn_pbt.yaml"
    first = bench_pbt(1, config, sets, tmp_path, at_once=2, spread=spread)
    (row,) = first["seeds"]
    assert [each["member"] for each in row["fixed"]] == [0, 1] and row["fixed"][0]["first_lr"] == spread.low
    assert all(each["first_lr"] == each["last_lr"] for each in row["fixed"])
    again = bench_pbt(1, config, sets, tmp_path, at_once=2, spread=spread)
    assert again["seeds"] == first["seeds"]
