"""``evaluate_run``: a run's deterministic policy over a held-out range, against baselines, after costs.

Decisions see bars up to t and fill at the open of t + 1, or where ``env.fill_lag`` says; history reaches back
before the range. Every strategy goes through the training simulator with the run's own costs. The test split
is sealed: each opening is logged, and from the second per data set on the evaluation says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcrl.checkpoint.load import LoadedRun, load_data, load_run, pick_device
from hpcrl.evaluate.backtest import Plan, PolicyStrategy, make_plan, new_simulator, play_plan
from hpcrl.evaluate.baselines import BuyAndHold, EqualWeight, Flat, hold_config, hold_weight, matched_random
from hpcrl.evaluate.describe import RATIOS, describe, warnings_of
from hpcrl.evaluate.evaluation import AGENT, CROSS, EQUAL, FLAT, HOLD, RANDOM, Curves, Evaluation, Row
from hpcrl.evaluate.lags import play_lags
from hpcrl.evaluate.metrics import periods_per_year, simple_returns
from hpcrl.evaluate.rules import MovingAverageCross
from hpcrl.evaluate.sealed import count_openings, journal_folder, open_sealed
from hpcrl.evaluate.significance import Significance, assess, return_intervals
from hpcrl.evaluate.statistics import by_column
from hpcrl.evaluate.track import Track, summary, total
from hpcrl.evaluate.trials import Trials, count_trials
from hpcrl.market.dataset import Market
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

SPLITS = ("train", "validation", "test")
ONNX = ".onnx"


def evaluate_run(
    run: str | Path,
    split: str = "test",
    *,
    device: str = "auto",
    checkpoint_epoch: int | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    draws: int = 100,
    seal: bool = True,
    trials: Trials | None = None,
) -> Evaluation:
    """``run``: a run folder, a checkpoint file or an ONNX file. ``draws``, ``seed``: of matched random.

    ``seal`` False: the caller opens the test split and logs it, once for many runs. ``trials``: what the run
    was chosen from; None: as its population's journals tell.
    HpcrlError: unknown split, missing or altered run, other data than the run's, too few bars.
    """
    began = time.monotonic()
    if split not in SPLITS:
        raise HpcrlError(f"split {split!r} is not known; use one of {', '.join(SPLITS)}")
    if draws < 1:
        raise HpcrlError(f"draws = {draws}: matched random needs at least 1 draw")
    loaded, chosen = open_policy(Path(run), checkpoint_epoch, device)
    market = load_data(loaded, data)
    tensors, plan = prepare(loaded, market, split, chosen)
    trials = trials or _trials(loaded, market)
    openings, warning = _open(loaded, market, seal) if split == "test" else (0, "")
    played = _play_all(tensors, loaded, plan, market, draws, seed, trials)
    meta = describe(loaded, market, plan, split, played.rows, draws=draws, seed=seed)
    meta["fill_lag_table"], meta["statistics"] = played.lags, played.significance.meta
    meta["baselines_left_out"] = played.left_out
    meta["test_openings"], meta["device"] = openings, str(chosen)
    agent = played.tracks[AGENT]
    meta["warnings"] = [
        *warnings_of(meta, played.rows[0].metrics, int(agent.bankrupt_N.sum()), warning, played.halving),
        *loaded.warnings,
    ]
    meta["seconds"] = round(time.monotonic() - began, 3)
    return Evaluation(played.rows, played.curves, meta, played.tracks)


def prepare(
    loaded: LoadedRun, market: Market, split: str, device: torch.device
) -> tuple[MarketTensors, Plan]:
    """What the policy is played on. HpcrlError: too few bars, or others than it reads; nothing is opened."""
    lo, hi = market.split_range(split, loaded.config.env.fill_lag)  # type: ignore[arg-type]
    if hi - lo < 2:
        raise HpcrlError(
            f"the {split} split holds {max(hi - lo, 0)} bars of {market.n_bars}; an evaluation needs at "
            f"least 2 (market.train_fraction = {market.train_fraction}, "
            f"market.validation_fraction = {market.validation_fraction})"
        )
    tensors = market.to(device, loaded.scaler)
    plan = make_plan(tensors, loaded.config.env, lo, hi)
    _check_entries(tensors, loaded, plan)
    return tensors, plan


def open_policy(run: Path, epoch: int | None, device: str) -> tuple[LoadedRun, torch.device]:
    """A run folder, a checkpoint or an exported policy, and the device that it is played on."""
    if (run / "population.json").is_file():
        raise HpcrlError(
            f"{run}: a population; evaluate one of its members ({run / 'members' / '00'}), or hpcrl compare"
        )
    if run.suffix.lower() != ONNX:
        chosen = pick_device(device)
        return load_run(run, epoch=epoch, device=chosen), chosen
    if epoch is not None:
        raise HpcrlError(f"{run} is one checkpoint; an epoch ({epoch}) can be chosen in a run folder only")
    if device == "cuda":
        raise HpcrlError(f"{run}: an ONNX file is played on the CPU; use --device cpu or auto")
    from hpcrl.export.player import load_onnx_run

    pick_device(device)
    return load_onnx_run(run), pick_device("cpu")


def _trials(loaded: LoadedRun, market: Market) -> Trials:
    """What the run was chosen from; an unreadable population costs the evaluation its deflation only."""
    own = market.sha256 == loaded.data_sha256
    bars_per_session = market.n_bars / len(np.unique(market.session_B)) if own else None
    try:
        alone = loaded.record is None
        return count_trials(loaded.checkpoint if alone else loaded.path, bars_per_session=bars_per_session)
    except HpcrlError as error:
        return Trials(0, float("nan"), "not known: a population that cannot be read", str(error))


def _open(loaded: LoadedRun, market: Market, seal: bool) -> tuple[int, str]:
    """(openings of this data set, a warning or ""). Not logged where the caller does."""
    folder = journal_folder(loaded.checkpoint)
    if seal:
        name = loaded.path.resolve().name if loaded.record is not None else loaded.name  # "..", or a link
        return open_sealed(folder, market.sha256, name, loaded.epoch)
    try:
        return count_openings(folder, market.sha256), ""
    except OSError:
        return 0, ""


def _check_entries(tensors: MarketTensors, loaded: LoadedRun, plan: Plan) -> None:
    probe = new_simulator(tensors, loaded.config.env, plan, plan.groups[0], copies=1, history=1, seed=0)
    if (probe.n_entries, probe.n_assets) != (loaded.n_entries, loaded.n_assets):
        raise HpcrlError(
            f"{loaded.checkpoint.name} reads tokens of {loaded.n_entries} entries for {loaded.n_assets} "
            f"assets, the data gives {probe.n_entries} for {probe.n_assets}; it needs the "
            "run's features and symbols"
        )


@dataclass(frozen=True, eq=False)
class _Played:
    rows: tuple[Row, ...]
    curves: Curves
    tracks: dict[str, Track]
    lags: list[dict[str, Any]]
    halving: str
    """A warning where the result halves from fill_lag 1 to 2, else empty."""
    significance: Significance
    left_out: dict[str, str]
    """Baselines that were not played, and why."""


class _Scorer:
    """Turns tracks over a plan into rows."""

    def __init__(self, plan: Plan, market: Market, periods: int, per_symbol: bool) -> None:
        self.plan, self.periods, self.per_symbol = plan, periods, per_symbol
        self.session_T = market.session_B[plan.lo + 1 : plan.hi]
        self.names = [market.symbols[s] for s in plan.symbol_N]

    def scores(self, track: Track, copies: int = 1) -> dict[str | None, dict[str, np.ndarray]]:
        """Metrics by symbol (None: total), each [copies]; accounts are copy-major."""
        found = {None: summary(total(track, copies), self.session_T, self.periods)}
        return found | {name: self._summary(own) for name, own in self._accounts(track)}

    def rows(self, strategy: str, track: Track) -> Iterator[Row]:
        """One for the total and one per symbol, with the probabilities."""
        for symbol, own in ((None, (total(track), 0, self.plan.steps)), *self._accounts(track)):
            chances = by_column(simple_returns(own[0].equity_TN))
            found = self._summary(own) | chances
            yield Row(strategy, symbol, {key: float(value[0]) for key, value in found.items()})

    def _summary(self, own: tuple[Track, int, int]) -> dict[str, np.ndarray]:
        track, first, last = own
        return summary(track, self.session_T[first:last], self.periods)

    def _accounts(self, track: Track) -> Iterator[tuple[str, tuple[Track, int, int]]]:
        """(symbol, (its account in every copy over its own steps, their first, one past their last))."""
        bounds = zip(self.plan.first_N, self.plan.last_N, strict=True) if self.per_symbol else ()
        for account, (first, last) in enumerate(bounds):
            columns = slice(account, None, len(self.names))
            own = track.take(columns, int(first), int(last))
            yield self.names[account], (own, int(first), int(last))


def _play_all(
    tensors: MarketTensors,
    loaded: LoadedRun,
    plan: Plan,
    market: Market,
    draws: int,
    seed: int,
    trials: Trials,
) -> _Played:
    config = loaded.config
    periods = periods_per_year(str(market.attributes.get("calendar", "")))
    scorer = _Scorer(plan, market, periods, per_symbol=config.env.assets == "single")
    tracks, left_out = _play_named(tensors, loaded, plan, market, seed)
    agent = tracks[AGENT]
    rows, curves = [], {}
    for name, track in tracks.items():
        own = scorer.rows(name, track)
        rows += [next(own)] if name == EQUAL else list(own)
        curves[name] = _normalised(total(track).equity_TN)[:, 0]
    parts, paths = [], []
    for count, track in matched_random(tensors, config.env, plan, agent, draws=draws, seed=seed):
        parts.append(scorer.scores(track, count))
        paths.append(_normalised(total(track, count).equity_TN))
    rows += _random_rows(parts, rows)
    path_TK = np.concatenate(paths, axis=1)
    curves[RANDOM] = path_TK.mean(1)
    low, high = np.percentile(path_TK, (5, 95), axis=1)
    significance = assess(agent, tracks[HOLD], trials, seed=seed)
    _add_intervals(rows, scorer, agent, significance, seed)
    at = slice(plan.lo, plan.hi)
    drawn = Curves(market.ts_B[at], market.session_B[at], curves, (low, high), significance.band)
    lags, halving = play_lags(tensors, config.env, plan, agent, session_T=scorer.session_T, periods=periods)
    kept = {name: tracks[name] for name in (AGENT, HOLD)}
    return _Played(tuple(rows), drawn, kept, lags, halving, significance, left_out)


def _play_named(
    tensors: MarketTensors, loaded: LoadedRun, plan: Plan, market: Market, seed: int
) -> tuple[dict[str, Track], dict[str, str]]:
    """(tracks by strategy, all but matched random; baselines that cannot be played, and why)."""
    env, policy = loaded.config.env, loaded.policy
    free, weight = hold_config(env), hold_weight(env)
    history = loaded.config.policy.padded_history
    tracks = {
        AGENT: play_plan(
            tensors, env, plan, lambda group: PolicyStrategy(policy), history=history, seed=seed
        ),
        HOLD: play_plan(tensors, free, plan, lambda group: BuyAndHold(weight), seed=seed),
    }
    left_out = {}
    if plan.left_out:
        left_out[EQUAL] = "a symbol has no bars in this range"
    elif tensors.n_symbols > 1:
        # One account over all symbols, with the cash of all accounts, from the bar on that they all have.
        cash = env.initial_cash * (tensors.n_symbols if env.assets == "single" else 1)
        shared = free.model_copy(update={"assets": "all", "initial_cash": cash})
        try:
            whole = make_plan(tensors, shared, plan.lo, plan.hi)
            tracks[EQUAL] = play_plan(
                tensors, shared, whole, lambda group: EqualWeight(market.session_B, weight), seed=seed
            )
        except HpcrlError as error:
            left_out[EQUAL] = str(error)
    tracks[CROSS] = play_plan(tensors, free, plan, lambda group: MovingAverageCross(weight=weight), seed=seed)
    tracks[FLAT] = play_plan(tensors, env, plan, lambda group: Flat(), seed=seed)
    return tracks, left_out


def _add_intervals(
    rows: list[Row], scorer: _Scorer, agent: Track, significance: Significance, seed: int
) -> None:
    """Into the agent's rows: total_return_low and total_return_high."""
    mine = {row.symbol: row.metrics for row in rows if row.strategy == AGENT}
    low, high = significance.meta["intervals"]["total_return"]
    mine[None] |= {"total_return_low": low, "total_return_high": high}
    if len(mine) > 1:
        found = return_intervals(agent, scorer.plan.first_N, scorer.plan.last_N, seed=seed)
        for name, one in zip(scorer.names, found, strict=True):
            mine[name] |= {"total_return_low": one.low, "total_return_high": one.high}


