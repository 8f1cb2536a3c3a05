"""The account: one pure step for N accounts of A assets, all float64.

The order of the step is the simulator's contract: corporate actions, financing, delisting, gap check,
orders, intrabar check, mark. Orders are decided at the close of bar t and fill at the open of bar t+1.
Values of an asset are [N, A], values of an account [N, 1], so that both broadcast without reshaping.

Nothing here reads a device value from Python; branches are on ``Rules`` alone, so what is switched off
costs nothing. The same function drives training and ``hpcrl replay``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.env.bars import Bar, Rules, floor_lots

ORDER_NOISE = 1e-12
"""An order below this share of the position is float noise: holding must not pay a minimum fee."""


class Account(NamedTuple):
    cash_N1: Tensor
    quantity_NA: Tensor
    equity_N1: Tensor  # > 0
    called_N1: Tensor  # bool: a margin call forces the next weights to 0


class Outcome(NamedTuple):
    """What one step did. ``account`` is the state after it (flat where bankrupt)."""

    account: Account
    value_NA: Tensor  # signed market value at the mark, 0 where bankrupt
    equity_raw_N1: Tensor  # may be negative where bankrupt
    log_return_N1: Tensor  # ln(E'/E); ln(reward_floor) where bankrupt
    bankrupt_N1: Tensor  # bool
    solvent_N1: Tensor  # bool: equity > 0 at the open; where not, bankrupt by the gap
    intrabar_N1: Tensor | None  # bool: equity <= 0 at the bar's worst prices (None: not checked)
    held_NA: Tensor  # quantity before the orders, after corporate actions
    order_NA: Tensor  # signed quantity wanted, noise removed
    fill_NA: Tensor  # signed quantity filled
    traded_NA: Tensor  # |fill x price|
    commission_NA: Tensor
    spread_NA: Tensor  # half-spread and slippage
    impact_NA: Tensor
    financing_N1: Tensor
    dividend_N1: Tensor


def open_accounts(n: int, a: int, rules: Rules, device: torch.device) -> Account:
    """n flat accounts with the initial cash."""
    cash_N1 = torch.full((n, 1), rules.initial_cash, dtype=torch.float64, device=device)
    quantity_NA = torch.zeros((n, a), dtype=torch.float64, device=device)
    called_N1 = torch.zeros((n, 1), dtype=torch.bool, device=device)
    return Account(cash_N1, quantity_NA, cash_N1.clone(), called_N1)


def over_assets(value_NA: Tensor) -> Tensor:
    """Sum over the assets, [N, 1]; the input must be contiguous. A contiguous row's sum does not depend on
    N by one bit, a sum over the first dimension of [A, N] does (measured)."""
    return value_NA if value_NA.shape[1] == 1 else value_NA.sum(1, keepdim=True)


def advance(account: Account, weight_NA: Tensor, bar: Bar, rules: Rules) -> Outcome:
    """One step: target weights decided at the close of bar t, filled and marked in ``bar`` (t+1)."""
    cash, held, listed, dividend = _corporate(account, bar)
    financing = _financing(cash, held, bar, rules)
    cash = cash + financing
    if bar.corporate is not None:  # delisting, without fees
        cash = cash + over_assets(held * bar.corporate.payout)
        held = held * listed
    at_open = cash + over_assets(held * bar.open)
    solvent = at_open > 0.0

    zero = cash.new_zeros(())  # torch.where with a number would make one each time
    order = _order(account, held, weight_NA, at_open, bar, rules)
    real = (order.abs() > held.abs() * ORDER_NOISE) & solvent
    order = torch.where(real, order, zero)
    fill = _capped(order, bar, rules)
    traded, commission, spread, impact = _costs(fill, bar, rules)
    cash = cash - over_assets(traded + commission)
    quantity = held + fill

    value = quantity * bar.close
    raw = cash + over_assets(value)
    intrabar = None
    if rules.intrabar:
        worst = cash + over_assets(torch.minimum(quantity * bar.low, quantity * bar.high))
        intrabar = worst <= 0.0
        raw = torch.where(intrabar, worst, raw)
    raw = torch.where(solvent, raw, at_open)
    bankrupt = raw <= 0.0
    value = torch.where(bankrupt, zero, value)
    equity = raw.clamp_min(0.0)
    after = Account(
        torch.where(bankrupt, raw, cash),
        torch.where(bankrupt, zero, quantity),
        equity,
        equity < over_assets(value.abs()) * rules.maintenance if rules.maintenance else account.called_N1,
    )
    log_return = torch.log((raw / account.equity_N1).masked_fill(bankrupt, rules.reward_floor))
    return Outcome(
        after,
        value,
        raw,
        log_return,
        bankrupt,
        solvent,
        intrabar,
        held,
        order,
        fill,
        traded.abs(),
        commission,
        spread,
        impact,
        financing,
        dividend,
    )


def _corporate(account: Account, bar: Bar) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Splits, then dividends on the quantity after the split (a short pays)."""
    cash, held = account.cash_N1, account.quantity_NA
    if bar.corporate is None:
        return cash, held, held, torch.zeros_like(cash)
    held = held * bar.corporate.split
    dividend = over_assets(held * bar.corporate.dividend)
    return cash + dividend, held, bar.corporate.listed, dividend


