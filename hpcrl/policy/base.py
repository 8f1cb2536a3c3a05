"""What every policy is to the rooms that use it: collector, learner and evaluation know no kind of model.

A policy's memory is a plain tuple of tensors, each [L, N, ...] (any leading size L, environments second).
``step`` writes it in place; ``sequence`` reads it as it stood before a chunk's first token. It is a function
of history and of today's weights: rebuilt from tokens at each rollout's start and never saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy.distributions import Distribution, build_distribution
from hpcrl.policy.heads import Float32Linear, RMSNorm

Memory = tuple[Tensor, ...]


class Player(Protocol):
    """What can be played bar by bar: a policy, or an exported one. Methods as in ``Policy``."""

    distribution: Distribution

    def rebuild(self, history_NME: Tensor, length_N: Tensor) -> Memory: ...

    def step(self, token_NE: Tensor, age_N: Tensor, memory: Memory) -> tuple[Tensor, Tensor]: ...


class Policy(nn.Module, ABC):
    """Actor and critic over tokens of E entries, for one account of A assets.

    Two ways through the same weights, which agree (tests/policy): ``step`` for rollouts, ``sequence`` for
    learning. Outputs are float32: the distribution's P numbers per asset [..., A, P], and value [...] in
    units of scaled return. A subclass owns the trunk: ``embed``, what follows it, and the memory.
    """

    embed: nn.Linear
    recomputes = False
    """Where gradients are recorded, keep a layer's input alone, and compute the layer again in the backward
    pass (Chen et al. 2016, arXiv 1604.06174)."""

    def __init__(self, config: PolicyConfig, n_assets: int) -> None:
        super().__init__()
        self.n_assets = n_assets
        self.distribution = build_distribution(config)

    def _add_heads(self, width: int) -> None:
        self.norm = RMSNorm(width)
        self.actor = Float32Linear(width, self.n_assets * self.distribution.params)
        self.critic = Float32Linear(width, 1)

    def _initialise(self) -> None:
        """Normal 1/sqrt(fan in); an actor that hardly knows its input, a zero critic."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._initialise_trunk()
        nn.init.normal_(self.actor.weight, std=0.01 * self.actor.in_features**-0.5)
        with torch.no_grad():
            self.actor.bias.copy_(torch.tensor(self.distribution.bias).repeat(self.n_assets))
        nn.init.zeros_(self.critic.weight)

    def _initialise_trunk(self) -> None:
        """What differs from the rule above."""

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @abstractmethod
    def empty_memory(self, n_envs: int) -> Memory:
        """Of environments that have seen no token."""

    @abstractmethod
    def step(self, token_NE: Tensor, age_N: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """One token per environment, ``age_N`` steps after its episode's first: [N, A, P] and value [N].

        Takes the token into ``memory``, in place.
        """

    @abstractmethod
    def encode(self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor) -> tuple[Tensor, list[Memory]]:
        """Q tokens after ``memory``: x [C, Q, D], and for each layer what ``rebuild`` makes memory from."""

    def _layer(self, layer: Callable[..., tuple[Tensor, Memory]], *inputs: Tensor) -> tuple[Tensor, Memory]:
        """One layer of ``encode``: x, and what ``rebuild`` makes memory from; nothing where it recomputes."""
        if not (self.recomputes and torch.is_grad_enabled()):
            return layer(*inputs)
        # With early_stop, the default: at ZeRO 3 a layer computed to its end would free the very weights
        # that are about to get their gradients.
        x = checkpoint(
            lambda *given: layer(*given)[0], *inputs, use_reentrant=False, preserve_rng_state=False
        )
        return x, ()

    @abstractmethod
    def rebuild(self, history_NME: Tensor, length_N: Tensor) -> Memory:
        """The memory that stepping through each environment's history would leave.

        ``history_NME``: the last M tokens, right-aligned, M a multiple of W; the first M - length_N are
        padding.
        """

    def sequence(self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor) -> tuple[Tensor, Tensor]:
        """Q tokens after ``memory`` at once: [C, Q, A, P] and value [C, Q]; leaves ``memory`` as it is."""
        x, _ = self.encode(token_CQE, memory, age_CQ)
        return self.outputs(x)

    def forward(
        self, token_CQE: Tensor, memory: Memory, age_CQ: Tensor, action_CQA: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the learner needs: log-probability, entropy and value of the actions taken, each [C, Q]."""
        params, value = self.sequence(token_CQE, memory, age_CQ)
        log_prob, entropy = self.distribution.log_prob_and_entropy(params, action_CQA)
        return log_prob, entropy, value

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The heads: the trunk's last x [..., D] -> [..., A, P] and value [...]."""
        x = self.norm(x)
        params = self.actor(x).unflatten(-1, (self.n_assets, self.distribution.params))
        return params, self.critic(x).squeeze(-1)


def history_age(length_N: Tensor, tokens: int) -> Tensor:
    """[N, M] int64: age of each of M history tokens. Padding gets 0, as if each began an episode: it must
    reach nothing after it, and attends to itself, for a row without any key would turn into NaN."""
    return (torch.arange(tokens, device=length_N.device) - (tokens - length_N[:, None])).clamp_min(0)
