"""The streaming transformer: one token per bar and environment, encoded once.

Its memory is a key/value cache (``KVCache``). L layers of window W see 1 + L (W - 1) bars.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy.attention import WindowAttention, rotary_table, sequence_mask, step_mask
from hpcrl.policy.base import Memory, Policy, history_age
from hpcrl.policy.heads import RMSNorm
from hpcrl.policy.kv_cache import KVCache


class Block(nn.Module):
    """Pre-norm attention and feed-forward net."""

    def __init__(self, d_model: int, heads: int, feedforward_mult: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(d_model)
        self.attention = WindowAttention(d_model, heads)
        self.feedforward_norm = RMSNorm(d_model)
        self.up = nn.Linear(d_model, feedforward_mult * d_model)
        self.down = nn.Linear(feedforward_mult * d_model, d_model)

    def feedforward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.feedforward_norm(x)), approximate="tanh"))

    def sequence(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Memory]:
        """As ``WindowAttention.sequence``: the tokens after this block, their keys and values."""
        mixed, k, v = self.attention.sequence(self.attention_norm(x), (keys, values), mask, cos, sin)
        return self.feedforward(x + mixed), (k, v)


class TransformerPolicy(Policy):
    """L pre-norm blocks of width D over tokens of ``n_entries`` E; see ``Policy``."""

    def __init__(self, config: PolicyConfig, n_entries: int, n_assets: int) -> None:
        super().__init__(config, n_assets)
        self.window, self.layers, self.heads = config.window, config.layers, config.heads
        self.width = config.d_model // config.heads
        self.embed = nn.Linear(n_entries, config.d_model)
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.heads, config.feedforward_mult) for _ in range(config.layers)
        )
        self._add_heads(config.d_model)
        # Not registered buffers: DeepSpeed would cast them to bf16, and positions need float32.
        self._table = rotary_table(config.window, self.width)
        self._initialise()

    def _initialise_trunk(self) -> None:
        """Residuals over sqrt(2L)."""
        for block in self._blocks():
            for residual in (block.attention.out, block.down):
                nn.init.normal_(residual.weight, std=residual.in_features**-0.5 / (2 * self.layers) ** 0.5)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _rotary(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions of any shape, broadcast over heads: [..., 1, K / 2]."""
        if self._table[0].device != position.device:
            self._table = (self._table[0].to(position.device), self._table[1].to(position.device))
        index = position % self._table[0].shape[0]
        return self._table[0][index].unsqueeze(-2), self._table[1][index].unsqueeze(-2)

    def empty_memory(self, n_envs: int) -> KVCache:
        return KVCache.empty(
            self.layers, n_envs, self.heads, self.window, self.width, self.embed.weight.detach()
        )

    def step(self, token_NE: Tensor, age_N: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        keys_LNHWK, values_LNHWK, counter_1N = memory
        position = counter_1N[0, :1]  # one for all, so that the ring is written in one place
        slot = position % self.window
        mask = step_mask(age_N, slot, self.window)
        cos, sin = self._rotary(position)
        x = self.embed(token_NE.to(self.dtype))
        for layer, block in enumerate(self._blocks()):
            x = x + block.attention.step(
                block.attention_norm(x), keys_LNHWK[layer], values_LNHWK[layer], slot, mask, cos, sin
            )
            x = block.feedforward(x)
        counter_1N += 1
        return self.outputs(x)

    def encode(self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor) -> tuple[Tensor, list[Memory]]:
        """See ``Policy``. Q may be any length; inside it is padded to a multiple of W.

        Returns each layer's keys and values [C, Q, H, K].
        """
        keys_LCHWK, values_LCHWK, position_1C = memory
        steps = token_CQE.shape[1]
        pad = -steps % self.window
        if pad:
            token_CQE = F.pad(token_CQE, (0, 0, 0, pad))
            age_CQ = F.pad(age_CQ, (0, pad))
        offset = torch.arange(steps + pad, device=position_1C.device)
        cos, sin = self._rotary(position_1C[0, :, None] + offset)
        mask = sequence_mask(age_CQ, self.window).flatten(0, 1).unsqueeze(1)
        x = self.embed(token_CQE.to(self.dtype))
        written: list[Memory] = []
        for layer, block in enumerate(self._blocks()):
            x, own = self._layer(block.sequence, x, keys_LCHWK[layer], values_LCHWK[layer], mask, cos, sin)
            written.append(tuple(part[:, :steps] for part in own))
        return x[:, :steps], written

    @torch.no_grad()
    def rebuild(self, history_NME: Tensor, length_N: Tensor) -> KVCache:
        """See ``Policy``. The counter starts at 0, so slot order is time order."""
        n_envs, length, _ = history_NME.shape
        cache = self.empty_memory(n_envs)
        _, written = self.encode(history_NME, cache, history_age(length_N, length))
        for layer, (k, v) in enumerate(written):
            cache.keys_LNHWK[layer] = k[:, -self.window :].transpose(1, 2)
            cache.values_LNHWK[layer] = v[:, -self.window :].transpose(1, 2)
        cache.counter_1N.add_(length)
        return cache
