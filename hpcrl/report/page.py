"""The page: one HTML file that needs nothing else. Plotly's script, styles and data are all inside it.

Its Content-Security-Policy forbids every request. Jinja2 escapes all texts; the charts' JSON is escaped so
that no text in it can end its element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import hpcrl
from hpcrl.config.secrets import without_secrets
from hpcrl.report.chart import DARK, Chart, clock_runs, names_seconds
from hpcrl.report.data_charts import missing_chart
from hpcrl.report.figures import percent, plural, sentence, show
from hpcrl.report.gather import Gathered
from hpcrl.report.population_charts import population_charts
from hpcrl.report.results_charts import actions_chart, costs_chart, equity_chart, exposure_chart, lags_chart
from hpcrl.report.tables import (
    attempts_table,
    findings,
    held_table,
    provenance,
    quality_table,
    splits_of,
    staged_words,
    statistics_table,
    strategies_table,
    symbols_table,
)
from hpcrl.report.training_charts import has_gpu, machine_charts, training_charts
from hpcrl.report.words import (
    alarms_of,
    checks,
    seal_words,
    summary,
    verdict,
    warnings,
)

PLOTLY = "plotly-basic-4.1.1.min.js"
"""plotly.js's official basic bundle (scatter and bar) of the version that the package plotly holds whole."""


def build_page(found: Gathered) -> str:
    """The whole page. Charts of what is not there are left out, each part with a line that says why."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    context = _results(found) | _training(found) | _population(found) | _data(found)
    charts = [chart for value in context.values() for chart in _charts_in(value)]
    environment = Environment(
        loader=PackageLoader("hpcrl.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters["sentence"] = sentence
    clock = clock_runs(found.evaluation.curves.ts_T) if found.evaluation is not None else []
    specs = without_secrets({chart.key: chart.figure for chart in charts})
    return environment.get_template("report.html").render(
        **context,
        name=found.name,
        split=found.split,
        is_population=found.target.whole,
        member=found.target.member,
        played=found.evaluation is not None,
        meta=found.evaluation.meta if found.evaluation is not None else {},
        summary=summary(found),
        warned=warnings(found, alarms_of(found)),
        seal=seal_words(found),
        attempts=attempts_table(found),
        provenance=provenance(found),
        config=json.dumps(without_secrets(found.record.get("config", {})), indent=2, sort_keys=True),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=hpcrl.__version__,
        # These are files of ours, and JSON without any "<".
        css=Markup(_asset("report.css")),
        script=Markup(_asset("report.js")),
        plotly=Markup(_asset(PLOTLY)),
        charts=Markup(in_script(specs)),
        shared=Markup(in_script({"dark": DARK, "clock": clock, "seconds": names_seconds(clock)})),
    )


def _shown(value: Any) -> Any:
    """Every text of the page: without what looks like a password or a key, in whatever path or name it is."""
    return without_secrets(value) if type(value) is str else value


def _asset(name: str) -> str:
    return (files("hpcrl.report") / "assets" / name).read_text(encoding="utf-8")


def in_script(value: Any) -> str:
    """JSON for the inside of a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _charts_in(value: Any) -> Iterable[Chart]:
    if isinstance(value, Chart):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _charts_in(item)


