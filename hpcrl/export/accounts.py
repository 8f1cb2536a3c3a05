"""The account as the broker reports it, turned into the token's entries as ``hpcrl.env.token`` has them.

What training's simulator knew and no broker tells (age of a position, drawdown, the last reward) follows from
the reports. float64 as there; N accounts of A assets. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcrl.export.bars import is_finite
from hpcrl.export.rewards import Rewards, StepFacts, lerp
from hpcrl.types import HpcrlError

PROFIT_SCALE = 10.0  # these six as in hpcrl.env.token
AGE_SCALE = 0.2
DRAWDOWN_SCALE = 10.0
REWARD_SCALE = 100.0
REWARD_CLIP = 5.0
CLIP = 10.0


@dataclass(frozen=True)
class Account:
    """What the broker says after a bar's close, in the account's currency."""

    equity: float
    """Cash and market value."""
    cash: float
    """May be negative (borrowed)."""
    positions: Mapping[str, float] = field(default_factory=dict)
    """Signed quantity by symbol; not named: none."""
    average_prices: Mapping[str, float] = field(default_factory=dict)
    """Average entry price by symbol, without costs; not named: from the opens at which positions changed."""
    traded: float | None = None
    """Value traded since the last bar; None: changes of the positions times the bar's open."""


@dataclass(frozen=True)
class Marks:
    """What the market adds, float64 [N, A]."""

    close: np.ndarray  # last known
    open: np.ndarray  # of the bar, the last known close where there was none
    split: np.ndarray  # 1 where none
    sigma: np.ndarray  # known at the close, 0 where not


