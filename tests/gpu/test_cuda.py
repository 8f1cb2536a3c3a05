"""What only a GPU shows: parity of devices and ways in float32 and bf16, exact resume, NVML."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hpcrl.bench.learn import Size, run_seed
from hpcrl.config.load import load_config
from hpcrl.env.draws import uniform
from hpcrl.learn.ppo import recompute, update
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_synthetic
from hpcrl.monitor.sampler import EVERY_SECONDS, Sampler
from hpcrl.train import build
from hpcrl.world.ranks import start_world, stop_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TINY = {
    "train": {"world_size": 1, "epochs": 10, "deterministic": True},
    "env": {"envs_per_gpu": 8, "lot": 1},
    "policy": {"d_model": 64, "layers": 2, "heads": 2, "window": 16},
    "learn": {"rollout": 64, "sequence_length": 32, "batch_size": 128},
}

KINDS = [
    (f"policy.model_type={kind}", f"policy.head={head}")
    for kind in ("transformer", "lightweight")
    for head in ("discrete", "continuous")
]


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=800)
    return load_market(load_config(base=TINY, environment={}, overrides=[f"market.path={path}"]).market)


@pytest.fixture(scope="module")
def world():
    world = start_world("cuda", 1)
    yield world
    stop_world(world)


def trainer_on(market, world, *sets):
    config = load_config(base=TINY, environment={}, overrides=sets)
    return build(config, world, market, fit_scaler(market, *market.split_range("train")))


def test_draws_are_the_same_on_both_devices():
    ids = torch.arange(1000)
    assert torch.equal(uniform(1, 2, ids, 3), uniform(1, 2, ids.cuda(), 3).cpu())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_a_rollouts_steps_equal_the_learners_sequence(market, world, precision, limit, kind):
    trainer = trainer_on(market, world, *kind, f"engine.precision={precision}")
    stepped = []
    step = trainer.collector.policy.step

    def recording(*arguments):
        logits, value = step(*arguments)
        stepped.append(value)
        return logits, value

    trainer.collector.policy.step = recording
    rollout, _ = trainer.collector.collect(0)
    _, value = recompute(trainer.engine, rollout, torch.arange(16), 4)
    away = (rollout.steps(value.view(2, 8, 32)) - torch.stack(stepped[:-1], 1)).abs().max()
    assert away <= limit


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ratio_is_one_on_the_first_minibatch(market, world, precision, kind):
    trainer = trainer_on(market, world, *kind, f"engine.precision={precision}")
    for epoch in range(2):
        rollout, _ = trainer.collector.collect(epoch)
        learnt = update(trainer.engine, rollout, trainer.scale, trainer.config, epoch, world)
        assert learnt["first_log_ratio"] <= 1e-5
        trainer.engine.refresh(trainer.collector.policy)


def test_a_restored_run_goes_on_bit_for_bit(market, world):
    def epochs(trainer, first, last):
        for epoch in range(first, last):
            rollout, _ = trainer.collector.collect(epoch)
            update(trainer.engine, rollout, trainer.scale, trainer.config, epoch, world)
            trainer.engine.refresh(trainer.collector.policy)
            trainer.epoch = epoch + 1

    whole, part = trainer_on(market, world), trainer_on(market, world)
    epochs(whole, 0, 4)
    epochs(part, 0, 2)
    again = trainer_on(market, world)
    again.restore(part.portable(), part.rank_state())
    epochs(again, 2, 4)
    a, b = whole.engine.snapshot(), again.engine.snapshot()
    for part_name in ("weights", "exp_avg", "exp_avg_sq"):
        for name in a[part_name]:
            assert torch.equal(a[part_name][name], b[part_name][name]), (part_name, name)


def test_what_a_gpu_has_learnt_is_judged(world):
    config = Path(__file__).resolve().parents[2] / "yaml" / "learn.yaml"
    sets = ("train.epochs=1", "env.envs_per_gpu=16", "engine.device=cuda")
    found = run_seed("L2", 0, config, sets, Size(4, 400, 8, 60))
    assert found.steps == 16 * 128 and found.share is not None and found.share < 0.5


def test_nvml_answers_for_this_device_at_less_than_a_hundredth_of_the_time(world):
    sampler = Sampler(world.device)
    start = time.perf_counter()
    for _ in range(20):
        assert sampler.take(), sampler.problem
    assert (time.perf_counter() - start) / 20 < 0.01 * EVERY_SECONDS
    stats = sampler.read()
    assert 0 <= stats["gpu/utilisation"] <= 1 and 0 < stats["gpu/memory_gib"] < stats["gpu/memory_total_gib"]
    assert 10 < stats["gpu/temperature_c"] < 110 and stats["gpu/clock_mhz"] > 0
