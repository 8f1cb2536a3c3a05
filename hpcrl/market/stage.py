"""From a source of bars to one immutable HDF5 file and its quality report.

Every source ends in ``stage_frame``: judge the rows, lay them on the exchange's calendar, compute features,
write. A data set that fails any check leaves neither file nor report behind.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from hpcrl.market.align import align, check_coverage
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import ALWAYS, Grid, find_sessions
from hpcrl.market.clean import check_timezone, judge, typed
from hpcrl.market.features import BURN_IN, FEATURES, definitions
from hpcrl.market.files import OPTIONAL, REQUIRED, list_files, pick_columns, read_files
from hpcrl.market.planted import find_task, planted
from hpcrl.market.quality import add_symbol, build_report
from hpcrl.market.store import StoreWriter, is_store
from hpcrl.market.synthetic import SYMBOLS, random_walk
from hpcrl.storage.atomic import check_output, fsync_folder, remove_dead_temporaries, to_json
from hpcrl.storage.atomic import stage as stage_output
from hpcrl.storage.revision import git_commit
from hpcrl.types import HpcrlError

Adjustment = Literal["unknown", "unadjusted", "splits", "splits_dividends"]


@dataclass(frozen=True)
class StageResult:
    path: Path
    report: dict[str, Any]
    report_path: Path
    sha256: str  # of the contents
    rows: dict[str, int]  # present bars per symbol


@dataclass(frozen=True)
class StageOptions:
    """How any source's bars are read; the same names as the command line's options."""

    calendar: str = "XNYS"
    bar_seconds: int = 300
    features: tuple[str, ...] = ()
    """Numeric columns of the source that become features, known at the bar's close."""
    computed: bool = True
    """Also compute ``features.FEATURES``; False: only ``features``."""
    timezone: str | None = None
    """Zone of stamps that carry none."""
    strict: bool = False
    """Refuse what would otherwise be dropped or flagged."""
    price_adjustment: Adjustment = "unknown"
    symbols: tuple[str, ...] = ()
    """Take these only, in this order; empty: all, by name."""

    def check(self) -> None:
        if self.price_adjustment not in get_args(Adjustment):
            allowed = ", ".join(get_args(Adjustment))
            raise HpcrlError(f"price_adjustment is {self.price_adjustment!r}; allowed: {allowed}")
        if not self.computed and not self.features:
            raise HpcrlError("no features: with computed features off, name at least one column as a feature")
        for name in self.features:
            if (
                name in REQUIRED
                or name in OPTIONAL
                or name.startswith("_")
                or (self.computed and name in FEATURES)
            ):
                raise HpcrlError(f"feature {name!r}: this name is taken; rename the column")
        _check_once("feature", self.features)
        _check_once("symbol", self.symbols)
        if self.timezone is not None:
            check_timezone(self.timezone)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (*(FEATURES if self.computed else ()), *self.features)


def _check_once(kind: str, names: tuple[str, ...]) -> None:
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise HpcrlError(f"{kind} {doubled} is given twice")


def report_path(out: Path) -> Path:
    return out.with_suffix(".report.json")


def prepare_output(out: str | Path, inputs: list[Path]) -> Path:
    """HpcrlError, before any work, unless ``out`` is a new file or an older data set, and none of ``inputs``.

    Also clears away what a staging of the same file left behind when it was killed.
    """
    out = Path(out)
    check_output(out, inputs)
    if out.exists() and not is_store(out):
        raise HpcrlError(
            f"{out}: exists and is no market file of `hpcrl stage`, so it is not written over; "
            "remove it or name another file"
        )
    check_output(report_path(out), inputs)
    if out.parent.is_dir():
        remove_dead_temporaries(out.parent, {out.name, report_path(out).name})
    return out


def stage_files(path: str | Path, out: str | Path, **options: Any) -> StageResult:
    """Stage CSV or Parquet (a file or a folder). ``options``: the fields of ``StageOptions``.

    HpcrlError names the first unusable rows and the counts; then no file is written.
    """
    chosen = StageOptions(**options)
    chosen.check()
    out = prepare_output(out, list_files(Path(path)))
    frame, files = read_files(path, chosen.features)
    return _stage(frame, files, out, chosen, source="files", query={"path": str(path)})


def stage_frame(
    frame: pd.DataFrame, out: str | Path, *, source: str, query: dict[str, Any] | None = None, **options: Any
) -> StageResult:
    """Stage a table that is already in memory: columns as in the files, rows named by their number."""
    chosen = StageOptions(**options)
    chosen.check()
    out = prepare_output(out, [])
    picked = pick_columns(frame.reset_index(drop=True), chosen.features, source)
    picked["_file"], picked["_line"] = np.int32(0), np.arange(1, len(picked) + 1)
    return _stage(picked, [source], out, chosen, source=source, query=query or {})


def stage_synthetic(
    out: str | Path,
    *,
    symbols: tuple[str, ...] = SYMBOLS,
    bars: int = 1000,
    seed: int = 0,
    calendar: str = "XNYS",
    bar_seconds: int = 300,
    source: str = "synthetic",
) -> StageResult:
    """A random walk of ``bars`` tradable bars per symbol, and the burn-in before them."""
    if bars < 1 or not symbols:
        raise HpcrlError(
            f"synthetic data of {bars} bars for {len(symbols)} symbols: at least 1 of each is needed"
        )
    _check_once("symbol", tuple(symbols))
    prepare_output(out, [])
    tables = [random_walk(symbol, BURN_IN + bars, seed, calendar, bar_seconds) for symbol in symbols]
    return stage_frame(
        pd.concat(tables, ignore_index=True),
        out,
        source=source,
        query={"bars": bars, "seed": seed},
        calendar=calendar,
        bar_seconds=bar_seconds,
        symbols=tuple(symbols),
        price_adjustment="splits_dividends",
    )