class Accounts:
    def __init__(self, symbols_NA: Sequence[Sequence[str]], config: Mapping[str, Any]) -> None:
        """``config``: env of the resolved config."""
        self._symbols = symbols_NA
        shape = (len(symbols_NA), len(symbols_NA[0]))
        self.rewards = Rewards(config["rewards"], shape[0])
        costs = config["costs"]
        own = costs["symbols"]
        self._spread_NA = np.array(
            [
                [sum(own.get(s, {}).get(k, costs[k]) for k in ("half_spread", "slippage")) for s in row]
                for row in symbols_NA
            ]
        )
        zero_NA, zero_N1 = np.zeros(shape), np.zeros((shape[0], 1))
        self._now = {name: zero_NA.copy() for name in ("quantity", "entry", "age", "target", "value")}
        names = ("cash", "equity", "peak", "drawdown", "reward", "sigma")
        self._now |= {name: zero_N1.copy() for name in names}
        self.begun = False

    def check(self, account: Account, n: int) -> None:
        """HpcrlError: no account that a policy could decide for."""
        mine = self._symbols[n]
        which = f"account of {mine[0]}" if len(self._symbols) > 1 else "account"
        for name in ("equity", "cash"):
            if not is_finite(getattr(account, name)):
                raise HpcrlError(f"{which}: {name} is {getattr(account, name)!r}; a finite number is needed")
        if account.equity <= 0:
            raise HpcrlError(
                f"{which}: equity is {account.equity:g}; nothing is left to decide about (> 0 is needed)"
            )
        if account.traded is not None and not (is_finite(account.traded) and account.traded >= 0):
            raise HpcrlError(f"{which}: traded is {account.traded!r}; a finite number not below 0 is needed")
        for kind, given in (("positions", account.positions), ("average_prices", account.average_prices)):
            for symbol, value in given.items():
                if symbol not in mine:
                    raise HpcrlError(
                        f"{which}: {kind} name {symbol!r}, the policy trades {', '.join(mine)} there"
                    )
                if not is_finite(value) or (kind == "average_prices" and value <= 0):
                    raise HpcrlError(f"{which}: {kind} of {symbol} is {value!r}; a finite number is needed")

    def update(self, accounts: Sequence[Account], marks: Marks) -> None:
        """The accounts after a bar's close; ``target`` is what was decided at the bar before."""
        now = self._now
        quantity_NA = self._table([account.positions for account in accounts], 0.0)
        equity_N1 = np.array([[account.equity] for account in accounts], dtype=np.float64)
        held_NA = now["quantity"] * marks.split
        kept_NA = np.clip(held_NA * quantity_NA / (quantity_NA * quantity_NA + 1e-300), 0.0, 1.0)
        entry_NA = lerp(marks.open, now["entry"] / marks.split, kept_NA)
        peak_N1 = np.maximum(now["peak"], equity_N1)
        drawdown_N1 = (peak_N1 - equity_N1) / peak_N1
        if self.begun:
            before_N1 = now["equity"]
            facts = StepFacts(
                log_return=np.log(equity_N1 / before_N1)[:, 0],
                simple_return=((equity_N1 - before_N1) / before_N1)[:, 0],
                turnover=self._traded(accounts, quantity_NA - held_NA, marks) / before_N1[:, 0],
                drawdown_before=now["drawdown"][:, 0],
                drawdown_after=drawdown_N1[:, 0],
                sigma=now["sigma"][:, 0],
            )
            now["reward"] = self.rewards.pay(facts)[:, None]
        now["entry"] = self._table([account.average_prices for account in accounts], entry_NA)
        now["age"] = (now["age"] + 1.0) * np.sign(kept_NA)
        now["quantity"], now["value"] = quantity_NA, quantity_NA * marks.close
        now["cash"] = np.array([[account.cash] for account in accounts], dtype=np.float64)
        now["equity"], now["peak"], now["drawdown"] = equity_N1, peak_N1, drawdown_N1
        known_N1 = (marks.sigma > 0.0).sum(1, keepdims=True)
        now["sigma"] = marks.sigma.sum(1, keepdims=True) / np.maximum(known_N1, 1)
        self.begun = True

    def _table(self, by_symbol: Sequence[Mapping[str, float]], else_: np.ndarray | float) -> np.ndarray:
        else_NA = np.broadcast_to(else_, self._now["quantity"].shape)
        return np.array(
            [
                [float(given.get(symbol, default)) for symbol, default in zip(row, defaults, strict=True)]
                for given, row, defaults in zip(by_symbol, self._symbols, else_NA, strict=True)
            ]
        )

    def _traded(self, accounts: Sequence[Account], fill_NA: np.ndarray, marks: Marks) -> np.ndarray:
        """Value traded in the bar, [N]: with half-spread and slippage, as far as nobody says."""
        paid_NA = fill_NA * marks.open + np.abs(fill_NA) * marks.open * self._spread_NA
        derived_N = np.abs(paid_NA).sum(1)
        said = [account.traded for account in accounts]
        return np.array([own if one is None else one for one, own in zip(said, derived_N, strict=True)])

    def decided(self, target_NA: np.ndarray) -> None:
        self._now["target"] = target_NA

    def entries(self) -> np.ndarray:
        """float64 [N, 4 A + 3 + ...], scaled and clipped as the token has them."""
        now = self._now
        equity_N1 = now["equity"]
        profit_NA = now["value"] - now["quantity"] * now["entry"]
        parts = [
            now["value"] / equity_N1,
            profit_NA * PROFIT_SCALE / equity_N1,
            np.log1p(now["age"]) * AGE_SCALE,
            now["target"],
            now["cash"] / equity_N1,
            now["drawdown"] * DRAWDOWN_SCALE,
            np.clip(now["reward"] * REWARD_SCALE, -REWARD_CLIP, REWARD_CLIP),
            *(entry_N[:, None] for entry_N in self.rewards.entries()),
        ]
        return np.clip(np.concatenate(parts, axis=1), -CLIP, CLIP)

    def state(self) -> dict[str, np.ndarray]:
        moving = {name: term.state for name, term in self.rewards.moving.items()}
        return self._now | moving | {"begun": np.array(self.begun)}

    def load_state(self, saved: Mapping[str, np.ndarray]) -> None:
        self.begun = bool(saved["begun"])
        self._now = {name: saved[name].copy() for name in self._now}
        for name, term in self.rewards.moving.items():
            term.state = saved[name].copy()
