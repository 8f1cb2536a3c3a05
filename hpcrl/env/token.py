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
from torch.nn import functional

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


class TokenWriter:
    """Assembles tokens. What an account adds is worked out for all of its columns at once, in float64."""

    def __init__(self, rows_RK: Tensor, n: int, a: int, reward_entries: int = 0) -> None:
        """``rows_RK``: ``market_rows``; ``reward_entries``: columns of the reward terms' state."""
        columns = 4 * a + 3 + reward_entries
        self._assets = a
        self._start = start = a * (rows_RK.shape[1] - 2) + 2
        self.n_entries = start + columns
        # With one asset a market's row is the token's beginning: gathering it with room for the rest makes
        # the token, without another copy.
        self._rows_RK = functional.pad(rows_RK, (0, columns)) if a == 1 else rows_RK
        account = torch.zeros((columns * n, 1) if a == 1 else (n, columns), dtype=torch.float64)
        self._account = account = account.to(rows_RK.device)
        # Columns of one asset lie one after the other in memory, where operations are fastest.
        self._account_NX = account_NX = account.view(columns, n).t() if a == 1 else account
        sizes = [2 * a, a, a, 1, 1, 1, reward_entries]
        self._worth, self._age, _, self._cash, _, self._reward, _ = account_NX.split(sizes, 1)
        scales = [*[1.0] * a, *[PROFIT_SCALE] * a, *[AGE_SCALE] * a, *[1.0] * a]
        scales += [1.0, DRAWDOWN_SCALE, REWARD_SCALE, *[1.0] * reward_entries]
        self._scale_X = torch.tensor(scales, dtype=torch.float64, device=rows_RK.device)

    def _market_part(self, row_NA: Tensor) -> Tensor:
        """Features and time of the given rows, [N, A x F + 2]; with one asset [N, E], the rest 0."""
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
        reward_state: Sequence[Tensor] = (),
    ) -> Tensor:
        """The tokens of the given accounts (float64), a fresh tensor; ``reward_state``: [N, 1] each."""
        account_NX = self._account_NX
        parts = [value_NA, profit_NA, age_NA, target_NA, cash_N1, drawdown_N1, reward_N1, *reward_state]
        torch.cat(parts, 0 if self._assets == 1 else 1, out=self._account)
        self._age.log1p_()
        account_NX.mul_(self._scale_X)
        self._worth.div_(equity_N1)
        self._cash.div_(equity_N1)
        account_NX.clamp_(-CLIP, CLIP)
        self._reward.clamp_(-REWARD_CLIP, REWARD_CLIP)
        market = self._market_part(row_NA)
        if self._assets > 1:
            return torch.cat([market, account_NX.to(torch.float32)], 1)
        market[:, self._start :].copy_(account_NX)
        return market

    def flat(self, row_KA: Tensor) -> Tensor:
        """Tokens [K, E] of a flat account at the given rows."""
        token_KE = self._rows_RK.new_zeros((len(row_KA), self.n_entries))
        token_KE[:, : self._start] = self._market_part(row_KA)[:, : self._start]
        token_KE[:, self._start + 4 * self._assets] = 1.0  # cash
        return token_KE
