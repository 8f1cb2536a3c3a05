"""The policy: tokens in, logits and values out, by step or by sequence."""

from __future__ import annotations

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy.transformer import TransformerPolicy


def build_policy(config: PolicyConfig, n_entries: int, n_assets: int) -> TransformerPolicy:
    """A fresh policy under the caller's torch seed."""
    return TransformerPolicy(config, n_entries, n_assets)
