"""Distributions over the target weights of A independent assets, from an actor's K numbers per asset.

An action is what the learner needs to know of a choice (here the index into the grid); ``weights`` turns it
into target weights. Sampling is by inverse transform from uniform numbers of a counter-based hash, so it
holds no generator's state.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from hpcrl.config.policy import PolicyConfig


class Distribution(Protocol):
    params: int
    """K, numbers per asset that the actor gives."""
    action_dtype: torch.dtype
    shares: tuple[str, ...]
    """Names of the P parts of the weights' range whose frequencies are logged; see ``share``."""
    greatest_entropy: float
    """Of one asset, in nats: that of choosing at random."""
    collapsed_entropy: float
    """Of one asset: below it hardly anything is left to explore (guessed)."""

    def sample(self, params_NAK: Tensor, uniform_NA: Tensor) -> Tensor:
        """Actions [N, A] from numbers in [0, 1), float64."""

    def mode(self, params_NAK: Tensor) -> Tensor:
        """The deterministic action [N, A]."""

    def weights(self, action_NA: Tensor) -> Tensor:
        """Target weights [N, A] float64."""

    def share(self, action_NA: Tensor) -> Tensor:
        """[N, A] int64: in which of ``shares`` an action lies."""

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Of the joint action: params [..., A, K], action [..., A]; both [...] float32, in nats."""


def build_distribution(config: PolicyConfig) -> Distribution:
    return Discrete(config.positions)


class Discrete:
    """A categorical choice out of a grid of target weights; K logits per asset."""

    action_dtype = torch.int64

    def __init__(self, positions: tuple[float, ...]) -> None:
        self.params = len(positions)
        self.shares = tuple(f"{weight:g}" for weight in positions)
        self.greatest_entropy = math.log(len(positions))
        self.collapsed_entropy = 0.02 * self.greatest_entropy
        self._grid_P = torch.tensor(positions, dtype=torch.float64)

    def sample(self, params_NAK: Tensor, uniform_NA: Tensor) -> Tensor:
        cumulative_NA = torch.zeros_like(uniform_NA)
        action_NA = torch.zeros_like(uniform_NA, dtype=torch.int64)
        # No cumsum: nondeterministic on CUDA.
        for probability_NA in params_NAK.double().softmax(-1).unbind(-1)[:-1]:
            cumulative_NA = cumulative_NA + probability_NA
            action_NA = action_NA + (uniform_NA >= cumulative_NA)
        return action_NA

    def mode(self, params_NAK: Tensor) -> Tensor:
        return params_NAK.argmax(-1)

    def weights(self, action_NA: Tensor) -> Tensor:
        self._grid_P = self._grid_P.to(action_NA.device)
        return self._grid_P[action_NA]

    def share(self, action_NA: Tensor) -> Tensor:
        return action_NA

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        log_p = params.log_softmax(-1)
        chosen = log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).sum(-1)
        return chosen, entropy
