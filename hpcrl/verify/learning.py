"""One small epoch of the configured policy on this device, by the code that trains: does it learn rightly?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.config.load import with_values
from hpcrl.config.root import Config
from hpcrl.learn.ppo import recompute, update
from hpcrl.market.dataset import Market
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_synthetic
from hpcrl.monitor.memory import MARK, remedies
from hpcrl.policy import build_policy
from hpcrl.storage.run_dir import RunDir
from hpcrl.train import Trainer, build
from hpcrl.types import Rollout
from hpcrl.verify.finding import Trouble
from hpcrl.world.memory import shortage_of
from hpcrl.world.world import World

RATIO = {"fp32": 1e-3, "bf16": 0.25}
"""Largest |log ratio| of a rollout, before any update (measured on CPUs: 1e-7 and 0.02)."""
STEPS = 1e-3
"""Largest difference between stepping and a sequence, float32 (measured: 2e-6)."""
REPORT = "report it with the output of hpcrl verify --json: training would learn from wrong numbers"


def trial_config(config: Config, data: Path | None) -> Config:
    """The same policy, engine, rewards and costs; two environments, one chunk each, one update."""
    steps = config.learn.sequence_length
    small: dict[str, Any] = {
        "train.world_size": 1, "train.epochs": 1, "env.envs_per_gpu": 2, "env.episode_rollouts": 1,
        "learn.rollout": steps, "learn.batch_size": steps, "learn.ppo_epochs": 1,
    }  # fmt: skip
    if data is not None:
        small |= {"market.path": str(data), "market.symbols": (), "market.features": ()}
        small |= {f"market.{split}_between": () for split in ("train", "validation", "test")}
    return with_values(config, small)


def trial_market(config: Config, market: Market | None, folder: Path) -> tuple[Config, Market]:
    """The user's own bars where they could be read, else made-up ones."""
    if market is not None:
        return trial_config(config, None), market
    bars = 600 + 8 * config.learn.sequence_length
    stage_synthetic(folder / "trial.h5", symbols=("AAPL", "MSFT"), bars=bars)
    trial = trial_config(config, folder / "trial.h5")
    return trial, load_market(trial.market)


