"""What a step must know of the bar it trades in, packed once so that a step gathers one row per asset.

Row ``s * B + b`` of the table belongs to the step b-1 -> b of symbol s: prices of bar b, and what was known
at the decision (the close of bar b-1, sigma of bar b-1). Eight float64 are one cache line, and an
environment's next row is the next line. Everything that
depends only on bar and costs is computed here and not in the step: the largest fill, the impact's factor,
the years since the last bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hpcrl.config.env import EnvConfig
from hpcrl.market.tensors import MarketTensors

YEAR_SECONDS = 365 * 86_400  # ACT/365
LOT_SLACK = 1e-9  # a quantity this close below a whole lot (in lots) is float noise, not a smaller order


@dataclass(frozen=True)
class Rules:
    """Costs and limits of an account, as plain numbers. Fractions unless the name says bps."""

    initial_cash: float = 100_000.0
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
    maintenance: float = 0.0
    intrabar: bool = True
    reward_floor: float = 1e-4

    @classmethod
    def from_config(cls, config: EnvConfig) -> Rules:
        own = {name: getattr(config, name) for name in cls.__dataclass_fields__ if hasattr(config, name)}
        return cls(**own, **config.costs.model_dump())


class Corporate(NamedTuple):
    """Corporate actions of the bar, [N, A] float64."""

    split: Tensor  # quantity ratio, 1 where none
    dividend: Tensor  # currency per share, after the split
    payout: Tensor  # delisting price per share, 0 where none
    listed: Tensor  # 0 from the delisting bar on, else 1


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


def floor_lots(size: Tensor, lot: float) -> Tensor:
    """Non-negative ``size`` rounded down to whole lots, with slack for float noise."""
    lots = size / lot
    return torch.floor(lots * (1 + 1e-13) + LOT_SLACK) * lot


@dataclass(frozen=True)
class PackedBars:
    table_RK: Tensor  # float64, R = S x B rows, K = 8 or 12 columns
    n_bars: int

    @property
    def has_corporate(self) -> bool:
        return self.table_RK.shape[1] > 8

    def at(self, row_NA: Tensor) -> Bar:
        """The bars of the given rows (int64)."""
        n, a = row_NA.shape
        columns = self.table_RK.index_select(0, row_NA.view(-1)).view(n, a, -1).unbind(-1)
        corporate = Corporate._make(columns[8:12]) if self.has_corporate else None
        return Bar._make((*columns[:7], columns[7][:, :1], corporate))


def pack(
    rules: Rules,
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
    """Build the table. Prices are float64 with the mark where a bar is missing (NaN before the first bar)."""
    ended_BS = torch.isfinite(delist_BS).to(torch.int64).cumsum(0) > 0
    split_here = bool((split_BS != 1).any())
    if split_here:
        marks = (open_BS, high_BS, low_BS, close_BS)
        open_BS, high_BS, low_BS, close_BS = _split_stale_marks(marks, present_BS, split_BS)
    before_BS = torch.cat([close_BS[:1], close_BS[:-1]])
    sigma_before_BS = torch.cat([sigma_BS[:1], sigma_BS[:-1]])
    tradable_BS = present_BS & (volume_BS > 0) & torch.isfinite(before_BS) & ~ended_BS
    if rules.participation is None:
        cap_BS = torch.full_like(open_BS, float("inf"))
    else:
        cap_BS = volume_BS * rules.participation
    impact_BS = rules.impact_coef * sigma_before_BS / volume_BS.sqrt()
    years_B = torch.diff(ts_B, prepend=ts_B[:1]).to(torch.float64) / YEAR_SECONDS
    columns = [
        *(x.nan_to_num(nan=1.0) for x in (open_BS, low_BS, high_BS, close_BS, before_BS / split_BS)),
        cap_BS.where(tradable_BS, torch.zeros_like(cap_BS)),
        impact_BS.where(tradable_BS & torch.isfinite(impact_BS), torch.zeros_like(impact_BS)),
        years_B[:, None].expand_as(open_BS),
    ]
    if split_here or bool((dividend_BS != 0).any()) or bool(ended_BS.any()):
        columns += [split_BS, dividend_BS, delist_BS.nan_to_num(nan=0.0), (~ended_BS).to(torch.float64)]
    table_SBK = torch.stack([c.to(torch.float64).T for c in columns], -1)
    return PackedBars(table_SBK.flatten(0, 1).contiguous(), len(ts_B))


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
    return pack(rules, **{name: getattr(market, name) for name in names.split()})
