"""Columns that seldom trade: the simulator's step where there is an order, and marks alone in between.

In a bar without an order an account that pays no interest does nothing but mark what it holds, so that only
the orders of a column depend on each other. ``env.account.advance`` plays the k-th order of all columns at
once, each in its own bar, and the equity of the bars in between is cash + quantity x close: bit for bit what
the steps would have given. Columns for which that does not hold (someone is ruined, an order is not filled
whole, a short pays its fee, borrowed cash its interest) are left to the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hpcrl.env.account import Account, Outcome, advance
from hpcrl.env.bars import PackedBars, Rules

MOST_ORDERS = 0.25
"""Share of bars with an order from which stepping through every bar is as fast (a guess)."""
CELLS = 1 << 18
"""Bars x columns marked at once."""
FLOWS = ("traded", "fees", "spread", "impact", "trades")
PRICES = ("open", "low", "high", "close")  # as the packed table begins


def suits(packed: PackedBars, rules: Rules, table_Tn: np.ndarray, device: torch.device) -> bool:
    """Whether a table of weights may be played by its orders alone."""
    return (
        device.type == "cpu"
        and rules.fill_lag == 1
        and not (packed.has_corporate or rules.maintenance or rules.credit_rate)
        and np.issubdtype(table_Tn.dtype, np.floating)
        and np.isnan(table_Tn).mean() >= 1 - MOST_ORDERS
    )


@dataclass(frozen=True, eq=False)
class Orders:
    """What every order of n columns led to, E of them, column after column and in time."""

    count_n: np.ndarray  # orders of each column
    step_E: np.ndarray  # step in which the order fills
    cash_E: np.ndarray  # after it
    quantity_E: np.ndarray
    flow_E: dict[str, np.ndarray]
    trouble_n: np.ndarray  # bool: the steps have to play these columns

    @property
    def column_E(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.count_n)), self.count_n)


@torch.inference_mode()
def play_orders(
    packed: PackedBars,
    rules: Rules,
    limit: float,
    symbol_n: np.ndarray,
    table_Tn: np.ndarray,
    start: int,
    *,
    flows: bool,
) -> Orders:
    """Every order of the table, the k-th of all columns at once. ``rules`` without limits on weights;
    ``limit``: that of one weight."""
    step_E, column_E = np.nonzero(~np.isnan(table_Tn))
    in_turn = np.argsort(column_E, kind="stable")
    step_E, column_E = step_E[in_turn], column_E[in_turn]
    count_n = np.bincount(column_E, minlength=table_Tn.shape[1])
    place_E, left_K = _turns(column_E, count_n)
    at_E = np.empty_like(place_E)
    at_E[place_E] = np.arange(len(place_E))  # orders turn by turn
    weight_E = torch.from_numpy(table_Tn[step_E, column_E][at_E].astype(np.float64)).clamp_(-limit, limit)
    row_E = torch.from_numpy((symbol_n[column_E] * packed.n_bars + start + step_E + 1)[at_E])
    names = ("cash", "quantity", "trouble", *(FLOWS if flows else ()))
    made = {name: torch.empty(len(step_E), dtype=torch.float64) for name in names}
    cash = torch.full((len(count_n), 1), rules.initial_cash, dtype=torch.float64)
    quantity, nobody = torch.zeros_like(cash), torch.zeros_like(cash, dtype=torch.bool)
    first = 0
    for n in left_K.tolist():
        turn = slice(first, first + n)
        bar = packed.at(row_E[turn, None])
        equity = cash[:n] + quantity[:n] * bar.last
        account = Account(cash[:n], quantity[:n], equity, nobody[:n])
        done = advance(account, weight_E[turn, None], bar, rules, look=True, some_called=False)
        cash[:n], quantity[:n] = done.account.cash_N1, done.account.quantity_NA
        noted = [done.account.cash_N1, done.account.quantity_NA, _trouble(done)]
        if flows:
            noted += [done.traded_NA, done.commission_NA, done.spread_NA, done.impact_NA, done.fill_NA != 0]
        for array, value in zip(made.values(), noted, strict=True):
            array[turn] = value[:, 0]
        first += n
    found = {name: array.numpy()[place_E] for name, array in made.items()}
    cash_E, quantity_E = found.pop("cash"), found.pop("quantity")
    wrong_E = found.pop("trouble") > 0
    if rules.has_financing:  # only who neither sold short nor borrowed paid nothing
        wrong_E |= (quantity_E < 0) | ((cash_E < 0) & (rules.debit_rate > 0))
    trouble_n = np.bincount(column_E, wrong_E, minlength=len(count_n)) > 0
    return Orders(count_n, step_E, cash_E, quantity_E, found, trouble_n)


def _turns(column_E: np.ndarray, count_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where each order stands when all first orders come first, then all second ones; how many columns have
    a k-th order [K]). Within a turn the columns with the most orders come first, so that those that are
    still there in a later turn are always the first ones."""
    by_count = np.argsort(-count_n, kind="stable")
    rank_n = np.empty_like(by_count)
    rank_n[by_count] = np.arange(len(by_count))
    left_K = (count_n[:, None] > np.arange(count_n.max(initial=0))).sum(0)
    first_K = np.cumsum(left_K) - left_K
    number_E = np.arange(len(column_E)) - (np.cumsum(count_n) - count_n)[column_E]
    return first_K[number_E] + rank_n[column_E], left_K


