"""The few collectives that rooms share; no-ops for one rank. Every rank calls each, or none does.

All travel on the CPU (gloo), so they cost no GPU synchronisation and work with nccl beside them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpcrl.world.world import World


def all_max(world: World, value: float) -> float:
    """The largest ``value`` of all ranks. NaN is not allowed: its order is undefined."""
    if world.size == 1:
        return float(value)
    box = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return float(box)


def any_rank(world: World, flag: bool) -> bool:
    return bool(all_max(world, float(flag)))


def all_sum(world: World, tensor: Tensor) -> Tensor:
    """Elementwise sum over ranks, as a new float64 tensor on the CPU. Shapes must agree."""
    total = tensor.detach().to("cpu", torch.float64, copy=True)
    if world.size > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def broadcast_object(world: World, value: Any, source: int = 0) -> Any:
    """Rank ``source``'s value on every rank; strings, numbers and plain containers."""
    if world.size == 1:
        return value
    box = [value if world.rank == source else None]
    dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]


def gather_objects(world: World, value: Any) -> list[Any]:
    """Every rank's value in rank order, on every rank."""
    if world.size == 1:
        return [value]
    box: list[Any] = [None] * world.size
    dist.all_gather_object(box, value)
    return box


def barrier(world: World) -> None:
    if world.size > 1:
        # A reduction rather than dist.barrier(): the latter runs on nccl where there is one.
        all_max(world, 0.0)
