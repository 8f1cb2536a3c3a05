"""The policy's kind and size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hpcrl.config.base import Mistake, Section


class PolicyConfig(Section):
    model_type: Literal["transformer"] = "transformer"
    d_model: int = Field(256, ge=8, le=8192)
    layers: int = Field(4, ge=1, le=64)
    heads: int = Field(4, ge=1, le=4096)
    window: int = Field(64, ge=2, le=2048)
    """Tokens that one layer attends to, its own included; L layers see 1 + L (window - 1) bars."""
    feedforward_mult: int = Field(4, ge=1, le=16)
    positions: tuple[float, ...] = (-1.0, 0.0, 1.0)
    """Grid of target weights per asset among which the discrete head chooses."""

    @field_validator("positions")
    @classmethod
    def _grid(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2 or len(set(value)) != len(value) or list(value) != sorted(value):
            raise Mistake("at least two different weights are needed, ascending")
        return value

    @model_validator(mode="after")
    def _heads(self) -> PolicyConfig:
        if self.d_model % (2 * self.heads):
            raise Mistake(
                f"d_model = {self.d_model} must be a multiple of 2 x heads = {2 * self.heads} (rotary pairs)",
                "d_model",
                "heads",
            )
        return self

    @property
    def history_tokens(self) -> int:
        """Tokens that determine the cache: L (W - 1)."""
        return self.layers * (self.window - 1)

    @property
    def padded_history(self) -> int:
        """``history_tokens`` rounded up to a multiple of the window."""
        return -(-self.history_tokens // self.window) * self.window
