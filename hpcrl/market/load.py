"""The market that a configuration names, read from its staged file."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from hpcrl.config.market import MarketConfig
from hpcrl.market.bars import SymbolBars
from hpcrl.market.dataset import Market, assemble
from hpcrl.market.local_copy import local_copy
from hpcrl.market.store import read_store
from hpcrl.types import HpcrlError


def load_market(config: MarketConfig) -> Market:
    """The chosen symbols and features of ``config.path``. HpcrlError lists what the file has."""
    bars, names, columns, header = load_symbols(config)
    market = assemble(bars, names, columns, header, (config.train_fraction, config.validation_fraction))
    return replace(market, between=config.between)


def load_symbols(
    config: MarketConfig,
) -> tuple[list[SymbolBars], tuple[str, ...], list[int], dict[str, Any]]:
    """(chosen symbols as stored, names of the chosen features, their columns, header); as ``load_market``."""
    bars, header = read_store(local_copy(config.path) if config.local_copy == "auto" else config.path)
    symbols = _choose("symbol", config.symbols, list(bars), config.path)
    names = _choose("feature", config.features, header["feature_names"], config.path)
    columns = [header["feature_names"].index(name) for name in names]
    return [bars[symbol] for symbol in symbols], names, columns, header


def _choose(kind: str, wanted: tuple[str, ...], there: list[str], path: str) -> tuple[str, ...]:
    for name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise HpcrlError(f"{path}: no {kind} {name!r}{hint}; it has {', '.join(there)}")
    doubled = sorted({name for name in wanted if wanted.count(name) > 1})
    if doubled:
        raise HpcrlError(f"market.{kind}s names {', '.join(doubled)} more than once")
    return tuple(wanted or there)
