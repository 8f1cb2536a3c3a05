"""The agent's result by fill lag, and the warning where it halves: leaks yes, noise and lasting edges no."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_runs import FREE, make_config, make_data, make_run
from rich.console import Console

from hpcrl.evaluate import evaluate as room
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT
from hpcrl.evaluate.lags import halving
from hpcrl.evaluate.table import render_table
from hpcrl.market.features import BURN_IN
from hpcrl.market.planted import planted
from hpcrl.market.stage import stage_frame, stage_planted
from hpcrl.market.synthetic import random_walk


class FollowsFeature:
    """Long where the first feature is above its training mean, else short: a rule in the agent's place."""

    def __init__(self, policy: object) -> None:
        pass

    def begin(self, simulator, history_NME, length_N) -> None:
        pass

    def weights(self, simulator, step, position_NA):
        return torch.sign(simulator.observe()[:, :1]).double()


@pytest.fixture
def follow(monkeypatch):
    """``follow(data, **env)``: the evaluation of a run whose agent follows its data's only feature."""
    monkeypatch.setattr(room, "PolicyStrategy", FollowsFeature)

    def evaluate(data: Path, **env):
        config = make_config(data, **({"costs": FREE.model_dump()} | env))
        return evaluate_run(make_run(data.parent, config), "validation", draws=4)

    return evaluate


def leaky(path: Path) -> Path:
    """A random walk whose feature is the next bar's return, from its open on."""
    frame = random_walk("AAA", BURN_IN + 2000, seed=1)
    later = np.log(frame["close"] / frame["open"]).shift(-1).fillna(0.0)
    stage_frame(frame.assign(mood=later), path, source="test", features=("mood",), computed=False)
    return path


def halves(evaluation) -> bool:
    return any("halves when orders fill one bar later" in line for line in evaluation.meta["warnings"])


def test_a_run_that_knows_the_next_bar_is_warned_of(tmp_path, follow):
    found = follow(leaky(tmp_path / "leaky.h5"))
    assert halves(found)
    zero, one, two = found.meta["fill_lag_table"]
    assert one["bar_sharpe"] > 0.5 and abs(two["bar_sharpe"]) < 0.2
    assert any("Sharpe ratio" in line and "suspicious" in line for line in found.meta["warnings"])
    assert zero["research_only"] and not one["research_only"]
    assert [row["the_runs"] for row in (zero, one, two)] == [False, True, False]


def test_the_runs_own_lag_is_the_agents_row(tmp_path, follow):
    for lag in (0, 1, 2):
        found = follow(leaky(tmp_path / f"{lag}" / "leaky.h5"), fill_lag=lag)
        own = found.meta["fill_lag_table"][lag]
        assert own["the_runs"] and own["total_return"] == found.row(AGENT)["total_return"]


def test_every_lag_fills_where_it_says(tmp_path, follow):
    """Against sums by hand: decided at t, held from the open of t + lag to that of t + lag + 1."""
    found = follow(leaky(tmp_path / "leaky.h5"), sizing="fill")
    frame, meta = random_walk("AAA", BURN_IN + 2000, seed=1), found.meta
    lo = int(np.flatnonzero(frame["timestamp"].astype("int64") == found.curves.ts_T[0] * 10**9)[0])
    opened, close = frame["open"].to_numpy(), frame["close"].to_numpy()
    side = np.sign(np.log(close / opened))[1:]  # of the feature at t, but for its mean
    steps = meta["bars"]
    for lag, price in ((1, opened), (2, opened)):
        earned = [
            side[lo + t] * (price[lo + t + lag + 1] / price[lo + t + lag] - 1) for t in range(steps - lag)
        ]
        row = meta["fill_lag_table"][lag]
        assert np.log1p(row["total_return"]) == pytest.approx(np.log1p(earned).sum(), abs=0.02)


def test_an_edge_that_lasts_is_not_warned_of(tmp_path, follow):
    stage_planted(tmp_path / "L2.h5", "L2", bars=12_000)
    found = follow(tmp_path / "L2.h5")
    _, one, two = found.meta["fill_lag_table"]
    assert one["bar_sharpe"] > 0.1 and two["bar_sharpe"] > 0.1 and not halves(found)


def test_an_edge_of_one_bar_is_warned_of(tmp_path, follow):
    frame = planted("L1", BURN_IN + 30_000, 1, 0)
    stage_frame(
        frame, tmp_path / "L1.h5", source="planted:L1", features=("return",), computed=False, calendar="24/7"
    )
    assert halves(follow(tmp_path / "L1.h5"))


def test_noise_is_not_warned_of():
    """A thousand results without any edge: a warning would need three standard errors by chance."""
    rng, said = np.random.default_rng(0), 0
    for _ in range(1000):
        one, two = 1e-3 * rng.standard_normal((2, 500))
        rows = [{"fill_lag": lag, "total_return": float(x.sum())} for lag, x in ((1, one), (2, two))]
        said += bool(halving(one, two, rows))
    assert said <= 4


def test_losses_and_constant_results_are_not_warned_of():
    rng = np.random.default_rng(0)
    lost, flat = -1e-3 + 1e-4 * rng.standard_normal(500), np.zeros(500)
    for one, two in ((lost, lost - 1e-3), (flat, flat), (flat[:1], flat[:1]), (flat, lost)):
        rows = [{"fill_lag": lag, "total_return": float(x.sum())} for lag, x in ((1, one), (2, two))]
        assert halving(one, two, rows) == ""


def test_table_and_json_show_the_lags(tmp_path):
    config = make_config(make_data(tmp_path / "market.h5"), assets="all")
    found = evaluate_run(make_run(tmp_path, config), "validation", draws=4)
    screen = Console(file=io.StringIO(), width=200)
    screen.print(render_table(found))
    text = screen.file.getvalue()
    assert "by fill lag" in text and "lag 0, research only:" in text and "lag 1, as run:" in text
    rows = json.loads(json.dumps(found.to_json(), allow_nan=False))["meta"]["fill_lag_table"]
    assert [row["fill_lag"] for row in rows] == [0, 1, 2] and not halves(found)
    assert rows[1]["total_return"] == found.row(AGENT)["total_return"]
