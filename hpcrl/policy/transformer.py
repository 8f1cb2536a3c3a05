"""The streaming transformer: one token per bar and environment, encoded once.

Two ways through the same weights, which agree (tests/policy): ``step`` for rollouts, ``sequence`` for
learning and for rebuilding the cache. L layers of window W see 1 + L (W - 1) bars.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy.attention import WindowAttention, rotary_table, sequence_mask, step_mask
from hpcrl.policy.heads import Float32Linear, RMSNorm, log_prob_and_entropy
from hpcrl.policy.kv_cache import KVCache

Memory = tuple[Tensor, Tensor]
"""Keys and values of the W tokens before a chunk, in order of time, each [L, C, H, W, K]."""


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


class TransformerPolicy(nn.Module):
    """Actor and critic over tokens of E entries; A assets with P positions each.

    ``n_entries`` E, ``n_assets`` A. Outputs are float32: logits [..., A, P], value [...] in units of
    scaled return.
    """

    def __init__(self, config: PolicyConfig, n_entries: int, n_assets: int) -> None:
        super().__init__()
        self.window, self.layers, self.heads = config.window, config.layers, config.heads
        self.width = config.d_model // config.heads
        self.n_assets, self.n_positions = n_assets, len(config.positions)
        self.embed = nn.Linear(n_entries, config.d_model)
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.heads, config.feedforward_mult) for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.d_model)
        self.actor = Float32Linear(config.d_model, n_assets * self.n_positions)
        self.critic = Float32Linear(config.d_model, 1)
        # Not registered buffers: DeepSpeed would cast them to bf16, and positions need float32.
        self._table = rotary_table(config.window, self.width)
        self._initialise()

    def _initialise(self) -> None:
        """Normal 1/sqrt(fan in), residuals over sqrt(2L); a nearly uniform actor, a zero critic."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self._blocks():
            for residual in (block.attention.out, block.down):
                nn.init.normal_(residual.weight, std=residual.in_features**-0.5 / (2 * self.layers) ** 0.5)
        nn.init.normal_(self.actor.weight, std=0.01 * self.actor.in_features**-0.5)
        nn.init.zeros_(self.critic.weight)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def _rotary(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions of any shape, broadcast over heads: [..., 1, K / 2]."""
        if self._table[0].device != position.device:
            self._table = (self._table[0].to(position.device), self._table[1].to(position.device))
        index = position % self._table[0].shape[0]
        return self._table[0][index].unsqueeze(-2), self._table[1][index].unsqueeze(-2)

    def empty_cache(self, n_envs: int) -> KVCache:
        return KVCache.empty(
            self.layers, n_envs, self.heads, self.window, self.width, self.embed.weight.detach()
        )

    def step(self, token_NE: Tensor, age_N: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """One token per environment, ``age_N`` steps after its episode's first: logits [N, A, P], value [N].

        Writes the token into the cache, in place.
        """
        slot = cache.counter % self.window
        mask = step_mask(age_N, slot, self.window)
        cos, sin = self._rotary(cache.counter)
        x = self.embed(token_NE.to(self.dtype))
        for layer, block in enumerate(self._blocks()):
            x = x + block.attention.step(
                block.attention_norm(x),
                cache.keys_LNHWK[layer],
                cache.values_LNHWK[layer],
                slot,
                mask,
                cos,
                sin,
            )
            x = block.feedforward(x)
        cache.counter += 1
        return self._heads(x)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        logits = self.actor(x).unflatten(-1, (self.n_assets, self.n_positions))
        return logits, self.critic(x).squeeze(-1)

    def encode(
        self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor, position_C: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Q tokens after ``memory``; ``position_C`` is the counter at each chunk's first token.

        Q may be any length; inside it is padded to a multiple of W. Returns x [C, Q, D] and each
        layer's keys and values [C, Q, H, K].
        """
        steps = token_CQE.shape[1]
        pad = -steps % self.window
        if pad:
            token_CQE = F.pad(token_CQE, (0, 0, 0, pad))
            age_CQ = F.pad(age_CQ, (0, pad))
        offset = torch.arange(steps + pad, device=position_C.device)
        cos, sin = self._rotary(position_C[:, None] + offset)
        mask = sequence_mask(age_CQ, self.window).flatten(0, 1).unsqueeze(1)
        x = self.embed(token_CQE.to(self.dtype))
        written = []
        for layer, block in enumerate(self._blocks()):
            before = (memory[0][layer], memory[1][layer])
            mixed, k, v = block.attention.sequence(block.attention_norm(x), before, mask, cos, sin)
            x = block.feedforward(x + mixed)
            written.append((k[:, :steps], v[:, :steps]))
        return x[:, :steps], written

    def sequence(
        self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor, position_C: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [C, Q, A, P] and value [C, Q] of Q tokens at once; see ``encode``."""
        x, _ = self.encode(token_CQE, memory, age_CQ, position_C)
        return self._heads(x)

    def forward(
        self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor, position_C: Tensor, action_CQA: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the learner needs: log-probability, entropy and value of the actions taken, each [C, Q]."""
        logits, value = self.sequence(token_CQE, memory, age_CQ, position_C)
        log_prob, entropy = log_prob_and_entropy(logits, action_CQA)
        return log_prob, entropy, value

    @torch.no_grad()
    def rebuild(self, history_NME: Tensor, length_N: Tensor) -> KVCache:
        """The cache that stepping through each environment's history would leave.

        ``history_NME``: the last M tokens, right-aligned, M a multiple of W; the first M - length_N are
        padding. The counter starts at 0, so slot order is time order.
        """
        n_envs, length, _ = history_NME.shape
        cache = self.empty_cache(n_envs)
        # Padding gets age 0, so that it attends to itself: a row without any key would turn into NaN.
        age = (torch.arange(length, device=history_NME.device) - (length - length_N[:, None])).clamp_min(0)
        memory = (cache.keys_LNHWK, cache.values_LNHWK)
        position = torch.zeros(n_envs, dtype=torch.int64, device=history_NME.device)
        _, written = self.encode(history_NME, memory, age, position)
        for layer, (k, v) in enumerate(written):
            cache.keys_LNHWK[layer] = k[:, -self.window :].transpose(1, 2)
            cache.values_LNHWK[layer] = v[:, -self.window :].transpose(1, 2)
        cache.counter += length
        return cache
