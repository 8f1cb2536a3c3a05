"""Signs of a run going wrong, read off its metrics. Thresholds are rules of thumb, not measurements."""

from __future__ import annotations

from collections import deque

NEGATIVE_FOR = 10
"""Epochs in a row with negative explained variance before it is an alarm."""


class Alarms:
    """``greatest_entropy``: of a policy that chooses at random; below ``collapsed_entropy`` hardly anything
    is left to explore. Both in nats, of all assets together."""

    def __init__(self, collapsed_entropy: float, greatest_entropy: float) -> None:
        self.collapsed_entropy, self.greatest_entropy = collapsed_entropy, greatest_entropy
        self.explained: deque[float] = deque(maxlen=NEGATIVE_FOR)

    def remember(self, lines: list[dict]) -> None:
        """Epochs of before a resume, so that it rings as an uninterrupted run would."""
        known = [line.get("explained_variance") for line in lines[-NEGATIVE_FOR:]]
        self.explained.extend(0.0 if value is None else value for value in known)

    def check(self, metrics: dict) -> list[str]:
        """One line per alarm, each with what to try."""
        found = []
        if metrics["entropy"] < self.collapsed_entropy:
            found.append(
                f"entropy collapse: {metrics['entropy']:.4f}, at random {self.greatest_entropy:.2f}; "
                "raise learn.entropy_coef or lower learn.lr"
            )
        if metrics["action_share_max"] > 0.99:
            found.append(
                f"one action: {metrics['action_share_max']:.1%} of all steps take the same position (with a "
                "continuous head: the same fifth of its range); raise learn.entropy_coef, or check the costs "
                "against the signal"
            )
        self.explained.append(metrics["explained_variance"])
        if len(self.explained) == NEGATIVE_FOR and max(self.explained) < 0:
            found.append(
                f"explained variance below 0 for {NEGATIVE_FOR} epochs; the critic does not learn: "
                "lower learn.lr or raise learn.batch_size"
            )
        if metrics["weight_divergence"]:
            found.append(
                f"the ranks' weights differ by {metrics['weight_divergence']:g}; stop and resume from the "
                "last checkpoint, and report it"
            )
        if metrics["skipped_steps"]:
            found.append(
                f"{metrics['skipped_steps']:.0f} optimiser steps skipped for non-finite gradients; "
                "lower learn.lr or learn.max_grad_norm"
            )
        return found
