"""The page's tables, as rows of texts: strategies, symbols, statistics, data, attempts, versions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hpcrl.evaluate.evaluation import AGENT, HOLD, Evaluation
from hpcrl.evaluate.table import FEW_SESSIONS, LINES, PER_SYMBOL, YEARLY
from hpcrl.market.dataset import Market
from hpcrl.market.splits import purged_bars
from hpcrl.report.figures import percent, plural, show
from hpcrl.report.gather import Gathered
from hpcrl.report.results_charts import look, strategies
from hpcrl.report.words import figure, interval


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: str = ""
    kind: str = "figures"
    """figures: all columns but the first are; words: none is."""
    strong: int | None = None
    """A column that stands out."""
    notes: tuple[str, ...] = field(default=())


def strategies_table(evaluation: Evaluation) -> Table:
    """Metrics of all accounts together, one column per strategy."""
    names, meta = strategies(evaluation), evaluation.meta
    by_name = {name: evaluation.row(name) for name in names}
    rows = []
    for label, key, kind in LINES:
        if key in YEARLY and meta["sessions"] < FEW_SESSIONS:
            continue
        if any(key in row for row in by_name.values()):
            rows.append((label.strip(), *(show(row.get(key), kind) for row in by_name.values())))
    words = (
        f"After costs. Sharpe ratios per year come from sessions ({meta['sessions_per_year']} a year). "
        f"Matched random: means (of annual ratios medians) of {plural(meta['draws'], 'draw')} of the "
        "agent's own positions at other times. - is undefined."
    )
    heads = ("", *(look(name)[0].removesuffix(", mean") for name in names))
    return Table("All accounts together", heads, tuple(rows), words, strong=1)


def symbols_table(evaluation: Evaluation) -> Table | None:
    """One row per account; None where there is only one."""
    accounts = [name for name in evaluation.meta["accounts"] if _has(evaluation, name)]
    if len(accounts) < 2:
        return None
    rows = []
    for symbol in accounts:
        row = evaluation.row(AGENT, symbol)
        cells = [show(row.get(key), kind) for _, key, kind in PER_SYMBOL]
        low, high = (row.get(f"total_return_{end}", math.nan) for end in ("low", "high"))
        between = (
            f"{percent(low, 1)} to {percent(high, 1)}" if math.isfinite(low + high) else show(low, "number")
        )
        beats = show(row.get("beats_random"), "percent")
        hold = show(evaluation.row(HOLD, symbol).get("total_return"), "percent")
        rows.append((symbol, *cells[:1], between, *cells[1:], beats, hold))
    labels = [label.replace("-\n", "").replace("\n", " ") for label, _, _ in PER_SYMBOL]
    head = ("symbol", labels[0], "95 % interval", *labels[1:], "beats random", "buy and hold")
    return Table("By symbol", head, tuple(rows), "The agent's account of each symbol, after costs.")


def held_table(evaluation: Evaluation, held: Iterable[Any]) -> Table | None:
    """For one account over several symbols: what was traded and held of each."""
    each = list(held)
    if evaluation.meta["assets"] != "all" or len(each) < 2:
        return None
    rows = []
    for one in each:
        weight_T = one.weight_T[1:]
        moved = np.abs(one.change_T).sum()
        rise = one.close_T[-1] / one.close_T[0] - 1 if one.close_T[0] > 0 else math.nan
        rows.append((one.symbol, show(float(one.trades), "count"), show(float(moved), "number"),
                     show(float(weight_T.mean()), "percent"), show(float(np.abs(weight_T).mean()), "percent"),
                     show(float(rise), "percent")))  # fmt: skip
    head = ("symbol", "trades", "turnover, x equity", "net, mean", "gross, mean", "price change")
    return Table("By symbol", head, tuple(rows), "One account: what it traded and held of each symbol.")


def _has(evaluation: Evaluation, symbol: str) -> bool:
    return any(row.strategy == AGENT and row.symbol == symbol for row in evaluation.rows)


STATISTICS = (
    ("psr", "probability that the Sharpe ratio is above 0 (PSR)", "percent"),
    ("dsr", "the same after the trials (deflated Sharpe ratio)", "percent"),
    ("sr0", "Sharpe per bar that the best of so many trials has by luck", "small"),
    ("trials", "trials", "count"),
    ("min_track_record_bars", "bars that a Sharpe ratio like this one needs", "count"),
    ("block_length", "mean length of a bootstrap's block, bars", "number"),
)
INTERVALS = (
    ("total_return", "total return", "percent"),
    ("bar_sharpe", "Sharpe per bar", "small"),
    ("difference_to_buy_and_hold", "total return above buy and hold's", "percent"),
)


def statistics_table(evaluation: Evaluation) -> Table | None:
    """What the agent's figures are worth; None where they were not computed."""
    meta = evaluation.meta
    told = meta.get("statistics") or {}
    rows = []
    for key, name, kind in INTERVALS:
        found = interval(meta, key)
        if found is not None:
            low, high = (show(end, kind) for end in found)
            rows.append((f"{name}, 95 % interval", f"{low} to {high}"))
    reasons = told.get("reasons") or {}
    for key, name, kind in STATISTICS:
        if key not in told:
            continue
        value = figure(meta, key)
        if key == "min_track_record_bars" and math.isfinite(value):
            value = float(math.ceil(value))
        why = reasons.get(key)
        rows.append((name, show(value, kind) + (f" ({why})" if why and not math.isfinite(value) else "")))
    if told.get("trials_source"):
        rows.append(("trials counted from", str(told["trials_source"])))
    if not rows:
        return None
    return Table(
        "Could it be luck?",
        ("", "agent"),
        tuple(rows),
        "Returns of bars, stationary block bootstrap.",
        kind="words",
    )


