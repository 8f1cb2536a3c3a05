"""A gated recurrent net for small machines: at most a tenth of the transformer's parameters.

Minimal gated recurrent units (Feng et al. 2024, arXiv 2410.01201): gates look at the token alone, so a
sequence is a linear recurrence, which ``scan`` solves by doubling. Departures from the paper: the candidate
is not squashed, and what a layer hands on is gated by the token (a product of memory and present, which the
recurrence itself cannot form).

Memory is one hidden state per layer, in float32 whatever the trunk's precision. It is rebuilt from the
same last M tokens as the transformer's cache: what a rollout's start still knows is M tokens old at most.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy.base import Memory, Policy, history_age
from hpcrl.policy.heads import RMSNorm
from hpcrl.types import HpcrlError

SHARE = 10
"""The transformer of the same config, entries and assets has at least this many times the parameters."""
EVEN = 8
"""Widths above it are its multiples, which matrix units of GPUs like."""


def scan(keep_CQD: Tensor, inflow_CQD: Tensor, before_CD: Tensor) -> Tensor:
    """All h_t = keep_t h_{t-1} + inflow_t, [C, Q, D], in log2 Q passes; h before the first is ``before_CD``.

    Each pass joins spans of twice the length (Hillis and Steele 1986): products only, no division, so that
    gates may be 0 and nothing overflows.
    """
    first = inflow_CQD[:, :1] + keep_CQD[:, :1] * before_CD.unsqueeze(1)
    hidden, keep = torch.cat((first, inflow_CQD[:, 1:]), dim=1), keep_CQD
    span = 1
    while span < hidden.shape[1]:
        joined = hidden[:, span:] + keep[:, span:] * hidden[:, :-span]
        hidden = torch.cat((hidden[:, :span], joined), dim=1)
        keep = torch.cat((keep[:, :span], keep[:, span:] * keep[:, :-span]), dim=1)
        span *= 2
    return hidden


class RecurrentBlock(nn.Module):
    """Pre-norm residual: h_t = (1 - z_t) h_{t-1} + z_t c_t, out = x + W (h_t silu(g_t)); z, c, g of x_t."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.gates = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    def begin(self, x: Tensor, age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the recurrence keeps and takes in (float32), and the gate of its output, each [..., D].

        An episode's first token (age 0) keeps nothing.
        """
        z, candidate, gate = self.gates(self.norm(x)).chunk(3, dim=-1)
        z = z.float()
        keep = torch.sigmoid(-z) * (age > 0).unsqueeze(-1)
        return keep, torch.sigmoid(z) * candidate.float(), gate

    def sequence(self, x: Tensor, age: Tensor, before: Tensor) -> tuple[Tensor, Memory]:
        """Q tokens after the hidden state ``before``: x after this block, and the hidden states."""
        keep, inflow, gate = self.begin(x, age)
        hidden = scan(keep, inflow, before)
        return self.end(x, hidden, gate), (hidden,)

    def end(self, x: Tensor, hidden: Tensor, gate: Tensor) -> Tensor:
        return x + self.out(hidden.to(gate.dtype) * F.silu(gate))


def transformer_parameters(config: PolicyConfig, n_entries: int, outputs: int) -> int:
    """Of the transformer of this config; ``outputs``: the actor's, A x P."""
    d, wide = config.d_model, config.feedforward_mult * config.d_model
    block = 2 * d + 4 * d * d + (d + 1) * wide + (wide + 1) * d
    return (n_entries + 1) * d + config.layers * block + d + (d + 1) * (outputs + 1)


def own_parameters(width: int, layers: int, n_entries: int, outputs: int) -> int:
    block = width + 3 * (width + 1) * width + width * width
    return (n_entries + 1) * width + layers * block + width + (width + 1) * (outputs + 1)


def width_of(config: PolicyConfig, n_entries: int, outputs: int) -> int:
    """d_model / 2, or as much as a tenth of the transformer's parameters allows (many entries, few layers).

    HpcrlError where not even width 1 fits, which takes a d_model below ``SHARE``.
    """
    whole = transformer_parameters(config, n_entries, outputs)
    half, layers = config.d_model // 2, config.recurrent_layers
    widths = [*range(half - half % EVEN, EVEN, -EVEN), *range(min(half, EVEN), 0, -1)]
    for width in widths:
        if SHARE * own_parameters(width, layers, n_entries, outputs) <= whole:
            return width
    raise HpcrlError(
        f"policy.d_model = {config.d_model} is too small for model_type lightweight: no net of a tenth of "
        f"the transformer's {whole:,} parameters reads {n_entries} entries; use a larger d_model"
    )


class LightweightPolicy(Policy):
    """Blocks of ``width`` over tokens of ``n_entries`` E; see ``Policy``. Memory: (hidden [L, N, D],)."""

    def __init__(self, config: PolicyConfig, n_entries: int, n_assets: int) -> None:
        super().__init__(config, n_assets)
        self.layers, self.window = config.recurrent_layers, config.window
        self.width = width_of(config, n_entries, n_assets * self.distribution.params)
        self.embed = nn.Linear(n_entries, self.width)
        self.blocks = nn.ModuleList(RecurrentBlock(self.width) for _ in range(self.layers))
        self._add_heads(self.width)
        self._initialise()

    def _initialise_trunk(self) -> None:
        """Residuals over sqrt(L); memories of 1 to W tokens (Tallec and Ollivier 2018, arXiv 1804.11188)."""
        spans = torch.logspace(0, 1, self.width, base=float(self.window), dtype=torch.float64)
        for block in self._blocks():
            nn.init.normal_(block.out.weight, std=(self.width * self.layers) ** -0.5)
            with torch.no_grad():
                block.gates.bias[: self.width].copy_(-spans.log())  # takes in about 1 part of 1 + span

    def _blocks(self) -> list[RecurrentBlock]:
        return cast("list[RecurrentBlock]", list(self.blocks))

    def empty_memory(self, n_envs: int) -> Memory:
        return (torch.zeros(self.layers, n_envs, self.width, device=self.embed.weight.device),)

    def step(self, token_NE: Tensor, age_N: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        (hidden_LND,) = memory
        x = self.embed(token_NE.to(self.dtype))
        for layer, block in enumerate(self._blocks()):
            keep, inflow, gate = block.begin(x, age_N)
            hidden_LND[layer].mul_(keep).add_(inflow)
            x = block.end(x, hidden_LND[layer], gate)
        return self.outputs(x)

    def encode(self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor) -> tuple[Tensor, list[Memory]]:
        """See ``Policy``. Returns each layer's hidden states [C, Q, D]."""
        (before_LCD,) = memory
        x = self.embed(token_CQE.to(self.dtype))
        written: list[Memory] = []
        for layer, block in enumerate(self._blocks()):
            x, own = self._layer(block.sequence, x, age_CQ, before_LCD[layer])
            written.append(own)
        return x, written

    @torch.no_grad()
    def rebuild(self, history_NME: Tensor, length_N: Tensor) -> Memory:
        empty = self.empty_memory(len(history_NME))
        _, written = self.encode(history_NME, empty, history_age(length_N, history_NME.shape[1]))
        return (torch.stack([hidden[:, -1] for (hidden,) in written]),)
