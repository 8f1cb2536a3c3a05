"""The learning rate of an epoch. It is ours: applied before every update and after every load."""

from __future__ import annotations

import math

from hpcrl.config.learn import LearnConfig


def learning_rate(config: LearnConfig, epoch: int, epochs: int) -> float:
    """Rate for the update of ``epoch`` (0-based) in a run of ``epochs``.

    Linear warm-up over warmup_epochs, then constant, or a decay toward lr x lr_final_fraction, which it
    would reach in the update after the last.
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / (config.warmup_epochs + 1)
    if config.lr_schedule == "constant":
        return config.lr
    span = max(1, epochs - config.warmup_epochs)
    done = min(1.0, (epoch - config.warmup_epochs) / span)
    shape = 1 - done if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.lr_final_fraction + (1 - config.lr_final_fraction) * shape)
