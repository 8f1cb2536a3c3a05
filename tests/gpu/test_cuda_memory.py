"""What only a GPU shows of memory: recomputing lowers the peak, and an exhausted device is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcrl.config.load import load_config
from hpcrl.learn.ppo import update
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_synthetic
from hpcrl.monitor.memory import answered
from hpcrl.monitor.watchdog import Watchdog
from hpcrl.train import build
from hpcrl.world.memory import OutOfMemory
from hpcrl.world.ranks import start_world, stop_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDE = {
    "train": {"world_size": 1, "epochs": 10, "deterministic": True},
    "env": {"envs_per_gpu": 64, "lot": 1},
    "policy": {"d_model": 256, "layers": 8, "heads": 4, "window": 64},
    "learn": {"rollout": 256, "sequence_length": 256, "batch_size": 16384, "ppo_epochs": 1},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=900)
    return path


@pytest.fixture(scope="module")
def world():
    world = start_world("cuda", 1)
    yield world
    stop_world(world)


def trainer_on(path, world, *sets):
    config = load_config(base=WIDE, environment={}, overrides=[f"market.path={path}", *sets])
    market = load_market(config.market)
    return build(config, world, market, fit_scaler(market, *market.split_range("train")))


def learn_once(trainer, world) -> int:
    """The peak of bytes in tensors during an update."""
    rollout, _ = trainer.collector.collect(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    update(trainer.engine, rollout, trainer.scale, trainer.config, 0, world)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("model", ["transformer", "lightweight"])
def test_recomputing_lowers_the_peak_and_changes_nothing(path, world, model):
    peaks, weights = [], []
    for recompute in ("false", "true"):
        sets = (f"policy.model_type={model}", f"engine.activation_checkpointing={recompute}")
        trainer = trainer_on(path, world, *sets)
        peaks.append(learn_once(trainer, world))
        weights.append(trainer.engine.snapshot()["weights"])
        trainer.engine.close()
    assert peaks[1] < 0.6 * peaks[0], peaks
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_device_that_is_exhausted_is_answered_with_its_figures(path, world, phase):
    trainer = trainer_on(path, world)
    watchdog = Watchdog(0)
    rollout, _ = trainer.collector.collect(0) if phase == "update" else (None, None)
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    try:
        with pytest.raises(OutOfMemory) as caught, answered(world, trainer.config, watchdog, None):
            torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total + 1e-6)
            watchdog.beat(phase, 1)
            if rollout is None:
                trainer.collector.collect(0)
            else:
                update(trainer.engine, rollout, trainer.scale, trainer.config, 0, world)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    shortage, said = caught.value.shortage, str(caught.value)
    assert shortage.on_gpu and shortage.asked > 0 and shortage.total == total
    assert f"in the {phase} of epoch 1" in said and "(cuda:0, " in said
    first = "engine.activation_checkpointing=true" if phase == "update" else "env.envs_per_gpu=32"
    assert first in said
    torch.cuda.empty_cache()
    trainer.engine.close()
