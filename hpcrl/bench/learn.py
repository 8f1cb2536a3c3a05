"""``hpcrl bench learn``: does the agent learn what can be learnt?

Trains on a planted market (``market.planted``), then plays the last policy, deterministic, on fresh paths
against the oracle (``market.oracle``), both through the training simulator. Share: mean log return of the
agent over the oracle's, paired by path. Where the best policy is to stay flat (L0, control) there is no
share: the reward must lie within 3 standard errors of 0, with hardly any turnover.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.config.load import load_config
from hpcrl.config.root import Config
from hpcrl.market.planted import TASKS, find_task
from hpcrl.types import HpcrlError

MUST: dict[str, float | None] = {
    "L0": None, "L1": 0.8, "L2": 0.93, "L3": 0.7, "L4": 0.9, "L4b": None, "L5": 0.9, "control": None,
}  # fmt: skip
"""Least share of the oracle; None: none is demanded, or (L0, control) there is nothing to earn."""
GOAL = {"L1": 0.95, "L2": 0.947, "L3": 0.9, "L4": 0.95, "L4b": 0.85, "L5": 0.98}
IDLE_TURNOVER = 0.05
"""Most turnover a bar where flat is best."""
FRESH_SEED = 1_000_000
"""Added to a run's seed, so that the bars it is judged on are none that it was trained on."""


@dataclass(frozen=True)
class Size:
    """Bars of a run: paths and tradable bars a path."""

    train_paths: int = 128
    train_bars: int = 10_000
    fresh_paths: int = 500
    fresh_bars: int = 2_000


@dataclass(frozen=True)
class SeedResult:
    """One run. Rewards and turnover a bar; errors are standard errors over the paths."""

    seed: int
    steps: int
    share: float | None
    share_error: float | None
    formula_share: float | None
    """The same of a_t r_{t+1} - c |a_t - a_{t-1}|, which the design's table is stated in."""
    reward: float
    reward_error: float
    oracle_reward: float
    turnover: float
    train_seconds: float
    history: tuple[tuple[int, float], ...]
    """(env steps, mean log return a bar of the last rollouts while training)."""


def bench_learn(
    tasks: list[str],
    seeds: int,
    *,
    config_path: Path,
    overrides: tuple[str, ...] = (),
    jobs: int = 1,
    size: Size = Size(),
    told: Callable[[str, SeedResult], None] = lambda task, result: None,
) -> list[dict[str, Any]]:
    """Every task with seeds 0 .. seeds - 1, ``jobs`` runs at a time; ``told`` hears of each as it ends.

    HpcrlError: unknown task, a config that does not fit.
    """
    for task in tasks:
        find_task(task)
        task_config(config_path, overrides, task, "market.h5", 0)
    runs = [(task, seed) for task in tasks for seed in range(seeds)]
    found: dict[str, list[SeedResult]] = {task: [] for task in tasks}
    for task, result in _run_all(runs, config_path, overrides, size, jobs):
        told(task, result)
        found[task].append(result)
    return [summary(task, sorted(found[task], key=lambda r: r.seed)) for task in tasks]


def _run_all(
    runs: list[tuple[str, int]], config_path: Path, overrides: tuple[str, ...], size: Size, jobs: int
) -> Iterator[tuple[str, SeedResult]]:
    if jobs == 1:
        for task, seed in runs:
            yield task, run_seed(task, seed, config_path, overrides, size)
        return
    # Spawned, one thread each: forked children would inherit torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        waiting = {
            pool.submit(run_seed, task, seed, config_path, overrides, size): task for task, seed in runs
        }
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def summary(task: str, results: list[SeedResult]) -> dict[str, Any]:
    """{"task", "seeds": [...], "share", ...}: means over the seeds, and whether the task's demand is met."""
    shares = [r.share for r in results if r.share is not None]
    share = float(np.mean(shares)) if shares else None
    must, idle = MUST[task], find_task(task).oracle_reward == 0
    passed = all(_idle(r) for r in results) if idle else (share or 0.0) >= (must or 0.0)
    return {
        "task": task,
        "seeds": [dataclasses.asdict(r) for r in results],
        "share": share,
        "must": must,
        "goal": GOAL.get(task),
        "reward": float(np.mean([r.reward for r in results])),
        "turnover": float(np.mean([r.turnover for r in results])),
        "passed": bool(passed),
    }


def _idle(result: SeedResult) -> bool:
    """Nothing earned, nothing lost, hardly anything traded."""
    near = abs(result.reward) <= 3 * result.reward_error or result.reward == 0
    return near and result.turnover < IDLE_TURNOVER


def task_config(config_path: Path, overrides: tuple[str, ...], task: str, market: str, seed: int) -> Config:
    """The one configuration, with what the task decides: data, half-spread, seed."""
    cost = find_task(task).half_spread
    own = [f"market.path={market}", f"train.seed={seed}", f"env.costs.half_spread={cost}"]
    return load_config(config_path, [*overrides, "train.world_size=1", *own], environment={})


