"""Minibatches of whole chunks, drawn anew each PPO epoch; single steps are never shuffled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.types import Rollout


@dataclass
class Minibatch:
    """Arguments of the policy's forward for some chunks, [C, Q, ...]."""

    rows: Tensor
    token: Tensor
    memory: tuple[Tensor, ...]
    age: Tensor
    action: Tensor

    def arguments(self) -> tuple:
        return self.token, self.memory, self.age, self.action


def permutation(n_chunks: int, seed: int, epoch: int, ppo_epoch: int, rank: int) -> Tensor:
    """The order of chunks in one PPO epoch of one rank: a function of its arguments alone.

    A fresh generator each time leaves no random stream to save; the seed mixes its arguments so that
    no two epochs or ranks share an order.
    """
    mixed = ((seed * 1_000_003 + epoch) * 1_009 + ppo_epoch) * 65_537 + rank
    return torch.randperm(n_chunks, generator=torch.Generator().manual_seed(mixed % (1 << 63)))


def minibatch(rollout: Rollout, rows: Tensor) -> Minibatch:
    """Copy out the chunks ``rows`` of the flattened [C x N] rows."""
    rows = rows.to(rollout.age_CNQ.device)
    return Minibatch(
        rows,
        rollout.token_CNQE.flatten(0, 1)[rows],
        tuple(part.flatten(1, 2)[:, rows] for part in rollout.memory),
        rollout.age_CNQ.flatten(0, 1)[rows],
        rollout.action_CNQA.flatten(0, 1)[rows],
    )
