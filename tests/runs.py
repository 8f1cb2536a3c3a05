"""Small real runs for the tests: the command line in its own process, and what it left on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from event_file import epochs_in

from hpcrl.checkpoint.find import load_portable
from hpcrl.monitor.metrics import read_metrics

TINY = """
train: {world_size: 1, epochs: 6, seed: 3}
market: {path: market.h5}
env: {envs_per_gpu: 4, episode_rollouts: 2, lot: 1}
policy: {d_model: 16, layers: 2, heads: 2, window: 8}
learn: {rollout: 32, sequence_length: 16, batch_size: 64, ppo_epochs: 2, lr: 1.0e-3, lr_schedule: linear}
engine: {precision: fp32}
checkpoint: {every_minutes: 0, every_epochs: 4}
"""


def furnish(folder: Path, market_file: Path) -> Path:
    """``folder`` with tiny.yaml and market.h5 in it."""
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "market.h5").symlink_to(market_file)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hpcrl", *arguments]


def environment() -> dict[str, str]:
    """Without a launcher's variables, which a test under srun or torchrun would hand on."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GPU_COUNT", "ENVS_PER_GPU", "TRAINING_MODE")
    return {k: v for k, v in os.environ.items() if k not in dropped} | {"OMP_NUM_THREADS": "1"}


def hpcrl(
    *arguments: str, cwd: Path, code: int = 0, timeout: float = 300, **extra: str
) -> subprocess.CompletedProcess:
    """Run ``hpcrl``; the exit code must be ``code``, and a user's mistake shows no traceback."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment() | extra,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    if code in (2, 75):
        assert "Traceback" not in done.stderr, done.stderr
    return done


def only_run(parent: Path) -> Path:
    (run,) = sorted(parent.glob("checkpoints/dist_run_*"))
    return run


def comparable_metrics(run: Path) -> list[dict]:
    """Metrics without the keys that differ between two runs of one config."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "gpu/", "host/"))}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def portable(run: Path, epoch: int | None = None) -> dict:
    return load_portable(run, epoch)[1]


def rank_state(run: Path, epoch: int, rank: int = 0) -> dict:
    return torch.load(run / f"checkpoint_epoch_{epoch}.rank_{rank}.pt", weights_only=True)


def same(a: object, b: object, where: str = "state") -> None:
    """Bit for bit; raises with the place of the first difference."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{index}]")
    else:
        assert a == b, f"{where}: {a!r} != {b!r}"


def assert_same_course(run: Path, reference: Path, epoch: int, ranks: int = 1) -> None:
    """Weights, moments, statistics, environments and metrics equal those of the uninterrupted run."""
    a, b = portable(run, epoch), portable(reference, epoch)
    for key in ("epoch", "env_steps", "model", "return_scale", "feature_scaler"):
        same(a[key], b[key], key)
    for rank in range(ranks):
        same(rank_state(run, epoch, rank), rank_state(reference, epoch, rank), f"rank {rank}")
    assert comparable_metrics(run) == comparable_metrics(reference)
    rewards = [(line["epoch"], pytest.approx(line["reward"])) for line in comparable_metrics(run)]
    assert [(step, values["reward"]) for step, values in epochs_in(run)] == rewards
