"""``hpcrl audit --self-test``: every planted leak must be found, and nothing in clean pipelines.

The market is made up but looks real: two symbols with a common part, half-day calendar, gaps, bars without
volume, and a column that honestly predicts. It goes through the same staging, file and audit as a user's.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpcrl.audit.audit import audit_case
from hpcrl.audit.pipeline import Case, load_case
from hpcrl.audit.planted import LEAKS, Leak
from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.market.calendar import forward_grid
from hpcrl.market.stage import stage_frame

BARS = 1170
"""Fifteen sessions: burn-in, and enough rows for the tests of the source's columns."""
SYMBOLS = ("AAA", "BBB")
CLEAN: dict[str, dict[str, Any]] = {
    "clean: one symbol an account": {},
    "clean: all symbols in one account": {"assets": "all", "max_leverage": 2.0, "maintenance": 0.25},
    "clean: filled two bars later, sized at the fill": {"fill_lag": 2, "sizing": "fill", "lot": 0},
}


def small_market(seed: int = 0) -> pd.DataFrame:
    """Raw table: r = 0.7 common + 0.7 own part, of which a hundredth follows the honest column ``signal``."""
    grid = forward_grid("XNYS", 300, "2019-06-24", BARS)  # with the half day before Independence Day
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(BARS)
    starts = np.r_[False, np.diff(grid.session_G) != 0]
    tables = []
    for symbol in SYMBOLS:
        signal, own = rng.standard_normal(BARS), rng.standard_normal(BARS)
        for bar in range(1, BARS):
            signal[bar] = 0.9 * signal[bar - 1] + np.sqrt(1 - 0.81) * signal[bar]
        led = 0.1 * np.r_[0.0, signal[:-1]]
        move = 1e-3 * (0.7 * common + 0.7 * own + led) * rng.uniform(0.5, 1.5, BARS)
        gap = np.where(starts, 5e-3 * rng.standard_normal(BARS), 1e-4 * rng.standard_normal(BARS))
        close = 80 * np.exp(np.cumsum(move + gap))
        opened = close * np.exp(-move)
        wick = np.exp(4e-4 * np.abs(rng.standard_normal((2, BARS))))
        volume = np.round(2e4 * np.exp(0.6 * rng.standard_normal(BARS)))
        table = pd.DataFrame(
            {
                "timestamp": pd.DatetimeIndex(grid.ts_G, tz="UTC"),
                "symbol": symbol,
                "open": opened,
                "high": np.maximum(opened, close) * wick[0],
                "low": np.minimum(opened, close) / wick[1],
                "close": close,
                "volume": volume,
                "signal": signal,
            }
        )
        gone = rng.choice(np.arange(5, BARS - 5), size=BARS // 60, replace=False)
        quiet = rng.choice(np.arange(5, BARS - 5), size=BARS // 100, replace=False)
        last = table["close"].shift(1)[quiet]
        table.loc[quiet, ["open", "high", "low", "close"]] = np.repeat(last.to_numpy()[:, None], 4, axis=1)
        table.loc[quiet, "volume"] = 0.0
        tables.append(table.drop(index=gone))
    return pd.concat(tables, ignore_index=True)


def small_case(folder: Path, frame: pd.DataFrame, **env: Any) -> Case:
    """``frame`` staged into ``folder`` and loaded as a user's data set is."""
    path = folder / "market.h5"
    stage_frame(frame, path, source="synthetic:audit", features=("signal",))
    return load_case(_config(path, env))


def _config(path: Path, env: dict[str, Any]) -> Config:
    tree = {"market": {"path": str(path)}, "env": {"envs_per_gpu": 2, "lot": 0, **env}}
    return validate(tree | {"learn": {"rollout": 64, "sequence_length": 64, "batch_size": 64}}, "self-test")


def self_test() -> dict[str, Any]:
    """{"passed", "rows": [{"planted", "expected", "ok", "checks", "evidence"}], "seconds"}."""
    began = time.monotonic()
    frame, rows = small_market(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        honest = small_case(folder, frame)
        for clean, env in CLEAN.items():
            rows.append(_row(clean, "clean", replace(honest, config=_config(folder / "market.h5", env))))
        for leak in LEAKS:
            rows.append(_row(leak.name, "leak", _plant(leak, honest, frame, folder)))
    passed = all(row["ok"] for row in rows)
    return {"passed": passed, "rows": rows, "seconds": round(time.monotonic() - began, 1)}


def _plant(leak: Leak, honest: Case, frame: pd.DataFrame, folder: Path) -> Case:
    case = honest if leak.frame is None else small_case(folder, leak.frame(frame))
    return case if leak.case is None else leak.case(case)


def _row(name: str, expected: str, case: Case) -> dict[str, Any]:
    found = [finding for finding in audit_case(case) if finding.verdict == "leak"]
    return {
        "planted": name,
        "expected": expected,
        "ok": bool(found) == (expected == "leak"),
        "checks": list(dict.fromkeys(finding.check for finding in found)),
        "evidence": found[0].evidence if found else "",
    }


def render_self_test(report: dict[str, Any]) -> Group:
    table = Table(title="planted leaks, each alone, and what the audit says", title_justify="left")
    for name in ("planted", "found by", "evidence"):
        table.add_column(name)
    for row in report["rows"]:
        said = ", ".join(row["checks"]) or ("no alarm" if row["expected"] == "clean" else "NOT FOUND")
        table.add_row(
            row["planted"], Text(said, style="green" if row["ok"] else "bold red"), Text(row["evidence"])
        )
    leaks = [row for row in report["rows"] if row["expected"] == "leak"]
    alarms = sum(not row["ok"] for row in report["rows"] if row["expected"] == "clean")
    said = (
        f"{sum(row['ok'] for row in leaks)} of {len(leaks)} planted leaks found, {alarms} false alarms on "
        f"{len(report['rows']) - len(leaks)} clean configurations ({report['seconds']:.1f} s)"
    )
    return Group(table, Text(said, style="green" if report["passed"] else "bold red"))