def stage_planted(
    out: str | Path, task: str, *, bars: int = 1000, paths: int = 1, seed: int = 0, bar_seconds: int = 300
) -> StageResult:
    """A planted market: ``paths`` symbols of ``bars`` tradable bars each, and the burn-in before them.

    Its half-spread and its oracle's mean reward a bar stand in the attribute ``query``.
    """
    chosen = find_task(task)
    if bars < 1:
        raise HpcrlError(f"planted market {task}: bars is {bars}; at least 1 is needed")
    prepare_output(out, [])
    frame = planted(task, BURN_IN + bars, paths, seed, bar_seconds=bar_seconds)
    return stage_frame(
        frame,
        out,
        source=f"planted:{task}",
        query={
            "task": task,
            "bars": bars,
            "paths": paths,
            "seed": seed,
            "half_spread": chosen.half_spread,
            "oracle_reward": chosen.oracle_reward,
        },
        calendar=ALWAYS,
        bar_seconds=bar_seconds,
        features=(chosen.feature,),
        computed=False,
        symbols=tuple(frame["symbol"].unique()),
        price_adjustment="splits_dividends",
    )


def _stage(
    frame: pd.DataFrame,
    files: list[str],
    out: Path,
    options: StageOptions,
    *,
    source: str,
    query: dict[str, Any],
) -> StageResult:
    frame = _pick_symbols(frame, options.symbols, ", ".join(files))
    rows_read = len(frame)
    frame = typed(frame, files, options.features, options.timezone)
    frame, dropped = judge(frame, files, options.features, options.price_adjustment)
    stamps = frame["timestamp"]
    sessions = find_sessions(options.calendar, options.bar_seconds, int(stamps.min()), int(stamps.max()))
    for symbol, rows in frame.groupby("symbol", sort=False):
        check_coverage(str(symbol), rows["timestamp"].to_numpy(), sessions)
    grid = sessions.grid()
    order = options.symbols or tuple(sorted(frame["symbol"].unique()))
    bars, aside = _align_all(frame, order, grid, options)
    dropped.add("off_grid", aside, files, f"not on the {options.calendar} {options.bar_seconds} s grid")
    if options.strict:
        dropped.refuse(", ".join(files), rows_read, "refused (--strict); nothing was written")
    header = {
        "source": source,
        "files": files,
        "calendar": options.calendar,
        "bar_seconds": options.bar_seconds,
        "price_adjustment": options.price_adjustment,
    }
    report = build_report(header, dropped, rows_read)
    for one in bars:
        add_symbol(report, one, grid, options.price_adjustment)
    if options.strict and report["flagged"]:
        kind, entry = next(iter(report["flagged"].items()))
        row = entry["rows"][0]
        what = f"{row['symbol']} at {row['timestamp']}: {kind}: {row['what']}"
        raise HpcrlError(f"{', '.join(files)}: {what}; refused (--strict), nothing was written")
    return _write(bars, report, out, options, source, {**query, "symbols": list(options.symbols)})


def _pick_symbols(frame: pd.DataFrame, symbols: tuple[str, ...], name: str) -> pd.DataFrame:
    if not symbols:
        return frame
    found = frame["symbol"].astype("str").str.strip()
    there = set(found.dropna().unique())  # once: a pass over a million rows takes a second
    missing = [symbol for symbol in symbols if symbol not in there]
    if missing:
        has = ", ".join(sorted(there))
        raise HpcrlError(f"{name}: no rows for symbol {', '.join(missing)}; it has {has}")
    return frame[found.isin(symbols)]


def _align_all(
    frame: pd.DataFrame, order: tuple[str, ...], grid: Grid, options: StageOptions
) -> tuple[list[SymbolBars], pd.DataFrame]:
    groups = dict(list(frame.groupby("symbol", sort=False)))
    bars, aside = [], []
    for symbol in order:
        one, off = align(groups[symbol], grid, options.bar_seconds, options.features, options.computed)
        bars.append(one)
        aside.append(off)
    return bars, pd.concat(aside)


def _write(
    bars: list[SymbolBars],
    report: dict[str, Any],
    out: Path,
    options: StageOptions,
    source: str,
    query: dict[str, Any],
) -> StageResult:
    attributes = {
        "source": source,
        "query": query,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "timezone": "UTC",
        "bar_seconds": options.bar_seconds,
        "price_adjustment": options.price_adjustment,
        "calendar": options.calendar,
        "feature_names": list(options.feature_names),
        "feature_definitions": definitions(tuple(FEATURES) if options.computed else (), options.features),
        "burn_in": BURN_IN,
        "git_commit": git_commit(),
    }
    with contextlib.ExitStack() as stack:
        with StoreWriter(out, attributes) as writer:
            for one in bars:
                writer.add(one)
            report["sha256"] = writer.finish()
            # Written whole before the data file is renamed, and renamed after it: neither without the other.
            text = to_json(report).encode()
            staged = stage_output(report_path(out), lambda file: file.write(text))
            stack.callback(staged.discard)
        staged.commit()
    fsync_folder(out.parent)
    rows = {symbol: counts["present"] for symbol, counts in report["symbols"].items()}
    return StageResult(out, report, staged.path, writer.sha256, rows)
