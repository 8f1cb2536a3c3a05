"""The simulator's accounts, costs and rewards. Costs are fractions unless the name says bps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from hpcrl.config.base import Mistake, Section

HINDSIGHT = (
    "env.fill_lag = 0: orders fill at the close that the agent has just seen, which no market allows; "
    "research only, no performance claim follows from this"
)
"""Said by everything that trains or scores with such fills."""


class TradeCosts(Section):
    """What may differ by symbol."""

    half_spread: float = Field(1e-4, ge=0, lt=0.5)
    """Fraction of the price paid on each side (1e-4 = 1 bp)."""
    slippage: float = Field(0.0, ge=0, lt=0.5)
    """Further fraction of the price, always against us; counted as spread cost."""
    impact_coef: float = Field(1.0, ge=0)
    """Square-root impact: coef x sigma x sqrt(|fill| / volume), a fraction of the price."""
    participation: float | None = Field(0.05, gt=0, le=1)
    """Largest share of a bar's volume that one order fills; null: no limit."""
    per_share: float = Field(0.0035, ge=0)
    """Commission in currency per share."""
    min_fee: float = Field(0.35, ge=0)
    """Least commission of a fill, in currency."""
    bps: float = Field(0.0, ge=0)
    """Commission in basis points of the traded value."""
    borrow_rate: float = Field(0.003, ge=0, le=10)
    """Yearly fee on the market value of shorts."""


class SymbolCosts(TradeCosts):
    """The costs in which one symbol differs; what is not named is that of ``costs``."""

    @model_serializer(mode="wrap")
    def _only_named(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # A default written out would override the costs of all symbols when it is read again.
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


class CostConfig(TradeCosts):
    """Defaults for US large caps (assumptions, not measurements)."""

    credit_rate: float = Field(0.0, ge=-1, le=1)
    """Yearly interest on free cash (ACT/365)."""
    debit_rate: float = Field(0.0, ge=0, le=1)
    """Yearly interest on borrowed cash."""
    symbols: dict[str, SymbolCosts] = Field(default_factory=dict)
    """Symbols with costs of their own: {MSFT: {half_spread: 5e-5}}."""


class RewardWeights(Section):
    """Weights of the reward terms, which are summed; 0 switches a term off."""

    log_return: float = 1.0
    """ln(E'/E)."""
    turnover: float = 0.0
    """Times -(traded value / equity): a positive weight discourages trading."""
    drawdown: float = 0.0
    """Times -(increase of drawdown in this step)."""
    differential_sharpe: float = 0.0
    """Times what the step does to the Sharpe ratio (of order 1: weigh it by the size of a step's return)."""
    differential_downside: float = 0.0
    """Times what the step does to the downside deviation ratio."""
    mean_variance: float = 0.0
    """Times r - risk_aversion / 2 x r^2."""
    crra: float = 0.0
    """Times the utility of constant relative risk aversion."""
    vol_scaled: float = 0.0
    """Times r x vol_target / the market's volatility."""
    potential: float = 0.0
    """Times potential_gamma x phi' - phi, phi = -depth of the drawdown; see potential_gamma."""


class RewardConfig(RewardWeights):
    eta: float = Field(0.01, gt=0, lt=1)
    """Of the differential terms: share of the newest bar in their moving averages."""
    warmup_bars: int | None = Field(None, ge=0)
    """Bars, from the first in which the account moved, in which they pay nothing; null: 1 / eta."""
    least_deviation: float = Field(1e-5, gt=0)
    """Standard deviation per bar below which they see none smaller (a guess)."""
    risk_aversion: float = Field(10.0, ge=0)
    """Lambda of mean_variance."""
    crra_gamma: float = Field(3.0, ge=0)
    """Relative risk aversion of crra; 1 is the logarithm."""
    vol_target: float = Field(1e-3, gt=0)
    """Standard deviation per bar at which vol_scaled is the return itself."""
    potential_gamma: float = Field(0.99, gt=0, le=1)
    """Discount of potential: where it equals learn.gamma, potential leaves the best policy as it is."""

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in RewardWeights.model_fields}

    @property
    def warmup(self) -> int:
        return round(1 / self.eta) if self.warmup_bars is None else self.warmup_bars


class EnvConfig(Section):
    envs_per_gpu: int = Field(10, ge=1, le=1_000_000)
    """Environments of one rank."""
    assets: Literal["single", "all"] = "single"
    """single: one symbol per environment; all: one account over every symbol."""
    episode_rollouts: int = Field(1, ge=1, le=1_000_000)
    """Length of a training episode in rollouts."""
    initial_cash: float = Field(100_000.0, gt=0)
    fill_lag: Literal[0, 1, 2] = 1
    """Orders decided at the close of bar t fill at the open of bar t+1 (or t+2); 0: at that same close, which
    nobody can do (research only, marked wherever results are shown)."""
    sizing: Literal["decision", "fill"] = "decision"
    """Which equity and price size an order: at the decision's close, or at the fill's open."""
    lot: float = Field(1.0, ge=0)
    """Target quantities are rounded toward zero to this lot (1: whole shares); 0: fractional."""
    max_leverage: float = Field(1.0, gt=0)
    """Target weights are scaled so that sum |w| stays at or below it."""
    max_net: float | None = Field(None, gt=0)
    """Then all are scaled so that |sum of w| stays at or below this; null: no limit."""
    maintenance: float = Field(0.0, ge=0, lt=1)
    """Equity below this share of gross exposure: margin call."""
    intrabar: bool = True
    """Check for bankruptcy at the bar's low (longs) and high (shorts)."""
    reward_floor: float = Field(1e-4, gt=0, lt=1)
    """A bankrupt step earns ln(reward_floor)."""
    costs: CostConfig = CostConfig()
    rewards: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _some_reward(self) -> EnvConfig:
        if not any(self.rewards.weights.values()):
            raise Mistake("rewards: every weight is 0; at least one term needs a weight", "rewards")
        return self
