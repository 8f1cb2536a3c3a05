"""Differences of returns: coverage, power, seeds; then whole comparisons of small runs on the same bars."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_runs import make_config, make_data, make_run
from rich.console import Console

from hpcrl.evaluate import compare as room
from hpcrl.evaluate.compare import HOLD_NAME, compare
from hpcrl.evaluate.compare_plot import comparison_path, write_comparison_plot
from hpcrl.evaluate.compare_table import closing, labels, render_comparison
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT, HOLD
from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.types import HpcrlError

EASY = {"costs": {"min_fee": 0.0, "per_share": 0.0, "impact_coef": 0.0, "participation": None}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "market.h5")


def seeded(data: Path, seed: int, **env):
    config = make_config(data, **EASY, **env)
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> list[Path]:
    """Three seeds of one configuration, then one of another; the last always holds."""
    folder = tmp_path_factory.mktemp("runs")
    made = [make_run(folder, seeded(data, seed), seed=seed) for seed in (3, 1, 2)]
    other = seeded(data, 0)
    other = other.model_copy(update={"learn": other.learn.model_copy(update={"gamma": 0.5})})
    return [*made, make_run(folder, other, seed=9, always=2)]


@pytest.fixture(scope="module")
def comparison(runs):
    return compare(runs, "validation", draws=100)


def test_runs_that_differ_by_seed_only_are_one_standing(comparison, runs):
    group, alone, hold = comparison.standings
    assert group.runs == tuple(run.name for run in runs[:3]) and group.seeds == (3, 1, 2)
    assert alone.runs == (runs[3].name,) and hold.name == HOLD_NAME
    singles = [evaluate_run(run, "validation", draws=1).row(AGENT)["total_return"] for run in runs]
    assert group.metrics["total_return"] == pytest.approx(np.mean(singles[:3]))
    assert (
        group.lowest["total_return"] == min(singles[:3]) < group.highest["total_return"] == max(singles[:3])
    )
    assert alone.metrics["total_return"] == singles[3]
    assert group.equity_TK[-1] - 1 == pytest.approx(singles[:3])
    assert labels(comparison) == ["A", "B", "hold"]


def test_differences_are_those_of_the_returns_on_common_bars(comparison, runs):
    assert [(pair.one, pair.other) for pair in comparison.pairs] == [(0, 1), (0, 2), (1, 2)]
    result = evaluate_run(runs[3], "validation", draws=1)
    agent, hold = (result.curves.equity[name] for name in (AGENT, HOLD))
    wanted = np.mean(agent[1:] / agent[:-1]) - np.mean(hold[1:] / hold[:-1])
    assert comparison.pairs[2].difference.mean == pytest.approx(wanted, abs=1e-12)
    assert len(comparison.ts_T) == comparison.meta["bars"] + 1


def test_four_runs_without_a_journal_are_four_trials_whose_spread_is_seen_here(comparison):
    assert comparison.meta["trials"] == 4 and "spread" in comparison.meta["trials_source"]
    sharpes = [*(np.mean(c) / np.std(c, ddof=1) for c in comparison.standings[0].return_TK.T)]
    sharpes.append(comparison.standings[1].metrics["bar_sharpe"])
    assert comparison.meta["trials_variance"] == pytest.approx(np.var(sharpes, ddof=1))
    one = comparison.standings[1].metrics
    assert one["dsr"] < one["psr"]


def test_table_json_and_picture(comparison, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_comparison(comparison))
    text = console.export_text()
    assert "(3 seeds): seeds 3, 1, 2" in text and "A - hold" in text and "deflated" in text
    assert max(map(len, text.splitlines())) <= 80
    plain = comparison.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["standings"][0]["seeds"] == [3, 1, 2] and len(plain["differences"]) == 3
    path = write_comparison_plot(comparison, tmp_path / "new" / "c.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def journal(run: Path) -> list[dict]:
    file = run.parent / JOURNAL
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_test_split_is_opened_once_for_all_and_said_so(runs):
    before = len(journal(runs[0]))
    found = compare(runs[:2] + runs[3:], "test", draws=50)
    (line,) = journal(runs[0])[before:]
    assert all(run.name in line["run"] for run in runs[:2] + runs[3:])
    assert found.meta["test_openings"] == before + 1
    again = compare(runs[:2], "test", draws=50)
    assert any("opened" in warning for warning in again.meta["warnings"])


def test_other_bars_are_refused_before_the_split_is_opened(runs, data, tmp_path):
    other_data = make_run(tmp_path, make_config(make_data(tmp_path / "other.h5", seed=8)))
    config = make_config(data)
    cut = config.model_copy(update={"market": config.market.model_copy(update={"train_fraction": 0.6})})
    other_cut = make_run(tmp_path, cut)
    one = config.model_copy(update={"market": config.market.model_copy(update={"symbols": ("AAA",)})})
    other_symbols = make_run(tmp_path, one)
    before = journal(runs[0])
    for other, said in (
        (other_data, "other data"),
        (other_cut, "another test split"),
        (other_symbols, "other symbols"),
    ):
        with pytest.raises(HpcrlError, match=said) as found:
            compare([runs[0], other], "test")
        assert runs[0].name in str(found.value) and "\n" not in str(found.value)
    assert journal(runs[0]) == before and journal(other_data) == []


def test_a_policy_that_cannot_be_played_is_refused_before_the_split_is_opened(runs, data, tmp_path):
    saved = torch.load(runs[0] / "checkpoint_epoch_4.pt", weights_only=True)
    config = make_config(data)
    market = load_market(config.market)
    market = load_market(config.market.model_copy(update={"features": market.feature_names[:2]}))
    saved["feature_scaler"] = fit_scaler(market, 0, market.n_bars).state()
    torch.save(saved, tmp_path / "odd.pt")
    before = journal(runs[0])
    with pytest.raises(HpcrlError, match=r"odd: odd\.pt reads tokens of"):
        compare([runs[0], tmp_path / "odd.pt"], "test")
    with pytest.raises(HpcrlError, match="an ONNX file is played on the CPU"):
        compare([tmp_path / "policy.onnx", runs[0]], "test", device="cuda")
    assert journal(runs[0]) == before and not (tmp_path / JOURNAL).exists()


def test_a_checkpoint_out_of_its_run_leaves_the_deflated_ratio_out(runs, tmp_path):
    shutil.copy(runs[0] / "checkpoint_epoch_4.pt", tmp_path / "best.pt")
    found = compare([tmp_path / "best.pt"], "validation", draws=50)
    agent, _ = found.standings
    assert math.isnan(agent.metrics["dsr"]) and not math.isnan(agent.metrics["psr"])
    assert found.meta["trials"] == 0 and "outside its run" in found.meta["trials_reason"]
    alone = evaluate_run(tmp_path / "best.pt", "validation", draws=1).meta["statistics"]
    assert math.isnan(alone["dsr"]) and "outside its run" in alone["reasons"]["dsr"]


def test_data_given_makes_bars_common(runs, data, tmp_path):
    other = make_run(tmp_path, make_config(make_data(tmp_path / "other.h5", seed=8)))
    found = compare([runs[0], other], "validation", data=data, draws=50)
    assert found.meta["data"]["sha256"] == evaluate_run(runs[0], "validation", draws=1).meta["data"]["sha256"]
    assert any(
        other.name in warning and "not the run's data" in warning for warning in found.meta["warnings"]
    )


def test_runs_with_other_costs_are_compared_with_a_warning(runs, data, tmp_path):
    dear = make_run(tmp_path, make_config(data))
    found = compare([runs[0], dear], "validation", draws=50)
    assert any("env.costs" in warning for warning in found.meta["warnings"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda runs: ([runs[0], runs[0]], "validation"), "the same policy"),
        (lambda runs: ([runs[0], runs[0] / "checkpoint_epoch_4.pt"], "validation"), "the same policy"),
        (lambda runs: ([], "validation"), "nothing to compare"),
        (lambda runs: ([runs[0], runs[0] / "nothing"], "validation"), "no such run"),
        (lambda runs: ([runs[0], runs[1]], "holdout"), "'holdout'"),
    ],
)
def test_bad_input_is_one_clear_line(runs, change, said):
    with pytest.raises(HpcrlError, match=said):
        compare(*change(runs))


def test_the_picture_writes_over_no_checkpoint(runs, tmp_path):
    checkpoint = runs[0] / "checkpoint_epoch_4.pt"
    with pytest.raises(HpcrlError, match="one of the inputs"):
        comparison_path(checkpoint, [checkpoint], "test")
    with pytest.raises(HpcrlError, match=r"ends in \.png"):
        comparison_path(tmp_path / "x.jpg", runs, "test")
    assert comparison_path(None, runs, "test") == runs[0].parent / "comparison_test.png"


def test_many_standings_are_named_to_the_end_and_compared_with_the_first_and_with_hold(comparison):
    assert len(room.chosen_pairs(6)) == 15
    assert room.chosen_pairs(7) == [(0, b) for b in range(1, 7)] + [(a, 6) for a in range(1, 6)]
    many = replace(comparison, standings=comparison.standings[:1] * 30 + comparison.standings[2:])
    assert labels(many)[25:28] == ["Z", "A1", "B1"] and labels(many)[-1] == "hold"
    assert any("Of 465 differences" in line for line in closing(many))
