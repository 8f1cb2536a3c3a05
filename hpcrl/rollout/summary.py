"""One line of metrics.jsonl from a rollout. Rewards, turnover and costs are means per env step."""

from __future__ import annotations

import time
from typing import Any

import torch

from hpcrl.monitor.stopwatch import Stopwatch
from hpcrl.rollout.collector import Tally
from hpcrl.types import Rollout
from hpcrl.world.collectives import all_sum
from hpcrl.world.world import World


def summarise(rollout: Rollout, tally: Tally, shares: tuple[str, ...], world: World) -> dict[str, Any]:
    """What the environments of all ranks did; collective, equal on all ranks.

    ``shares``: the distribution's names of the parts of the weights' range.
    """
    steps = rollout.age_CNQ.numel() * world.size
    ends = (rollout.terminated_CNQ | rollout.truncated_CNQ).sum().double()
    total = all_sum(world, torch.cat((tally.sums, tally.share_counts, ends[None]))).tolist()
    sums = dict(zip(Tally.NAMES, total, strict=False))
    counts = total[len(Tally.NAMES) : -1]
    named = {f"action_share/{name}": count / sum(counts) for name, count in zip(shares, counts, strict=True)}
    bankruptcies = sums.pop("bankruptcies")
    return {
        **{name: value / steps for name, value in sums.items()},
        "bankruptcies": bankruptcies,
        "episode_length": steps / total[-1] if total[-1] else None,
        **named,
        "action_share_max": max(named.values()),
    }


def timing(watch: Stopwatch, seconds: float, rollout: Rollout, attempt: int, world: World) -> dict[str, Any]:
    """Keys under time/, of this rank: they differ between two runs of one config."""
    return {
        "time/attempt": attempt,
        "time/unix": time.time(),
        "time/epoch": seconds,
        "time/steps_per_second": rollout.age_CNQ.numel() * world.size / seconds,
        **{f"time/{name}": spent for name, spent in watch.read().items()},
    }
