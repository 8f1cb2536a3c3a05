"""Distributions over the target weights of A independent assets, from an actor's P numbers per asset.

An action is what the learner needs to know of a choice: the index into a grid, or the number before the
squashing. ``weights`` turns it into target weights. Sampling is by inverse transform from uniform numbers of
a counter-based hash, so it holds no generator's state.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpcrl.config.policy import PolicyConfig

STD_RANGE = (0.05, 2.0)
"""Of the Gaussian before squashing (guessed). Narrower ones magnify bf16's rounding of the mean, which
differs between rollout and learner (a deviation of 0.03 moves a seventh of the ratios beyond a clip of 0.2,
measured). Wider ones only push the weights to both bounds, where entropy falls again and its quadrature errs
(by 2e-4 at 2, measured)."""
FIRST_STD = math.exp(-0.5)
"""A customary start: most of the weights' range is explored."""
NODES = 32
"""Of the Gauss-Hermite quadrature: errs by 6e-8 at a deviation of 1 (measured against 200,001 points)."""
SHARES = 5
"""Parts of the weights' range that are logged; odd, so that small weights of either sign are one part."""


class Distribution(Protocol):
    params: int
    """P, numbers per asset that the actor gives."""
    bias: tuple[float, ...]
    """Where an actor begins, P numbers."""
    action_dtype: torch.dtype
    shares: tuple[str, ...]
    """Names of the parts of the weights' range whose frequencies are logged; see ``share``."""
    greatest_entropy: float
    """Of one asset, in nats: that of choosing at random."""
    collapsed_entropy: float
    """Of one asset: below it hardly anything is left to explore (guessed)."""

    def sample(self, params_NAP: Tensor, uniform_NA: Tensor) -> Tensor:
        """Actions [N, A] from numbers in [0, 1), float64."""

    def mode(self, params_NAP: Tensor) -> Tensor:
        """The deterministic action [N, A]."""

    def weights(self, action_NA: Tensor) -> Tensor:
        """Target weights [N, A] float64."""

    def share(self, action_NA: Tensor) -> Tensor:
        """[N, A] int64: in which of ``shares`` an action lies."""

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Of the joint action: params [..., A, P], action [..., A]; both [...] float32, in nats."""


def build_distribution(config: PolicyConfig) -> Distribution:
    if config.head == "continuous":
        return Continuous(config.weight_low, config.weight_high)
    return Discrete(config.positions)


class Discrete:
    """A categorical choice out of a grid of target weights; P logits per asset."""

    action_dtype = torch.int64

    def __init__(self, positions: tuple[float, ...]) -> None:
        self.params = len(positions)
        self.bias = (0.0,) * self.params
        self.shares = tuple(f"{weight:g}" for weight in positions)
        self.greatest_entropy = math.log(len(positions))
        self.collapsed_entropy = 0.02 * self.greatest_entropy
        self._grid_P = torch.tensor(positions, dtype=torch.float64)

    def sample(self, params_NAP: Tensor, uniform_NA: Tensor) -> Tensor:
        cumulative_NA = torch.zeros_like(uniform_NA)
        action_NA = torch.zeros_like(uniform_NA, dtype=torch.int64)
        # No cumsum: nondeterministic on CUDA.
        for probability_NA in params_NAP.double().softmax(-1).unbind(-1)[:-1]:
            cumulative_NA = cumulative_NA + probability_NA
            action_NA = action_NA + (uniform_NA >= cumulative_NA)
        return action_NA

    def mode(self, params_NAP: Tensor) -> Tensor:
        return params_NAP.argmax(-1)

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


class Continuous:
    """A Gaussian squashed by tanh into [low, high] (Haarnoja et al. 2018, arXiv 1812.05905, appendix C).

        w = mid + half tanh(u),  u ~ N(m, s)
        ln p(w) = ln N(u; m, s) - ln(half (1 - tanh(u)^2))

    P = 2 numbers per asset: m, and the logit of where ln s lies within ``STD_RANGE``. The action is u: from w
    near a bound it could not be recovered. Entropy is that of w: H(u) + E[ln half (1 - tanh(u)^2)], the
    expectation by Gauss-Hermite quadrature.
    """

    params = 2
    action_dtype = torch.float32

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.half = 0.5 * (high - low)
        self._log_low, log_high = (math.log(std) for std in STD_RANGE)
        self._log_span = log_high - self._log_low
        first = (math.log(FIRST_STD) - self._log_low) / self._log_span
        self.bias: tuple[float, ...] = (0.0, math.log(first / (1 - first)))
        edges = np.linspace(low, high, SHARES + 1)
        self.shares = tuple(f"{a:g}..{b:g}" for a, b in pairwise(edges))
        self.greatest_entropy = math.log(high - low)
        self.collapsed_entropy = math.log(0.12 * (high - low))  # a deviation near the least, 0.058
        node, weight = np.polynomial.hermite_e.hermegauss(NODES)
        self._nodes = torch.tensor(node, dtype=torch.float32)
        self._node_weights = torch.tensor(weight / weight.sum(), dtype=torch.float32)

    def _mean_and_log_std(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, place = params.unbind(-1)
        return mean, self._log_low + self._log_span * place.sigmoid()

    def sample(self, params_NAP: Tensor, uniform_NA: Tensor) -> Tensor:
        mean_NA, log_std_NA = self._mean_and_log_std(params_NAP.double())
        # 0 would be minus infinity; 1 - 2^-53 is the greatest that the hash gives.
        z_NA = torch.special.ndtri(uniform_NA.clamp_min(2.0**-54))
        return (mean_NA + log_std_NA.exp() * z_NA).float()

    def mode(self, params_NAP: Tensor) -> Tensor:
        """The squashed mean, which is the median of the weight."""
        return params_NAP[..., 0]

    def weights(self, action_NA: Tensor) -> Tensor:
        squashed_NA = action_NA.double().tanh()
        # Rounding alone could leave the bounds, by one unit in the last place.
        return (self.low + self.half * (1 + squashed_NA)).clamp(self.low, self.high)

    def share(self, action_NA: Tensor) -> Tensor:
        return (0.5 * SHARES * (1 + action_NA.double().tanh())).long().clamp_max(SHARES - 1)

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._mean_and_log_std(params)
        std = log_std.exp()
        gauss = -0.5 * ((action - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = gauss - math.log(self.half) - _log_slope(action)
        self._nodes, self._node_weights = self._nodes.to(mean.device), self._node_weights.to(mean.device)
        node, weight = self._nodes.to(mean.dtype), self._node_weights.to(mean.dtype)
        slope = _log_slope(mean.unsqueeze(-1) + std.unsqueeze(-1) * node) @ weight
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e) + math.log(self.half) + slope
        return log_prob.sum(-1), entropy.sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """ln(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2u)), which does not round to ln 0 for large |u|."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))
