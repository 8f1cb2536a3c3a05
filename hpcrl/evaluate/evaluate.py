"""``evaluate_run``: a run's deterministic policy over a held-out range, against baselines, after costs.

Decisions see bars up to t and fill at the open of t + 1, or where ``env.fill_lag`` says; history reaches back
before the range. Every strategy goes through the training simulator with the run's own costs. The test split
is sealed: each opening is logged, and from the second per data set on the evaluation says so.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.checkpoint.load import LoadedRun, load_data, load_run, pick_device
from hpcrl.config.env import HINDSIGHT
from hpcrl.evaluate.backtest import Plan, PolicyStrategy, make_plan, new_simulator, play_plan
from hpcrl.evaluate.baselines import BuyAndHold, Flat, hold_config, hold_weight, matched_random
from hpcrl.evaluate.evaluation import AGENT, FLAT, HOLD, RANDOM, Curves, Evaluation, Row
from hpcrl.evaluate.lags import play_lags
from hpcrl.evaluate.metrics import periods_per_year, sharpe_error
from hpcrl.evaluate.sealed import open_sealed
from hpcrl.evaluate.track import Track, summary, total
from hpcrl.market.dataset import Market
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

SPLITS = ("train", "validation", "test")
RATIOS = ("annual_return", "sharpe", "sortino", "calmar")
SUSPICIOUS_SHARPE = 10.0
"""No honest strategy on bars of minutes is known to hold this; leaks do (design of the evaluation)."""


def evaluate_run(
    run: str | Path,
    split: str = "test",
    *,
    device: str = "auto",
    checkpoint_epoch: int | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    draws: int = 100,
) -> Evaluation:
    """``run``: a run folder or a checkpoint file. ``draws``, ``seed``: of matched random.

    HpcrlError: unknown split, missing or altered run, other data than the run's, too few bars.
    """
    began = time.monotonic()
    if split not in SPLITS:
        raise HpcrlError(f"split {split!r} is not known; use one of {', '.join(SPLITS)}")
    if draws < 1:
        raise HpcrlError(f"draws = {draws}: matched random needs at least 1 draw")
    chosen = pick_device(device)
    loaded = load_run(run, epoch=checkpoint_epoch, device=chosen)
    market = load_data(loaded, data)
    lo, hi = market.split_range(split, loaded.config.env.fill_lag)  # type: ignore[arg-type]
    if hi - lo < 2:
        raise HpcrlError(
            f"the {split} split holds {max(hi - lo, 0)} bars of {market.n_bars}; an evaluation needs at "
            f"least 2 (market.train_fraction = {market.train_fraction}, "
            f"market.validation_fraction = {market.validation_fraction})"
        )
    tensors = market.to(chosen, loaded.scaler)
    plan = make_plan(tensors, loaded.config.env, lo, hi)
    _check_entries(tensors, loaded, plan)
    openings, warning = 0, ""
    if split == "test":
        folder = loaded.path.parent if loaded.record is not None else loaded.path
        openings, warning = open_sealed(folder, market.sha256, loaded.name, loaded.epoch)
    played = _play_all(tensors, loaded, plan, market, draws, seed)
    meta = _meta(loaded, market, plan, split, played, draws, seed)
    meta["test_openings"], meta["device"] = openings, str(chosen)
    meta["warnings"] = _warnings(loaded, market, meta, played, warning)
    meta["seconds"] = round(time.monotonic() - began, 3)
    return Evaluation(played.rows, played.curves, meta, played.tracks)


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


class _Scorer:
    """Turns tracks over a plan into rows."""

    def __init__(self, plan: Plan, market: Market, periods: int, per_symbol: bool) -> None:
        self.plan, self.periods, self.per_symbol = plan, periods, per_symbol
        self.session_T = market.session_B[plan.lo + 1 : plan.hi]
        self.names = [market.symbols[s] for s in plan.symbol_N]

    def scores(self, track: Track, copies: int = 1) -> dict[str | None, dict[str, np.ndarray]]:
        """Metrics by symbol (None: total), each [copies]; accounts are copy-major."""
        found: dict[str | None, dict[str, np.ndarray]] = {}
        found[None] = summary(total(track, copies), self.session_T, self.periods)
        if self.per_symbol:
            width = len(self.names)
            bounds = zip(self.plan.first_N, self.plan.last_N, strict=True)
            for account, (first, last) in enumerate(bounds):
                own = track.take(slice(account, None, width), int(first), int(last))
                found[self.names[account]] = summary(own, self.session_T[first:last], self.periods)
        return found


def _play_all(
    tensors: MarketTensors, loaded: LoadedRun, plan: Plan, market: Market, draws: int, seed: int
) -> _Played:
    config = loaded.config
    periods = periods_per_year(str(market.attributes.get("calendar", "")))
    scorer = _Scorer(plan, market, periods, per_symbol=config.env.assets == "single")
    agent = play_plan(
        tensors,
        config.env,
        plan,
        lambda group: PolicyStrategy(loaded.policy),
        history=config.policy.padded_history,
        seed=seed,
    )
    weight = hold_weight(config.env)
    hold = play_plan(tensors, hold_config(config.env), plan, lambda group: BuyAndHold(weight), seed=seed)
    flat = play_plan(tensors, config.env, plan, lambda group: Flat(), seed=seed)
    rows, curves = [], {}
    for name, track in ((AGENT, agent), (HOLD, hold), (FLAT, flat)):
        for symbol, found in scorer.scores(track).items():
            rows.append(Row(name, symbol, {key: float(value[0]) for key, value in found.items()}))
        curves[name] = _normalised(total(track).equity_TN)[:, 0]
    parts, paths = [], []
    for count, track in matched_random(tensors, config.env, plan, agent, draws=draws, seed=seed):
        parts.append(scorer.scores(track, count))
        paths.append(_normalised(total(track, count).equity_TN))
    rows += _random_rows(parts, rows)
    path_TK = np.concatenate(paths, axis=1)
    curves[RANDOM] = path_TK.mean(1)
    low, high = np.percentile(path_TK, (5, 95), axis=1)
    at = slice(plan.lo, plan.hi)
    drawn = Curves(market.ts_B[at], market.session_B[at], curves, (low, high))
    lags, halving = play_lags(tensors, config.env, plan, agent, session_T=scorer.session_T, periods=periods)
    return _Played(tuple(rows), drawn, {AGENT: agent, HOLD: hold}, lags, halving)


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
        rows.append(Row(RANDOM, symbol, found))
        mine, others = agent[symbol]["total_return"], drawn["total_return"]
        tied = np.isclose(others, mine, rtol=0, atol=1e-12)
        beaten = float(((others < mine) & ~tied).mean() + 0.5 * tied.mean())
        agent[symbol]["beats_random"] = float("nan") if tied.all() else beaten
    return rows


def _meta(
    loaded: LoadedRun,
    market: Market,
    plan: Plan,
    split: str,
    played: _Played,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    calendar = str(market.attributes.get("calendar", ""))
    periods = periods_per_year(calendar)
    sessions = int(played.rows[0].metrics["sessions"])
    env, other = loaded.config.env, market.sha256 != loaded.data_sha256
    return {
        "run": loaded.name,
        "path": str(loaded.path),
        "checkpoint": loaded.checkpoint.name,
        "epoch": loaded.epoch,
        "env_steps": loaded.env_steps,
        "config_sha256": loaded.config.digest(),
        "split": split,
        "first": _iso(market.ts_B[plan.lo + 1]),
        "last": _iso(market.ts_B[plan.hi - 1]),
        "bars": plan.steps,
        "sessions": sessions,
        "bar_seconds": market.bar_seconds,
        "calendar": calendar,
        "sessions_per_year": periods,
        "sharpe_standard_error": sharpe_error(sessions, periods),
        "data": {"sha256": market.sha256, "source": market.source, "not_the_runs": other},
        "synthetic": market.made_up,
        "accounts": [market.symbols[s] for s in plan.symbol_N] if env.assets == "single" else ["all"],
        "symbols": list(market.symbols),
        "symbols_left_out": [market.symbols[s] for s in plan.left_out],
        "assets": env.assets,
        "initial_cash": env.initial_cash,
        "max_leverage": env.max_leverage,
        "max_net": env.max_net,
        "sizing": env.sizing,
        "costs": env.costs.model_dump(),
        "fill_lag": env.fill_lag,
        "fill_lag_table": played.lags,
        "draws": draws,
        "seed": seed,
        "agent_beats_random": played.rows[0].metrics["beats_random"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M")


def _warnings(
    loaded: LoadedRun, market: Market, meta: dict[str, Any], played: _Played, sealed: str
) -> list[str]:
    agent = played.rows[0].metrics
    said = [HINDSIGHT] if meta["fill_lag"] == 0 else []
    if meta["synthetic"]:
        said.append(f"data source {market.source}: made-up bars, no performance claim follows from this")
    if meta["split"] == "train":
        said.append("the policy was trained on these bars: nothing follows for others")
    if meta["data"]["not_the_runs"]:
        said.append("not the run's data: its bars may overlap those that the policy was trained on")
    if sealed:
        said.append(sealed)
    if agent["sharpe"] > SUSPICIOUS_SHARPE:
        said.append(
            f"an annualised Sharpe ratio of {agent['sharpe']:.1f} is suspicious: look for a leak "
            f"(standard error of this sample: {meta['sharpe_standard_error']:.1f})"
        )
    if played.halving:
        said.append(played.halving)
    if agent["trades"] == 0:
        said.append("the agent never traded here")
    if agent["bankrupt"] or played.tracks[AGENT].bankrupt_N.any():
        said.append(f"{int(played.tracks[AGENT].bankrupt_N.sum())} of the agent's accounts went bankrupt")
    if meta["symbols_left_out"]:
        said.append(f"without bars in this range, left out: {', '.join(meta['symbols_left_out'])}")
    return [*said, *loaded.warnings]


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
