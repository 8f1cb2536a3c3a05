"""From files, and from made-up markets, to one immutable HDF5 file and its quality report.

Every source here ends in ``_stage``: judge all rows, then ``Build`` symbol by symbol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpcrl.market.build import Build, StageResult, prepare_output
from hpcrl.market.calendar import ALWAYS
from hpcrl.market.clean import judge, raw_bars, typed
from hpcrl.market.features import BURN_IN
from hpcrl.market.files import list_files, pick_columns, read_files
from hpcrl.market.options import StageOptions, check_once
from hpcrl.market.planted import find_task, planted
from hpcrl.market.store import is_store, read_header
from hpcrl.market.synthetic import SYMBOLS, made_up, random_walk
from hpcrl.types import HpcrlError


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
    check_once("symbol", tuple(symbols))
    _refuse_over_real(out)
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
    _refuse_over_real(out)
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


def _refuse_over_real(out: str | Path) -> None:
    """HpcrlError where made-up bars would take the place of real ones."""
    if is_store(out) and not made_up(source := read_header(out)["source"]):
        raise HpcrlError(
            f"{out} holds bars of source {source}, which made-up ones do not replace; give another --out, or "
            "remove that file first"
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
    with Build(out, options, source, files, {**query, "symbols": list(options.symbols)}) as build:
        build.dropped = dropped
        build.expect(int(frame["timestamp"].min()), int(frame["timestamp"].max()))
        there = {raw.symbol: raw for raw in raw_bars(frame, options.features)}
        del frame
        for symbol in options.symbols or tuple(there):
            build.add(there.pop(symbol))
        return build.finish(rows_read)


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
