"""A donor saves, a recipient takes it over and takes one step: run on 1 or 2 ranks by test_members.

adopt_ranks.py donor FOLDER STAGE        trains two epochs, leaves checkpoint_epoch_2.pt
adopt_ranks.py recipient FOLDER STAGE    trains one epoch, takes the donor over as in a member's turn, then
                                         steps from there with two learning rates; leaves result.pt
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.checkpoint.manifest import Manifest
from hpcrl.config.load import load_config
from hpcrl.config.root import Config
from hpcrl.launch.member import MemberTurns
from hpcrl.learn.ppo import update
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.monitor.console import TrainingConsole
from hpcrl.pbt.population import Population
from hpcrl.pbt.turn import Plan, Snapshot, State
from hpcrl.storage.run_dir import RunDir
from hpcrl.train import Trainer, build
from hpcrl.world.ranks import read_ranks, start_world, stop_world
from hpcrl.world.stop import StopFlag
from hpcrl.world.world import World


def make_trainer(config: Config, world: World) -> Trainer:
    market = load_market(config.market)
    return build(config, world, market, fit_scaler(market, *market.split_range("train")))


def train(trainer: Trainer, epochs: int) -> None:
    for _ in range(epochs):
        rollout, _ = trainer.collector.collect(trainer.epoch)
        update(trainer.engine, rollout, trainer.scale, trainer.config, trainer.epoch, trainer.world)
        trainer.engine.refresh(trainer.collector.policy)
        trainer.epoch += 1


def one_step(trainer: Trainer, portable: dict, rank_state: dict, lr: float) -> dict:
    """Weights after one optimiser step from the given state, with the member's config."""
    trainer.adopt(portable)
    trainer.collector.load(rank_state["collector"])
    trainer.scale.running_N = rank_state["running_return"]
    trainer.change({"learn.lr": lr})
    rollout, _ = trainer.collector.collect(trainer.epoch)
    update(trainer.engine, rollout, trainer.scale, trainer.config, trainer.epoch, trainer.world)
    return trainer.portable()["model"]["weights"]


def main(role: str, folder: Path, stage: int) -> None:
    ranks = read_ranks()
    sets = [f"engine.zero_stage={stage}", f"train.world_size={ranks.size}", f"market.path={folder}/market.h5"]
    # One optimiser step in an update: its delta is proportional to the learning rate.
    sets += ["learn.ppo_epochs=1", "learn.batch_size=128", "learn.lr_schedule=constant"]
    if role == "recipient":
        sets += ["train.seed=77", "learn.lr=1e-4"]
    config = load_config(folder / "tiny.yaml", sets, environment={})
    world = start_world("cpu", ranks.size)
    trainer = make_trainer(config, world)
    run = RunDir(folder)
    if role == "donor":
        train(trainer, 2)
        CheckpointManager(run, world, 2).save(2, trainer.portable(), trainer.rank_state(), kept=True)
    else:
        train(trainer, 1)
        before = trainer.portable()
        population = Population.open(folder / "population")
        turns = MemberTurns(
            population,
            1,
            None,
            None,
            None,
            StopFlag(),
            TrainingConsole(world.rank, 6),  # type: ignore[arg-type]
        )
        file = Manifest.read(run.manifest(2)).files["checkpoint_epoch_2.pt"]
        donor = Snapshot(run.portable(2), file.sha256, file.bytes)
        state = State(0, {"learn.lr": 1e-4})
        plan = Plan(state, State(1, {"learn.lr": 2e-3}, (0, 1)), donor)
        assert turns._adopt(trainer, plan) is plan
        after, rank_state = trainer.portable(), copy.deepcopy(trainer.rank_state())
        copies = {name: value.clone() for name, value in trainer.collector.policy.state_dict().items()}
        lr = trainer.config.learn.lr
        steps = [one_step(trainer, after, rank_state, each) for each in (lr, 2 * lr)]
        if world.is_main:
            result = {"before": before, "after": after, "policy": copies, "lr": lr, "steps": steps}
            torch.save(result, folder / "result.pt")
    stop_world(world, 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