class Trial:
    """Built step by step: each check uses what the one before it made."""

    def __init__(self, config: Config, market: Market | None, world: World, folder: Path) -> None:
        self._given, self._bars, self._world, self._folder = config, market, world, folder
        self.trainer: Trainer | None = None
        self.rollout: Rollout | None = None
        self.checkpoint_bytes = 0

    def within_memory(self, check: Callable[[], str]) -> Callable[[], str]:
        """The check, with the answer where memory does not suffice for it."""

        def checked() -> str:
            try:
                return check()
            except Exception as error:
                shortage = shortage_of(error, self._world)
                if shortage is None:
                    raise
                lines = remedies(shortage, "trial", self._given)
            fix = "; or ".join(line.removesuffix(MARK) for line in lines)
            raise Trouble(f"{shortage}, with two environments and minibatches of one chunk", fix)

        return checked

    def check_model(self) -> str:
        """Forward and backward, all finite; stepping through tokens says what the sequence says."""
        self.config, self.market = trial_market(self._given, self._bars, self._folder)
        scaler = fit_scaler(self.market, *self.market.split_range("train"))
        self.trainer = build(self.config, self._world, self.market, scaler)
        simulator, device = self.trainer.collector.simulator, self._world.device
        torch.manual_seed(0)
        policy = build_policy(self.config.policy, simulator.n_entries, simulator.n_assets).to(device)
        torch.nn.init.normal_(policy.actor.weight, std=0.1)  # as built it hardly looks at its input
        steps = 2 * self.config.policy.window
        token_CQE = torch.randn(2, steps, simulator.n_entries, device=device)
        age_CQ = torch.arange(steps, device=device).repeat(2, 1)
        params, value = policy.sequence(token_CQE, policy.empty_memory(2), age_CQ)
        (params.square().sum() + value.square().sum()).backward()
        bad = [
            name
            for name, weight in policy.named_parameters()
            if weight.grad is None or not weight.grad.isfinite().all()
        ]
        if bad:
            raise Trouble(f"no finite gradient of {', '.join(bad[:3])}", REPORT)
        with torch.no_grad():
            memory = policy.empty_memory(2)
            stepped = torch.stack(
                [policy.step(token_CQE[:, t], age_CQ[:, t], memory)[0] for t in range(steps)], 1
            )
        off = float((stepped - params.detach()).abs().max())
        if not off <= STEPS:
            raise Trouble(f"stepping and the sequence differ by {off:.2g}", REPORT)
        count = sum(weight.numel() for weight in policy.parameters())
        return f"{self.config.policy.model_type}, {count:,} parameters; step and sequence {off:.0e} apart"

    def check_engine(self) -> str:
        """A rollout, ratio 1, and an optimiser step by DeepSpeed at the configured stage and precision."""
        trainer = self._built()
        engine = self.config.engine
        before = [weight.clone() for weight in trainer.collector.policy.parameters()]
        rollout, ratio = rolled(trainer)
        if not ratio <= RATIO[engine.precision]:
            raise Trouble(
                f"before any update the log ratio is up to {ratio:.2g}, not 0: rollout and learner disagree "
                "about the same policy",
                REPORT,
            )
        learnt = update(trainer.engine, rollout, trainer.scale, self.config, 0, self._world)
        trainer.engine.refresh(trainer.collector.policy)
        odd = [name for name in ("loss", "grad_norm", "entropy") if not math.isfinite(learnt[name])]
        if odd or learnt["skipped_steps"]:
            raise Trouble(f"the first update gives no finite {', '.join(odd) or 'gradient'}", REPORT)
        after = list(trainer.collector.policy.parameters())
        if all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
            raise Trouble("an optimiser step changes no weight", REPORT)
        trainer.epoch, trainer.env_steps = 1, rollout.reward_CNQ.numel()
        return (
            f"DeepSpeed, ZeRO {engine.zero_stage}, {engine.precision} on {self._world.device.type}: "
            f"log ratio {ratio:.0e}, gradient norm {learnt['grad_norm']:.2g}"
        )

    def check_checkpoint(self) -> str:
        """Save, read back by hash, restore: the same weights, bit for bit."""
        trainer = self._built()
        run = RunDir.create(self._folder, "{}")
        manager = CheckpointManager(run, self._world, 2)
        manager.save(trainer.epoch, trainer.portable(), trainer.rank_state(), kept=True)
        self.checkpoint_bytes = sum(
            file.stat().st_size for file in run.path.glob(f"checkpoint_epoch_{trainer.epoch}*")
        )
        held = {name: weight.clone() for name, weight in trainer.collector.policy.named_parameters()}
        for weight in trainer.collector.policy.parameters():
            weight.data.zero_()
        newest = manager.newest()
        if newest is None:
            raise Trouble(f"{run.path}: a checkpoint was saved, and none is found", REPORT)
        portable, own = manager.load(newest)
        trainer.restore(portable, own)
        lost = [
            name
            for name, weight in trainer.collector.policy.named_parameters()
            if not torch.equal(weight, held[name])
        ]
        if lost:
            raise Trouble(f"weights differ after a restore: {', '.join(lost[:3])}", REPORT)
        return f"{self.checkpoint_bytes / 2**20:.1f} MiB, saved, read back and restored bit for bit"

    def _built(self) -> Trainer:
        if self.trainer is None:
            raise Trouble("there is no model to try it with", "see the check of the model")
        return self.trainer


def rolled(trainer: Trainer) -> tuple[Rollout, float]:
    """A rollout, and the largest |log ratio| between its own steps and the learner's sequence."""
    policy, stepped = trainer.collector.policy, []
    step = policy.step

    def recording(*arguments: Any) -> tuple[Tensor, Tensor]:
        params, value = step(*arguments)
        stepped.append(params)
        return params, value

    policy.step = recording  # type: ignore[assignment]
    try:
        rollout, _ = trainer.collector.collect(0)
    finally:
        del policy.step
    n_chunks, n_envs, length = rollout.age_CNQ.shape
    order = torch.arange(n_chunks * n_envs, device=rollout.age_CNQ.device)
    learners_RQ, _ = recompute(trainer.engine, rollout, order, n_chunks * n_envs)
    params_NTAP = torch.stack(stepped[: n_chunks * length], 1)
    own_NT, _ = policy.distribution.log_prob_and_entropy(params_NTAP, rollout.steps(rollout.action_CNQA))
    learners_NT = rollout.steps(learners_RQ.view(n_chunks, n_envs, length))
    return rollout, float((learners_NT - own_NT).abs().max())
