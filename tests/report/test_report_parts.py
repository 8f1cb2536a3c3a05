"""The report's parts: figures as texts, points that are kept, JSON in a page, trades told from weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
from made_populations import make_population
from report_runs import EVIL, gpu_line, metrics_line, played_run

from hpcrl.checkpoint.load import load_data, load_run
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT
from hpcrl.pbt.history import read_past
from hpcrl.report.chart import DARK, clock_runs, make, names_seconds, plain, thin
from hpcrl.report.data_charts import missing_by_session, missing_chart
from hpcrl.report.figures import neat, percent, sentence, show
from hpcrl.report.page import PLOTLY, in_script
from hpcrl.report.population_charts import population_charts
from hpcrl.report.results_charts import actions_chart, breakdown, costs_chart, equity_chart, lags_chart
from hpcrl.report.tables import findings, statistics_table, symbols_table
from hpcrl.report.trades_charts import MOST_SYMBOLS, Held, holdings, trades_charts
from hpcrl.report.training_charts import has_gpu, machine_charts, training_charts
from hpcrl.report.words import checks, verdict

LINES = [metrics_line(epoch) for epoch in range(1, 6)]


@pytest.fixture(scope="module", params=["single", "all"])
def played(tmp_path_factory, request):
    """An evaluation with many trades, and its market."""
    run = played_run(tmp_path_factory.mktemp(request.param), assets=request.param)
    evaluation = evaluate_run(run, "validation", draws=8)
    market = load_data(load_run(run))
    return evaluation, market


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    run = played_run(tmp_path_factory.mktemp("flat"), always=1)
    return evaluate_run(run, "validation", draws=2)


def test_figures_have_a_true_minus_and_never_break_before_percent():
    assert (
        percent(-0.0197) == "−1.97\N{NO-BREAK SPACE}%"
        and percent(0.5, 0, sign=True) == "+50\N{NO-BREAK SPACE}%"
    )
    assert percent(-0.00002, 2) == "−0.002\N{NO-BREAK SPACE}%"  # two digits would say nothing
    assert percent(-1e-12) == "0.00\N{NO-BREAK SPACE}%" and percent(float("nan")) == "undefined"
    assert neat("2022-05-31 -1 a-2 (-.5)") == "2022-05-31 −1 a-2 (−.5)"
    assert show(None, "percent") == show(math.inf, "number") == "-" and show(0.0, "percent").startswith("0")
    assert show(12345.0, "count") == "12,345" and show(-0.01234, "small") == "−0.0123"


def test_a_sentence_begins_with_a_capital_but_a_path_stays_a_path():
    assert sentence("the agent") == "The agent"
    assert (
        sentence("metrics.jsonl ends") == "metrics.jsonl ends" and sentence("/a/b is lost") == "/a/b is lost"
    )


def test_thinning_keeps_both_ends_and_every_extreme():
    curve = np.random.default_rng(0).normal(size=50_000).cumsum()
    curve[777], curve[40_001] = 1e4, -1e4
    kept = thin(curve, most=900)
    assert len(kept) <= 905 and (np.diff(kept) > 0).all()
    assert {0, 777, 40_001, 49_999} <= set(kept.tolist())
    assert thin(np.full(5000, np.nan), most=900)[-1] == 4999
    assert np.array_equal(thin(np.arange(10.0)), np.arange(10))


def test_names_of_bars_have_seconds_where_bars_begin_between_minutes():
    minute, quarter = np.arange(0, 6000, 60), np.arange(0, 6000, 15)
    assert not names_seconds(clock_runs(minute)) and not names_seconds(clock_runs(minute[:1]))
    assert names_seconds(clock_runs(quarter)) and names_seconds(clock_runs(minute + 30))
    assert names_seconds(clock_runs(np.r_[minute, minute[-1] + quarter[1:]])) and not names_seconds([])


@pytest.mark.parametrize("seed", range(5))
def test_a_clock_tells_every_stamp(seed):
    rng = np.random.default_rng(seed)
    stamps = 1_600_000_000 + np.cumsum(
        rng.choice([300, 300, 300, 300, 300, 65_100], size=rng.integers(1, 400))
    )
    told = [first + k * step for first, step, count in clock_runs(stamps) for k in range(count)]
    assert told == stamps.tolist()
    sessions = np.concatenate([day * 86_400 + 300 * np.arange(78) for day in range(250)])
    assert len(clock_runs(sessions)) == 250


def test_json_in_a_page_cannot_end_its_element():
    value = {"a": ["</script><script>boom()</script>", "<!--", "&lt;", EVIL]}
    text = in_script(value)
    assert "<" not in text and ">" not in text and json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        in_script({"a": float("nan")})


def test_a_text_for_plotly_holds_no_tag_and_no_entity():
    assert plain("<b>x</b>\n&lt;") == "&lt;b&gt;x&lt;/b&gt; &amp;lt;"


def test_the_inlined_script_is_the_official_one_of_the_pinned_package():
    """The sum is that of plotly.js-basic-dist-min 4.1.1."""
    from plotly.offline import get_plotlyjs_version

    script = (files("hpcrl.report") / "assets" / PLOTLY).read_bytes()
    digest = hashlib.sha256(script).hexdigest()
    assert digest == "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"
    assert f"plotly-basic-{get_plotlyjs_version()}.min.js" == PLOTLY
    assert b"</script" not in script.lower()
    licence = (files("hpcrl.report") / "assets" / "plotly-LICENSE.txt").read_text()
    assert "MIT" in licence and "Plotly" in licence


def colours_of(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from colours_of(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from colours_of(item, key)
    elif isinstance(value, str) and key.lower().endswith("color"):
        yield value


def test_every_colour_of_every_chart_has_one_for_the_dark(played, tmp_path):
    evaluation, market = played
    population = make_population(tmp_path, "pbt.members=9", generations=4)
    objective, schedules, lineage = population_charts(population, read_past(population))
    charts = [equity_chart(evaluation), costs_chart(evaluation), lags_chart(evaluation), lineage, objective]
    charts += [chart for _, chart in trades_charts(holdings(evaluation, market))]
    charts += [*schedules, *training_charts(LINES), *machine_charts([gpu_line(1), gpu_line(2)])]
    seen = {colour for chart in charts for colour in colours_of(chart.figure)}
    assert len(seen) > 10
    for colour in seen - {"rgba(0,0,0,0)"}:
        if colour.startswith("rgba"):
            colour = "#" + "".join(f"{int(part):02x}" for part in colour[5:-1].split(",")[:3])
        assert colour in DARK, colour


def test_plotly_refuses_what_it_does_not_know():
    import plotly.graph_objects as go

    with pytest.raises(ValueError, match="colour"):
        make("a", "A", "a", [go.Scatter(y=[1])], {"height": 10, "colour": "red"})


def test_trades_told_from_weights_are_those_that_the_simulator_counted(played):
    evaluation, market = played
    held = holdings(evaluation, market)
    found = sum(one.trades for one in held)
    counted = evaluation.row(AGENT)["trades"]
    assert counted > 50 and found == counted
    if evaluation.meta["assets"] == "single":
        assert [one.trades for one in held] == [evaluation.row(AGENT, one.symbol)["trades"] for one in held]


def test_a_trade_stands_at_its_fill_the_next_bars_open(played):
    evaluation, market = played
    one = holdings(evaluation, market)[0]
    first = int(np.searchsorted(market.ts_B, evaluation.curves.ts_T[0]))
    step = int(np.flatnonzero(one.change_T)[0])
    assert one.fill_T[step] == market.open_BS[first + step + 1, 0]
    chart = dict(trades_charts([one]))[one.symbol]
    marks = [trace for trace in chart.figure["data"] if trace["mode"] == "markers"]
    assert min(min(trace["x"]) for trace in marks if trace["x"]) == step + 1
    assert sum(len(trace["x"]) for trace in marks) == one.trades


def test_of_very_many_symbols_the_most_traded_are_drawn_in_their_order():
    def held(place: int) -> Held:
        change_T = np.where(np.arange(40) < place, 0.1, 0.0)
        flat_T = np.ones(41)
        return Held(f"S{place}", flat_T, flat_T[1:], np.zeros(41), change_T)

    names = [symbol for symbol, _ in trades_charts([held(place) for place in range(30)])]
    assert names == [f"S{place}" for place in range(30 - MOST_SYMBOLS, 30)]


def test_costs_lead_from_the_result_before_to_the_one_after(played):
    agent = played[0].row(AGENT)
    parts = breakdown(agent)
    steps = [value for _, value, is_sum in parts if not is_sum]
    assert parts[0][1] + sum(steps) == pytest.approx(parts[-1][1], abs=1e-12)
    assert parts[-1][1] == agent["total_return"] and parts[0][1] > parts[-1][1]
    bar = costs_chart(played[0]).figure["data"][0]
    ends = [start + value for start, value in zip(bar["base"], bar["x"], strict=True)]
    for before, start in zip(ends[:-2], bar["base"][1:-1], strict=True):
        assert start == pytest.approx(before, abs=1e-12)


def test_the_actions_here_stand_beside_those_of_training(played):
    chart = actions_chart(played[0], {"-1": 0.25, "0": 0.25, "1": 0.5})
    here, trained = chart.figure["data"]
    assert here["x"] == trained["x"] == ["-1", "0", "1"]
    assert sum(here["y"]) == pytest.approx(1) and trained["y"] == [0.25, 0.25, 0.5]


def test_an_agent_that_never_trades_has_no_costs_to_show_and_no_verdict(flat):
    assert costs_chart(flat) is None and lags_chart(flat) is None
    level, words = verdict(flat, checks(flat))
    assert level == "none" and "never traded" in words
    assert statistics_table(flat) is not None
    assert len(symbols_table(flat).rows) == 2


def with_meta(evaluation, agent=None, **meta):
    rows = list(evaluation.rows)
    rows[0] = replace(rows[0], metrics=rows[0].metrics | (agent or {}))
    return replace(evaluation, rows=tuple(rows), meta=evaluation.meta | meta)


SKILL = {
    "psr": 0.99,
    "dsr": 0.99,
    "trials": 40,
    "min_track_record_bars": 50.2,
    "intervals": {"difference_to_buy_and_hold": [0.01, 0.2]},
}


def test_a_verdict_is_as_good_as_its_weakest_check(played):
    good = {"synthetic": False, "agent_beats_random": 0.99, "sessions": 30, "bars": 2000, "statistics": SKILL}
    gain = {"total_return": 0.1}
    best = with_meta(played[0], gain, **good)
    assert [check.holds for check in checks(best)] == [True] * 6
    assert verdict(best, checks(best))[0] == "all"
    for change in (
        {"sessions": 5},
        {"bars": 40},
        {"agent_beats_random": 0.9},
        {"statistics": SKILL | {"dsr": 0.9}},
        {"statistics": SKILL | {"intervals": {"difference_to_buy_and_hold": [-0.01, 0.2]}}},
        {"statistics": {}},
    ):
        other = with_meta(played[0], gain, **(good | change))
        assert verdict(other, checks(other))[0] == "some", change
    made_up = with_meta(played[0], gain, **(good | {"synthetic": True}))
    assert verdict(made_up, checks(made_up)) == ("none", "Made-up bars: no claim follows")
    loss = with_meta(played[0], {"total_return": -0.1}, **good)
    assert verdict(loss, checks(loss))[0] == "none"


def test_an_evaluation_of_before_statistics_is_still_reported(played):
    old = with_meta(played[0])
    del old.meta["statistics"], old.meta["fill_lag_table"]
    assert statistics_table(old) is None and lags_chart(old) is None
    assert [check.holds for check in checks(old)][1:3] == [None, None]


def test_a_gpus_figures_make_a_timeline_over_hours_and_a_cpus_none():
    lines = [gpu_line(epoch) for epoch in (1, 2, 3)]
    charts = {chart.key: chart for chart in machine_charts(lines)}
    assert {"gpu-utilisation", "gpu-memory-gib", "gpu-power-w", "gpu-temperature-c"} <= charts.keys()
    memory = charts["gpu-memory-gib"].figure
    assert memory["data"][0]["x"] == pytest.approx([0, 10 / 3600, 20 / 3600], abs=1e-5)
    assert "hours" in memory["layout"]["xaxis"]["title"]["text"]
    assert has_gpu(lines) and not has_gpu(LINES)
    assert not any(chart.key.startswith("gpu") for chart in machine_charts(LINES))


def test_lines_with_gaps_and_nulls_are_drawn_as_far_as_they_go():
    lines = [metrics_line(1), metrics_line(2, entropy=None, loss="torn"), {"epoch": 3}, metrics_line(7)]
    lines[3]["time/attempt"] = 2
    charts = {chart.key: chart for chart in training_charts(lines)}
    entropy = charts["train-entropy"].figure
    assert entropy["data"][0]["x"] == [1, 2, 3, 7]
    assert {shape["x0"] for shape in entropy["layout"]["shapes"]} >= {6.5}
    assert training_charts([{"epoch": 1}]) == [] and machine_charts([{"epoch": 1}]) == []
    assert training_charts([metrics_line(1)])  # a single point is a marker, not an invisible line
    assert charts["train-reward"].figure["data"][0]["name"] == "reward = log growth"


def test_missing_bars_are_counted_between_a_symbols_first_and_last():
    present_BS = np.ones((6, 2), dtype=bool)
    present_BS[0, 1] = present_BS[5, 1] = False  # before its first and after its last: not missing
    present_BS[3, 1] = False
    market = SimpleNamespace(
        present_BS=present_BS, last_bar_S=np.array([5, 4]), session_B=np.array([10, 10, 10, 11, 11, 11])
    )
    session_K, share_K = missing_by_session(market)
    assert session_K.tolist() == [10, 11] and share_K == pytest.approx([0, 1 / 5])
    assert "1 of 2 sessions" in missing_chart(market).words
    market.present_BS = np.ones((6, 2), dtype=bool)
    assert missing_chart(market) is None


@pytest.mark.parametrize(
    "report", [None, {}, {"dropped": None}, {"dropped": {"x": 3}}, {"flagged": {"y": {}}}]
)
def test_a_staging_report_of_another_shape_is_no_crash(report):
    assert len(findings(report)) <= 1
