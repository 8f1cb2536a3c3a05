"""What a Gymnasium environment can be told when it is made, and the market that it opens for it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from hpcrl.config.base import Mistake, Section
from hpcrl.config.env import EnvConfig
from hpcrl.config.explain import explain
from hpcrl.config.market import MarketConfig
from hpcrl.config.policy import ascending
from hpcrl.market.dataset import Market
from hpcrl.market.load import load_market
from hpcrl.market.scaler import Scaler, fit_scaler
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError


class Settings(Section):
    """Keywords of ``HpcrlTradingEnv`` and ``HpcrlVectorEnv``."""

    path: str
    """HDF5 file made by ``hpcrl stage``."""
    env: EnvConfig = EnvConfig()
    """Account, costs and rewards, also as a mapping: ``{"assets": "all", "costs": {"bps": 5}}``. Its
    envs_per_gpu and episode_rollouts belong to ``hpcrl train`` and are not read here."""
    market: MarketConfig = MarketConfig()
    """Symbols, features and fractions of the splits, also as a mapping; its path is ``path``."""
    split: Literal["train", "validation", "test"] = "train"
    """Bars that are played. Features are scaled as fitted on the train split, whichever is played."""
    episode_steps: int = Field(256, ge=1, le=100_000_000)
    """Bars after which an episode is truncated."""
    action: Literal["discrete", "continuous"] = "discrete"
    """discrete: an index into ``positions`` per asset; continuous: a number in [-1, 1] per asset."""
    positions: tuple[float, ...] = (-1.0, 0.0, 1.0)
    """Target weights (share of equity) among which a discrete action chooses."""
    weight_low: float = -1.0
    """Target weight of the continuous action -1."""
    weight_high: float = 1.0
    """Target weight of the continuous action 1; between them it is linear."""
    render_mode: Literal["rgb_array"] | None = None

    @field_validator("positions")
    @classmethod
    def _grid(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return ascending(value)

    @model_validator(mode="after")
    def _weights(self) -> Settings:
        if self.weight_low >= self.weight_high:
            raise Mistake(
                f"weight_low = {self.weight_low:g} must lie below weight_high = {self.weight_high:g}"
            )
        limit = self.env.max_leverage
        discrete = self.action == "discrete"
        for weight in self.positions if discrete else (self.weight_low, self.weight_high):
            if abs(weight) > limit:
                where = "positions" if discrete else "weight_low and weight_high"
                raise Mistake(f"{where}: a weight of {weight:g} is beyond env.max_leverage = {limit:g}")
        return self


def read_settings(path: str | Path | None, options: dict[str, Any]) -> Settings:
    """HpcrlError for a missing path, an unknown keyword or a value out of its bounds, by name."""
    name = "hpcrl/Trading-v0"
    if path is None:
        raise HpcrlError(f'{name}: path is missing; give the file of `hpcrl stage`, path="data/market.h5"')
    market = options.get("market") or {}
    if isinstance(market, MarketConfig):
        market = market.model_dump(exclude_unset=True)
    if isinstance(market, dict):
        if market.get("path", str(path)) != str(path):
            raise HpcrlError(f"{name}: path = {path} and market.path = {market['path']}; give one of them")
        market = {**market, "path": str(path)}
    try:
        return Settings.model_validate({**options, "path": str(path), "market": market})
    except ValidationError as error:
        raise HpcrlError(explain(error.errors(), (), name, Settings)) from None


@dataclass(frozen=True, eq=False)
class OpenMarket:
    market: Market
    scaler: Scaler  # fitted on the train split
    tensors: MarketTensors


_open: weakref.WeakValueDictionary[tuple, OpenMarket] = weakref.WeakValueDictionary()


def open_market(config: MarketConfig) -> OpenMarket:
    """The market on the CPU. Environments of one process share it as long as one of them lives."""
    try:
        stat = Path(config.path).stat()
    except OSError:
        load_market(config)  # says what is wrong
        raise
    key = (config.model_dump_json(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    found = _open.get(key)
    if found is None:
        market = load_market(config)
        scaler = fit_scaler(market, *market.split_range("train"))
        found = _open[key] = OpenMarket(market, scaler, market.to("cpu", scaler))
    return found