def splits_of(found: Gathered) -> list[dict[str, Any]]:
    """Train, validation and test: share of the tradable bars, dates, which one is shown."""
    market, meta = found.market, found.evaluation.meta if found.evaluation else {}
    if market is None:
        return []
    lag = int(meta.get("fill_lag", 1))
    whole = max(market.n_bars - int(market.first_bar_S.min()), 1)
    parts = []
    for name in ("train", "validation", "test"):
        low, high = market.split_range(name, lag)  # type: ignore[arg-type]
        count = max(high - low, 0)
        dates = f"{day(market.ts_B[low])} to {day(market.ts_B[high - 1])}" if count else "no bars"
        parts.append({"name": name, "share": count / whole, "bars": count, "dates": dates,
                      "shown": name == meta.get("split"), "purged": purged_bars(lag)})  # fmt: skip
    return parts


def day(seconds: Any) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d")


def quality_table(found: Gathered) -> Table | None:
    """The staging report's counts by symbol, or what the market file itself tells."""
    report, market = found.quality, found.market
    if report is not None and isinstance(report.get("symbols"), dict):
        keys = (
            "first",
            "last",
            "present",
            "missing",
            "zero_volume",
            "tradable",
            "sessions",
            "complete_sessions",
        )
        rows = [
            (symbol, *(_cell(counts.get(key)) for key in keys))
            for symbol, counts in report["symbols"].items() if isinstance(counts, dict)
        ]  # fmt: skip
        head = ("symbol", *(key.replace("_", " ") for key in keys))
        return Table("Bars by symbol, as staged", head, tuple(rows))
    if market is None:
        return None
    rows = [(symbol, *_counts(market, s)) for s, symbol in enumerate(market.symbols)]
    words = (
        "No staging report lies beside the data file: counted in the file itself, on the grid of all symbols."
    )
    return Table("Bars by symbol", ("symbol", "first", "last", "present", "missing"), tuple(rows), words)


def _counts(market: Market, s: int) -> tuple[str, ...]:
    there = np.flatnonzero(market.present_BS[:, s])
    missing = int(there[-1] - there[0] + 1 - len(there)) if len(there) else 0
    ends = (market.ts_B[there[0]], market.ts_B[there[-1]]) if len(there) else ()
    return (*(day(end) for end in ends), *(() if ends else ("-", "-")), f"{len(there):,}", f"{missing:,}")


_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):00Z$")


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return _STAMP.sub(r"\1 \2", str(value))


def staged_words(report: dict[str, Any] | None) -> str:
    """How many rows were read, kept and masked; "" where that is not told."""
    if report is None or "rows_read" not in report:
        return ""
    masked = report.get("masked")
    told = [f"{_cell(report['rows_read'])} rows were read", f"{_cell(report.get('rows_kept'))} kept"]
    if isinstance(masked, dict):
        told += [f"{_cell(count)} {str(what).replace('_', ' ')}" for what, count in masked.items()]
    return f"When the file was staged: {', '.join(told)}."


def findings(report: dict[str, Any] | None) -> list[tuple[str, list[str]]]:
    """What staging dropped or flagged: (heading, the rows that it names)."""
    said = []
    for verdict in ("dropped", "flagged"):
        entries = (report or {}).get(verdict)
        for kind, entry in entries.items() if isinstance(entries, dict) else ():
            if not isinstance(entry, dict):
                continue
            rows = [row for row in entry.get("rows", []) if isinstance(row, dict)]
            keys = ("where", "symbol", "timestamp", "what")
            lines = [", ".join(str(row[key]) for key in keys if row.get(key)) for row in rows]
            said.append((f"{verdict}: {_cell(entry.get('count'))} {str(kind).replace('_', ' ')}", lines))
    return said


def attempts_table(found: Gathered) -> Table | None:
    rows = []
    for one in found.attempts:
        end = one.end or {}
        how = "still runs, or was killed" if one.end is None else str(end.get("reason", "-"))
        rows.append((str(one.number), one.started[:19].replace("T", " "),
                     str(end.get("ended", "-"))[:19].replace("T", " "),
                     "the start" if not one.base_epoch else f"epoch {one.base_epoch}", one.job or "-",
                     f"{one.world_size}", how))  # fmt: skip
    head = ("attempt", "began, UTC", "ended, UTC", "from", "job", "ranks", "how it ended")
    return Table("Attempts", head, tuple(rows), kind="words") if rows else None


def provenance(found: Gathered) -> list[tuple[str, str]]:
    """(what, value) that a reader needs to make this page again."""
    record, meta = found.record, found.evaluation.meta if found.evaluation else {}
    data = meta.get("data") or record.get("data") or {}
    versions = record.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    told = [
        ("run", str(found.target.played)),
        (
            "checkpoint",
            f"{meta['checkpoint']}, epoch {meta['epoch']}" if meta else "none that could be played",
        ),
        ("data source", str(data.get("source", "unknown"))),
        ("data file", str(found.data_file or "unknown")),
        ("data, sha256", str(data.get("sha256", "unknown"))),
        ("config, sha256", str(meta.get("config_sha256") or record.get("config_sha256", "unknown"))),
        ("code", f"git {record['git_commit']}" if record.get("git_commit") else "unknown"),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value) or "unknown"),
        ("run begun", str(record.get("created", "unknown"))),
        ("seed of the baselines", str(meta.get("seed", "-"))),
    ]
    return told