def _normalised(equity_TN: np.ndarray) -> np.ndarray:
    return equity_TN / equity_TN[0]


def _random_rows(parts: list[dict], agents: list[Row]) -> list[Row]:
    """Means (of annual ratios medians) over the draws. Into the agent's rows goes ``beats_random``, the
    share of draws with a lower total return.

    Ties count half, so that an agent that always holds the same position beats half of its own copies;
    NaN where all draws tie.
    """
    rows = []
    agent = {row.symbol: row.metrics for row in agents if row.strategy == AGENT}
    for symbol in parts[0]:
        drawn = {key: np.concatenate([part[symbol][key] for part in parts]) for key in parts[0][symbol]}
        known = {key: value[np.isfinite(value)] for key, value in drawn.items()}
        # A ratio of few sessions has no mean worth the name: one draw with hardly any risk would rule it.
        middle = {key: np.median if key in RATIOS else np.mean for key in known}
        found = {key: float(middle[key](value)) if len(value) else np.nan for key, value in known.items()}
        found |= dict.fromkeys(("psr", "min_track_record"), float("nan"))  # of draws they tell nothing
        rows.append(Row(RANDOM, symbol, found))
        mine, others = agent[symbol]["total_return"], drawn["total_return"]
        tied = np.isclose(others, mine, rtol=0, atol=1e-12)
        beaten = float(((others < mine) & ~tied).mean() + 0.5 * tied.mean())
        agent[symbol]["beats_random"] = float("nan") if tied.all() else beaten
    return rows


def print_evaluation(evaluation: Evaluation, plot: Path | None = None, as_json: bool = False) -> Path:
    """Table (or JSON), and the PNG: ``plot``, or RUN/evaluation_SPLIT.png; returns the PNG's path."""
    from hpcrl.evaluate.plot import write_plot

    path = plot or Path(evaluation.meta["path"]) / f"evaluation_{evaluation.meta['split']}.png"
    write_plot(evaluation, path)
    if as_json:
        print(json.dumps(evaluation.to_json() | {"plot": str(path)}, allow_nan=False))
        return path
    from rich.console import Console

    from hpcrl.evaluate.table import render_table

    Console().print(render_table(evaluation))
    print(path)
    return path
