"""Small markets and run folders for the tests of evaluation, made without training."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcrl.checkpoint.manifest import FileRecord, Manifest
from hpcrl.config.env import CostConfig
from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.env.simulator import Simulator
from hpcrl.market.load import load_market
from hpcrl.market.scaler import fit_scaler
from hpcrl.market.stage import stage_synthetic
from hpcrl.market.tensors import MarketTensors
from hpcrl.policy import build_policy
from hpcrl.storage.atomic import sha256_of, to_json
from hpcrl.storage.run_dir import RunDir

FREE = CostConfig(half_spread=0, impact_coef=0, participation=None, per_share=0, min_fee=0, borrow_rate=0)
"""A market without any friction."""


def tiny_market(close_BS: np.ndarray, **changes: Any) -> MarketTensors:
    """Bars whose open is the previous close (the first bar's own), one hour apart, all tradable."""
    close = torch.tensor(np.asarray(close_BS, dtype=np.float64))
    close = close[:, None] if close.ndim == 1 else close
    bars, symbols = close.shape
    opened = torch.cat([close[:1], close[:-1]])
    fields: dict[str, Any] = {
        "ts_B": torch.arange(bars) * 3600,
        "open_BS": opened,
        "high_BS": torch.maximum(opened, close),
        "low_BS": torch.minimum(opened, close),
        "close_BS": close,
        "volume_BS": torch.full_like(close, 1e6),
        "present_BS": torch.ones_like(close, dtype=torch.bool),
        "sigma_BS": torch.zeros_like(close),
        "split_BS": torch.ones_like(close),
        "dividend_BS": torch.zeros_like(close),
        "delist_BS": torch.full_like(close, float("nan")),
        "feature_BSF": torch.zeros(bars, symbols, 2),
        "session_time_B": torch.zeros(bars),
        "first_bar_S": torch.zeros(symbols, dtype=torch.int64),
        "last_bar_S": torch.full((symbols,), bars - 1),
    }
    return MarketTensors(**(fields | changes))


def make_config(data: Path, **env: Any) -> Config:
    return validate(
        {
            "market": {"path": str(data)},
            "env": {"envs_per_gpu": 2, "lot": 0, **env},
            "policy": {"d_model": 16, "layers": 2, "heads": 2, "window": 8},
            "learn": {"rollout": 32, "sequence_length": 16, "batch_size": 32},
            "engine": {"precision": "fp32"},
        },
        "test",
    )


def make_data(path: Path, symbols: tuple[str, ...] = ("AAA", "BBB"), bars: int = 400, seed: int = 3) -> Path:
    stage_synthetic(path, symbols=symbols, bars=bars, seed=seed)
    return path


def make_run(
    folder: Path, config: Config, *, epoch: int = 4, seed: int = 0, always: int | None = None
) -> Path:
    """A run folder with one committed checkpoint. ``always``: the policy always takes that position."""
    market = load_market(config.market)
    scaler = fit_scaler(market, *market.split_range("train"))
    probe = Simulator(
        market.to("cpu", scaler),
        config.env,
        env_ids_N=torch.arange(1),
        seed=0,
        bars=market.split_range("train"),
        history=8,
    )
    torch.manual_seed(seed)
    policy = build_policy(config.policy, probe.n_entries, probe.n_assets)
    with torch.no_grad():
        policy.actor.weight.normal_()  # a fresh actor hardly ever changes its mind
        if always is not None:
            policy.actor.weight.zero_()
            policy.actor.bias.view(probe.n_assets, -1)[:, always] = 1.0
    data = {"sha256": market.sha256, "source": market.source}
    record = {
        "format": 1,
        "config": config.model_dump(mode="json"),
        "config_sha256": config.digest(),
        "data": data | {"path": config.market.path, "symbols": list(market.symbols)},
    }
    run = RunDir.create(folder, json.dumps(record))
    add_checkpoint(run, config, policy, scaler.state(), data, (probe.n_entries, probe.n_assets), epoch)
    return run.path


def add_checkpoint(
    run: RunDir, config: Config, policy: Any, scaler: dict, data: dict, size: tuple[int, int], epoch: int
) -> None:
    portable = {
        "format": 1,
        "epoch": epoch,
        "env_steps": 1000,
        "attempt": 1,
        "model": {"format": 1, "weights": dict(policy.state_dict())},
        "return_scale": {"count": 0.0, "mean": 0.0, "m2": 0.0},
        "feature_scaler": scaler,
        "pbt": None,
        "config": config.model_dump(mode="json"),
        "data": data,
        "n_entries": size[0],
        "n_assets": size[1],
    }
    torch.save(portable, run.portable(epoch))
    torch.save({}, run.rank_state(epoch, 0))
    files = {
        path.name: FileRecord(sha256_of(path), path.stat().st_size)
        for path in (run.portable(epoch), run.rank_state(epoch, 0))
    }
    manifest = Manifest(epoch, 1, True, files, datetime.now(UTC).isoformat())
    run.manifest(epoch).write_text(to_json(manifest.to_dict()))