def _trouble(done: Outcome) -> torch.Tensor:
    """bool [n, 1]: someone who is ruined, or whose order is not filled whole."""
    if done.some_bankrupt or not torch.equal(done.order_NA, done.fill_NA):
        return done.bankrupt_N1 | (done.order_NA != done.fill_NA)
    return done.bankrupt_N1


def mark(
    orders: Orders,
    packed: PackedBars,
    rules: Rules,
    symbol_n: np.ndarray,
    span: tuple[int, int],
    columns: np.ndarray,
    records: dict[str, np.ndarray],
) -> np.ndarray:
    """Write the records [T, N] of the columns that are in no trouble, at ``columns`` of them; bool [n]: whom
    the steps have to play. ``span``: rows of the first and behind the last mark."""
    steps, trouble_n = span[1] - span[0], orders.trouble_n.copy()
    price_SBK = packed.table_RK.view(-1, packed.n_bars, packed.table_RK.shape[1])[:, span[0] : span[1]]
    price_KSB = price_SBK[..., : len(PRICES)].permute(2, 0, 1).contiguous().numpy()
    last_n = np.cumsum(orders.count_n)
    width = max(1, CELLS // steps)
    for lo in range(0, len(columns), width):
        part = np.arange(lo, min(lo + width, len(columns)))
        symbol = symbol_n[part]
        price_KnT = price_KSB[:, symbol[:1] if (symbol == symbol[0]).all() else symbol]
        price = dict(zip(PRICES, price_KnT, strict=True))
        own = slice(last_n[part[0]] - orders.count_n[part[0]], last_n[part[-1]])
        cash_nT = _held(orders, own, part, orders.cash_E, rules.initial_cash, steps)
        quantity_nT = _held(orders, own, part, orders.quantity_E, 0.0, steps)
        value_nT = quantity_nT * price["close"]
        equity_nT = cash_nT + value_nT
        trouble_n[part] |= _ruined(cash_nT, quantity_nT, equity_nT, price, rules)
        well = ~trouble_n[part]
        at = columns[part[well]]
        here = slice(at[0], at[-1] + 1) if len(at) and (np.diff(at) == 1).all() else at
        records["equity"][:, here] = equity_nT[well].T
        if "gross" in records:
            net_Tn = (value_nT[well] / equity_nT[well]).T
            records["net"][:, here], records["gross"][:, here] = net_Tn, np.abs(net_Tn)
    for name, flow_E in orders.flow_E.items():
        if name in records:
            kept_E = ~trouble_n[orders.column_E]
            records[name][orders.step_E[kept_E], columns[orders.column_E[kept_E]]] = flow_E[kept_E]
    return trouble_n


def _held(
    orders: Orders, own: slice, part: np.ndarray, value_E: np.ndarray, before: float, steps: int
) -> np.ndarray:
    """[n, T]: what held after each step, ``before`` until a column's first order."""
    count_n = orders.count_n[part]
    # Of every column: one piece before its first order, then one from each order to the next.
    place_E = np.arange(own.stop - own.start) + np.repeat(np.arange(len(part)), count_n) + 1
    begin_n = np.cumsum(count_n + 1) - count_n - 1
    value_P = np.full(len(place_E) + len(part), before)
    value_P[place_E] = value_E[own]
    step_P = np.zeros(len(value_P), dtype=np.int64)
    step_P[place_E] = orders.step_E[own]
    end_P = np.append(step_P[1:], steps)
    end_P[begin_n[1:] - 1] = steps
    return np.repeat(value_P, end_P - step_P).reshape(len(part), steps)


def _ruined(
    cash_nT: np.ndarray,
    quantity_nT: np.ndarray,
    equity_nT: np.ndarray,
    price: dict[str, np.ndarray],
    rules: Rules,
) -> np.ndarray:
    """bool [n]: equity at some open, at some bar's worst price or at some close is gone."""
    found_n = np.zeros(len(cash_nT), dtype=bool)
    # Who owes neither cash nor shares cannot lose more than all.
    look = np.flatnonzero((cash_nT.min(1) < 0) | (quantity_nT.min(1) < 0))
    if not len(look):
        return found_n
    cash, quantity = cash_nT[look], quantity_nT[look]
    own = {name: each if len(each) == 1 else each[look] for name, each in price.items()}
    at_open = cash[:, :-1] + quantity[:, :-1] * own["open"][:, 1:]
    found = (at_open <= 0).any(1) | (equity_nT[look] <= 0).any(1)
    if rules.intrabar:
        worst = np.minimum(quantity * own["low"], quantity * own["high"])
        found |= (cash + worst <= 0).any(1)
    found_n[look] = found
    return found_n
