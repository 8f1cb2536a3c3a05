"""Many accounts through the simulator's step at once, each a column of a table of target weights.

Owns the loop without what only an agent needs: tokens, shaped rewards, episodes. The step is
``env.account.advance``, the one that trains, so that a column's equity is the simulator's bit for bit.
Columns are played in blocks that fit into a processor's cache.

A weight in row b is decided at the close of bar b. NaN gives no order: what an earlier order aimed at stays,
and what a bar did not fill of it (nothing traded there, or less than it wanted) is asked for again. With one
asset per account the limits on weights scale what is asked for and never what is held; an account over
several assets counts what it holds and is scaled as a whole, as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcrl.env.account import Account, Outcome, advance, open_accounts, over_assets
from hpcrl.env.bars import Bar, Corporate, PackedBars, Rates, Rules, pack_market
from hpcrl.evaluate.sparse import mark, play_orders, suits
from hpcrl.evaluate.track import Track
from hpcrl.market.tensors import MarketTensors
from hpcrl.types import HpcrlError

BLOCK = 2048
"""Positions at once: the tensors of a step then take about 1 MB (measured: 1,000 to 4,000 are alike)."""
UNLIMITED = 1e9
FLOWS = ("traded", "fees", "spread", "impact", "financing", "dividend", "gross", "net", "trades")


class Columns(NamedTuple):
    """N accounts that decide in rows [start, start + steps) and are marked last in the row after them."""

    symbol_NA: np.ndarray  # int64
    weights: Callable[[np.ndarray], np.ndarray]  # columns -> [steps, n, A] of theirs, of any number type
    start: int
    steps: int


def play_columns(market: MarketTensors, rules: Rules, columns: Columns, *, flows: bool = True) -> Track:
    """The accounts' track. Without ``flows`` only ``equity_TN`` and ``bankrupt_N`` are recorded (the rest is
    0 and takes no memory), which is about twice as fast.

    HpcrlError: rows beyond the market, an infinite weight.
    """
    last = columns.start + columns.steps
    if not 0 <= columns.start < last < market.n_bars:
        raise HpcrlError(f"rows {columns.start} to {last} are no steps of a market of {market.n_bars} bars")
    packed, device = pack_market(market, rules), market.device
    n, assets = columns.symbol_NA.shape
    found = {f"{name}_TN": np.zeros((columns.steps, n)) for name in FLOWS}
    equity_TN, bankrupt_N = np.empty((columns.steps + 1, n)), np.zeros(n, dtype=bool)
    equity_TN[0] = rules.initial_cash
    records = {"equity": equity_TN[1:]} | ({name: found[f"{name}_TN"] for name in FLOWS} if flows else {})
    player = _Player(packed, rules, columns, device, records)
    sorted_N = np.lexsort(columns.symbol_NA.T[::-1])  # a block of one symbol reads one bar for all
    width = max(1, BLOCK // assets)
    for first in range(0, n, width):
        at = sorted_N[first : first + width]
        bankrupt_N[at] = player.play(at)
    return Track(equity_TN=equity_TN, bankrupt_N=bankrupt_N, **found)


class _Player:
    """Plays a block of columns, by their orders alone where that gives the same, else bar by bar."""

    def __init__(
        self,
        packed: PackedBars,
        rules: Rules,
        columns: Columns,
        device: torch.device,
        records: dict[str, np.ndarray],
    ) -> None:
        self._packed, self._columns, self._device, self._records = packed, columns, device, records
        self._limit = min(rules.max_leverage, rules.max_net or rules.max_leverage)
        single = columns.symbol_NA.shape[1] == 1
        self._rules = replace(rules, max_leverage=UNLIMITED, max_net=None) if single else rules
        self._single = single

    def play(self, at: np.ndarray) -> np.ndarray:
        """bool [n]: who is bankrupt at the end."""
        table_TnA = np.asarray(self._columns.weights(at))
        open_T = _without_order(table_TnA, self._columns.start)
        left_n = np.ones(len(at), dtype=bool)
        if self._single and open_T.any() and suits(self._packed, self._rules, table_TnA, self._device):
            left_n = self._by_orders(at, table_TnA[..., 0])
        bankrupt_n = np.zeros(len(at), dtype=bool)
        if left_n.any():
            bankrupt_n[left_n] = self._by_bars(at[left_n], table_TnA[:, left_n], open_T)
        return bankrupt_n

    def _by_orders(self, at: np.ndarray, table_Tn: np.ndarray) -> np.ndarray:
        """bool [n]: who has to be played bar by bar."""
        symbol_n, start = self._columns.symbol_NA[at, 0], self._columns.start
        orders = play_orders(
            self._packed, self._rules, self._limit, symbol_n, table_Tn, start, flows=len(self._records) > 1
        )
        span = (start + 1, start + 1 + self._columns.steps)
        return mark(orders, self._packed, self._rules, symbol_n, span, at, self._records)

    def _by_bars(self, at: np.ndarray, table_TnA: np.ndarray, open_T: np.ndarray) -> np.ndarray:
        here = slice(at[0], at[-1] + 1) if (np.diff(at) == 1).all() else at
        own = {name: _Record(array, here, self._device) for name, array in self._records.items()}
        symbol_nA = torch.as_tensor(self._columns.symbol_NA[at], device=self._device)
        bars = _Bars(self._packed, symbol_nA, whole=not open_T.any())
        limit = self._limit if self._single else None
        block = _Block(bars, self._rules, limit, table_TnA, open_T, own)
        alive_n = block.play(symbol_nA.shape, self._columns.start)
        for record in own.values():
            record.store()
        return ~alive_n.cpu().numpy()


class _Record:
    """What a block writes of one array [T, N]: into it where its columns lie side by side in this memory,
    else into a copy that is stored at the end."""

    def __init__(self, array_TN: np.ndarray, here: slice | np.ndarray, device: torch.device) -> None:
        self._array_TN, self._here = array_TN, here
        self._direct = isinstance(here, slice) and device.type == "cpu"
        own = array_TN[:, here] if self._direct else np.empty_like(array_TN[:, here])
        self.to_TN = torch.from_numpy(own).to(device)

    def store(self) -> None:
        if not self._direct:
            self._array_TN[:, self._here] = self.to_TN.cpu().numpy()


class _Bars:
    """The bars of a block's accounts, [1, A] where all of them trade the same."""

    def __init__(self, packed: PackedBars, symbol_NA: Tensor, whole: bool) -> None:
        self._packed = packed
        self._whole = packed.whole and whole
        self._first_NA = symbol_NA * packed.n_bars
        self._shared_BKA: Tensor | None = None
        if bool((symbol_NA == symbol_NA[:1]).all()):
            rows_SBK = packed.table_RK.view(-1, packed.n_bars, packed.table_RK.shape[1])
            self._shared_BKA = rows_SBK[symbol_NA[0]].permute(1, 2, 0).contiguous()[:, :, None]
            rates_SK = packed.rates_SK
            self._rates = None if rates_SK is None else Rates._make(rates_SK[symbol_NA[:1]].unbind(-1))

    def at(self, b: int) -> Bar:
        if self._shared_BKA is None:
            return self._packed.at(self._first_NA + b)._replace(whole=self._whole)
        columns = self._shared_BKA[b].unbind()
        corporate = Corporate._make(columns[8:12]) if self._packed.has_corporate else None
        return Bar._make((*columns[:7], columns[7][:, :1], corporate, self._whole, self._rates))


