"""Training: ``build`` puts the parts together, ``learn`` is the loop; ``launch/job`` picks the start."""

from __future__ import annotations

import copy
import os
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from hpcrl.checkpoint.find import FORMAT
from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.config.load import validate, with_values
from hpcrl.config.policy import PolicyConfig
from hpcrl.config.root import Config
from hpcrl.engine.engine import Engine
from hpcrl.env.simulator import Simulator
from hpcrl.learn.ppo import update
from hpcrl.learn.returns import ReturnScale
from hpcrl.market.dataset import Market
from hpcrl.market.scaler import Scaler
from hpcrl.monitor.advice import gpu_warnings, imbalance
from hpcrl.monitor.alarms import Alarms
from hpcrl.monitor.console import TrainingConsole
from hpcrl.monitor.metrics import MetricsFile
from hpcrl.monitor.sampler import Sampler
from hpcrl.monitor.stopwatch import Stopwatch
from hpcrl.monitor.watchdog import Watchdog
from hpcrl.policy import Policy, build_policy
from hpcrl.rollout.collector import Collector
from hpcrl.rollout.summary import summarise, timing
from hpcrl.types import STOPPED_EARLY, HpcrlError, RunFailed
from hpcrl.world.agree import all_or_none
from hpcrl.world.collectives import all_max, any_rank, gather_objects
from hpcrl.world.deadline import Deadline
from hpcrl.world.stop import StopFlag
from hpcrl.world.world import World


@dataclass
class Trainer:
    """All that a run is made of; what must survive a restart is in ``portable`` and ``rank_state``."""

    config: Config
    world: World
    market: Market
    scaler: Scaler
    engine: Engine
    collector: Collector
    scale: ReturnScale
    epoch: int = 0
    """Finished epochs."""
    env_steps: int = 0
    """Of all ranks and attempts."""
    attempt: int = 1
    member: dict[str, Any] | None = None
    """Of a member of a population (``pbt/turn.State``): its hyperparameters and how it came by them."""

    def __post_init__(self) -> None:
        self.begun = self.config
        """The config that the run was begun with."""

    def change(self, hyperparameters: dict[str, float]) -> None:
        """Go on with other values of these keys (``config/pbt.CHANGEABLE``)."""
        self.config = with_values(self.config, hyperparameters)
        self.collector.simulator.rewards.reweigh(self.config.env.rewards)

    def progress(self) -> dict[str, Any]:
        own = {} if self.member is None else self.member["hyperparameters"]
        return {
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "data_source": self.market.source,
            **{f"hyperparameters/{key}": value for key, value in own.items()},
        }

    def portable(self) -> dict[str, Any]:
        """What any world size can load; collective."""
        return {
            "format": FORMAT,
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "attempt": self.attempt,
            "model": self.engine.snapshot(),
            "return_scale": self.scale.state(),
            "feature_scaler": self.scaler.state(),
            "pbt": self.member,
            "config": self.begun.model_dump(mode="json"),
            "data": {"sha256": self.market.sha256, "source": self.market.source},
            "n_entries": self.collector.simulator.n_entries,
            "n_assets": self.collector.simulator.n_assets,
        }

    def rank_state(self) -> dict[str, Any]:
        """What only this rank has."""
        return {"collector": self.collector.state(), "running_return": self.scale.running_N.cpu()}

    def restore(self, portable: dict, rank_state: dict | None) -> None:
        """Weights, moments and statistics; with ``rank_state`` (same world size) also the environments.

        Without, environments start new episodes, at episode numbers that this run has not drawn yet.
        """
        self.adopt(portable)
        self.epoch, self.env_steps = portable["epoch"], portable["env_steps"]
        self.member = portable["pbt"]
        if self.member is not None:
            self.change(self.member["hyperparameters"])
        if rank_state is not None:
            self.collector.load(rank_state["collector"])
            self.scale.running_N = rank_state["running_return"].to(self.world.device)
        else:
            self.collector.restart(self.epoch)

    def adopt(self, portable: dict) -> None:
        """Weights, moments and return statistics of another run or member; nothing of its progress."""
        wanted = (self.collector.simulator.n_entries, self.collector.simulator.n_assets)
        found = (portable["n_entries"], portable["n_assets"])
        policy = validate(portable["config"], "the checkpoint's config").policy
        if wanted != found or policy != self.config.policy:
            raise HpcrlError(
                f"the checkpoint's policy ({_shape(policy, *found)}) is not the one of this config "
                f"({_shape(self.config.policy, *wanted)}); use the same policy section, features and assets"
            )
        self.engine.load(portable["model"])
        self.engine.refresh(self.collector.policy)
        self.scale.load(portable["return_scale"])