def run_seed(
    task: str, seed: int, config_path: Path, overrides: tuple[str, ...] = (), size: Size = Size()
) -> SeedResult:
    """Train one seed on its own paths, and judge the last policy on fresh ones."""
    from hpcrl.evaluate.backtest import PolicyStrategy
    from hpcrl.market.stage import stage_planted
    from hpcrl.world.ranks import start_world

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "train.h5")
        stage_planted(path, task, bars=size.train_bars, paths=size.train_paths, seed=seed)
        config = task_config(config_path, overrides, task, path, seed)
        world = start_world(config.engine.device, 1)
        begun = time.perf_counter()
        policy, scaler, history = _train(config, world)
        seconds = time.perf_counter() - begun
        fresh = str(Path(folder) / "fresh.h5")
        bars = size.fresh_bars + config.policy.padded_history + 1
        stage_planted(fresh, task, bars=bars, paths=size.fresh_paths, seed=seed + FRESH_SEED)
        market_config = config.market.model_copy(update={"path": fresh})
        judged = judge(
            task, PolicyStrategy(policy), scaler, config.model_copy(update={"market": market_config})
        )
    steps = config.train.epochs * config.env.envs_per_gpu * config.learn.rollout
    return SeedResult(seed=seed, steps=steps, train_seconds=seconds, history=history, **judged)


def _train(config: Config, world: Any) -> tuple[Any, Any, tuple[tuple[int, float], ...]]:
    """Policy (on the CPU, where it is judged), scaler and learning curve of a run without a run folder."""
    from hpcrl.learn.ppo import update
    from hpcrl.market.load import load_market
    from hpcrl.market.scaler import fit_scaler
    from hpcrl.train import build

    market = load_market(config.market)
    scaler = fit_scaler(market, *market.split_range("train"))
    trainer = build(config, world, market, scaler)
    steps, curve = config.env.envs_per_gpu * config.learn.rollout, []
    for epoch in range(config.train.epochs):
        rollout, tally = trainer.collector.collect(epoch)
        update(trainer.engine, rollout, trainer.scale, config, epoch, world)
        trainer.engine.refresh(trainer.collector.policy)
        curve.append((steps * (epoch + 1), float(tally.sums[1]) / steps))
    return trainer.collector.policy.cpu(), scaler, tuple(curve[:: max(1, len(curve) // 30)])


def judge(task: str, agent: Any, scaler: Any, config: Config) -> dict[str, Any]:
    """Agent (a strategy) and oracle on the same fresh paths of ``config.market.path``, each from a flat
    account."""
    from hpcrl.evaluate.backtest import Group, Plan, new_simulator, play
    from hpcrl.market.load import load_market
    from hpcrl.market.oracle import oracle, rewards

    market = load_market(config.market)
    tensors = market.to("cpu", scaler)
    paths = len(market.symbols)
    start = int(market.first_bar_S.max()) + config.policy.padded_history  # the policy has all its history
    group = Group(start, np.arange(paths)[:, None], np.full(paths, market.n_bars - 1))
    plan = Plan(start, market.n_bars, (group,), ())
    best = oracle(task)
    played = {}
    for name in ("agent", "oracle"):
        simulator = new_simulator(
            tensors, config.env, plan, group, copies=1, history=config.policy.padded_history, seed=0
        )
        strategy = agent if name == "agent" else OracleStrategy(best, market.feature_BSF[:, :, 0], start)
        played[name] = play(simulator, group, plan.steps, strategy)
    logs = {name: np.diff(np.log(track.equity_TN), axis=0).mean(0) for name, track in played.items()}
    returns_BS = np.diff(np.log(market.close_BS), axis=0, prepend=np.nan)[start:]
    formula = {}
    for name, track in played.items():
        assert track.target_TNA is not None  # kept by play
        position_PT = track.target_TNA[:, :, 0].T.astype(np.float64)
        formula[name] = rewards(position_PT, returns_BS[:-1].T, find_task(task).half_spread).mean()
    share, share_error = _share(logs["agent"], logs["oracle"])
    before_TN = played["agent"].equity_TN[:-1]
    return {
        "share": share,
        "share_error": share_error,
        "formula_share": None if share is None else float(formula["agent"] / formula["oracle"]),
        "reward": float(logs["agent"].mean()),
        "reward_error": float(logs["agent"].std(ddof=1) / np.sqrt(paths)),
        "oracle_reward": float(logs["oracle"].mean()),
        "turnover": float((played["agent"].traded_TN / before_TN).mean()),
    }


def _share(agent_P: np.ndarray, oracle_P: np.ndarray) -> tuple[float | None, float | None]:
    """Ratio of the means and its standard error (delta method, paired by path); None where the oracle
    earns nothing."""
    if not oracle_P.any():
        return None, None
    share = float(agent_P.mean() / oracle_P.mean())
    rest_P = agent_P - share * oracle_P
    return share, float(rest_P.std(ddof=1) / np.sqrt(len(rest_P)) / oracle_P.mean())


class OracleStrategy:
    """The oracle's positions, from a flat account at row ``start``; it has seen all bars before."""

    def __init__(self, best: Any, feature_BP: np.ndarray, start: int) -> None:
        self._best, self._state_PB, self._start = best, best.remember(feature_BP.T), start

    def begin(self, simulator: Any, history_NME: Any, length_N: Any) -> None:
        self._held_P = np.zeros(len(self._state_PB))

    def weights(self, simulator: Any, step: int, position_NA: Any) -> Any:
        import torch

        self._held_P = self._best.act(self._state_PB[:, self._start + step], self._held_P)
        return torch.from_numpy(self._held_P)[:, None]


def tasks_of(text: str) -> list[str]:
    """ "L3", "L1,L2" or "all". HpcrlError: unknown or none."""
    names = list(TASKS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise HpcrlError("no task was named; give --task L3, --task L1,L2 or --task all")
    return [find_task(name).name for name in names]
