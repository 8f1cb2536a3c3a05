"""Causal attention over the last W tokens of the same episode, in two ways that agree.

``step``: one token against a ring buffer of W keys. ``sequence``: Q tokens in blocks of W queries, each
against its own and the previous block of keys (2W), under one mask. Positions are rotary with
frequencies that are whole fractions of a period, so the counter may grow for ever: cos and sin come
from a table built in float64 and indexed by t mod PERIOD (Su et al. 2021, arXiv 2104.09864; here the
geometric ladder of frequencies is rounded to multiples of 2 pi / PERIOD).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PERIOD = 4096
"""Least period of the rotary table; it must be at least 2W and a multiple of W."""


def rotary_table(window: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin, [period, width / 2] float32, for keys of ``width`` entries.

    The period is the least multiple of the window that is at least ``MIN_PERIOD`` and 2W: positions are
    then right modulo the period, also across its wrap.
    """
    period = window * max(2, -(-MIN_PERIOD // window))
    pairs = width // 2
    ladder = 10_000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    cycles = (ladder * period / (2 * math.pi)).round().clamp_min(1)
    angle = torch.arange(period, dtype=torch.float64)[:, None] * cycles * (2 * math.pi / period)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension pairwise, in float32; returns x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def step_mask(age_N: Tensor, slot: Tensor, window: int) -> Tensor:
    """[N, 1, 1, W] bool: the ring's slots that the token written at ``slot`` may see.

    A slot's distance is (slot - s) mod W; tokens further back than ``age_N`` (steps since the episode's
    first token) belong to another episode.
    """
    distance_W = (slot - torch.arange(window, device=age_N.device)) % window
    return (distance_W <= age_N[:, None])[:, None, None, :]


def sequence_mask(age_CQ: Tensor, window: int) -> Tensor:
    """[C, blocks, W, 2W] bool: causal, within W, within the episode. Q must be a multiple of W."""
    chunks, steps = age_CQ.shape
    query = torch.arange(window, device=age_CQ.device)[:, None]
    key = torch.arange(2 * window, device=age_CQ.device)[None, :] - window
    distance = query - key
    near = (distance >= 0) & (distance < window)
    age = age_CQ.view(chunks, steps // window, window, 1)
    return near & (distance <= age)


class WindowAttention(nn.Module):
    """Multi-head attention over one layer's window; the caller owns the cache."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, d_model // heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., D] -> rotated q, rotated k, and v, each [..., H, K]; cos and sin are [..., 1, K / 2]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.width)).unbind(-3)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def step(
        self,
        x_ND: Tensor,
        keys_NHWK: Tensor,
        values_NHWK: Tensor,
        slot: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """One token per environment; writes its key and value into ``slot`` of the ring, in place."""
        q, k, v = self.project(x_ND, cos, sin)
        keys_NHWK.index_copy_(2, slot, k.unsqueeze(2))
        values_NHWK.index_copy_(2, slot, v.unsqueeze(2))
        mixed = F.scaled_dot_product_attention(q.unsqueeze(2), keys_NHWK, values_NHWK, attn_mask=mask)
        return self.out(mixed.flatten(1))

    def sequence(
        self, x_CQD: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q tokens after the W of ``memory`` (keys and values [C, H, W, K], in order of time).

        Returns the mixed tokens [C, Q, D] and this sequence's keys and values [C, Q, H, K].
        """
        chunks, steps, _ = x_CQD.shape
        window = memory[0].shape[2]
        blocks = steps // window
        q, k, v = self.project(x_CQD, cos, sin)
        q = q.view(chunks * blocks, window, self.heads, self.width).transpose(1, 2)
        both_k = _with_previous(k, memory[0], blocks)
        both_v = _with_previous(v, memory[1], blocks)
        mixed = F.scaled_dot_product_attention(q, both_k, both_v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(chunks, steps, self.heads * self.width)
        return self.out(mixed), k, v


def _with_previous(own_CQHK: Tensor, memory_CHWK: Tensor, blocks: int) -> Tensor:
    """[C x blocks, H, 2W, K]: each block's keys after those of the block before it."""
    window = memory_CHWK.shape[2]
    own = own_CQHK.unflatten(1, (blocks, window))
    before = torch.cat((memory_CHWK.transpose(1, 2).unsqueeze(1), own[:, :-1]), dim=1)
    return torch.cat((before, own), dim=2).flatten(0, 1).transpose(1, 2)
