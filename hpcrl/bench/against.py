"""``hpcrl bench against-sb3``: hpcrl and Stable-Baselines3's PPO on one planted market, by the clock.

Both train for the same seconds on the same cores with the same PPO settings and a transformer of the same
size; between updates both are judged, deterministic, on the same fresh paths against the oracle. The time
of the judging counts for neither. The learning rate falls linearly to 0 over the seconds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpcrl.bench.learn import FRESH_SEED, Size, judge, task_config
from hpcrl.config.root import Config
from hpcrl.storage.atomic import check_output, write_text
from hpcrl.types import HpcrlError

OVERRIDES = (
    "policy.d_model=64", "policy.layers=2", "policy.heads=2", "policy.window=64", "env.episode_rollouts=8",
)  # fmt: skip
"""On top of the configuration: both see 64 observations at once, and episodes are long, because a stack of
frames is empty where one starts (with episodes of 128 steps half of the stacks would have gaps)."""
SIZE = Size(fresh_paths=64, fresh_bars=500)
LOOKS = 10
"""Judgements, about evenly spaced; one more at the start."""
LEAST_LR = 1e-3  # of the first; an optimiser refuses 0


class Clock:
    """Training seconds, without those of judging, and the curve that judging makes."""

    def __init__(self, seconds: float, judge: Callable[[Any], dict[str, Any]]) -> None:
        self.seconds, self.curve = seconds, list[dict[str, Any]]()
        self._judge = judge
        self._begun: float | None = None  # with the first look: what it takes to set up is no training

    @property
    def passed(self) -> float:
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def decayed(self, lr: float) -> float:
        return lr * max(1 - self.passed / self.seconds, LEAST_LR)

    def look(self, steps: int, strategy: Callable[[], Any]) -> bool:
        """To be called between updates: judge where it is time to; whether training goes on."""
        if self._begun is None:
            self._begun = time.perf_counter()
        now = self.passed
        going = now < self.seconds
        if not going or now >= len(self.curve) * self.seconds / LOOKS:
            judged = self._judge(strategy())
            named = {name: judged[name] for name in ("share", "share_error", "reward", "turnover")}
            self.curve.append({"seconds": now, "steps": steps, **named})
            self._begun += self.passed - now
        return going


def against_sb3(
    task: str,
    seconds: float,
    *,
    config_path: Path,
    overrides: tuple[str, ...] = (),
    seed: int = 0,
    threads: int = 1,
    size: Size = SIZE,
) -> dict[str, Any]:
    """Curves of both: seconds, env steps, share of the oracle and reward a bar.

    HpcrlError: seconds not above 0, unknown task or one without an oracle's reward, Stable-Baselines3 is
    not installed.
    """
    from hpcrl.market.planted import find_task

    if not seconds > 0:
        raise HpcrlError(f"bench against-sb3: seconds is {seconds}; more than 0 is needed")
    if find_task(task).oracle_reward == 0:
        raise HpcrlError(f"bench against-sb3: the best policy of {task} earns nothing, so there is no share")
    if find_spec("stable_baselines3") is None:
        raise HpcrlError("bench against-sb3 needs Stable-Baselines3: pip install stable-baselines3")
    import torch

    from hpcrl.bench.machine import machine

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = machine()
            given = (*OVERRIDES, *overrides)
            config, judged = _prepare(task, config_path, given, seed, size, Path(folder))
            sides = {}
            for name, train in (("hpcrl", train_hpcrl), ("sb3", _train_sb3)):
                clock = Clock(seconds, judged)
                sides[name] = train(config, clock) | {"curve": clock.curve}
    finally:
        torch.set_num_threads(before)
    shown = {name: getattr(config, name).model_dump(mode="json") for name in ("policy", "learn", "env")}
    return {
        "bench": "against-sb3",
        "task": task,
        "seconds": seconds,
        "seed": seed,
        "fresh_bars": size.fresh_paths * size.fresh_bars,
        "machine": made,
        "config": shown,
        **sides,
    }


def _prepare(
    task: str, config_path: Path, overrides: tuple[str, ...], seed: int, size: Size, folder: Path
) -> tuple[Config, Callable[[Any], dict[str, Any]]]:
    from hpcrl.market.load import load_market
    from hpcrl.market.scaler import fit_scaler
    from hpcrl.market.stage import stage_planted

    path, fresh = str(folder / "train.h5"), str(folder / "fresh.h5")
    stage_planted(path, task, bars=size.train_bars, paths=size.train_paths, seed=seed)
    config = task_config(config_path, overrides, task, path, seed)
    bars = size.fresh_bars + config.policy.padded_history + 1
    stage_planted(fresh, task, bars=bars, paths=size.fresh_paths, seed=seed + FRESH_SEED)
    market = load_market(config.market)
    scaler = fit_scaler(market, *market.split_range("train"))
    played = config.model_copy(update={"market": config.market.model_copy(update={"path": fresh})})
    return config, lambda strategy: judge(task, strategy, scaler, played)


def train_hpcrl(config: Config, clock: Clock) -> dict[str, Any]:
    """Train until the clock is out; returns env steps and parameters."""
    from hpcrl.evaluate.backtest import PolicyStrategy
    from hpcrl.learn.ppo import update
    from hpcrl.market.load import load_market
    from hpcrl.market.scaler import fit_scaler
    from hpcrl.train import build
    from hpcrl.world.ranks import start_world, stop_world

    world = start_world("cpu", 1)
    market = load_market(config.market)
    trainer = build(config, world, market, fit_scaler(market, *market.split_range("train")))
    policy, epoch = trainer.collector.policy, 0
    per_epoch = config.env.envs_per_gpu * config.learn.rollout
    while clock.look(epoch * per_epoch, lambda: PolicyStrategy(policy)):
        rollout, _ = trainer.collector.collect(epoch)
        rate = {"lr": clock.decayed(config.learn.lr), "lr_schedule": "constant"}
        now = config.model_copy(update={"learn": config.learn.model_copy(update=rate)})
        update(trainer.engine, rollout, trainer.scale, now, epoch, world)
        trainer.engine.refresh(policy)
        epoch += 1
    stop_world(world)
    return {"steps": epoch * per_epoch, "parameters": sum(p.numel() for p in policy.parameters())}


def _train_sb3(config: Config, clock: Clock) -> dict[str, Any]:
    from hpcrl.bench.sb3 import train_sb3

    return train_sb3(config, clock)


def write(result: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """``out`` (JSON) and the picture beside it; returns both."""
    write_text(out, json.dumps(result, indent=1) + "\n")
    picture = out.with_suffix(".png")
    plot(result, picture)
    return out, picture


def check(out: Path) -> None:
    """HpcrlError where the results could not be written; asked before the minutes of training."""
    if out.suffix != ".json":
        raise HpcrlError(f"--out {out}: a name that ends in .json is needed; the picture goes beside it")
    for path in (out, out.with_suffix(".png")):
        check_output(path, [])


def plot(result: dict[str, Any], path: Path) -> None:
    """Share of the oracle against training seconds and against env steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_time, by_steps = figure.subplots(1, 2, sharey=True)
    for name, label, colour in (("hpcrl", "hpcrl", "#1f6fb2"), ("sb3", "Stable-Baselines3 PPO", "#c8641e")):
        curve = result[name]["curve"]
        share = [point["share"] for point in curve]
        error = [2 * point["share_error"] for point in curve]
        for axes, key, least in ((by_time, "seconds", 0), (by_steps, "steps", 1)):
            kept = [i for i, point in enumerate(curve) if point[key] >= least]
            x, y = [curve[i][key] for i in kept], [share[i] for i in kept]
            axes.errorbar(x, y, [error[i] for i in kept], label=label, color=colour, marker="o", ms=3, lw=1.2)
    for axes, name in ((by_time, "seconds of training"), (by_steps, "env steps")):
        axes.axhline(1.0, color="grey", lw=0.8, ls="--")
        axes.axhline(0.0, color="grey", lw=0.8)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    by_steps.set_xscale("log")
    by_time.set_ylabel("share of the oracle's reward")
    by_time.legend(loc="lower right", fontsize=8)
    policy, machine = result["config"]["policy"], result["machine"]
    figure.suptitle(
        f"{result['task']}, fresh bars; d_model {policy['d_model']} x {policy['layers']} layers, window "
        f"{policy['window']}; {machine['cpu']}, {machine['threads']} thread(s)",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
