"""The account: one pure step for N accounts of A assets, all float64.

The order of the step is the simulator's contract: corporate actions, financing, delisting, gap check,
orders, intrabar check, mark. Orders are decided at the close of bar t and fill at the open of bar t+1; with
``fill_lag`` 2 they wait one bar more, with 0 (research only) they fill before all else at that same close.
Values of an asset are [N, A], values of an account [N, 1], so that both broadcast without reshaping.

Nothing here reads a device value from Python; branches are on ``Rules`` alone, so what is switched off
costs nothing. The same function drives training and ``hpcrl replay``.
"""

from __future__ import annotations

import math
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
    pending_NA: Tensor | None = None  # fill_lag 2: what fills next, NaN where nothing; else None
    """Sizing "decision": the target quantity. Sizing "fill": the target weight."""


class Trade(NamedTuple):
    order_NA: Tensor
    fill_NA: Tensor
    price_NA: Tensor
    paid_NA: Tensor  # cash paid, negative where sold
    commission_NA: Tensor
    spread_NA: Tensor
    impact_NA: Tensor


class Outcome(NamedTuple):
    """What one step did. ``account`` is the state after it (flat where bankrupt)."""

    account: Account
    value_NA: Tensor  # signed market value at the mark, 0 where bankrupt
    equity_raw_N1: Tensor  # may be negative where bankrupt
    log_return_N1: Tensor  # ln(E'/E); ln(reward_floor) where bankrupt
    bankrupt_N1: Tensor  # bool
    solvent_N1: Tensor  # bool: equity > 0 at the open; where not, bankrupt by the gap
    intrabar_N1: Tensor | None  # bool: equity <= 0 at the bar's worst prices (None: not checked)
    held_NA: Tensor  # the quantity of before the orders, counted as after corporate actions
    order_NA: Tensor  # signed quantity wanted, noise removed
    fill_NA: Tensor  # signed quantity filled
    price_NA: Tensor  # of the fill, before spread and impact
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
    pending_NA = torch.full_like(quantity_NA, math.nan) if rules.fill_lag == 2 else None
    return Account(cash_N1, quantity_NA, cash_N1.clone(), called_N1, pending_NA)


def over_assets(value_NA: Tensor) -> Tensor:
    """Sum over the assets, [N, 1]; the input must be contiguous. A contiguous row's sum does not depend on
    N by one bit, a sum over the first dimension of [A, N] does (measured)."""
    return value_NA if value_NA.shape[1] == 1 else value_NA.sum(1, keepdim=True)


def advance(account: Account, weight_NA: Tensor, bar: Bar, rules: Rules) -> Outcome:
    """One step: target weights decided at the close of bar t, filled and marked in ``bar`` (t+1)."""
    cash, held, trade = account.cash_N1, account.quantity_NA, None
    zero = cash.new_zeros(())  # torch.where with a number would make one each time
    if rules.fill_lag == 0:
        trade = _trade_at_close(account, weight_NA, bar, rules, zero)
        cash = cash - over_assets(trade.paid_NA + trade.commission_NA)
    start = held
    quantity = held if trade is None else held + trade.fill_NA
    cash, quantity, dividend = _corporate(cash, quantity, bar)
    financing = _financing(cash, quantity, bar, rules)
    cash = cash + financing
    if bar.corporate is not None:  # delisting, without fees
        cash = cash + over_assets(quantity * bar.corporate.payout)
        quantity = quantity * bar.corporate.listed
    at_open = cash + over_assets(quantity * bar.open)
    solvent = at_open > 0.0

    if trade is None:
        held = quantity
        target = _target(account, weight_NA, at_open, bar, rules)
        trade = _trade(held, target, bar.open, solvent, bar, rules, zero)
        cash = cash - over_assets(trade.paid_NA + trade.commission_NA)
        quantity = held + trade.fill_NA
    elif bar.corporate is not None:
        held = start * bar.corporate.split * bar.corporate.listed

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
        _next_pending(account, weight_NA, bankrupt, bar, rules) if rules.fill_lag == 2 else None,
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
        trade.order_NA,
        trade.fill_NA,
        trade.price_NA,
        trade.paid_NA.abs(),
        trade.commission_NA,
        trade.spread_NA,
        trade.impact_NA,
        financing,
        dividend,
    )


def _corporate(cash: Tensor, held: Tensor, bar: Bar) -> tuple[Tensor, Tensor, Tensor]:
    """Splits, then dividends on the quantity after the split (a short pays)."""
    if bar.corporate is None:
        return cash, held, torch.zeros_like(cash)
    held = held * bar.corporate.split
    dividend = over_assets(held * bar.corporate.dividend)
    return cash + dividend, held, dividend


