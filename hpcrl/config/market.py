"""Which staged data set to read, and how to cut it."""

from __future__ import annotations

from pydantic import model_validator

from hpcrl.config.base import Section


class MarketConfig(Section):
    path: str = "data/market.h5"
    """HDF5 file made by ``hpcrl stage``."""
    symbols: tuple[str, ...] = ()
    """Symbols to use; empty: all of the file, in its order."""
    features: tuple[str, ...] = ()
    """Features to use; empty: all of the file, in its order."""
    train_fraction: float = 0.70
    validation_fraction: float = 0.15
    """The rest is the sealed test split."""

    @model_validator(mode="after")
    def _fractions(self) -> MarketConfig:
        if not 0 < self.train_fraction < 1 or self.validation_fraction < 0:
            raise ValueError("train_fraction must lie in (0, 1) and validation_fraction must be >= 0")
        if self.train_fraction + self.validation_fraction >= 1:
            raise ValueError(
                f"train_fraction + validation_fraction = {self.train_fraction + self.validation_fraction:g} "
                "leaves no test split; their sum must be below 1"
            )
        return self
