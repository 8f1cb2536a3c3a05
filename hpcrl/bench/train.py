"""``hpcrl bench train``: env steps per second of whole epochs, and where the time goes."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from hpcrl.config.load import load_config, overridden
from hpcrl.config.market import MarketConfig
from hpcrl.config.root import Config
from hpcrl.types import HpcrlError

BARS = 20_000
"""Tradable synthetic bars, where no data file was asked for and the default one does not exist."""


def bench_train(config_path: Path | None, overrides: tuple[str, ...], epochs: int) -> dict[str, Any]:
    """Train ``epochs`` epochs after one warm-up, in this process, without checkpoints.

    Rates are medians over epochs; ``split`` is each part's share of the time, the rest being ``other``
    (recording, returns, bookkeeping); ``data`` says which bars were measured. Raises HpcrlError where the
    config names a data file that does not exist: synthetic bars stand in for the default one only.
    """
    config = load_config(config_path, [*overrides, "train.world_size=1"], environment={})
    with tempfile.TemporaryDirectory() as folder:
        if not Path(config.market.path).exists():
            if config.market.path != MarketConfig().path or overridden(overrides, "market.path"):
                raise HpcrlError(
                    f"market.path = {config.market.path}: no such file; stage it first (hpcrl stage), or "
                    "leave market.path out to measure synthetic bars"
                )
            config = _on_synthetic(config, Path(folder))
        return _measure(config, epochs)


def _on_synthetic(config: Config, folder: Path) -> Config:
    from hpcrl.market.stage import stage_synthetic

    path = folder / "market.h5"
    stage_synthetic(path, symbols=("AAPL", "MSFT"), bars=BARS)
    return config.model_copy(update={"market": config.market.model_copy(update={"path": str(path)})})


def _measure(config: Config, epochs: int) -> dict[str, Any]:
    import torch

    from hpcrl.learn.ppo import update
    from hpcrl.market.load import load_market
    from hpcrl.market.scaler import fit_scaler
    from hpcrl.train import build
    from hpcrl.world.ranks import start_world, stop_world

    world = start_world(config.engine.device, 1)
    market = load_market(config.market)
    trainer = build(config, world, market, fit_scaler(market, *market.split_range("train")))
    collector, rows = trainer.collector, []
    for epoch in range(epochs + 1):
        start = time.perf_counter()
        rollout, _ = collector.collect(epoch)
        with collector.watch.span("learn"):
            update(trainer.engine, rollout, trainer.scale, config, epoch, world)
            trainer.engine.refresh(collector.policy)
        spans = collector.watch.read()  # waits for the GPU
        rows.append((time.perf_counter() - start, spans))
    stop_world(world)
    steps = config.env.envs_per_gpu * config.learn.rollout
    measured = rows[1:]
    seconds = statistics.median(total for total, _ in measured)
    split = {
        name: statistics.median(spans.get(name, 0.0) / total for total, spans in measured)
        for name in ("env", "policy", "rebuild", "learn")
    }
    cuda = world.device.type == "cuda"
    return {
        "bench": "train",
        "steps_per_second": steps / seconds,
        "epoch_seconds": seconds,
        "epochs": epochs,
        "data": {"source": market.source, "bars": market.n_bars},
        "split": split | {"other": 1 - sum(split.values())},
        "parameters": sum(p.numel() for p in collector.policy.parameters()),
        "config": {
            "envs": config.env.envs_per_gpu,
            "rollout": config.learn.rollout,
            "batch_size": config.learn.batch_size,
            "ppo_epochs": config.learn.ppo_epochs,
            "model_type": config.policy.model_type,
            "head": config.policy.head,
            "d_model": config.policy.d_model,
            "layers": config.policy.layers,
            "window": config.policy.window,
            "precision": config.engine.precision,
            "zero_stage": config.engine.zero_stage,
        },
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        },
    }


def render(result: dict[str, Any]) -> Table:
    """The result for a person."""
    shape = result["config"]
    table = Table(
        title=f"{shape['model_type']} d_model {shape['d_model']} x {shape['layers']} layers, "
        f"{shape['envs']} envs x {shape['rollout']} steps, {shape['precision']}, "
        f"{result['machine']['device']}, {result['machine']['threads']} threads"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    data = result["data"]
    table.add_row("data", f"{data['source']}, {data['bars']:,} bars")
    table.add_row("env steps per second", f"{result['steps_per_second']:,.0f}")
    table.add_row("seconds per epoch", f"{result['epoch_seconds']:.2f}")
    for name, share in result["split"].items():
        table.add_row(f"share of time: {name}", f"{share:.1%}")
    return table
