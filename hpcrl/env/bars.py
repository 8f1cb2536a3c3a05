"""What a step must know of the bar it trades in, packed once so that a step gathers one row per asset.

Row ``s * B + b`` of the table belongs to the step b-1 -> b of symbol s: prices of bar b, and what was known
at the decision (the close of bar b-1, sigma of bar b-1). Eight float64 are one cache line, and an
environment's next row is the next line. Everything that
depends only on bar and costs is computed here and not in the step: the largest fill, the impact's factor,
the years since the last bar. With ``fill_lag`` 0 the order fills in bar b-1, so that the largest fill and the
impact's factor are those of that bar.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hpcrl.config.env import EnvConfig
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

YEAR_SECONDS = 365 * 86_400  # ACT/365
CLOSE = 3  # its column in the table
LOT_SLACK = 1e-9  # a quantity this close below a whole lot (in lots) is float noise, not a smaller order


@dataclass(frozen=True)
class Rules:
    """Costs and limits of an account, as plain numbers. Fractions unless the name says bps."""

    initial_cash: float = 100_000.0
    fill_lag: Literal[0, 1, 2] = 1
    sizing: Literal["decision", "fill"] = "decision"
    lot: float = 0.0
    half_spread: float = 0.0
    slippage: float = 0.0
    impact_coef: float = 0.0
    participation: float | None = None
    per_share: float = 0.0
    min_fee: float = 0.0
    bps: float = 0.0
    credit_rate: float = 0.0
    debit_rate: float = 0.0
    borrow_rate: float = 0.0
    max_leverage: float = 1.0
    max_net: float | None = None
    maintenance: float = 0.0
    intrabar: bool = True
    reward_floor: float = 1e-4
    symbols: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Costs of single symbols that differ: {"MSFT": {"half_spread": 2e-4}}."""

    @classmethod
    def from_config(cls, config: EnvConfig) -> Rules:
        own = {name: getattr(config, name) for name in cls.__dataclass_fields__ if hasattr(config, name)}
        return cls(**own, **config.costs.model_dump())

    def of(self, symbol: str) -> Rules:
        """The rules with this symbol's own costs."""
        own: dict[str, Any] = dict(self.symbols.get(symbol, {}))
        return replace(self, symbols={}, **own)

    def _each(self, name: str) -> list[Any]:
        return [getattr(self, name), *(own[name] for own in self.symbols.values() if name in own)]

    @cached_property
    def has_impact(self) -> bool:
        """Whether any symbol's price is moved by its orders."""
        return any(self._each("impact_coef"))

    @cached_property
    def has_participation(self) -> bool:
        return any(share is not None for share in self._each("participation"))

    @cached_property
    def has_financing(self) -> bool:
        return any((self.credit_rate, self.debit_rate, *self._each("borrow_rate")))


class Corporate(NamedTuple):
    """Corporate actions of the bar, [N, A] float64."""

    split: Tensor  # quantity ratio, 1 where none
    dividend: Tensor  # currency per share, after the split
    payout: Tensor  # delisting price per share, 0 where none
    listed: Tensor  # 0 from the delisting bar on, else 1


class Rates(NamedTuple):
    """Costs that differ by symbol, [N, A] float64; fractions."""

    spread: Tensor  # half-spread and slippage
    per_share: Tensor
    min_fee: Tensor
    share: Tensor  # commission as a share of the traded value
    borrow: Tensor  # yearly


class Bar(NamedTuple):
    """The bar b of a step b-1 -> b; [N, A] float64, where missing the last known price."""

    open: Tensor
    low: Tensor
    high: Tensor
    close: Tensor
    last: Tensor  # close of bar b-1, after the split of bar b
    cap: Tensor  # largest |fill|: 0 where nothing trades, inf without a participation limit
    impact: Tensor  # impact as a fraction of the price is this x sqrt(|fill|)
    years: Tensor  # [N, 1] since bar b-1
    corporate: Corporate | None
    whole: bool  # every quantity is a whole number of lots and exact; so is cap
    rates: Rates | None  # None where the rules hold for every symbol


def floor_lots(size: Tensor, lot: float) -> Tensor:
    """Non-negative ``size`` rounded down to whole lots, with slack for float noise."""
    if lot == 1:
        return (size * (1 + 1e-13)).add_(LOT_SLACK).floor_()
    return (size / lot).mul_(1 + 1e-13).add_(LOT_SLACK).floor_().mul_(lot)


