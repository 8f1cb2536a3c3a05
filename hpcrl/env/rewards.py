"""The registry of reward terms: named, batched, summed with the weights of the config.

A term maps one step's facts to [N, 1] float64; its sign is chosen so that a positive weight rewards what
is wanted. A bankrupt step pays ln(reward_floor) for every term that looks at the return, whatever the term
would say: neither nothing (as during a warm-up) nor the millions that a utility of -99.99 % is.

The *objective* by which agents are compared is never this sum: it is the unshaped account.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpcrl.config.env import RewardConfig
from hpcrl.types import HpcrlError

MOST_SCALE = 10.0
"""Of the volatility-scaled return, a guess: a symbol that hardly moves must not rule the sum."""
MEAN_SCALE = 10.0  # of the state in the token: mean / deviation of 5-minute returns is of order 0.1
DEVIATION_UNIT = 1e-4
DEVIATION_SCALE = 0.4  # ln(1 + 1e-3 / 1e-4) x 0.4 = 1


class StepFacts(NamedTuple):
    """[N, 1] float64 each; what no active term needs is None."""

    log_return: Tensor  # ln(E'/E), ln(reward_floor) where bankrupt
    turnover: Tensor  # traded value / equity before
    drawdown_before: Tensor  # depth below the episode's highest equity, in [0, 1]
    drawdown_after: Tensor
    bankrupt: Tensor  # bool
    simple_return: Tensor | None = None  # E'/E - 1
    sigma: Tensor | None = None  # of the market's log returns, known at the decision; 0: not known


Term = Callable[[StepFacts, RewardConfig], Tensor]


def _log_return(step: StepFacts, config: RewardConfig) -> Tensor:
    return step.log_return


def _turnover(step: StepFacts, config: RewardConfig) -> Tensor:
    return -step.turnover


def _drawdown(step: StepFacts, config: RewardConfig) -> Tensor:
    """Increments, not depth: a loss is punished once, and a recovery is not rewarded twice."""
    return (step.drawdown_before - step.drawdown_after).clamp_max(0.0)


def _mean_variance(step: StepFacts, config: RewardConfig) -> Tensor:
    """r - lambda/2 r^2 (Kolm and Ritter 2019)."""
    assert step.simple_return is not None
    value = step.simple_return - 0.5 * config.risk_aversion * step.simple_return**2
    return _or_ruin(value, step)


def _crra(step: StepFacts, config: RewardConfig) -> Tensor:
    """Constant relative risk aversion: ((E'/E)^(1 - gamma) - 1) / (1 - gamma), ln(E'/E) for gamma 1."""
    power = 1.0 - config.crra_gamma
    if power == 0:
        return step.log_return
    return _or_ruin(torch.expm1(step.log_return * power) / power, step)


def _vol_scaled(step: StepFacts, config: RewardConfig) -> Tensor:
    """r x vol_target / sigma of the market (Zhang, Zohren and Roberts 2020), 0 where sigma is not known."""
    assert step.simple_return is not None and step.sigma is not None
    scale = (config.vol_target / step.sigma).clamp_max(MOST_SCALE)
    value = torch.where(step.sigma > 0.0, step.simple_return * scale, scale.new_zeros(()))
    return _or_ruin(value, step)


def _potential(step: StepFacts, config: RewardConfig) -> Tensor:
    """gamma phi' - phi with phi = -depth of the drawdown (Ng, Harada and Russell 1999). The potential of a
    terminal state is 0, or the best policy would change (Grzes 2017)."""
    after = step.drawdown_after.masked_fill(step.bankrupt, 0.0)
    return torch.sub(step.drawdown_before, after, alpha=config.potential_gamma)


def _or_ruin(value: Tensor, step: StepFacts) -> Tensor:
    return torch.where(step.bankrupt, step.log_return, value)


TERMS: dict[str, Term] = {
    "log_return": _log_return,
    "turnover": _turnover,
    "drawdown": _drawdown,
    "mean_variance": _mean_variance,
    "crra": _crra,
    "vol_scaled": _vol_scaled,
    "potential": _potential,
}
"""Terms without a state of their own."""


class Differential:
    """What a step does to a moving ratio of mean return and risk (Moody and Saffell 2001): its derivative by
    eta. State, per account and episode: moving averages of r and of its square, and how long they ran.

    Nothing is paid in the first ``warmup`` bars after the account first moved, while two or three returns
    make up the averages: the second step of a cold start would pay -40. Deviations below
    ``least_deviation`` count as that: a long flat account's averages decay to nothing.
    """

    def __init__(self, config: RewardConfig, n: int, device: torch.device) -> None:
        self._config = config
        self._least = config.least_deviation
        self.state = {
            name: torch.zeros((n, 1), dtype=torch.float64, device=device)
            for name in ("mean", "square", "bars")
        }

    def pay(self, step: StepFacts) -> Tensor:
        """[N, 1]; moves the state."""
        assert step.simple_return is not None
        r, config = step.simple_return, self._config
        mean, square, bars = self.state.values()
        square_now = self._square(r)
        value = self._value(r, mean, square)
        if config.warmup:
            value = torch.where(bars >= config.warmup, value, value.new_zeros(()))
        mean.lerp_(r, config.eta)
        square.lerp_(square_now, config.eta)
        bars.add_((mean != 0.0) | (square > 0.0))
        return _or_ruin(value, step)

    def entries(self) -> list[Tensor]:
        """The state as the token shows it, each [N, 1]: mean / deviation, deviation, share of the warm-up."""
        mean, square, bars = self.state.values()
        deviation = square.sqrt()
        shown = [
            mean / deviation.clamp_min(self._least) * MEAN_SCALE,
            torch.log1p(deviation / DEVIATION_UNIT) * DEVIATION_SCALE,
        ]
        return [*shown, (bars / self._config.warmup).clamp_max(1.0)] if self._config.warmup else shown

    def entry_names(self) -> list[str]:
        return ["mean", "deviation", "warm"] if self._config.warmup else ["mean", "deviation"]

    def _square(self, r: Tensor) -> Tensor:
        raise NotImplementedError

    def _value(self, r: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        raise NotImplementedError


class DifferentialSharpe(Differential):
    """(B dA - A dB / 2) / (B - A^2)^(3/2), A and B the averages of r and r^2, dA = r - A, dB = r^2 - B."""

    def _square(self, r: Tensor) -> Tensor:
        return r * r

    def _value(self, r: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        variance = (square - mean * mean).clamp_min(self._least**2)
        change = square * (r - mean) - 0.5 * mean * (r * r - square)
        return change / (variance * variance.sqrt())


class DifferentialDownside(Differential):
    """Of the downside deviation ratio: (B (r - A/2) - A r^2 / 2 where r <= 0) / B^(3/2), B the average of
    min(r, 0)^2; 0 until the first loss."""

    def _square(self, r: Tensor) -> Tensor:
        loss = r.clamp_max(0.0)
        return loss * loss

    def _value(self, r: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        deviation = square.sqrt().clamp_min(self._least)
        change = square * (r - 0.5 * mean) - 0.5 * mean * self._square(r)
        return torch.where(square > 0.0, change / deviation**3, change.new_zeros(()))


DIFFERENTIAL: dict[str, type[Differential]] = {
    "differential_sharpe": DifferentialSharpe,
    "differential_downside": DifferentialDownside,
}


class Rewards:
    """The terms of a config that have a weight, and their state for N accounts."""

    def __init__(self, config: RewardConfig, n: int, device: torch.device) -> None:
        self._config = config
        active = {name: weight for name, weight in config.weights.items() if weight}
        self._plain = [(TERMS[name], weight) for name, weight in active.items() if name in TERMS]
        self._moving = {
            name: DIFFERENTIAL[name](config, n, device) for name in active if name in DIFFERENTIAL
        }
        self._moving_weights = [active[name] for name in self._moving]
        self.needs_sigma = "vol_scaled" in active
        self.needs_return = bool(self._moving or {"mean_variance", "vol_scaled"} & active.keys())
        self.entry_names = tuple(
            f"{name}_{entry}" for name, term in self._moving.items() for entry in term.entry_names()
        )

    def reweigh(self, config: RewardConfig) -> None:
        """Other weights and parameters, of the same terms: which they are decides what the token shows."""
        active = {name: weight for name, weight in config.weights.items() if weight}
        if active.keys() != {name for name, weight in self._config.weights.items() if weight}:
            raise HpcrlError("env.rewards: a run cannot switch a reward term on or off while it trains")
        self._config = config
        self._plain = [(TERMS[name], weight) for name, weight in active.items() if name in TERMS]
        self._moving_weights = [active[name] for name in self._moving]

    def pay(self, step: StepFacts) -> Tensor:
        """Weighted sum of the terms, [N, 1] float64; moves their state."""
        total = None
        for term, weight in self._plain:
            value = term(step, self._config) if weight == 1 else term(step, self._config) * weight
            total = value if total is None else total + value
        for moving, weight in zip(self._moving.values(), self._moving_weights, strict=True):
            value = moving.pay(step) * weight
            total = value if total is None else total + value
        assert total is not None  # the config refuses rewards without any weight
        return total

    def begin(self, mask_N1: Tensor) -> None:
        """A new episode where the mask says so."""
        for tensor in self.named().values():
            tensor.masked_fill_(mask_N1, 0.0)

    def entries(self) -> list[Tensor]:
        """The terms' state as the token shows it, [N, 1] each, in the order of ``entry_names``."""
        return [entry for term in self._moving.values() for entry in term.entries()]

    def named(self) -> dict[str, Tensor]:
        """The state itself, by name."""
        return {
            f"{name}.{part}": tensor
            for name, term in self._moving.items()
            for part, tensor in term.state.items()
        }


def known_mean(sigma_NA: Tensor) -> Tensor:
    """Mean over the assets whose sigma is known (above 0), [N, 1]; 0 where none is."""
    known_N1 = (sigma_NA > 0.0).sum(1, keepdim=True)
    return sigma_NA.sum(1, keepdim=True) / known_N1.clamp_min(1)
