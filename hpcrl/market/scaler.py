"""Centring and scaling of features, fitted on a run's own training rows and kept in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpcrl.types import HpcrlError, RunFailed

if TYPE_CHECKING:
    from hpcrl.market.dataset import Market


@dataclass(frozen=True)
class Scaler:
    """(feature - mean) / std in float32, clipped to +-``clip`` (a guess)."""

    feature_names: tuple[str, ...]
    mean_F: np.ndarray  # float32
    std_F: np.ndarray  # float32, > 0
    clip: float = 8.0

    def apply(self, feature: np.ndarray) -> np.ndarray:
        """Scaled float32 of the same shape [..., F]. float32 throughout, as in an exported graph."""
        if feature.shape[-1] != len(self.feature_names):
            raise ValueError(
                f"last axis is {feature.shape[-1]}, the scaler has {len(self.feature_names)} features"
            )
        scaled = feature.astype(np.float32)
        scaled -= self.mean_F
        scaled /= self.std_F
        return np.clip(scaled, -self.clip, self.clip, out=scaled)

    def state(self) -> dict[str, Any]:
        """Tensors and primitives only, so that it loads with ``weights_only=True``."""
        return {
            "feature_names": list(self.feature_names),
            "mean": torch.from_numpy(self.mean_F.copy()),
            "std": torch.from_numpy(self.std_F.copy()),
            "clip": float(self.clip),
        }

    @staticmethod
    def from_state(state: dict[str, Any]) -> Scaler:
        """The scaler of a checkpoint. RunFailed if the state is not one."""
        try:
            return Scaler(
                tuple(state["feature_names"]),
                state["mean"].numpy(),
                state["std"].numpy(),
                float(state["clip"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RunFailed(f"the checkpoint's feature scaler is incomplete: {error!r}") from None


def identity_scaler(feature_names: tuple[str, ...]) -> Scaler:
    """Leaves features as they are: for what scales them itself, as an exported policy does."""
    zero_F = np.zeros(len(feature_names), dtype=np.float32)
    return Scaler(feature_names, zero_F, zero_F + 1, clip=float("inf"))


def fit_scaler(market: Market, lo: int, hi: int) -> Scaler:
    """Mean and deviation (ddof 0) of every feature over the present rows of [lo, hi) after burn-in.

    A feature without any spread gets deviation 1. HpcrlError if [lo, hi) holds no such row.
    """
    row_B = np.arange(lo, hi)[:, None]
    used_BS = market.present_BS[lo:hi] & (row_B >= market.first_bar_S) & (row_B <= market.last_bar_S)
    if not used_BS.any():
        raise HpcrlError(
            f"no present bar after burn-in in rows {lo} to {hi}: the feature scaler has nothing to fit"
        )
    mean, std = [], []
    for feature in range(len(market.feature_names)):
        value = market.feature_BSF[lo:hi, :, feature][used_BS].astype(np.float64)
        mean.append(value.mean())
        # Below float32's resolution the spread is rounding noise.
        std.append(value.std() if value.std() > 1e-6 * max(abs(mean[-1]), 1e-6) else 1.0)
    return Scaler(market.feature_names, np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32))