def _results(found: Gathered) -> dict[str, Any]:
    names = (
        "equity",
        "costs",
        "actions",
        "exposure",
        "lags",
        "strategies",
        "statistics",
        "symbols",
        "verdict",
    )
    empty: dict[str, Any] = dict.fromkeys(names) | {
        "trades": [],
        "trades_left_out": 0,
        "checks": [],
        "cards": [],
    }
    evaluation = found.evaluation
    if evaluation is None:
        return empty
    trades: list = []
    symbols = symbols_table(evaluation)
    left_out = 0
    if found.market is not None:
        from hpcrl.report.trades_charts import holdings, trades_charts

        held = holdings(evaluation, found.market)
        trades = trades_charts(held)
        left_out = len(held) - len(trades)
        symbols = symbols or held_table(evaluation, held)
    known = checks(evaluation)
    return {
        "equity": equity_chart(evaluation),
        "costs": costs_chart(evaluation),
        "actions": actions_chart(evaluation, _trained_shares(found.metrics)),
        "exposure": exposure_chart(evaluation),
        "lags": lags_chart(evaluation),
        "strategies": strategies_table(evaluation),
        "statistics": statistics_table(evaluation),
        "symbols": symbols,
        "trades": trades,
        "trades_left_out": left_out,
        "checks": known,
        "verdict": verdict(evaluation, known),
        "cards": _cards(evaluation),
    }


def _trained_shares(metrics: list[dict[str, Any]]) -> dict[str, float]:
    last = metrics[-1] if metrics else {}
    found = {key.partition("/")[2]: value for key, value in last.items() if key.startswith("action_share/")}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _cards(evaluation: Any) -> list[tuple[str, str, str]]:
    """(name, figure, what to hold it against)."""
    agent, hold, meta = evaluation.row("agent"), evaluation.row("buy_and_hold"), evaluation.meta
    return [
        ("Total return", percent(agent["total_return"], sign=True),
         f"buy and hold {percent(hold['total_return'], sign=True)}"),
        ("Sharpe ratio, annual", show(agent["sharpe"], "number"),
         f"\N{PLUS-MINUS SIGN}{meta['sharpe_standard_error']:.1f} standard error"),
        ("Deepest fall", percent(abs(agent["max_drawdown"])),
         f"buy and hold {percent(abs(hold['max_drawdown']))}"),
        ("Costs", percent(agent["costs"]), f"of the start, {plural(round(agent['trades']), 'trade')}"),
        ("Beats random timing", _or_dash(float(meta.get("agent_beats_random", math.nan))),
         f"of {plural(meta['draws'], 'draw')} of its own positions"),
    ]  # fmt: skip


def _or_dash(value: float) -> str:
    return percent(value, 0) if math.isfinite(value) else "-"


def _training(found: Gathered) -> dict[str, Any]:
    if not found.metrics:
        return {"training": [], "machine": [], "gpu_words": "metrics.jsonl holds no epoch.", "epochs": 0}
    charts = machine_charts(found.metrics)
    words = ""
    if not has_gpu(found.metrics):
        device = found.config.engine.device if found.config is not None else "auto"
        words = (
            "There is no GPU timeline: metrics.jsonl holds no figure of a GPU, so this run trained on the "
            f"CPU, or without a driver that answers (engine.device: {device})."
        )
    return {
        "training": training_charts(found.metrics),
        "machine": charts,
        "gpu_words": words,
        "epochs": found.metrics[-1]["epoch"],
    }


def _population(found: Gathered) -> dict[str, Any]:
    population = found.target.population
    if population is None or not any(one.turns for one in found.past):
        return {"pbt_objective": None, "pbt_schedules": [], "pbt_lineage": None, "pbt_words": ""}
    objective, schedules, lineage = population_charts(population, found.past)
    copies = sum(one.exploits for one in found.past)
    done = max(turn.record.generation for one in found.past for turn in one.turns)
    words = (
        f"{plural(population.pbt.members, 'member')}, {done} of "
        f"{plural(population.generations, 'generation')}, {plural(copies, 'copy', 'copies')}."
    )
    return {
        "pbt_objective": objective,
        "pbt_schedules": schedules,
        "pbt_lineage": lineage,
        "pbt_words": words,
    }


def _data(found: Gathered) -> dict[str, Any]:
    return {
        "missing": missing_chart(found.market) if found.market is not None else None,
        "splits": splits_of(found),
        "quality": quality_table(found),
        "findings": findings(found.quality),
        "staged": found.quality is not None,
        "staged_rows": staged_words(found.quality),
    }
