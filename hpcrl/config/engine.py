"""DeepSpeed: precision and ZeRO stage. The engine's own dictionary is computed from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hpcrl.config.base import Mistake, Section


class EngineConfig(Section):
    precision: Literal["bf16", "fp32"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is a GPU."""
    bucket_elements: int = Field(25_000_000, ge=1000, le=10_000_000_000)
    """Elements of a communication bucket."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, and compute the layer again there: much less memory
    in updates, which take about a third longer. Results are the same, bit for bit."""

    @model_validator(mode="after")
    def _stage(self) -> EngineConfig:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise Mistake(
                "zero_stage = 0 with precision = bf16 trains wrongly (a phantom optimiser step, loss off by "
                "3e-2); use zero_stage = 1, or precision = fp32",
                "precision",
                "zero_stage",
            )
        return self
