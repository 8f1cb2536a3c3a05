"""One line of metrics.jsonl from a rollout. Rewards, turnover and costs are means per env step."""

from __future__ import annotations

import time
from typing import Any

import torch

from hpcrl.config.root import Config
from hpcrl.monitor.gpu import gpu_stats
from hpcrl.monitor.stopwatch import Stopwatch
from hpcrl.rollout.collector import Tally
from hpcrl.types import Rollout
from hpcrl.world.collectives import all_sum
from hpcrl.world.world import World


def summarise(rollout: Rollout, tally: Tally, config: Config, world: World) -> dict[str, Any]:
    """What the environments of all ranks did; collective, equal on all ranks."""
    steps = rollout.age_CNQ.numel() * world.size
    ends = (rollout.terminated_CNQ | rollout.truncated_CNQ).sum().double()
    total = all_sum(world, torch.cat((tally.sums, tally.positions_P, ends[None]))).tolist()
    sums = dict(zip(Tally.NAMES, total, strict=False))
    positions = total[len(Tally.NAMES) : -1]
    shares = {
        f"action_share/{weight:g}": count / sum(positions)
        for weight, count in zip(config.policy.positions, positions, strict=True)
    }
    bankruptcies = sums.pop("bankruptcies")
    return {
        **{name: value / steps for name, value in sums.items()},
        "bankruptcies": bankruptcies,
        "episode_length": steps / total[-1] if total[-1] else None,
        **shares,
        "action_share_max": max(shares.values()),
    }


def timing(watch: Stopwatch, seconds: float, rollout: Rollout, attempt: int, world: World) -> dict[str, Any]:
    """Keys under time/ and gpu/, of this rank: what differs between two runs of one config."""
    return {
        "time/attempt": attempt,
        "time/unix": time.time(),
        "time/epoch": seconds,
        "time/steps_per_second": rollout.age_CNQ.numel() * world.size / seconds,
        **{f"time/{name}": spent for name, spent in watch.read().items()},
        **gpu_stats(world.device),
    }
