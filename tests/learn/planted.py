"""A market whose only signal is a cue seen k bars before it pays: train on it, then play fresh bars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hpcrl.config.load import load_config
from hpcrl.config.root import Config
from hpcrl.env.simulator import Simulator
from hpcrl.learn.ppo import update
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_frame
from hpcrl.market.store import Market, load_market
from hpcrl.market.synthetic import planted_cue
from hpcrl.train import Trainer, build
from hpcrl.world.ranks import start_world
from hpcrl.world.world import World

CONFIG = Path(__file__).with_name("memory.yaml")
PATHS, STEPS = 64, 500
"""Fresh bars that are played: 64 separate paths of 500 steps."""


@dataclass(frozen=True)
class Result:
    k: int
    seed: int
    env_steps: int
    share: float
    """Mean log return of the deterministic policy over that of the oracle on the same fresh bars."""


def planted_market(folder: Path, k: int, seed: int, bars: int) -> str:
    path = folder / f"cue_{k}_{seed}.h5"
    frame = planted_cue(bars, k, seed)
    stage_frame(frame, path, source="planted", calendar="24/7", features=("cue",), computed=False)
    return str(path)


def train_and_play(folder: Path, k: int, seed: int, epochs: int, world: World | None = None) -> Result:
    """One seed: ``epochs`` of training, the last policy (not the best) on bars it has never seen."""
    world = world or start_world("cpu", 1)
    path = planted_market(folder, k, seed, 40_000)
    sets = [f"market.path={path}", f"train.seed={seed}", f"train.epochs={epochs}"]
    config = load_config(CONFIG, sets, environment={})
    market = load_market(config.market)
    trainer = build(config, world, market, fit_scaler(market, *market.split_range("train")))
    for epoch in range(epochs):
        rollout, _ = trainer.collector.collect(epoch)
        update(trainer.engine, rollout, trainer.scale, config, epoch, world)
        trainer.engine.refresh(trainer.collector.policy)
    fresh_path = planted_market(folder, k, seed + 1000, PATHS * STEPS + 2000)
    fresh = load_market(config.market.model_copy(update={"path": fresh_path}))
    steps = epochs * config.env.envs_per_gpu * config.learn.rollout
    return Result(k, seed, steps, share_of_oracle(trainer, fresh, config, k))


@torch.no_grad()
def share_of_oracle(trainer: Trainer, market: Market, config: Config, k: int) -> float:
    """Both play the same bars; the oracle holds the sign of the cue of k bars ago."""
    tensors = market.to("cpu", trainer.scaler)
    first = int(market.first_bar_S[0]) + config.policy.padded_history + k
    start_N = first + STEPS * torch.arange(PATHS)
    cue_B = torch.from_numpy(market.feature_BSF[:, 0, 0]).double()

    def play(choose_weight) -> float:
        simulator = Simulator(
            tensors,
            config.env,
            env_ids_N=torch.arange(PATHS),
            seed=0,
            bars=(0, market.n_bars),
            history=config.policy.padded_history,
        )
        history, length = simulator.begin_at(torch.zeros(PATHS, 1, dtype=torch.int64), start_N)
        memory = trainer.collector.policy.rebuild(history, length)
        total = 0.0
        for step in range(STEPS):
            weight = choose_weight(simulator.observe(), length + step, memory, start_N + step)
            total += float(simulator.step(weight).log_return_N.sum())
        return total

    distribution = trainer.collector.policy.distribution

    def agent(token, age, memory, _bar):
        params, _ = trainer.collector.policy.step(token, age, memory)
        return distribution.weights(distribution.mode(params))

    def oracle(_token, _age, _memory, bar):
        return cue_B[bar - k].sign()[:, None]

    return play(agent) / play(oracle)
