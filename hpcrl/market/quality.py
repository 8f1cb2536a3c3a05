"""The quality report of a staged data set: what was found and what was done about it.

A plain dictionary (JSON beside the file) and a table for people. Rejected data never get this far: the
error names their rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hpcrl.market.align import census, split_jumps
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import Grid
from hpcrl.market.clean import NAMED_ROWS
from hpcrl.market.compare import differing_rows, indicator_lines

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    ("first", "last"),
    ("present", "tradable"),
    ("missing", "zero_volume"),
    ("sessions", "complete_sessions"),
)
"""Of the table, two values of a symbol above each other."""


def empty_report(header: dict[str, Any]) -> dict[str, Any]:
    """``add_symbol`` and ``Build.finish`` fill it. ``header``: source, files, calendar, bar_seconds..."""
    return {
        **header,
        "rows_read": 0,
        "rows_kept": 0,
        "dropped": {},
        "masked": {"missing_bars": 0, "zero_volume": 0},
        "flagged": {},
        "symbols": {},
    }


def add_symbol(report: dict[str, Any], bars: SymbolBars, grid: Grid, price_adjustment: str) -> None:
    """Count one symbol's bars and flag what looks wrong though it is possible."""
    counts = census(bars, grid)
    report["symbols"][bars.symbol] = counts
    report["rows_kept"] += counts["present"]
    report["masked"]["missing_bars"] += counts["missing"]
    report["masked"]["zero_volume"] += counts["zero_volume"]
    if price_adjustment in ("unadjusted", "unknown"):
        flag(report, "split_jump", split_jumps(bars))
    if counts["tradable"] == 0:
        what = f"{counts['present']} bars, all of them burn-in: never traded"
        flag(report, "too_short", [{"symbol": bars.symbol, "timestamp": counts["last"], "what": what}])


def add_indicators(report: dict[str, Any], symbol: str, found: dict[str, Any]) -> None:
    """What ``compare_indicators`` found for one symbol; what differs is flagged."""
    report.setdefault("indicators", {})[symbol] = found
    flag(report, "indicator_differs", differing_rows(symbol, found))


def flag(report: dict[str, Any], kind: str, rows: list[dict]) -> None:
    if rows:
        entry = report["flagged"].setdefault(kind, {"count": 0, "rows": []})
        entry["count"] += len(rows)
        entry["rows"] += rows[: NAMED_ROWS - len(entry["rows"])]


def render_report(report: dict[str, Any]) -> Table:
    """The report as a Rich table, readable at 80 columns: two lines per symbol, then one per finding."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{report['source']}, {report['calendar']}, {report['bar_seconds']} s bars"
    table = Table(title=escape(title), caption=escape(_caption(report)), caption_justify="left")
    table.add_column("symbol", overflow="fold")
    for head, tail in COLUMNS:
        side: Literal["left", "right"] = "left" if head == "first" else "right"
        heading = f"{head}\n{tail}".replace("_", " ").replace("complete sessions", "complete")
        table.add_column(heading, justify=side, no_wrap=True)
    for symbol, counts in report["symbols"].items():
        table.add_row(escape(symbol), *(f"{_show(counts[a])}\n{_show(counts[b])}" for a, b in COLUMNS))
    return table


def _show(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _caption(report: dict[str, Any]) -> str:
    lines = [f"{report['rows_read']:,} rows read, {report['rows_kept']:,} kept"]
    if "update" in report:
        update = report["update"]
        lines.append(f"an update of {update['of']}: went on with {', '.join(update['continued']) or 'none'}")
        lines += [f"  {symbol} was fetched anew: {why}" for symbol, why in update["restaged"].items()]
    for verdict in ("dropped", "flagged"):
        for kind, entry in report[verdict].items():
            lines.append(f"{verdict}: {entry['count']:,} {kind.replace('_', ' ')}")
            lines += [
                "  "
                + ", ".join(
                    part for part in (row.get("where"), row["symbol"], row["timestamp"], row["what"]) if part
                )
                for row in entry["rows"]
            ]
    return "\n".join([*lines, *indicator_lines(report.get("indicators", {}))])
