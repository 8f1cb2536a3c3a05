"""A population: who takes part, how often members are compared, and what may change.

Used by ``hpcrl pbt`` and ``hpcrl submit --pbt``; a plain run has the section and makes nothing of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hpcrl.config.base import Mistake, Section
from hpcrl.config.env import RewardWeights

MIN_WINDOWS = 8
"""In each half: fewer make no t-test worth the name."""


class Hyperparameter(Section):
    """Hard bounds of one key, and the scale on which it moves."""

    low: float
    high: float
    scale: Literal["linear", "log", "one_minus"] = "linear"
    """log: drawn log-uniformly. one_minus: the same for 1 - value, as for a discount. linear: uniformly."""

    @model_validator(mode="after")
    def _bounds(self) -> Hyperparameter:
        if not self.low < self.high:
            raise Mistake(f"low = {self.low:g} must be below high = {self.high:g}", "low", "high")
        if self.scale == "log" and self.low <= 0:
            raise Mistake(f"low = {self.low:g}: a log scale needs bounds above 0", "low", "scale")
        if self.scale == "one_minus" and self.high >= 1:
            raise Mistake(f"high = {self.high:g}: one_minus needs bounds below 1", "high", "scale")
        return self


_LEARN = (
    "lr", "gamma", "gae_lambda", "clip_param", "value_clip", "value_coef", "entropy_coef", "target_kl",
    "ppo_epochs",
)  # fmt: skip
_REWARDS = (*RewardWeights.model_fields, "risk_aversion", "crra_gamma", "vol_target")
CHANGEABLE = (*(f"learn.{name}" for name in _LEARN), *(f"env.rewards.{name}" for name in _REWARDS))
"""What a run reads anew in each epoch, so that it may change while it trains."""
SPACE = {
    "learn.lr": Hyperparameter(low=1e-5, high=3e-3, scale="log"),
    "learn.gamma": Hyperparameter(low=0.9, high=0.999, scale="one_minus"),
    "learn.clip_param": Hyperparameter(low=0.05, high=0.4),
}


class ObjectiveConfig(Section):
    """What members are compared by: the unshaped account on the validation split, window by window.

    Score of a window = log growth - drawdown_penalty x max(0, deepest drawdown in it - drawdown_limit).
    """

    drawdown_limit: float = Field(0.1, ge=0, le=1)
    drawdown_penalty: float = Field(1.0, ge=0)
    window_bars: int | None = Field(None, ge=2, le=10_000_000)
    """Length of a validation window in bars; null: each session is one."""


class PbtConfig(Section):
    dir: str = "checkpoints"
    """Folder in which the population's folder pbt_YYYYMMDD_HHMMSS is made."""
    members: int = Field(8, ge=2, le=1000)
    interval: int = Field(5, ge=1, le=1_000_000)
    """Epochs between two turns; one turn is one generation."""
    slice: int | None = Field(None, ge=1)
    """Generations after which a member gives its place to the next one; null: where there are fewer places
    than members, 2."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of members that are replaced, and share that they may be replaced by."""
    level: float = Field(0.05, gt=0, lt=1)
    """Of the one-sided paired t-test that a replacement has to pass."""
    explore: Literal["perturb", "resample"] = "perturb"
    """What a replaced member does with the donor's hyperparameters. resample: each is drawn anew with
    probability resample_probability, else perturbed."""
    factors: tuple[float, ...] = Field((0.8, 1.2), min_length=1)
    """perturb: times one of these (1 - value, on the scale one_minus)."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    spread_start: bool = True
    """Members but the first begin with hyperparameters drawn from the space; false: all with the config's."""
    keep_gb: float = Field(50.0, gt=0)
    """Room for the population's snapshots; beyond it old ones go even if a late member could use them."""
    space: dict[str, Hyperparameter] = Field(default_factory=lambda: dict(SPACE), min_length=1)
    """Dotted key of the config -> bounds; the keys that are named here, and no others."""
    objective: ObjectiveConfig = ObjectiveConfig()

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """--set gives nested keys, and perhaps one bound of a key whose others are the default's."""
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for key, each in _leaves(value):
            if key not in CHANGEABLE:
                close = difflib.get_close_matches(key, CHANGEABLE, n=1, cutoff=0.6)
                others = f"nearest: {close[0]}" if close else f"these may: {', '.join(CHANGEABLE)}"
                raise Mistake(f"{key} is no key that may change while a run trains; {others}")
            if not isinstance(each, dict):
                found[key] = each
                continue
            known = SPACE[key].model_dump() if key in SPACE else {}
            found[key] = known | (found[key] if isinstance(found.get(key), dict) else {}) | each
        return found

    @field_validator("factors")
    @classmethod
    def _factors(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        bad = [factor for factor in value if factor <= 0]
        if bad:
            raise Mistake(f"factors: {bad[0]:g} must be above 0")
        return value


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"learn": {"lr": {"low": 1}}} as "learn.lr", {"low": 1}; dotted keys as they are."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and not value.keys() & Hyperparameter.model_fields.keys():
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
