"""``compare``: several policies over the same bars, and whether they differ beyond noise.

Each is played as ``evaluate_run`` plays it. Runs that differ by their seed only are one standing: means over
seeds, with the lowest and the highest beside them. Differences are of the bars' returns, both sides drawn
in the same blocks, so that what moves both (the market) cancels. The intervals speak of the bars, not of the
seeds: of those the spread tells. The sealed test split is opened once for the whole comparison.

T bars' returns, K seeds of one standing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.evaluate.bootstrap import DRAWS, bar_sharpe
from hpcrl.evaluate.contenders import Candidate, Contenders, read_contenders, same_bars
from hpcrl.evaluate.difference import Difference, difference
from hpcrl.evaluate.evaluate import SPLITS, evaluate_run
from hpcrl.evaluate.evaluation import AGENT, HOLD, Evaluation
from hpcrl.evaluate.metrics import simple_returns
from hpcrl.evaluate.overfitting import population_overfitting
from hpcrl.evaluate.sealed import open_sealed
from hpcrl.evaluate.statistics import deflated_sharpe, moments, probabilistic_sharpe
from hpcrl.evaluate.track import total
from hpcrl.evaluate.trials import Trials, count_trials
from hpcrl.types import HpcrlError

HOLD_NAME = "buy and hold"
SHOWN = ("total_return", "sharpe", "bar_sharpe", "max_drawdown", "costs", "turnover", "exposure", "trades")
MOST_PAIRS = 15
"""Differences of six standings; each takes a second for 10,000 bars, and many are shown by chance."""
SAME_COSTS = ("costs", "sizing", "fill_lag", "initial_cash", "max_leverage", "max_net", "assets")
"""Of the environment; where runs differ in them, so may their results for other reasons than skill."""


@dataclass(frozen=True, eq=False)
class Standing:
    """One policy, or the seeds of one configuration; buy and hold is one as well."""

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, float]
    """Means over the seeds: ``SHOWN``, dsr, psr."""
    lowest: dict[str, float]
    highest: dict[str, float]
    return_TK: np.ndarray
    """Per bar, of the total account, of each seed."""
    notes: tuple[str, ...] = ()

    @property
    def equity_TK(self) -> np.ndarray:
        """Equity / start, [T + 1, K]."""
        start = np.ones((1, self.return_TK.shape[1]))
        return np.concatenate([start, np.cumprod(1.0 + self.return_TK, axis=0)])


@dataclass(frozen=True, eq=False)
class Pair:
    one: int
    other: int
    """Places in ``Comparison.standings``."""
    difference: Difference


@dataclass(frozen=True, eq=False)
class Comparison:
    standings: tuple[Standing, ...]
    """As given; buy and hold last."""
    pairs: tuple[Pair, ...]
    ts_T: np.ndarray
    """Unix seconds of the bar at whose close each point of equity is, [T + 1]."""
    session_T: np.ndarray
    meta: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is null."""
        standings = [
            {
                "name": each.name,
                "runs": list(each.runs),
                "seeds": list(each.seeds),
                **each.metrics,
                "lowest": each.lowest,
                "highest": each.highest,
                "notes": list(each.notes),
            }
            for each in self.standings
        ]
        pairs = [
            {
                "one": self.standings[pair.one].name,
                "other": self.standings[pair.other].name,
                "shown": pair.difference.shown,
                **asdict(pair.difference),
            }
            for pair in self.pairs
        ]
        text = json.dumps({"meta": self.meta, "standings": standings, "differences": pairs})
        return json.loads(text, parse_constant=lambda name: None)