class _Block:
    """Columns that are played together, and their records."""

    def __init__(
        self,
        bars: _Bars,
        rules: Rules,
        limit: float | None,
        table_TnA: np.ndarray,
        open_T: np.ndarray,
        records: dict[str, _Record],
    ) -> None:
        """``limit``: of one weight, where an account has one asset; else None and left to the rules."""
        self._bars, self._rules, self._limit, self._open_T = bars, rules, limit, open_T
        self._record = {name: record.to_TN for name, record in records.items()}
        self._equity_TN = self._record.pop("equity")
        self._device = self._equity_TN.device
        self._look = self._device.type == "cpu"
        self._weight_TNA = torch.from_numpy(np.require(table_TnA, requirements="W")).to(self._device)

    @torch.inference_mode()
    def play(self, shape: tuple[int, ...], start: int) -> Tensor:
        """Fills the records; bool [N]: who is not bankrupt."""
        rules = self._rules
        account = open_accounts(shape[0], shape[1], rules, self._device)
        alive_N1, ruined, called = torch.ones_like(account.called_N1), False, True
        outcome, bar = None, None
        for t in range(len(self._equity_TN)):
            weight_NA = self._asked(t, account, outcome, bar)
            if ruined:
                weight_NA = torch.where(alive_N1, weight_NA, 0.0)
            bar = self._bars.at(start + t + 1)
            outcome = advance(account, weight_NA, bar, rules, look=self._look, some_called=called)
            account, called, before_N1 = outcome.account, outcome.some_called, alive_N1
            if outcome.some_bankrupt or ruined:
                alive_N1 = alive_N1 & ~outcome.bankrupt_N1
                ruined = not self._look or not bool(alive_N1.all())
            self._equity_TN[t] = account.equity_N1[:, 0]
            if ruined:
                self._equity_TN[t] *= alive_N1[:, 0]
                account = self._idle(account, alive_N1)
            if self._record:
                self._note(t, outcome, account, before_N1, alive_N1)
        return alive_N1[:, 0]

    def _asked(self, t: int, account: Account, last: Outcome | None, bar: Bar | None) -> Tensor:
        """The weights that are given or, where none is, those of what the last order left unfilled."""
        weight_NA = self._weight_TNA[t].to(torch.float64)
        single = self._limit is not None
        if self._limit is not None:
            weight_NA = weight_NA.clamp(-self._limit, self._limit)
        if not self._open_T[t]:
            return weight_NA
        if last is None or bar is None:
            return weight_NA if single else weight_NA.nan_to_num(nan=0.0)
        if single and self._look and torch.equal(last.order_NA, last.fill_NA):
            return weight_NA
        rest_NA = last.order_NA - last.fill_NA
        if self._rules.fill_lag == 0 and bar.corporate is not None:
            rest_NA = rest_NA * bar.corporate.split
        share_NA = (account.quantity_NA + rest_NA) * bar.close / account.equity_N1
        instead_NA = weight_NA.isnan()
        if single:  # NaN goes on as no order
            instead_NA &= rest_NA != 0
        if account.pending_NA is not None:  # what waits for its bar stays
            waits_NA = ~account.pending_NA.isnan()
            share_NA = torch.where(waits_NA, self._pending_share(account.pending_NA, account, bar), share_NA)
            if single:
                instead_NA &= ~waits_NA
        return torch.where(instead_NA, share_NA, weight_NA)

    def _pending_share(self, pending_NA: Tensor, account: Account, bar: Bar) -> Tensor:
        if self._rules.sizing == "fill":
            return pending_NA
        return pending_NA * bar.close / account.equity_N1

    def _idle(self, account: Account, alive_N1: Tensor) -> Account:
        """Those who are ruined hold the initial cash and do nothing; their records say 0."""
        cash = self._rules.initial_cash
        return account._replace(
            cash_N1=torch.where(alive_N1, account.cash_N1, cash),
            equity_N1=torch.where(alive_N1, account.equity_N1, cash),
        )

    def _note(self, t: int, outcome: Outcome, account: Account, before_N1: Tensor, alive_N1: Tensor) -> None:
        position_NA = outcome.value_NA / account.equity_N1 * alive_N1
        noted = {
            "traded": over_assets(outcome.traded_NA) * before_N1,
            "fees": over_assets(outcome.commission_NA) * before_N1,
            "spread": over_assets(outcome.spread_NA) * before_N1,
            "impact": over_assets(outcome.impact_NA) * before_N1,
            "financing": outcome.financing_N1 * before_N1,
            "dividend": outcome.dividend_N1 * before_N1,
            "gross": over_assets(position_NA.abs()),
            "net": over_assets(position_NA),
            "trades": over_assets((outcome.fill_NA != 0).to(torch.float64)) * alive_N1,
        }
        for name, value_N1 in noted.items():
            self._record[name][t] = value_N1[:, 0]


def _without_order(table_TNA: np.ndarray, start: int) -> np.ndarray:
    """bool [T]: rows with a NaN. HpcrlError for an infinite weight."""
    if not np.issubdtype(table_TNA.dtype, np.floating):
        return np.zeros(len(table_TNA), dtype=bool)
    with np.errstate(invalid="ignore", over="ignore"):
        sum_T = table_TNA.sum((1, 2))
    odd_T = ~np.isfinite(sum_T)
    if odd_T.any():
        infinite_T = np.isinf(table_TNA).any((1, 2))
        if infinite_T.any():
            row = start + int(infinite_T.argmax())
            raise HpcrlError(f"row {row}: a weight is infinite; NaN gives no order")
    return odd_T
