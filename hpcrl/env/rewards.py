"""The registry of reward terms: named, batched, summed with the weights of the config.

A term maps one step's facts to [N, 1] float64; its sign is chosen so that a positive weight rewards what
is wanted. The *objective* by which agents are compared is never this sum: it is the unshaped account.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from hpcrl.types import HpcrlError


class StepFacts(NamedTuple):
    """[N, 1] float64 each."""

    log_return: Tensor  # ln(E'/E), ln(reward_floor) where bankrupt
    turnover: Tensor  # traded value / equity before
    drawdown_before: Tensor  # depth below the episode's highest equity, in [0, 1]
    drawdown_after: Tensor


Term = Callable[[StepFacts], Tensor]


def _log_return(step: StepFacts) -> Tensor:
    return step.log_return


def _turnover(step: StepFacts) -> Tensor:
    return -step.turnover


def _drawdown(step: StepFacts) -> Tensor:
    """Increments, not depth: a loss is punished once, and a recovery is not rewarded twice."""
    return (step.drawdown_before - step.drawdown_after).clamp_max(0.0)


TERMS: dict[str, Term] = {"log_return": _log_return, "turnover": _turnover, "drawdown": _drawdown}


def active_terms(weights: Mapping[str, float]) -> tuple[tuple[Term, float], ...]:
    """Terms with a weight other than 0. HpcrlError for a name that is not registered."""
    for name in weights:
        if name not in TERMS:
            raise HpcrlError(f"unknown reward term {name!r}; there are {', '.join(TERMS)}")
    return tuple((TERMS[name], weight) for name, weight in weights.items() if weight)


def shaped_reward(terms: tuple[tuple[Term, float], ...], step: StepFacts) -> Tensor:
    """Weighted sum of the terms, [N, 1] float64."""
    total = None
    for term, weight in terms:
        value = term(step) if weight == 1 else term(step) * weight
        total = value if total is None else total + value
    assert total is not None  # the config refuses rewards without any weight
    return total
