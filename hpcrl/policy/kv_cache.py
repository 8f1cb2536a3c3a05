"""The transformer's memory: the ring buffer of keys and values that a rollout steps through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    keys_LNHWK: Tensor
    values_LNHWK: Tensor
    """In order of time wherever the counter is a multiple of W, as at each chunk's start."""
    counter_1N: Tensor
    """int64: tokens written so far, the same for all; the next one goes into slot counter mod W."""

    @classmethod
    def empty(cls, layers: int, n_envs: int, heads: int, window: int, width: int, like: Tensor) -> KVCache:
        shape = (layers, n_envs, heads, window, width)
        return cls(
            torch.zeros(shape, dtype=like.dtype, device=like.device),
            torch.zeros(shape, dtype=like.dtype, device=like.device),
            torch.zeros((1, n_envs), dtype=torch.int64, device=like.device),
        )
