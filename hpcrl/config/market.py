"""Which staged data set to read, and how to cut it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

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
    train_between: tuple[datetime, ...] = ()
    """[from, before], UTC where no zone is said: bars that start there, instead of the fractions."""
    validation_between: tuple[datetime, ...] = ()
    """Goes with train_between; empty: no validation split. The splits do not overlap; bars between them (at
    least those that are purged) belong to none."""
    test_between: tuple[datetime, ...] = ()
    """Goes with train_between."""

    @field_validator("train_between", "validation_between", "test_between")
    @classmethod
    def _times(cls, value: tuple[datetime, ...]) -> tuple[datetime, ...]:
        """In UTC, so that equal times are equal configs."""
        if len(value) not in (0, 2):
            raise Mistake(f"two times are needed, [from, before]; here are {len(value)}")
        try:
            found = tuple(each.astimezone(UTC) if each.tzinfo else each.replace(tzinfo=UTC) for each in value)
        except OverflowError:
            raise Mistake("a time is out of range: years 1 to 9999") from None
        if found and found[0] >= found[1]:
            raise Mistake(f"{found[0].isoformat()} is not before {found[1].isoformat()}")
        return found

    @model_validator(mode="after")
    def _in_turn(self) -> MarketConfig:
        names = ("train_between", "validation_between", "test_between")
        given = [(name, getattr(self, name)) for name in names if getattr(self, name)]
        if given and not (self.train_between and self.test_between):
            missing = "train_between" if not self.train_between else "test_between"
            raise Mistake(
                f"{given[0][0]} goes with {missing}, which is empty: give both times of both", missing
            )
        for (one, before), (other, after) in itertools.pairwise(given):
            if before[1] > after[0]:
                raise Mistake(
                    f"{one} ends {before[1].isoformat()}, after {other} begins ({after[0].isoformat()}): "
                    "the splits follow each other in time",
                    one,
                    other,
                )
        return self

    @property
    def between(self) -> dict[str, tuple[int, int]]:
        """Seconds [from, before) by split, as far as they are given."""
        found = {
            "train": self.train_between,
            "validation": self.validation_between,
            "test": self.test_between,
        }
        return {
            name: (int(value[0].timestamp()), int(value[1].timestamp()))
            for name, value in found.items()
            if value
        }

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
