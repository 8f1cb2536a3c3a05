"""``hpcrl audit``: does anything that the agent sees, or is paid, come from the future?

Runs every check on a data set and a configuration. Refuses data that cannot be trained on at all; a leak is
a result, not an error: exit code 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpcrl.audit.columns import source_columns
from hpcrl.audit.episodes import episodes_isolated, observations_causal
from hpcrl.audit.features import causal, recomputed, session_so_far
from hpcrl.audit.fills import fills_after_decision, marks_not_backfilled
from hpcrl.audit.finding import Finding
from hpcrl.audit.labels import labelled_by_start
from hpcrl.audit.pipeline import Case, load_case
from hpcrl.audit.restated import not_restated
from hpcrl.audit.splits import scaler_fits_training, splits_apart
from hpcrl.config.load import load_config
from hpcrl.types import HpcrlError

CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    recomputed,
    causal,
    session_so_far,
    source_columns,
    labelled_by_start,
    marks_not_backfilled,
    scaler_fits_training,
    splits_apart,
    observations_causal,
    episodes_isolated,
    fills_after_decision,
)
LEAST_TRAINING_ROWS = 20
COLOURS = {"pass": "green", "warning": "yellow", "leak": "bold red", "skipped": "dim"}


def audit_case(case: Case) -> list[Finding]:
    """Every check's findings. HpcrlError where the data set has no training rows to speak of."""
    market, (lo, hi) = case.market, case.train_rows
    if hi - lo < LEAST_TRAINING_ROWS:
        raise HpcrlError(
            f"the training split holds {max(hi - lo, 0)} of {market.n_bars:,} bars (each symbol's first "
            f"{case.burn_in} are burn-in); an audit needs at least {LEAST_TRAINING_ROWS}: stage more bars"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: threads cost more than they give
    try:
        return [finding for check in CHECKS for finding in check(case)]
    finally:
        torch.set_num_threads(threads)


def audit_config(
    path: Path | None, overrides: Iterable[str] = (), earlier: Path | None = None
) -> dict[str, Any]:
    """The report: {"verdict": "clean" or "leak", "findings", "data", "seconds"}.

    ``earlier``: an older file of the same data, to compare with. HpcrlError: a bad configuration, no such
    file, no training rows.
    """
    began = time.monotonic()
    case = load_case(load_config(path, overrides))
    findings = audit_case(case)
    if earlier is not None:
        findings += not_restated(case, earlier)
    return {
        "verdict": "leak" if any(finding.verdict == "leak" for finding in findings) else "clean",
        "warnings": sum(finding.verdict == "warning" for finding in findings),
        "findings": [finding.to_json() for finding in findings],
        "data": {
            "path": case.config.market.path,
            "sha256": case.header["sha256"],
            "source": case.header["source"],
            "symbols": [one.symbol for one in case.bars],
            "bars": case.market.n_bars,
            "features": list(case.names),
        },
        "fill_lag": case.fill_lag,
        "seconds": round(time.monotonic() - began, 2),
    }


def render(report: dict[str, Any]) -> Group:
    data, leak = report["data"], report["verdict"] == "leak"
    symbols = data["symbols"]
    table = Table(
        title=f"{data['path']}: {data['bars']:,} bars of {len(symbols)} symbol{'s' * (len(symbols) > 1)}, "
        f"{len(data['features'])} features, fill lag {report['fill_lag']}",
        title_justify="left",
    )
    for name in ("check", "verdict", "evidence"):
        table.add_column(name, no_wrap=name != "evidence")
    for finding in report["findings"]:
        verdict = Text(finding["verdict"], style=COLOURS[finding["verdict"]])
        evidence = Text(finding["evidence"])
        if finding["advice"] and finding["verdict"] != "pass":
            evidence.append(f"\n-> {finding['advice']}", style="italic")
        table.add_row(finding["check"], verdict, evidence)
    leaks = sum(finding["verdict"] == "leak" for finding in report["findings"])
    said = (
        f"{leaks} leak{'s' * (leaks > 1)} found: no result on this data means anything"
        if leak
        else "no leak found"
    )
    warned = f", {report['warnings']} warning{'s' * (report['warnings'] > 1)}" if report["warnings"] else ""
    skipped = sum(finding["verdict"] == "skipped" for finding in report["findings"])
    warned += f", {skipped} check{'s' * (skipped > 1)} skipped" if skipped else ""
    return Group(
        table, Text(f"{said}{warned} ({report['seconds']:.1f} s)", style=COLOURS["leak" if leak else "pass"])
    )