def _financing(cash: Tensor, held: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """Interest on free cash (short proceeds earn nothing) less the borrow fee, on quantities and closes
    of bar t for the real time until bar t+1."""
    if not rules.has_financing:
        return torch.zeros_like(cash)
    short_NA = (held * bar.last).clamp_max(0.0)
    short = over_assets(short_NA)  # <= 0
    free = cash + short
    if rules.credit_rate:
        yearly = free * rules.debit_rate
        yearly = torch.add(yearly, free.clamp_min(0.0), alpha=rules.credit_rate - rules.debit_rate)
    else:  # adding and taking the debit rate would leave an idle account's cash a financing of 1e-12
        yearly = free.clamp_max(0.0) * rules.debit_rate
    if bar.rates is not None:
        return (yearly + over_assets(short_NA * bar.rates.borrow)) * bar.years
    return torch.add(yearly, short, alpha=rules.borrow_rate) * bar.years


def _limited(weight_NA: Tensor, rules: Rules) -> Tensor:
    """Weights scaled to the gross limit, then to the net limit."""
    gross, net = rules.max_leverage, rules.max_net
    if weight_NA.shape[1] == 1:
        limit = gross if net is None else min(gross, net)
        return weight_NA.clamp(-limit, limit)
    weight_NA = weight_NA * (gross / over_assets(weight_NA.abs()).clamp_min(gross))
    if net is not None:
        weight_NA = weight_NA * (net / over_assets(weight_NA).abs().clamp_min(net))
    return weight_NA


def _lots(target: Tensor, rules: Rules) -> Tensor:
    """Quantities rounded toward zero."""
    return torch.copysign(floor_lots(target.abs(), rules.lot), target) if rules.lot else target


def _target(account: Account, weight_NA: Tensor, at_open: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """The quantity that fills at the open lead to; NaN where no order was given."""
    if account.pending_NA is None:
        weight_NA = _limited(weight_NA, rules)
    else:
        weight_NA = account.pending_NA
    if rules.maintenance:
        weight_NA = torch.where(account.called_N1, weight_NA.new_zeros(()), weight_NA)
    if rules.sizing == "fill":
        return _lots(weight_NA * at_open / bar.open, rules)
    if account.pending_NA is None:
        return _lots(weight_NA * account.equity_N1 / bar.last, rules)
    return weight_NA if bar.corporate is None else weight_NA * bar.corporate.split


def _close_before(bar: Bar) -> Tensor:
    """The close of bar t as it was shown at t: before a split of bar t+1."""
    return bar.last if bar.corporate is None else bar.last * bar.corporate.split


def _next_pending(account: Account, weight_NA: Tensor, bankrupt: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """The order decided at the close of bar t that waits for the open of bar t+2; none after bankruptcy."""
    pending = _limited(weight_NA, rules)
    if rules.sizing == "decision":
        pending = _lots(pending * account.equity_N1 / _close_before(bar), rules)
        if bar.corporate is not None:
            pending = pending * bar.corporate.split
    return pending.masked_fill(bankrupt, math.nan)


def _trade_at_close(account: Account, weight_NA: Tensor, bar: Bar, rules: Rules, zero: Tensor) -> Trade:
    """``fill_lag`` 0: the order fills at the close of bar t, at which it was decided."""
    weight_NA = _limited(weight_NA, rules)
    if rules.maintenance:
        weight_NA = torch.where(account.called_N1, zero, weight_NA)
    price = _close_before(bar)
    target = _lots(weight_NA * account.equity_N1 / price, rules)
    return _trade(account.quantity_NA, target, price, None, bar, rules, zero)


def _trade(
    held: Tensor, target: Tensor, price: Tensor, solvent: Tensor | None, bar: Bar, rules: Rules, zero: Tensor
) -> Trade:
    """From the position toward the target, where ``solvent`` (None: everywhere)."""
    order = target - held
    real = order.abs() > held.abs() * ORDER_NOISE  # False for the NaN of no order
    order = torch.where(real if solvent is None else real & solvent, order, zero)
    fill = _capped(order, bar, rules)
    return Trade(order, fill, price, *_costs(fill, price, bar, rules))


def _capped(order: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """The part of the order that fills: all of it up to the cap, else whole lots of the cap."""
    fill = torch.clamp(order, -bar.cap, bar.cap)
    if rules.lot and rules.has_participation:
        cut = torch.copysign(floor_lots(fill.abs(), rules.lot), order)
        fill = torch.where(fill == order, fill, cut)
    return fill


def _costs(fill: Tensor, price: Tensor, bar: Bar, rules: Rules) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cash paid for the fills (negative for sells), commission, spread cost and impact cost.

    fill x price paid = fill x price + |fill| x price x (spread + impact): the costs are always paid.
    """
    size = fill.abs()
    notional = size * price
    spread = notional * (rules.half_spread + rules.slippage if bar.rates is None else bar.rates.spread)
    paid = torch.addcmul(spread, fill, price)
    if rules.has_impact:
        impact = notional * bar.impact * size.sqrt()
        paid = paid + impact
    else:
        impact = torch.zeros_like(notional)
    return paid, _commission(size, paid, bar, rules), spread, impact


def _commission(size: Tensor, paid: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """No fill, no commission."""
    if bar.rates is not None:
        least = torch.where(size > 0.0, bar.rates.min_fee, size.new_zeros(()))
        return torch.maximum(size * bar.rates.per_share, least) + paid.abs() * bar.rates.share
    commission = size * rules.per_share
    if rules.min_fee:
        commission = torch.where(size > 0.0, commission.clamp_min(rules.min_fee), commission)
    if rules.bps:
        commission = torch.add(commission, paid.abs(), alpha=rules.bps * 1e-4)
    return commission