@dataclass(frozen=True)
class PackedBars:
    table_RK: Tensor  # float64, R = S x B rows, K = 8 or 12 columns
    n_bars: int
    rates_SK: Tensor | None = None  # float64, a symbol's ``Rates``
    whole: bool = False  # as ``Bar.whole``

    @property
    def has_corporate(self) -> bool:
        return self.table_RK.shape[1] > 8

    def at(self, row_NA: Tensor) -> Bar:
        """The bars of the given rows (int64)."""
        n, a = row_NA.shape
        rows_NAK = self.table_RK.index_select(0, row_NA.view(-1)).view(n, a, -1)
        # Each column in one piece: every use of it is then 2 to 3 times as fast as one row in eight values.
        columns = rows_NAK.permute(2, 0, 1).contiguous().unbind()
        corporate = Corporate._make(columns[8:12]) if self.has_corporate else None
        rates = None
        if self.rates_SK is not None:
            rates = Rates._make(self.rates_SK[row_NA // self.n_bars].unbind(-1))
        return Bar._make(
            (*columns[:7], columns[7] if a == 1 else columns[7][:, :1], corporate, self.whole, rates)
        )


def pack(
    rules: Rules,
    symbols: Sequence[str] = (),
    *,
    ts_B: Tensor,
    open_BS: Tensor,
    high_BS: Tensor,
    low_BS: Tensor,
    close_BS: Tensor,
    volume_BS: Tensor,
    present_BS: Tensor,
    sigma_BS: Tensor,
    split_BS: Tensor,
    dividend_BS: Tensor,
    delist_BS: Tensor,
) -> PackedBars:
    """Build the table. Prices are float64 with the mark where a bar is missing (NaN before the first bar).

    ``symbols``: names of the S columns, needed where the rules name symbols; HpcrlError for one that is
    not there.
    """
    check_symbols(rules, symbols)
    ended_BS = torch.isfinite(delist_BS).to(torch.int64).cumsum(0) > 0
    split_here = bool((split_BS != 1).any())
    if split_here:
        marks = (open_BS, high_BS, low_BS, close_BS)
        open_BS, high_BS, low_BS, close_BS = _split_stale_marks(marks, present_BS, split_BS)
    before_BS, lag = _earlier(close_BS, 1), rules.fill_lag
    decided_BS = close_BS if lag == 0 else _earlier(close_BS, lag)
    tradable_BS = present_BS & (volume_BS > 0) & torch.isfinite(decided_BS) & ~ended_BS
    sigma_known_BS = sigma_BS if lag == 0 else _earlier(sigma_BS, 1)
    cap_BS = volume_BS * _by_symbol(rules, symbols, "participation", volume_BS)
    impact_BS = _by_symbol(rules, symbols, "impact_coef", volume_BS) * sigma_known_BS / volume_BS.sqrt()
    cap_BS = cap_BS.where(tradable_BS, torch.zeros_like(cap_BS))
    impact_BS = impact_BS.where(tradable_BS & torch.isfinite(impact_BS), torch.zeros_like(impact_BS))
    if lag == 0:
        cap_BS, impact_BS = _earlier(cap_BS, 1), _earlier(impact_BS, 1)
    years_B = torch.diff(ts_B, prepend=ts_B[:1]).to(torch.float64) / YEAR_SECONDS
    columns = [
        *(x.nan_to_num(nan=1.0) for x in (open_BS, low_BS, high_BS, close_BS, before_BS / split_BS)),
        cap_BS,
        impact_BS,
        years_B[:, None].expand_as(open_BS),
    ]
    if split_here or bool((dividend_BS != 0).any()) or bool(ended_BS.any()):
        columns += [split_BS, dividend_BS, delist_BS.nan_to_num(nan=0.0), (~ended_BS).to(torch.float64)]
    # Whole numbers are exact in float64: no order is float noise, and the cap can be cut to lots beforehand.
    whole = len(columns) == 8 and rules.lot >= 1 and rules.lot == int(rules.lot) and lag < 2
    if whole:
        columns[5] = floor_lots(columns[5], rules.lot)
    table_SBK = torch.stack([c.to(torch.float64).T for c in columns], -1)
    rates_SK = _rates(rules, symbols, volume_BS) if rules.symbols else None
    return PackedBars(table_SBK.flatten(0, 1).contiguous(), len(ts_B), rates_SK, whole)


def check_symbols(rules: Rules, symbols: Sequence[str]) -> None:
    """HpcrlError where costs name a symbol that is not among ``symbols``."""
    for name in rules.symbols:
        if name not in symbols:
            near = difflib.get_close_matches(name, symbols, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(symbols) or 'no names'}"
            raise HpcrlError(f"costs.symbols: the market has no symbol {name!r}; {hint}")


def _by_symbol(rules: Rules, symbols: Sequence[str], name: str, like: Tensor) -> Tensor:
    """A cost of every symbol, [S] (or [1] where all have the same); no limit is infinite."""
    each = (
        [getattr(rules.of(symbol), name) for symbol in symbols] if rules.symbols else [getattr(rules, name)]
    )
    return like.new_tensor([float("inf") if value is None else value for value in each])


def _rates(rules: Rules, symbols: Sequence[str], like: Tensor) -> Tensor:
    names = ("half_spread", "slippage", "per_share", "min_fee", "bps", "borrow_rate")
    spread, slippage, per_share, min_fee, bps, borrow = (_by_symbol(rules, symbols, n, like) for n in names)
    return torch.stack([spread + slippage, per_share, min_fee, bps * 1e-4, borrow], -1)


def _earlier(value_BS: Tensor, bars: int) -> Tensor:
    """What held ``bars`` bars before; the first rows repeat the first bar."""
    back_B = torch.arange(len(value_BS), device=value_BS.device) - bars
    return value_BS[back_B.clamp_min(0)]


def _split_stale_marks(marks: tuple[Tensor, ...], present_BS: Tensor, split_BS: Tensor) -> tuple[Tensor, ...]:
    """Divide the stale mark of a missing bar by the splits since the last real close."""
    stale_BS = torch.cumprod(split_BS, 0)
    index_BS = torch.arange(len(split_BS), device=split_BS.device)[:, None].expand_as(split_BS)
    real_BS = torch.where(present_BS, index_BS, torch.zeros_like(index_BS)).cummax(0).values
    ratio_BS = stale_BS / stale_BS.gather(0, real_BS)
    return tuple(torch.where(present_BS, x, x / ratio_BS) for x in marks)


def pack_market(market: MarketTensors, rules: Rules) -> PackedBars:
    names = (
        "ts_B open_BS high_BS low_BS close_BS volume_BS present_BS sigma_BS split_BS dividend_BS delist_BS"
    )
    return pack(rules, market.symbols, **{name: getattr(market, name) for name in names.split()})
