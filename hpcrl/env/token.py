"""The token: what the policy sees of one bar and one account, [N, E] float32.

Layout, in this order (A assets, F features; every entry is finite and of order 1):

    A x F   scaled features of the asset's last closed bar, asset by asset
    2       sin and cos of half a turn per session (a whole turn would make its first bar equal its last)
    A       weight: market value / equity
    A       profit: unrealised profit / equity x 10
    A       age: ln(1 + bars since entry) / 5
    A       target: the previous action's target weight
    1       cash: cash / equity
    1       drawdown: depth below the episode's highest equity x 10
    1       reward: the previous shaped reward x 100
    ...     state of the reward terms that have one (``rewards.Differential``)

All but features and time are clipped to +-10 (the reward to +-5). At an episode's first bar the account is
flat: cash is 1, everything else of it 0; so are the tokens of the history before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcrl.market.tensors import MarketTensors

PROFIT_SCALE = 10.0  # guessed: unrealised profit over an hour is of order 1e-2 of equity
AGE_SCALE = 0.2  # ln(1 + 148 bars) x 0.2 = 1
DRAWDOWN_SCALE = 10.0
REWARD_SCALE = 100.0
REWARD_CLIP = 5.0
CLIP = 10.0


def entry_names(
    feature_names: Sequence[str], symbols: Sequence[str], reward_entries: Sequence[str] = ()
) -> list[str]:
    """Names of the E entries, for the symbols of one account ("weight:MSFT", ...); ``reward_entries`` are
    the simulator's."""
    names = [f"{feature}:{symbol}" for symbol in symbols for feature in feature_names]
    names += ["session_sin", "session_cos"]
    for part in ("weight", "profit", "age", "target"):
        names += [f"{part}:{symbol}" for symbol in symbols]
    return [*names, "cash", "drawdown", "reward", *reward_entries]


def market_rows(market: MarketTensors) -> Tensor:
    """Features and time of every symbol and bar, [S x B, F + 2] float32: one gather per token."""
    angle_B = market.session_time_B.to(torch.float64) * math.pi
    time_B2 = torch.stack([angle_B.sin(), angle_B.cos()], -1).to(torch.float32)
    time_BS2 = time_B2[:, None].expand(-1, market.n_symbols, -1)
    rows_BSK = torch.cat([market.feature_BSF.to(torch.float32), time_BS2], -1)
    return rows_BSK.transpose(0, 1).flatten(0, 1).contiguous()


class TokenBuffer:
    """One token per environment, written column by column through views made once."""

    def __init__(self, rows_RK: Tensor, n: int, a: int, reward_entries: int = 0) -> None:
        self._rows_RK = rows_RK
        self._assets = a
        features = rows_RK.shape[1] - 2
        start = a * features + 2
        self.n_entries = start + 4 * a + 3 + reward_entries
        self._token_NE = torch.zeros((n, self.n_entries), dtype=torch.float32, device=rows_RK.device)
        self._market = self._token_NE[:, :start]
        self._account = self._token_NE[:, start:]
        parts = self._account.split([a, a, a, a, 1, 1, 1, reward_entries], 1)
        self._weight, self._profit, self._age, self._target, self._cash, self._drawdown = parts[:6]
        self._reward, self.reward_state = parts[6:]
        self._cash_column = start + 4 * a

    def market_part(self, row_NA: Tensor) -> Tensor:
        """Features and time of the given rows, [N, A x F + 2]."""
        rows = self._rows_RK.index_select(0, row_NA.reshape(-1))
        if self._assets == 1:
            return rows
        rows_NAK = rows.view(-1, self._assets, rows.shape[1])
        return torch.cat([rows_NAK[:, :, :-2].flatten(1), rows_NAK[:, 0, -2:]], 1)

    def write(
        self,
        *,
        row_NA: Tensor,
        value_NA: Tensor,
        profit_NA: Tensor,
        age_NA: Tensor,
        target_NA: Tensor,
        cash_N1: Tensor,
        equity_N1: Tensor,
        drawdown_N1: Tensor,
        reward_N1: Tensor,
    ) -> Tensor:
        """The tokens of the given accounts (float64), a fresh tensor. ``reward_state`` is written before."""
        self._market.copy_(self.market_part(row_NA))
        torch.div(value_NA, equity_N1, out=self._weight)
        torch.div(profit_NA * PROFIT_SCALE, equity_N1, out=self._profit)
        torch.mul(age_NA.log1p(), AGE_SCALE, out=self._age)
        self._target.copy_(target_NA)
        torch.div(cash_N1, equity_N1, out=self._cash)
        torch.mul(drawdown_N1, DRAWDOWN_SCALE, out=self._drawdown)
        torch.mul(reward_N1, REWARD_SCALE, out=self._reward)
        self._reward.clamp_(-REWARD_CLIP, REWARD_CLIP)
        self._account.clamp_(-CLIP, CLIP)
        return self._token_NE.clone()

    def flat(self, row_KA: Tensor) -> Tensor:
        """Tokens [K, E] of a flat account at the given rows."""
        token_KE = self._token_NE.new_zeros((len(row_KA), self.n_entries))
        token_KE[:, : self._market.shape[1]] = self.market_part(row_KA)
        token_KE[:, self._cash_column] = 1.0
        return token_KE