def _financing(cash: Tensor, held: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """Interest on free cash (short proceeds earn nothing) less the borrow fee, on quantities and closes
    of bar t for the real time until bar t+1."""
    if not (rules.credit_rate or rules.debit_rate or rules.borrow_rate):
        return torch.zeros_like(cash)
    short = over_assets((held * bar.last).clamp_max(0.0))  # <= 0
    free = cash + short
    yearly = free * rules.debit_rate
    yearly = torch.add(yearly, free.clamp_min(0.0), alpha=rules.credit_rate - rules.debit_rate)
    return torch.add(yearly, short, alpha=rules.borrow_rate) * bar.years


def _order(
    account: Account, held: Tensor, weight_NA: Tensor, at_open: Tensor, bar: Bar, rules: Rules
) -> Tensor:
    """Signed quantity that leads from the position to the target, float noise included."""
    limit = rules.max_leverage
    if weight_NA.shape[1] == 1:
        weight_NA = weight_NA.clamp(-limit, limit)
    else:
        weight_NA = weight_NA * (limit / over_assets(weight_NA.abs()).clamp_min(limit))
    if rules.maintenance:
        weight_NA = torch.where(account.called_N1, weight_NA.new_zeros(()), weight_NA)
    if rules.sizing == "decision":
        target = weight_NA * account.equity_N1 / bar.last
    else:
        target = weight_NA * at_open / bar.open
    if rules.lot:
        target = torch.copysign(floor_lots(target.abs(), rules.lot), target)
    return target - held


def _capped(order: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """The part of the order that fills: all of it up to the cap, else whole lots of the cap."""
    fill = torch.clamp(order, -bar.cap, bar.cap)
    if rules.lot and rules.participation is not None:
        cut = torch.copysign(floor_lots(fill.abs(), rules.lot), order)
        fill = torch.where(fill == order, fill, cut)
    return fill


def _costs(fill: Tensor, bar: Bar, rules: Rules) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cash paid for the fills (negative for sells), commission, spread cost and impact cost.

    fill x price = fill x open + |fill| x open x (spread + impact): the costs are always paid.
    """
    size = fill.abs()
    notional = size * bar.open
    spread = notional * (rules.half_spread + rules.slippage)
    traded = torch.addcmul(spread, fill, bar.open)
    if rules.impact_coef:
        impact = notional * bar.impact * size.sqrt()
        traded = traded + impact
    else:
        impact = torch.zeros_like(notional)
    commission = size * rules.per_share
    if rules.min_fee:
        commission = torch.where(size > 0.0, commission.clamp_min(rules.min_fee), commission)
    if rules.bps:
        commission = torch.add(commission, traded.abs(), alpha=rules.bps * 1e-4)
    return traded, commission, spread, impact