def compare(
    paths: Iterable[str | Path],
    split: str = "test",
    *,
    data: str | Path | None = None,
    members: bool = False,
    device: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """``paths``: runs, checkpoints, ONNX files, populations (by their best member, or all ``members``).

    HpcrlError, before anything is opened: an unknown split, the same policy twice, other data or other bars,
    a policy that cannot be played on them or on the device.
    """
    began = time.monotonic()
    given = [Path(path) for path in paths]
    if split not in SPLITS:
        raise HpcrlError(f"split {split!r} is not known; use one of {', '.join(SPLITS)}")
    field = read_contenders(given, members=members, device=device)
    sha256 = same_bars(field.candidates, split, data)
    count_trials(given)  # a population that cannot be read is refused before the split is opened
    openings, warnings = _open(field.candidates, sha256) if split == "test" else (0, [])
    results = [_play(each, split, device, data, seed) for each in field.candidates]
    trials = _trials(given, results, data is not None)
    standings = _standings(field.candidates, results, trials)
    pairs = tuple(
        Pair(a, b, difference(standings[a].return_TK, standings[b].return_TK, draws=draws, seed=seed))
        for a, b in chosen_pairs(len(standings))
    )
    meta = _meta(field, results, trials, split, len(pairs))
    meta |= {"draws": draws, "seed": seed, "test_openings": openings}
    meta["warnings"] = [*warnings, *_warnings(field, results, split)]
    meta["seconds"] = round(time.monotonic() - began, 3)
    curves = results[0].curves
    return Comparison(standings, pairs, curves.ts_T, curves.session_T, meta)


def chosen_pairs(count: int) -> list[tuple[int, int]]:
    """Of so many standings all pairs, or where they are too many those with the first and the last one."""
    pairs = list(combinations(range(count), 2))
    if len(pairs) <= MOST_PAIRS:
        return pairs
    return [(a, b) for a, b in pairs if a == 0 or b == count - 1]


def _open(candidates: Sequence[Candidate], sha256: str) -> tuple[int, list[str]]:
    """One line in each journal beside the runs; the highest count, and what the journals warn of."""
    said = f"compare: {', '.join(each.name for each in candidates)}"
    folders = dict.fromkeys(each.journal_folder for each in candidates)
    epoch = max(each.loaded.epoch for each in candidates)
    found = [open_sealed(folder, sha256, said, epoch) for folder in folders]
    return max(count for count, _ in found), [warning for _, warning in found if warning]


def _play(each: Candidate, split: str, device: str, data: str | Path | None, seed: int) -> Evaluation:
    # One draw of matched random: a comparison shows none.
    return evaluate_run(
        each.path,
        split,
        device=device,
        checkpoint_epoch=each.epoch,
        data=data,
        seed=seed,
        draws=1,
        seal=False,
        trials=Trials(1, float("nan"), "deflated by the comparison"),
    )


def _returns(evaluation: Evaluation, strategy: str) -> np.ndarray:
    """[T, 1]"""
    return simple_returns(total(evaluation.tracks[strategy]).equity_TN)


def _trials(paths: Sequence[Path], results: Sequence[Evaluation], other_data: bool) -> Trials:
    """Of everything compared. Where no journal tells their spread, it is that of the results here."""
    meta = results[0].meta
    known = meta["bars"] / meta["sessions"] if other_data and meta["sessions"] else None
    found = count_trials(paths, bars_per_session=known)
    if found.count > 1 and not np.isfinite(found.variance):
        here = np.array([bar_sharpe(_returns(each, AGENT)[:, 0]) for each in results])
        here = here[np.isfinite(here)]
        if len(here) > 1:
            source = f"{found.source}; their spread is that of the {len(here)} compared on these bars"
            return Trials(found.count, float(np.var(here, ddof=1)), source)
    return found


def _standings(
    candidates: Sequence[Candidate], results: Sequence[Evaluation], trials: Trials
) -> tuple[Standing, ...]:
    groups: dict[str, list[int]] = {}
    for place, each in enumerate(candidates):
        groups.setdefault(each.group, []).append(place)
    found = []
    for places in groups.values():
        ours = [candidates[place] for place in places]
        name = ours[0].name if len(ours) == 1 else f"{ours[0].name} ({len(ours)} seeds)"
        runs = tuple(each.name for each in ours)
        notes = tuple(f"{each.name}: {note}" for each in ours for note in each.notes)
        seeds = tuple(each.seed for each in ours)
        found.append(_standing(name, runs, seeds, [results[p] for p in places], AGENT, trials, notes))
    alone = Trials(1, float("nan"), "nobody chose it")
    return (*found, _standing(HOLD_NAME, (), (), results[:1], HOLD, alone, ()))


def _standing(
    name: str,
    runs: tuple[str, ...],
    seeds: tuple[int, ...],
    results: Sequence[Evaluation],
    strategy: str,
    trials: Trials,
    notes: tuple[str, ...],
) -> Standing:
    return_TK = np.concatenate([_returns(each, strategy) for each in results], axis=1)
    columns: dict[str, list[float]] = {key: [] for key in (*SHOWN, "dsr", "psr")}
    for result, return_T in zip(results, return_TK.T, strict=True):
        own = moments(return_T)
        shape = (own.sharpe, own.n, own.skew, own.kurtosis)
        figures = result.row(strategy) | {
            "dsr": deflated_sharpe(*shape, trials.variance, trials.count),
            "psr": probabilistic_sharpe(*shape),
        }
        for key, values in columns.items():
            values.append(float(figures[key]))
    means = {key: float(np.mean(values)) for key, values in columns.items()}
    lowest = {key: float(np.min(values)) for key, values in columns.items()}
    highest = {key: float(np.max(values)) for key, values in columns.items()}
    return Standing(name, runs, seeds, means, lowest, highest, return_TK, notes)


def _meta(
    field: Contenders, results: Sequence[Evaluation], trials: Trials, split: str, pairs: int
) -> dict[str, Any]:
    one = results[0].meta
    same = ("first", "last", "bars", "sessions", "bar_seconds", "calendar", "data", "synthetic", "symbols")
    return {
        "split": split,
        **{key: one[key] for key in same},
        "policies": len(results),
        "pairs": pairs,
        "trials": trials.count,
        "trials_variance": trials.variance,
        "trials_source": trials.source,
        "trials_reason": trials.reason,
        "overfitting": [
            {"population": population.path.name, **population_overfitting(population, past).to_json()}
            for population, past in field.populations
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _warnings(field: Contenders, results: Sequence[Evaluation], split: str) -> list[str]:
    """What is true of all once, else with the names of those that it is true of."""
    said: dict[str, list[str]] = {}
    for each, result in zip(field.candidates, results, strict=True):
        for line in result.meta["warnings"]:
            said.setdefault(line, []).append(each.name)
    every = len(field.candidates)
    found = [line if len(names) == every else f"{', '.join(names)}: {line}" for line, names in said.items()]
    if split == "validation" and field.populations:
        found.append(
            "populations chose on the validation split: what they show there is better than the truth"
        )
    envs = [each.loaded.config.env for each in field.candidates]
    other = [key for key in SAME_COSTS if any(getattr(env, key) != getattr(envs[0], key) for env in envs)]
    if other:
        keys = ", ".join(f"env.{key}" for key in other)
        found.append(f"runs differ in {keys}; buy and hold is played as {field.candidates[0].name} says")
    return found
