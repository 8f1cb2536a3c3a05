"""The policy's kind and size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hpcrl.config.base import Mistake, Section


def ascending(value: tuple[float, ...]) -> tuple[float, ...]:
    """A grid of target weights, if it is one; else Mistake."""
    if len(value) < 2 or len(set(value)) != len(value) or list(value) != sorted(value):
        raise Mistake("at least two different weights are needed, ascending")
    return value


class PolicyConfig(Section):
    model_type: Literal["transformer", "lightweight"] = "transformer"
    """lightweight: a recurrent net of at most a tenth of the transformer's parameters (half the width and
    layers); of ``window`` and ``layers`` it takes how much history is kept, ``heads`` and
    ``feedforward_mult`` only size the transformer that it is measured against."""
    d_model: int = Field(256, ge=8, le=8192)
    layers: int = Field(4, ge=1, le=64)
    heads: int = Field(4, ge=1, le=4096)
    window: int = Field(64, ge=2, le=2048)
    """Tokens that one layer attends to, its own included; L layers see 1 + L (window - 1) bars."""
    feedforward_mult: int = Field(4, ge=1, le=16)
    head: Literal["discrete", "continuous"] = "discrete"
    """Per asset. discrete: a choice out of ``positions``; continuous: any weight within the bounds."""
    positions: tuple[float, ...] = (-1.0, 0.0, 1.0)
    """Grid of target weights per asset among which the discrete head chooses."""
    weight_low: float = Field(-1.0, ge=-100, le=100)
    """Bounds of the continuous head's target weight per asset (0: no shorts)."""
    weight_high: float = Field(1.0, ge=-100, le=100)

    @field_validator("positions")
    @classmethod
    def _grid(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return ascending(value)

    @model_validator(mode="after")
    def _heads(self) -> PolicyConfig:
        if self.model_type == "transformer" and self.d_model % (2 * self.heads):
            raise Mistake(
                f"d_model = {self.d_model} must be a multiple of 2 x heads = {2 * self.heads} (rotary pairs)",
                "d_model",
                "heads",
            )
        return self

    @model_validator(mode="after")
    def _bounds(self) -> PolicyConfig:
        if self.weight_low >= self.weight_high:
            raise Mistake(
                f"weight_low = {self.weight_low:g} must lie below weight_high = {self.weight_high:g}",
                "weight_low",
                "weight_high",
            )
        return self

    @property
    def recurrent_layers(self) -> int:
        """Of model_type lightweight."""
        return max(1, self.layers // 2)

    @property
    def history_tokens(self) -> int:
        """Tokens that determine a rollout's first memory: L (W - 1)."""
        return self.layers * (self.window - 1)

    @property
    def padded_history(self) -> int:
        """``history_tokens`` rounded up to a multiple of the window."""
        return -(-self.history_tokens // self.window) * self.window
