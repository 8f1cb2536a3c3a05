"""The account: one pure step for N accounts of A assets, all float64.

The order of the step is the simulator's contract: corporate actions, financing, delisting, gap check,
orders, intrabar check, mark. Orders are decided at the close of bar t and fill at the open of bar t+1; with
``fill_lag`` 2 they wait one bar more, with 0 (research only) they fill before all else at that same close.
Values of an asset are [N, A], values of an account [N, 1], so that both broadcast without reshaping.

Branches are on ``Rules`` alone, so what is switched off costs nothing, and no device value is read from
Python, unless the caller allows a ``look``: then masks are left out where nobody is in trouble. The same
function drives training and ``hpcrl replay``.
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
    """``Outcome`` holds all but the first, in this order."""

    paid_NA: Tensor  # cash paid for the fill, negative where sold
    order_NA: Tensor
    fill_NA: Tensor
    price_NA: Tensor
    traded_NA: Tensor  # |paid|
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
    some_bankrupt: bool  # False: known that nobody is
    some_called: bool  # False: known that nobody is
    solvent_N1: Tensor | None  # bool: equity > 0 at the open (None: all); where not, bankrupt by the gap
    intrabar_N1: Tensor | None  # bool: equity <= 0 at the bar's worst prices (None: nobody's, or not checked)
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


def _positive(value: Tensor, look: bool) -> bool:
    """Whether all values are known to be > 0."""
    return look and value.min().item() > 0.0


def advance(
    account: Account,
    weight_NA: Tensor,
    bar: Bar,
    rules: Rules,
    *,
    look: bool = False,
    some_called: bool = True,
) -> Outcome:
    """One step: target weights decided at the close of bar t, filled and marked in ``bar`` (t+1).

    ``look``: values may be read from Python, a trifle on a CPU and a wait on an accelerator; where nobody is
    in trouble nothing is masked then, and the outcome is the same bit for bit. ``some_called``: False where
    it is known that ``account`` holds no margin call.
    """
    cash, held, trade = account.cash_N1, account.quantity_NA, None
    called = account.called_N1 if rules.maintenance and some_called else None
    if rules.fill_lag == 0:
        trade = _trade_at_close(account, weight_NA, called, bar, rules)
        cash = cash - over_assets(trade.paid_NA + trade.commission_NA)
    start = held
    quantity = held if trade is None else held + trade.fill_NA
    cash, quantity, financing, dividend = _carried(cash, quantity, bar, rules)
    at_open = cash + over_assets(quantity * bar.open)
    solvent = None if _positive(at_open, look) else at_open > 0.0

    if trade is None:
        held = quantity
        target = _target(account, weight_NA, called, at_open, bar, rules)
        trade = _trade(held, target, bar.open, solvent, bar, rules)
        cash = cash - over_assets(trade.paid_NA + trade.commission_NA)
        quantity = held + trade.fill_NA
    elif bar.corporate is not None:
        held = start * bar.corporate.split * bar.corporate.listed

    value, raw, intrabar = _mark(cash, quantity, bar, rules, look)
    if solvent is not None:
        raw = torch.where(solvent, raw, at_open)
    growth, equity = raw / account.equity_N1, raw
    some_bankrupt = solvent is not None or intrabar is not None or not _positive(raw, look)
    bankrupt = raw <= 0.0 if some_bankrupt else torch.zeros_like(account.called_N1)
    if some_bankrupt:
        value, quantity = value.masked_fill(bankrupt, 0.0), quantity.masked_fill(bankrupt, 0.0)
        cash, equity = torch.where(bankrupt, raw, cash), raw.clamp_min(0.0)
        growth.masked_fill_(bankrupt, rules.reward_floor)
    pending = _next_pending(account, weight_NA, bankrupt, bar, rules) if rules.fill_lag == 2 else None
    now_called, some_called = _called(equity, value, account, rules, look)
    after = Account(cash, quantity, equity, now_called, pending)
    return Outcome(
        after,
        value,
        raw,
        growth.log_(),
        bankrupt,
        some_bankrupt,
        some_called,
        solvent,
        intrabar,
        held,
        *trade[1:],
        financing,
        dividend,
    )


def _mark(
    cash: Tensor, quantity: Tensor, bar: Bar, rules: Rules, look: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values and equity at the close; where it is gone at the bar's worst prices, the equity at those."""
    value = quantity * bar.close
    equity = cash + over_assets(value)
    if rules.intrabar:
        worst = cash + over_assets(torch.minimum(quantity * bar.low, quantity * bar.high))
        if not _positive(worst, look):
            gone = worst <= 0.0
            return value, torch.where(gone, worst, equity), gone
    return value, equity, None


def _called(equity: Tensor, value: Tensor, account: Account, rules: Rules, look: bool) -> tuple[Tensor, bool]:
    """Whose equity lies below the maintenance margin of what they hold; False where known that nobody's."""
    if not rules.maintenance:
        return account.called_N1, False
    needed = over_assets(value.abs()).mul_(rules.maintenance)
    if _positive(equity - needed, look):
        return torch.zeros_like(account.called_N1), False
    return equity < needed, True


