"""Nothing is lost or made: a step's change of equity is what its parts add up to."""

import pytest
import torch

from hpcrl.env.account import Account, advance, open_accounts
from hpcrl.env.bars import PackedBars, Rules, pack

BARS, SYMBOLS, ASSETS = 251, 12, 3
COSTS = {
    "half_spread": 2e-4,
    "slippage": 1e-4,
    "impact_coef": 1.0,
    "participation": 0.05,
    "per_share": 0.0035,
    "min_fee": 0.35,
    "bps": 1.0,
    "credit_rate": 0.03,
    "debit_rate": 0.07,
    "borrow_rate": 0.05,
    "max_leverage": 4.0,
    "max_net": 1.5,
    "maintenance": 0.2,
}
OWN = {
    "S1": {"half_spread": 1e-3, "participation": None, "borrow_rate": 0.3},
    "S5": {"min_fee": 3.0, "bps": 9.0},
}


def random_bars(rules: Rules, g: torch.Generator) -> PackedBars:
    """Bars with gaps, missing bars, splits, dividends and delistings."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape or (BARS, SYMBOLS), generator=g, dtype=torch.float64)

    def noise() -> torch.Tensor:
        return 0.01 * torch.randn(BARS, SYMBOLS, generator=g, dtype=torch.float64)

    split = torch.where(draw() < 0.01, torch.where(draw() < 0.5, 2.0, 0.25), 1.0).double()
    present = draw() > 0.07
    present[0] = True
    real = 80 * torch.exp(noise().cumsum(0)) / split.cumprod(0)
    row = torch.where(present, torch.arange(BARS)[:, None], 0).cummax(0).values
    close = real.gather(0, row)
    opens = torch.where(present, close * torch.exp(noise()), close)
    return pack(
        rules,
        [f"S{s}" for s in range(SYMBOLS)],
        ts_B=1_650_000_000 + 300 * torch.arange(BARS) + 60_000 * (torch.arange(BARS) // 78),
        open_BS=opens,
        high_BS=torch.where(present, torch.maximum(opens, close) * 1.01, close),
        low_BS=torch.where(present, torch.minimum(opens, close) * 0.99, close),
        close_BS=close,
        volume_BS=torch.where(present, 1e5 * draw(), 0.0),
        present_BS=present,
        sigma_BS=torch.full((BARS, SYMBOLS), 2e-3, dtype=torch.float64),
        split_BS=split,
        dividend_BS=torch.where(draw() < 0.01, 0.5, 0.0).double(),
        delist_BS=torch.where(draw() < 5e-4, 40.0, float("nan")).double(),
    )


def profit(before: Account, outcome, bar, lag: int) -> torch.Tensor:
    """What prices alone gave the positions, from the close of bar t to the close of bar t+1."""
    split, _, payout, listed = bar.corporate
    if lag == 0:  # traded at the close of bar t, before the split
        through_NA = (before.quantity_NA + outcome.fill_NA) * split
        moved_NA = through_NA * listed * (bar.close - bar.last)
    else:
        through_NA = before.quantity_NA * split
        moved_NA = through_NA * listed * (bar.open - bar.last)
        moved_NA = moved_NA + outcome.account.quantity_NA * (bar.close - bar.open)
    return (moved_NA + through_NA * (1 - listed) * (payout - bar.last)).sum(1)


def check_identity(rules: Rules, n: int, seed: int) -> int:
    """The number of steps at which equity change = price profit - costs + financing + dividends."""
    g = torch.Generator().manual_seed(seed)
    packed = random_bars(rules, g)
    symbol_NA = torch.stack([torch.randperm(SYMBOLS, generator=g)[:ASSETS] for _ in range(n)])
    account = fresh = open_accounts(n, ASSETS, rules, torch.device("cpu"))
    steps, used = (
        0,
        dict.fromkeys(("commission_NA", "spread_NA", "impact_NA", "financing_N1", "dividend_N1"), 0.0),
    )
    weight_NA = torch.zeros(n, ASSETS, dtype=torch.float64)
    for b in range(1, BARS):
        drawn_NA = torch.randn(n, ASSETS, generator=g, dtype=torch.float64)
        weight_NA = torch.where(torch.rand(n, 1, generator=g) < 0.3, drawn_NA, weight_NA)
        bar = packed.at(symbol_NA * BARS + b)
        outcome = advance(account, weight_NA, bar, rules)
        paid = (outcome.commission_NA + outcome.spread_NA + outcome.impact_NA).sum(1)
        change = profit(account, outcome, bar, rules.fill_lag) - paid
        change = change + outcome.financing_N1[:, 0] + outcome.dividend_N1[:, 0]
        equity = account.equity_N1[:, 0]
        error = (outcome.account.equity_N1[:, 0] - equity - change).abs() / equity
        alive = ~outcome.bankrupt_N1[:, 0]
        assert error[alive].max() < 1e-9
        steps += int(alive.sum())
        used = {name: total + float(getattr(outcome, name).abs().sum()) for name, total in used.items()}
        pairs = zip(outcome.account, fresh, strict=True)
        account = Account(*(x if x is None else torch.where(outcome.bankrupt_N1, y, x) for x, y in pairs))
    assert all(used.values()), used
    return steps


EVERY = [(lag, sizing) for lag in (0, 1, 2) for sizing in ("decision", "fill")]


@pytest.mark.parametrize(("lag", "sizing"), EVERY)
def test_accounting_identity_over_1e5_random_steps(lag, sizing):
    assert check_identity(Rules(fill_lag=lag, sizing=sizing, symbols=OWN, **COSTS), 410, seed=lag) > 100_000


@pytest.mark.soak
@pytest.mark.parametrize(("lag", "sizing"), EVERY)
def test_accounting_identity_over_1e6_random_steps(lag, sizing, record_property):
    steps = check_identity(
        Rules(fill_lag=lag, sizing=sizing, symbols=OWN, lot=1.0, **COSTS), 4100, seed=9 + lag
    )
    assert steps > 1_000_000
    record_property(f"steps at which the books balance, fill_lag {lag}, sizing {sizing}", steps)
