"""The run as a whole, its checkpoints and its monitoring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpcrl.config.base import Section


class TrainConfig(Section):
    training_mode: Literal["distributed", "single"] = "distributed"
    """single: one process, whatever world_size says."""
    world_size: int = Field(8, ge=1, le=65536)
    """Ranks, one per GPU; a launcher that started another number is an error."""
    epochs: int = Field(100, ge=0, le=1_000_000_000)
    """Epochs after which the run is finished; one epoch is one rollout and its PPO update."""
    seed: int = Field(0, ge=0, lt=2**31)
    deterministic: bool = False
    """On CUDA: deterministic kernels only, so that resume is bit-exact there too (slower)."""


class CheckpointConfig(Section):
    dir: str = "checkpoints"
    """Folder in which the run folder dist_run_YYYYMMDD_HHMMSS is made."""
    every_epochs: int = Field(50, ge=1, le=1_000_000_000)
    """A checkpoint that is kept, every so many epochs."""
    every_minutes: float = Field(10.0, ge=0, le=1e9)
    """A rolling checkpoint by wall clock; 0: after every epoch."""
    keep_rolling: int = Field(2, ge=1, le=1_000_000)


class MonitorConfig(Section):
    gpu_stats_every: int = Field(10, ge=1, le=1_000_000_000)
    """Epochs between printed GPU statistics."""
    progress: Literal["auto", "plain", "bar"] = "auto"
    """auto: a progress bar on a terminal, plain lines elsewhere."""
    tensorboard: bool = True
    """Write TensorBoard's event file too: tensorboard --logdir with checkpoint.dir, a run or a population."""
    hang_minutes: float = Field(30.0, ge=0, le=1e6)
    """A rank in which nothing happens for so long writes where it is and ends with code 70; 0: never.
    Longer than the longest epoch, and than reading the data."""
