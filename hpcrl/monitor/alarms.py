"""Signs of a run going wrong, read off its metrics. Thresholds are rules of thumb, not measurements.

An alarm is one line, ``NAME: what was seen; what to try``.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from hpcrl.monitor.progress import Progress, doubled

NEGATIVE_FOR = 10
"""Epochs in a row with negative explained variance before it is an alarm."""
STILL_FOR, STILL = 20, 1e-7
"""Epochs in a row in which updates change the policy by a smaller KL divergence than this."""
FINITE = ("loss", "reward", "value_mean", "return_scale")


def name_of(alarm: str) -> str:
    return alarm.partition(":")[0]


class Alarms:
    """``greatest_entropy``: of a policy that chooses at random; below ``collapsed_entropy`` hardly anything
    is left to explore. Both in nats, of all assets together."""

    def __init__(self, collapsed_entropy: float, greatest_entropy: float) -> None:
        self.collapsed_entropy, self.greatest_entropy = collapsed_entropy, greatest_entropy
        self.explained: deque[float] = deque(maxlen=NEGATIVE_FOR)
        self.progress = Progress()
        self.still, self.greatest_lr = 0, 0.0
        self.lasting: dict[str, int] = {}
        """Alarms of the newest epoch, by name, and for how many epochs in a row."""

    def remember(self, lines: list[dict]) -> None:
        """Epochs of before a resume, so that it rings as an uninterrupted run would."""
        for line in lines:
            self.check(line)

    def check(self, metrics: dict[str, Any]) -> list[str]:
        """The alarms of one epoch, which may be a line of metrics.jsonl: what it lacks raises none."""
        entropy, share = _number(metrics, "entropy"), _number(metrics, "action_share_max")
        skipped, divergence = _number(metrics, "skipped_steps"), _number(metrics, "weight_divergence")
        found = []
        if entropy < self.collapsed_entropy:
            found.append(
                f"entropy collapse: {entropy:.4f}, at random {self.greatest_entropy:.2f}; "
                "raise learn.entropy_coef or lower learn.lr"
            )
        if share > 0.99:
            found.append(
                f"one action: {share:.1%} of all steps take the same position (with a "
                "continuous head: the same fifth of its range); raise learn.entropy_coef, or check the costs "
                "against the signal"
            )
        if divergence > 0:
            found.append(
                f"ranks apart: the ranks' weights differ by {divergence:g}; stop and resume from the "
                "last checkpoint, and report it"
            )
        if skipped > 0:
            found.append(
                f"skipped steps: {skipped:.0f} optimiser steps skipped for non-finite gradients; "
                "lower learn.lr or learn.max_grad_norm"
            )
        if bad := [key for key in FINITE if key in metrics and math.isnan(_number(metrics, key))]:
            found.append(
                f"not finite: {', '.join(bad)}; lower learn.lr, and look for broken bars or features (hpcrl "
                "audit)"
            )
        slow = (self._critic(metrics), self._stillness(metrics, quiet=not found), self._progress(metrics))
        found += [line for line in slow if line]
        self.lasting = {name_of(line): self.lasting.get(name_of(line), 0) + 1 for line in found}
        return found

    def news(self, found: list[str]) -> list[str]:
        """Of what ``check`` has just found, what a person should be told: a lasting alarm ever less often."""
        return [line for line in found if doubled(self.lasting[name_of(line)], 1)]

    def _critic(self, metrics: dict[str, Any]) -> str:
        explained = _number(metrics, "explained_variance")
        self.explained.append(0.0 if math.isnan(explained) else explained)
        if len(self.explained) < NEGATIVE_FOR or max(self.explained) >= 0:
            return ""
        return (
            f"critic: explained variance below 0 for {NEGATIVE_FOR} epochs; the critic does not learn: "
            "lower learn.lr or raise learn.batch_size"
        )

    def _stillness(self, metrics: dict[str, Any], quiet: bool) -> str:
        """Of a policy that is open to change: one that has decided, or whose rate has decayed, may be still.

        The first minibatch of an update sees no change; with one PPO epoch it may be the only one.
        """
        lr = _number(metrics, "lr")
        self.greatest_lr = max(self.greatest_lr, 0.0 if math.isnan(lr) else lr)
        moves = _number(metrics, "ppo_epochs") > 1 and lr > 0.1 * self.greatest_lr
        still = quiet and moves and _number(metrics, "approx_kl") < STILL
        self.still = self.still + 1 if still else 0
        if not doubled(self.still, STILL_FOR):
            return ""
        return (
            f"frozen policy: {self.still} epochs of updates at learning rate {lr:.2g} have not changed it "
            f"(KL divergence below {STILL:g}); raise learn.lr, or see whether rewards differ at all "
            "(env.rewards, env.costs)"
        )

    def _progress(self, metrics: dict[str, Any]) -> str:
        return self.progress.add(metrics.get("epoch", 0), _number(metrics, "reward"))


def _number(metrics: dict[str, Any], key: str) -> float:
    """NaN for what is missing or no finite number, as metrics.jsonl has null for it."""
    value = metrics.get(key)
    good = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if good else math.nan  # type: ignore[arg-type]
