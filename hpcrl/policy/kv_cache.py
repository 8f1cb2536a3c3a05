"""The ring buffer of keys and values that a rollout steps through.

A cache is a function of history and of today's weights: it is rebuilt from tokens at each rollout's
start and never saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    keys_LNHWK: Tensor
    values_LNHWK: Tensor
    counter: Tensor
    """[1] int64: tokens written so far; the next one goes into slot counter mod W."""

    @classmethod
    def empty(cls, layers: int, n_envs: int, heads: int, window: int, width: int, like: Tensor) -> KVCache:
        shape = (layers, n_envs, heads, window, width)
        return cls(
            torch.zeros(shape, dtype=like.dtype, device=like.device),
            torch.zeros(shape, dtype=like.dtype, device=like.device),
            torch.zeros(1, dtype=torch.int64, device=like.device),
        )