def _shape(policy: PolicyConfig, n_entries: int, n_assets: int) -> str:
    bounds = f"continuous in {policy.weight_low:g} to {policy.weight_high:g}"
    head = f"{len(policy.positions)} positions" if policy.head == "discrete" else bounds
    return (
        f"{policy.model_type} d_model {policy.d_model} x {policy.layers} layers, window {policy.window}, "
        f"{head}, {n_assets} assets, {n_entries} entries"
    )


def build(config: Config, world: World, market: Market, scaler: Scaler) -> Trainer:
    """All parts at their start; every rank gets the same weights and its own environments."""
    torch.manual_seed(config.train.seed)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS picks algorithms by load
        torch.use_deterministic_algorithms(True)
    module, collector = all_or_none(world, lambda: _parts(config, world, market, scaler))
    module.recomputes = config.engine.activation_checkpointing
    engine = Engine(module, config.engine, config.learn, world)
    engine.refresh(collector.policy)
    scale = ReturnScale(torch.zeros(config.env.envs_per_gpu, dtype=torch.float64, device=world.device))
    return Trainer(config, world, market, scaler, engine, collector, scale)


def _parts(config: Config, world: World, market: Market, scaler: Scaler) -> tuple[Policy, Collector]:
    """What is this rank's alone: a policy for the engine, and a collector with a copy of it."""
    n_envs = config.env.envs_per_gpu
    env_ids_N = torch.arange(n_envs, device=world.device) + world.rank * n_envs
    simulator = Simulator(
        market.to(world.device, scaler),
        config.env,
        env_ids_N=env_ids_N,
        seed=config.train.seed,
        bars=market.split_range("train"),
        history=config.policy.padded_history,
    )
    simulator.prepare(config.episode_steps)
    module = build_policy(config.policy, simulator.n_entries, simulator.n_assets).to(world.device)
    plain = copy.deepcopy(module).requires_grad_(False)
    if config.engine.precision == "bf16":
        plain = plain.to(torch.bfloat16)
    return module, Collector(simulator, plain, config, env_ids_N, Stopwatch(world.device))


class Turns(Protocol):
    """What a member of a population does beside training; all of it collective."""

    def due(self, epoch: int) -> bool: ...

    def take(self, trainer: Trainer, save: Callable[[], None]) -> bool:
        """After ``save``, whose checkpoint the turn begins from. True: the run has to stop here for now."""
        ...


