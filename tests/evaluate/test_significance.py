"""Intervals and probabilities in an evaluation; what is undefined is NaN with a reason, never a crash."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_runs import make_config, make_data, make_run
from made_populations import make_population
from rich.console import Console
from test_difference import serial

from hpcrl.checkpoint.load import load_data, load_run
from hpcrl.evaluate import metrics
from hpcrl.evaluate.backtest import make_plan, play_plan
from hpcrl.evaluate.baselines import EqualWeight, hold_config
from hpcrl.evaluate.bootstrap import Interval, bar_sharpe, interval, paired_interval, total_return
from hpcrl.evaluate.difference import difference, return_interval, widened_return, widening
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT, CROSS, EQUAL, FLAT, HOLD, RANDOM
from hpcrl.evaluate.plot import write_plot
from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.evaluate.significance import assess
from hpcrl.evaluate.statistics import deflated_sharpe, moments
from hpcrl.evaluate.stitch import Part, stitch
from hpcrl.evaluate.table import render_table
from hpcrl.evaluate.track import Track, total
from hpcrl.evaluate.trials import Trials, count_trials
from hpcrl.types import HpcrlError, RunFailed


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "market.h5", bars=1000)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), make_config(data))


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate_run(run, "validation", draws=4)


def bar_returns(evaluation, strategy: str = AGENT) -> np.ndarray:
    return metrics.simple_returns(total(evaluation.tracks[strategy]).equity_TN)[:, 0]


def around(estimate: float, narrow: Interval, factor: float) -> list[float]:
    return [estimate + factor * (edge - estimate) for edge in (narrow.low, narrow.high)]


def made_track(return_T: np.ndarray) -> Track:
    """One account with these returns, and nothing else."""
    zero_TN = np.zeros((len(return_T), 1))
    equity_TN = 1e5 * np.cumprod(np.r_[1.0, 1.0 + return_T])[:, None]
    return Track(equity_TN, *[zero_TN] * 9, bankrupt_N=np.zeros(1, dtype=bool))


def text(evaluation, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_table(evaluation))
    return console.export_text()


def test_intervals_are_those_of_the_total_accounts_bars(evaluation):
    """Percentiles of the draws, widened around the estimate; the total return by its logarithm."""
    found, agent, hold = evaluation.meta["statistics"], bar_returns(evaluation), bar_returns(evaluation, HOLD)
    returns, sharpes = interval(agent, total_return), interval(agent, bar_sharpe)
    apart = paired_interval(agent, hold, lambda a, b: total_return(a) - total_return(b))
    growth, factor = 1 + total_return(agent), widening(agent, returns.block)
    assert factor > 1.005
    expected = {
        "total_return": [
            growth * ((1 + edge) / growth) ** factor - 1 for edge in (returns.low, returns.high)
        ],
        "bar_sharpe": around(bar_sharpe(agent), sharpes, factor),
        "difference_to_buy_and_hold": around(
            total_return(agent) - total_return(hold), apart, widening(agent - hold, apart.block)
        ),
    }
    for name, edges in expected.items():
        assert found["intervals"][name] == pytest.approx(edges, rel=1e-9)
    assert found["bar_sharpe"] == pytest.approx(evaluation.row(AGENT)["bar_sharpe"], rel=1e-12)
    low, high = found["intervals"]["total_return"]
    assert low < evaluation.row(AGENT)["total_return"] < high
    assert found["psr"] == evaluation.row(AGENT)["psr"] and found["trials"] == 1


@pytest.mark.parametrize("seed", [7, 22, 101])
def test_a_difference_to_buy_and_hold_is_shown_where_a_comparison_shows_it(seed):
    """Bars that hang together: percentiles alone would see an agent that beats buy and hold."""
    rng = np.random.default_rng(seed)
    agent = serial(rng, 400, 1e-3, 0.6)
    hold = agent + serial(rng, 400, 5e-4, 0.8)
    plain = paired_interval(agent, hold, lambda a, b: total_return(a) - total_return(b), draws=300)
    assert plain.low > 0 and not difference(agent, hold, draws=300).shown
    tracks = made_track(agent), made_track(hold)
    low, high = assess(*tracks, Trials(1, 0.0, ""), draws=300).meta["intervals"]["difference_to_buy_and_hold"]
    assert low < 0 < plain.high < high


def test_walk_forwards_intervals_are_those_of_an_evaluation(evaluation):
    """Of one fold."""
    own = stitch([Part(1, "run", ("", ""), evaluation)], {}).meta["statistics"]
    for name in ("total_return", "bar_sharpe"):
        expected = evaluation.meta["statistics"]["intervals"][name]
        assert own[f"{name}_interval"] == pytest.approx(expected, rel=1e-9)


def test_a_widened_return_loses_no_more_than_all():
    narrow = Interval(-0.9, 3.0, 5.0)
    wide = widened_return(narrow, np.array([0.1, -0.1]), 3.0)
    assert -1 < wide.low < -0.99 and wide.high > 3
    ruin = widened_return(Interval(-1.0, -0.5, 5.0), np.array([0.1, -1.0]), 3.0)
    assert (ruin.low, ruin.high) == (-1.0, -0.5)


def test_the_band_of_equity_ends_at_the_interval_and_starts_at_one(evaluation):
    low, high = evaluation.curves.agent_band
    assert len(low) == len(high) == len(evaluation.curves.ts_T)
    assert low[0] == high[0] == 1 and (low <= high).all()
    ends = [low[-1] - 1, high[-1] - 1]
    assert evaluation.meta["statistics"]["intervals"]["total_return"] == pytest.approx(ends, rel=1e-9)
    assert {"agent_low", "agent_high"} <= evaluation.to_json()["curves"].keys()


def test_every_symbol_has_an_interval_probabilities_and_tails(evaluation):
    for account, symbol in enumerate(("AAA", "BBB")):
        row = evaluation.row(AGENT, symbol)
        own = metrics.simple_returns(evaluation.tracks[AGENT].equity_TN[:, [account]])
        one = return_interval(own[:, 0])
        narrow = interval(own[:, 0], total_return)
        assert one.low < narrow.low < narrow.high < one.high
        assert [row["total_return_low"], row["total_return_high"]] == pytest.approx([one.low, one.high])
        found = moments(own[:, 0])
        assert row["psr"] == pytest.approx(
            deflated_sharpe(found.sharpe, found.n, found.skew, found.kurtosis, 0, 1)
        )
        assert row["cvar"] < 0 and row["bar_sharpe"] == pytest.approx(found.sharpe)


def test_tails_are_the_librarys(evaluation):
    import empyrical

    equity = metrics.session_equity(total(evaluation.tracks[HOLD]).equity_TN, evaluation.curves.session_T[1:])
    session = metrics.simple_returns(equity)[:, 0]
    row = evaluation.row(HOLD)
    assert len(session) == row["sessions"] >= 2
    assert row["tail_ratio"] == empyrical.tail_ratio(session)
    assert row["cvar"] == empyrical.conditional_value_at_risk(session)


def test_new_baselines_are_played_after_costs(evaluation):
    equal, cross, hold = (evaluation.row(name) for name in (EQUAL, CROSS, HOLD))
    assert equal["trades"] > hold["trades"] and equal["costs"] > hold["costs"] > 0
    assert 0 < abs(equal["total_return"] - hold["total_return"]) < 5e-3
    assert 0 < cross["exposure"] < 0.95 * hold["exposure"] and cross["trades"] > 2
    assert set(evaluation.curves.equity) == {AGENT, HOLD, EQUAL, CROSS, FLAT, RANDOM}


def test_equal_weight_has_the_cash_of_all_accounts(run, data, evaluation):
    """Two accounts of 100,000 are compared with one of 200,000, whose impact and lots are its own."""
    env = hold_config(make_config(data, assets="all", initial_cash=200_000.0).env)
    loaded = load_run(run)
    market = load_data(loaded)
    tensors = market.to("cpu", loaded.scaler)
    plan = make_plan(tensors, env, *market.split_range("validation"))
    alone = play_plan(tensors, env, plan, lambda group: EqualWeight(market.session_B))
    assert alone.equity_TN[0] == [200_000.0]
    expected = alone.equity_TN[-1, 0] / 200_000.0 - 1
    assert evaluation.row(EQUAL)["total_return"] == pytest.approx(expected, rel=1e-9)


def test_one_symbol_has_no_equal_weight(tmp_path):
    data = make_data(tmp_path / "market.h5", ("AAA",))
    found = evaluate_run(make_run(tmp_path, make_config(data)), "validation", draws=2)
    assert EQUAL not in found.strategies and found.meta["baselines_left_out"] == {}
    assert "equal" not in text(found, 100)


def test_a_run_in_a_population_is_deflated_by_all_its_trials(tmp_path, data):
    """The run folder of a member, evaluated: N and V from the journals, SR0 and DSR by the formulas."""
    sets = ("pbt.members=4", f"market.path={data}", "pbt.objective.window_bars=65")
    population = make_population(tmp_path, *sets, generations=3)
    made = make_run(tmp_path / "made", make_config(data))
    member = population.folder(1)
    for file in made.iterdir():
        file.rename(member / file.name)
    found = evaluate_run(member, "validation", draws=2)
    trials, said = count_trials(population.path), found.meta["statistics"]
    assert (said["trials"], said["trials_variance"]) == (12, trials.variance)
    row = moments(bar_returns(found))
    expected = deflated_sharpe(row.sharpe, row.n, row.skew, row.kurtosis, trials.variance, 12)
    assert said["dsr"] == expected < said["psr"] and said["sr0"] > 0
    assert "the luckiest of 12 trials" in " ".join(text(found, 200).split())


def test_trials_may_be_given(run):
    found = evaluate_run(run, "validation", draws=2, trials=Trials(50, 0.01, "a grid search"))
    said = found.meta["statistics"]
    assert said["trials"] == 50 and said["dsr"] < said["psr"] and "(a grid search)" in text(found, 200)


def test_a_broken_population_costs_the_deflation_only(tmp_path, data):
    made = make_run(tmp_path / "pbt" / "members", make_config(data))
    made = made.rename(made.with_name("00"))
    (tmp_path / "pbt" / "population.json").write_text('{"format": 9}')
    found = evaluate_run(made, "validation", draws=2)
    said = found.meta["statistics"]
    assert math.isnan(said["dsr"]) and "format 9" in said["reasons"]["dsr"] and said["psr"] > 0


def test_a_policy_that_never_trades_has_reasons_in_place_of_numbers(tmp_path, data):
    found = evaluate_run(make_run(tmp_path, make_config(data), always=1), "validation", draws=2)
    said = found.meta["statistics"]
    for name in ("psr", "dsr", "sr0", "min_track_record_bars", "bar_sharpe", "block_length"):
        assert math.isnan(said[name]) or name == "sr0"
    for name in ("psr", "dsr", "min_track_record_bars", "intervals.total_return", "intervals.bar_sharpe"):
        assert said["reasons"][name] == "equity never moves"
    assert found.curves.agent_band is None and math.isnan(found.row(AGENT, "AAA")["total_return_low"])
    assert found.row(AGENT)["cvar"] == 0 and math.isnan(found.row(AGENT)["tail_ratio"])
    assert "none: equity never moves" in text(found, 100)
    json.dumps(found.to_json(), allow_nan=False)
    assert write_plot(found, tmp_path / "flat.png").is_file()


@pytest.mark.parametrize(("steps", "why"), [(1, "1 bar: at least 2"), (4, "4 bars: at least 10")])
def test_a_range_of_few_bars_has_reasons_in_place_of_intervals(tmp_path, steps, why):
    data = make_data(tmp_path / "market.h5", ("AAA",), bars=400)
    config = make_config(data)
    fraction = (steps + 1 + 2) / 400  # of the bars after the burn-in; two are purged
    market = config.market.model_copy(update={"train_fraction": 0.5, "validation_fraction": fraction})
    found = evaluate_run(
        make_run(tmp_path, config.model_copy(update={"market": market})), "validation", draws=2
    )
    assert found.meta["bars"] == steps
    said = found.meta["statistics"]
    assert why in said["reasons"]["intervals.total_return"]
    assert all(math.isnan(edge) for pair in said["intervals"].values() for edge in pair)
    shown = json.dumps(found.to_json(), allow_nan=False)
    assert "Infinity" not in shown and "reasons" in shown and why in " ".join(text(found, 100).split())
    assert write_plot(found, tmp_path / "short.png").is_file()


def test_a_run_without_a_test_split_is_one_error_and_opens_nothing(tmp_path, data):
    config = make_config(data)
    market = config.market.model_copy(update={"train_fraction": 0.8, "validation_fraction": 0.199})
    run = make_run(tmp_path, config.model_copy(update={"market": market}))
    with pytest.raises(HpcrlError, match="the test split holds 0 bars"):
        evaluate_run(run)
    assert not (tmp_path / JOURNAL).exists()


def test_a_caller_that_seals_is_not_logged_again(tmp_path, data):
    run = make_run(tmp_path, make_config(data))
    found = evaluate_run(run, draws=2, seal=False)
    assert not (tmp_path / JOURNAL).exists() and found.meta["test_openings"] == 0
    evaluate_run(run, draws=2)
    again = evaluate_run(run, draws=2, seal=False)
    assert again.meta["test_openings"] == 1 and not any("opened" in line for line in again.meta["warnings"])
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 1


def test_every_further_opening_warns_with_its_number(tmp_path, data):
    """Per data set: another one in the same folder begins at one."""
    run = make_run(tmp_path, make_config(data))
    other = make_run(tmp_path, make_config(make_data(tmp_path / "other.h5", seed=9)))
    said = []
    for path in (run, run, other, run / "checkpoint_epoch_4.pt"):
        found = evaluate_run(path, draws=2)
        said.append(
            (found.meta["test_openings"], sum("has been opened" in w for w in found.meta["warnings"]))
        )
    assert said == [(1, 0), (2, 1), (1, 0), (3, 1)]
    assert "has been opened 3 times" in " ".join(text(found, 100).split())


def test_a_torn_line_in_the_journal_swallows_no_opening(tmp_path, data):
    run = make_run(tmp_path, make_config(data))
    evaluate_run(run, draws=2)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"data_sha256": "ab\xff')
    assert [evaluate_run(run, draws=2).meta["test_openings"] for _ in range(2)] == [2, 3]


def test_a_population_itself_is_one_error(tmp_path):
    population = make_population(tmp_path, "pbt.members=4", generations=1)
    with pytest.raises(HpcrlError, match="evaluate one of its members"):
        evaluate_run(population.path)


def test_a_bankrupt_agent_has_finite_figures(tmp_path):
    """400 times the account in one symbol: a bar that falls by a quarter percent leaves nothing."""
    data = make_data(tmp_path / "market.h5", ("AAA",), bars=2000)
    config = make_config(data, max_leverage=400.0, maintenance=0.0)
    policy = config.policy.model_copy(update={"positions": (-400.0, 0.0, 400.0)})
    run = make_run(tmp_path, config.model_copy(update={"policy": policy}), always=2)
    found = evaluate_run(run, "validation", draws=2)
    assert found.row(AGENT)["bankrupt"] == 1 and found.row(AGENT)["total_return"] == -1
    json.dumps(found.to_json(), allow_nan=False)
    said = found.meta["statistics"]
    assert said["psr"] < 0.5 and said["intervals"]["total_return"][0] >= -1
    assert "went bankrupt" in text(found, 100) and write_plot(found, tmp_path / "ruin.png").is_file()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_is_readable_at_a_terminals_width(evaluation, width):
    lines = text(evaluation, width).splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    costs = next(line for line in lines if line.startswith(" costs / start"))
    assert costs.count("%") == 6  # six strategies on one line
    assert any(line.startswith(" total return") and " to " in line for line in lines)


class Planted:
    """Its pickle creates a file as soon as it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("key", ["model", "feature_scaler", "hidden"])
def test_a_pickle_payload_in_a_checkpoint_is_refused_and_never_run(tmp_path, run, key):
    mark = tmp_path / "executed"
    saved = torch.load(run / "checkpoint_epoch_4.pt", weights_only=True)
    saved[key] = Planted(mark)
    file = tmp_path / "checkpoint_epoch_4.pt"
    torch.save(saved, file)
    with pytest.raises(RunFailed, match="refused, nothing was run"):
        evaluate_run(file, "validation")
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()  # the plant works where it is let


def test_a_checkpoint_of_another_format_is_refused(tmp_path, run):
    saved = torch.load(run / "checkpoint_epoch_4.pt", weights_only=True)
    file = tmp_path / "checkpoint_epoch_4.pt"
    for version in (0, 2, "1"):
        torch.save(saved | {"format": version}, file)
        with pytest.raises(RunFailed, match=f"format {version!r}, this version reads format 1"):
            evaluate_run(file, "validation")
