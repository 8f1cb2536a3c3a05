"""How any source's bars are read and judged; refuses what contradicts itself before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hpcrl.market.bars import ACTIONS
from hpcrl.market.clean import check_timezone
from hpcrl.market.features import FEATURES
from hpcrl.market.files import REQUIRED
from hpcrl.types import HpcrlError

Adjustment = Literal["unknown", "unadjusted", "splits", "splits_dividends"]


@dataclass(frozen=True)
class StageOptions:
    """The same names as the command line's options."""

    calendar: str = "XNYS"
    bar_seconds: int = 300
    features: tuple[str, ...] = ()
    """Numeric columns of the source that become features, known at the bar's close."""
    computed: bool = True
    """Also compute ``features.FEATURES``; False: only ``features``."""
    timezone: str | None = None
    """Zone of stamps that carry none."""
    strict: bool = False
    """Refuse what would otherwise be dropped or flagged."""
    price_adjustment: Adjustment = "unknown"
    symbols: tuple[str, ...] = ()
    """Take these only, in this order; empty: all, by name."""
    coverage: bool = False
    """Also draw a picture of what is there, beside the file."""

    def check(self) -> None:
        if self.price_adjustment not in get_args(Adjustment):
            allowed = ", ".join(get_args(Adjustment))
            raise HpcrlError(f"price_adjustment is {self.price_adjustment!r}; allowed: {allowed}")
        if not self.computed and not self.features:
            raise HpcrlError("no features: with computed features off, name at least one column as a feature")
        for name in self.features:
            if (
                name in REQUIRED
                or name in ACTIONS
                or name.startswith("_")
                or (self.computed and name in FEATURES)
            ):
                raise HpcrlError(f"feature {name!r}: this name is taken; rename the column")
        check_once("feature", self.features)
        check_once("symbol", self.symbols)
        if self.timezone is not None:
            check_timezone(self.timezone)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (*(FEATURES if self.computed else ()), *self.features)


def check_once(kind: str, names: tuple[str, ...]) -> None:
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise HpcrlError(f"{kind} {doubled} is given twice")
