"""PPO on sequences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hpcrl.config.base import Mistake, Section
from hpcrl.config.divisors import divisors, nearest


class LearnConfig(Section):
    rollout: int = Field(512, ge=1, le=1_000_000)
    """Env steps per environment and epoch."""
    sequence_length: int = Field(256, ge=1, le=1_000_000)
    """Steps of one learnt chunk; divides the rollout, a multiple of policy.window."""
    batch_size: int = Field(256, ge=1, le=1_000_000_000)
    """Env steps per minibatch and rank; a multiple of sequence_length."""
    ppo_epochs: int = Field(4, ge=1, le=100)
    lr: float = Field(3e-4, gt=0, le=1)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """linear, cosine: decays to lr x lr_final_fraction at train.epochs."""
    lr_final_fraction: float = Field(0.0, ge=0, le=1)
    warmup_epochs: int = Field(0, ge=0, le=1_000_000_000)
    gamma: float = Field(0.99, ge=0, lt=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip_param: float = Field(0.2, gt=0, lt=10)
    value_clip: float | None = Field(None, gt=0)
    """Clip range of the value loss in units of scaled return; null: no clipping."""
    value_coef: float = Field(0.5, ge=0)
    entropy_coef: float = Field(0.003, ge=0)
    max_grad_norm: float = Field(0.5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_eps: float = Field(1e-5, gt=0)
    target_kl: float | None = Field(None, gt=0)
    """Stop this update's remaining PPO epochs once approximate KL exceeds it; null: never."""

    @model_validator(mode="after")
    def _chunks(self) -> LearnConfig:
        if self.rollout % self.sequence_length:
            raise Mistake(
                f"sequence_length = {self.sequence_length} must divide rollout = {self.rollout}; "
                f"nearest that do: {nearest(divisors(self.rollout), self.sequence_length)}",
                "sequence_length",
                "rollout",
            )
        return self
