"""The agent learns what can be learnt: tasks of every kind on short budgets; `make learn` runs the table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hpcrl.bench.learn import GOAL, MUST, SeedResult, Size, bench_learn, run_seed, summary, tasks_of
from hpcrl.bench.learn_report import measure, page, render
from hpcrl.config.load import load_config
from hpcrl.market.planted import TASKS
from hpcrl.types import HpcrlError

CONFIG = Path(__file__).resolve().parents[2] / "yaml" / "learn.yaml"
SIZE = Size(train_paths=32, train_bars=8_000, fresh_paths=200, fresh_bars=500)


def result(seed=0, share=0.95, reward=1e-4, error=1e-6, turnover=0.01):
    return SeedResult(seed, 1000, share, 0.01, share, reward, error, 1e-4, turnover, 1.0, ((1000, reward),))


def train_and_judge(task: str, window: int, epochs: int, seed: int) -> SeedResult:
    sets = (f"train.epochs={epochs}", f"policy.window={window}", "policy.d_model=64")  # wider: fewer steps
    found = run_seed(task, seed, CONFIG, sets, SIZE)
    assert 0.9 <= found.share <= 1.02, found
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "window", "epochs"),
    [("L2", 32, 8), pytest.param("L5", 32, 20, marks=pytest.mark.soak), ("L5", 8, 24)],
)
def test_the_last_policy_reaches_nine_tenths_of_the_oracle_on_fresh_bars(task, window, epochs, one_rank):
    """A signal behind a cost; a cue of 12 bars ago inside one window; the same beyond one (two layers)."""
    found = train_and_judge(task, window, epochs, seed=0)
    assert found.formula_share == pytest.approx(found.share, abs=0.02)
    assert found.steps == epochs * 128 * 128


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("window", "epochs"), [(32, 24), (8, 24)])
def test_soak_memory_on_three_seeds(window, epochs, seed, one_rank, record_property):
    found = train_and_judge("L5", window, epochs, seed)
    record_property("planted cue", f"k 12, window {window}, seed {seed}: share {found.share:.3f}")


def test_every_task_has_its_demand_and_one_configuration_serves_all():
    assert MUST.keys() == TASKS.keys() and GOAL.keys() < TASKS.keys()
    assert tasks_of("all") == list(TASKS) and tasks_of("L1, L4b") == ["L1", "L4b"]
    costs = load_config(CONFIG, environment={}).env.costs
    assert not any(v for k, v in costs.model_dump().items() if k not in ("participation", "symbols"))
    assert costs.participation is None


def test_an_untrained_policy_is_told_from_a_trained_one(one_rank):
    small = Size(train_paths=4, train_bars=400, fresh_paths=20, fresh_bars=100)
    sets = ("train.epochs=1", "learn.lr=1e-12", "env.envs_per_gpu=16")
    found = run_seed("L2", 0, CONFIG, sets, small)
    assert found.share < 0.5 and math.isfinite(found.reward_error)


def test_means_over_seeds_decide_and_idle_tasks_ask_for_no_reward_and_no_trades():
    assert summary("L1", [result(0, 0.7), result(1, 0.95)])["share"] == pytest.approx(0.825)
    assert summary("L1", [result(0, 0.7), result(1, 0.95)])["passed"]
    assert not summary("L2", [result(0, 0.92)])["passed"]
    idle = {"share": None, "error": 1e-6}
    assert summary("L0", [result(reward=2.9e-6, **idle), result(1, reward=0.0, turnover=0.0, **idle)])[
        "passed"
    ]
    assert not summary("L0", [result(reward=3.1e-6, **idle)])["passed"]
    assert not summary("L0", [result(reward=1e-7, turnover=0.06, **idle)])["passed"]
    assert not summary("control", [result(reward=0.0, **idle), result(1, reward=-9e-6, **idle)])["passed"]


def test_the_page_and_the_table_show_every_seed_and_what_failed(tmp_path):
    results = [
        summary("L2", [result(0, 0.94), result(1, 0.9)]),
        summary("L0", [result(share=None, reward=0.0)]),
    ]
    made = {
        "date": "2026-01-02",
        "commit": "abc",
        "cpu": "a CPU",
        "cores": 2,
        "torch": "2",
        "command": "hpcrl x",
    }
    text = page(results, made)
    assert "0.920 (0.940 +- 0.010, 0.900 +- 0.010)" in text and "| NO |" in text and "| yes |" in text
    assert render(results).row_count == 2


@pytest.mark.slow
def test_runs_side_by_side_give_what_one_after_the_other_does(one_rank):
    sets, size = ("train.epochs=1", "env.envs_per_gpu=16"), Size(4, 400, 8, 60)
    heard: list[str] = []

    def told(task, result):
        heard.append(f"{task} {result.seed}")

    both = [
        bench_learn(["L1", "L2"], 2, config_path=CONFIG, overrides=sets, jobs=jobs, size=size, told=told)
        for jobs in (2, 1)
    ]
    for first, second in zip(*both, strict=True):
        for a, b in zip(first["seeds"], second["seeds"], strict=True):
            assert a | {"train_seconds": 0} == b | {"train_seconds": 0}
    assert sorted(heard[:4]) == heard[4:] == ["L1 0", "L1 1", "L2 0", "L2 1"]


def test_bad_requests_are_one_clear_error(tmp_path):
    with pytest.raises(HpcrlError, match="task 'L9' is not known"):
        bench_learn(["L9"], 1, config_path=CONFIG)
    with pytest.raises(HpcrlError, match="no task was named"):
        tasks_of(" , ")
    with pytest.raises(HpcrlError, match=r"nowhere\.yaml"):
        bench_learn(["L1"], 1, config_path=tmp_path / "nowhere.yaml")


def test_one_task_prints_one_object_and_writes_its_page(tmp_path, capsys):
    report, sets = tmp_path / "learn.md", ("train.epochs=1", "env.envs_per_gpu=16")
    met = measure("L1", 2, CONFIG, sets, jobs=1, report=report, as_json=True, size=Size(4, 400, 8, 60))
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["task"] == "L1" and [s["seed"] for s in told["seeds"]] == [0, 1]
    assert told["share"] == pytest.approx(np.mean([s["share"] for s in told["seeds"]]))
    assert met == told["passed"] and "| L1 | 0, 1 |" in report.read_text()
    assert "L1 seed 1: share" in shown.err


def test_the_command_refuses_a_task_that_it_does_not_know(hpcrl):
    code, _, err = hpcrl("bench", "learn", "--task", "L9", "--config", CONFIG)
    assert code == 2 and "task 'L9' is not known" in err
