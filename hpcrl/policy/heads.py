"""Float32 heads on a trunk of any precision, and the discrete distribution over target positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """Computes in float32 even where DeepSpeed has cast the parameters to bf16.

    The upcast lies inside ``forward``, so that ZeRO-3's hooks have gathered the weight by then.
    """

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)


class RMSNorm(nn.Module):
    """x / rms(x) x weight, in float32 inside (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def choose(logits_NAP: Tensor, uniform_NA: Tensor) -> Tensor:
    """Sample positions by inverse transform from uniform numbers in [0, 1); [N, A] int64.

    The uniform numbers come from a counter-based hash, so sampling holds no generator's state.
    """
    cumulative_NA = torch.zeros_like(uniform_NA)
    action_NA = torch.zeros_like(uniform_NA, dtype=torch.int64)
    for share_NA in logits_NAP.double().softmax(-1).unbind(-1)[:-1]:  # no cumsum: nondeterministic on CUDA
        cumulative_NA = cumulative_NA + share_NA
        action_NA = action_NA + (uniform_NA >= cumulative_NA)
    return action_NA


def log_prob_and_entropy(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Of the joint action over A independent assets: logits [..., A, P], action [..., A]."""
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).sum(-1)
    return chosen, entropy
