"""One engine for the laptop, CI and the GPUs: forward, backward, clipped AdamW step, snapshot.

``engine/`` is the only room that imports DeepSpeed, and only once an engine is built. What ``step()`` does:
averages gradients over ranks, measures their global norm, clips, steps AdamW on fp32 masters, refreshes the
compute copies. A non-finite loss or gradient on any rank makes every rank skip the step.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcrl.config.engine import EngineConfig
from hpcrl.config.learn import LearnConfig
from hpcrl.engine import snapshot as snapshots
from hpcrl.engine.ds_config import ds_config
from hpcrl.world.collectives import any_rank
from hpcrl.world.world import World


@dataclass(frozen=True)
class StepResult:
    applied: bool
    """False: a non-finite loss or gradient; weights and moments are as they were, on every rank."""
    grad_norm: float
    """Global 2-norm before clipping; infinite or NaN where the step was not applied."""


class Engine:
    """Owns the trained weights. ``module``: float32; rank 0's weights are broadcast to all."""

    def __init__(self, module: nn.Module, engine: EngineConfig, learn: LearnConfig, world: World) -> None:
        self._world = world
        self._stage = engine.zero_stage
        self._max_norm = learn.max_grad_norm
        deepspeed = _import_deepspeed(world)
        module = module.to(world.device)
        if world.size > 1:
            for parameter in module.parameters():
                torch.distributed.broadcast(parameter.data, 0)
        # DeepSpeed makes its fp32 masters from weights that it has rounded to bf16; the exact ones go back.
        weights = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        # It casts every buffer to bf16 too; tables (rotary angles, grids) must stay exact.
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=learn.lr,
            betas=(learn.adam_beta1, learn.adam_beta2),
            eps=learn.adam_eps,
            weight_decay=learn.weight_decay,
            fused=world.device.type == "cuda",
        )
        self._ds: Any = deepspeed.initialize(
            model=module, optimizer=optimizer, config=ds_config(engine, learn.max_grad_norm)
        )[0]
        for name, buffer in self._ds.module.named_buffers():
            buffer.data = buffers[name]
        snapshots.create_states(self._ds)
        snapshots.spread(self._ds, snapshots.at_step_0(weights))

    @property
    def module(self) -> nn.Module:
        """The wrapped module. At stage 3 its parameters hold nothing outside forward and backward."""
        return self._ds.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward. Under ``torch.no_grad()`` every rank has to take part as well (stage 3)."""
        return self._ds(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self._ds.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Accumulate and average gradients. ``loss``: scalar, this rank's mean."""
        # A loss of infinity may have finite gradients: times NaN, the averaged gradients show it to all
        # ranks, and the step's own check serves both. Times 1 is exact.
        finite = torch.isfinite(loss.detach())
        self._ds.backward(loss * torch.where(finite, 1.0, math.nan).to(loss.dtype))

    def step(self) -> StepResult:
        """Clip and step, or skip on all ranks. Clears the gradients either way."""
        if self._stage == 0:
            return self._step_unsharded()
        self._ds.step()
        applied = bool(self._ds.was_step_applied())
        norm = self._ds.get_global_grad_norm()
        return StepResult(applied, float(norm) if applied else math.inf)

    def _step_unsharded(self) -> StepResult:
        """Stage 0: DeepSpeed would let NaN into the weights, and would step past unused parameters."""
        parameters = [parameter for _, parameter in snapshots.named_parameters(self._ds)]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(nn.utils.clip_grad_norm_(parameters, self._max_norm))
        applied = not any_rank(self._world, not math.isfinite(norm))
        if applied:
            self._ds.step()
        else:
            self._ds.zero_grad()
        return StepResult(applied, norm)

    @property
    def lr(self) -> float:
        return float(self._ds.optimizer.param_groups[0]["lr"])

    def set_lr(self, lr: float) -> None:
        """Takes effect at the next step, in every stage."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr

    def refresh(self, copy: nn.Module) -> None:
        """Collective: the current compute-precision weights into ``copy``, a plain module of the same
        architecture, cast to its own dtypes. Buffers are left alone."""
        snapshots.copy_compute_weights(self._ds, copy)

    def snapshot(self) -> dict[str, Any]:
        """Collective: fp32 weights, moments, step count, settings by parameter name (see ``snapshot``)."""
        return snapshots.gather(self._ds)

    def load(self, snapshot: dict[str, Any]) -> None:
        """Collective: take over weights, moments and step count. Our learning rate and settings stay.

        HpcrlError if the snapshot is of another architecture; then nothing has changed.
        """
        lr = self.lr
        snapshots.spread(self._ds, snapshot)
        self.set_lr(lr)

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers. The engine is unusable afterwards."""
        self._ds.destroy()


def _import_deepspeed(world: World) -> Any:
    """Import and initialise, with what has to be set before either."""
    os.environ["DS_ACCELERATOR"] = world.device.type
    # DeepSpeed reads the device's index from it, at stage 3 in every forward.
    os.environ["LOCAL_RANK"] = str(
        world.device.index or 0 if world.device.type == "cuda" else world.local_rank
    )
    # torch deprecates calls that DeepSpeed makes; by message, so that our own warnings stay visible.
    warnings.filterwarnings("ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated")
    import deepspeed

    if world.device.type == "cpu":
        # Else init_distributed compiles C++ for 87 s, dies without ninja, or hangs on a stale lock.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    snapshots.check_version()
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    if _not_overflow not in logger.filters:
        logger.addFilter(_not_overflow)
    return deepspeed


def _not_overflow(record: logging.LogRecord) -> bool:
    """A skipped step is told by StepResult; DeepSpeed's own line for it would come once per minibatch."""
    return "OVERFLOW!" not in record.getMessage()
