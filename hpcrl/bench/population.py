"""``hpcrl bench pbt``: a population against the very learning rates that it starts from, held fixed.

On a planted market, whose best policy is known. Two populations train for the same env steps from the same
seeds and rates, spread over the bounds: in one members take over better ones, in the other nobody ever does
(its test can never be passed). Judged on fresh bars, as a share of the oracle's reward (``bench/learn``): of
the population the member that its own validation names, of the fixed rates the one that is best on the fresh
bars themselves, which nobody could have chosen.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.bench.learn import FRESH_SEED, judge
from hpcrl.bench.machine import machine
from hpcrl.market.planted import find_task
from hpcrl.pbt.history import best_of, read_past
from hpcrl.pbt.population import NAME, Population
from hpcrl.types import RunFailed

NEVER = 1e-300
"""A level that no t-test reaches."""


@dataclass(frozen=True)
class Spread:
    """What is compared."""

    task: str = "L2"
    members: int = 4
    low: float = 3e-5
    high: float = 3e-3
    train_paths: int = 128
    train_bars: int = 10_000
    fresh_paths: int = 200
    fresh_bars: int = 1_000


@dataclass(frozen=True)
class Judged:
    """A member's last policy on fresh bars."""

    member: int
    first_lr: float
    last_lr: float
    share: float
    error: float


@dataclass(frozen=True)
class SeedResult:
    seed: int
    population: list[Judged]
    best: int
    """The member that the population names."""
    exploits: int
    fixed: list[Judged]
    folder: str

    @property
    def chosen(self) -> Judged:
        return next(each for each in self.population if each.member == self.best)

    @property
    def best_fixed(self) -> Judged:
        return max(self.fixed, key=lambda each: each.share)


def bench_pbt(
    seeds: int,
    config_path: Path,
    overrides: tuple[str, ...],
    folder: Path,
    *,
    at_once: int | None = None,
    spread: Spread = Spread(),
    told: Callable[[SeedResult], None] = lambda result: None,
) -> dict[str, Any]:
    """Seeds 0 .. seeds - 1, one after the other; populations stay in ``folder``."""
    results = []
    for seed in range(seeds):
        place = folder / f"seed_{seed}"
        place.mkdir(parents=True, exist_ok=True)
        result = run_seed(seed, config_path, overrides, place, at_once, spread)
        told(result)
        results.append(result)
    return summary(results, spread)


def run_seed(
    seed: int, config_path: Path, overrides: tuple[str, ...], place: Path, at_once: int | None, spread: Spread
) -> SeedResult:
    from hpcrl.market.stage import stage_planted

    data = place / "train.h5"
    if not data.exists():
        stage_planted(data, spread.task, bars=spread.train_bars, paths=spread.train_paths, seed=seed)
    space = f"{{learn.lr: {{low: {spread.low}, high: {spread.high}, scale: log}}}}"
    sets = [
        *overrides,
        f"market.path={data}",
        f"train.seed={seed}",
        f"env.costs.half_spread={find_task(spread.task).half_spread}",
        f"learn.lr={spread.low}",
        f"pbt.members={spread.members}",
        f"pbt.space={space}",
    ]
    arms = {}
    for name, own in (("population", []), ("fixed", [f"pbt.level={NEVER}"])):
        arms[name] = _run(config_path, [*sets, *own, f"pbt.dir={place / name}"], place / name, at_once)
    past = read_past(arms["population"])
    best = best_of(past)
    assert best is not None
    return SeedResult(
        seed,
        judged(arms["population"], seed, place, spread),
        best.member,
        sum(record.parent != before.parent for before, record in _steps(arms["population"])),
        judged(arms["fixed"], seed, place, spread),
        str(arms["population"].path),
    )


def _run(config: Path, sets: list[str], folder: Path, at_once: int | None) -> Population:
    """A population that has finished; the one that an earlier call left unfinished goes on."""
    made = sorted(folder.glob(f"{NAME.partition('%')[0]}*"))
    words = ["--population", str(made[-1])] if made else ["--config", str(config)]
    words += [] if made else [word for item in sets for word in ("--set", item)]
    words += ["--at-once", str(at_once)] if at_once else []
    command = [sys.executable, "-m", "hpcrl", "pbt", "run", "--local", *words]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise RunFailed(f"hpcrl pbt run ended with exit code {done.returncode}; its folder is {folder}")
    return Population.open(sorted(folder.glob(f"{NAME.partition('%')[0]}*"))[-1])


def _steps(population: Population) -> list[tuple[Any, Any]]:
    """(record, next record) of every member."""
    from hpcrl.pbt.records import Reader

    reader, found = Reader(population), []
    for member in population.members:
        folder = reader.folder(member)
        assert folder is not None
        records = [reader.record(folder, member, g) for g in sorted(reader.generations(folder))]
        found += list(itertools.pairwise(records))
    return found


def judged(population: Population, seed: int, place: Path, spread: Spread) -> list[Judged]:
    """Every member's last policy, on the same fresh bars."""
    from hpcrl.checkpoint.load import load_run
    from hpcrl.evaluate.backtest import PolicyStrategy
    from hpcrl.market.stage import stage_planted

    fresh = place / "fresh.h5"
    config = population.config
    if not fresh.exists():
        bars = spread.fresh_bars + config.policy.padded_history + 1
        stage_planted(fresh, spread.task, bars=bars, paths=spread.fresh_paths, seed=seed + FRESH_SEED)
    config = config.model_copy(update={"market": config.market.model_copy(update={"path": str(fresh)})})
    found = []
    for member in population.members:
        run = load_run(population.folder(member))
        score = judge(spread.task, PolicyStrategy(run.policy), run.scaler, config)
        first = population.start(member)["learn.lr"]
        last = _last_lr(population, member)
        found.append(Judged(member, first, last, score["share"], score["share_error"]))
    return found


def _last_lr(population: Population, member: int) -> float:
    from hpcrl.pbt.records import Reader

    newest = Reader(population).newest(member)
    assert newest is not None
    return newest[0].hyperparameters["learn.lr"]


def summary(results: list[SeedResult], spread: Spread) -> dict[str, Any]:
    """Differences population - best fixed rate, their mean and its 95 % interval over seeds (Student)."""
    from scipy.stats import t

    difference = np.array([r.chosen.share - r.best_fixed.share for r in results])
    n = len(difference)
    mean = float(difference.mean())
    half = float(t.ppf(0.975, n - 1) * difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    rows = [asdict(r) | {"share": r.chosen.share, "best_fixed": asdict(r.best_fixed)} for r in results]
    return {
        "spread": asdict(spread),
        "seeds": rows,
        "difference": mean,
        "interval": [mean - half, mean + half] if n > 1 else None,
        "passed": mean + half >= 0,
        "machine": machine(),
    }
