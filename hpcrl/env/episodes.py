"""Where episodes start: uniform over the (symbol, bar) pairs from which a whole episode fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.env.draws import STREAM_START, uniform
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError


@dataclass(frozen=True)
class Starts:
    """The pairs, grouped (P groups: one per symbol, or one for an account over every symbol)."""

    offset_P: Tensor  # int64, first possible decision bar less the number of pairs before the group
    end_P: Tensor  # int64, cumulative number of pairs, own group included
    symbol_PA: Tensor  # int64
    total: int

    def draw(self, seed: int, env_id_N: Tensor, episode_N: Tensor) -> tuple[Tensor, Tensor]:
        """(symbol_NA, bar_N) of the given episodes; a function of (seed, env id, episode) alone."""
        u_N = uniform(seed, STREAM_START, env_id_N, episode_N)
        return self.at((u_N * self.total).to(torch.int64).clamp_max(self.total - 1))

    def at(self, pair_N: Tensor) -> tuple[Tensor, Tensor]:
        """(symbol_NA, bar_N) of the pairs with these numbers, int64 from 0 to ``total`` - 1."""
        group_N = torch.searchsorted(self.end_P, pair_N, right=True)
        return self.symbol_PA[group_N], pair_N + self.offset_P[group_N]


def find_starts(market: MarketTensors, *, steps: int, bars: tuple[int, int], all_assets: bool) -> Starts:
    """Pairs from which ``steps`` decisions and the last mark lie inside ``bars`` and the symbols' own bars.

    Decisions stand at t0 .. t0 + steps - 1, the last mark at t0 + steps. An account over every symbol goes on
    after a delisting, which turned that position into cash. HpcrlError if no pair fits.
    """
    if steps < 1:
        raise HpcrlError(f"an episode of {steps} steps: it needs at least 1")
    first_S = market.first_bar_S.cpu().clamp_min(bars[0])
    last_S = market.last_bar_S.cpu().clamp_max(bars[1] - 1)
    symbol_PA = torch.arange(market.n_symbols)[:, None]
    if all_assets:
        delisted_S = torch.isfinite(market.delist_BS).any(0).cpu()
        going_S = last_S[~delisted_S]
        last = going_S.min() if len(going_S) else last_S.max()
        first_S, last_S, symbol_PA = first_S.max()[None], last[None], symbol_PA.T
    count_P = (last_S - steps - first_S + 1).clamp_min(0)
    total = int(count_P.sum())
    if not total:
        most = int((last_S - first_S + 1).clamp_min(0).max())
        whose = "all symbols share" if all_assets else "the longest symbol has"
        raise HpcrlError(
            f"an episode of {steps} steps needs {steps + 1} bars, but inside rows {bars[0]} to {bars[1]} "
            f"of the data {whose} {most} after the features' burn-in; stage more bars, or shorten the "
            "episode (learn.rollout x env.episode_rollouts)"
        )
    device = market.device
    end_P = count_P.cumsum(0)
    offset_P = first_S - (end_P - count_P)
    return Starts(offset_P.to(device), end_P.to(device), symbol_PA.to(device), total)
