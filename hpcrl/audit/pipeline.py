"""What lies between a file's bars and what the agent sees and is paid, as functions that can be run again.

The audit knows a pipeline only from outside: it alters bars, runs the functions and looks at what comes out.
So the checks that judge a user's data and configuration judge any other pipeline too, planted leaks included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from hpcrl.config.env import EnvConfig
from hpcrl.config.root import Config
from hpcrl.env.simulator import Simulator
from hpcrl.market.align import align
from hpcrl.market.bars import ACTIONS, RawBars, SymbolBars
from hpcrl.market.calendar import Grid
from hpcrl.market.clean import PRICES
from hpcrl.market.dataset import Market, assemble
from hpcrl.market.features import FEATURES, definitions
from hpcrl.market.load import load_symbols
from hpcrl.market.scaler import Scaler, fit_scaler
from hpcrl.market.splits import Split
from hpcrl.market.tensors import MarketTensors


def restage(one: SymbolBars, names: tuple[str, ...], own: frozenset[str], bar_seconds: int) -> SymbolBars:
    """The bars of ``one`` staged again by the code that staged them: features computed, gaps filled.

    ``names``: its features; ``own``: those of them that are columns of the source, which are kept.
    """
    at = np.flatnonzero(one.present)
    table = {name: getattr(one, name)[at] for name in (*PRICES, "volume", *ACTIONS)}
    table |= {
        name: one.features[at, column].astype(np.float64) for column, name in enumerate(names) if name in own
    }
    kept = tuple(name for name in names if name in own)
    computed = len(kept) < len(names)
    grid = Grid(one.ts, one.session, one.session_time)
    again, _ = align(RawBars(one.symbol, one.ts[at], table), grid, bar_seconds, kept, computed)
    order = (*(FEATURES if computed else ()), *kept)
    return replace(again, features=again.features[:, [order.index(name) for name in names]])


@dataclass(frozen=True)
class Pipeline:
    """The functions as the product has them."""

    stage: Callable[[SymbolBars, tuple[str, ...], frozenset[str], int], SymbolBars] = restage
    split: Callable[[Market, Split, int], tuple[int, int]] = Market.split_range
    scaler: Callable[[Market, int, int], Scaler] = fit_scaler
    tensors: Callable[[Market, str, Scaler], MarketTensors] = Market.to
    simulator: Callable[..., Simulator] = Simulator


@dataclass(frozen=True, eq=False)
class Case:
    """What is audited: S symbols of one data set, F features, a configuration, and the pipeline."""

    bars: tuple[SymbolBars, ...]
    names: tuple[str, ...]
    own: frozenset[str]
    """Features that are columns of the source: known by their values only."""
    header: dict[str, Any]
    config: Config
    pipeline: Pipeline = field(default_factory=Pipeline)

    @property
    def bar_seconds(self) -> int:
        return int(self.header["bar_seconds"])

    @property
    def burn_in(self) -> int:
        return int(self.header["burn_in"])

    @property
    def fill_lag(self) -> int:
        return self.config.env.fill_lag

    def stage(self, one: SymbolBars) -> SymbolBars:
        return self.pipeline.stage(one, self.names, self.own, self.bar_seconds)

    @cached_property
    def staged(self) -> tuple[SymbolBars, ...]:
        """The bars staged again as they are."""
        return tuple(self.stage(one) for one in self.bars)

    def staged_as_is(self, one: SymbolBars) -> SymbolBars:
        """``one`` staged again; kept for the symbols of the data set, which every check asks for."""
        for mine, staged in zip(self.bars, self.staged, strict=True):
            if mine is one:
                return staged
        return self.stage(one)

    def assemble(self, bars: tuple[SymbolBars, ...]) -> Market:
        own = self.config.market
        fractions = (own.train_fraction, own.validation_fraction)
        market = assemble(list(bars), self.names, list(range(len(self.names))), self.header, fractions)
        return replace(market, between=own.between)

    @cached_property
    def market(self) -> Market:
        return self.assemble(self.bars)

    @cached_property
    def train_rows(self) -> tuple[int, int]:
        return self.pipeline.split(self.market, "train", self.fill_lag)

    @cached_property
    def scaler(self) -> Scaler:
        """Fitted as a run fits it. HpcrlError where the training split holds no row."""
        return self.pipeline.scaler(self.market, *self.train_rows)

    def env(self, market: Market) -> EnvConfig:
        """The configuration's, without the costs of symbols that a stretch of the data does not have."""
        env = self.config.env
        own = {name: cost for name, cost in env.costs.symbols.items() if name in market.symbols}
        return env.model_copy(update={"costs": env.costs.model_copy(update={"symbols": own})})

    def tensors(self, market: Market) -> MarketTensors:
        """``market`` as the simulator reads it, scaled by the run's scaler."""
        return self.pipeline.tensors(market, "cpu", self.scaler)


def load_case(config: Config, pipeline: Pipeline | None = None) -> Case:
    """The data set that ``config`` names. HpcrlError: no such file, symbol or feature, no usable rows."""
    bars, names, columns, header = load_symbols(config.market)
    told = header["feature_definitions"]
    own = frozenset(
        name for name in names if name not in FEATURES or told.get(name) == definitions((), (name,))[name]
    )
    chosen = tuple(replace(one, features=one.features[:, columns]) for one in bars)
    return Case(chosen, names, own, header, config, pipeline or Pipeline())
