"""The reward of the last bar, which the token shows: the terms of ``hpcrl.env.rewards`` in numpy, float64.

tests/export holds both equal. An account without equity trades no more, so that no term knows ruin here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hpcrl.types import HpcrlError

MOST_SCALE = 10.0  # these four as in hpcrl.env.rewards
MEAN_SCALE = 10.0
DEVIATION_UNIT = 1e-4
DEVIATION_SCALE = 0.4

Settings = Mapping[str, Any]


class StepFacts(NamedTuple):
    """float64 [N] each, of one step."""

    log_return: np.ndarray
    simple_return: np.ndarray
    turnover: np.ndarray  # traded value / equity before
    drawdown_before: np.ndarray
    drawdown_after: np.ndarray
    sigma: np.ndarray  # known at the decision; 0: not known


def _mean_variance(step: StepFacts, config: Settings) -> np.ndarray:
    return step.simple_return - 0.5 * config["risk_aversion"] * step.simple_return**2


def _crra(step: StepFacts, config: Settings) -> np.ndarray:
    power = 1.0 - config["crra_gamma"]
    return step.log_return if power == 0 else np.expm1(step.log_return * power) / power


def _vol_scaled(step: StepFacts, config: Settings) -> np.ndarray:
    known_N = step.sigma > 0.0
    scale_N = np.minimum(config["vol_target"] / np.where(known_N, step.sigma, 1.0), MOST_SCALE)
    return np.where(known_N, step.simple_return * scale_N, 0.0)


TERMS: dict[str, Callable[[StepFacts, Settings], np.ndarray]] = {
    "log_return": lambda step, config: step.log_return,
    "turnover": lambda step, config: -step.turnover,
    "drawdown": lambda step, config: np.minimum(step.drawdown_before - step.drawdown_after, 0.0),
    "mean_variance": _mean_variance,
    "crra": _crra,
    "vol_scaled": _vol_scaled,
    "potential": lambda step, config: step.drawdown_before - config["potential_gamma"] * step.drawdown_after,
}


def lerp(start: np.ndarray, end: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """start + weight (end - start), rounded as torch does."""
    apart = end - start
    return np.where(np.asarray(weight) < 0.5, start + weight * apart, end - apart * (1.0 - weight))


@dataclass
class Differential:
    """A moving ratio of mean and risk; ``downside``: of losses alone. State: float64 [3, N]."""

    config: Settings
    downside: bool
    state: np.ndarray  # mean, square, bars

    @property
    def warmup(self) -> int:
        bars = self.config["warmup_bars"]
        return round(1 / self.config["eta"]) if bars is None else bars

    def pay(self, step: StepFacts) -> np.ndarray:
        r_N, least = step.simple_return, self.config["least_deviation"]
        mean_N, square_N, bars_N = self.state
        if self.downside:
            loss_N = np.minimum(r_N, 0.0)
            now_N = loss_N * loss_N
            deviation_N = np.maximum(np.sqrt(square_N), least)
            change_N = square_N * (r_N - 0.5 * mean_N) - 0.5 * mean_N * now_N
            value_N = np.where(square_N > 0.0, change_N / deviation_N**3, 0.0)
        else:
            now_N = r_N * r_N
            variance_N = np.maximum(square_N - mean_N * mean_N, least**2)
            change_N = square_N * (r_N - mean_N) - 0.5 * mean_N * (now_N - square_N)
            value_N = change_N / (variance_N * np.sqrt(variance_N))
        value_N = np.where(bars_N >= self.warmup, value_N, 0.0)
        mean_N, square_N = (
            lerp(old, new, self.config["eta"]) for old, new in ((mean_N, r_N), (square_N, now_N))
        )
        self.state = np.stack([mean_N, square_N, bars_N + ((mean_N != 0.0) | (square_N > 0.0))])
        return value_N

    def entries(self) -> list[np.ndarray]:
        mean_N, square_N, bars_N = self.state
        deviation_N = np.sqrt(square_N)
        shown = [
            mean_N / np.maximum(deviation_N, self.config["least_deviation"]) * MEAN_SCALE,
            np.log1p(deviation_N / DEVIATION_UNIT) * DEVIATION_SCALE,
        ]
        return [*shown, np.minimum(bars_N / self.warmup, 1.0)] if self.warmup else shown


class Rewards:
    """The terms of a config that have a weight, for N accounts."""

    def __init__(self, config: Settings, accounts: int) -> None:
        """``config``: env.rewards of the resolved config. HpcrlError: terms that are not this version's."""
        self._config = config
        moving = ("differential_sharpe", "differential_downside")
        parameters = {"eta", "warmup_bars", "least_deviation", "risk_aversion", "crra_gamma", "vol_target"}
        known = {*TERMS, *moving, *parameters, "potential_gamma"}
        if set(config) != known:
            odd = sorted(set(config) ^ known)
            raise HpcrlError(f"the policy's env.rewards differ from this version's in {', '.join(odd)}")
        self._plain = {name: term for name, term in TERMS.items() if config[name]}
        self.moving = {
            name: Differential(config, name == moving[1], np.zeros((3, accounts)))
            for name in moving
            if config[name]
        }

    @property
    def needs_sigma(self) -> bool:
        return "vol_scaled" in self._plain

    def pay(self, step: StepFacts) -> np.ndarray:
        """Weighted sum of the terms, [N]; moves their state."""
        total_N = np.zeros_like(step.log_return)
        for name, weight in self._config.items():  # in the config's order, as training adds them
            if name in self._plain:
                total_N = total_N + self._plain[name](step, self._config) * weight
        for name, term in self.moving.items():
            total_N = total_N + term.pay(step) * self._config[name]
        return total_N

    def entries(self) -> list[np.ndarray]:
        """The terms' state as the token shows it, [N] each."""
        return [entry for term in self.moving.values() for entry in term.entries()]
