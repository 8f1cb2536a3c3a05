"""Rules: strategies that are written down, not trained, through the simulator that trains the agent.

    from hpcrl.evaluate.rules import MovingAverageCross, play_rule
    played = play_rule(MovingAverageCross(10, 40), "data/market.h5", env={"costs": {"bps": 2}})
    print(played.table())

A rule gives the target weights of whole columns at once (``ColumnRule``: thousands of parameter sets side by
side), or it is asked bar by bar (``Strategy`` of ``backtest``, which may look at its own positions). A table
of weights is a rule too. Costs, fills, lag and sizing are the run's; decisions see bars up to t and fill at
the open of t + 1, or where ``env.fill_lag`` says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import Tensor

from hpcrl.config.env import HINDSIGHT, EnvConfig
from hpcrl.config.explain import explain
from hpcrl.env.bars import Rules
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.backtest import Plan, Strategy, make_plan, play_plan
from hpcrl.evaluate.baselines import Order
from hpcrl.evaluate.columns import Columns, play_columns
from hpcrl.evaluate.prices import Prices, moving_average, read_prices, unsplit
from hpcrl.evaluate.sealed import open_sealed
from hpcrl.evaluate.track import Track, side_by_side, summary
from hpcrl.market.dataset import Market
from hpcrl.types import HpcrlError

TIE = 1e-12
"""Averages that differ by a smaller share of the price are equal: float noise makes no cross."""
SPLITS = ("train", "validation", "test", "all")
SEALED = ("test", "all")
"""Of a staged market; its default is train."""


@runtime_checkable
class ColumnRule(Protocol):
    """Target weights of every bar from prices alone."""

    @property
    def name(self) -> str:
        """Of its columns in tables."""

    def targets(self, prices: Prices, assets: int) -> Tensor | np.ndarray:
        """[B, S]: the weight of each symbol decided at the close of bar b from bars up to b; NaN gives no
        order, and what is held stays. ``assets``: how many an account holds, 1 or S."""


class MovingAverageCross:
    """Long while the simple moving average of the last ``fast`` closes lies above that of the last ``slow``,
    else flat; flat too before ``slow`` bars are known.

    Trades at the crossings alone: in between it asks for what it holds. As a ``Strategy`` play it with
    ``hold_config``, as ``BuyAndHold``: else a fully invested account that has paid its costs is scaled back
    every bar.
    """

    def __init__(self, fast: int = 10, slow: int = 40, weight: float = 1.0) -> None:
        """``weight``: share of equity when long, of an account over several assets their sum. HpcrlError
        unless 1 <= fast < slow."""
        if not 1 <= fast < slow:
            raise HpcrlError(f"moving averages over {fast} and {slow} bars: 1 <= fast < slow is needed")
        self.fast, self.slow, self.weight = fast, slow, weight

    @property
    def name(self) -> str:
        return f"ma_{self.fast}_{self.slow}"

    def targets(self, prices: Prices, assets: int) -> Tensor:
        long_BS = self._long(prices.average)
        crossed_BS = long_BS.clone()
        crossed_BS[1:] ^= long_BS[:-1]
        weight_BS = long_BS.to(torch.float64) * (self.weight / assets)
        return weight_BS.masked_fill_(~crossed_BS, float("nan"))

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        price_BS = unsplit(simulator.market)
        self._order = Order(simulator)
        self._long_BS = self._long(lambda bars: moving_average(price_BS, bars))
        self._before_NA = torch.zeros_like(simulator.symbol_NA, dtype=torch.bool)

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        long_NA = self._long_BS[simulator.bar_N[:, None], simulator.symbol_NA]
        share = self.weight / simulator.n_assets
        self._order.renew(share * long_NA.to(torch.float64), long_NA != self._before_NA)
        self._before_NA = long_NA
        return self._order.weights(position_NA)

    def _long(self, average: Callable[[int], Tensor]) -> Tensor:
        return average(self.fast) > average(self.slow) * (1 + TIE)


@dataclass(frozen=True, eq=False)
class Played:
    """N columns over T steps; step t ends in the bar of ``ts_T[t]``."""

    names: tuple[str, ...]  # of the columns
    symbols: tuple[str, ...]  # what each column trades; "all" where it is an account over all
    track: Track
    ts_T: np.ndarray  # int64, unix seconds
    session_T: np.ndarray
    periods: int  # sessions of a year
    flows: bool  # False: of the track only equity and bankruptcies are known

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """Every metric of ``evaluate`` by name, [N]; without flows those that equity alone decides."""
        if self.flows:
            return summary(self.track, self.session_T, self.periods)
        from hpcrl.evaluate.metrics import performance

        return performance(self.track.equity_TN, self.session_T, self.periods)

    def table(self) -> pd.DataFrame:
        """One row per column: its name, its symbol, its metrics."""
        return pd.DataFrame({"rule": self.names, "symbol": self.symbols} | self.metrics)


def play_rule(
    rule: ColumnRule | Sequence[ColumnRule] | Callable[[], Strategy] | np.ndarray | pd.DataFrame,
    market: str | Path | Market | Mapping[str, Any] | pd.DataFrame,
    *,
    env: EnvConfig | Mapping[str, Any] | None = None,
    split: str | None = None,
    symbols: Sequence[str] = (),
    trades: Sequence[str] = (),
    flows: bool = True,
    device: str = "cpu",
) -> Played:
    """Play rules over a market, each column an account of its own with ``env.initial_cash``.

    ``rule``: a ``ColumnRule`` or several (columns: each rule on each symbol, rule by rule); or what makes a
    ``Strategy`` (called once per group of accounts); or a table of weights [B, N] with a row for every bar of
    the market, decided at its close, NaN for no order (a data frame's column names name them). With
    ``env.assets`` "all" a column is one account over all symbols, and a table is [B, N, S].
    ``market``: a staged file, a ``Market``, or arrays (see ``prices``); ``symbols``: those of a file to use,
    or the names of the arrays'. ``trades``: the symbol of each column of a table; needed unless there is one
    symbol, or a column for each. ``env``: costs and account, as in a config's ``env`` section. ``split``:
    train (default of a staged market), validation, test, or all (default, and all there is, of arrays).
    Of a file's sealed test bars each opening is logged beside it.
    ``flows``: False records equity alone, about twice as fast and in a tenth of the memory.

    HpcrlError: bad bars, settings or weights, by name.
    """
    settings = _settings(env)
    prices = read_prices(market, symbols=symbols, device=device)
    plan = make_plan(prices.tensors, settings, *_range(prices, split, settings.fill_lag))
    file = Path(market) if isinstance(market, str | Path) else None
    if isinstance(rule, type) or (callable(rule) and not isinstance(rule, ColumnRule)):
        _open(file, prices, split, (getattr(rule, "__name__", "rule"),))
        track = play_plan(prices.tensors, settings, plan, lambda group: rule())
        symbol_NA = np.concatenate([group.symbol_nA for group in plan.groups])
        names, flows = (getattr(rule, "__name__", "rule"),) * len(symbol_NA), True
    else:
        joint = settings.assets == "all"
        table = _as_table(rule, prices, joint, trades)
        names, symbol_NA = table.names, table.symbol_NA
        _open(file, prices, split, names if isinstance(rule, ColumnRule | Sequence) else ("weights",))
        track = _play_table(table, prices, settings, plan, flows)
    traded = (
        ("all",) * len(symbol_NA)
        if symbol_NA.shape[1] > 1
        else tuple(prices.symbols[s] for s in symbol_NA[:, 0])
    )
    at = slice(plan.lo + 1, plan.hi)
    ts_T = prices.tensors.ts_B[at].cpu().numpy()
    return Played(names, traded, track, ts_T, prices.session_B[at], prices.periods, flows)


def _settings(env: EnvConfig | Mapping[str, Any] | None) -> EnvConfig:
    if isinstance(env, EnvConfig):
        return env
    try:
        return EnvConfig.model_validate(dict(env or {}))
    except ValidationError as error:
        raise HpcrlError(explain(error.errors(), (), "env", EnvConfig)) from None


def _range(prices: Prices, split: str | None, fill_lag: int) -> tuple[int, int]:
    if fill_lag == 0:
        warnings.warn(HINDSIGHT, stacklevel=3)
    split = split or ("all" if prices.market is None else "train")
    if split not in SPLITS:
        raise HpcrlError(f"split {split!r} is not known; use one of {', '.join(SPLITS)}")
    if prices.market is None:
        if split != "all":
            raise HpcrlError(f"split {split!r}: bars given as arrays are not split; cut the arrays")
        return 0, prices.tensors.n_bars
    if split in SEALED:
        said = (
            f"split {split!r} reads the sealed test bars: what is chosen after looking is not tested by them"
        )
        warnings.warn(said, stacklevel=3)
    if split == "all":
        return 0, prices.tensors.n_bars
    return prices.market.split_range(split, fill_lag)  # type: ignore[arg-type]


def _open(file: Path | None, prices: Prices, split: str | None, names: Sequence[str]) -> None:
    """Log that sealed bars are read, beside their file; a market in memory does not tell where it lies."""
    if file is None or prices.market is None or split not in SEALED:
        return
    rules = list(dict.fromkeys(names))
    name = f"play_rule: {rules[0]}" + (f" and {len(rules) - 1} more" if len(rules) > 1 else "")
    _, warning = open_sealed(file.resolve().parent, prices.market.sha256, name, epoch=0)
    if warning:
        warnings.warn(warning, stacklevel=3)


@dataclass(frozen=True, eq=False)
class _Table:
    names: tuple[str, ...]
    symbol_NA: np.ndarray
    weights: Callable[[np.ndarray], np.ndarray]  # columns -> [B, n, A]


def _as_table(rule: Any, prices: Prices, joint: bool, trades: Sequence[str]) -> _Table:
    count = len(prices.symbols)
    if isinstance(rule, np.ndarray | pd.DataFrame | Tensor):
        return _given_table(rule, prices, joint, trades)
    rules = [rule] if isinstance(rule, ColumnRule) else list(rule)
    for each in rules:
        if not isinstance(each, ColumnRule):
            raise HpcrlError(f"{each!r} is no rule: it needs a name and targets(prices, assets)")
    if not rules:
        raise HpcrlError("there is no rule to play")
    if trades:
        raise HpcrlError("trades belongs to a table of weights: a rule plays every symbol")

    def targets(number: int) -> np.ndarray:
        weight = rules[number].targets(prices, count if joint else 1)
        weight_BS = weight.cpu().numpy() if isinstance(weight, Tensor) else np.asarray(weight)
        shape = (prices.tensors.n_bars, count)
        if weight_BS.shape != shape:
            said = f"targets are {weight_BS.shape}; [bars, symbols] = {shape} is needed"
            raise HpcrlError(f"rule {rules[number].name}: {said}")
        return weight_BS

    def weights(at: np.ndarray) -> np.ndarray:
        if joint:
            return np.stack([targets(n) for n in at], axis=1)
        found = np.empty((prices.tensors.n_bars, len(at), 1))
        for number in np.unique(at // count):
            own = at // count == number
            found[:, own, 0] = targets(number)[:, at[own] % count]
        return found

    if joint:
        symbol_NA = np.tile(np.arange(count), (len(rules), 1))
        return _Table(tuple(each.name for each in rules), symbol_NA, weights)
    names = tuple(each.name for each in rules for _ in range(count))
    return _Table(names, np.tile(np.arange(count), len(rules))[:, None], weights)


def _given_table(rule: Any, prices: Prices, joint: bool, trades: Sequence[str]) -> _Table:
    array = rule.cpu().numpy() if isinstance(rule, Tensor) else np.asarray(rule)
    count, bars = len(prices.symbols), prices.tensors.n_bars
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise HpcrlError(f"weights are {array.dtype}; numbers are needed")
    wanted = (bars, "columns", count) if joint else (bars, "columns")
    if array.ndim != len(wanted) or len(array) != bars or (joint and array.shape[2] != count):
        said = ", ".join(str(size) for size in wanted)
        raise HpcrlError(f"weights are {array.shape}; [{said}] is needed, a row for every bar of the market")
    n = array.shape[1]
    if not n:
        raise HpcrlError("weights have no column")
    frame = isinstance(rule, pd.DataFrame)
    names = tuple(str(name) for name in rule.columns) if frame else tuple(str(i) for i in range(n))
    if joint:
        return _Table(names, np.tile(np.arange(count), (n, 1)), lambda at: array[:, _run(at)])
    code = {symbol: s for s, symbol in enumerate(prices.symbols)}
    unknown = [symbol for symbol in trades if symbol not in code]
    if unknown:
        raise HpcrlError(f"trades: {unknown[0]!r} is not in the market, which has {', '.join(code)}")
    if not trades and count > 1 and n != count:
        raise HpcrlError(f"trades: which of {count} symbols each of {n} columns trades must be said")
    if trades and len(trades) != n:
        raise HpcrlError(f"trades names {len(trades)} symbols for {n} columns")
    symbol_N = [code[symbol] for symbol in trades] or (list(range(n)) if count > 1 else [0] * n)
    return _Table(names, np.array(symbol_N)[:, None], lambda at: array[:, _run(at), None])


def _run(at: np.ndarray) -> slice | np.ndarray:
    """Columns side by side as a slice, which copies nothing."""
    return slice(at[0], at[-1] + 1) if (np.diff(at) == 1).all() else at


def _standing(weight_BnA: np.ndarray, lo: int) -> np.ndarray:
    """What was decided before row ``lo`` and still stands there is given there."""
    if not np.issubdtype(weight_BnA.dtype, np.floating) or not lo or not np.isnan(weight_BnA[lo]).any():
        return weight_BnA
    given = ~np.isnan(weight_BnA[: lo + 1])
    last_nA = np.where(given.any(0), lo - given[::-1].argmax(0), lo)
    weight_BnA = weight_BnA.copy()
    weight_BnA[lo] = np.take_along_axis(weight_BnA, last_nA[None], axis=0)[0]
    return weight_BnA


def _play_table(table: _Table, prices: Prices, env: EnvConfig, plan: Plan, flows: bool) -> Track:
    """Columns of symbols that begin and end together are played together, then put back in order."""
    rules = Rules.from_config(env)
    span = {
        int(s): (g.start, int(end))
        for g in plan.groups
        for s, end in zip(g.symbol_nA[:, 0], g.end_n, strict=True)
    }
    left_out = [prices.symbols[s] for s in np.unique(table.symbol_NA[:, 0]) if int(s) not in span]
    if left_out:
        raise HpcrlError(f"{', '.join(left_out)}: fewer than two tradable bars in the range; leave them out")
    parts, order = [], []
    bounds_N = np.array([span[int(s)] for s in table.symbol_NA[:, 0]])
    for start, end in np.unique(bounds_N, axis=0):
        own = np.flatnonzero((bounds_N == (start, end)).all(1))

        def weights(at: np.ndarray, own: np.ndarray = own, lo: int = start, hi: int = end) -> np.ndarray:
            return _standing(table.weights(own[at]), lo)[lo:hi]

        columns = Columns(table.symbol_NA[own], weights, int(start), int(end - start))
        track = play_columns(prices.tensors, rules, columns, flows=flows)
        if (start, end) != (plan.lo, plan.hi - 1):
            first_N, last_N = np.full(len(own), start - plan.lo), np.full(len(own), end - plan.lo)
            track = track.placed(plan.steps, first_N, last_N)
        parts.append(track)
        order.append(own)
    if len(parts) == 1:
        return parts[0]
    return side_by_side(parts).take(np.argsort(np.concatenate(order)))