def _carried(cash: Tensor, held: Tensor, bar: Bar, rules: Rules) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cash and quantity before the orders at the open, with the financing and dividends in the cash."""
    cash, held, dividend = _corporate(cash, held, bar)
    financing = _financing(cash, held, bar, rules)
    cash = cash + financing
    if bar.corporate is not None:  # delisting, without fees
        cash = cash + over_assets(held * bar.corporate.payout)
        held = held * bar.corporate.listed
    return cash, held, financing, dividend


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
    short_NA = (held * bar.last).clamp_max_(0.0)
    short = over_assets(short_NA)  # <= 0
    if rules.credit_rate:
        free = cash + short
        yearly = free * rules.debit_rate
        yearly.add_(free.clamp_min_(0.0), alpha=rules.credit_rate - rules.debit_rate)
    else:  # adding and taking the debit rate would leave an idle account's cash a financing of 1e-12
        yearly = (cash + short).clamp_max_(0.0).mul_(rules.debit_rate)
    if bar.rates is not None:
        return yearly.add_(over_assets(short_NA * bar.rates.borrow)).mul_(bar.years)
    return yearly.add_(short, alpha=rules.borrow_rate).mul_(bar.years)


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


def _target(
    account: Account, weight_NA: Tensor, called: Tensor | None, at_open: Tensor, bar: Bar, rules: Rules
) -> Tensor:
    """The quantity that fills at the open lead to; NaN where no order was given."""
    if account.pending_NA is None:
        weight_NA = _limited(weight_NA, rules)
    else:
        weight_NA = account.pending_NA
    if called is not None:
        weight_NA = torch.where(called, weight_NA.new_zeros(()), weight_NA)
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


def _trade_at_close(
    account: Account, weight_NA: Tensor, called: Tensor | None, bar: Bar, rules: Rules
) -> Trade:
    """``fill_lag`` 0: the order fills at the close of bar t, at which it was decided."""
    weight_NA = _limited(weight_NA, rules)
    if called is not None:
        weight_NA = torch.where(called, weight_NA.new_zeros(()), weight_NA)
    price = _close_before(bar)
    target = _lots(weight_NA * account.equity_N1 / price, rules)
    return _trade(account.quantity_NA, target, price, None, bar, rules)


def _trade(
    held: Tensor, target: Tensor, price: Tensor, solvent: Tensor | None, bar: Bar, rules: Rules
) -> Trade:
    """From the position toward the target, where ``solvent`` (None: everywhere)."""
    order = target - held
    real = solvent
    if not bar.whole:
        real = order.abs() > held.abs() * ORDER_NOISE  # False for the NaN of no order
        real = real if solvent is None else real & solvent
    if real is not None:
        order = torch.where(real, order, order.new_zeros(()))
    fill = _capped(order, bar, rules)
    paid, *rest = _costs(fill, price, bar, rules)
    return Trade(paid, order, fill, price, *rest)


def _capped(order: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """The part of the order that fills: all of it up to the cap, else whole lots of the cap."""
    # + 0 makes 0 of -0: of the two zeros a clamp takes one that depends on N (measured).
    fill = torch.clamp(order, -bar.cap, bar.cap).add_(0.0)
    if bar.whole:
        return fill
    if rules.lot and rules.has_participation:
        cut = torch.copysign(floor_lots(fill.abs(), rules.lot), order)
        fill = torch.where(fill == order, fill, cut)
    return fill


def _costs(fill: Tensor, price: Tensor, bar: Bar, rules: Rules) -> tuple[Tensor, ...]:
    """Cash paid for the fills (negative for sells), its size, commission, spread cost and impact cost.

    fill x price paid = fill x price + |fill| x price x (spread + impact): the costs are always paid.
    """
    size = fill.abs()
    notional = size * price
    spread = notional * (rules.half_spread + rules.slippage if bar.rates is None else bar.rates.spread)
    paid = torch.addcmul(spread, fill, price)
    if rules.has_impact:
        impact = notional.mul_(bar.impact).mul_(size.sqrt())
        paid.add_(impact)
    else:
        impact = torch.zeros_like(notional)
    traded = paid.abs()
    return paid, traded, _commission(size, traded, bar, rules), spread, impact


def _commission(size: Tensor, traded: Tensor, bar: Bar, rules: Rules) -> Tensor:
    """No fill, no commission."""
    if bar.rates is not None:
        least = torch.where(size > 0.0, bar.rates.min_fee, size.new_zeros(()))
        return torch.maximum(size * bar.rates.per_share, least) + traded * bar.rates.share
    commission = size * rules.per_share
    if rules.min_fee:
        commission.clamp_min_(rules.min_fee).mul_(size.sign())
    if rules.bps:
        commission.add_(traded, alpha=rules.bps * 1e-4)
    return commission