def learn(
    trainer: Trainer,
    manager: CheckpointManager,
    log: MetricsFile | None,
    stop: StopFlag,
    console: TrainingConsole,
    watchdog: Watchdog | None = None,
    turns: Turns | None = None,
    sampler: Sampler | None = None,
) -> int:
    """Epochs until the last; returns the exit code. One epoch is one rollout and its update.

    ``log`` is there on rank 0 alone. A checkpoint of the start is expected to exist or is written first.
    ``turns``: of a member of a population; ``sampler``: of this rank's GPU and process.
    """
    watchdog, deadline = watchdog or Watchdog(0), Deadline()
    config, world, engine, collector = trainer.config, trainer.world, trainer.engine, trainer.collector
    distribution, n_assets = collector.policy.distribution, collector.simulator.n_assets
    alarms = Alarms(n_assets * distribution.collapsed_entropy, n_assets * distribution.greatest_entropy)
    alarms.remember(log.kept if log is not None else [])
    rolling = RollingClock(config.checkpoint.every_minutes * 60)
    watchdog.beat("save", trainer.epoch)
    save(trainer, manager, False, deadline)
    stopping = stop.agreed(world)
    if turns is not None and not stopping and turns.due(trainer.epoch):  # the last attempt ended before it
        stopping = take_turn(turns, trainer, lambda: None, watchdog, deadline)
    while trainer.epoch < config.train.epochs and not stopping:
        start = time.perf_counter()
        watchdog.beat("rollout", trainer.epoch + 1)
        rollout, tally = collector.collect(trainer.epoch)
        console.collected(trainer.epoch + 1, rollout.reward_CNQ.numel())
        watchdog.beat("update", trainer.epoch + 1)
        with collector.watch.span("learn"):
            learnt = update(engine, rollout, trainer.scale, trainer.config, trainer.epoch, world)
            engine.refresh(collector.policy)
        trainer.epoch += 1
        trainer.env_steps += rollout.reward_CNQ.numel() * world.size
        metrics = trainer.progress() | summarise(rollout, tally, distribution.shares, world) | learnt
        metrics["weight_divergence"] = weight_divergence(collector.policy, world)
        metrics |= timing(collector.watch, time.perf_counter() - start, rollout, trainer.attempt, world)
        metrics |= sampler.read() if sampler is not None else {}
        metrics["alarms"] = alarms.check(metrics)
        for alarm in alarms.news(metrics["alarms"]):
            console.say(f"ALARM epoch {trainer.epoch}: {alarm}")
        all_or_none(world, partial(log.append, metrics) if log is not None else lambda: None)
        console.epoch(metrics)
        if sampler is not None and trainer.epoch % config.monitor.gpu_stats_every == 0:
            tell_devices(trainer, metrics, sampler, console)
        kept = trainer.epoch % config.checkpoint.every_epochs == 0 or trainer.epoch == config.train.epochs
        deadline.note(epoch_seconds=time.perf_counter() - start)
        if world.is_main and deadline.due():
            stop.request(signal.SIGUSR2)
        # Asked once an epoch: a signal that came between two answers would end the run unsaved.
        stopping = stop.agreed(world)
        turning = turns is not None and not stopping and turns.due(trainer.epoch)
        if kept or stopping or turning or any_rank(world, world.is_main and rolling.due()):
            watchdog.beat("save", trainer.epoch)
            saving = partial(save, trainer, manager, kept, deadline)
            if turns is not None and turning:
                stopping = take_turn(turns, trainer, saving, watchdog, deadline)
            else:
                saving()
            rolling.restart()
    left_open = turns is not None and turns.due(trainer.epoch)  # by a stop in the last epoch
    return STOPPED_EARLY if trainer.epoch < config.train.epochs or left_open else 0


def tell_devices(
    trainer: Trainer, metrics: dict[str, Any], sampler: Sampler, console: TrainingConsole
) -> None:
    """Every rank's figures and warnings, and who holds the others up; collective."""
    envs = trainer.config.env.envs_per_gpu
    lost = [news] if (news := sampler.news()) else []
    console.devices(metrics, [*lost, *gpu_warnings(metrics, envs)])
    own = {key: value for key, value in metrics.items() if key.startswith(("time/", "gpu/", "host/"))}
    ranks = gather_objects(trainer.world, own | {"node": platform.node()})
    if trainer.world.is_main and (line := imbalance(ranks, envs)):
        console.say(f"WARNING: {line}")


def take_turn(
    turns: Turns, trainer: Trainer, saving: Callable[[], None], watchdog: Watchdog, deadline: Deadline
) -> bool:
    """``turns.take``; its time counts as that of a save, which the end of the job has to leave room for."""
    start = time.perf_counter()
    watchdog.beat("turn", trainer.epoch)
    stopping = turns.take(trainer, saving)
    deadline.note(save_seconds=time.perf_counter() - start)
    return stopping


def weight_divergence(policy: torch.nn.Module, world: World) -> float:
    """Largest difference between ranks in the sums and squares of the weights that rollouts use; collective.

    0 as long as the ranks are one policy. DeepSpeed can let a rank go its own way without a word.
    RunFailed where a weight is not finite.
    """
    bad = [name for name, parameter in policy.named_parameters() if not bool(parameter.isfinite().all())]
    if any_rank(world, bool(bad)):
        named = f", for example {bad[0]}" if bad else ""
        raise RunFailed(
            f"the weights are not finite{named}; nothing of this epoch was saved. Resuming would "
            "train the same way again: hpcrl train --init RUN --set learn.lr=LOWER starts a new run from its "
            "newest checkpoint"
        )
    weights = [parameter.double() for parameter in policy.parameters()]
    sums = (float(sum(w.sum() for w in weights)), float(sum((w * w).sum() for w in weights)))
    return sum(all_max(world, total) + all_max(world, -total) for total in sums)


def save(trainer: Trainer, manager: CheckpointManager, kept: bool, deadline: Deadline) -> None:
    """Collective; touches no random stream."""
    start = time.perf_counter()
    manager.save(trainer.epoch, trainer.portable(), trainer.rank_state(), kept=kept)
    deadline.note(save_seconds=time.perf_counter() - start)


class RollingClock:
    """When the next rolling checkpoint is due; 0 seconds: after every epoch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.since >= self.seconds
