"""The clipped surrogate and its companions (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.config.learn import LearnConfig


@dataclass
class LossTerms:
    """``total`` is minimised; the rest are detached scalars for the log."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor
    max_log_ratio: Tensor


def ppo_loss(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    old_log_prob: Tensor,
    old_value: Tensor,
    advantage: Tensor,
    target: Tensor,
    config: LearnConfig,
) -> LossTerms:
    """All arguments [C, Q] float32; advantage is normalised, value and target in units of scaled return.

    approx_kl is the estimator (r - 1) - ln r, which is never negative (Schulman 2020).
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip_param, 1 + config.clip_param)
    policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    error = (value - target) ** 2
    if config.value_clip is not None:
        near = old_value + (value - old_value).clamp(-config.value_clip, config.value_clip)
        error = torch.maximum(error, (near - target) ** 2)
    value_loss = 0.5 * error.mean()
    entropy_mean = entropy.mean()
    total = policy + config.value_coef * value_loss - config.entropy_coef * entropy_mean
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > config.clip_param).float().mean()
    return LossTerms(
        total,
        policy.detach(),
        value_loss.detach(),
        entropy_mean.detach(),
        kl,
        clip_fraction,
        log_ratio.detach().abs().max(),
    )


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 - Var(target - value) / Var(target); 0 where the target is constant."""
    variance = target.double().var(unbiased=False)
    residual = (target - value).double().var(unbiased=False)
    return torch.where(variance > 0, 1 - residual / variance.clamp_min(1e-30), torch.zeros_like(variance))
