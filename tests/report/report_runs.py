"""Runs to report: made without training, with metrics as training writes them, and names that bite."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))  # a room lends another its made runs
from evaluate_runs import make_config, make_data, make_run

from hpcrl.config.load import load_config

EVIL = "<script>window.boom = 1</script>"
BOLD = "B&B <b>x</b> <img src=x onerror=boom()>"


def metrics_line(epoch: int, **more: Any) -> dict[str, Any]:
    """As train.learn logs an epoch on a CPU."""
    return {
        "epoch": epoch,
        "env_steps": epoch * 64,
        "data_source": "synthetic",
        "reward": 1e-4 * math.log(epoch),
        "log_return": 1e-4 * math.log(epoch),
        "turnover": 0.5 / epoch,
        "fees": 0.1,
        "spread": 0.2,
        "impact": 0.3,
        "financing": 0.0,
        "bankruptcies": 0.0,
        "episode_length": 32.0,
        "action_share/-1": 0.3,
        "action_share/0": 0.3,
        "action_share/1": 0.4,
        "action_share_max": 0.4,
        "loss": 1 / epoch,
        "policy_loss": -0.01,
        "value_loss": 2 / epoch,
        "entropy": 1.0,
        "approx_kl": 0.01,
        "clip_fraction": 0.1,
        "grad_norm": 0.3,
        "skipped_steps": 0.0,
        "explained_variance": 0.1 * epoch,
        "lr": 3e-4,
        "weight_divergence": 0.0,
        "time/attempt": 1,
        "time/unix": 1.7e9 + 10 * epoch,
        "time/epoch": 2.0,
        "time/steps_per_second": 32.0,
        "time/env": 0.3,
        "time/policy": 0.5,
        "time/learn": 1.0,
    } | more


def gpu_line(epoch: int) -> dict[str, Any]:
    return metrics_line(epoch) | {
        "gpu/utilisation": 0.9,
        "gpu/memory_gib": 20.0 + epoch,
        "gpu/temperature_c": 60.0,
        "gpu/power_w": 350.0,
        "gpu/clock_mhz": 1700.0,
        "gpu/throttled": 0.0,
        "gpu/throttles": [],
    }


def write_metrics(run: Path, lines: list[dict[str, Any]]) -> Path:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def played_run(folder: Path, symbols: tuple[str, ...] = ("AAA", "BBB"), **more: Any) -> Path:
    """A run over ``symbols`` with four epochs of metrics. ``always``: its one position; others: of env."""
    always = more.pop("always", None)
    folder.mkdir(parents=True, exist_ok=True)
    data = make_data(folder / "data.h5", symbols)
    run = make_run(folder / "runs", make_config(data, **more), always=always)
    return write_metrics(run, [metrics_line(epoch) for epoch in range(1, 5)])


def write_record(run: Path, data: Path) -> None:
    """config.json as a run that has begun has it."""
    config = load_config(None, (f"market.path={data}", "train.world_size=1"), environment={})
    record = {"format": 1, "config": config.model_dump(mode="json"), "config_sha256": config.digest()}
    record["data"] = {"sha256": "0" * 64, "source": "files", "path": str(data), "symbols": ["A"]}
    (run / "config.json").write_text(json.dumps(record))
