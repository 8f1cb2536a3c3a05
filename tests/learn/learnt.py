"""A short course of rollouts and updates, for tests that compare two of them."""

from __future__ import annotations

from typing import Any

import torch

from hpcrl.config.load import load_config
from hpcrl.learn.ppo import update
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.train import build
from hpcrl.world.world import World

BASE = {
    "train": {"world_size": 1},
    "env": {"envs_per_gpu": 6, "lot": 1},
    "policy": {"d_model": 32, "layers": 4, "heads": 2, "window": 8},
    "learn": {"rollout": 48, "sequence_length": 16, "batch_size": 96, "ppo_epochs": 2, "lr": 1e-3},
}


def course(world: World, *sets: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Metrics of two updates, and the engine's snapshot after them."""
    config = load_config(base=BASE, environment={}, overrides=sets)
    market = load_market(config.market)
    trainer = build(config, world, market, fit_scaler(market, *market.split_range("train")))
    metrics = []
    for epoch in range(2):
        rollout, _ = trainer.collector.collect(epoch)
        metrics.append(update(trainer.engine, rollout, trainer.scale, config, epoch, world))
        trainer.engine.refresh(trainer.collector.policy)
    snapshot = trainer.engine.snapshot()
    trainer.engine.close()
    return metrics, snapshot


def same(a: tuple, b: tuple) -> None:
    """Losses, gradient norms, weights and moments, bit for bit."""
    assert a[0] == b[0]
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        for name, tensor in a[1][part].items():
            assert torch.equal(tensor, b[1][part][name]), (part, name)
