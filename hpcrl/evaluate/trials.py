"""How many trials a result was chosen from, and how much they differ: what deflates its Sharpe ratio.

Every generation of every member of a population that was scored is a trial, as its records tell; a run in a
population counts them all, as it was bred from them. A run of its own is one trial: no journal tells how
often its user began anew. Knows no torch, changes nothing.

A trial's Sharpe ratio per bar is that of its validation windows' scores, mean / deviation (ddof 1), over
the square root of the bars of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from hpcrl.config.root import Config
from hpcrl.evaluate.bootstrap import bar_sharpe
from hpcrl.evaluate.sealed import run_folder
from hpcrl.market.calendar import SECOND_NS, session_grid
from hpcrl.market.store import read_header
from hpcrl.pbt.history import read_past
from hpcrl.pbt.population import Population, population_of
from hpcrl.pbt.records import Reader
from hpcrl.types import HpcrlError

FEWEST = 2
"""Trials with a Sharpe ratio, for a variance."""


@dataclass(frozen=True)
class Trials:
    count: int
    """N, at least 1; 0: not known."""
    variance: float
    """V, of the trials' Sharpe ratios per bar (ddof 1); NaN where it is not known."""
    source: str
    """Where the number comes from, for the reader."""
    reason: str = ""
    """Why the count is not known, or the variance, though there are several trials; else empty."""


def count_trials(
    paths: str | Path | Iterable[str | Path], *, bars_per_session: float | None = None
) -> Trials:
    """Of runs, checkpoint files, ONNX files and populations, each population and each run counted once.

    Where one of them does not tell its trials (a file in no run or population, an ONNX file in no
    population), the number is not known: count 0, with the reason.
    ``bars_per_session``: for populations whose windows are sessions; None: as their market file says.
    HpcrlError: a population that cannot be read.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    populations: dict[Path, Population] = {}
    alone: set[Path] = set()
    untold: dict[str, str] = {}
    for each in given:
        path = Path(each).resolve()  # a link, or a/../b, is of the population too
        run = run_folder(each)
        population = _population(run or path)
        if population is None and (why := _untold(path, run)):
            untold[Path(each).name] = why
        elif population is None:
            alone.add(path)
        else:
            populations.setdefault(population.path, population)
    sharpes: list[float] = []
    said, reasons = [], []
    count = len(alone)
    for population in populations.values():
        scored = _read(population, bars_per_session)
        sharpes += scored.sharpes
        count += len(scored.sharpes)
        said.append(scored.source)
        reasons += [scored.reason] if scored.reason else []
    if alone:
        said.append("one run: no journal" if len(alone) == 1 else f"{len(alone)} runs: no journal")
    if untold:
        said.append(f"not known: {', '.join(untold)}")
        return Trials(0, math.nan, "; ".join(said), next(iter(untold.values())))
    known = [sharpe for sharpe in sharpes if math.isfinite(sharpe)]
    if len(known) >= FEWEST:
        return Trials(count, float(np.var(known, ddof=1)), "; ".join(said))
    if count > 1:
        reasons.append(f"{len(known)} of {count} trials tell their Sharpe ratio, {FEWEST} are needed")
    return Trials(max(count, 1), math.nan, "; ".join(said), "; ".join(reasons[:1]))


def _population(path: Path) -> Population | None:
    """That the path is, or that it is in; None for a run or a file of its own."""
    folder = path.parent if path.is_file() else path
    if (folder / "population.json").is_file():
        return Population.open(folder)
    found = population_of(folder)
    return found[0] if found is not None else None


def _untold(path: Path, run: Path | None) -> str:
    """Why a policy of no population does not tell its trials; "" where it does."""
    if path.suffix.lower() == ".onnx":
        return "an ONNX file does not tell its trials"
    if run is None and path.is_file():
        return "a checkpoint file outside its run folder does not tell its trials"
    return ""


@dataclass(frozen=True)
class _Scored:
    sharpes: list[float]
    """Per bar, of each trial; NaN where it has none."""
    source: str
    reason: str = ""
    """Why all of them are NaN."""


def _read(population: Population, bars_per_session: float | None) -> _Scored:
    reader = Reader(population)
    past = read_past(population, reader)
    scores = [turn.record.scores for each in past for turn in each.turns]
    members = sum(bool(each.turns) for each in past)
    source = f"{population.path.name}: {len(scores)} scored generations of {members} members"
    if reader.skipped:
        source += f" ({len(reader.skipped)} records could not be read)"
    try:
        bars = window_bars(population.config, bars_per_session)
    except HpcrlError as error:
        return _Scored([math.nan] * len(scores), source, f"bars of a window are not known: {error}")
    return _Scored([bar_sharpe(np.array(score)) / math.sqrt(bars) for score in scores], source)


def window_bars(config: Config, bars_per_session: float | None = None) -> float:
    """Steps of a validation window: decided at its first bar's close, marked at its last one's.

    HpcrlError: windows are sessions, and the market file is not there to tell their length.
    """
    if config.pbt.objective.window_bars is not None:
        return float(config.pbt.objective.window_bars - 1)
    if bars_per_session is None:
        header = read_header(config.market.path)
        ends = [one[end] for one in header["symbols"].values() for end in ("first", "last")]
        stamps = [int(datetime.fromisoformat(end).timestamp()) * SECOND_NS for end in ends]
        grid = session_grid(header["calendar"], header["bar_seconds"], min(stamps), max(stamps))
        bars_per_session = len(grid.ts_G) / len(np.unique(grid.session_G))
    return max(bars_per_session - 1, 1.0)
