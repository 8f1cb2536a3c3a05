"""Which staged data set to read, and how to cut it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hpcrl.config.base import Mistake, Section


class MarketConfig(Section):
    path: str = "data/market.h5"
    """HDF5 file made by ``hpcrl stage``."""
    symbols: tuple[str, ...] = ()
    """Symbols to use; empty: all of the file, in its order."""
    features: tuple[str, ...] = ()
    """Features to use; empty: all of the file, in its order."""
    local_copy: Literal["auto", "never"] = "auto"
    """auto: in a Slurm job with a local SLURM_TMPDIR or TMPDIR, read a checked copy of the file there."""
    train_fraction: float = Field(0.70, gt=0, lt=1)
    validation_fraction: float = Field(0.15, ge=0, lt=1)
    """The rest is the sealed test split."""

    @model_validator(mode="after")
    def _fractions(self) -> MarketConfig:
        if self.train_fraction + self.validation_fraction >= 1:
            raise Mistake(
                f"train_fraction + validation_fraction = {self.train_fraction:g} + "
                f"{self.validation_fraction:g} leaves no test split; their sum must be below 1",
                "train_fraction",
                "validation_fraction",
            )
        return self
