"""The policy: tokens in, a distribution's numbers and values out, by step or by sequence."""

from __future__ import annotations

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy.base import Player, Policy
from hpcrl.policy.lightweight import LightweightPolicy
from hpcrl.policy.transformer import TransformerPolicy

__all__ = ["Player", "Policy", "build_policy"]


def build_policy(config: PolicyConfig, n_entries: int, n_assets: int) -> Policy:
    """A fresh policy under the caller's torch seed."""
    kind = {"transformer": TransformerPolicy, "lightweight": LightweightPolicy}[config.model_type]
    return kind(config, n_entries, n_assets)
